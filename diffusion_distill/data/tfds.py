"""What TensorFlow Datasets prepared. Reading it needs no TensorFlow; preparing it does."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable

import ml_collections
import numpy as np

from diffusion_distill.data import fields, preprocess
from diffusion_distill.data.folder import in_threads
from diffusion_distill.data.source import Source, checked_labels
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path, is_bucket
from diffusion_distill.terminal.progress import Progress

PART = 1000  # records whose labels one thread reads at a time


def load(config: ml_collections.ConfigDict) -> Source:
    """The data set config.tfds_name ("cifar10", "lsun/church:3.1.0") in the folder config.path.

    It must have been prepared in the file format array_record, with a feature "image". Labels come
    from its feature "label"; to learn them every record is read once (and no image decoded), so a
    large set is better turned into a prepared one first (data/prepare.py). Raises UserError, which
    says what to do, where it is not there, has no such split, or no images.
    """
    name = config.tfds_name
    builder = _open(name, config.path, config.split)
    records, info = builder.as_data_source(split=config.split), builder.info
    if "image" not in info.features:
        raise UserError(f"{name} has the features {', '.join(info.features)}; it must have image")
    num_classes = info.features["label"].num_classes if "label" in info.features else 0
    channels = config.channels or info.features["image"].shape[-1]
    if (channels, info.features["image"].shape[-1]) == (1, 3):
        raise UserError(fields.CHANNELS, f" is 1; {name} is in colour, it must be 0 or 3")

    def record(index: int) -> dict:
        try:
            return records[index]
        except Exception as error:  # of many kinds, from array_record and the image decoder
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise UserError(f"{name} {config.split} {index} cannot be read: {reason}") from None

    def prepared(index: int) -> np.ndarray:
        image = np.asarray(record(index)["image"])
        if (image.shape[-1], channels) == (1, 3):
            image = np.repeat(image, 3, axis=-1)
        return preprocess.to_square(image, config.image_size, config.resize)

    shape = tuple(map(int, prepared(0).shape))

    def one(index: int) -> np.ndarray:
        image = prepared(index)
        if image.shape != shape:
            found, first = ("x".join(map(str, s)) for s in (image.shape, shape))
            differs = f"{name}: image {index} is {found}, where image 0 is {first}; set "
            raise UserError(differs, fields.IMAGE_SIZE, " and ", fields.CHANNELS)
        return image

    labels = np.zeros(len(records), np.int32)
    if num_classes:
        labels = _labels(builder, config.split, record, len(records), name)
        labels, num_classes = checked_labels(labels, len(records), num_classes, name)
    identity = (info.full_name, config.split, len(records), shape, config.resize)
    return Source(
        name=name.split(":")[0].replace("/", "_"),
        split=config.split,
        image_shape=shape,
        labels=labels,
        num_classes=num_classes,
        read=in_threads(one, shape),
        preprocessing=preprocess.description(config.image_size, config.resize),
        # A version names the content in TFDS; what was prepared is not read again.
        fingerprint_of=lambda: hashlib.sha256(repr(identity).encode()).hexdigest(),
        image_name=f"{name} {config.split} {{}}".format,
    )


def _labels(
    builder, split: str, record: Callable[[int], dict], count: int, name: str
) -> np.ndarray:
    """The label of every record, [N]; 0 for one that cannot be read, which its image then tells."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}  # which would take nearly all of the time
    records = builder.as_data_source(split=split, decoders=decoders)

    def label(index: int) -> int:
        try:
            return int(records[index]["label"])
        except Exception:  # of many kinds, from array_record; the whole record is then the judge
            try:
                return int(record(index)["label"])
            except UserError:
                return 0

    # In parts, because whatever the pool is given it keeps all of, from the start.
    parts = [range(n, min(n + PART, count)) for n in range(0, count, PART)]
    labels, progress = np.zeros(count, np.int32), Progress(f"labels of {name}", count, "records")
    with progress, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda part: [label(index) for index in part], parts)
        for part, values in zip(parts, found, strict=True):
            labels[part.start : part.stop] = values
            progress.add(len(part))
    return labels


def _open(name: str, path: str, split: str):
    """The builder of a data set that is there and has this split."""
    import tensorflow_datasets as tfds

    if not name:
        raise UserError(fields.TFDS_NAME, " is ''; it must name a data set, such as cifar10")
    if is_bucket(path):
        must = (
            "TensorFlow Datasets' own must be in a folder: make a prepared set of it, which may be"
        )
        where = "in a bucket: python -m diffusion_distill.data.prepare"
        raise UserError(fields.PATH, f" is {path}; {must} {where}")
    try:
        builder = tfds.builder(name, data_dir=str(as_path(path)) if path else None)
        splits = list(builder.info.splits)
        if not splits or split in splits:
            builder.as_data_source(split=split)
            return builder
    except Exception as error:  # tfds raises errors of many kinds, most of many lines
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        folder = f" --data_dir={path}" if path else ""
        raise UserError(
            fields.TFDS_NAME,
            f": {name} cannot be read from "
            f"{path or 'the default folder of tfds'} ({reason}). Get it with: pip install "
            "tensorflow-datasets tensorflow && "
            f"tfds build {name} --file_format=array_record{folder}",
        ) from None
    raise UserError(fields.SPLIT, f" is {split!r}; {name} has {', '.join(splits)}")
