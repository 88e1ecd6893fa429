"""Arrays in an .npz file."""

import zipfile
import zlib
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError


def load(config: ml_collections.ConfigDict) -> Source:
    """The arrays in config.path: `images` uint8 [N, H, W, C] and, where there are, `labels` [N].

    As in sample files of other projects, images may be `arr_0`, and an only array have any name.
    config.split says what to call them. All are kept in memory.

    Raises:
        UserError: the file is missing, damaged, or has other arrays; names file and array.
    """
    path = Path(config.path)
    arrays = read_arrays(path)
    if "images" not in arrays and ("arr_0" in arrays or len(arrays) == 1):
        arrays["images"] = arrays.get("arr_0", next(iter(arrays.values())))
    if "images" not in arrays:
        raise UserError(f"{path} has the arrays {', '.join(arrays) or 'none'}; it must have images")
    return from_arrays(arrays["images"], arrays.get("labels"), name=str(path), split=config.split)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing is unpickled.

    Raises:
        UserError: there is no such file, it is damaged, or it holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise UserError(f"{path} holds one array; it must be an .npz file")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
