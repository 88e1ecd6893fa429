"""What the files of a host are: held by one process at a time."""

import contextlib
import shutil

import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.storage import files
from diffusion_distill.storage.files import locked, locked_in_turn


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
