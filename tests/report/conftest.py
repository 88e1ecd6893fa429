"""Workdirs as runs leave them, without training anything."""

import json

import numpy as np
import pytest

from configs import cifar10_distill, digits_distill
from diffusion_distill.config import to_dict
from diffusion_distill.data.batches import to_uint8
from diffusion_distill.stages import plan
from diffusion_distill.storage.files import write_rows

METRIC = "fd_pixels1k_train"


def value_of(num_steps, sampler="students"):
    """What a stage of a made-up run measures: a number of its own for each."""
    factor = {"students": 1.0, "ddim": 4.0, "ancestral": 5.0, "dpmpp_2m": 3.0}[sampler]
    return 0.25 + factor / num_steps


def write_run(workdir, config=None, shape=(8, 8, 1), measured=None, logged=None, metric=METRIC):
    """Writes what the report reads of a run.

    Args:
        workdir: made here.
        config: of the run; the digits' by default.
        shape: of its images.
        measured: stages that are done; all by default.
        logged: updates that are logged of the next one.
        metric: what is measured.
    """
    if config is None:
        config = digits_distill.get_config()
        config.eval.baselines = ("ddim", "ancestral")
    stages = plan(config)
    measured = len(stages) if measured is None else measured
    workdir.mkdir(parents=True)
    fields = {"config": to_dict(config), "image_shape": list(shape)}
    fields |= {"num_classes": 10, "teacher_num_steps": 0}
    (workdir / "config.json").write_text(json.dumps(fields))
    write_rows(workdir / "stages.jsonl", [vars(stage) for stage in stages])
    rng = np.random.default_rng(0)

    def images(*lead):
        return np.asarray(to_uint8(rng.normal(size=(*lead, *shape)) / 2))

    rows = []
    for number, stage in enumerate(stages[: measured + 1]):
        folder = workdir / stage.name
        folder.mkdir()
        updates = stage.updates if number < measured else logged or 0
        every = max(stage.updates // 50, 1)
        write_rows(
            folder / "metrics.jsonl",
            [
                {"step": n, "loss": 1 / n, "grad_norm": 0.5, "learning_rate": 1e-3}
                for n in range(every, updates + 1, every)
            ],
        )
        if number == measured:
            break
        row = {
            "stage": stage.name, "num_steps": stage.num_steps, "updates": stage.updates,
            "images_seen": stage.updates * config.train.batch_size, "seconds": 10.0 + number,
        }  # fmt: skip
        if not stage.has_teacher or stage.num_steps <= config.eval.max_steps:
            steps = min(stage.num_steps, config.eval.max_steps)
            row |= {
                "metric": metric, "metrics": [metric], "measured_steps": steps, "seed": 1,
                metric: value_of(steps, "students" if stage.has_teacher else "ddim"), "notes": {},
                "devices": 1, "device_kind": "cpu", "code_version": "abc",
            }  # fmt: skip
        else:
            row["not_measured"] = f"{stage.num_steps} steps are more than config.eval.max_steps"
        if not stage.has_teacher:
            all_steps = [s.num_steps for s in stages if s.num_steps <= config.eval.max_steps]
            row["baselines"] = {
                name: {str(n): value_of(n, name) for n in all_steps}
                for name in config.eval.baselines
            }
            row["baseline_metric"] = metric
        rows.append(row)
        np.savez(
            folder / "samples.npz", images=images(40), labels=np.zeros(40, np.int32),
            distances=rng.uniform(20, 40, 40), nearest=images(8, 3),
            nearest_distances=rng.uniform(20, 40, (8, 3)),
            nearest_mirrored=np.zeros((8, 3), bool), total=1797, compared=1797,
        )  # fmt: skip
    if rows:
        write_rows(workdir / "results.jsonl", rows)
        np.savez(
            workdir / "real.npz", images=images(40), labels=np.zeros(40, np.int32),
            distances=rng.uniform(20, 40, 40), total=1797, compared=1797,
        )  # fmt: skip
    return workdir


@pytest.fixture
def digits_run(tmp_path):
    """A finished run of the digits' config, teacher and five students."""
    return write_run(tmp_path / "digits")


@pytest.fixture
def cifar10_run(tmp_path):
    """A run of the paper's CIFAR-10 config that has reached its student of 16 steps.

    Its students of 256 steps and more are not measured.
    """
    config = cifar10_distill.get_config()
    return write_run(
        tmp_path / "cifar10", config, (32, 32, 3), measured=10, logged=20_000,
        metric="fid50k_train",
    )  # fmt: skip
