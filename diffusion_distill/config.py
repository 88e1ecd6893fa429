"""The fields of a config, their defaults, and what makes a config valid.

A file in configs/ starts from `base()` and sets what differs. Defaults are the paper's where the
paper has one. Fields under `runtime` say how to run and change no result beyond rounding: they
may differ between two starts of one workdir, and so may data.path; every other field may not.
"""

import importlib.util
import math
import numbers
from pathlib import Path

import ml_collections

from diffusion_distill.data.preprocess import RESIZES
from diffusion_distill.data.sources import SOURCES
from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.process import PARAMETERIZATIONS
from diffusion_distill.diffusion.samplers import SAMPLERS
from diffusion_distill.errors import UserError
from diffusion_distill.metrics.evaluator import METRICS
from diffusion_distill.metrics.features import FEATURES
from diffusion_distill.metrics.names import check_count
from diffusion_distill.models.unet import TIME_INPUTS

DTYPES = ("float32", "bfloat16")
LR_SCHEDULES = ("constant", "linear")
DATA_ON_DEVICE = ("auto", "always", "never")
SAMPLER_LOOPS = ("auto", "inside", "outside")


def base() -> ml_collections.ConfigDict:
    """A config with every field there is. Batch sizes are global, whatever the hardware."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of everything random: initial weights, batches, noise, dropout

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"  # one of data/sources.py: digits, cifar10, folder, npz, tfds, prepared
    data.path = ""  # the folder or file it is in; may differ between two starts of a workdir
    data.split = "train"  # what is trained on
    data.image_size = 0  # height and width; folder and tfds crop and resize to it; 0: as they are
    data.resize = "area"  # folder and tfds, how: area (as for ImageNet), antialias (as for LSUN)
    data.channels = 0  # folder and tfds: 3 makes colour of grey, 1 grey of colour; 0: as they are
    data.folder_labels = True  # folder: whether each subfolder is a label
    data.tfds_name = ""  # tfds: the data set, "cifar10" or "lsun/church:3.1.0"
    data.random_flip = False  # mirror training images left to right, each with probability 1/2

    config.diffusion = diffusion = ml_collections.ConfigDict()
    diffusion.parameterization = "x"  # what the network predicts: x, eps, v, both
    diffusion.weighting = "truncated_snr"  # constant, snr, truncated_snr, snr_plus_one
    diffusion.logsnr_min = -20.0  # of the cosine schedule, at t = 1
    diffusion.logsnr_max = 20.0  # at t = 0

    config.model = model = ml_collections.ConfigDict()
    model.channels = 256  # at the highest resolution
    model.channel_multipliers = (1, 1, 1)  # of channels at each resolution, halving after each
    model.num_blocks = 3  # residual blocks at each resolution on the way down; one more up
    model.emb_channels = 1024  # width of the embedding of time and label
    model.attention_resolutions = (8, 16)  # image heights at which attention follows each block
    model.num_heads = 1  # of attention; 0 where head_dim is given
    model.head_dim = 0  # channels of a head; 0 where num_heads is given
    model.num_groups = 32  # of GroupNorm; every number of channels must be a multiple
    model.class_conditional = False  # whether labels enter; the data says how many there are
    model.resample_blocks = True  # resample inside residual blocks, not by plain convolutions
    model.time_input = "arctan"  # how logSNR enters: arctan (the paper's), linear, sigmoid
    model.dtype = "float32"  # what to compute in: float32, bfloat16

    config.train = train = ml_collections.ConfigDict()  # the same in every stage
    train.batch_size = 128  # of all devices together
    train.adam_b1 = 0.9  # Adam's decay of the mean gradient
    train.adam_b2 = 0.999  # and of the mean squared gradient
    train.adam_eps = 1e-8  # added to the root of the latter
    train.grad_clip_norm = 1.0  # of the gradient of the whole batch; 0 for no clipping
    train.checkpoint_every = 5000  # updates; the end of a stage is always saved
    train.checkpoints_kept = 2  # the newest of a stage; 2 at least: one is whole at any moment

    config.teacher = teacher = ml_collections.ConfigDict()
    teacher.updates = 800_000  # the paper's for CIFAR-10, from memory of its appendix
    teacher.learning_rate = 2e-4  # at its highest
    teacher.warmup = 1000  # updates over which the learning rate rises from 0
    teacher.lr_schedule = "constant"  # after the warm-up: constant, or linear to 0
    teacher.weight_decay = 0.001  # decoupled (AdamW): weights shrink by learning_rate times this
    teacher.ema_decay = 0.9999  # of the averaged weights, per update
    teacher.dropout = 0.2  # in residual blocks

    config.distill = distill = ml_collections.ConfigDict()
    # Where the averaged weights of a teacher are, if none is to be trained: a workdir (its last
    # finished stage), a stage's folder in one, an exported folder, or a published file. They are
    # copied. The steps that they are made for, where known, stand in place of start_steps.
    distill.teacher = ""
    distill.start_steps = 8192  # steps as which the teacher is first distilled; a power of 2
    distill.end_steps = 1  # steps of the last student; a power of 2
    distill.updates = 50_000  # a round
    distill.updates_last_rounds = 100_000  # the rounds to 2 and to 1 steps
    distill.learning_rate = 5e-5  # at its highest
    distill.warmup = 0  # as for the teacher, and so are those that follow
    distill.lr_schedule = "linear"
    distill.weight_decay = 0.0
    distill.ema_decay = 0.9999
    distill.dropout = 0.0

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.metrics = ("fd",)  # of metrics/evaluator.py; baselines are compared by the first
    evaluation.num_images = 50_000  # generated for each metric; the count is in its name
    evaluation.seed = 1  # of the generated images
    evaluation.features = "pixels"  # what is compared: one of metrics/features.py
    evaluation.split = ""  # of the data, all of which is the reference; "": data.split
    evaluation.reference = ""  # in its place: an npz of another project's mu and sigma
    evaluation.allow_biased = False  # measure fewer images than a Frechet distance takes
    evaluation.max_steps = 256  # no sampling of more steps is measured: 8192 would take days
    evaluation.baselines = ("ddim", "ancestral")  # samplers of the undistilled teacher
    evaluation.baseline_images = 0  # generated for each baseline; 0: num_images
    evaluation.ancestral_variance = 0.0  # log-variance coefficient: 0 small, 1 large
    evaluation.label_agreement = False  # judge labels by a classifier fitted on the data's pixels
    evaluation.grid_images = 40  # in samples.png, from the same noise in every stage

    config.runtime = runtime = ml_collections.ConfigDict()
    runtime.data_on_device = "auto"  # auto: where it has at most a GiB; always, never: read ahead
    runtime.fsdp = 1  # devices that share one copy of the weights; 1: each has its own
    runtime.accumulation = 1  # parts in which a batch is computed, to save memory
    runtime.remat = False  # recompute activations in the backward pass, to save memory
    runtime.fused_attention = True  # cuDNN's on NVIDIA GPUs, in bfloat16; False: XLA's there too
    runtime.updates_per_call = 0  # updates in one compiled call; 0: 1 on CPU, 10 elsewhere
    runtime.sampler_loop = "auto"  # auto: outside the compiled step on CPU, inside elsewhere
    runtime.sampler_batch_size = 256  # images sampled at once
    runtime.feature_weights = ""  # file of the feature network's weights; "": its usual place
    runtime.cache_dir = ""  # "": $DIFFUSION_DISTILL_CACHE, else ~/.cache/diffusion_distill
    runtime.log_every_seconds = 5.0  # between two lines of progress
    runtime.log_every_updates = 10  # between two rows of metrics.jsonl
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field's type and range, before anything is computed or written.

    Raises:
        UserError: naming the first field that is wrong, its value, and what would be accepted.
    """
    _check_fields("config", config, base())
    _one_of(config, "data.name", SOURCES)
    _one_of(config, "data.resize", RESIZES)
    _one_of(config, "data.channels", (0, 1, 3))
    _at_least(config, "data.image_size", 0)
    _one_of(config, "diffusion.parameterization", PARAMETERIZATIONS)
    _one_of(config, "diffusion.weighting", WEIGHTINGS)
    _one_of(config, "model.time_input", TIME_INPUTS)
    _one_of(config, "model.dtype", DTYPES)
    _one_of(config, "runtime.data_on_device", DATA_ON_DEVICE)
    _one_of(config, "runtime.sampler_loop", SAMPLER_LOOPS)
    for stage in ("teacher", "distill"):
        _one_of(config, f"{stage}.lr_schedule", LR_SCHEDULES)
        _in_range(config, f"{stage}.dropout", 0.0, 1.0)
        _in_range(config, f"{stage}.ema_decay", 0.0, 1.0)
        for name in ("learning_rate", "warmup", "weight_decay"):
            _at_least(config, f"{stage}.{name}", 0)
    for name in ("adam_b1", "adam_b2"):
        _in_range(config, f"train.{name}", 0.0, 1.0)
    _in_range(config, "eval.ancestral_variance", 0.0, 1.0, closed=True)
    for name in (
        "train.batch_size train.checkpoint_every teacher.updates "
        "distill.updates distill.updates_last_rounds eval.grid_images eval.max_steps "
        "model.channels model.num_blocks model.emb_channels model.num_groups "
        "runtime.sampler_batch_size runtime.log_every_updates runtime.accumulation runtime.fsdp"
    ).split():
        _at_least(config, name, 1)
    for name in "train.checkpoints_kept eval.num_images".split():
        _at_least(config, name, 2)
    multipliers = config.model.channel_multipliers
    if not multipliers or min(multipliers) < 1:
        _reject("model.channel_multipliers", multipliers, "one or more integers of at least 1")
    for name in "seed eval.seed".split():
        if not 0 <= _get(config, name) < 2**31:
            _reject(name, _get(config, name), "an integer from 0 to 2**31 - 1")
    for name in (
        "train.adam_eps train.grad_clip_norm runtime.updates_per_call runtime.log_every_seconds "
        "model.num_heads model.head_dim eval.baseline_images"
    ).split():
        _at_least(config, name, 0)
    _check_eval(config)
    if (config.model.num_heads == 0) == (config.model.head_dim == 0):
        _reject("model.num_heads", config.model.num_heads, "0 exactly where model.head_dim is not")
    if config.diffusion.logsnr_min >= config.diffusion.logsnr_max:
        _reject("diffusion.logsnr_min", config.diffusion.logsnr_min, "less than logsnr_max")
    for name in ("start_steps", "end_steps"):
        steps = config.distill[name]
        if steps < 1 or steps & (steps - 1):
            _reject(f"distill.{name}", steps, "a power of 2")
    if config.distill.end_steps > config.distill.start_steps:
        _reject("distill.end_steps", config.distill.end_steps, "at most distill.start_steps")


