"""The Inception network of FID: 2,048 features of an image, and logits where there are weights.

`python -m diffusion_distill.metrics.inception --from FILE` makes its weights from a public file.
"""

import hashlib

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from diffusion_distill.metrics.features import FeatureNetwork
from diffusion_distill.metrics.inception.network import Inception, network_input
from diffusion_distill.metrics.inception.weights import NETWORK_SHA256, read, usual_place


def load(weights: str = "") -> FeatureNetwork:
    """FID's features: pool3 of the Inception network of 2015-12-05, float32 [B, 2048].

    Images may have any height and width, and 3 channels or 1; grey images get three equal
    channels. They are resized on the device.

    Logits [B, 1008] are the classifier's without its bias, because the Inception Score is defined
    on these: its first code (Salimans et al. 2016) left the bias out, and StyleGAN's and
    torch-fidelity's do the same, over all 1,008 outputs (8 of them mean nothing). They are None
    where the weights file has no classifier; the fingerprint tells which classifier it has.

    Args:
        weights: path of the weights, an .npz; "" for `usual_place`.

    Raises:
        UserError: the file is missing, damaged, or has other weights.
    """
    arrays = read(weights or usual_place())
    arrays.pop("softmax/biases", None)
    params = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    fingerprint = NETWORK_SHA256
    if "softmax/weights" in arrays:
        fingerprint += "-" + hashlib.sha256(arrays["softmax/weights"].tobytes()).hexdigest()
    return FeatureNetwork("inception", params, apply, fingerprint)


def apply(params, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Features [B, 2048], and logits [B, 1008] or None, of uint8 images [B, H, W, 3 or 1].

    Raises:
        ValueError: the images are of another type or shape.
    """
    features = Inception().apply({"params": params}, network_input(images))
    if "softmax" not in params:
        return features, None
    logits = jnp.matmul(features, params["softmax"]["weights"], precision=jax.lax.Precision.HIGHEST)
    return features, logits
