"""CIFAR-10 as its authors publish it, every file checked against its published checksum.

Its binary version and its Python version are read, unpacked or as the tar.gz. Both hold the same
records in the same order, so that a run may change from one to the other.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes the files.
"""

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data import fields
from diffusion_distill.data.download import download_file
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path, is_bucket
from diffusion_distill.storage.files import opened

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"  # as its page has it
ARCHIVE_SIZE = 170_052_171

SPLITS = {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)}
PIXELS = 3 * 32 * 32  # of a record, after its label: red, green, blue, each in rows

# Of each batch, the sha1 of its 10,000 records, which are the binary version's file, and the md5 of
# the Python version's file.
_SUMS = """
data_batch_1 aadd24acce27caa71bf4b10992e9e7b2d74c2540 c99cafc152244af753f735de768cd75f
data_batch_2 c0ba65cce70568cd57b4e03e9ac8d2a5367c1795 d4bba439e000b95fd0a9bffe97cbabec
data_batch_3 1dd00a74ab1d17a6e7d73e185b69dbf31242f295 54ebc095f3ab1f0389bbae665268c751
data_batch_4 aab85764eb3584312d3c7f65fd2fd016e36a258e 634d18415352ddfa80567beed471001a
data_batch_5 26e2849e66a845b7f1e4614ae70f4889ae604628 482c414d41f54cd18b22e5b47cb7c3cb
test_batch   67eb016db431130d61cd03c7ad570b013799c88c 40351d587109b95175f43aff81a1287e
""".split()
RECORDS_SHA1 = dict(zip(_SUMS[::3], _SUMS[1::3], strict=True))
PICKLES_MD5 = dict(zip(_SUMS[::3], _SUMS[2::3], strict=True))
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
FOLDERS = {".bin": "cifar-10-batches-bin", "": "cifar-10-batches-py"}  # by their files' suffix
LARGEST = 2**25  # bytes; a file that goes on beyond is not one of these, and is not read further


def load(config: ml_collections.ConfigDict) -> Source:
    """CIFAR-10: 32x32 colour images, 10 labels; 50,000 to train on, 10,000 to test on.

    `config.path` is a folder with the batch files, a folder that holds that folder or a tar.gz, or
    a tar.gz. Raises UserError, which names the file or the field, where that is not so, a file is
    damaged, or a field asks for what CIFAR-10 has not.
    """
    if config.split not in SPLITS:
        raise UserError(fields.SPLIT, f" is {config.split!r}; CIFAR-10 has train and test")
    if config.image_size not in (0, 32):
        must = "CIFAR-10's images are 32x32, and are not resized: it must be 0 or 32"
        raise UserError(fields.IMAGE_SIZE, f" is {config.image_size}; {must}")
    batches = _batches(_find(config.path), SPLITS[config.split])
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return from_arrays(images, labels, 10, name="cifar10", split=config.split)


def download(out: Path, url: str = URL) -> Path:
    """Gets the binary version into the folder `out`, unless it is there and whole; its path.

    Raises UserError as `download_file` does, or where a file inside is not the release's.
    """
    if is_bucket(out):
        raise UserError(f"--out={out} is a bucket; download into a folder, then copy it there")
    archive = Path(out) / ARCHIVES[0]
    if download_file(url, archive, checksum=ARCHIVE_CHECKSUM, size=ARCHIVE_SIZE):
        try:
            _batches(archive, RECORDS_SHA1)
        except UserError:
            archive.unlink()
            raise
    return archive


class _Stored:
    """What stands for NumPy's array, and for its dtype, in a pickle: what they were stored as."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows plain data and stored arrays; what else a pickle names is neither imported nor run."""

    NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")

    def find_class(self, module: str, name: str) -> type:
        if f"{module} {name}" not in self.NAMES:
            raise UserError(f"a pickle names '{module} {name}', which is no part of CIFAR-10")
        return _Stored


def _pickled_records(content: bytes) -> np.ndarray:
    """The records of a file of the Python version: a dict that Python 2 pickled."""
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    _, shape, _, by_columns, pixels = batch[b"data"].state
    records = np.empty((len(batch[b"labels"]), 1 + PIXELS), np.uint8)
    records[:, 0] = batch[b"labels"]
    order = "F" if by_columns else "C"
    records[:, 1:] = np.frombuffer(pixels, np.uint8).reshape(shape, order=order)
    return records


def _find(path: str) -> Path:
    """The folder with batch files, or the tar.gz, that config.data.path leads to."""
    found = as_path(path)
    get = f"this gets it: python -m diffusion_distill.data.prepare --dataset=cifar10 --out={found}"
    if not found.exists():
        raise UserError(fields.PATH, f": there is no {found}; {get}")
    if found.is_file() or any(_has_batches(found, suffix) for suffix in FOLDERS):
        return found
    names = [*FOLDERS.values(), *ARCHIVES]
    for name in names:
        if (found / name).exists():
            return found / name
    names += [f"data_batch_1{suffix}" for suffix in FOLDERS]
    raise UserError(fields.PATH, f": {found} holds none of {', '.join(names)}; {get}")


def _has_batches(folder: Path, suffix: str) -> bool:
    return any((folder / f"{name}{suffix}").exists() for name in RECORDS_SHA1)


def _batches(place: Path, names: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images uint8 [N, 32, 32, 3], labels uint8 [N]) of each batch, in the order of `names`."""
    names = list(names)
    read = _folder_files if place.is_dir() else _archive_files
    found = {name: _batch(file, name, content) for file, name, content in read(place, names)}
    for name in names:
        if name not in found:
            raise UserError(f"{place}: CIFAR-10's {name} is not in it")
    return [found[name] for name in names]


def _folder_files(folder: Path, names: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """(what to call a file, its batch, its content) of each batch in a folder."""
    suffix = ".bin" if _has_batches(folder, ".bin") else ""
    for name in names:
        path = folder / f"{name}{suffix}"
        if not path.exists():
            raise UserError(f"{path} is missing; the other files of CIFAR-10 are there")
        with opened(path) as file:
            yield str(path), name, file.read(LARGEST)


def _archive_files(archive: Path, names: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """As `_folder_files`, of a tar.gz of either version and any name; nothing is unpacked."""
    wanted = {f"{FOLDERS[suffix]}/{name}{suffix}": name for suffix in FOLDERS for name in names}
    try:
        with opened(archive) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            for member in tar:
                if member.name in wanted and member.isfile():
                    content = tar.extractfile(member).read(LARGEST)
                    yield f"{archive}: {member.name}", wanted[member.name], content
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged, or not a tar.gz: {error}") from error


def _batch(file: str, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of one file's content; `file` is what messages call it."""
    if file.endswith(".bin"):
        _check(file, "sha1", content, RECORDS_SHA1[name])
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    else:
        _check(file, "md5", content, PICKLES_MD5[name])
        records = _pickled_records(content)
        _check(f"what was read from {file}", "sha1", records, RECORDS_SHA1[name])
    planes = np.split(records[:, 1:], 3, axis=1)  # stacking them is twice as fast as transposing
    return np.stack(planes, axis=-1).reshape(-1, 32, 32, 3), records[:, 0]


def _check(what: str, algorithm: str, content: bytes | np.ndarray, expected: str) -> None:
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise UserError(
            f"{what} is damaged, or not CIFAR-10's: its {algorithm} is {found}, not {expected}"
        )
