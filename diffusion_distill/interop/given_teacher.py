"""config.distill.teacher: averaged weights from elsewhere that a chain starts from."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.distributed import on_main
from diffusion_distill.errors import UserError
from diffusion_distill.interop import diffusers, export, published
from diffusion_distill.runs.network import (
    Network,
    check_matches,
    check_same,
    from_stage,
    with_weights,
)
from diffusion_distill.runs.workdir import Workdir, describe
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.terminal.console import say


@dataclasses.dataclass(frozen=True)
class GivenTeacher:
    """A teacher that a run does not train itself: where it is, without its weights."""

    path: str  # where its weights are, or were when the run began: config.distill.teacher
    fixed_steps: int | None  # the only number of sampling steps that it takes; None for any
    network: dict | None = None  # fields of its network; see `Workdir.teacher_network`


def find(config: ConfigDict, ours: Network, workdir: str | Path, mesh: Mesh) -> GivenTeacher | None:
    """The teacher that a run starts from; None where it trains its own.

    A run that is in `workdir` already is taken at its word, and keeps its teacher where
    config.distill.teacher is empty. The teacher of a new one is loaded, to see that it can be: see
    `load_teacher`. Its weights are dropped here; `copy` reads them again when the run begins.

    Args:
        config: the run's.
        ours: the network of its students, untrained.
    """
    path = config.distill.teacher
    if on_main(lambda: (as_path(workdir) / "config.json").exists()):
        here = Workdir.open(workdir)
        if here.config.distill.teacher and path in ("", here.config.distill.teacher):
            path, fixed_steps = here.config.distill.teacher, here.teacher_fixed_steps
            return GivenTeacher(path, fixed_steps, here.teacher_network)
        return GivenTeacher(path, None) if path else None  # another run: `Workdir.check` refuses it
    if not path:
        return None
    network = load_teacher(path, ours, mesh)
    theirs, own = describe(network.config), describe(config)
    if not config.match.updates:  # the same network, but for what computes it
        theirs = own | {"teacher": theirs["teacher"]}
    return GivenTeacher(path, network.fixed_steps, None if theirs == own else theirs)


def load_teacher(path: str, ours: Network, mesh: Mesh) -> Network:
    """The network of the teacher that is at `path`.

    That is a workdir (its last finished stage), a stage's folder in one, an exported folder, one
    that diffusers wrote, or a published file. Raises UserError where it is none of these, is
    damaged or unfinished, or its network is another than the run's (the first names and shapes that
    differ, or the fields) and there is no match stage; CheckpointError where the checkpoint in its
    workdir is damaged.
    """

    def check(theirs: Network) -> None:
        (check_matches if ours.config.match.updates else check_same)(ours, theirs, path)

    where = as_path(path)
    if where.is_file():
        file = published.read(where)
        theirs = dataclasses.replace(ours, fixed_steps=file.fixed_steps)
        return with_weights(theirs, file.weights, path)
    if not where.is_dir():
        kinds = "workdir, stage's folder, exported folder, diffusers' folder or published file"
        raise UserError(f"config.distill.teacher is {path!r}; there is no such {kinds}")
    if export.is_export(where):
        network = export.read(where, mesh)
        check(network)
        return network
    if diffusers.is_diffusers(where):
        return diffusers.read(where, mesh, check)
    is_stage = not (where / "config.json").exists() and (where.parent / "config.json").exists()
    run = Workdir.open(where.parent if is_stage else where)
    stage = run.finished_stage(name=where.name if is_stage else None)  # else the last
    return from_stage(run, stage, mesh, check)


def copy(teacher: GivenTeacher, ours: Network, run: Workdir, mesh: Mesh) -> dict:
    """Makes a teacher a finished stage of a run, and returns its averaged weights.

    Raises UserError where it is gone, or another one by now; CheckpointError where it is damaged.
    """
    network = load_teacher(teacher.path, ours, mesh)
    if network.fixed_steps != teacher.fixed_steps:
        raise UserError(
            f"{teacher.path} is made for {network.fixed_steps or 'any number of'} steps now; when "
            f"this run began, for {teacher.fixed_steps or 'any number'}"
        )
    say(f"teacher: copying {teacher.path}")
    run.put_teacher(network.params)
    return network.params
