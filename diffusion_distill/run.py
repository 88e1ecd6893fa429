"""A run: a teacher, then students of half as many steps each, from where it stands to the end.

`check` says what a run is made of, `Programs` compiles it, `run_chain` goes through its stages.
"""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path

import jax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.config import to_dict
from diffusion_distill.data import sources
from diffusion_distill.data.source import Source
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import everywhere, fetch, on_main
from diffusion_distill.devices.sharding import (
    check_divides,
    described,
    make_mesh,
    place,
    replicated,
)
from diffusion_distill.diffusion.samplers import seed_key
from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.interop import given_teacher
from diffusion_distill.interop.given_teacher import GivenTeacher
from diffusion_distill.metrics.measure import Measurer, for_run
from diffusion_distill.metrics.stage_row import Subject, first_images, stage_row
from diffusion_distill.models.build import build_unet
from diffusion_distill.models.unet import UNet
from diffusion_distill.report.page import show_results
from diffusion_distill.report.pictures import write_pictures
from diffusion_distill.report.table import summary
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.network import Network, same_but_told
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage, plan, started_from, student_config
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import cache_folder, remove
from diffusion_distill.terminal.console import duration, say
from diffusion_distill.terminal.progress import RunLeft, no_run
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.loop import Job, train
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.outlook import Outlook, outlook
from diffusion_distill.training.programs import Programs
from diffusion_distill.training.recorder import Recorder
from diffusion_distill.training.state import (
    TrainState,
    abstract_state,
    init_matched,
    init_student,
    init_teacher,
)
from diffusion_distill.validate import validate


def run_config(config: ConfigDict, workdir: str | Path) -> "Setup":
    """Runs a config in a workdir to its end, from where it stands; see `check` and `run_chain`."""
    setup = check(config, workdir)
    compiler.start(setup.config.runtime.cache_dir)
    run_chain(setup, Programs(setup), StopSignal())
    return setup


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of, once it is known to be possible."""

    config: ConfigDict  # the run's; the chain starts at the steps that its teacher is made for
    workdir: Workdir  # where it is, or will be
    mesh: Mesh
    source: Source  # what is trained on
    network: Network  # of all stages but the teacher, untrained
    # of the stage "teacher", untrained: the same one where it is the same
    teacher_network: Network
    # what the chain starts from; None where the run trains its own teacher
    given_teacher: GivenTeacher | None
    stages: dict[str, Stage]  # by name, in order
    measurer: Measurer  # of its images

    def network_of(self, stage: Stage) -> Network:
        """A stage's network, untrained."""
        return self.network if stage.has_teacher else self.teacher_network

    def model(self, stage: Stage, dropout: float = 0.0) -> UNet:
        """A stage's network as a Flax module."""
        channels, num_classes = self.source.image_shape[-1], self.source.num_classes
        return build_unet(self.network_of(stage).config, channels, num_classes, dropout)

    def abstract(self, stage: Stage) -> TrainState:
        """Shapes, dtypes and shardings of a stage's state."""
        params = self.network_of(stage).params
        return abstract_state(params, make_optimizer(self.config, stage), self.mesh)

    def subject(self, stage: Stage) -> Subject:
        """What is measured of a stage."""
        all_steps = tuple(dict.fromkeys(s.num_steps for s in self.stages.values()))
        fixed_steps = None if stage.has_teacher else self.workdir.fixed_steps(stage)
        guidance = self.network_of(stage).guidance
        return Subject(stage, self.config.eval, all_steps, fixed_steps, guidance)


