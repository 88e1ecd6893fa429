"""The command, and the programs that it compiles."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.plan import programs as programs_module
from diffusion_distill.plan.flops import count_flops
from diffusion_distill.plan.hardware import parse_topology
from diffusion_distill.plan.make import make_plan
from diffusion_distill.plan.programs import cost, describe, programs
from diffusion_distill.stages import plan as stages_of
from diffusion_distill.validate import from_file
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/digits_distill.py:tiny"


def run(*arguments):
    command = [sys.executable, "-m", "diffusion_distill.plan", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def small_config():
    """The smallest network that there is: what is compiled here is small for the compiler too."""
    config = tiny_config()
    config.model.channel_multipliers = (1,)
    return config


def of(config, name):
    mesh = make_mesh(devices=jax.devices()[:1])
    return {p.name: p for p in programs(config, stages_of(config), describe(config), mesh)}[name]


def flops(program):
    counted = count_flops(program.function.trace(*program.arguments).jaxpr.jaxpr)
    return counted.total / program.units / program.images


def test_an_update_takes_as_many_forward_passes_as_the_maths_says():
    """Teacher: one forward, two in its gradient. Student: two more, of its teacher.

    Less what the first layer has no gradient for, its input's: hence the tolerance.
    """
    config = small_config()
    forward = flops(of(config, "sampler"))
    assert flops(of(config, "teacher")) / forward == pytest.approx(3, rel=0.03)
    assert flops(of(config, "student")) / forward == pytest.approx(5, rel=0.03)


def test_accumulation_computes_the_same_in_a_loop_and_remat_more():
    config = small_config()
    plain = flops(of(config, "student"))
    config.runtime.accumulation = 4
    assert flops(of(config, "student")) == pytest.approx(plain, rel=1e-9)
    config.runtime.remat = True
    assert flops(of(config, "student")) > 1.1 * plain


def test_one_teacher_and_one_student_and_none_that_is_not_trained():
    config = small_config()
    mesh = make_mesh(devices=jax.devices()[:1])

    def names():
        return [p.name for p in programs(config, stages_of(config), describe(config), mesh)]

    assert names() == ["teacher", "student", "sampler"]
    config.distill.teacher = "somewhere"
    assert names() == ["student", "sampler"]


def test_the_data_need_not_be_there():
    config = from_file(str(ROOT / "configs/imagenet64_distill.py"))
    data = describe(config)
    assert (data.image_shape, data.num_classes, data.num_images) == ((64, 64, 3), 1000, 0)
    assert "there is no data/imagenet64: 64x64x3, read ahead, 1000 labels" in data.assumed
    config.data.image_size = 0
    with pytest.raises(UserError, match="config.data.image_size is 0"):
        describe(config)
    cifar = describe(from_file(str(ROOT / "configs/cifar10_distill.py")))
    assert (cifar.image_shape, cifar.num_images) == ((32, 32, 3), 50_000)


def test_a_students_teacher_takes_half_of_its_memory_in_bfloat16():
    config = small_config()
    exact = of(config, "student").argument_bytes()
    config.model.dtype = "bfloat16"
    half = 2 * count_parameters()
    assert 0.9 * half < exact - of(config, "student").argument_bytes() < half


def test_a_resident_data_set_is_an_argument_on_every_device():
    config = small_config()
    resident = of(config, "teacher").argument_bytes()
    config.runtime.data_on_device = "never"
    streamed = of(config, "teacher").argument_bytes()
    images, labels, ten_batches = 1797 * 64, 1797 * 4, 10 * config.train.batch_size
    assert resident - streamed == images + labels - ten_batches * 64


def test_a_plan_is_made_once_for_each_program(tmp_path, monkeypatch):
    config = small_config()
    mesh, topology = make_mesh(devices=jax.devices()[:1]), parse_topology("cpu:1")
    sampler = of(config, "sampler")
    first = cost(sampler, topology, mesh, tmp_path)
    keys = 8 * sampler.images  # DDIM draws no noise, and jit drops what is not used
    assert first.arguments == sampler.argument_bytes() - keys
    assert first.temporaries > 0
    assert first.flops == flops(sampler) * sampler.images

    def never(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(programs_module, "_compiled", never)
    config.train.batch_size *= 2  # nothing to the sampler
    assert cost(of(config, "sampler"), topology, mesh, tmp_path) == first
    for other in (
        lambda: cost(sampler, parse_topology("gpu"), mesh, tmp_path),
        lambda: cost(sampler, topology, mesh, tmp_path, effort=0.0),
        lambda: cost(dataclasses.replace(of(wider(config), "sampler")), topology, mesh, tmp_path),
    ):
        with pytest.raises(AssertionError, match="compiled again"):
            other()


def wider(config):
    config = config.copy_and_resolve_references()
    config.model.channels *= 2
    return config


def test_a_batch_that_does_not_split_over_the_devices_is_refused(monkeypatch):
    config = small_config()
    config.runtime.accumulation = 3
    with pytest.raises(UserError, match="config.train.batch_size is 16; it must be a multiple"):
        make_plan(config, parse_topology("cpu:1"))


def test_the_command_on_simulated_devices(tmp_path):
    out = tmp_path / "plan.json"
    done = run(
        CONFIG, "--topology=h100:2", f"--json={out}", f"--config.runtime.cache_dir={tmp_path}",
        "--config.model.channel_multipliers=(1,)", "--config.model.attention_resolutions=()",
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
    weights = 4 * count_parameters()
    largest = max(c["bytes"] for c in teacher["collectives"])
    assert weights <= largest < 1.05 * weights + 100  # the gradient, and a few sums


def count_parameters():
    config = small_config()
    return sum(x.size for x in jax.tree.leaves(of(config, "sampler").arguments[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "--topology must be given"),
        (["--topology=v5e:2x4"], "--config must be given"),
        ([CONFIG, "--topology=v5e"], "the size of v5e is two, as :4x8"),
        ([CONFIG, "--topology=cpu:3"], "config.train.batch_size is 16; it must be a multiple of"),
        ([CONFIG, "--topology=cpu:8", "--effort=3"], "--effort is 3.0; it must be from -1 to 1"),
    ],
)
def test_mistakes(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_tpu_slice(tmp_path):
    """Compiled by libtpu, which counts what each device moves and sends."""
    pytest.importorskip("libtpu")
    out = tmp_path / "plan.json"
    done = run(
        CONFIG, "--topology=v5e:2x4", f"--json={out}", f"--config.runtime.cache_dir={tmp_path}",
        "--config.distill.teacher=elsewhere",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Verdict: v5e:2x4: fits." in done.stdout
    student, sampler = json.loads(out.read_text())["costs"]
    assert {c["kind"] for c in student["collectives"]} == {"all-reduce"}
    assert {c["group"] for c in student["collectives"]} == {8}
    assert sampler["collectives"] == []
    assert student["estimate"] > 0
    assert student["devices"] == 8
