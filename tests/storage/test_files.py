"""Files of this host: found, held by one process at a time, read or refused."""

import contextlib
import errno
import fcntl
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.storage import files
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import cache_folder, locked, locked_in_turn, read_npz
from diffusion_distill.validate import from_file


@pytest.mark.parametrize("each_process", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_a_lock_is_waited_for(tmp_path, monkeypatch, each_process, removed):
    monkeypatch.setattr(files, "LOOKS_EVERY", 0.0)
    path, told, other = tmp_path / "new" / ".lock", [], contextlib.ExitStack()

    def waiting(looks):
        told.append(looks)
        refused()
        if looks == 2:  # whoever holds it may remove the folder with it
            if removed:
                shutil.rmtree(path.parent)
            other.close()

    def refused():
        with pytest.raises(UserError, match=f"{path.parent} is in use by another"), locked(path):
            pass

    other.enter_context(locked_in_turn(path))
    with locked_in_turn(path, waiting, each_process=each_process):
        assert told == [0, 1, 2]
        refused()
    with locked(path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, code):
    def flock(file, how):
        raise OSError(code, "none here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=f"{tmp_path}/.lock cannot be locked: none here.* mount"):
        locked(tmp_path / ".lock").__enter__()


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/run") == cache_folder("~/run") == tmp_path / "run"
    assert as_path(Path("~")) == tmp_path
    assert as_path("a/~b") == Path("a/~b")
    (tmp_path / "mine.py").write_text("from configs.digits_distill import get_config")
    assert from_file("~/mine.py").data.name == from_file("~/mine.py:tiny").data.name == "digits"
    with pytest.raises(UserError, match="~nobody-of-that-name has no home folder"):
        as_path("~nobody-of-that-name/run")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "mine")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(open(path, "wb"), np.zeros(3)), "it is an .npy, whatever its name"),
        (lambda path: path.write_text("1 2 3"), "it is no zip file, or was cut off"),
        (lambda path: path.write_bytes(b""), "it is no zip file, or was cut off"),
        (lambda path: np.savez(path, a=np.zeros(3), b=np.array([{}])), "array b is of Python obj"),
        (write_zip, "no item named 'a.txt.npy'"),
    ],
)
def test_what_is_no_npz_of_numbers_is_told(tmp_path, write, message):
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=f"a.npz cannot be read as .npz: .*{message}") as refused:
        read_npz(tmp_path / "a.npz")
    assert "pickle" not in str(refused.value)
