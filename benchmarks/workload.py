"""The programs of a run with made-up images and random weights, ready to be timed."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.data.batches import Batch
from diffusion_distill.data.source import Source
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import make_mesh, place, replicated, shardings
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.models.build import abstract_params, build_unet, compute_weights
from diffusion_distill.plan.flops import count_flops
from diffusion_distill.plan.programs import describe
from diffusion_distill.stages import Stage, plan
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training import step as steps
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.loop import Job, call_spans, train, updates_per_call
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.recorder import Recorder
from diffusion_distill.training.state import TrainState, abstract_state
from diffusion_distill.training.step import Recipe, Round, train_step
from diffusion_distill.training.update import make_update
from diffusion_distill.validate import validate

IMAGES = 4096  # in the made-up data set


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program, and what it took to get.

    Attributes:
        call: the program.
        seconds: that tracing and compiling it, or loading it, took; where a step is several
            programs, with one update.
        memory: bytes of arguments, and of temporaries with what results take beyond arguments
            that they overwrite, by the compiler's count; None where a step is several programs.
        flops: of the whole call, by the compiler's own count; None likewise.
    """

    call: Callable
    seconds: float
    memory: tuple[int, int] | None
    flops: float | None


class Workload:
    """One config's programs on one mesh.

    Attributes:
        config: the config, checked.
        stages: "teacher" and "student": the first of each kind.
        per_call: updates in one compiled call.
        feed: of a made-up data set.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh | None = None):
        """Raises UserError where the config is not valid, or says nothing of its images."""
        validate(config)
        self.config, self.mesh = config, mesh or make_mesh(config.runtime.fsdp)
        data = describe(config)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (IMAGES, *data.image_shape), np.uint8)
        labels = rng.integers(0, max(data.num_classes, 1), IMAGES).astype(np.int32)
        self._source = Source(
            "made_up", "train", data.image_shape, labels, data.num_classes, images.__getitem__
        )
        self.feed = Feed(self._source, self.mesh, config.runtime.data_on_device)
        stages = plan(config)
        self.stages = {"teacher": stages[0], "student": stages[1] if stages[1:] else stages[0]}
        self.per_call = updates_per_call(config, self.mesh.devices.flat[0].platform)
        shapes = abstract_params(self.model(), self.image_shape, self.mesh)
        self.params = jax.tree.map(
            lambda s: place(np.float32(0.02 * rng.normal(size=s.shape)), s.sharding), shapes
        )
        cast = functools.partial(compute_weights, dtype=self.model().dtype)
        self._teacher_params = jax.jit(cast)(self.params)  # as a run hands them to a student
        self._shapes, self._starts = shapes, {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._source.image_shape

    def model(self, dropout: float = 0.0):
        """The network, with a stage's dropout."""
        channels, classes = self.image_shape[-1], self._source.num_classes
        return build_unet(self.config, channels, classes, dropout)

    def recipe(self, stage: Stage) -> Recipe:
        return Recipe(self.model(stage.dropout), self.config, stage, self.mesh)

    def abstract(self, stage: Stage) -> TrainState:
        return abstract_state(self._shapes, make_optimizer(self.config, stage), self.mesh)

    def state(self, stage: Stage) -> TrainState:
        """A state with buffers of its own, for it is donated."""
        if stage not in self._starts:
            abstract, optimizer = self.abstract(stage), make_optimizer(self.config, stage)

            def start(params):
                copies = [jax.tree.map(jnp.copy, params) for _ in range(2)]
                return TrainState(jnp.zeros((), jnp.int32), *copies, optimizer.init(params))

            self._starts[stage] = jax.jit(start, out_shardings=shardings(abstract))
        return self._starts[stage](self.params)

    def arguments(self, stage: Stage, rows) -> tuple:
        """What an update takes after the state."""
        this_round = Round.of(stage)
        key, this_round = place((jax.random.key(0), this_round), replicated(self.mesh))
        teacher = self._teacher_params if stage.has_teacher else None
        return teacher, self.feed.data, rows, key, this_round

    def rows(self, first: int = 0):
        """(first, updates, rows) of calls from an update on, for ever."""
        end = first + 10**6 * self.per_call
        left = call_spans(first, end, self.per_call, end)
        return self.feed.batches(0, 0, self.config.train.batch_size, left)

    def _first_rows(self):
        with contextlib.closing(self.rows()) as batches:
            return next(batches)[2]

    def compiled_update(self, stage: Stage) -> Compiled:
        """The update of a stage, traced and compiled anew, or loaded from JAX's cache."""
        arguments = (self.state(stage), *self.arguments(stage, self._first_rows()))
        began = time.perf_counter()
        update = make_update(self.recipe(stage), self.abstract(stage))
        if not hasattr(update, "lower"):  # parts of a batch are calls of their own
            jax.block_until_ready(update(*arguments))
            return Compiled(update, time.perf_counter() - began, None, None)
        program = update.lower(*arguments).compile()
        seconds, memory = time.perf_counter() - began, program.memory_analysis()
        beyond = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Compiled(
            program,
            seconds,
            (memory.argument_size_in_bytes, memory.temp_size_in_bytes + beyond),
            (program.cost_analysis() or {}).get("flops"),
        )

    def updating(self, stage: Stage, program: Callable) -> Callable[[], None]:
        """A call that makes `per_call` updates on rows that are ready, and waits for them."""
        state, arguments = self.state(stage), self.arguments(stage, self._first_rows())

        def call():
            nonlocal state
            state, metrics = program(state, *arguments)
            jax.block_until_ready((state, metrics))

        call()
        return call

    def flops(self, stage: Stage) -> float:
        """Operations of matrix products and convolutions of one update, by the traced program."""
        # A fused attention's operations cannot be seen in the traced program.
        model = dataclasses.replace(self.model(stage.dropout), fused_attention=False)
        step = functools.partial(train_step, Recipe(model, self.config, stage))
        batch = self._batch()
        teacher, _, _, key, this_round = self.arguments(stage, None)
        traced = jax.make_jaxpr(step)(self.state(stage), teacher, batch, key, this_round)
        return count_flops(traced.jaxpr).total

    def forward_flops(self, images: int) -> float:
        """The same of one forward pass."""
        model = dataclasses.replace(self.model(), fused_attention=False)
        shape = (images, *self.image_shape)
        labels = jnp.zeros(images, jnp.int32) if model.num_classes else None

        def forward(params, z, logsnr):
            return model.apply({"params": params}, z, logsnr, labels)

        z, logsnr = jnp.zeros(shape), jnp.zeros(images)
        return count_flops(jax.make_jaxpr(forward)(self.params, z, logsnr).jaxpr).total

    def _batch(self):
        rows = np.arange(self.config.train.batch_size) % IMAGES
        images = jnp.asarray(self._source.read(rows))
        return Batch(images, jnp.asarray(self._source.labels[rows]))

    def parts(self, stage: Stage) -> dict[str, Callable[[], None]]:
        """A step's parts as programs of their own: draw, forward, gradient, update, and input.

        "gradient" includes the forward pass, and for a student its teacher's; "forward" stops at
        the loss. "update" is clipping, optimiser, average and metrics. "input" is what the host
        does for one call of `per_call` updates, beside the device; the made-up images are on the
        device, as those of a set of up to a GiB are in a run.
        """
        options = compiler.options(self.mesh.devices.flat[0].platform)
        recipe = Recipe(self.model(stage.dropout), self.config, stage)

        def compiled(function, **how):
            of = functools.wraps(function)(functools.partial(function, recipe))
            return jax.jit(of, compiler_options=options, **how)

        state = self.state(stage)
        teacher, _, _, key, this_round = self.arguments(stage, None)
        batch = self._batch()

        draw = compiled(steps.draw)
        examples = draw(state.step, batch, key, this_round)
        gradient = compiled(steps.gradient)
        grads, losses = gradient(state.params, teacher, examples, this_round)
        forward = compiled(steps.loss)
        # Donated, as in the step: without it the new state would be written beside the old.
        update = compiled(steps.apply, donate_argnums=0)
        batches = self.rows()

        def updated():
            nonlocal state
            state, metrics = update(state, grads, losses, examples.t, this_round)
            jax.block_until_ready((state, metrics))

        params = jax.tree.map(jnp.copy, state.params)
        found = {
            "draw": lambda: jax.block_until_ready(draw(state.step, batch, key, this_round)),
            "forward": lambda: jax.block_until_ready(
                forward(params, teacher, examples, this_round)
            ),
            "gradient": lambda: jax.block_until_ready(
                gradient(params, teacher, examples, this_round)
            ),
            "update": updated,
            "input": lambda: jax.block_until_ready(next(batches)[2]),
        }
        for call in found.values():
            call()
        return found

    def sampling(self, num_steps: int, size: int) -> Callable[[], None]:
        """A call that samples a batch to uint8 on the devices, and waits for it."""
        classes = self.model().num_classes
        config = self.config.copy_and_resolve_references()
        config.runtime.sampler_batch_size = size
        program = make_sample_program(config, self.image_shape, classes, "ddim", self.mesh)
        sampler = Sampler(program, self.params, num_steps)
        labels, indices = sampler.image_labels(size), np.arange(size)

        def call():
            jax.block_until_ready(sampler.on_devices(0, indices, labels))

        call()
        return call

    def loop(self, stage: Stage, program: Callable, updates: int, folder: Path) -> float:
        """Seconds that the training loop takes for so many updates, checkpoints and logs too."""
        stage = dataclasses.replace(stage, updates=updates)
        teacher = self._teacher_params if stage.has_teacher else None
        state = self.state(stage)
        job = Job(stage, self.config, self.mesh, program, teacher, self.feed)
        recorder = Recorder(stage, self.config, folder, start=0)
        with StopSignal() as stop:
            train(job, state, recorder, stop)
        return recorder.seconds
