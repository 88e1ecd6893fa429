"""Checkpoints come back to the bit, and damage never comes back at all."""

import errno
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.runs import checkpoints
from diffusion_distill.training.state import TrainState

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.identity())


def make_state(seed: int) -> TrainState:
    """A state no two leaves of which are alike, some of them not round in any base."""
    rng = np.random.default_rng(seed)

    def weights():
        return {
            "down_0.block_0": {"kernel": jnp.float32(rng.normal(size=(3, 3, 4, 8)))},
            "conv_out": {"bias": jnp.float32(rng.normal(size=8))},
        }

    params = weights()
    opt_state = jax.tree.map(
        lambda a: a + jnp.asarray(rng.normal(size=a.shape), a.dtype), OPTIMIZER.init(params)
    )
    return TrainState(jnp.int32(seed), params, weights(), opt_state)


def abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def restored(whole, abstract):
    return TrainState.of_trees(whole.trees(abstract.trees()))


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three saves, of which the newest two are kept."""
    directory = tmp_path_factory.mktemp("stage") / "checkpoints"
    writer = checkpoints.Writer(directory, kept=2)
    for step in (100, 200, 300):
        writer.save(step, make_state(step).trees(), {"seconds": step / 10})
    writer.close()
    return directory


@pytest.fixture
def directory(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "stage" / "checkpoints")


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_trained(tmp_path):
    said = r"n\\xfc/teacher/checkpoints: a workdir's path must be UTF-8"
    with pytest.raises(UserError, match=said):
        checkpoints.folder(tmp_path / "n\udcfc", "teacher")
    assert checkpoints.folder(tmp_path / "n\u00fc", "teacher").name == "checkpoints"


def test_the_newest_are_kept(directory):
    assert checkpoints.steps(directory) == [300, 200]


def test_a_save_is_not_disturbed_by_the_update_after_it(tmp_path):
    """Updates write over the donated state while it is still being saved in the background."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        return jax.tree.map(lambda a: a + 1, state)

    weights = {"kernel": jnp.arange(2_000_000, dtype=jnp.float32)}
    state = TrainState(jnp.int32(0), weights, jax.tree.map(jnp.copy, weights), ())
    writer = checkpoints.Writer(tmp_path / "checkpoints", kept=2)
    for step in range(3):
        expected = jax.tree.map(np.array, state)
        writer.save(step, state.trees(), {})
        shapes = abstract(state)
        for _ in range(5):
            state = update(state)
        writer.wait()
        whole = checkpoints.verify(tmp_path / "checkpoints", step)
        assert_same_bits(restored(whole, shapes), expected)
    writer.close()


@pytest.mark.parametrize("step", [200, 300])
def test_everything_comes_back_to_the_bit(directory, step):
    whole, state = checkpoints.verify(directory, step), make_state(step)
    assert_same_bits(restored(whole, abstract(state)), state)
    assert whole.meta() == {"seconds": step / 10}


@pytest.mark.filterwarnings("error")
def test_reading_warns_of_nothing(directory, caplog):
    state = make_state(300)
    whole = checkpoints.verify(directory, 300)
    restored(whole, abstract(state)), whole.meta()
    checkpoints.load_ema_params(directory, 300, abstract(state.ema_params))
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []


def test_averaged_weights_need_nothing_else_of_the_checkpoint(directory):
    """They are read from a folder of their own; the state's may be as large as it likes."""
    expected = make_state(300).ema_params
    shutil.rmtree(directory / "300" / "state")
    loaded = checkpoints.load_ema_params(directory, 300, abstract(expected))
    assert_same_bits(loaded, expected)
    for file in all_files(directory, 300):
        if file.parts[0] == "ema_params":
            path = directory / "300" / file
            before = path.read_bytes()
            damage(path, "flip")
            with pytest.raises(CheckpointError, match=f"{file.as_posix()} does not match"):
                checkpoints.load_ema_params(directory, 300, abstract(expected))
            path.write_bytes(before)


def all_files(directory, step):
    path = directory / str(step)
    return sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file() and p.stat().st_size)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    elif how == "truncate":
        del content[-1:]
    elif how == "zero":
        content[:] = bytes([content[0] ^ 255]) + bytes(len(content) - 1)
    elif how == "remove":
        path.unlink()
        return
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "truncate", "zero", "remove"])
def test_damage_to_any_file_is_found_and_named(directory, how):
    for file in all_files(directory, 300):
        path = directory / "300" / file
        before = path.read_bytes()
        damage(path, how)
        with pytest.raises(CheckpointError, match=r"checkpoint .*/300 cannot be used") as error:
            checkpoints.verify(directory, 300)
        assert file.as_posix() in str(error.value) or file.name == "sha256.json"
        path.write_bytes(before)
    checkpoints.verify(directory, 300)


LEFT = [
    ".DS_Store",
    "._manifest.ocdbt",
    "Thumbs.db",
    ".nfs0001",
    "d (copy)/1",
    "@eaDir/x@Syno",
    "1",
]


