"""How fast batches of random images are read: the prepared format, and array_record beside it.

    python benchmarks/reading.py --count=100000 --size=64

Writes a set of random pixels to a temporary folder, reads random batches from it as training
does, and prints images a second. What is read stays in the page cache, so this is the speed of
the program, not of the disk; --drop_caches empties the cache first (Linux, as root).
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from diffusion_distill.config import base
from diffusion_distill.data import prepared
from diffusion_distill.data.batches import batch_indices
from diffusion_distill.data.prepare import prepare
from diffusion_distill.data.source import from_arrays

_COUNT = flags.DEFINE_integer("count", 100_000, "Images in the set.")
_SIZE = flags.DEFINE_integer("size", 64, "Their height and width.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 2048, "Images read at once.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "To read for, each way.")
_DROP_CACHES = flags.DEFINE_bool("drop_caches", False, "Empty the page cache before each.")


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


def main(_):
    count, size = _COUNT.value, _SIZE.value
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    folder = Path(tempfile.mkdtemp())
    try:
        began = time.perf_counter()
        prepare(from_arrays(images), folder / "train", {})
        wrote = count / (time.perf_counter() - began)
        config = base().data
        config.name, config.path = "prepared", str(folder)
        began = time.perf_counter()
        source = prepared.load(config)
        opened = time.perf_counter() - began
        row = {"images": count, "size": size, "batch": _BATCH_SIZE.value, "cores": os.cpu_count()}
        row["prepared: written/s"] = round(wrote)
        row["prepared: seconds to open"] = round(opened, 2)
        row["prepared: read/s"] = round(rate(source.images, count))
        try:
            write_array_record(str(folder / "set.array_record"), images)
            read = array_record_read(str(folder / "set.array_record"), images.shape[1:])
            row["array_record: read/s"] = round(rate(read, count))
        except ImportError:
            row["array_record: read/s"] = None
        print(json.dumps(row))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
