"""Topologies by name."""

import math
import sys

import jax
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.plan import hardware
from diffusion_distill.plan.hardware import CHIPS, Topology, devices, parse_topology


@pytest.mark.parametrize(
    ("text", "kind", "shape"),
    [
        ("v5e:8x8", "v5e", (8, 8)),
        ("v4:2x2x2", "v4", (2, 2, 2)),
        ("v6e:16x16", "v6e", (16, 16)),
        ("h100:8", "h100", (8,)),
        ("gpu", "h100", (1,)),
        ("cpu:8", "cpu", (8,)),
        ("cpu", "cpu", (1,)),
    ],
)
def test_topologies(text, kind, shape):
    topology = parse_topology(text)
    assert topology == Topology(kind, shape)
    assert topology.size == math.prod(shape)
    assert topology.is_tpu == text.startswith("v")
    assert parse_topology(str(topology)) == topology


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "name a TPU slice as v5e:8x8"),
        ("v5e-8", "name a TPU slice"),
        ("v5e:8", "the size of v5e is two, as :4x8"),
        ("v4:2x2", "the size of v4 is three"),
        ("v4", "the size of v4 is three"),
        ("h100:2x4", "the size of h100 is a number"),
        ("v5e:0x4", "the size of v5e"),
        ("v5e:32x32", "has 1024 devices; v5e has at most 256"),
        ("h100:16", "h100 has at most 8"),
        ("cpu:1000", "cpu has at most 64"),
        ("", "name a TPU slice"),
    ],
)
def test_what_is_no_topology_is_refused(text, message):
    with pytest.raises(UserError, match=f"--topology={text}.*{message}"):
        parse_topology(text)


def test_chips_are_of_the_size_that_they_are_sold_as():
    """Units: bytes and bytes a second, not GB, GiB or bits."""
    for chip in CHIPS.values():
        assert 10e9 < chip.memory < 200e9
        assert 50e12 < chip.flops["float32"] <= chip.flops["bfloat16"] < 1e15
        assert 3e11 <= chip.bandwidth < 5e12
        assert 3e10 < chip.network < 1e12


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"libtpu, which is not installed: pip install .*\[tpu\]"):
        devices(parse_topology("v5e:2x4"))


def test_simulated_devices_are_no_fewer_than_asked_for():
    assert devices(parse_topology("cpu")) == jax.devices()[:1]
    more = Topology("cpu", (len(jax.devices()) + 1,))
    with pytest.raises(UserError, match="JAX has started with fewer"):
        devices(more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:2x4", 8), ("v5e:1x1", 1), ("v4:1x1x2", 2), ("v4:2x2x2", 8), ("v4:4x4x4", 64)],
)
def test_a_tpu_chip_is_one_device(name, count):
    pytest.importorskip("libtpu")
    found = devices(parse_topology(name))
    assert len(found) == count
    assert {d.platform for d in found} == {"tpu"}


@pytest.mark.slow
def test_a_slice_that_libtpu_does_not_know():
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match="v5e:3x5: libtpu knows no such slice: .*not divisible"):
        devices(parse_topology("v5e:3x5"))


def test_the_names_in_the_message_are_all_there_are():
    for name in [*CHIPS, "cpu"]:
        assert name in hardware.ACCEPTED
