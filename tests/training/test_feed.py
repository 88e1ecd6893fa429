"""Batches are the same whether they are gathered on the device or read ahead."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_distill.data.batches import batch_indices, gather
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.run import run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.training.feed import READ_AHEAD, Feed
from tests.conftest import tiny_config

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
SOURCE = from_arrays(RNG.integers(0, 256, (50, 4, 4, 3), np.uint8), RNG.integers(0, 5, 50))
CALLS = [(0, 1), (1, 3), (4, 2)]


@pytest.mark.parametrize("on_device", ["always", "never"])
def test_each_call_gets_the_images_and_labels_of_its_batches(on_device):
    feed = Feed(SOURCE, make_mesh(), on_device)
    for (first, count), (f, c, rows) in zip(CALLS, feed.calls(3, 8, 16, CALLS), strict=True):
        assert (f, c) == (first, count)
        for k in range(count):
            wanted = batch_indices(3, 8, first + k, 16, len(SOURCE))
            row = jax.tree.map(lambda r, k=k: r[k], rows)
            images, labels = row if feed.data is None else gather(feed.data, row)
            np.testing.assert_array_equal(images, SOURCE.images(wanted))
            np.testing.assert_array_equal(labels, SOURCE.labels[wanted])


def test_a_small_data_set_lives_on_the_device_and_a_large_one_is_read_ahead():
    assert Feed(SOURCE, make_mesh(), "auto").data is not None
    shape = (1024, 1024, 3)
    large = Source("large", "train", shape, np.zeros(400, np.int32), 0, read=None)
    assert Feed(large, make_mesh(), "auto").data is None


def counting(source):
    """The source, and a list that grows by one at each read."""
    reads = []

    def read(indices):
        reads.append(threading.current_thread().name)
        return source.read(indices)

    return Source(**{**vars(source), "read": read}), reads


def test_reading_goes_ahead_by_a_set_number_of_calls_and_ends_when_closed():
    source, reads = counting(SOURCE)
    calls = Feed(source, make_mesh(), "never").calls(0, 0, 8, ((k, 1) for k in range(1000)))
    next(calls)
    next(calls)
    calls.close()
    assert len(reads) <= 2 + READ_AHEAD
    assert threading.current_thread().name not in reads
    assert not [t for t in threading.enumerate() if t.name.startswith("read ahead")]


def test_what_cannot_be_read_is_raised_where_it_is_asked_for():
    def read(indices):
        raise UserError("a.png cannot be read")

    source = Source(**{**vars(SOURCE), "read": read})
    with pytest.raises(UserError, match="a.png cannot be read"):
        list(Feed(source, make_mesh(), "never").calls(0, 0, 8, CALLS))


def test_a_run_that_reads_ahead_ends_with_the_weights_of_one_that_does_not(finished, tmp_path):
    config = tiny_config()
    config.distill.end_steps = 2
    config.runtime.data_on_device = "never"
    config.eval.baselines = ()
    setup = run_config(config, tmp_path / "run")
    abstract = setup.abstract(setup.stages["student_0002"]).ema_params
    streamed, resident = (
        checkpoints.load_ema_params(checkpoints.folder(path, "student_0002"), 6, abstract)
        for path in (setup.workdir.path, finished[0])
    )
    # Two programs: one gathers, the other does not, and XLA may round them differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), streamed, resident)


def test_each_of_eight_devices_has_its_own_part_read():
    script = textwrap.dedent(
        """
        import jax
        jax.config.update("jax_num_cpu_devices", 8)
        import numpy as np
        from diffusion_distill.training.feed import Feed
        from diffusion_distill.devices.sharding import make_mesh
        from tests.training.test_feed import SOURCE, counting

        sizes = []
        source, _ = counting(SOURCE)
        source = type(source)(**{**vars(source), "read": lambda i: sizes.append(len(i)) or SOURCE.read(i)})
        (_, _, rows), = Feed(source, make_mesh(), "never").calls(0, 0, 16, [(0, 2)])
        assert sizes == [4] * 8, sizes  # two updates, two images of each
        assert {s.data.shape for s in rows.images.addressable_shards} == {(2, 2, 4, 4, 3)}
        (_, _, indices), = Feed(SOURCE, make_mesh(), "always").calls(0, 0, 16, [(0, 2)])
        np.testing.assert_array_equal(rows.images, SOURCE.images(np.asarray(indices)))
        """  # noqa: E501
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
