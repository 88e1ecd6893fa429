"""Run a config: every stage, from where it stands to the end.

    python -m diffusion_distill.main --config=configs/digits_distill.py --workdir=runs/digits

The same command continues a run that was stopped. `--config.train.batch_size=64` overrides a field.

On several hosts the same command is started on each. On a Cloud TPU, under Slurm and under Open MPI
they find each other by themselves; elsewhere --coordinator, --num_processes and --process_id say
how. The workdir must be one folder that all of them see, or one in a bucket.
"""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import config_flags

from diffusion_distill import config as configs
from diffusion_distill.data import sources
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import everywhere, on_main
from diffusion_distill.devices.sharding import (
    check_divides,
    make_mesh,
    place,
    replicated,
    shardings,
)
from diffusion_distill.errors import CheckpointError, Stopped, UserError
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.interop import teacher as teachers
from diffusion_distill.metrics.measure import Measurer, cache_dir
from diffusion_distill.metrics.measure_stage import first_images, measuring_parts, stage_row
from diffusion_distill.metrics.names import value_text
from diffusion_distill.models.build import build_unet, compute_weights
from diffusion_distill.report.grid import grid, png
from diffusion_distill.report.page import refresh
from diffusion_distill.report.pictures import write_real, write_samples
from diffusion_distill.report.table import results_table
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.network import Network, abstract_weights
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage, plan, started_from
from diffusion_distill.storage.files import remove, write_atomically
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import duration, say
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.loop import StopSignal, train
from diffusion_distill.training.outlook import Outlook, outlook
from diffusion_distill.training.state import TrainState, abstract_state, init_student, init_teacher
from diffusion_distill.training.step import make_optimizer, make_update

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; FILE:VARIANT works.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, here or as gs://bucket/folder; made if it is not there."
)


