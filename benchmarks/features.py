"""How fast are Inception's features? The whole way, against the network's own forward pass.

    python benchmarks/features.py --batch_size=64 --images=512 --size=32

The whole way begins with uint8 images on the host and ends with features there. The forward pass
begins with float32 images of 299x299 on the device and ends there. Weights are random: time does
not depend on them. Prints a row of a markdown table; the goal is a ratio of at most 1.2.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from diffusion_distill.devices import compiler
from diffusion_distill.metrics import inception
from diffusion_distill.metrics.inception.network import SIZE, Inception

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 512, "Images in all; whole batches.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 32, "Height and width of the images.", lower_bound=1)


def images_per_second(extract: Callable[[], None], count: int) -> float:
    """The best of three, after one that compiles."""
    extract()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        extract()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def main(argv: list[str]) -> None:
    del argv
    batch_size = _BATCH_SIZE.value
    batches = -(-_IMAGES.value // batch_size)
    floats = jnp.zeros((batch_size, SIZE, SIZE, 3))
    params = jax.jit(Inception().init)(jax.random.key(0), floats)["params"]
    shape = (batches, batch_size, _SIZE.value, _SIZE.value, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    options = compiler.options(jax.default_backend())
    extract = jax.jit(
        lambda params, batch: inception.apply(params, batch)[0], compiler_options=options
    )
    forward = jax.jit(
        lambda params, batch: Inception().apply({"params": params}, batch), compiler_options=options
    )

    def whole_way():
        on_device = [extract(params, batch) for batch in images]
        np.concatenate([np.asarray(features) for features in on_device])

    def forward_alone():
        jax.block_until_ready([forward(params, floats) for _ in images])

    whole = images_per_second(whole_way, batches * batch_size)
    alone = images_per_second(forward_alone, batches * batch_size)
    device = jax.devices()[0].device_kind
    print("| device | jax | batch | size | images/s | forward alone, images/s | ratio of times |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {device} | {jax.__version__} | {batch_size} | {_SIZE.value} | {whole:.1f} | "
        f"{alone:.1f} | {alone / whole:.2f} |"
    )


if __name__ == "__main__":
    app.run(main)
