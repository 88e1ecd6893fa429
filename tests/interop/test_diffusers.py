"""Folders of diffusers: the same network, the same images, and what is not supported refused."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import diffusion_distill
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.interop import diffusers
from diffusion_distill.models.build import build_unet, make_levels
from diffusion_distill.run import Programs, check, run_chain
from diffusion_distill.runs.network import check_same
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import plan
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.validate import from_file
from tests.conftest import tiny_config
from tests.interop import diffusers_folders as folders
from tests.interop.test_given_teacher import copied


def noise(shape, count=2):
    return np.random.default_rng(0).standard_normal((count, *shape), np.float32)


FORMS = [
    form if form in ("plain", "mixed") else pytest.param(form, marks=pytest.mark.slow)
    for form in folders.NETWORKS
]


@pytest.mark.parametrize("form", FORMS)
def test_the_network_gives_what_diffusers_does(form, tmp_path):
    model = folders.network(**folders.NETWORKS[form])
    model.save_pretrained(tmp_path)
    network = diffusers.read(tmp_path, make_mesh())
    z, labels = noise(network.image_shape), None
    if network.num_classes:
        labels = np.array([0, network.num_classes - 1])
    ours = build_unet(network.config, network.image_shape[-1], network.num_classes)
    apply = jax.jit(lambda logsnr: ours.apply({"params": network.params}, z, logsnr, labels))
    for level in (0, 437, 999):
        result = apply(np.full(len(z), make_levels(network.config)[level]))
        expected = folders.output(model, z, level, labels)
        # float32 on both sides, sums in another order.
        np.testing.assert_allclose(result, expected, atol=2e-5)
        assert np.abs(expected).max() > 0.1


def test_a_pipelines_folder_its_networks_and_old_names_are_one(tmp_path):
    """The network alone says no levels; then they are those of DDPMScheduler()."""
    made = folders.pipeline(tmp_path / "made")
    shutil.copytree(tmp_path / "made/unet", tmp_path / "alone")
    old = shutil.copytree(tmp_path / "made", tmp_path / "old")
    weights = safetensors.numpy.load_file(old / "unet" / diffusers.WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, before in names.items():
        for name in [name for name in weights if f".{new}." in name]:
            weights[name.replace(f".{new}.", f".{before}.")] = weights.pop(name)
    assert "mid_block.attentions.0.query.weight" in weights
    safetensors.numpy.save_file(weights, old / "unet" / diffusers.WEIGHTS)
    flat = tmp_path / "flat"  # as pipelines were kept at first
    shutil.copytree(tmp_path / "made/unet", flat)
    shutil.copytree(tmp_path / "made/scheduler", flat, dirs_exist_ok=True)
    first, *others = (
        diffusers.read(folder, make_mesh())
        for folder in (tmp_path / "made", old, flat, tmp_path / "made/unet", tmp_path / "alone")
    )
    assert isinstance(made.scheduler.config.num_train_timesteps, int)
    for network in others:
        check_same(first, network, "")
        jax.tree.map(np.testing.assert_array_equal, network.params, first.params)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("unet/config.json", "_class_name", "UNet2DConditionModel", "supported is 'UNet2DModel'"),
        ("unet/config.json", "act_fn", "mish", "act_fn in .* is 'mish'; .* 'silu' or 'swish'"),
        ("unet/config.json", "class_embed_type", "timestep", "class_embed_type in .* 'timestep'"),
        ("unet/config.json", "time_embedding_type", "fourier", "time_embedding_type is 'fourier'"),
        ("unet/config.json", "down_block_types", ["SkipDownBlock2D"], "down_block_types is .'Skip"),
        ("unet/config.json", "out_channels", 6, "out_channels in .* is 6; what is supported is 3"),
        ("unet/config.json", "sample_size", None, "sample_size in .* is None; it must be the pix"),
        ("unet/config.json", "in_channels", "3", "in_channels in .* is '3'; it must be at least 1"),
        ("unet/config.json", "up_block_types", 3, "up_block_types is 3; it must be of type tuple"),
        ("scheduler/scheduler_config.json", diffusers.STEPS, 0, "is 0; it must be an integer of"),
        ("unet/config.json", "norm_num_groups", 0, "norm_num_groups is 0; it must be at least 1"),
        ("unet/config.json", "layers_per_block", 2, "weights in .* are not of the network that"),
        ("scheduler/scheduler_config.json", "_class_name", "PNDMScheduler", "is 'PNDMScheduler'"),
        ("scheduler/scheduler_config.json", "thresholding", True, "thresholding in .* is True"),
        ("scheduler/scheduler_config.json", "beta_schedule", "laplace", "schedule is 'laplace'"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow", "'epsilon' or 'v_predict"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1], "has 1 numbers; .* have 1000"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_field_and_value(
    small, tmp_path, file, field, value, message
):
    folder = shutil.copytree(small, tmp_path / "copy")
    fields = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(fields | {field: value}))
    with pytest.raises(UserError, match=message):
        diffusers.read(folder, make_mesh())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pipeline's folder."""
    folder = tmp_path_factory.mktemp("small")
    folders.pipeline(folder)
    return folder


def test_a_pickle_is_refused_with_the_line_that_converts_it(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "copy")
    made = folders.package().UNet2DModel.from_pretrained(folder / "unet")
    (folder / "unet" / diffusers.WEIGHTS).unlink()
    with pytest.raises(UserError, match="there is no .*diffusion_pytorch_model.safetensors"):
        diffusion_distill.load_sampler(folder)
    made.save_pretrained(folder / "unet", safe_serialization=False)
    with pytest.raises(UserError, match="bin is a pickle, which may run code") as refused:
        diffusion_distill.load_sampler(folder)
    line = re.search('-c "(.*)"', str(refused.value))[1]
    exec(line, {})  # what the person is told to run
    assert diffusion_distill.load_sampler(folder, 3)(num_images=2).shape == (2, 8, 8, 3)


