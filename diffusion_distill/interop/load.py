"""Samplers from files: of a workdir, a folder of ours or of diffusers, a published checkpoint."""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler, checked_guidance, make_sample_program
from diffusion_distill.interop import diffusers, export, published
from diffusion_distill.runs.network import from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.validate import from_file, validate


@compiler.own_settings()
def load_sampler(
    path: str | Path,
    num_steps: int | None = None,
    stage: str | None = None,
    sampler: str = "ddim",
    config: str | Path | ConfigDict | None = None,
    batch_size: int | None = None,
    guidance: float | None = None,
) -> Sampler:
    """The sampler of a trained network; only averaged weights are loaded, and verified first.

    Args:
        path: the workdir of a run; a folder that interop/export.py wrote; one that diffusers wrote
            (interop/diffusers.py); or a checkpoint that the paper's authors published
            (interop/published.py).
        num_steps: of a workdir, the steps of the stage wanted; None for the last that is finished.
            A student takes its own number of steps alone. What was trained in continuous time (with
            stage="teacher" in a workdir), or does not say, takes any: None is then the config's
            distill.start_steps.
        stage: of a workdir, a stage's name, in place of num_steps.
        sampler: one of "ddim", "ancestral", "dpmpp_2m", "heun". Students are made for "ddim". A
            network of diffusers' also takes "ddim_diffusers": the images of its own DDIMScheduler.
        config: for a published checkpoint, and only there: its config, or a file of one, "FILE.py"
            or "FILE.py:VARIANT". data.image_size must be the side of its images.
        batch_size: images at once; None for the config's.
        guidance: w, where the network knows guidance: towards the label, and away from what it
            draws without one. 0 is none; others write 1 + w. A network that is told w takes those
            of its range at no cost; a teacher that was trained with label_dropout any, at twice
            the cost. None for the least that it knows, 0 for most.

    Raises:
        UserError: there is no such file, folder or stage, it is not finished, not made for that
            number of steps or that guidance, or damaged.
        CheckpointError: a workdir's checkpoint is damaged.
    """
    where, mesh = as_path(path), make_mesh()
    is_published = where.is_file()
    is_diffusers = not is_published and diffusers.is_diffusers(where)
    is_workdir = not is_published and not is_diffusers and not export.is_export(where)
    if is_published and config is None:
        needed = 'its config, as in config="configs/cifar10_distill.py"'
        raise UserError(f"{where} is a file; a published checkpoint needs {needed}")
    if config is not None and not is_published:
        raise UserError(f"config was given, but {where} is no file, and has a config of its own")
    if stage is not None and not is_workdir:
        raise UserError(f"stage is {stage!r}, but {where} is not a workdir: it has no stages")
    if is_workdir:
        run = Workdir.open(where)
        network = from_stage(run, run.finished_stage(num_steps, stage), mesh)
    elif is_published:
        if isinstance(config, ConfigDict):
            validate(config)
        else:
            config = from_file(str(config))
        network = published.load(where, config, mesh)
    elif is_diffusers:
        network = diffusers.read(where, mesh)
    else:
        network = export.read(where, mesh)
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if network.fixed_steps is not None and num_steps not in (None, network.fixed_steps):
        raise UserError(f"{path} is made for {network.fixed_steps} steps; num_steps is {num_steps}")
    config, shape, classes = network.config, network.image_shape, network.num_classes
    if batch_size is not None:
        config = config.copy_and_resolve_references()
        config.runtime.sampler_batch_size = batch_size
    w = checked_guidance(guidance, network.guidance)
    twice = network.is_asked_twice(w)
    program = make_sample_program(config, shape, classes, sampler, mesh, twice)
    steps = num_steps or network.fixed_steps or config.distill.start_steps
    return Sampler(program, network.params, steps, w)