@pytest.mark.parametrize("name", LEFT)
def test_what_a_system_leaves_in_a_checkpoint_is_no_damage(directory, name, tmp_path):
    """Nor does it disturb what is read, saved next, or removed as the oldest."""
    folders = [directory, *(p for p in directory.rglob("*") if p.is_dir())]
    for file in (folder / name for folder in folders):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    expected, said = make_state(300), []
    whole = checkpoints.newest_whole(directory, said.append)
    assert (whole.step, said) == (300, [])
    assert_same_bits(restored(whole, abstract(expected)), expected)
    assert whole.meta() == {"seconds": 30.0}
    loaded = checkpoints.load_ema_params(directory, 300, abstract(expected.ema_params))
    assert_same_bits(loaded, expected.ema_params)
    checkpoints.set_aside_newer(directory, whole)
    writer = checkpoints.Writer(directory, kept=2)
    writer.save(400, make_state(400).trees(), {})
    writer.close()
    assert checkpoints.steps(directory) == [400, 300]


def test_what_a_system_leaves_while_a_checkpoint_is_written_is_not_part_of_it(directory):
    writer = checkpoints.Writer(directory, kept=2)
    finish, left = writer._manager.wait_until_finished, directory / "400" / "state" / ".DS_Store"

    def finish_and_leave():
        finish()
        if left.parent.exists():  # a save waits for the one before
            left.write_text("x")

    writer._manager.wait_until_finished = finish_and_leave
    writer.save(400, make_state(400).trees(), {})
    writer.close()
    left.unlink()
    assert checkpoints.verify(directory, 400).step == 400


def test_falls_back_to_the_newest_that_is_whole_and_says_why(directory):
    damage(directory / "300" / "ema_params" / "manifest.ocdbt", "flip")
    said = []
    assert checkpoints.newest_whole(directory, said.append).step == 200
    assert len(said) == 1
    assert "300 cannot be used: ema_params/manifest.ocdbt does not match" in said[0]
    damage(directory / "200" / "state" / "_METADATA", "remove")
    assert checkpoints.newest_whole(directory, said.append) is None


def test_an_unfinished_or_empty_folder_is_no_checkpoint(directory):
    (directory / "300" / "sha256.json").unlink()
    (directory / "400").mkdir()
    assert not checkpoints.is_finished(directory, 300)
    assert not checkpoints.is_finished(directory, 400)
    said = []
    assert checkpoints.newest_whole(directory, said.append).step == 200
    assert all("writing it was cut off" in line for line in said)


def test_a_stage_without_checkpoints(tmp_path):
    assert checkpoints.newest_whole(tmp_path / "nothing", print) is None


def test_going_on_from_an_older_one_can_write_the_newer_again(directory):
    """Damaged folders are kept for a person to look at, unfinished ones are not."""
    damage(directory / "300" / "state" / "_METADATA", "flip")
    shutil.copytree(directory / "300", directory / "400")
    (directory / "400" / "sha256.json").unlink()
    whole = checkpoints.newest_whole(directory, lambda line: None)
    checkpoints.set_aside_newer(directory, whole)
    assert checkpoints.steps(directory) == [200]
    assert [p.name for p in (directory.parent / "damaged").iterdir()] == ["300-0"]
    writer = checkpoints.Writer(directory, kept=2)
    writer.save(300, make_state(300).trees(), {})
    writer.close()
    again = checkpoints.verify(directory, 300)
    assert_same_bits(restored(again, abstract(make_state(300))), make_state(300))


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"state/a": 1}'])
def test_checksums_that_say_something_else_are_damage(directory, content):
    (directory / "300" / "sha256.json").write_text(content)
    said = []
    assert checkpoints.newest_whole(directory, said.append).step == 200
    assert len(said) == 1


def test_a_file_that_the_disk_cannot_read_is_damage(directory, monkeypatch):
    def failing(path, below, wanted):
        raise OSError(errno.EIO, "Input/output error", f"{path}/state")

    monkeypatch.setattr(checkpoints, "_checksums", failing)
    with pytest.raises(CheckpointError, match="state cannot be read: Input/output error"):
        checkpoints.verify(directory, 300)


def test_every_file_is_in_the_checksums(directory):
    listed = json.loads((directory / "300" / "sha256.json").read_text())
    path = directory / "300"
    there = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert there == set(listed) | {"sha256.json"}
    assert {name.split("/")[0] for name in listed} >= {"state", "ema_params", "meta"}


def test_a_full_disk_is_told_in_one_line_and_the_older_one_stays(directory, monkeypatch):
    def full(path, below, wanted):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    writer = checkpoints.Writer(directory, kept=2)
    monkeypatch.setattr(checkpoints, "_checksums", full)
    writer.save(400, make_state(400).trees(), {})
    with pytest.raises(CheckpointError, match=r"/400 could not be written: .*No space left"):
        writer.wait()
    writer.close()
    monkeypatch.undo()
    assert checkpoints.newest_whole(directory, lambda line: None).step == 300


def test_a_disk_that_is_full_at_once_is_told_in_one_line(directory, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("A long story.\nRESOURCE_EXHAUSTED: No space left on device")

    writer = checkpoints.Writer(directory, kept=2)
    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"/400 could not be written: RESOURCE_EXHAUSTED: No"):
        writer.save(400, make_state(400).trees(), {})
    writer.close()
