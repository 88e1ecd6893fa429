"""The network: against stored features of another implementation, and against NumPy in float64."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.data.sources import load
from diffusion_distill.metrics.inception import network
from diffusion_distill.metrics.measure import FEATURES
from tests.conftest import ASSETS, data_config

ROOT = Path(__file__).parents[3]
WEIGHTS = ASSETS / "inception" / "inception_2015.npz"
needs_assets = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")


def random_params(seed=0):
    """Weights under which signals keep their size, and batch norm's statistics all matter."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        network.Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3))
    )

    def draw(path, array):
        normal = rng.normal(size=array.shape)
        scale, shift = {
            "weight": (np.sqrt(2.0 / np.prod(array.shape[:-1])), 0.0),
            "beta": (0.2, 0.0),
            "mean": (0.2, 0.0),
            "var": (0.1, 1.0),
        }[path[-1].key]
        return (scale * normal + shift).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


@needs_assets
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("optimized")
def test_features_of_real_images(cifar10_test_dir, count):
    """Those of a TorchScript packing, in float32; the two sum in different orders."""
    loaded = FEATURES["inception"](str(WEIGHTS))
    with np.load(ASSETS / "inception" / "cifar10_test_0_200_pool3.npz") as stored:
        index, expected = stored["index"][:count], stored["pool3"][:count]
    apply = jax.jit(loaded.apply)
    images = load(data_config("cifar10", str(cifar10_test_dir), split="test")).images(index)
    batches = np.split(images, range(8, count, 8))
    outputs = [apply(loaded.params, batch) for batch in batches]
    assert all(logits is None for _, logits in outputs)
    features = np.concatenate([features for features, _ in outputs])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.mean())


def conv64(x, layer, stride=1, padding="SAME"):
    """Convolution, batch norm without gamma, ReLU."""
    weight = layer["weight"].astype(np.float64)
    height, width = weight.shape[:2]
    if padding == "SAME":  # kernels are odd and the stride is 1
        x = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))
    x = np.tensordot(windows[:, ::stride, ::stride], weight, axes=((4, 5, 3), (0, 1, 2)))
    mean, var, beta = (layer[name].astype(np.float64) for name in ("mean", "var", "beta"))
    return np.maximum((x - mean) / np.sqrt(var + 0.001) + beta, 0.0)


