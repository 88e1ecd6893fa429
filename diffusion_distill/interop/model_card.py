"""The model card of an exported stage: what it is made of, on which data, how it was measured."""

from pathlib import Path

import jax

from diffusion_distill.report.table import meaning, summary
from diffusion_distill.runs.network import Network
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage, plan
from diffusion_distill.version import code_version

_PAPER = "[Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)"
_HEAD = """---
library_name: diffusers
tags:
- diffusion
- progressive-distillation
- unconditional-image-generation
---

"""
_PIPELINE = """from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{out}")
images = pipeline(num_inference_steps={steps}, use_clipped_model_output=True).images
images[0].save("image.png")
"""
# DDIMPipeline has no argument for labels.
_WITH_LABELS = """import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{out}")
unet, scheduler = pipeline.unet, pipeline.scheduler
labels = torch.arange({labels})
x = torch.randn(len(labels), {channels}, {height}, {width})
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        output = unet(x, t, class_labels=labels).sample
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
images = pipeline.numpy_to_pil((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
images[0].save("image.png")
"""


def model_card(run: Workdir, stage: Stage, network: Network, out: str | Path) -> str:
    """The text of README.md, in Markdown, for a stage that is exported to the folder `out`."""
    config, (height, width, channels) = run.config, network.image_shape
    labels = network.num_classes
    lines = _WITH_LABELS if labels else _PIPELINE
    sizes = {"height": height, "width": width, "channels": channels, "labels": labels}
    example = lines.format(out=out, steps=stage.num_steps, **sizes)
    count = sum(weight.size for weight in jax.tree.leaves(network.params))
    data = f"{config.data.name} {config.data.tfds_name}".strip()
    facts = [
        f"Draws {height}x{width} images of {channels} channels in {stage.num_steps} steps of DDIM"
        + (f", for {labels} labels." if labels else "."),
        f"{count:,} parameters; it predicts {config.diffusion.parameterization}.",
        f"Trained on {data}, split {config.data.split}.",
        *(_history(run, stage)),
        *(_measured(row) for row in run.results() if row["stage"] == stage.name),
        f"Made by diffusion_distill {code_version()}.",
    ]
    title = f"# {Path(out).name}\n\nMade by progressive distillation ({_PAPER}).\n\n"
    text = "".join(f"- {fact}\n" for fact in facts)
    return f"{_HEAD}{title}{text}\n## An image\n\n```python\n{example}```\n"


def _history(run: Workdir, stage: Stage) -> list[str]:
    """A line for where the teacher is from, and one for the rounds up to a stage."""
    stages = plan(run.config)
    names = [s.name for s in stages]
    rounds = stages[1 : names.index(stage.name) + 1]
    teacher, size = stages[0], run.config.train.batch_size
    source = f"Teacher: {run.config.distill.teacher}."
    if teacher.updates:
        source = f"Teacher: trained in the same run, {teacher.updates:,} updates of {size} images."
    if not rounds:
        return [source]
    steps = ", ".join(str(s.num_steps) for s in rounds)
    updates = sum(s.updates for s in rounds)
    budget = f"{updates:,} updates of {size} images"
    return [source, f"Distilled from {teacher.num_steps} steps to {steps}: {budget}."]


def _measured(row: dict) -> str:
    if "not_measured" in row:
        return f"Measured: {summary(row)}."
    return f"Measured: {summary(row)}. {meaning(row['metric'])}"
