"""Published checkpoints: what is read of them, what is believed, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import diffusion_distill
from diffusion_distill.errors import UserError
from diffusion_distill.interop import published
from diffusion_distill.runs.network import flatten
from tests.interop import reference
from tests.interop.conftest import published_config, random_weights
from tests.interop.reference import write_published

load = diffusion_distill.load_sampler


def assert_same(weights, tree):
    expected = flatten(tree)
    assert weights.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(weights[name], leaf, strict=True)


@pytest.mark.parametrize("old_norm", [True, False])
@pytest.mark.parametrize("level", [True, False])
def test_weights_come_out_as_they_went_in(tmp_path, weights, old_norm, level):
    path = write_published(tmp_path / "x", weights, 8, old_norm, level)
    file = published.read(path)
    assert_same(file.weights, weights)
    assert (file.fixed_steps, file.image_channels, file.num_classes) == (8, 1, 10)


def test_large_arrays_may_be_in_chunks(tmp_path, weights, monkeypatch):
    whole = write_published(tmp_path / "whole", weights, 8).read_bytes()
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    path = write_published(tmp_path / "chunks", weights, 8, old_norm=True)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert b"__msgpack_chunked_array__" not in whole
    assert_same(published.read(path).weights, weights)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (0, None), (8, 8), (np.int32(4), 4), (np.array(1024), 1024), (np.array([2]), 2)],
)
def test_the_number_of_steps(tmp_path, weights, value, expected):
    assert published.read(write_published(tmp_path / "x", weights, value)).fixed_steps == expected


@pytest.mark.parametrize("value", [-8, 2.5, "8", np.arange(2)])
def test_a_number_of_steps_that_is_none(tmp_path, weights, value):
    with pytest.raises(UserError, match="x: num_sample_steps is .*; it must be an integer, 0 or"):
        published.read(write_published(tmp_path / "x", weights, value))


def test_other_files_are_refused_by_name(tmp_path, published_file):
    whole = published_file.read_bytes()
    path = tmp_path / "file"
    cases = {
        b"": "file is not a published checkpoint, or is damaged or cut off: its 0 bytes",
        b"import this\n": "file is not a published checkpoint",
        b"\x80\x04\x95.": "file is not a published checkpoint",  # how a pickle begins
        whole[:-1]: "damaged or cut off",
        whole[: len(whole) // 2]: "damaged or cut off",
        whole + b"\0": "damaged or cut off",
        serialization.msgpack_serialize({"step": 3, "x": {}}): "no ema_params.*; it has step, x",
        serialization.msgpack_serialize([1, 2]): "has no ema_params",
        serialization.msgpack_serialize({"ema_params": {"w": 1}}): "ema_params/w is int, not an",
        serialization.msgpack_serialize({"ema_params": {"w": {"b": np.arange(3)}}}):
            "ema_params/w/b is int64, not an array of floats",
        serialization.msgpack_serialize({"ema_params": {"w": np.ones(3)}}):
            "conv_in/kernel, .* is not in ema_params; there are w",
    }  # fmt: skip
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            published.read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no file .*nowhere"):
        published.read(tmp_path / "nowhere")


def test_damage_anywhere_in_the_structure_is_refused_or_harmless(tmp_path, published_file):
    """No byte makes it raise anything else than a UserError: a net of 300 flipped bytes."""
    whole = published_file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    names = [whole.index(n) for n in (b"ema_params", b"conv_in", b"kernel", b"float32", b"norm1")]
    spots = [p + d for p in names for d in range(-12, 12)] + list(
        rng.integers(len(whole), size=180)
    )
    for spot in spots:
        content = bytearray(whole)
        content[spot] ^= 1 << int(rng.integers(8))
        path = tmp_path / "flipped"
        path.write_bytes(content)
        try:
            published.read(path)
        except UserError:
            refused += 1
    assert refused > 40


def test_samples_are_those_of_the_published_network(tmp_path):
    """Two DDIM steps by the reference in float64, clipping included, against load_sampler.

    Of two resolutions.
    """
    config = published_config()
    config.model.channel_multipliers = (1, 1)
    weights = random_weights(config)
    file = write_published(tmp_path / "digits_2", weights, 2, old_norm=True)
    sampler = load(file, config=config)
    assert (sampler.num_steps, sampler.image_shape, sampler.num_classes) == (2, (8, 8, 1), 10)
    z = np.random.default_rng(3).normal(size=(4, 8, 8, 1))
    labels = np.array([0, 3, 9, 5])
    got = sampler.from_noise(z, labels)

    # The cosine schedule cut to logSNR in [-20, 20]: the angle is linear in t between the cuts.
    ends = [np.arctan(np.exp(-0.5 * logsnr)) for logsnr in (20.0, -20.0)]
    angle = np.interp([1.0, 0.5, 0.0], [0.0, 1.0], ends)
    for step in range(2):
        alpha, sigma = np.cos(angle[step]), np.sin(angle[step])
        logsnr = np.full(4, 2 * np.log(alpha / sigma))
        v = reference.unet(weights, z, logsnr, labels, 8, (1, 1), 1, groups=8)
        x = np.clip(reference.x_hat(v, z, logsnr, "v"), -1.0, 1.0)
        eps = (z - alpha * x) / sigma
        z = np.cos(angle[step + 1]) * x + np.sin(angle[step + 1]) * eps
    assert x.std() > 0.3
    # The last step returns x_hat itself. Float32 over two evaluations of the network.
    np.testing.assert_allclose(got, x, atol=5e-5)


def test_steps_in_the_file_are_believed(published_file, tmp_path, weights):
    config = published_config()
    assert load(published_file, 2, config=config).num_steps == 2
    with pytest.raises(UserError, match="digits_2 is made for 2 steps; num_steps is 8"):
        load(published_file, 8, config=config)
    for name, value in (("zero", 0), ("missing", None)):
        path = write_published(tmp_path / name, weights, value)
        assert load(path, config=config).num_steps == config.distill.start_steps == 4
        assert load(path, 3, config=config).num_steps == 3
        with pytest.raises(UserError, match="num_steps is 0; it must be at least 1"):
            load(path, 0, config=config)


def test_what_is_asked_of_a_published_file(published_file, finished, tmp_path):
    with pytest.raises(UserError, match='needs its config, as in config="configs/'):
        load(published_file)
    with pytest.raises(UserError, match="stage is 'teacher', but .* is not a workdir"):
        load(published_file, stage="teacher", config=published_config())
    with pytest.raises(UserError, match="config.data.image_size is 0; .*digits_2 does not say how"):
        load(published_file, config="configs/digits_distill.py:tiny")
    with pytest.raises(UserError, match="there is no config file configs/none.py"):
        load(published_file, config="configs/none.py")
    with pytest.raises(UserError, match="tiny2: .*has the variants guided and tiny, not tiny2"):
        load(published_file, config="configs/digits_distill.py:tiny2")
    with pytest.raises(UserError, match="config was given, but .* has a config of its own"):
        load(finished[0], config=published_config())
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from tests.interop.conftest import published_config\n"
        "def get_config():\n    return published_config()\n"
    )
    assert load(published_file, config=mine).num_steps == 2


def test_another_architecture_is_refused_with_names_and_shapes(published_file):
    config = published_config()
    config.model.emb_channels = 32
    with pytest.raises(UserError) as error:
        load(published_file, config=config)
    assert (
        "class_emb/bias: ours [32], theirs [16]; class_emb/kernel: ours [10, 32], theirs [10, 16]; "
        "dense0/bias: ours [32], theirs [16]; and "
    ) in str(error.value)
    config = published_config()
    config.model.num_blocks = 2
    with pytest.raises(UserError, match=r"down_0.block_1/conv1/bias: ours \[8\], theirs none"):
        load(published_file, config=config)
    config = published_config()
    config.model.class_conditional = config.eval.label_agreement = False
    with pytest.raises(UserError, match=r"class_emb/bias: ours none, theirs \[16\]"):
        load(published_file, config=config)


def test_labels_that_the_file_does_not_know(tmp_path, weights):
    unlabelled = {name: layer for name, layer in weights.items() if name != "class_emb"}
    path = write_published(tmp_path / "x", unlabelled, 2)
    with pytest.raises(UserError, match="class_conditional is True, but .*x has no class_emb"):
        load(path, config=published_config())


def test_weights_of_half_precision(tmp_path, weights):
    half = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), weights)
    sampler = load(write_published(tmp_path / "x", half, 2), config=published_config())
    leaf = np.asarray(sampler._params["dense0"]["kernel"])
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, np.float32(half["dense0"]["kernel"]))
