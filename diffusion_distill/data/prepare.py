"""Get a data set, or turn one into the format that large sets train from.

python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
python -m diffusion_distill.data.prepare --dataset=imagenet64 --path=ILSVRC2012/train --out=data/imagenet64
python -m diffusion_distill.data.prepare --source=folder --path=photos --image_size=64 --out=data/photos
python -m diffusion_distill.data.prepare --verify --out=data/photos

The same command goes on where it was stopped; a download begins anew. Images that cannot be read are
left out, and named.
"""  # noqa: E501

import contextlib
import dataclasses
from pathlib import Path

from absl import flags

from diffusion_distill.config import base
from diffusion_distill.data import cifar10, fields, preprocess, sources, write_prepared
from diffusion_distill.data.prepared import MANIFEST, Manifest, verify
from diffusion_distill.errors import Field, UserError
from diffusion_distill.paper import DATASETS
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_DATASET = flags.DEFINE_string(
    "dataset", None, f"One of {', '.join(DATASETS)}; the first is downloaded."
)
_SOURCE = flags.DEFINE_string("source", None, "folder, npz, tfds, cifar10 or digits.")
_PATH = flags.DEFINE_string("path", None, "Where the source is.")
_SPLIT = flags.DEFINE_string("split", "train", "Which split; also the name of the one made.")
_TFDS_NAME = flags.DEFINE_string("tfds_name", None, "With --source=tfds: lsun/bedroom, say.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Crop to a square and resize to this.")
_RESIZE = flags.DEFINE_string("resize", None, "area or antialias.")
_CHANNELS = flags.DEFINE_integer("channels", None, "3 turns grey images into colour.")
_FOLDER_LABELS = flags.DEFINE_bool("folder_labels", None, "Whether subfolders are labels.")
_UPRIGHT = flags.DEFINE_bool("upright", None, "Whether photos are turned as their EXIF says.")
_OUT = flags.DEFINE_string("out", None, "Folder of the prepared set.")
_VERIFY = flags.DEFINE_bool("verify", False, "Compare every file in --out with its checksum.")


_LSUN_WHERE = (
    "is on https://www.yf.io/p/lsun as an LMDB database ({size}), whose own tools (data.py export) "
    "write it as a folder of images: give that with --path. TensorFlow Datasets has it, too: "
    "--source=tfds --tfds_name=lsun/{name} --path=TFDS_FOLDER"
)
# Of data sets that we cannot get for a person: where each is, and what --path then has to be.
_WHERE = {
    "imagenet64": "needs an account on https://image-net.org, and its terms: unpack the training "
    "images of ILSVRC2012 into a folder with a subfolder for each of the 1,000 classes "
    "(n01440764, ...), and give that with --path. What TensorFlow Datasets prepared will do, too: "
    "--source=tfds --tfds_name=imagenet2012 --path=TFDS_FOLDER",
    "lsun_bedroom128": _LSUN_WHERE.format(name="bedroom", size="43 GB"),
    "lsun_church128": _LSUN_WHERE.format(name="church", size="2 GB"),
}


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    if _VERIFY.value:
        _verify_all(_out())
    elif _DATASET.value == "cifar10" and _SOURCE.value is None and _PATH.value is None:
        cifar10.download(_out())
    else:
        name = _DATASET.value or ""
        config = _data_config(name)  # before --out, because it says where a data set is got
        out = _out()
        with _flags_for_fields():
            source = sources.load(config)
        read = _flags_for_fields()(source.read)
        source = dataclasses.replace(source, name=name or source.name, read=read)
        origin = {"name": config.name, "path": config.path, "tfds_name": config.tfds_name}
        origin |= {"split": config.split, "preprocessing": source.preprocessing}
        origin |= {"channels": config.channels, "folder_labels": config.folder_labels}
        origin |= {"upright": True} if config.name == "folder" and config.upright else {}
        manifest = write_prepared.write(source, out / config.split, origin)
        expected = DATASETS[name].counts.get(config.split) if name in _WHERE else None
        if expected not in (None, manifest.count):
            say(f"warning: {name} {config.split} has {expected:,} images as published")


def _out() -> Path:
    return as_path(cli.required("out", _OUT.value))


@contextlib.contextmanager
def _flags_for_fields():
    """Where a message names fields of a config's data, it names the flags for them here instead."""
    try:
        yield
    except UserError as error:
        raise UserError(*map(_flag, error.parts)) from error


def _flag(part: object) -> object:
    if not isinstance(part, Field):
        return part
    return "--source" if part == fields.NAME else "--" + part.rpartition(".")[2]


def _data_config(dataset: str):
    """A config's `data` section from the flags, over the data set's own fields."""
    config = base().data
    config.name, config.split = _SOURCE.value or "folder", _SPLIT.value
    if dataset == "cifar10":
        config.name = "cifar10"
    elif dataset:
        if dataset not in _WHERE:
            raise UserError(f"--dataset is {dataset!r}; there are cifar10, {', '.join(_WHERE)}")
        if _PATH.value is None:
            raise UserError(f"{dataset} {_WHERE[dataset]}")
        known = DATASETS[dataset]
        config.image_size, config.resize, config.channels = known.image_size, known.resize, 3
        config.folder_labels = known.num_classes > 0
        config.upright = False  # as published
    elif _SOURCE.value is None:
        raise UserError("--dataset or --source must be given; --help says how")
    for flag in (_PATH, _TFDS_NAME, _IMAGE_SIZE, _RESIZE, _CHANNELS, _FOLDER_LABELS, _UPRIGHT):
        if flag.value is not None:
            config[flag.name] = flag.value
    if config.resize not in preprocess.RESIZES:
        raise UserError(f"--resize is {config.resize!r}; there are {', '.join(preprocess.RESIZES)}")
    if config.image_size < 0 or config.channels not in (0, 1, 3):
        raise UserError("--image_size must be at least 0, and --channels 0, 1 or 3")
    return config


def _verify_all(out: Path) -> None:
    manifests = sorted(out.glob(f"*/{MANIFEST}"))
    if not manifests:
        raise UserError(f"{out} has no prepared split")
    for path in manifests:
        verify(path.parent, Manifest.read(path.parent))
        say(f"{path.parent}: every file is as it was written")


if __name__ == "__main__":
    cli.run(main)
