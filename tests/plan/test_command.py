"""The command, as a person starts it."""

import json

import jax
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.plan.hardware import parse_topology
from diffusion_distill.plan.make import better, make_plan
from tests import commands
from tests.conftest import TINY
from tests.plan.conftest import small_config

CONFIG = "--config=configs/digits_distill.py:tiny"


def run(*arguments):
    return commands.run("plan", *arguments)


def test_the_command_on_simulated_devices(program, tmp_path):
    out = tmp_path / "plan.json"
    done = run(
        *TINY, "--topology=h100:2", f"--json={out}", f"--config.runtime.cache_dir={tmp_path}",
        "--config.distill.end_steps=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Verdict: h100:2: fits." in done.stdout
    assert "CPU compiler's: an estimate" in done.stdout
    plan = json.loads(out.read_text())
    assert [c["name"] for c in plan["costs"]] == ["teacher", "sampler"]
    assert [s["name"] for s in plan["stages"]] == ["teacher"]
    teacher = plan["costs"][0]
    assert {c["kind"] for c in teacher["collectives"]} == {"all-reduce"}
    weights = 4 * sum(x.size for x in jax.tree.leaves(program("sampler").arguments[0]))
    largest = max(c["bytes"] for c in teacher["collectives"])
    assert weights <= largest < 1.05 * weights + 100  # the gradient, and a few sums


def test_what_does_not_go_together_is_refused():
    topology = parse_topology("cpu:1")
    with pytest.raises(UserError, match="config.train.batch_size is 16; it must be a multiple"):
        make_plan(small_config(**{"runtime.accumulation": 3}), topology)


@pytest.mark.parametrize(
    ("topology", "dtype", "fsdp", "expected"),
    [
        ("v5e:2x4", "float32", 1, {"model.dtype": "bfloat16", "runtime.fsdp": 8}),
        ("v5e:2x2", "float32", 1, {"model.dtype": "bfloat16", "runtime.fsdp": 4}),  # all four
        ("v5e:2x2", "bfloat16", 8, {}),  # the same four
        ("v5e:1x1", "bfloat16", 1, {}),
        ("v4:4x4x4", "bfloat16", 1, {"runtime.fsdp": 8}),
        ("v4:4x4x4", "bfloat16", 8, {}),
        ("h100:8", "float32", 1, {}),
    ],
)
def test_the_best_setting_known(topology, dtype, fsdp, expected):
    config = small_config(**{"model.dtype": dtype, "runtime.fsdp": fsdp, "model.channels": 96})
    assert better(config, parse_topology(topology)) == expected


@pytest.mark.parametrize(
    ("topology", "change", "known"),
    [
        ("v5e:2x4", {}, {"runtime.pixel_pairs": True}),
        ("v5e:2x4", {"runtime.pixel_pairs": True}, {}),
        ("v5e:2x4", {"model.channels": 96}, {}),
        (
            "v5e:2x4",
            {"model.channels": 96, "runtime.pixel_pairs": True},
            {"runtime.pixel_pairs": False},
        ),
        ("v5e:2x4", {"model.channel_multipliers": (2, 2)}, {}),
        ("v5e:2x4", {"model.architecture": "unet2d"}, {}),
        ("h100:8", {}, {}),
    ],
)
def test_pixel_pairs_are_known_to_be_best_for_at_most_64_channels_on_tpus(topology, change, known):
    own = {"model.dtype": "bfloat16", "runtime.fsdp": 8, "model.channels": 64}
    own |= {"model.channel_multipliers": (1, 2)}
    assert better(small_config(**own | change), parse_topology(topology)) == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "--topology must be given"),
        pytest.param(["--topology=v5e:2x4"], "--config must be given", marks=pytest.mark.slow),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_tpu_slice(tmp_path):
    """Compiled by libtpu, which counts what each device moves and sends."""
    pytest.importorskip("libtpu")
    out = tmp_path / "plan.json"
    done = run(
        CONFIG, "--topology=v5e:2x4", f"--json={out}", f"--config.runtime.cache_dir={tmp_path}",
        "--config.distill.teacher=elsewhere", "--operations=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Verdict: v5e:2x4: fits." in done.stdout
    flags = "model.dtype=bfloat16", "runtime.fsdp=8", "runtime.pixel_pairs=True"
    best = " ".join(f"--config.{flag}" for flag in flags)
    assert f"the best setting known, {best}: " in done.stdout
    student, sampler = json.loads(out.read_text())["costs"]
    assert {c["kind"] for c in student["collectives"]} == {"all-reduce"}
    assert {c["group"] for c in student["collectives"]} == {8}
    assert sampler["collectives"] == []
    assert student["estimate"] > 0
    assert student["devices"] == 8
