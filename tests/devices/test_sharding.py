"""The same numbers on any topology: devices, processes, weights split or not. Real processes."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_distill.devices.sharding import SPLIT_FROM, make_mesh, weight_sharding
from diffusion_distill.errors import UserError
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]

# Each: (devices of a process, how many share a copy of the weights, processes).
TOPOLOGIES = {
    "one": (1, 1, 1),
    "eight": (8, 1, 1),
    "eight_split": (8, 4, 1),
    "two_by_four": (4, 1, 2),
    "two_by_four_split": (4, 8, 2),
}


def run(what, out, directory, devices, fsdp, processes=1):
    """The arrays that a topology leaves."""
    command = [sys.executable, "-m", "tests.devices.topology", what, out, directory]
    command = [str(word) for word in [*command, devices, fsdp]]
    others = [[]]
    if processes > 1:
        port = free_port()
        others = [[str(port), str(processes), str(number)] for number in range(processes)]
    started = [
        subprocess.Popen(
            command + more, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for more in others
    ]
    for process in started:
        try:
            _, error = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, error
    with np.load(out, allow_pickle=False) as npz:
        return dict(npz)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What each topology makes, and the folder with the checkpoint of each."""
    folder = tmp_path_factory.mktemp("topologies")
    results = {
        name: run("train", folder / f"{name}.npz", folder / name, *topology)
        for name, topology in TOPOLOGIES.items()
    }
    return folder, results


@pytest.mark.parametrize("name", list(TOPOLOGIES)[1:])
def test_every_topology_makes_the_updates_and_images_of_one_device(made, name):
    one, other = made[1]["one"], made[1][name]
    assert other.keys() == one.keys()
    np.testing.assert_array_equal(other["images"], one["images"])
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5)
    assert len(one["losses"]) == 20
    for leaf in (n for n in one if n.startswith(".")):
        np.testing.assert_allclose(other[leaf], one[leaf], atol=1e-5, rtol=1e-5, err_msg=leaf)
    # Weights that differ by rounding tip a pixel by one level of 255 at most.
    assert np.abs(other["samples"].astype(int) - one["samples"]).max() <= 1
    np.testing.assert_allclose(other["from_noise"], one["from_noise"], atol=1e-4)
    assert one["samples"].std() > 10


@pytest.mark.parametrize("name", list(TOPOLOGIES))
def test_weights_averages_and_moments_are_split_alike(made, name):
    _, fsdp, _ = TOPOLOGIES[name]
    np.testing.assert_array_equal(made[1][name]["parts"], [fsdp] * 4)


def test_a_checkpoint_of_eight_devices_restores_on_two_and_then_on_one(made):
    """Written by two processes with split weights, then by one with two parts; to the bit."""
    folder, results = made
    saved = results["two_by_four_split"]
    directory = folder / "two_by_four_split"
    for devices, fsdp in ((2, 2), (1, 1)):
        restored = run("restore", folder / "restored.npz", directory, devices, fsdp)
        np.testing.assert_array_equal(restored.pop("parts"), [fsdp] * 4)
        for leaf in restored:
            np.testing.assert_array_equal(restored[leaf], saved[leaf], err_msg=leaf)
    assert (directory / "12" / "sha256.json").exists()


def rule(shape, fsdp=4):
    """Where the rule splits: a mesh of shape (2, fsdp) that holds no array."""
    mesh = jax.sharding.AbstractMesh((2, fsdp), ("data", "fsdp"))
    return weight_sharding(mesh, shape).spec


def test_the_largest_axis_that_divides_is_split():
    assert rule((64, 128)) == PartitionSpec(None, "fsdp")
    assert rule((128, 64)) == PartitionSpec("fsdp")
    assert rule((3, 3, 64, 64)) == PartitionSpec(None, None, None, "fsdp")
    assert rule((8, 1001)) == PartitionSpec("fsdp")  # the largest does not divide
    assert rule((999, 1001)) == PartitionSpec()
    assert rule((SPLIT_FROM - 4,)) == PartitionSpec()
    assert rule((SPLIT_FROM,)) == PartitionSpec("fsdp")
    assert rule(()) == PartitionSpec()
    assert rule((64, 128), fsdp=1) == PartitionSpec()


def test_a_mesh_has_as_many_shares_as_fit():
    eight = [jax.devices()[0]] * 8
    assert dict(make_mesh(4, eight).shape) == {"data": 2, "fsdp": 4}
    assert dict(make_mesh(64, eight).shape) == {"data": 1, "fsdp": 8}
    assert dict(make_mesh().shape) == {"data": len(jax.devices()), "fsdp": 1}
    with pytest.raises(UserError, match="runtime.fsdp is 3; it must divide the number of devices"):
        make_mesh(3, eight)
