"""Exports for diffusers: it opens them, and draws what we draw."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.interop import diffusers, to_diffusers
from diffusion_distill.interop.model_card import model_card
from diffusion_distill.runs.network import Network, flatten, from_stage, with_weights
from diffusion_distill.runs.workdir import Workdir
from tests.conftest import tiny_config
from tests.interop import diffusers_folders as folders
from tests.interop import reference


def student(parameterization, num_steps, model=(), num_classes=0):
    """A student of random weights, for 8x8 pixels of one colour."""
    config = tiny_config()
    config.model.channel_multipliers = (1, 1)
    config.diffusion.parameterization = parameterization
    config.model.class_conditional = bool(num_classes)
    config.model.update(dict(model))
    network = Network.untrained(config, (8, 8, 1), num_classes, num_steps, make_mesh())
    weights = flatten(reference.random_weights(network.params))
    return with_weights(network, weights, "")


def drawn(network, z, labels=None, guidance=None):
    sizes = network.config, network.image_shape, network.num_classes
    program = make_sample_program(*sizes, "ddim", make_mesh())
    return Sampler(program, network.params, network.fixed_steps, guidance).from_noise(z, labels)


@pytest.mark.parametrize(
    ("parameterization", "num_steps", "model"),
    [
        ("v", 4, {"attention_resolutions": (4,)}),
        ("x", 1, {"resample_blocks": False, "attention_resolutions": (8, 4), "num_heads": 2}),
        ("eps", 8, {"time_input": "linear", "num_heads": 0, "head_dim": 4, "num_blocks": 2}),
    ],
)
def test_diffusers_draws_what_we_draw(parameterization, num_steps, model, tmp_path):
    network = student(parameterization, num_steps, model)
    to_diffusers.write(network, tmp_path, "")
    made = folders.package().DDIMPipeline.from_pretrained(tmp_path)
    z, images = folders.images(made, num_steps, use_clipped_model_output=True)
    np.testing.assert_allclose(images, drawn(network, z), atol=1e-3)
    assert np.mean(np.abs(images) < 0.99) > 0.05


def run_readme(folder):
    """What the five lines (or a few more) in a model card leave."""
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    folders.package()
    names = {}
    exec(code, names)
    return names


def test_a_stage_with_labels_and_its_card(finished, tmp_path, monkeypatch):
    """The card's lines draw every label; from the same noise what we draw."""
    monkeypatch.chdir(tmp_path)
    run = Workdir.open(finished[0])
    stage = run.finished_stage(2)
    network, out = from_stage(run, stage, make_mesh()), Path("digits_2")
    out.mkdir()
    to_diffusers.write(network, out, model_card(run, stage, network, out))
    card = (out / "README.md").read_text()
    for fact in ("8x8", "2 steps of DDIM", "10 labels", "predicts v", "on digits, split train",
                 "Distilled from 4 steps to 2: 6 updates of 16", "fd_pixels100_train"):  # fmt: skip
        assert fact in card, fact
    images = run_readme(out)["images"]
    assert [image.size for image in images] == 10 * [(8, 8)] and Path("image.png").exists()
    z = np.random.default_rng(0).standard_normal((10, 8, 8, 1), np.float32)
    ours = drawn(network, z, list(range(10)))
    noise = torch_of(z)
    monkeypatch.setattr("torch.randn", lambda *shape: noise)
    theirs = run_readme(out)["x"].numpy()
    np.testing.assert_allclose(np.moveaxis(theirs, 1, -1), ours, atol=1e-3)


def torch_of(z):
    import torch

    return torch.from_numpy(np.moveaxis(z, -1, 1).copy())


def test_a_student_of_diffusers_own_network_goes_back(tmp_path):
    """It knows other levels then: those of our schedule, cut to what it was trained on."""
    made = folders.pipeline(tmp_path / "in", prediction_type="v_prediction")
    network = dataclasses.replace(diffusers.read(tmp_path / "in", make_mesh()), fixed_steps=4)
    (tmp_path / "out").mkdir()
    to_diffusers.write(network, tmp_path / "out", "")
    made = folders.package().DDIMPipeline.from_pretrained(tmp_path / "out")
    z, images = folders.images(made, 4, use_clipped_model_output=True)
    np.testing.assert_allclose(images, drawn(network, z), atol=1e-3)
    again = diffusers.read(tmp_path / "out", make_mesh())
    assert again.fixed_steps == 4
    z, images = folders.images(made, 4)
    own = make_sample_program(again.config, (8, 8, 3), 0, "ddim_diffusers", make_mesh())
    result = np.clip(Sampler(own, again.params, 4).from_noise(z), -1, 1)
    np.testing.assert_allclose(result, images, atol=1e-4)


def test_a_student_that_is_told_w_goes_with_one_w(tmp_path):
    network = student("v", 2, {"guidance": (0.0, 4.0)})
    with pytest.raises(UserError, match="told w from 0.0 to 4.0: fix it with --guidance"):
        to_diffusers.write(network, tmp_path, "")
    with pytest.raises(UserError, match="guidance is 5; for this network it must be from 0.0 to 4"):
        to_diffusers.write(network, tmp_path, "", 5)
    to_diffusers.write(network, tmp_path, "", 1.5)
    made = folders.package().DDIMPipeline.from_pretrained(tmp_path)
    z, images = folders.images(made, 2, use_clipped_model_output=True)
    np.testing.assert_allclose(images, drawn(network, z, guidance=1.5), atol=1e-3)
    assert np.abs(images - drawn(network, z, guidance=0.0)).max() > 0.01


@pytest.mark.parametrize(
    ("parameterization", "model", "message"),
    [
        ("both", {}, "parameterization is 'both', which diffusers has no form of; match it in"),
        ("v", {"channel_multipliers": (2, 2)}, "channel_multipliers starts with 2"),
        ("v", {"channel_multipliers": (1, 2), "attention_resolutions": (8,), "num_heads": 2},
         r"num_heads is 2, of \[4, 8\] channels"),
    ],
)  # fmt: skip
def test_what_has_no_form_there_is_refused_before_anything_is_written(
    parameterization, model, message, tmp_path
):
    network = student(parameterization, 4, model)
    with pytest.raises(UserError, match=message):
        to_diffusers.write(network, tmp_path, "")
    assert not list(tmp_path.iterdir())
