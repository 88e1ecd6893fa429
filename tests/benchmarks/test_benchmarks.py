"""Each benchmark as a person runs it, on a tiny network: it ends, and its numbers are numbers."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import contenders, measuring
from benchmarks.workload import Workload
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.models.build import abstract_params, build_unet
from tests import commands
from tests.conftest import TINY
from tests.plan.conftest import small_config

SMALL = " ".join([*TINY, ""])


def run(name, tmp_path, flags):
    """(the JSON that a benchmark wrote, its table's rows by their first two cells)."""
    out = tmp_path / f"{name}.json"
    done = commands.run(name, f"--out={out}", *flags.split(), package="benchmarks")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    for field in ("date", "commit", "device", "cpu", "cores", "jax"):
        assert result[field]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    return result, {tuple(row[:2]): row for row in cells if row}


def numbers(value):
    """Every number in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.slow
def test_step(tmp_path):
    flags = "--config.train.batch_size=8 --repeats=1 --num_steps=2 --loop_updates=3"
    result, table = run("step", tmp_path, SMALL + flags)
    measured = {k: result[k] for k in ("steps", "parts", "peaks", "ratios", "peak_memory")}
    assert all(math.isfinite(n) and n > 0 for n in numbers(measured))
    steps = result["steps"]
    assert list(steps) == ["teacher's step", "student's step", "sampling step"]
    # Forward and backward of the student, and two forward passes of its teacher; the first
    # convolution has no gradient to its input.
    ratio = steps["student's step"]["flops"] / steps["teacher's step"]["flops"]
    assert ratio == pytest.approx(5 / 3, rel=0.02)
    assert {"teacher: draw", "teacher: update", "teacher: input"} <= {row[0] for row in table}


@pytest.mark.slow
def test_scaling(tmp_path):
    flags = (
        "--batch_sizes=4 --channels= --image_sizes= --rounds=1,3 --devices=2 --repeats=1 "
        "--updates=2"
    )
    result, table = run("scaling", tmp_path, SMALL + flags)
    points = result["points"]
    assert {axis: [p["value"] for p in points[axis]] for axis in points} == {
        "batch": [4], "rounds": [1, 3], "devices": [2]
    }  # fmt: skip
    assert [p["programs"] for p in points["rounds"]] == [1, 1]  # one for all rounds
    assert all(math.isfinite(n) and n > 0 for n in numbers(points))
    assert {("batch", "4"), ("rounds", "3"), ("devices", "2")} <= table.keys()
    (small,), (large,) = points["batch"], points["devices"]  # 4 images; 8 on each of two devices
    assert large["flops"] == pytest.approx(4 * small["flops"], rel=1e-6)
    assert large["memory"] > small["memory"]


def test_a_steps_operations_go_with_the_batch():
    work = [Workload(small_config(**{"train.batch_size": n})) for n in (4, 8)]
    small, large = (w.flops(w.stages["teacher"]) for w in work)
    assert large == pytest.approx(2 * small, rel=1e-6)


@pytest.mark.slow
def test_precision(tmp_path):
    """bfloat16 differs from float32, and by little."""
    flags = "--config.train.batch_size=8 --updates=6 --num_images=4 --num_steps=2"
    result, table = run("precision", tmp_path, SMALL + flags)
    assert ("digits, 6 updates of 8 images", "float32") in table
    assert all(math.isfinite(n) for n in numbers(result))
    exact, other = result["mean_loss"]["float32"], result["mean_loss"]["bfloat16"]
    assert 0 < abs(other - exact) < 0.02 * exact
    assert 0 < result["smoothed_loss_relative"]["largest"] < 0.02
    for images in (result["images_same_weights"], result["images_own_weights"]):
        assert 0 < images["mean"] < 0.1
        assert images["mean"] <= images["largest"] < 2


@pytest.fixture
def peers_installed():
    for package in ("torch", "diffusers", "denoising_diffusion_pytorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, of the extra peers, is not installed")
    contenders.check_installed()


def test_peers_have_networks_of_one_size(peers_installed):
    model = build_unet(contenders.our_config(32, 1), 3, 0)
    first = sum(p.size for p in jax.tree.leaves(abstract_params(model, (32, 32, 3), make_mesh())))
    second = contenders.count(contenders.first_unet(32, 1))
    third = contenders.count(contenders.second_unet(contenders.matching_width(first)))
    assert second == pytest.approx(first, rel=0.04)  # the same network, but for a layer or two
    assert third == pytest.approx(first, rel=0.2)  # widths come in eights


@pytest.mark.slow
def test_peers(peers_installed, tmp_path):
    flags = "--channels=32 --batch_sizes=1 --num_blocks=1 --num_steps=1 --repeats=1"
    result, _ = run("peers", tmp_path, flags)
    assert [row["network"] for row in result["networks"]] == ["ours", "diffusers", "lucidrains"]
    assert all(n > 0 for n in numbers(result["networks"]))


def test_a_mistake_ends_in_one_line():
    done = commands.run("step", package="benchmarks")
    assert (done.returncode, done.stderr) == (2, "error: --config must be given\n")
    with pytest.raises(UserError, match="--batch_sizes must be integers: .*'x'"):
        measuring.integers("batch_sizes", ["4", "x"])


def test_calls_take_turns():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    seconds = measuring.alternating(calls, 3)
    assert made == list("ababab")
    assert set(seconds) == {"a", "b"}


def test_the_convolutions_operations_are_those_that_are_counted():
    from diffusion_distill.plan.flops import count_flops

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    traced = jax.make_jaxpr(convolve)(jnp.ones((4, 32, 32, 256)), jnp.ones((3, 3, 256, 256)))
    assert measuring.peaks("float32")["convolution"][1] == count_flops(traced.jaxpr).total
