"""The programs of the smallest network that there is, each traced once."""

import functools

import jax
import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.plan.flops import count_flops
from diffusion_distill.plan.programs import describe, programs
from diffusion_distill.stages import plan
from tests.conftest import tiny_config


def small_config(**fields):
    """`tiny_config` with other values of some fields: {"model.channels": 16}."""
    config = tiny_config()
    config.update_from_flattened_dict(fields)
    return config


def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def program():
    """program(name, **fields): one of the programs of a `small_config`."""

    @functools.cache
    def made(**fields):
        config = small_config(**fields)
        return {p.name: p for p in programs(config, plan(config), describe(config), mesh())}

    return lambda name, **fields: made(**fields)[name]


@pytest.fixture(scope="session")
def flops(program):
    """flops(name, **fields): the operations of such a program for one image."""

    @functools.cache
    def counted(name, **fields):
        one = program(name, **fields)
        traced = one.function.trace(*one.arguments)
        return count_flops(traced.jaxpr.jaxpr).total / one.units / one.images

    return counted
