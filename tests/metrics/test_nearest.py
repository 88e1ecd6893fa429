"""Nearest images of a set."""

import numpy as np
import pytest

from diffusion_distill.metrics import nearest as module
from diffusion_distill.metrics.nearest import nearest, searched


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), np.uint8)


def brute_force(queries, real, among, count, mirror, own):
    """(indices, distances, mirrored) by differences in float64, one pair after another."""
    found = []
    for q, query in enumerate(queries.astype(float)):
        candidates = []
        for index in among:
            if own is not None and own[q] == index:
                continue
            shown = [query, query[:, ::-1]] if mirror else [query]
            each = [np.sqrt(np.mean((x - real[index]) ** 2)) for x in shown]
            candidates.append((min(each), int(index), int(np.argmin(each))))
        found.append(sorted(candidates)[:count])
    distances, indices, mirrored = np.moveaxis(np.array(found), 2, 0)
    return indices.astype(int), distances, mirrored.astype(bool)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("leave_out", [False, True])
def test_finds_what_all_pairs_give_in_any_chunks(mirror, leave_out, monkeypatch):
    real, queries = images(50, 0), images(7, 1)
    own = np.arange(7) * 2 if leave_out else None
    if leave_out:
        queries = real[own]
    among = np.arange(0, 50, 2)
    expected = brute_force(queries, real, among, 3, mirror, own)
    for chunk in (1, 72 * 10, 2**23):  # numbers: one image, ten, all
        monkeypatch.setattr(module, "CHUNK", chunk)
        found = nearest(queries, lambda n: real[n], among, 3, mirror, own)
        np.testing.assert_array_equal(found.indices, expected[0])
        np.testing.assert_allclose(found.distances, expected[1], rtol=1e-12)
        np.testing.assert_array_equal(found.mirrored, expected[2])


def test_a_copy_is_at_zero_and_a_mirrored_copy_where_mirrors_count():
    real = images(20, 0)
    queries = np.stack([real[3], real[7, :, ::-1]])
    found = nearest(queries, lambda n: real[n], np.arange(20), 1)
    assert found.distances[0, 0] == 0
    assert found.distances[1, 0] > 10
    found = nearest(queries, lambda n: real[n], np.arange(20), 1, mirror=True)
    np.testing.assert_array_equal(found.distances, 0)
    np.testing.assert_array_equal(found.indices, [[3], [7]])
    np.testing.assert_array_equal(found.mirrored, [[False], [True]])


def test_a_set_of_fewer_gives_all_it_has():
    real = images(3, 0)
    assert nearest(real, lambda n: real[n], np.arange(3), 5).indices.shape == (3, 3)
    own = np.arange(3)
    assert nearest(real, lambda n: real[n], np.arange(3), 5, own=own).indices.shape == (3, 2)


def test_what_is_searched_is_bounded_and_always_the_same():
    np.testing.assert_array_equal(searched(1797, 64), np.arange(1797))
    large = searched(1_281_167, 64 * 64 * 3)
    assert len(np.unique(large)) == len(large) == 50_000
    np.testing.assert_array_equal(large, np.sort(large))
    np.testing.assert_array_equal(large, searched(1_281_167, 64 * 64 * 3))
    assert len(searched(3_033_042, 128 * 128 * 3)) * 128 * 128 * 3 <= 2**30
