"""Arrays in a file that says what they were made of, with a checksum. Nothing is unpickled."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from diffusion_distill.devices.distributed import on_main, several
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import read_npz, write_atomically

_HEADER = "header"  # the entry of the npz that holds what is not an array, as JSON


def save_arrays(path: Path, arrays: dict[str, np.ndarray], made_of: dict) -> None:
    """Writes an npz of arrays of numbers, whole or not at all; its folder is made.

    `made_of` says in plain JSON values what the arrays were computed from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"made_of": made_of, "sha256": _sha256(arrays)})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{_HEADER: np.array(header)})
    write_atomically(path, buffer.getbuffer())


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, made_of) of a file that `save_arrays` wrote; of several processes the first reads.

    Raises UserError where the file does not match its checksum, FileNotFoundError where there is
    none.
    """
    try:
        file = io.BytesIO(on_main(path.read_bytes)) if several() else None
        arrays = read_npz(path, file)
        header = json.loads(str(arrays.pop(_HEADER)))
        expected, made_of = header["sha256"], header["made_of"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if _sha256(arrays) != expected:
        raise UserError(f"{path} is damaged: its arrays do not match their SHA-256")
    return arrays, made_of


def _sha256(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()