class Run:
    """One start of a run: what its stages share, and where each stands."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | Path):
        """Checks all that can be checked before anything is computed or written.

        Raises:
            UserError: the config is not valid, or the workdir holds another run.
        """
        everywhere(lambda: configs.validate(config))
        self.config = config
        self.mesh = make_mesh(config.runtime.fsdp)
        parts = config.runtime.accumulation
        check_divides(self.mesh, "train.batch_size", config.train.batch_size, parts)
        self.source = everywhere(lambda: sources.load(config.data, cache=cache_dir(config)))
        self.image_shape = self.source.image_shape
        if config.model.class_conditional and not self.source.num_classes:
            raise UserError(
                f"config.model.class_conditional is True, but {config.data.name} has no labels"
            )
        if config.eval.label_agreement and not config.model.class_conditional:
            raise UserError(
                "config.eval.label_agreement is True; it must be False for a model without labels "
                "(config.model.class_conditional is False)"
            )
        self._stop = StopSignal()
        self._measurer = Measurer(config, self.source, self.mesh, self._check_stop)
        self._run_left = self._measurer.run_left
        num_classes = self._model().num_classes
        params = abstract_weights(config, self.image_shape, num_classes, self.mesh)
        network = Network(config, self.image_shape, num_classes, 0, params)
        self.teacher = teachers.find(network, workdir, self.mesh)  # None: this run trains its own
        if self.teacher is not None:
            self.config = started_from(config, self.teacher.path, self.teacher.num_steps)
            if self.config.distill.start_steps != config.distill.start_steps:
                say(
                    f"{self.teacher.path} is made for {self.teacher.num_steps} steps: distillation "
                    f"starts there, not at config.distill.start_steps {config.distill.start_steps}"
                )
        self.network = dataclasses.replace(network, config=self.config)
        self.stages = {stage.name: stage for stage in plan(self.config)}
        self.abstract = {
            name: abstract_state(params, make_optimizer(self.config, stage), self.mesh)
            for name, stage in self.stages.items()
        }
        self.workdir = Workdir.create_or_continue(
            workdir,
            self.config,
            self.image_shape,
            num_classes,
            self.teacher.num_steps if self.teacher else 0,
        )
        cast = functools.partial(compute_weights, dtype=config.model.dtype)
        self._cast = jax.jit(cast, out_shardings=shardings(params))  # of a student's teacher
        self._updates = {}  # compiled steps: one for the teacher, one for all students
        self._sample_programs = {}  # compiled samplers, by name
        self._feed = None  # of batches, once something trains

    def finish(self) -> None:
        """Trains and measures what is left, stage by stage.

        Raises:
            UserError: another process works in this workdir.
            Stopped: SIGTERM or Ctrl-C came; what was trained is saved.
            CheckpointError: a checkpoint could not be written.
            NonFiniteError: a loss or gradient was not finite.
        """
        self._stop = StopSignal()
        self._run_left = self._measurer.run_left = self._outlook().seconds_left
        with self.workdir.lock(), self._stop as stop:
            self._show_results()  # a stop may have come between a row and this
            measured = {row["stage"] for row in self.workdir.results()}
            for number, stage in enumerate(self.stages.values(), 1):
                if stage.name in measured and self._is_settled(stage):
                    continue
                say(f"{stage.name}: stage {number} of {len(self.stages)}, {stage.updates} updates")
                params, seconds = self._trained(stage, stop)
                if stage.name not in measured:
                    self._measure(stage, params, seconds)
                del params  # frees the devices for the next stage

    def _outlook(self) -> Outlook:
        """How long this run still takes; it knows how long finished stages took."""
        stages = list(self.stages.values())
        all_steps = [stage.num_steps for stage in stages]
        parts = {
            stage.name: measuring_parts(stage, all_steps, self.config.eval, self._made_for(stage))
            for stage in stages
        }
        return outlook(stages, parts, self.workdir.results())

    def _made_for(self, stage: Stage) -> int:
        """The only number of steps of a teacher that is itself a student; else 0."""
        return self.workdir.made_for(stage) if stage.teacher is None else 0

    def _is_settled(self, stage: Stage) -> bool:
        """Whether nothing is to be done for a measured stage: it has no damage that can be mended.

        A last checkpoint that somebody removed stays removed: training it anew may take days.
        """
        if not self.workdir.is_finished(stage):
            say(f"{stage.name}: measured; its last checkpoint is gone, and is not made again")
            return True
        try:
            directory = checkpoints.folder(self.workdir.path, stage.name)
            checkpoints.check(directory, stage.updates, "ema_params")
        except CheckpointError:
            return False
        return True

    def _trained(self, stage: Stage, stop: StopSignal) -> tuple[dict, float]:
        """The averaged weights of a stage at its end, and the seconds that training it took.

        What is left to train is trained now; where the end of its teacher was damaged since, that
        too.
        """
        directory = checkpoints.folder(self.workdir.path, stage.name)
        abstract = self.abstract[stage.name]
        with contextlib.suppress(CheckpointError):  # not at its end: newest_whole says why
            params = checkpoints.load_ema_params(directory, stage.updates, abstract.ema_params)
            return params, checkpoints.load_meta(directory, stage.updates)["seconds"]
        whole = checkpoints.newest_whole(directory, say)
        if stage.updates == 0:
            params = teachers.copy(self.teacher, self.network, self.workdir, self.mesh)
            self.teacher = dataclasses.replace(self.teacher, params=None)  # frees the devices
            return params, 0.0
        teacher_params = None
        if stage.teacher is not None:
            teacher_params, _ = self._trained(self.stages[stage.teacher], stop)
        checkpoints.set_aside_newer(directory, whole)
        if whole is None:
            state, seconds = self._start(stage, teacher_params), 0.0
        else:
            state = whole.state(abstract)
            seconds = whole.meta()["seconds"]
            say(f"{stage.name}: going on from {whole.path}")
        if teacher_params is not None and self.config.model.dtype != "float32":
            teacher_params = self._cast(teacher_params)  # frees those of float32
        self.workdir.check_space(stage, sum(x.nbytes for x in jax.tree.leaves(state)))
        state, seconds = train(
            stage,
            self.config,
            self.workdir.path,
            state,
            teacher_params,
            self._batches(),
            self._update(stage),
            self.mesh,
            seconds,
            stop,
            self._run_left,
        )
        return state.ema_params, seconds

    def _measure(self, stage: Stage, params: dict, seconds: float) -> None:
        """Adds the stage's row to the results, its pictures, and what is new to the report."""
        began = time.monotonic()
        say(f"{stage.name}: measuring")
        directory = self.workdir.path / stage.name

        def sampler_of(name: str, num_steps: int) -> Sampler:
            return self._sampler(name, params, num_steps)

        made_for = self._made_for(stage)
        count = self.config.eval.grid_images
        images = first_images(self._measurer, sampler_of, stage, count, made_for)
        write_atomically(directory / "samples.png", png(grid(images)))
        self._write_pictures(directory, images, sampler_of("ddim", 1).image_labels(count))
        all_steps = [s.num_steps for s in self.stages.values()]
        folder = directory / "measuring"
        row = {
            "stage": stage.name,
            "num_steps": stage.num_steps,
            "updates": stage.updates,
            "images_seen": stage.updates * self.config.train.batch_size,
            "seconds": seconds,
            **stage_row(self._measurer, stage, all_steps, sampler_of, folder, made_for),
        }
        self.workdir.add_result(row)
        remove(folder)
        self._show_results()
        say(f"{stage.name}: {_summary(row)} ({duration(time.monotonic() - began)})")

    def _show_results(self) -> None:
        """Writes results.txt and the report, where they are not of all rows yet."""
        rows, path = self.workdir.results(), self.workdir.path / "results.txt"
        table = results_table(rows) + "\n"

        def write() -> None:
            if rows and (not path.exists() or path.read_text() != table):
                refresh(self.workdir.path)
                write_atomically(path, table)

        on_main(write)

    def _write_pictures(self, directory: Path, images: np.ndarray, labels: np.ndarray) -> None:
        """What the report shows of a stage and of the data."""
        mirror, real = self.config.data.random_flip, self.workdir.path / "real.npz"

        def write() -> None:
            write_real(real, self.source, labels, mirror)
            write_samples(directory / "samples.npz", images, labels, self.source, mirror)

        on_main(write)

    def _check_stop(self) -> None:
        if self._stop.asked() is not None:
            raise Stopped(self._stop.signum)

    def _start(self, stage: Stage, teacher_params: dict | None) -> TrainState:
        optimizer = make_optimizer(self.config, stage)
        if teacher_params is not None:
            return init_student(teacher_params, optimizer, self.mesh)
        key = place(jax.random.key(self.config.seed), replicated(self.mesh))
        state = init_teacher(self._model(), optimizer, key, self.image_shape, self.mesh)
        count = parameter_overview.count_parameters(state.params)
        say(f"{stage.name}: a network of {count:,} parameters on {self.mesh.size} device(s)")
        return state

    def _model(self, dropout: float = 0.0):
        channels, num_classes = self.image_shape[-1], self.source.num_classes
        return build_unet(self.config, channels, num_classes, dropout)

    def _update(self, stage: Stage):
        """The compiled step; all students share one."""
        is_student = stage.teacher is not None
        if is_student not in self._updates:
            model = self._model(stage.dropout)
            abstract = self.abstract[stage.name]
            self._updates[is_student] = make_update(model, self.config, stage, self.mesh, abstract)
        return self._updates[is_student]

    def _sampler(self, name: str, params: dict, num_steps: int) -> Sampler:
        """A sampler of these weights; all stages and numbers of steps share one compilation."""
        if name not in self._sample_programs:
            self._sample_programs[name] = make_sample_program(
                self.config, self.image_shape, self.source.num_classes, name, self.mesh
            )
        return Sampler(self._sample_programs[name], params, num_steps)

    def _batches(self) -> Feed:
        on_device = self.config.runtime.data_on_device
        self._feed = self._feed or Feed(self.source, self.mesh, on_device)
        return self._feed


def _summary(row: dict) -> str:
    if "not_measured" in row:
        return f"not measured: {row['not_measured']}"
    metric = row["metric"]
    return f"{metric} {value_text(metric, row[metric])} at {row['measured_steps']} steps"


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("config", _CONFIG.value)
    cli.required("workdir", _WORKDIR.value)
    began = time.monotonic()
    getattr(_CONFIG.value, "seed", None)  # a config that could not be read raises why when touched
    run = Run(_CONFIG.value, _WORKDIR.value)
    compiler.keep_programs(run.config.runtime.cache_dir)
    run.finish()
    say("\n" + results_table(run.workdir.results()))
    say(f"\n{run.workdir.path}: done in {duration(time.monotonic() - began)}")


if __name__ == "__main__":
    cli.run(main, several=True)
