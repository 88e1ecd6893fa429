"""The sampler against as many forward passes of its network: what sampling costs beside them.

    python benchmarks/sampling.py --config=configs/digits_distill.py --num_steps=8

Prints a Markdown row for each batch size. The sampler is the whole way from seeds and indices to
uint8 images on the devices, by DDIM; a forward pass is the network alone, compiled, on inputs that
are ready. Weights are random. Each is the fastest of several times, compiled before.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks import measuring
from diffusion_distill.data import sources
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import batched, make_mesh, replicated
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.models.build import abstract_params, build_unet
from diffusion_distill.terminal import cli
from diffusion_distill.validate import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "Whose network and sampler.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 8, "Sampling steps.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["16", "64", "256"], "Images at once.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that each is run.")
_IMAGE_SHAPE = flags.DEFINE_list("image_shape", None, "H,W,C; default: that of the config's data.")

HEADER = (
    "| device | devices | jax | image | steps | batch | sampler, images/s "
    "| forward passes, images/s | sampler / forward time |\n"
    "| --- | --: | --- | --- | --: | --: | --: | --: | --: |"
)


def fastest(function: Callable[[], jax.Array], repeats: int) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    function().block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function().block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)


def row(config, image_shape, num_classes: int, num_steps: int, size: int, repeats: int) -> str:
    """The Markdown row of one batch size."""
    mesh = make_mesh()
    model = build_unet(config, image_shape[-1], num_classes)
    rng = np.random.default_rng(0)
    shapes = abstract_params(model, image_shape, mesh)
    params = jax.tree.map(lambda s: np.float32(0.02 * rng.normal(size=s.shape)), shapes)
    params = jax.device_put(params, replicated(mesh))
    config.runtime.sampler_batch_size = size
    program = make_sample_program(config, image_shape, num_classes, "ddim", mesh)
    sampler = Sampler(program, params, num_steps)
    size = sampler.batch_size(size)
    labels, indices = sampler.image_labels(size), np.arange(size)

    whole, rows = replicated(mesh), batched(mesh)
    inputs = (np.zeros((size, *image_shape), np.float32), np.zeros(size, np.float32), labels)
    inputs = jax.device_put(inputs, rows)

    def forward(params, z, logsnr, labels):
        return model.apply({"params": params}, z, logsnr, labels if model.num_classes else None)

    compiled = jax.jit(
        forward,
        in_shardings=(whole, rows, rows, rows),
        out_shardings=rows,
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )

    def passes():
        for _ in range(num_steps):
            output = compiled(params, *inputs)
        return output

    sampling = fastest(lambda: sampler.on_devices(0, indices, labels), repeats)
    network = fastest(passes, repeats)
    shape = "x".join(map(str, image_shape))
    return (
        f"| {jax.devices()[0].device_kind} | {mesh.size} | {jax.__version__} | {shape} "
        f"| {num_steps} | {size} | {size / sampling:,.1f} | {size / network:,.1f} "
        f"| {sampling / network:.3f} |"
    )


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    measuring.start()
    cli.required("config", _CONFIG.value)
    config = _CONFIG.value
    validate(config)
    cli.at_least("num_steps", _NUM_STEPS.value, 1)
    try:
        sizes = [int(size) for size in _BATCH_SIZES.value]
        image_shape = _IMAGE_SHAPE.value and tuple(map(int, _IMAGE_SHAPE.value))
    except ValueError as error:
        raise UserError(f"--batch_sizes and --image_shape must be integers: {error}") from None
    num_classes = 0
    if image_shape is None or config.model.class_conditional:
        source = sources.load(config.data)
        image_shape, num_classes = image_shape or source.image_shape, source.num_classes
    print(HEADER)
    for size in sizes:
        repeats = cli.at_least("repeats", _REPEATS.value, 1)
        print(row(config, image_shape, num_classes, _NUM_STEPS.value, size, repeats), flush=True)


if __name__ == "__main__":
    jnp.zeros(()).block_until_ready()  # starts the devices before anything is timed
    cli.run(main)
