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

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_distill.config import base
from diffusion_distill.data import sources
from diffusion_distill.data.source import Source
from diffusion_distill.data.sources import load_images
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.metrics.measure import Measurer, config_reference, feature_network, for_run
from diffusion_distill.metrics.names import value_text
from diffusion_distill.metrics.reference import Reference, check_image_shapes, images_or_statistics
from diffusion_distill.metrics.request import Result, of_images, of_sampler
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import (
    cache_folder,
    check_can_write,
    locked,
    read_rows,
    remove,
    write_atomically,
)
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "With --images: whose data to compare.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps; default: the last finished stage's.")
_STAGE = flags.DEFINE_string("stage", None, "A stage by name; 'teacher' takes any num_steps.")
_SAMPLER = flags.DEFINE_string(
    "sampler", "ddim", "ddim, ancestral, dpmpp_2m, heun, ddim_diffusers."
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "w towards the label, 0 for none (others write 1 + w); default: the least."
)
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


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A stage of a run, and how it is sampled."""

    workdir: str  # of the run; for the others see `load_sampler`
    num_steps: int | None = None
    stage: str | None = None
    sampler: str = "ddim"
    guidance: float | None = None


def evaluate_stage(
    config: ConfigDict,
    chosen: Chosen,
    num_seeds: int = 1,
    reference: str | None = None,
    blocks_dir: str | None = None,
    out: str | None = None,
) -> list[dict]:
    """The rows of results of a stage, one for each seed from config.eval.seed on; prints them.

    Args:
        config: of the run, its eval as is wanted.
        reference: path of images, or of their statistics; None for what config names.
        blocks_dir: what a stopped evaluation goes on from; None for a folder in the workdir.
        out: a .jsonl that rows are added to; None for the workdir's evaluations.jsonl.

    Raises:
        UserError: something cannot be measured, or is not there.
        CheckpointError: the stage's checkpoint is damaged.
    """
    validate(config)
    out = out or as_path(chosen.workdir) / "evaluations.jsonl"
    check_out(out)
    steps, name, size = chosen.num_steps, chosen.sampler, config.runtime.sampler_batch_size
    run = Workdir.open(chosen.workdir)
    stage = run.finished_stage(steps, chosen.stage)
    sampler = load_sampler(
        chosen.workdir, steps, stage.name, name, batch_size=size, guidance=chosen.guidance
    )
    count, first_seed, rows = config.eval.num_images, config.eval.seed, []
    seeds = range(first_seed, first_seed + num_seeds)
    sampler.checked_labels(seeds[-1], count)
    weights = sampler.fingerprint()
    if reference is None:
        source = sources.load(config.data, cache=cache_folder(config.runtime.cache_dir))
        measurer = for_run(config, source, make_mesh())
        data = {"training": source.identity()}
        if config.eval.split == run.config.eval.split:
            data["reference"] = measurer.reference_identity()
        run.check_data(data)
    else:  # the training data is not needed, nor need it be there
        measurer = _measurer(config, sampler.image_shape, images_or_statistics(reference))
    settings = f"{name} {sampler.num_steps} {count} {config.eval.features} {weights}"
    settings += f" {sampler.guidance}" if sampler.guidance else ""
    folder = _blocks_folder(blocks_dir or as_path(chosen.workdir) / "evaluating", settings)
    guided = f", guidance {sampler.guidance:g}" if sampler.guidance else ""
    where = f"at {sampler.num_steps} steps of {name}{guided}"
    variance = config.eval.ancestral_variance
    made_of = {"weights": weights, "sampler": name, "ancestral_variance": variance}
    with locked(folder / ".lock"):
        for seed in seeds:
            request = of_sampler(sampler, count, seed, made_of)
            result = measurer.measure(request, folder / str(seed), f"seed {seed}")
            row = {"stage": stage.name, "updates": stage.updates, "sampler": name}
            row |= {"num_steps": sampler.num_steps, "sha256": weights}
            row |= {"guidance": sampler.guidance} if sampler.guidance else {}
            rows.append(row | result.row() | measurer.definition(count, seed))
            add_row(out, rows[-1])
            show(result, where, f"seed {seed}: " if num_seeds > 1 else "")
        show_spread(rows, where)
        remove(folder)
    return rows


def evaluate_images(
    config: ConfigDict,
    path: str,
    count: int | None = None,
    reference: str | None = None,
    blocks_dir: str | None = None,
    out: str | None = None,
) -> list[dict]:
    """The row of results of anybody's images; prints it.

    Args:
        config: its eval says how; its data is compared with where there is no reference.
        path: of a folder of images, or of an .npz.
        count: images to measure; None for all.
        reference, blocks_dir, out: as for `evaluate_stage`; None: a folder in the cache, no file.

    Raises:
        UserError: something cannot be measured, or is not there.
    """
    if out:
        check_out(out)
    images = load_images(path)
    count = len(images) if count is None else count
    config.eval.num_images = max(count, 2)
    validate(config)
    real = config_reference(config) if reference is None else images_or_statistics(reference)
    check_image_shapes(images, real)
    measurer = _measurer(config, images.image_shape, real)
    cache = cache_folder(config.runtime.cache_dir)
    folder = _blocks_folder(blocks_dir or cache / "evaluating", images.fingerprint)
    with locked(folder / ".lock"):
        request = of_images(images, count, measurer.batch_size(count))
        result = measurer.measure(request, folder / "images", path)
        row = {"images": path, "fingerprint": images.fingerprint}
        row |= result.row() | measurer.definition(count)
        if out:
            add_row(out, row)
        show(result, f"of {path}")
        remove(folder)
    return [row]


def _measurer(config: ConfigDict, shape: tuple, real: Source | Reference) -> Measurer:
    """Compares images of this shape with real ones that are not the data of a run."""
    mesh = make_mesh()
    return Measurer(config, mesh, feature_network(config, mesh), shape, real)


def _blocks_folder(below: str | Path, key: str) -> Path:
    """The folder for what is kept of this key, made."""
    folder = as_path(below) / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def show(result: Result, where: str, before: str = "") -> None:
    """Prints a line for each metric, and for each note."""
    for name in result.metrics:
        text = value_text(name, result.values[name], result.spreads.get(name), 2)
        say(f"{before}{name} {where}: {text}")
    if "label_agreement" in result.values:
        say(f"{before}label_agreement {where}: {result.values['label_agreement']:.4f}")
    for what, note in result.notes.items():
        say(f"{before}{what}: {note}")


def show_spread(rows: list[dict], where: str) -> None:
    """Prints mean and standard deviation over several seeds."""
    if len(rows) < 2:
        return
    for name in [*rows[0]["metrics"], *["label_agreement"] * ("label_agreement" in rows[0])]:
        values = [row[name] for row in rows]
        text = value_text(name, float(np.mean(values)), float(np.std(values, ddof=1)), 2)
        say(f"{name} {where}: {text} (mean and standard deviation of {len(rows)} seeds)")


def check_out(path: str | Path) -> None:
    """Finds out whether rows can be added at `path`, before anything is measured.

    Raises:
        UserError: it does not end in .jsonl, or what is there are not rows.
        OSError: nothing can be written there.
    """
    path = as_path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--out={path} must end in .jsonl: rows of JSON are added to it")
    check_can_write(path)
    read_rows(path, whole=True)


def add_row(path: str | Path, row: dict) -> None:
    """Adds a row to a .jsonl, unless it is there from before a stop; what is there stays."""
    path, row = as_path(path), json.loads(json.dumps(row))
    with locked(path.with_name(f".{path.name}.lock")):
        if row not in read_rows(path, whole=True):
            content = path.read_text("utf-8") if path.exists() else ""
            end = "" if content.endswith("\n") or not content else "\n"
            write_atomically(path, f"{content}{end}{json.dumps(row)}\n")


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    if _IMAGES.value:
        _refuse_with("images", _NUM_STEPS, _STAGE, _SAMPLER, _GUIDANCE, _SEED, _SEEDS)
    if _REFERENCE.value:
        _refuse_with("reference", _SPLIT)
    config = _config_from_flags()
    compiler.start(config.runtime.cache_dir)
    places = {"reference": _REFERENCE.value, "blocks_dir": _BLOCKS_DIR.value, "out": _OUT.value}
    if _IMAGES.value:
        if not (_REFERENCE.value or _WORKDIR.value) and _CONFIG.value is None:
            raise UserError("--images is compared with --reference, or the data of --config")
        evaluate_images(config, _IMAGES.value, _NUM_IMAGES.value, **places)
        return
    workdir = cli.required("workdir", _WORKDIR.value)
    stage = _NUM_STEPS.value, _STAGE.value, _SAMPLER.value
    chosen = Chosen(workdir, *stage, _GUIDANCE.value)
    evaluate_stage(config, chosen, cli.at_least("seeds", _SEEDS.value, 1), **places)


def _refuse_with(other: str, *given: flags.FlagHolder) -> None:
    """Raises UserError where one of these flags is given, which say nothing beside another."""
    for flag in given:
        if flag.present:
            raise UserError(f"--{flag.name} means nothing with --{other}; leave one of them out")


def _config_from_flags() -> ConfigDict:
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
    evaluation.baseline_images = 0  # there are no baselines here
    if _NUM_IMAGES.value is not None:
        evaluation.num_images = cli.at_least("num_images", _NUM_IMAGES.value, 2)
    if _METRICS.value is not None:
        evaluation.metrics = tuple(_METRICS.value)
    if _SEED.value is not None:
        evaluation.seed = _SEED.value
    if _FEATURES.value is not None:
        evaluation.features = _FEATURES.value
    if _SPLIT.value is not None:
        evaluation.split = _SPLIT.value
    evaluation.allow_biased |= _ALLOW_BIASED.value
    return config


if __name__ == "__main__":
    cli.run(main)
