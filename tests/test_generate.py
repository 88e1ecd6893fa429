"""Images from finished stages: what they depend on, and what is refused."""

import functools
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh

import diffusion_distill
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.diffusion.samplers import image_keys, image_noise, seed_key
from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.generate import make_sample_fn
from diffusion_distill.models.build import abstract_params, build_unet, init_params
from diffusion_distill.stages import plan
from tests.conftest import set_otherwise, tiny_config

ROOT = Path(__file__).parents[1]


def test_an_image_is_a_function_of_its_seed_and_index(finished):
    sampler = diffusion_distill.load_sampler(finished[0], num_steps=2)
    images = sampler(seed=3, num_images=30)
    assert images.shape == (30, 8, 8, 1)
    assert images.dtype == np.uint8
    sampler._batch_size = 7  # another split into batches, and a last one that is not full
    again = sampler(seed=3, num_images=30).astype(int)
    # Other batch shapes may be other programs: rounding can tip a pixel by one level of 255.
    assert np.abs(images - again).max() <= 1
    assert np.abs(images[:11] - sampler(seed=3, num_images=11).astype(int)).max() <= 1
    assert np.abs(images - sampler(seed=4, num_images=30).astype(int)).max() > 20


def test_an_image_does_not_depend_on_how_jax_is_set(finished):
    load = functools.partial(diffusion_distill.load_sampler, stage="teacher", sampler="ancestral")
    expected = load(finished[0])(seed=3, num_images=5)
    z = np.random.default_rng(0).normal(size=(5, 8, 8, 1))
    expected_of_noise = load(finished[0]).from_noise(z)
    with set_otherwise():
        sampler = load(finished[0])
        np.testing.assert_array_equal(sampler(seed=3, num_images=5), expected)
        np.testing.assert_array_equal(sampler.from_noise(z), expected_of_noise)


def test_the_key_of_a_seed_is_jaxs_own():
    for seed in (0, 1, 2**31 - 1):
        ours, theirs = seed_key(seed), jax.random.key(seed)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


