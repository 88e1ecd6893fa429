"""How batches reach the devices: gathered there where the data set fits, else read ahead."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_distill.data.batches import Batch, batch_indices
from diffusion_distill.data.source import Source
from diffusion_distill.devices.sharding import batched, place, replicated

RESIDENT = 2**30  # bytes; "auto" keeps no larger data set on every device
READ_AHEAD = 2  # compiled calls whose batches are read while one runs


class Feed:
    """The batches of a data set, on the devices of a mesh.

    `data` is a resident data set, images and labels on every device; None for a streamed one.
    """

    def __init__(self, source: Source, mesh: Mesh, on_device: str = "auto"):
        """`on_device` is config.runtime.data_on_device."""
        self._source, self._sharding = source, batched(mesh, leading=1)
        self.data = None
        if on_device == "always" or (on_device == "auto" and source.nbytes <= RESIDENT):
            self.data = place(Batch(source.images(), source.labels), replicated(mesh))

    def batches(
        self, seed: int, rng_id: int, batch_size: int, spans: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int, jax.Array | Batch]]:
        """For each span (first step, number of updates K): (first, K, picks), what a call reads.

        picks are int32 indices [K, B] into `data`, or where that is None a Batch of uint8 images
        [K, B, H, W, C] and labels [K, B]. Each process reads no more than the part of a batch that
        its own devices hold. For the other arguments see `batch_indices`.
        """

        def indices(first, count):
            steps = range(first, first + count)
            size = len(self._source)
            return np.stack([batch_indices(seed, rng_id, s, batch_size, size) for s in steps])

        if self.data is not None:
            for first, count in spans:
                yield first, count, place(indices(first, count), self._sharding)
            return
        with contextlib.closing(_ahead(lambda span: self._read(indices(*span)), spans)) as read:
            for (first, count), batch in read:
                yield first, count, batch

    def _read(self, indices: np.ndarray) -> Batch:
        """The images at indices [K, B], each device's part read for it alone."""
        source = self._source

        def images(part):
            wanted = indices[part[:2]]
            return source.images(wanted.reshape(-1)).reshape(*wanted.shape, *source.image_shape)

        shape = (*indices.shape, *source.image_shape)
        return Batch(
            jax.make_array_from_callback(shape, self._sharding, images),
            place(source.labels[indices], self._sharding),
        )


def _ahead(work, items: Iterable) -> Iterator[tuple]:
    """(item, work(item)) in order; a thread works up to READ_AHEAD items ahead."""
    with concurrent.futures.ThreadPoolExecutor(1, "read ahead") as pool:
        queue = collections.deque()
        try:
            for item in items:
                queue.append((item, pool.submit(work, item)))
                if len(queue) > READ_AHEAD:
                    done, future = queue.popleft()
                    yield done, future.result()
            while queue:
                done, future = queue.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
