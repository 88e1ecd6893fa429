"""Arrays from a file of safetensors, bfloat16 with them: safetensors.numpy reads none."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

from diffusion_distill.errors import UserError

_DTYPES = {"F32": np.dtype("float32"), "BF16": jnp.dtype("bfloat16"), "F16": np.dtype("float16")}


def read_bytes(file: Path) -> bytes:
    """A file's content. Raises UserError where there is no such file."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None


def decode(content: bytes, file: Path) -> dict[str, np.ndarray]:
    """The arrays in a file's content by name. Raises UserError where it is damaged or of others."""
    weights = {}
    try:
        for name, array in safetensors.deserialize(content):
            if array["dtype"] not in _DTYPES:
                known = ", ".join(_DTYPES)
                raise ValueError(f"{name} is {array['dtype']}; it must be one of {known}")
            flat = np.frombuffer(array["data"], _DTYPES[array["dtype"]])
            weights[name] = flat.reshape(array["shape"])
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{file} cannot be used: {error}") from None
    return weights