LEVELS = [
    name if name in ("linear", "zero_snr") else pytest.param(name, marks=pytest.mark.slow)
    for name in folders.LEVELS
]


@pytest.mark.parametrize("name", LEVELS)
def test_its_own_sampler_gives_the_images_of_diffusers(name, tmp_path):
    made = folders.pipeline(tmp_path, **folders.LEVELS[name])
    sampler = diffusion_distill.load_sampler(tmp_path, 10, sampler="ddim_diffusers")
    for num_steps in (1, 2, 5, 7, 10):
        sampler.num_steps = num_steps
        z, expected = folders.images(made, num_steps)
        result = np.clip(sampler.from_noise(z), -1.0, 1.0)
        np.testing.assert_allclose(result, expected, atol=1e-4)
    assert np.mean(np.abs(expected) < 0.99) > 0.05  # not all of it at its bounds


@pytest.fixture(scope="module")
def digits_teacher(tmp_path_factory):
    """(pipeline of a network for the digits with their labels, which predicts v, its folder)."""
    folder = tmp_path_factory.mktemp("digits_teacher")
    fields = {"in_channels": 1, "out_channels": 1, "num_class_embeds": 10}
    return folders.pipeline(folder, fields, prediction_type="v_prediction"), folder


def chain(folder):
    """The config of a chain from a folder, 4 -> 2 -> 1 steps on the digits, a few updates each."""
    config = from_file(f"configs/from_diffusers.py:{folder}")
    tiny = tiny_config()
    for section in ("train", "eval", "runtime"):
        config[section] = tiny[section]
    config.data.name, config.data.channels = "digits", 0
    config.distill.start_steps, config.distill.updates = 4, 2
    config.distill.updates_last_rounds, config.eval.baselines = 2, ("ddim_diffusers",)
    return config


def test_a_run_keeps_the_network_of_its_folder(digits_teacher, tmp_path):
    """Its config.json tells all of it, once the folder is gone."""
    folder = shutil.copytree(digits_teacher[1], tmp_path / "folder")
    copied(chain(folder), tmp_path / "run")
    z = noise((8, 8, 1))
    expected = diffusion_distill.load_sampler(folder, 3, sampler="ddim_diffusers").from_noise(z, 7)
    shutil.rmtree(folder)
    sampler = diffusion_distill.load_sampler(tmp_path / "run", 3, "teacher", "ddim_diffusers")
    np.testing.assert_array_equal(sampler.from_noise(z, 7), expected)


@pytest.mark.slow
def test_a_chain_starts_from_a_folder(digits_teacher, tmp_path):
    setup = check(chain(digits_teacher[1]), tmp_path / "run")  # it predicts v: no match stage
    run_chain(setup, Programs(setup), StopSignal())
    rows = Workdir.open(tmp_path / "run").results()
    assert [row["stage"] for row in rows] == ["teacher", "student_0002", "student_0001"]
    assert list(rows[0]["baselines"]["ddim_diffusers"]) == ["4", "2", "1"]
    student = diffusion_distill.load_sampler(tmp_path / "run", 1)
    assert student(num_images=3, labels=[1, 2, 3]).shape == (3, 8, 8, 1)


def test_a_network_that_predicts_eps_is_matched_into_one_that_predicts_v(tmp_path):
    """By the same network, or by the paper's; on a schedule that is cut to the folder's levels."""
    fields = {"in_channels": 1, "out_channels": 1, "num_class_embeds": 10}
    folders.pipeline(tmp_path / "folder", fields)
    config = chain(tmp_path / "folder")
    assert (config.diffusion.parameterization, config.match.updates) == ("v", 20_000)
    stages = plan(from_file(f"configs/from_diffusers.py:{tmp_path / 'folder'}"))
    assert [s.name for s in stages if "of its start" in s.heading(1, 1)] == []
    config.match.updates = 2
    setup = copied(config, tmp_path / "run")
    assert list(setup.stages) == ["teacher", "match", "student_0002", "student_0001"]
    sampler = diffusion_distill.load_sampler(tmp_path / "run", 3, "teacher", "ddim_diffusers")
    expected = diffusion_distill.load_sampler(tmp_path / "folder", 3, sampler="ddim_diffusers")
    np.testing.assert_array_equal(
        sampler.from_noise(noise((8, 8, 1)), 7), expected.from_noise(noise((8, 8, 1)), 7)
    )
    ours = tiny_config()
    ours.distill.teacher, ours.match.updates = str(tmp_path / "folder"), 2
    setup = check(ours, tmp_path / "ours")
    assert setup.network.config.model.architecture == "unet"
    assert setup.teacher_network.config.model.architecture == "unet2d"
    levels = make_levels(setup.teacher_network.config)
    assert setup.config.diffusion.logsnr_min == pytest.approx(levels[-1])
    assert setup.config.diffusion.logsnr_max == pytest.approx(levels[0])


def test_another_network_than_the_folders_is_refused_before_its_weights_are_read(
    digits_teacher, tmp_path
):
    folder = shutil.copytree(digits_teacher[1], tmp_path / "folder")
    config = chain(folder)
    (folder / "unet" / diffusers.WEIGHTS).unlink()
    config.diffusion.parameterization = "x"
    with pytest.raises(UserError, match="config.diffusion.parameterization: ours 'x', theirs 'v'"):
        check(config, tmp_path / "run")