def test_noise_of_the_callers_own(finished):
    sampler = diffusion_distill.load_sampler(finished[0], num_steps=2)
    z = np.asarray(image_noise(image_keys(3, jnp.arange(12)), 0, (8, 8, 1)))
    x = sampler.from_noise(z, labels=[4, 5])
    assert x.shape == z.shape
    assert x.dtype == np.float32
    assert np.abs(x).max() <= 1
    expected = sampler(seed=3, num_images=12, labels=[4, 5])
    assert np.abs(np.round((x + 1) * 127.5) - expected).max() <= 1
    with pytest.raises(UserError, match=r"shape \(12, 8, 8\); it must be \[N, 8, 8, 1\]"):
        sampler.from_noise(z[..., 0])


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_images(finished, tmp_path):
    """Restored and sampled on one device, and in a process of its own on four."""
    script = textwrap.dedent(
        """
        import sys, jax
        jax.config.update("jax_num_cpu_devices", 4)
        import numpy as np, diffusion_distill
        load = diffusion_distill.load_sampler
        sampler = load(sys.argv[1], 3, stage="teacher", sampler="ancestral")
        assert sampler._mesh.size == 4
        np.save(sys.argv[2], sampler(seed=5, num_images=10))
        """
    )
    load = diffusion_distill.load_sampler
    sampler = load(finished[0], 3, stage="teacher", sampler="ancestral")
    assert sampler._mesh.size == 1
    one = sampler(seed=5, num_images=10).astype(int)
    command = [sys.executable, "-c", script, str(finished[0]), str(tmp_path / "four.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.abs(one - np.load(tmp_path / "four.npy")).max() <= 1
    assert one.std() > 10


def test_labels_reach_the_images(programs):
    """Through the sampler, with weights that are not 0 anywhere."""
    shapes = abstract_params(build_unet(tiny_config(), 1, 10), (8, 8, 1), make_mesh())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.float32(0.2 * rng.normal(size=s.shape)), shapes)
    sampler = programs.sampler(plan(tiny_config())[0], params, "ddim", 2)
    threes, fours, both = (sampler(0, 4, labels=labels).astype(int) for labels in (3, 4, [3, 4]))
    assert np.all(np.abs(threes - fours).max(axis=(1, 2, 3)) > 5)
    for n, expected in enumerate((threes, fours, threes, fours)):
        assert np.abs(both[n] - expected[n]).max() <= 1


def test_labels_are_taken_in_turn(finished):
    sampler = diffusion_distill.load_sampler(finished[0], num_steps=1)
    np.testing.assert_array_equal(sampler.image_labels(12), [*range(10), 0, 1])
    np.testing.assert_array_equal(sampler.image_labels(3, 7), [7, 7, 7])
    np.testing.assert_array_equal(sampler.image_labels(5, [1, 2]), [1, 2, 1, 2, 1])
    for bad, message in [
        (10, "label 10 is out of range 0 to 9"),
        ([0, -1], "label -1 is out of range"),
        ([], "one integer or a list"),
        ([0.5], "one integer or a list"),
    ]:
        with pytest.raises(UserError, match=message):
            sampler(num_images=4, labels=bad)


def test_loop_inside_and_outside_give_the_same_images(finished, workdir):
    outside = diffusion_distill.load_sampler(finished[0], num_steps=2)(num_images=8)
    fields = json.loads((workdir / "config.json").read_text())
    fields["config"]["runtime"]["sampler_loop"] = "inside"
    (workdir / "config.json").write_text(json.dumps(fields))
    inside = diffusion_distill.load_sampler(workdir, num_steps=2)(num_images=8)
    assert np.abs(inside.astype(int) - outside).max() <= 1


def test_the_teacher_takes_any_number_of_steps_and_any_sampler(finished):
    for name in ("ddim", "dpmpp_2m"):
        sampler = diffusion_distill.load_sampler(finished[0], 3, stage="teacher", sampler=name)
        assert sampler.num_steps == 3
        assert sampler(num_images=2).shape == (2, 8, 8, 1)
    assert diffusion_distill.load_sampler(finished[0]).num_steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 3}, r"no stage of 3 steps; finished stages: teacher \(4 steps\), student_"),
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"batch_size": -4}, "batch_size is -4; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"stage": "student_0064"}, "no stage named student_0064; finished stages"),
        ({"stage": "student_0001", "num_steps": 2}, "no stage named student_0001 of 2 steps"),
        ({"sampler": "euler"}, "'euler'; there are ddim, ancestral, dpmpp_2m, heun"),
    ],
)
def test_what_cannot_be_sampled_is_said_in_one_line(finished, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        diffusion_distill.load_sampler(finished[0], **arguments)
    assert "\n" not in str(error.value)


def test_missing_and_half_written_workdirs(workdir, tmp_path):
    load = diffusion_distill.load_sampler
    with pytest.raises(UserError, match="there is no workdir"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it has no config.json"):
        load(tmp_path / "empty")
    shutil.rmtree(workdir / "student_0001/checkpoints/6")
    with pytest.raises(UserError, match="student_0001 .* is not finished; finished stages: teach"):
        load(workdir, num_steps=1)
    damaged = workdir / "student_0002/checkpoints/6/ema_params/_METADATA"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="ema_params/_METADATA does not match its SHA-256"):
        load(workdir, num_steps=2)
    text = (workdir / "config.json").read_text()
    for broken in (text[:100], "{}", text.replace("num_blocks", "blocks")):
        (workdir / "config.json").write_text(broken)
        with pytest.raises(UserError, match=r"config\.json"):
            load(workdir)


def test_split_weights_are_cast_and_gathered_once_before_the_loop():
    """Left to the loop, each step would gather them, or send activations to and fro."""
    config, shape = tiny_config(), (8, 8, 1)
    config.model.dtype, config.runtime.sampler_loop = "bfloat16", "inside"
    model, mesh = build_unet(config, 1, 0), AbstractMesh((1, 2), ("data", "fsdp"))
    sampler = make_sample_fn(model, config, "ddim", mesh, "tpu")

    def arguments():
        params = init_params(model, jax.random.key(0), shape)
        keys, labels = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
        return params, jnp.zeros((2, *shape)), keys, labels, jnp.int32(4)

    params, *rest = jax.eval_shape(arguments)
    gathered = {"bfloat16": 0, "float32": 0}

    def count(jaxpr, in_a_loop):
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "sharding_constraint":
                assert not in_a_loop
                gathered[equation.invars[0].aval.dtype.name] += 1
            for inner in jaxprs_in_params(equation.params):
                count(inner, in_a_loop or name in ("while", "scan"))

    count(jax.make_jaxpr(sampler)(params, *rest).jaxpr, in_a_loop=False)
    assert sum(gathered.values()) == len(jax.tree.leaves(params))
    assert gathered["bfloat16"] > gathered["float32"]  # of norms and the last convolution
