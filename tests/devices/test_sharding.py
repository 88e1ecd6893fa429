"""The same numbers on any topology: devices, processes, weights split or not. Real processes."""

import functools
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_distill.devices.sharding import SPLIT_FROM, described, make_mesh, weight_sharding
from diffusion_distill.errors import UserError
from tests.commands import Command
from tests.conftest import free_port
from tests.devices import topology


def test_the_older_variable_is_named_where_it_is_what_jax_goes_by(monkeypatch):
    def devices():
        raise RuntimeError("no driver")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
    with pytest.raises(UserError, match="JAX_PLATFORM_NAME is gpu, .*; JAX_PLATFORM_NAME=cpu runs"):
        make_mesh()


@pytest.mark.parametrize("asked", ["cuda,cpu", "cuda", "tpu,cpu"])
@pytest.mark.parametrize("error", [None, RuntimeError("no driver"), AssertionError()])
def test_asked_for_an_accelerator_the_cpu_is_no_answer(monkeypatch, asked, error):
    """JAX answers in all three ways, by what is asked for, and by what is installed."""

    def devices():
        if error is not None:
            raise error
        return jax.local_devices(backend="cpu")

    monkeypatch.setattr(jax, "devices", devices)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", asked)
    try:
        why = r" \(no driver\)" if str(error) == "no driver" else ""
        line = (
            f"JAX_PLATFORMS is {asked}, but there is no {asked.split(',')[0]} here{why}; JAX_PLAT"
        )
        with pytest.raises(UserError, match=line):
            make_mesh()
        if error is None:
            for asked_for_the_cpu in ("cpu", "cpu,cuda", ""):
                jax.config.update("jax_platforms", asked_for_the_cpu)
                assert make_mesh().size == 1
    finally:
        jax.config.update("jax_platforms", before)


def test_devices_are_described():
    assert described(make_mesh()) == "devices: 1 cpu"
    gpus = [SimpleNamespace(id=n, platform="gpu", device_kind="NVIDIA H100") for n in range(8)]
    mesh = SimpleNamespace(size=8, devices=np.array(gpus))
    assert described(mesh) == "devices: 8 gpu (NVIDIA H100)"


# Each: (processes, devices of each, how many of all share a copy of the weights).
TOPOLOGIES = {
    "one": (1, 1, 1),
    "eight": (1, 8, 1),
    "eight_split": (1, 8, 4),
    "two_by_two_split": (2, 2, 2),  # in which batches are split as well
    "two_by_four_split": (2, 4, 8),
    "two_by_four": (2, 4, 1),
}
SEVERAL = [
    "two_by_two_split",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("eight", "eight_split", "two_by_four_split", "two_by_four")),
]  # fmt: skip


def run(jobs, devices, processes=1):
    """Does jobs in processes of so many devices each; see topology."""
    port = free_port()
    asked = [
        {"jobs": jobs, "devices": devices, "join": [port, processes, n] if processes > 1 else None}
        for n in range(processes)
    ]
    started = [Command("topology", json.dumps(fields), package="tests.devices") for fields in asked]
    for process, code in [(process, process.wait()) for process in started]:
        assert code == 0, process.stderr


def arrays(path):
    with np.load(path, allow_pickle=False) as npz:
        return dict(npz)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): (what a topology makes, the folder with its checkpoint), made when asked for.

    One device is this process; eight devices are one other, whether weights are split or not.
    """
    folder = tmp_path_factory.mktemp("topologies")
    together = [["eight", "eight_split"], *([n] for n in TOPOLOGIES if not n.startswith("eight"))]

    @functools.cache
    def make(names):
        processes, devices, _ = TOPOLOGIES[names[0]]
        jobs = [
            ["train", f"{folder}/{name}.npz", f"{folder}/{name}",
             processes * devices, TOPOLOGIES[name][2]]
            for name in names
        ]  # fmt: skip
        if names == ("one",):
            topology.do(*jobs[0])
        else:
            run(jobs, devices, processes)

    def made(name):
        make(next(tuple(names) for names in together if name in names))
        return arrays(folder / f"{name}.npz"), folder / name

    return made


@pytest.mark.parametrize("name", SEVERAL)
def test_every_topology_makes_the_updates_and_images_of_one_device(made, name):
    one, other = made("one")[0], made(name)[0]
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


@pytest.mark.parametrize("name", ["one", *SEVERAL])
def test_weights_averages_and_moments_are_split_alike(made, name):
    np.testing.assert_array_equal(made(name)[0]["parts"], [TOPOLOGIES[name][2]] * 4)


@pytest.mark.parametrize("name", ["one", *SEVERAL])
def test_each_device_has_its_own_part_of_a_batch_read(made, name):
    """A process reads for its own devices alone: 16 images of 20 updates, in equal parts."""
    processes, devices, _ = TOPOLOGIES[name]
    np.testing.assert_array_equal(
        made(name)[0]["reads"], [16 // (processes * devices)] * 20 * devices
    )


def test_a_checkpoint_of_four_devices_restores_on_two_and_then_on_one(made, tmp_path):
    """Written by two processes with split weights, then by one with two parts; to the bit."""
    saved, written = made("two_by_two_split")
    directory = shutil.copytree(written, tmp_path / "checkpoints")
    for devices in (2, 1):
        job = ["restore", f"{tmp_path}/{devices}.npz", str(directory), devices, devices]
        if devices == 1:
            topology.do(*job)
        else:
            run([job], devices)
        restored = arrays(tmp_path / f"{devices}.npz")
        np.testing.assert_array_equal(restored.pop("parts"), [devices] * 4)
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
