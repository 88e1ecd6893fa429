"""Blocks of features: the same arrays however they are computed, stopped or damaged."""

import numpy as np
import pytest

from diffusion_distill.metrics import blocks
from diffusion_distill.metrics.blocks import BlockStore, in_blocks
from diffusion_distill.metrics.frechet import statistics

COUNT = 150
TABLE = np.random.default_rng(0).normal(size=(COUNT, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 32)


def look_up(indices):
    return {"features": TABLE[indices], "index": indices}


def joined(found):
    return np.concatenate([block["features"] for block in found])


@pytest.mark.parametrize("batch_size", [1, 7, 32, 33, 64, 150, 1000])
def test_blocks_hold_the_same_rows_at_any_batch_size(batch_size):
    found = list(in_blocks(look_up, COUNT, batch_size))
    assert [len(block["features"]) for block in found] == [32, 32, 32, 32, 22]
    np.testing.assert_array_equal(joined(found), TABLE)
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in found]), np.arange(COUNT))


def test_statistics_do_not_depend_on_the_batch_size_to_the_bit():
    expected = statistics(b["features"] for b in in_blocks(look_up, COUNT, 7))
    for batch_size in (32, 50, 150):
        got = statistics(b["features"] for b in in_blocks(look_up, COUNT, batch_size))
        np.testing.assert_array_equal(got.mean, expected.mean)
        np.testing.assert_array_equal(got.covariance, expected.covariance)


@pytest.mark.parametrize("batch_size", [7, 32, 50])
def test_what_was_stopped_goes_on_with_the_batches_it_would_have_made(tmp_path, batch_size):
    """Features here depend on the batch, as rounding does: the same bits need the same batches."""
    made = []

    def batch_fn(indices):
        made.append(int(indices[0]))
        return {"features": TABLE[indices] + np.float32(indices.sum())}

    def stop(done, count):
        if done > 110:
            raise KeyboardInterrupt

    expected = joined(in_blocks(batch_fn, COUNT, batch_size))
    assert made == list(range(0, COUNT, batch_size))
    store = BlockStore(tmp_path / "blocks", {"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        list(in_blocks(batch_fn, COUNT, batch_size, store, stop))
    made.clear()
    np.testing.assert_array_equal(joined(in_blocks(batch_fn, COUNT, batch_size, store)), expected)
    assert made[0] > 0
    made.clear()
    np.testing.assert_array_equal(joined(in_blocks(batch_fn, COUNT, batch_size, store)), expected)
    assert made == []


def test_a_damaged_block_is_spoken_of_and_computed_again(tmp_path):
    said = []
    store = BlockStore(tmp_path, {"seed": 1}, said.append)
    list(in_blocks(look_up, COUNT, 10, store))
    file = tmp_path / "000002.npz"
    whole = file.read_bytes()
    # The last 22 bytes are the end of the zip's directory, whose comment nobody reads.
    places = np.linspace(0, len(whole) - 23, 40).astype(int)
    for damaged in [whole[:100], b"", *[_flipped(whole, place) for place in places]]:
        file.write_bytes(damaged)
        np.testing.assert_array_equal(joined(in_blocks(look_up, COUNT, 10, store)), TABLE)
    assert len(said) >= 30
    assert all(line.startswith(f"warning: {file} is ") for line in said)


def _flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def test_blocks_of_something_else_are_not_taken(tmp_path):
    list(in_blocks(look_up, COUNT, 10, BlockStore(tmp_path, {"seed": 1})))

    def other(indices):
        return {"features": -TABLE[indices]}

    found = in_blocks(other, COUNT, 10, BlockStore(tmp_path, {"seed": 2}))
    np.testing.assert_array_equal(joined(found), -TABLE)


def test_progress_is_of_images(tmp_path):
    seen = []
    list(in_blocks(look_up, COUNT, 40, on_batch=lambda *of: seen.append(of)))
    assert seen == [(40, COUNT), (80, COUNT), (120, COUNT), (150, COUNT)]
