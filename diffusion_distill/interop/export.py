"""A finished stage as two files that need nothing else: averaged weights, and what they are.

    python -m diffusion_distill.interop.export --workdir=runs/digits --num_steps=4 --out=digits_4

With --format=diffusers it is a folder for diffusers instead: interop/to_diffusers.py.

OUT/
  model.safetensors  float32 arrays, by the network's names joined by "/"; with --dtype=bfloat16
                     half the bytes, each weight rounded to the 8 bits that bfloat16 keeps of it
  model.json         the architecture, the diffusion, the images and labels, the sampler, and the
                     sha256 of model.safetensors

`load_sampler(OUT)` gives the images that `load_sampler` of the workdir gives: to the bit from
float32, nearly the same from bfloat16. Either is read as float32 arrays.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import flags
from jax.sharding import Mesh

from diffusion_distill.config import base, to_dict
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.interop import to_diffusers
from diffusion_distill.interop.model_card import model_card
from diffusion_distill.runs.network import Network, flatten, from_stage, with_weights
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage import weights
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_json, write_atomically
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import from_dict
from diffusion_distill.validate.rows import DTYPES

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT_VERSION = 1
_FIRST = ("model", "diffusion")  # of a config, what every description has; older ones no more
_SECTIONS = (*_FIRST, "unet2d", "scheduler")


def is_export(path: str | Path) -> bool:
    """Whether a folder is one that `write` wrote, or what is left of it."""
    return any((as_path(path) / name).exists() for name in (WEIGHTS, DESCRIPTION))


def write(network: Network, out: str | Path, dtype: str = "float32") -> int:
    """Writes a network to the folder `out`, which is made; what was exported there is replaced.

    `dtype` is what the weights are kept in, one of validate.rows.DTYPES. Returns the bytes of the
    weights. Raises UserError where `out` is a file, or has other files; OSError where it cannot be
    written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    out = make_room(out, (WEIGHTS, DESCRIPTION))
    arrays = flatten(jax.device_get(network.params))
    kept = {name: np.ascontiguousarray(w, jnp.dtype(dtype)) for name, w in arrays.items()}
    content = safetensors.numpy.save(kept)
    write_atomically(out / WEIGHTS, content)
    # Written last: until it is, the sha256 of an older one refuses the new weights.
    description = _description(network)
    description |= {"weights_dtype": dtype, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(out / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return len(content)


def make_room(out: str | Path, ours: tuple[str, ...]) -> Path:
    """The folder `out`, made; what has one of the names `ours` in it may be replaced.

    Raises UserError where `out` is a file, or has other files.
    """
    out = as_path(out)
    if out.is_file():
        raise UserError(f"{out} is a file; name a folder")
    if out.is_dir():
        names = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
        others = [name for name in names if name not in ours]
        if others:
            raise UserError(f"{out} has other files, {others[0]} for one; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def read(path: str | Path, mesh: Mesh) -> Network:
    """The network in a folder that `write` wrote.

    Raises UserError where a file is missing or damaged, the two do not belong together, or they are
    of a later version.
    """
    path = as_path(path)
    fields = read_json(path / DESCRIPTION)
    try:
        network = _network(fields, mesh)
        expected = fields["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise UserError(f"{path / DESCRIPTION} cannot be used: {reason}") from None
    content = weights.read_bytes(path / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != expected:
        other = f"of another export: its SHA-256 is not the one in {DESCRIPTION}"
        raise UserError(f"{path / WEIGHTS} is damaged, or {other}")
    return with_weights(network, weights.decode(content, path / WEIGHTS), str(path))


def _description(network: Network) -> dict:
    config = to_dict(network.config)
    return {
        "format_version": FORMAT_VERSION,
        "image_shape": list(network.image_shape),
        "num_classes": network.num_classes,
        "num_steps": network.fixed_steps or network.config.distill.start_steps,
        "continuous_time": network.fixed_steps is None,
        "sampler": {
            "name": "ddim",
            "ancestral_variance": config["eval"]["ancestral_variance"],
            "batch_size": config["runtime"]["sampler_batch_size"],
            "loop": config["runtime"]["sampler_loop"],
        },
        **{name: config[name] for name in _SECTIONS},
        "label_dropout": config["teacher"]["label_dropout"],
    }


def _network(fields: dict, mesh: Mesh) -> Network:
    """The network, untrained, that a description describes; checks every field."""
    if fields["format_version"] != FORMAT_VERSION:
        raise UserError(f"format_version is {fields['format_version']!r}, not {FORMAT_VERSION}")
    config = to_dict(base())
    config |= {name: fields[name] for name in _SECTIONS if name in fields or name in _FIRST}
    config["teacher"]["label_dropout"] = fields.get("label_dropout", 0.0)  # not in older ones
    sampler = fields["sampler"]
    config["eval"]["ancestral_variance"] = sampler["ancestral_variance"]
    config["runtime"]["sampler_batch_size"] = sampler["batch_size"]
    config["runtime"]["sampler_loop"] = sampler["loop"]
    num_steps, continuous = fields["num_steps"], fields["continuous_time"]
    if continuous:
        config["distill"]["start_steps"] = num_steps
    for name, value, low in [
        ("num_steps", num_steps, 1),
        ("num_classes", fields["num_classes"], 0),
        *(("image_shape", size, 1) for size in fields["image_shape"]),
    ]:
        if type(value) is not int or value < low:
            raise UserError(f"{name} has {value!r}; it must be an integer of at least {low}")
    height, width, channels = fields["image_shape"]
    shape, fixed_steps = (height, width, channels), None if continuous else num_steps
    return Network.untrained(from_dict(config), shape, fields["num_classes"], fixed_steps, mesh)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    run = Workdir.open(cli.required("workdir", flags.FLAGS.workdir))
    out = cli.required("out", flags.FLAGS.out)
    num_steps, name = flags.FLAGS.num_steps, flags.FLAGS.stage
    if num_steps is not None and name is not None:
        raise UserError(f"give one of --num_steps and --stage, not --num_steps={num_steps} too")
    stage = run.finished_stage(num_steps, name)
    network = from_stage(run, stage, make_mesh())
    if flags.FLAGS.format == "diffusers":
        if flags.FLAGS.dtype != "float32":
            raise UserError(
                f"--dtype={flags.FLAGS.dtype} is not for --format=diffusers: float32 is"
            )
        network_out = make_room(out, to_diffusers.FILES)
        card = model_card(run, stage, network, out)
        size = to_diffusers.write(network, network_out, card, flags.FLAGS.guidance)
    elif flags.FLAGS.guidance is not None:
        raise UserError("--guidance is for --format=diffusers: other exports take any")
    else:
        size = write(network, out, flags.FLAGS.dtype)
    say(f"{stage.name} of {run.path}, {stage.num_steps} steps, {size / 1e6:.1f} MB: {out}")


if __name__ == "__main__":
    # Not above: the commands that import this module have flags of the same names.
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("num_steps", None, "The stage of these steps; default: the last finished.")
    flags.DEFINE_string("stage", None, "A stage by name, in place of --num_steps.")
    flags.DEFINE_string("out", None, "Folder to write; made if it is not there.")
    formats = ("diffusion_distill", "diffusers")
    flags.DEFINE_enum("format", formats[0], formats, "Who is to open it.")
    flags.DEFINE_float("guidance", None, "For diffusers: the w of a network that is told it.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "What the weights are kept in.")
    cli.run(main)
