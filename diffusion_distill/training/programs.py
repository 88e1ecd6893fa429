"""The compiled programs of a run: the steps of its stages, and its samplers."""

import dataclasses
import functools

import jax

from diffusion_distill.devices.sharding import shardings
from diffusion_distill.generate import (
    SampleProgram,
    Sampler,
    checked_guidance,
    make_sample_program,
)
from diffusion_distill.models.build import compute_weights
from diffusion_distill.stages import Stage
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.step import Recipe
from diffusion_distill.training.update import make_update


class Programs:
    """The compiled programs of a run, each made when it is first asked for, and once."""

    def __init__(self, setup):
        """`setup` is the Setup of run.py: the run's config, data, devices and networks."""
        self._setup = setup
        # steps: one for the teacher, one for the match stage, one for each solver of students
        self._updates = {}
        # one for each sampler's name, network, and whether that is asked twice
        self._samplers: dict[tuple[str, bool, bool], SampleProgram] = {}
        self._casts = {}  # by whether they are of students' weights

    @functools.cached_property
    def feed(self) -> Feed:
        """The batches of the data, on the devices."""
        setup = self._setup
        return Feed(setup.source, setup.mesh, setup.config.runtime.data_on_device)

    def update(self, stage: Stage):
        """The step of a stage; see `make_update`."""
        setup, kind = self._setup, stage.kind
        if kind not in self._updates:
            recipe = Recipe(
                setup.model(stage, stage.dropout), setup.network_of(stage).config, stage, setup.mesh
            )
            if stage.is_match:
                teacher = setup.stages[stage.teacher]
                source = {"source_model": setup.model(teacher)}
                source["source_config"] = setup.teacher_network.config
                recipe = dataclasses.replace(recipe, **source)
            self._updates[kind] = make_update(recipe, setup.abstract(stage))
        return self._updates[kind]

    def sampler(
        self, stage: Stage, params: dict, name: str, num_steps: int, guidance: float | None = None
    ) -> Sampler:
        """A sampler of a stage's weights; all weights, steps and w share its program."""
        setup, network = self._setup, self._setup.network_of(stage)
        guidance = checked_guidance(guidance, network.guidance)
        twice = network.is_asked_twice(guidance)
        key = name, network is setup.network, twice
        if key not in self._samplers:
            shape, num_classes = setup.source.image_shape, setup.source.num_classes
            self._samplers[key] = make_sample_program(
                network.config, shape, num_classes, name, setup.mesh, twice
            )
        return Sampler(self._samplers[key], params, num_steps, guidance)

    def cast(self, teacher: Stage, params: dict) -> dict:
        """The weights of a stage that others learn from, in what its network computes in.

        See `compute_weights`.
        """
        network, key = self._setup.network_of(teacher), teacher.has_teacher
        dtype = network.config.model.dtype
        if dtype == "float32":
            return params
        if key not in self._casts:
            cast = functools.partial(compute_weights, dtype=dtype)
            self._casts[key] = jax.jit(cast, out_shardings=shardings(network.params))
        return self._casts[key](params)