@compiler.own_settings()
def check(config: ConfigDict, workdir: str | Path) -> Setup:
    """What a run is made of. Finds out all that can be before anything is computed or written.

    Raises:
        UserError: the config is not valid or does not fit the data, the teacher or the devices,
            or the workdir holds another run.
        CheckpointError: the teacher's checkpoint is damaged.
    """
    everywhere(lambda: validate(config))
    mesh = make_mesh(config.runtime.fsdp)
    say(described(mesh))
    check_divides(mesh, "train.batch_size", config.train.batch_size, config.runtime.accumulation)
    source = everywhere(
        lambda: sources.load(config.data, cache=cache_folder(config.runtime.cache_dir))
    )
    _check_images(config, source)
    labels = f"{source.num_classes} labels" if source.num_classes else "no labels"
    say(f"data: {len(source):,} images of {'x'.join(map(str, source.image_shape))}, {labels}")
    measurer = for_run(config, source, mesh)
    num_classes = build_unet(config, source.image_shape[-1], source.num_classes).num_classes

    def network_by(config: ConfigDict) -> Network:
        return Network.untrained(config, source.image_shape, num_classes, None, mesh)

    given = given_teacher.find(config, network_by(student_config(config)), workdir, mesh)
    if given is not None:
        config = _started_from(config, given)
    elif config.model.guidance:
        raise UserError(
            f"config.model.guidance is {config.model.guidance}; it must be () for a run that "
            "trains its own teacher (config.match.guidance is what its students are told)"
        )
    of_teacher = (given.fixed_steps, given.network) if given else (None, None)
    data = on_main(
        lambda: {"training": source.identity(), "reference": measurer.reference_identity()}
    )
    where, shape = as_path(workdir), source.image_shape
    folder = Workdir(where, config, shape, num_classes, *of_teacher, data)
    folder.check()
    stages = {stage.name: stage for stage in plan(config)}
    students, teacher = student_config(config), folder.network_config(stages["teacher"])
    network = teacher_network = network_by(students)
    if to_dict(teacher) != to_dict(students):
        teacher_network = network_by(teacher)
    networks = network, teacher_network
    return Setup(config, folder, mesh, source, *networks, given, stages, measurer)


def _started_from(config: ConfigDict, given: GivenTeacher) -> ConfigDict:
    """See `started_from`; says what it changes."""
    changed = started_from(config, given.path, given.fixed_steps, given.network)
    if changed.distill.start_steps != config.distill.start_steps:
        say(
            f"{given.path} is made for {given.fixed_steps} steps: distillation starts "
            f"there, not at config.distill.start_steps {config.distill.start_steps}"
        )
    if changed.distill.first_round_solver != config.distill.first_round_solver:
        say(f"{given.path} is made for steps of DDIM: its first student follows those")
    for name in ("logsnr_min", "logsnr_max"):
        if changed.diffusion[name] != config.diffusion[name]:
            used, asked = f"{name} {changed.diffusion[name]}", config.diffusion[name]
            say(f"{given.path} was trained to {used}: that is used, not config.diffusion's {asked}")
    return changed


def _check_images(config: ConfigDict, source: Source) -> None:
    if (channels := source.image_shape[-1]) not in (1, 3):
        raise UserError(
            f"{config.data.path or source.name} has images of {channels} channels; they must have "
            "1 (grey) or 3 (colour)"
        )
    if config.model.class_conditional and not source.num_classes:
        raise UserError(
            f"config.model.class_conditional is True, but {config.data.name} has no labels"
        )
    if config.eval.label_agreement and not config.model.class_conditional:
        raise UserError(
            "config.eval.label_agreement is True; it must be False for a model without labels "
            "(config.model.class_conditional is False)"
        )


@compiler.own_settings()
def run_chain(setup: Setup, programs: Programs, stop: StopSignal) -> None:
    """Trains and measures what is left of a run, stage by stage.

    Raises:
        UserError: another process works in this workdir, or its disk is too small.
        Stopped: SIGTERM or Ctrl-C came; what was trained is saved.
        CheckpointError: a checkpoint could not be written.
        NonFiniteError: a loss or gradient was not finite.
    """
    workdir = setup.workdir
    workdir.begin()
    run_left = _outlook(setup).seconds_left
    setup.measurer.check, setup.measurer.run_left = stop.raise_if_asked, run_left
    with workdir.lock(), stop:
        show_results(workdir.path, workdir.results())  # a stop may have come between a row and this
        measured = {row["stage"] for row in workdir.results()}
        for number, stage in enumerate(setup.stages.values(), 1):
            if stage.name in measured and workdir.is_settled(stage):
                continue
            say(stage.heading(number, len(setup.stages)))
            params, seconds = finish_stage(setup, programs, stage, stop, run_left)
            if stage.name not in measured:
                _measure(setup, programs, stage, params, seconds)
            del params  # frees the devices for the next stage


