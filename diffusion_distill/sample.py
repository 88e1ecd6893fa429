"""Images from a finished stage, or from weights elsewhere.

    python -m diffusion_distill.sample --workdir=runs/digits --num_steps=4 --num_images=64 \\
        --seed=0 --out=grid.png
    python -m diffusion_distill.sample --path=FOLDER --num_steps=10 --out=grid.png

--path takes what load_sampler takes: a workdir, an exported folder, one that diffusers wrote, or a
published file, which needs --config, a file in configs/, beside it.

--out says what is written: a .png is a grid, an .npz holds uint8 `images` [N, H, W, C] and
`labels` [N], anything else is a new folder of one PNG each.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_distill.devices import compiler
from diffusion_distill.errors import UserError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.report.grid import grid, png
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import check_can_write, write_atomically
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_PATH = flags.DEFINE_string("path", None, "In place of --workdir: anything that can be sampled.")
_CONFIG = flags.DEFINE_string("config", None, "With --path of a published file: FILE.py:VARIANT.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps; default: the last finished stage's.")
_STAGE = flags.DEFINE_string("stage", None, "A stage by name; 'teacher' takes any num_steps.")
_SAMPLER = flags.DEFINE_string(
    "sampler", "ddim", "ddim, ancestral, dpmpp_2m, heun, ddim_diffusers."
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 64, "How many.")
_SEED = flags.DEFINE_integer("seed", 0, "Image n is a function of the seed and n.")
_LABELS = flags.DEFINE_list("labels", None, "One label, or several taken in turn: 0,1,2.")
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "w towards the label, 0 for none (others write 1 + w); default: the least."
)
_OUT = flags.DEFINE_string("out", None, "grid.png, images.npz, or a folder.")


# Formats that would change pixels, or that a person may expect and that are not written.
REFUSED = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy"}


def kind(out: Path) -> str:
    """What is written at `out`: ".png", ".npz", or "" for a folder."""
    suffix = out.suffix.lower()
    return suffix if suffix in (".png", ".npz") else ""


def make_room(out: Path) -> None:
    """Makes the folder that `out` is or goes into, before any image is made.

    Raises:
        UserError: `out` names a format that is not written, a folder that is a file, or one that
            has files: images of two calls in one folder would be taken for one set.
        OSError: nothing can be written there.
    """
    if out.suffix.lower() in REFUSED:
        raise UserError(f"--out={out}: {out.suffix} is not written; name a .png, .npz or a folder")
    if not kind(out):
        if out.is_file():
            raise UserError(f"--out={out} is a file; name a .png, an .npz or a folder")
        there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        if there := [name for name in there if not name.startswith(".")]:
            raise UserError(f"--out={out} has files already, {there[0]} for one; name a new folder")
    check_can_write(out if kind(out) else out / "0.png")


def write(out: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes uint8 images [N, H, W, C] in the form that the name of `out` asks for."""
    if kind(out) == ".png":
        write_atomically(out, png(grid(images)))
    elif kind(out) == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=images, labels=labels)
        write_atomically(out, buffer.getvalue())
    else:
        digits = len(str(len(images) - 1))
        for n, image in enumerate(images):
            write_atomically(out / f"{n:0{digits}d}.png", png(image))


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    if _PATH.value and _WORKDIR.value:
        raise UserError(f"give one of --workdir and --path, not --path={_PATH.value} too")
    path = _PATH.value or cli.required("workdir", _WORKDIR.value)
    cli.required("out", _OUT.value)
    labels = None
    if _LABELS.value is not None:
        try:
            labels = [int(label) for label in _LABELS.value]
        except ValueError:
            raise UserError(f"--labels={','.join(_LABELS.value)} must be integers") from None
    compiler.start()
    asked = _NUM_STEPS.value, _STAGE.value, _SAMPLER.value, _CONFIG.value
    sampler = load_sampler(path, *asked, guidance=_GUIDANCE.value)
    shown = sampler.checked_labels(_SEED.value, _NUM_IMAGES.value, labels)
    out = as_path(_OUT.value)
    make_room(out)
    images = sampler(_SEED.value, _NUM_IMAGES.value, labels)
    write(out, images, shown)
    say(f"{len(images)} images in {sampler.num_steps} steps: {out}")


if __name__ == "__main__":
    cli.run(main)
