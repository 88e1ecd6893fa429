"""What computing in bfloat16 changes: a teacher's losses and images, beside those of float32.

    python -m benchmarks.precision --config=configs/digits_distill.py --updates=300

Trains the config's teacher for so many updates in each of the two, from the same weights on the
same batches with the same noise, then samples the same noise with the averaged weights by DDIM.
Prints a Markdown table; differences of images are of values in [-1, 1].
"""

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from benchmarks import measuring
from diffusion_distill.data import sources
from diffusion_distill.data.source import Source
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.devices.sharding import check_divides, make_mesh, place, replicated
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.models.build import build_unet
from diffusion_distill.stages import plan
from diffusion_distill.terminal import cli
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.loop import call_spans, updates_per_call
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import abstract_state, init_teacher
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update
from diffusion_distill.validate import validate

WINDOW = 50  # updates that a smoothed loss is the mean of


def trained(config: ConfigDict, source: Source, mesh: Mesh) -> tuple[dict, np.ndarray]:
    """The averaged weights of the config's teacher, and the loss of each update."""
    stage = plan(config)[0]
    model = build_unet(config, source.image_shape[-1], source.num_classes, stage.dropout)
    optimizer, whole = make_optimizer(config, stage), replicated(mesh)
    key = place(jax.random.key(config.seed), whole)
    state = init_teacher(model, optimizer, key, source.image_shape, mesh)
    abstract = abstract_state(state.params, optimizer, mesh)
    update = make_update(Recipe(model, config, stage, mesh), abstract)
    this_round = place(Round.of(stage), whole)
    key = place(jax.random.fold_in(jax.random.key(config.seed), stage.rng_id), whole)
    feed, losses = Feed(source, mesh, config.runtime.data_on_device), []
    per_call = updates_per_call(config, jax.default_backend())
    ranges = call_spans(0, stage.updates, per_call, stage.updates)
    batches = feed.batches(config.seed, stage.rng_id, config.train.batch_size, ranges)
    for _, _, rows in batches:
        state, metrics = update(state, None, feed.data, rows, key, this_round)
        losses.append(metrics["loss"])
    return state.ema_params, np.concatenate([fetch(loss) for loss in losses]).astype(np.float64)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The mean of every WINDOW neighbours, or of all where there are fewer: [N] -> [M]."""
    window = min(WINDOW, len(losses))
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def compared(config: ConfigDict, updates: int, num_images: int, num_steps: int) -> dict:
    """All that is measured, for `table` and as JSON."""
    mesh, source = make_mesh(config.runtime.fsdp), sources.load(config.data)
    check_divides(mesh, "train.batch_size", config.train.batch_size, config.runtime.accumulation)
    z = np.random.default_rng(config.seed).normal(size=(num_images, *source.image_shape))
    params, losses, programs = {}, {}, {}
    for dtype in ("float32", "bfloat16"):
        config = config.copy_and_resolve_references()
        config.model.dtype, config.teacher.updates, config.distill.teacher = dtype, updates, ""
        params[dtype], losses[dtype] = trained(config, source, mesh)
        programs[dtype] = make_sample_program(
            config, source.image_shape, source.num_classes, "ddim", mesh
        )

    def images(computed_in: str, trained_in: str) -> np.ndarray:
        """[N, H, W, C] in [-1, 1]."""
        return Sampler(programs[computed_in], params[trained_in], num_steps).from_noise(z)

    def apart(a: np.ndarray, b: np.ndarray) -> dict:
        return {"mean": float(np.abs(a - b).mean()), "largest": float(np.abs(a - b).max())}

    exact = images("float32", "float32")
    curves = {dtype: smoothed(losses[dtype]) for dtype in losses}
    relative = np.abs(curves["bfloat16"] / curves["float32"] - 1)
    return {
        "data": config.data.name,
        "updates": updates,
        "batch_size": config.train.batch_size,
        "num_images": num_images,
        "num_steps": num_steps,
        "mean_loss": {dtype: float(losses[dtype].mean()) for dtype in losses},
        "last_loss": {dtype: float(curves[dtype][-1]) for dtype in losses},
        "smoothed_loss_relative": {
            "mean": float(relative.mean()),
            "largest": float(relative.max()),
        },
        "images_same_weights": apart(exact, images("bfloat16", "float32")),
        "images_own_weights": apart(exact, images("bfloat16", "bfloat16")),
    }


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """The header and the body of a result's table."""
    num_images, num_steps = result["num_images"], result["num_steps"]
    window = min(WINDOW, result["updates"])
    images = f"{num_images} images in {num_steps} DDIM steps"

    def losses(what: str, name: str) -> list[str]:
        exact, other = (result[name][dtype] for dtype in ("float32", "bfloat16"))
        return [what, f"{exact:.5f}", f"{other:.5f}", f"{abs(other / exact - 1):.3%}", ""]

    def differences(what: str, name: str, form: str) -> list[str]:
        found = result[name]
        return [what, "", "", f"{found['mean']:{form}}", f"{found['largest']:{form}}"]

    head = f"{result['data']}, {result['updates']} updates of {result['batch_size']} images"
    return (
        [head, "float32", "bfloat16", "difference, mean", "largest"],
        [
            losses("loss, mean of all updates", "mean_loss"),
            losses(f"loss, mean of the last {window}", "last_loss"),
            differences(f"loss, each mean of {window}", "smoothed_loss_relative", ".3%"),
            differences(f"{images}, same weights", "images_same_weights", ".5f"),
            differences(f"{images}, each its own weights", "images_own_weights", ".5f"),
        ],
    )


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    measuring.start()
    config = cli.required("config", flags.FLAGS.config)
    validate(config)
    numbers = [
        cli.at_least(name, flags.FLAGS[name].value, 1)
        for name in ("updates", "num_images", "num_steps")
    ]
    result = compared(config, *numbers)
    measuring.publish(flags.FLAGS.out, result, *table(result))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Whose data, network and teacher.")
    flags.DEFINE_integer("updates", 300, "Of the teacher; its schedule ends there.")
    flags.DEFINE_integer("num_images", 64, "Images that are sampled.")
    flags.DEFINE_integer("num_steps", 8, "Sampling steps.")
    flags.DEFINE_string("out", "runs/benchmarks/precision.json", "File for the numbers.")
    cli.run(main)
