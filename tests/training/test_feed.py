"""Batches are the same whether they are gathered on the device or read ahead."""

import threading

import jax
import numpy as np
import pytest

from diffusion_distill.data.batches import batch_indices, gather
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.data.sources import digits
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.run import Programs, check, run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.stages import plan
from diffusion_distill.training.feed import READ_AHEAD, Feed
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import init_teacher
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update
from tests.training.networks import Small

RNG = np.random.default_rng(0)
SOURCE = from_arrays(RNG.integers(0, 256, (50, 4, 4, 3), np.uint8), RNG.integers(0, 5, 50))
CALLS = [(0, 1), (1, 3), (4, 2)]


@pytest.mark.parametrize("on_device", ["always", "never"])
def test_each_call_gets_the_images_and_labels_of_its_batches(on_device):
    feed = Feed(SOURCE, make_mesh(), on_device)
    for (first, count), (f, c, rows) in zip(CALLS, feed.batches(3, 8, 16, CALLS), strict=True):
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
    calls = Feed(source, make_mesh(), "never").batches(0, 0, 8, ((k, 1) for k in range(1000)))
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
        list(Feed(source, make_mesh(), "never").batches(0, 0, 8, CALLS))


def test_batches_that_were_read_ahead_make_the_updates_of_those_gathered(tiny_config):
    stage, mesh = plan(tiny_config)[0], make_mesh()
    model, source = Small(num_classes=10), digits()
    update = make_update(Recipe(model, tiny_config, stage, mesh))
    optimizer = make_optimizer(tiny_config, stage)
    states = []
    for on_device in ("always", "never"):
        state = init_teacher(model, optimizer, jax.random.key(0), source.image_shape, mesh)
        feed = Feed(source, mesh, on_device)
        for _, _, rows in feed.batches(0, 0, 16, [(k, 1) for k in range(6)]):
            this_round = Round(np.int32(4), np.int32(12))
            state, _ = update(state, None, feed.data, rows, jax.random.key(1), this_round)
        states.append(state)
    # Two programs: one gathers, the other does not, and XLA may round them differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *states)


def test_the_config_says_how_a_run_reads(tiny_config, tmp_path):
    for on_device in ("always", "never"):
        tiny_config.runtime.data_on_device = on_device
        feed = Programs(check(tiny_config, tmp_path / "run")).feed
        assert (feed.data is None) == (on_device == "never")


@pytest.mark.slow
def test_a_run_that_reads_ahead_ends_with_the_weights_of_one_that_does_not(
    finished, tiny_config, tmp_path
):
    config = tiny_config
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
