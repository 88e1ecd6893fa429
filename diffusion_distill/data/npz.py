"""Arrays in an .npz file."""

import ml_collections

from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_npz


def load(config: ml_collections.ConfigDict) -> Source:
    """The arrays in config.path: `images` uint8 [N, H, W, C] and, where there are, `labels` [N].

    As in sample files of other projects, images may be `arr_0`, and an only array have any name.
    config.split says what to call them. All are kept in memory.

    Raises:
        UserError: the file is missing, damaged, or has other arrays; names file and array.
    """
    path = as_path(config.path)
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    if "images" not in arrays and ("arr_0" in arrays or len(arrays) == 1):
        arrays["images"] = arrays.get("arr_0", next(iter(arrays.values())))
    if "images" not in arrays:
        raise UserError(f"{path} has the arrays {', '.join(arrays) or 'none'}; it must have images")
    return from_arrays(arrays["images"], arrays.get("labels"), name=str(path), split=config.split)