def _check_eval(config):
    _one_of(config, "eval.features", FEATURES)
    evaluation = config.eval
    for name, known in (("metrics", METRICS), ("baselines", SAMPLERS)):
        if any(n not in known for n in evaluation[name]):
            _reject(f"eval.{name}", tuple(evaluation[name]), f"names of {list(known)}")
    if not evaluation.metrics:
        _reject("eval.metrics", (), f"one or more of {', '.join(METRICS)}")
    if evaluation.baseline_images == 1:
        _reject("eval.baseline_images", 1, "at least 2, or 0 for eval.num_images")
    for name in ("num_images", "baseline_images"):
        if "fd" in evaluation.metrics and evaluation[name]:
            what = f"config.eval.{name}"
            check_count(evaluation.features, evaluation[name], evaluation.allow_biased, what)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines that name each field in which two config dicts differ, `runtime` left out."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        path = f"{prefix}{name}"
        if path == "config.data.path" or name == "runtime":
            continue
        a, b = old.get(name, "(none)"), new.get(name, "(none)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{path}.")
        elif a != b:
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines


def from_dict(fields: dict) -> ml_collections.ConfigDict:
    """The config that `to_dict` (or its JSON) came from, validated.

    Raises:
        UserError: the fields are not those of a valid config.
    """
    config = ml_collections.ConfigDict(
        {
            section: {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
            if isinstance(values, dict)
            else values
            for section, values in fields.items()
        }
    )
    validate(config)
    return config


def from_file(path: str) -> ml_collections.ConfigDict:
    """The config of a file in configs/, validated; "FILE.py:VARIANT" works as for --config.

    Raises:
        UserError: there is no such file, it cannot be run, or its config is not valid.
    """
    name, _, variant = str(path).partition(".py:")
    file = Path(f"{name}.py" if variant else path)
    if not file.is_file():
        raise UserError(f"there is no config file {file}")
    try:
        spec = importlib.util.spec_from_file_location("_config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:  # of any kind: it is the user's code
        raise UserError(f"config file {path}: {error!r}") from error
    validate(config)
    return config


def to_dict(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON values: tuples become lists."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config.to_dict())


def _reject(path, value, accepted):
    raise UserError(f"config.{path} is {value!r}; it must be {accepted}")


def _get(config, path):
    for name in path.split("."):
        config = config[name]
    return config


def _one_of(config, path, names):
    if _get(config, path) not in names:
        _reject(path, _get(config, path), f"one of {', '.join(map(str, names))}")


def _at_least(config, path, low):
    if not _get(config, path) >= low:
        _reject(path, _get(config, path), f"at least {low}")


def _in_range(config, path, low, high, closed=False):
    value = _get(config, path)
    if not (low <= value < high or (closed and value == high)):
        _reject(path, value, f"from {low} to {high}{'' if closed else ', below it'}")


def _check_fields(path, fields, expected):
    """Every field known, none missing, each of its default's type, numbers finite."""
    if not isinstance(fields, ml_collections.ConfigDict):
        raise UserError(f"{path} is {fields!r}; it must have the fields {', '.join(expected)}")
    for name in fields:
        if name not in expected:
            raise UserError(f"{path}.{name} is not a field; {path} has {', '.join(expected)}")
    for name, default in expected.items():
        if name not in fields:
            raise UserError(f"{path}.{name} is missing")
        value = fields[name]
        if isinstance(default, ml_collections.ConfigDict):
            _check_fields(f"{path}.{name}", value, default)
        elif not _fits(value, default):
            kind = "float, and finite" if isinstance(default, float) else type(default).__name__
            raise UserError(f"{path}.{name} is {value!r}; it must be of type {kind}")


def _fits(value, default):
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, numbers.Real) and math.isfinite(value)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(
            isinstance(v, type(default[0]) if default else object) for v in value
        )
    return isinstance(value, type(default))
