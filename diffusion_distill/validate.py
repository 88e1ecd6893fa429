"""What makes a config valid, and configs from dicts and from files, which are validated."""

import importlib.util
import math
import numbers
from pathlib import Path

import ml_collections

from diffusion_distill.config import base
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