def windows3(x, fill):
    """The 3x3 neighbourhoods of all pixels; `fill` outside."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))


def average64(x):
    return np.nanmean(windows3(x, np.nan), axis=(4, 5))


def halving64(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(4, 5))


def chain64(x, tower, last=(1, "SAME")):
    names = sorted(tower)
    for name in names[:-1]:
        x = conv64(x, tower[name])
    return conv64(x, tower[names[-1]], *last)


def mixed64(x, block, pool):
    towers = [chain64(x, block[name]) for name in ("tower", "tower_1")]
    end = [chain64(pool(x), block["tower_2"])]
    return np.concatenate([conv64(x, block["conv"]), *towers, *end], axis=-1)


def mixed8_64(x, block, pool):
    def both(x, tower):
        return [conv64(x, block[f"{tower}_mixed_conv{end}"]) for end in ("", "_1")]

    a = both(conv64(x, block["tower_conv"]), "tower")
    b = both(conv64(conv64(x, block["tower_1_conv"]), block["tower_1_conv_1"]), "tower_1")
    end = conv64(pool(x), block["tower_2_conv"])
    return np.concatenate([conv64(x, block["conv"]), *a, *b, end], axis=-1)


def inception64(x, params):
    """The network in float64, from images in [-1, 1] to features."""
    smaller = (2, "VALID")
    x = conv64(x, params["conv"], *smaller)
    x = conv64(x, params["conv_1"], 1, "VALID")
    x = halving64(conv64(x, params["conv_2"]))
    x = conv64(x, params["conv_3"])
    x = halving64(conv64(x, params["conv_4"], 1, "VALID"))
    for name in ("mixed", "mixed_1", "mixed_2"):
        x = mixed64(x, params[name], average64)
    block = params["mixed_3"]
    towers = [conv64(x, block["conv"], *smaller), chain64(x, block["tower"], smaller)]
    x = np.concatenate([*towers, halving64(x)], axis=-1)
    for name in ("mixed_4", "mixed_5", "mixed_6", "mixed_7"):
        x = mixed64(x, params[name], average64)
    block = params["mixed_8"]
    towers = [chain64(x, block[name], smaller) for name in ("tower", "tower_1")]
    x = np.concatenate([*towers, halving64(x)], axis=-1)
    x = mixed8_64(x, params["mixed_9"], average64)
    x = mixed8_64(x, params["mixed_10"], lambda x: windows3(x, -np.inf).max(axis=(4, 5)))
    return x.mean(axis=(1, 2))


def test_the_network_in_float64():
    """Not square, and 2x3 at the end: axes that are mixed up, or the wrong pool, would show."""
    params = random_params()
    x = np.random.default_rng(1).uniform(-1, 1, (1, 107, 139, 3))
    expected = inception64(x, params)
    assert expected.std() > 0.1
    features = jax.jit(network.Inception().apply)({"params": params}, x.astype(np.float32))
    # Rounding of float32, 6e-8, over about 20 layers of sums.
    np.testing.assert_allclose(features, expected, atol=1e-5 * expected.max())


def test_the_average_pool_leaves_the_padding_out():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2))
    expected = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            inside = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            expected[0, i, j] = inside.mean(axis=(0, 1))
    np.testing.assert_allclose(network.average_pool(jnp.float32(x)), expected, atol=1e-6)


def resize64(image):
    """TensorFlow 1's bilinear resize to 299x299, pixel by pixel."""
    height, width, channels = image.shape
    result = np.empty((299, 299, channels))
    for i in range(299):
        for j in range(299):
            y, x = i * height / 299, j * width / 299
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            above = image[top, left] * (1 - dx) + image[top, right] * dx
            below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            result[i, j] = above * (1 - dy) + below * dy
    return result


@pytest.mark.parametrize("height, width", [(32, 32), (299, 48), (400, 1)])
def test_images_are_resized_as_tensorflow_1_does(height, width):
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    expected = (resize64(images[0].astype(float)) - 128.0) / 128.0
    # Values up to 2, from four products in float32.
    np.testing.assert_allclose(network.network_input(images)[0], expected, atol=2e-6)


def test_an_image_of_299_is_not_resized():
    images = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(network.network_input(images), (images - 128.0) / 128.0)


def test_grey_images_have_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    as_rgb = network.network_input(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(network.network_input(grey), as_rgb, atol=1e-6)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \[2, 32, 32, 3\]"),
        (np.zeros((2, 32, 32, 4), np.uint8), r"uint8 \[2, 32, 32, 4\]"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \[32, 32, 3\]"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        network.network_input(images)


def test_several_devices_and_a_classifier_leave_the_features_as_they_are(tmp_path):
    """And logits are the classifier's, without its bias."""
    script = textwrap.dedent(
        """
        import jax, sys
        jax.config.update("jax_num_cpu_devices", 4)
        import numpy as np
        from diffusion_distill.metrics import inception
        from diffusion_distill.devices.sharding import batched, make_mesh, replicated
        from tests.metrics.inception.test_network import random_params

        mesh, one = make_mesh(), jax.devices()[0]
        params = random_params()
        matrix = np.random.default_rng(2).normal(size=(2048, 1008)).astype(np.float32)
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
        apply = jax.jit(inception.apply)
        split, none = apply(*jax.device_put((params, images), (replicated(mesh), batched(mesh))))
        params["softmax"] = {"weights": matrix}
        whole, logits = apply(*jax.device_put((params, images), one))
        assert len(split.sharding.device_set) == 4 and len(whole.sharding.device_set) == 1
        assert none is None
        np.savez(sys.argv[1], split=split, whole=whole, matrix=matrix, logits=logits)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "features.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "features.npz") as made:
        assert made["whole"].std() > 0.1
        np.testing.assert_allclose(made["split"], made["whole"], rtol=1e-5, atol=1e-5)
        expected = made["whole"].astype(np.float64) @ made["matrix"]
        np.testing.assert_allclose(made["logits"], expected, atol=1e-5 * np.abs(expected).max())
