"""config.distill.teacher: averaged weights from elsewhere that a chain starts from."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from diffusion_distill.devices.distributed import on_main
from diffusion_distill.errors import UserError
from diffusion_distill.interop import export, published
from diffusion_distill.runs.network import (
    Network,
    abstract_weights,
    check_meaning,
    check_shapes,
    from_stage,
    place,
    shapes,
)
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.terminal.console import say


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher that a run does not train itself.

    Attributes:
        path: where its weights are, or were when the run began: config.distill.teacher.
        num_steps: the sampling steps that it is made for; 0 where it was trained in continuous
            time, or its file does not say.
        params: the averaged weights; None where they are not loaded yet.
    """

    path: str
    num_steps: int
    params: dict | None = None


def find(ours: Network, workdir: str | Path, mesh: Mesh) -> Teacher | None:
    """The teacher that a run starts from; None where it trains its own.

    A run that is there already is taken at its word: nothing is loaded. It keeps its teacher where
    config.distill.teacher is empty.

    Args:
        ours: the network that the run trains, its params ShapeDtypeStructs.
        workdir: of the run, whether it is there or not.

    Raises:
        UserError: the teacher cannot be loaded, or its network is another than the run's.
    """
    path = ours.config.distill.teacher
    if on_main(lambda: (as_path(workdir) / "config.json").exists()):
        here = Workdir.open(workdir)
        if here.config.distill.teacher and path in ("", here.config.distill.teacher):
            return Teacher(here.config.distill.teacher, here.teacher_num_steps)
        return Teacher(path, 0) if path else None  # refused soon: it is another run
    return load(path, ours, mesh) if path else None


def load(path: str, ours: Network, mesh: Mesh) -> Teacher:
    """The teacher that is at `path`.

    Args:
        path: a workdir, a stage's folder in one, an exported folder, or a published file.
        ours: the network that the run trains, its params ShapeDtypeStructs.

    Raises:
        UserError: it is none of these, is damaged or unfinished, or its network is another than
            the run's: the first names and shapes that differ, or the fields.
        CheckpointError: the checkpoint in its workdir is damaged.
    """
    where = as_path(path)
    if where.is_file():
        file = published.read(where)
        return Teacher(path, file.num_steps, place(file.weights, ours.params, path))
    if not where.is_dir():
        raise UserError(
            f"config.distill.teacher is {path!r}; there is no such workdir, stage's folder, "
            "exported folder or published file"
        )
    if export.is_export(where):
        network = export.read(where, mesh)
    else:
        network = _of_workdir(where, ours, mesh)
    check_shapes(shapes(ours.params), shapes(network.params), path)
    check_meaning(ours, network, path)
    return Teacher(path, network.num_steps, network.params)


def _of_workdir(path: Path, ours: Network, mesh: Mesh) -> Network:
    """The last finished stage of a workdir, or the stage whose folder `path` is."""
    is_stage = not (path / "config.json").exists() and (path.parent / "config.json").exists()
    run = Workdir.open(path.parent if is_stage else path)
    stage = run.finished_stage(name=path.name if is_stage else None)
    theirs = abstract_weights(run.config, run.image_shape, run.num_classes, mesh)
    check_shapes(shapes(ours.params), shapes(theirs), str(path))  # before anything large is read
    return from_stage(run, stage, mesh)


def copy(teacher: Teacher, ours: Network, run: Workdir, mesh: Mesh) -> dict:
    """Makes a teacher a finished stage of a run, and returns its averaged weights.

    Raises:
        UserError: it has to be loaded again, and is gone, or another one by now.
        CheckpointError: it cannot be written.
    """
    if teacher.params is None:
        again = load(teacher.path, ours, mesh)
        if again.num_steps != teacher.num_steps:
            raise UserError(
                f"{teacher.path} is made for {again.num_steps or 'any number of'} steps now; when "
                f"this run began, for {teacher.num_steps or 'any number'}"
            )
        teacher = again
    say(f"teacher: copying {teacher.path}")
    run.put_teacher(teacher.params)
    return teacher.params
