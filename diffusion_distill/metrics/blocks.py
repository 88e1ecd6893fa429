"""Features of a set of images, block by block: what was computed once is not computed again.

An image is a function of its index, so a set of images is a function from indices to a batch of
them, and so are its features. They are handed on in blocks of a fixed number of images by index:
whatever the batch size and the number of devices, what is accumulated over blocks is accumulated
in the same order. Blocks may be kept in files, so that a measurement that was stopped goes on.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from diffusion_distill.data.batches import batches_of
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import load_arrays, remove, save_arrays

BLOCK = 256  # images: what a stop can cost

Arrays = dict[str, np.ndarray]

# Indices int [B] -> arrays of B rows each, best left on the devices.
BatchFn = Callable[[np.ndarray], dict[str, jax.Array]]

# (images done so far, images in all), called after each batch; what it raises ends the work.
OnBatch = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class BlockStore:
    """Blocks in files, one each."""

    folder: Path  # made with the first block
    # plain JSON values that tell these blocks from any others: blocks of other values in the same
    # folder are replaced
    made_of: dict
    say: Callable[[str], None] = print  # where a damaged block is spoken of

    def load(self, number: int) -> Arrays | None:
        """A block's arrays; see `read`."""
        return self.read(self._path(number))

    def read(self, path: Path) -> Arrays | None:
        """A file's arrays; None where it is missing, damaged, or of something else."""
        try:
            arrays, made_of = load_arrays(path)
        except FileNotFoundError:
            return None
        except UserError as error:
            self.say(f"warning: {error}; it is computed again")
            return None
        return arrays if made_of == self.made_of else None

    def save(self, number: int, arrays: Arrays) -> None:
        """Keeps a block."""
        save_arrays(self._path(number), arrays, self.made_of)

    def clear(self) -> None:
        """Removes them all."""
        remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def in_blocks(
    batch_fn: BatchFn,
    count: int,
    batch_size: int,
    store: BlockStore | None = None,
    on_batch: OnBatch = lambda done, count: None,
    start: int = 0,
) -> Iterator[Arrays]:
    """The arrays of images `start` to count - 1, BLOCK at a time, in order.

    Batches begin at multiples of batch_size wherever the work goes on from, so the same program
    computes an image from the same batch, and a set that was stopped ends with the same bits.

    Args:
        batch_fn: what makes a batch; the last one is filled up with the last image.
        store: blocks that it has are taken from there, and the others are kept there.
        start: the first image; a multiple of BLOCK, or count.
    """
    rest = None
    for number, first in enumerate(range(start, count, BLOCK), start // BLOCK):
        block = store.load(number) if store else None
        if block is not None:
            rest = None
        else:
            rest = rest or _Rows(batch_fn, first, count, batch_size, on_batch)
            block = rest.take(min(BLOCK, count - first))
            if store:
                store.save(number, block)
        yield block


class _Rows:
    """Rows of batches one after another, from image `first` on, taken any number at a time."""

    def __init__(self, batch_fn, first, count, batch_size, on_batch):
        self._batches = _batches(batch_fn, first, count, batch_size, on_batch)
        self._next, self._held = first, []  # batches: (index of the first row, arrays)

    def take(self, size: int) -> Arrays:
        end = self._next + size
        while not self._held or self._end() < end:
            self._held.append(next(self._batches))
        cut = [
            {name: x[max(self._next - start, 0) : end - start] for name, x in arrays.items()}
            for start, arrays in self._held
        ]
        self._held = self._held[-1:] if self._end() > end else []
        self._next = end
        return {name: np.concatenate([arrays[name] for arrays in cut]) for name in cut[0]}

    def _end(self) -> int:
        start, arrays = self._held[-1]
        return start + len(next(iter(arrays.values())))


def _batches(batch_fn, first, count, batch_size, on_batch):
    """(index of the first row, arrays on the host), from the batch that holds image `first` on.

    One batch is made on the devices while the one before it is fetched.
    """
    late = None
    for indices in batches_of(count, batch_size, first // batch_size * batch_size):
        now = int(indices[0]), batch_fn(indices)
        if late is not None:
            yield _fetched(late, count, on_batch)
        late = now
    yield _fetched(late, count, on_batch)


def _fetched(batch, count, on_batch):
    start, arrays = batch
    arrays = {name: fetch(x)[: count - start] for name, x in arrays.items()}
    on_batch(start + len(next(iter(arrays.values()))), count)
    return start, arrays
