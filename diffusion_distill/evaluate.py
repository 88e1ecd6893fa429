"""Measure a finished stage, or anybody's images.

    python -m diffusion_distill.evaluate --workdir=runs/digits --num_steps=4 --seeds=3
    python -m diffusion_distill.evaluate --workdir=runs/digits --stage=teacher --num_steps=64
    python -m diffusion_distill.evaluate --images=FOLDER_OR_NPZ --config=configs/digits_distill.py
    python -m diffusion_distill.evaluate --images=A --reference=B --features=pixels

The data set of --workdir or --config is the reference, unless --reference names a folder of images,
an .npz of uint8 images, or an .npz of another project's `mu` and `sigma`. What a stopped evaluation
has computed is kept, and the same command goes on. Results of a stage are added to the workdir's
evaluations.jsonl.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffusion_distill.config import base
from diffusion_distill.data import sources
from diffusion_distill.data.images import load_images
from diffusion_distill.data.source import Source
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.metrics.evaluator import Measured
from diffusion_distill.metrics.measure import Measurer, cache_dir
from diffusion_distill.metrics.names import value_text
from diffusion_distill.metrics.reference import has_statistics, vs_name
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import locked, read_rows, remove, write_rows
from diffusion_distill.terminal import cli
from diffusion_distill.validate import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "With --images: whose data to compare.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps; default: the last finished stage's.")
_STAGE = flags.DEFINE_string("stage", None, "A stage by name; 'teacher' takes any num_steps.")
_SAMPLER = flags.DEFINE_string("sampler", "ddim", "ddim, ancestral, dpmpp_2m or heun.")
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "Images to measure; default: the config's, or all of --images."
)
_SEED = flags.DEFINE_integer("seed", None, "Of the images; default: the config's.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "So many, one after another from --seed on.")
_IMAGES = flags.DEFINE_string("images", None, "Measure these: a folder, or an .npz.")
_DATA_PATH = flags.DEFINE_string("data_path", None, "Where the data is now, if it was moved.")
_REFERENCE = flags.DEFINE_string("reference", None, "Compare with these, or with their statistics.")
_FEATURES = flags.DEFINE_string("features", None, "Feature network; default: the config's.")
_METRICS = flags.DEFINE_list("metrics", None, "Which; default: the config's.")
_SPLIT = flags.DEFINE_string("split", None, "Of the data, to compare with; default: the config's.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at once; default: the config's.")
_ALLOW_BIASED = flags.DEFINE_boolean("allow_biased", False, "Measure too few images for FID.")
_BLOCKS_DIR = flags.DEFINE_string(
    "blocks_dir", None, "What a stopped evaluation goes on from; default: in the workdir or cache."
)
_OUT = flags.DEFINE_string("out", None, "A .jsonl that rows of results are added to.")


def chosen_config() -> ml_collections.ConfigDict:
    """The config of --workdir or --config, or the defaults, as the other flags change it."""
    if _WORKDIR.value and _CONFIG.value is not None:
        raise UserError("--workdir has a config of its own; give it or --config, not both")
    if _WORKDIR.value:
        config = Workdir.open(_WORKDIR.value).config
    elif _CONFIG.value is not None:
        getattr(_CONFIG.value, "seed", None)  # one that could not be read raises why when touched
        config = _CONFIG.value
    else:
        config = base()
    if _BATCH_SIZE.value is not None:
        config.runtime.sampler_batch_size = cli.at_least("batch_size", _BATCH_SIZE.value, 1)
    if _DATA_PATH.value is not None:
        config.data.path = _DATA_PATH.value
    evaluation = config.eval
    if _NUM_IMAGES.value is not None:
        evaluation.num_images = cli.at_least("num_images", _NUM_IMAGES.value, 2)
    if _SEED.value is not None:
        evaluation.seed = _SEED.value
    if _FEATURES.value is not None:
        evaluation.features = _FEATURES.value
    if _METRICS.value is not None:
        evaluation.metrics = tuple(_METRICS.value)
    if _SPLIT.value is not None:
        evaluation.split = _SPLIT.value
    evaluation.allow_biased |= _ALLOW_BIASED.value
    return config


def reference_source(config: ml_collections.ConfigDict) -> Source | None:
    """The images of --reference; None where it is not given, or has statistics only.

    The statistics are then named in the config.
    """
    path = _REFERENCE.value
    if path is None:
        return None
    if has_statistics(path):
        config.eval.reference = path
        return None
    config.eval.reference = ""
    return dataclasses.replace(load_images(path), split=vs_name(path))


def measure_stage(config: ml_collections.ConfigDict) -> list[dict]:
    """The rows of results of a stage, one for each seed; prints them."""
    cli.required("workdir", _WORKDIR.value)
    cli.at_least("seeds", _SEEDS.value, 1)
    config.eval.baseline_images = 0  # there are no baselines here
    validate(config)
    sampler = load_sampler(
        _WORKDIR.value,
        _NUM_STEPS.value,
        _STAGE.value,
        _SAMPLER.value,
        batch_size=_BATCH_SIZE.value,
    )
    weights = sampler.fingerprint()
    reference = reference_source(config)
    if _REFERENCE.value is None:
        source = sources.load(config.data, cache=cache_dir(config))
    else:  # the training data is not needed, nor need it be there
        config.eval.label_agreement = False
        source = Source("generated", "", sampler.image_shape, np.zeros(0, np.int32), 0, read=None)
    measurer = Measurer(config, source, make_mesh(), reference=reference)
    stage = Workdir.open(_WORKDIR.value).finished_stage(_NUM_STEPS.value, _STAGE.value)
    count, rows = config.eval.num_images, []
    settings = f"{_SAMPLER.value} {sampler.num_steps} {count} {config.eval.features} {weights}"
    folder = _blocks_dir(as_path(_WORKDIR.value) / "evaluating", settings)
    where = f"at {sampler.num_steps} steps of {_SAMPLER.value}"
    with locked(folder / ".lock"):
        for seed in range(config.eval.seed, config.eval.seed + _SEEDS.value):
            made_of = {"weights": weights, "sampler": _SAMPLER.value}
            label = f"seed {seed}"
            result = measurer.sampler(sampler, count, seed, folder / str(seed), label, made_of)
            show(result, where, f"seed {seed}: " if _SEEDS.value > 1 else "")
            row = {"stage": stage.name, "updates": stage.updates, "sampler": _SAMPLER.value}
            row |= {"num_steps": sampler.num_steps, "sha256": weights}
            rows.append(row | as_row(result) | measurer.definition(count, seed))
        show_spread(rows, where)
        add_rows(_OUT.value or as_path(_WORKDIR.value) / "evaluations.jsonl", rows)
        remove(folder)
    return rows


def measure_images(config: ml_collections.ConfigDict) -> list[dict]:
    """The row of results of --images; prints it."""
    images = load_images(_IMAGES.value)
    count = len(images) if _NUM_IMAGES.value is None else _NUM_IMAGES.value
    config.eval.num_images, config.eval.baseline_images = max(count, 2), 0
    config.eval.label_agreement = False
    reference = reference_source(config)
    if _REFERENCE.value is None:
        if not _WORKDIR.value and _CONFIG.value is None:
            raise UserError("--images is compared with --reference, or the data of --config")
        if not config.eval.reference:
            reference = sources.load(config.data, config.eval.split or None, cache_dir(config))
    validate(config)
    measurer = Measurer(config, images, make_mesh(), reference=reference)
    folder = _blocks_dir(cache_dir(config) / "evaluating", images.fingerprint)
    with locked(folder / ".lock"):
        result = measurer.images(images, count, folder / "images", str(_IMAGES.value))
        show(result, f"of {_IMAGES.value}")
        row = {"images": str(_IMAGES.value), "fingerprint": images.fingerprint}
        rows = [row | as_row(result) | measurer.definition(count)]
        if _OUT.value:
            add_rows(_OUT.value, rows)
        remove(folder)
    return rows


def _blocks_dir(default: Path, key: str) -> Path:
    """The folder for what is kept, made: --blocks_dir, or one of its own below the default."""
    folder = as_path(_BLOCKS_DIR.value or default) / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def show(result: Measured, where: str, before: str = "") -> None:
    """Prints a line for each metric, and for each note."""
    for name in result.metrics:
        text = value_text(name, result.values[name], result.values.get(f"{name}_std"), 2)
        print(f"{before}{name} {where}: {text}", flush=True)
    if "label_agreement" in result.values:
        print(f"{before}label_agreement {where}: {result.values['label_agreement']:.4f}")
    for what, note in result.notes.items():
        print(f"{before}{what}: {note}")


def show_spread(rows: list[dict], where: str) -> None:
    """Prints mean and standard deviation over several seeds."""
    if len(rows) < 2:
        return
    for name in [*rows[0]["metrics"], *["label_agreement"] * ("label_agreement" in rows[0])]:
        values = [row[name] for row in rows]
        text = value_text(name, float(np.mean(values)), float(np.std(values, ddof=1)), 2)
        print(f"{name} {where}: {text} (mean and standard deviation of {len(rows)} seeds)")


def as_row(result: Measured) -> dict:
    """What was measured, as a row of results has it."""
    return {"metrics": result.metrics, **result.values, "notes": result.notes}


def add_rows(path: str | Path, rows: list[dict]) -> None:
    """Adds rows to a .jsonl."""
    path = as_path(path)
    with locked(path.with_name(f".{path.name}.lock")):
        write_rows(path, [*read_rows(path), *json.loads(json.dumps(rows))])


def refuse_with(other: str, *given: flags.FlagHolder) -> None:
    """Raises UserError where one of these flags is given, which say nothing beside another."""
    for flag in given:
        if flag.present:
            raise UserError(f"--{flag.name} means nothing with --{other}; leave one of them out")


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    if _IMAGES.value:
        refuse_with("images", _NUM_STEPS, _STAGE, _SAMPLER, _SEED, _SEEDS)
    if _REFERENCE.value:
        refuse_with("reference", _SPLIT)
    config = chosen_config()
    compiler.keep_programs(config.runtime.cache_dir)
    if _IMAGES.value:
        measure_images(config)
    else:
        measure_stage(config)


if __name__ == "__main__":
    cli.run(main)
