"""How fast batches of random images are read: the prepared format, and array_record beside it.

    python benchmarks/reading.py --count=100000 --size=64
    python benchmarks/reading.py --pictures=2000 --size=64

The first writes a set of random pixels to a temporary folder, reads random batches from it as
training does, and prints images a second. What is read stays in the page cache, so this is the
speed of the program, not of the disk; --drop_caches empties the cache first (Linux, as root).

The second writes JPEG files of 500x375, about ImageNet's size, and prints how many a second
`prepare` crops, resizes and writes, by each of its two ways to resize.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from diffusion_distill.config import base
from diffusion_distill.data import folder, prepared, write_prepared
from diffusion_distill.data.batches import batch_indices
from diffusion_distill.data.preprocess import RESIZES
from diffusion_distill.data.source import from_arrays

_COUNT = flags.DEFINE_integer("count", 100_000, "Images in the set.")
_SIZE = flags.DEFINE_integer("size", 64, "Their height and width.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 2048, "Images read at once.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "To read for, each way.")
_DROP_CACHES = flags.DEFINE_bool("drop_caches", False, "Empty the page cache before each.")
_PICTURES = flags.DEFINE_integer("pictures", 0, "Time `prepare` on a folder of so many, instead.")


def rate(read, size: int) -> float:
    """Images a second of random batches, in the order of training."""
    if _DROP_CACHES.value:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    began, step = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS.value:
        read(batch_indices(0, 0, step, _BATCH_SIZE.value, size))
        step += 1
    return step * _BATCH_SIZE.value / (time.perf_counter() - began)


def write_array_record(path: str, images: np.ndarray) -> None:
    """Groups of one record: what random access is fastest with."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for image in images:
        writer.write(image.tobytes())
    writer.close()


def array_record_read(path: str, shape: tuple[int, ...]):
    """Reads a batch with the library's own parallel read."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path, "readahead_buffer_size:0")

    def read(indices):
        records = reader.read([int(i) for i in indices])
        return np.frombuffer(b"".join(records), np.uint8).reshape(-1, *shape)

    return read


def write_pictures(root: Path, count: int) -> None:
    """Smooth colours with some noise, which JPEG packs about as well as photographs."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        corners = rng.integers(0, 256, (8, 10, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(corners).resize((500, 375), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:06}.jpg", quality=90)


def time_folder(root: Path, count: int, size: int) -> dict:
    """Files a second that `prepare` makes a set of, for each way to resize."""
    write_pictures(root / "pictures", count)
    row = {"pictures": count, "size": size, "cores": os.cpu_count()}
    for resize in RESIZES:
        config = base().data
        config.path, config.folder_labels = str(root / "pictures"), False
        config.image_size, config.resize = size, resize
        began = time.perf_counter()
        write_prepared.write(folder.load(config), root / resize, {})
        row[f"folder, {resize}: prepared/s"] = round(count / (time.perf_counter() - began))
    return row


def time_reading(root: Path, count: int, size: int) -> dict:
    """Images a second written and read, from the prepared format and from array_record."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    began = time.perf_counter()
    write_prepared.write(from_arrays(images), root / "train", {})
    wrote = count / (time.perf_counter() - began)
    config = base().data
    config.name, config.path = "prepared", str(root)
    began = time.perf_counter()
    source = prepared.load(config)
    opened = time.perf_counter() - began
    row = {"images": count, "size": size, "batch": _BATCH_SIZE.value, "cores": os.cpu_count()}
    row["prepared: written/s"] = round(wrote)
    row["prepared: seconds to open"] = round(opened, 2)
    row["prepared: read/s"] = round(rate(source.images, count))
    try:
        write_array_record(str(root / "set.array_record"), images)
        read = array_record_read(str(root / "set.array_record"), images.shape[1:])
        row["array_record: read/s"] = round(rate(read, count))
    except ImportError:
        row["array_record: read/s"] = None
    return row


def main(_):
    root = Path(tempfile.mkdtemp())
    try:
        if _PICTURES.value:
            row = time_folder(root, _PICTURES.value, _SIZE.value)
        else:
            row = time_reading(root, _COUNT.value, _SIZE.value)
        print(json.dumps(row))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    app.run(main)