def finish_stage(
    setup: Setup, programs: Programs, stage: Stage, stop: StopSignal, run_left: RunLeft = no_run
) -> tuple[dict, float]:
    """The averaged weights of a stage at its end, and the seconds that training it took.

    Read where it is finished, copied where its teacher was trained elsewhere, trained otherwise. A
    student gets its teacher's by the same call, so normally from the disk.
    """
    directory = checkpoints.folder(setup.workdir.path, stage.name)
    wanted = setup.network_of(stage).params
    with contextlib.suppress(CheckpointError):  # not whole at its end: newest_whole says why
        params = checkpoints.load_ema_params(directory, stage.updates, wanted)
        return params, checkpoints.verify(directory, stage.updates, "meta").meta()["seconds"]
    whole = checkpoints.newest_whole(directory, say)
    if stage.is_given:
        given, ours = setup.given_teacher, setup.network
        return given_teacher.copy(given, ours, setup.workdir, setup.mesh), 0.0
    measured = any(row["stage"] == stage.name for row in setup.workdir.results())
    if whole is None and measured and not setup.workdir.is_finished(stage):
        raise UserError(
            f"{directory} has no checkpoint any more, and a stage that is not finished is taught "
            f"by {stage.name}: put it back, or remove its row from "
            f"{setup.workdir.path}/results.jsonl to train it anew"
        )
    teacher_params = None
    if stage.has_teacher:
        teacher = setup.stages[stage.teacher]
        teacher_params, _ = finish_stage(setup, programs, teacher, stop, run_left)
    checkpoints.set_aside_newer(directory, whole)
    state, seconds = _state(setup, stage, whole, teacher_params)
    if teacher_params is not None:
        teacher_params = programs.cast(teacher, teacher_params)  # frees those of float32
    setup.workdir.check_space(stage, sum(x.nbytes for x in jax.tree.leaves(state)))
    update, step = programs.update(stage), int(fetch(state.step))
    job = Job(stage, setup.config, setup.mesh, update, teacher_params, programs.feed)
    recorder = Recorder(stage, setup.config, setup.workdir.path, step, seconds, run_left)
    state = train(job, state, recorder, stop)
    return state.ema_params, recorder.seconds


def _state(
    setup: Setup, stage: Stage, whole: checkpoints.WholeCheckpoint | None, teacher_params
) -> tuple[TrainState, float]:
    """Where a stage stands, and the seconds that training it took so far."""
    if whole is None:
        return _first_state(setup, stage, teacher_params), 0.0
    say(f"{stage.name}: going on from {whole.path}")
    state = TrainState.of_trees(whole.trees(setup.abstract(stage).trees()))
    return state, whole.meta()["seconds"]


def _first_state(setup: Setup, stage: Stage, teacher_params: dict | None) -> TrainState:
    """A student starts from its teacher's averaged weights, a teacher from new ones.

    So does a match stage, but where it trains its teacher's network.
    """
    optimizer = make_optimizer(setup.config, stage)
    if stage.has_teacher and not stage.is_match:
        return init_student(teacher_params, optimizer, setup.mesh)
    key = place(seed_key(setup.config.seed), replicated(setup.mesh))
    init = setup.model(stage), optimizer, key, setup.source.image_shape, setup.mesh
    if stage.is_match and same_but_told(setup.network, setup.teacher_network):
        return init_matched(*init, teacher_params)
    state = init_teacher(*init)
    count = parameter_overview.count_parameters(state.params)
    say(f"{stage.name}: a network of {count:,} parameters on {setup.mesh.size} device(s)")
    return state


def _measure(setup: Setup, programs: Programs, stage: Stage, params: dict, seconds: float) -> None:
    """Adds the stage's row to the results, its pictures, and what is new to the report."""
    began = time.monotonic()
    say(f"{stage.name}: measuring")
    workdir, config, measurer = setup.workdir, setup.config, setup.measurer
    subject, directory = setup.subject(stage), workdir.path / stage.name
    sampler_of = functools.partial(programs.sampler, stage, params)
    count = config.eval.grid_images
    images = first_images(measurer, subject, sampler_of, count)
    labels = sampler_of("ddim", 1).image_labels(count)
    write_pictures(directory, images, labels, setup.source, config.data.random_flip)
    folder = directory / "measuring"
    row = {
        "stage": stage.name,
        "num_steps": stage.num_steps,
        "updates": stage.updates,
        "images_seen": stage.updates * config.train.batch_size,
        "seconds": seconds,
        **stage_row(measurer, subject, sampler_of, folder),
    }
    workdir.add_result(row)
    remove(folder)
    show_results(workdir.path, workdir.results())
    say(f"{stage.name}: {summary(row)} ({duration(time.monotonic() - began)})")


def _outlook(setup: Setup) -> Outlook:
    """How long this run still takes; it knows how long finished stages took."""
    stages = list(setup.stages.values())
    parts = {stage.name: setup.subject(stage).work() for stage in stages}
    return outlook(stages, parts, setup.workdir.results())
