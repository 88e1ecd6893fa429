"""Measure a finished stage.

python -m diffusion_distill.evaluate --workdir=runs/digits --num_steps=4
python -m diffusion_distill.evaluate --workdir=runs/digits --stage=teacher --num_steps=64
"""

from absl import flags

from diffusion_distill import cli
from diffusion_distill.data import sources
from diffusion_distill.load import load_sampler
from diffusion_distill.metrics.evaluator import Evaluator
from diffusion_distill.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps; default: the last finished stage's.")
_STAGE = flags.DEFINE_string("stage", None, "A stage by name; 'teacher' takes any num_steps.")
_SAMPLER = flags.DEFINE_string("sampler", "ddim", "ddim, ancestral, dpmpp_2m or heun.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "Images to generate; default: the config's.")
_SEED = flags.DEFINE_integer("seed", None, "Of the images; default: the config's.")


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    run = Workdir.open(cli.required("workdir", _WORKDIR.value))
    config = run.config.eval
    if _NUM_IMAGES.value is not None:
        config.num_images = cli.at_least("num_images", _NUM_IMAGES.value, 2)
    seed = config.seed if _SEED.value is None else _SEED.value
    sampler = load_sampler(_WORKDIR.value, _NUM_STEPS.value, _STAGE.value, _SAMPLER.value)
    source = sources.load(run.config.data)
    images = sampler(seed, config.num_images)
    labels = sampler.image_labels(config.num_images)
    for name, value in Evaluator(config, source).measure(images, labels).items():
        print(f"{name} at {sampler.num_steps} steps of {_SAMPLER.value}: {value:.4f}")


if __name__ == "__main__":
    cli.run(main)
