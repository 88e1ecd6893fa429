"""Each benchmark as a person runs it, on a tiny network: it ends, and its numbers are numbers."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import measuring

ROOT = Path(__file__).resolve().parents[2]


def run(name, tmp_path, *flags):
    """(the JSON that a benchmark wrote, its table's rows by their first two cells)."""
    out = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--out={out}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    return json.loads(out.read_text()), {tuple(row[:2]): row for row in cells if row}


def numbers(value):
    """Every number in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


def check_machine(result):
    for name in ("date", "commit", "device", "cpu", "cores", "jax"):
        assert result[name]


def test_step(tmp_path):
    flags = "--config=configs/digits_distill.py:tiny --repeats=1 --num_steps=2 --loop_updates=3"
    result, table = run("step", tmp_path, *flags.split())
    check_machine(result)
    measured = {k: result[k] for k in ("steps", "parts", "peaks", "ratios", "peak_memory")}
    assert all(math.isfinite(n) and n > 0 for n in numbers(measured))
    steps = result["steps"]
    assert list(steps) == ["teacher's step", "student's step", "sampling step"]
    # Forward and backward of the student, and two forward passes of its teacher; the first
    # convolution has no gradient to its input.
    ratio = steps["student's step"]["flops"] / steps["teacher's step"]["flops"]
    assert ratio == pytest.approx(5 / 3, rel=0.02)
    assert {"teacher: draw", "teacher: update", "teacher: input"} <= {row[0] for row in table}


def test_scaling(tmp_path):
    flags = (
        "--config=configs/digits_distill.py:tiny --batch_sizes=4,8 --channels= --image_sizes= "
        "--rounds=1,3 --devices=2 --repeats=1 --updates=2"
    )
    result, table = run("scaling", tmp_path, *flags.split())
    check_machine(result)
    points = result["points"]
    assert {axis: [p["value"] for p in points[axis]] for axis in points} == {
        "batch": [4, 8], "rounds": [1, 3], "devices": [2],
    }  # fmt: skip
    small, large = points["batch"]
    assert large["flops"] == pytest.approx(2 * small["flops"], rel=1e-6)
    assert large["memory"] > small["memory"]
    assert [p["programs"] for p in points["rounds"]] == [1, 1]  # one for all rounds
    assert all(math.isfinite(n) and n > 0 for n in numbers(points))
    assert ("rounds", "3") in table


def test_peers(tmp_path):
    for package in ("torch", "diffusers", "denoising_diffusion_pytorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, of the extra peers, is not installed")
    flags = "--channels=32 --batch_sizes=1 --num_blocks=1 --num_steps=1 --repeats=1"
    result, _ = run("peers", tmp_path, *flags.split())
    check_machine(result)
    networks = {row["network"]: row for row in result["networks"]}
    assert list(networks) == ["ours", "diffusers", "lucidrains"]
    first, second, third = (row["parameters"] for row in networks.values())
    assert second == pytest.approx(first, rel=0.04)  # the same network, but for a layer or two
    assert third == pytest.approx(first, rel=0.2)  # widths come in eights
    assert all(n > 0 for n in numbers(result["networks"]))


def test_a_mistake_ends_in_one_line():
    for name in ("step", "scaling"):
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, "error: --config must be given\n")


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
