"""Checkpoints that the paper's authors published: samples, measures, distils on from them.

    python -m diffusion_distill.interop.published cifar_8 --workdir=runs/cifar_8 \\
        --config=configs/cifar10_distill.py:float32 --config.data.image_size=32

makes a workdir of one, for sample, evaluate, and main, which goes on distilling from it. There are
32 of them at gs://gresearch/diffusion-distillation: {cifar, imagenet, bedroom, church}_{original,
64, 32, 16, 8, 4, 2, 1}. Each is one message of Flax's serialisation: msgpack, in which arrays are
extension types of shape, dtype and bytes, so that reading one runs no code of the file's.

    ema_params        the averaged weights, by the names of models/unet.py
    num_sample_steps  sampling steps that they are made for; 0 or missing: not known
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags
from flax import serialization, traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.runs.network import Network, with_weights
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import started_from
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import validate


@dataclasses.dataclass(frozen=True)
class Published:
    """What is used of a published file: averaged weights by name, "down_0.block_0/conv1/kernel".

    `fixed_steps` is the only number of sampling steps that they take; None where it does not say.
    """

    weights: dict[str, np.ndarray]
    fixed_steps: int | None

    @property
    def image_channels(self) -> int:
        return self.weights["conv_in/kernel"].shape[-2]

    @property
    def num_classes(self) -> int:
        """How many labels it knows, from the layer that takes them; 0 where there is none."""
        kernel = self.weights.get("class_emb/kernel")
        return 0 if kernel is None else kernel.shape[0]


def read(path: str | Path) -> Published:
    """The averaged weights of a published file. Raises UserError where it is none, or is damaged.

    They may stand below one more level, "params". GroupNorm's scale and bias, which older Flax kept
    as [1, 1, 1, C], become [C].
    """
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    content = path.read_bytes()
    try:
        fields = serialization.msgpack_restore(content)
    except Exception as error:  # of any kind: the bytes may be of anything
        why = " ".join(str(error).split()) or type(error).__name__
        found = f"its {len(content):,} bytes are no message of Flax's ({why})"
        what = f"{path} is not a published checkpoint, or is damaged or cut off"
        raise UserError(f"{what}: {found}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("ema_params"), dict):
        found = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        raise UserError(f"{path} has no ema_params, the averaged weights; it has {found}")
    params = fields["ema_params"]
    if isinstance(params.get("params"), dict):
        params = params["params"]
    weights = _weights(params, path)
    if "conv_in/kernel" not in weights or weights["conv_in/kernel"].ndim != 4:
        missing = "conv_in/kernel, of shape [3, 3, C, channels], is not in ema_params"
        what = f"{path} does not hold the weights of this U-Net: {missing}"
        raise UserError(f"{what}; there are {', '.join(list(params)[:3])}")
    return Published(weights, _fixed_steps(fields.get("num_sample_steps"), path))


def load(path: str | Path, config: ConfigDict, mesh: Mesh) -> Network:
    """The network of a published file; its channels and labels are read off the weights.

    `config` has its architecture and diffusion; data.image_size is the side of its images. Raises
    UserError where the file cannot be read or that is not given, or the weights do not fit.
    """
    published = read(path)
    side = config.data.image_size
    if side < 1:
        way_out = "set config.data.image_size to the pixels of a side"
        problem = f"{path} does not say how large its images are: {way_out}"
        raise UserError(f"config.data.image_size is {side}; {problem}")
    image_shape = (side, side, published.image_channels)
    if config.model.class_conditional and not published.num_classes:
        raise UserError(f"config.model.class_conditional is True, but {path} has no class_emb")
    classes, fixed_steps = published.num_classes, published.fixed_steps
    network = Network.untrained(config, image_shape, classes, fixed_steps, mesh)
    return with_weights(network, published.weights, str(path))


def _weights(tree: dict, path: Path) -> dict[str, np.ndarray]:
    """The leaves of a tree from a file, by name, once each is known to be an array of floats."""
    weights = {}
    for keys, value in traverse_util.flatten_dict(tree).items():
        name, above = "/".join(map(str, keys)), str(keys[-2]) if len(keys) > 1 else ""
        dtype = getattr(value, "dtype", type(value).__name__)
        if not isinstance(value, np.ndarray) or (dtype.kind != "f" and dtype.name != "bfloat16"):
            raise UserError(f"{path}: ema_params/{name} is {dtype}, not an array of floats")
        old = above.startswith("norm") and value.ndim == 4 and value.shape[:3] == (1, 1, 1)
        weights[name] = value.reshape(-1) if old else value
    return weights


def _fixed_steps(value, path: Path) -> int | None:
    if value is None:
        return None
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iu" or number.item() < 0:
        raise UserError(f"{path}: num_sample_steps is {value!r}; it must be an integer, 0 or more")
    return number.item() or None


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise UserError(f"one FILE must be given, and {len(argv) - 1} were")
    config = cli.required("config", flags.FLAGS.config)
    path = cli.required("workdir", flags.FLAGS.workdir)
    validate(config)
    network = load(argv[1], config, make_mesh())
    config = started_from(config, argv[1], network.fixed_steps)
    shape, classes = network.image_shape, network.num_classes
    run = Workdir(as_path(path), config, shape, classes, network.fixed_steps)
    run.begin()
    with run.lock():
        written = run.put_teacher(network.params)
    if not written:
        say(f"{run.path}: it has a copy of {argv[1]} already, and keeps it")
        return
    known = "" if network.fixed_steps else ", by config.distill.start_steps"
    say(f"{run.path}: its teacher is {argv[1]}, of {config.distill.start_steps} steps{known}")


if __name__ == "__main__":
    # Not above: the commands that import this module have flags of the same names.
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A file in configs/; FILE:VARIANT works.")
    flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
    cli.run(main)
