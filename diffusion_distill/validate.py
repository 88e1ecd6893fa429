"""What makes a config valid: one row a field, and what fields must hold together.

Whoever makes a config validates it: `from_file`, `from_dict`, or `validate` after changing one. The
accepted names stand here as text, so that a config can be checked without importing what they name.
"""

import dataclasses
import importlib.util
import math
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.metrics.names import check_count

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a field accepts."""

    type: type  # of the value. A float may be any finite number; True and False are no numbers.
    told: str  # what is accepted, as docs/config.md says it
    must_be: str = ""  # the same, as it follows "it must be" in a message
    accepts: Callable[[Any], bool] = lambda value: True  # whether a value of that type is accepted


def _in(values):
    return lambda value: value in values


def _list(values):
    return ", ".join(map(str, values))


def _codes(values):
    return ", ".join(f"`{value}`" for value in values)


def one_of(*values: str | int) -> Row:
    """One of these names, or of these numbers."""
    return Row(type(values[0]), f"one of {_codes(values)}", f"one of {_list(values)}", _in(values))


def names(known: tuple[str, ...], least: int = 0) -> Row:
    """A tuple of `least` or more of the known names."""
    start = "one or more of" if least else "any of"

    def accepts(value: tuple) -> bool:
        return len(value) >= least and all(map(_in(known), value))

    must_be = f'{start} {_list(known)}: a tuple, as in "{known[:2]}"'
    return Row(tuple, f"{start} {_codes(known)}", must_be, accepts)


def integer(low: int, high: int | None = None) -> Row:
    """An integer of at least `low`; up to `high` with it, where that is given."""
    if high is None:
        return Row(int, f"integer from {low}", f"at least {low}", lambda value: value >= low)
    told = f"integer from {low} to {high}"
    return Row(int, told, f"an {told}", lambda value: low <= value <= high)


def integers(low: int | None = None) -> Row:
    """A tuple of any integers; of one or more of at least `low`, where that is given."""

    def accepts(value: tuple) -> bool:
        whole = all(_is_a(item, int) for item in value)
        return whole and (low is None or (len(value) > 0 and min(value) >= low))

    if low is None:
        return Row(tuple, "integers", 'a tuple of integers, as in "(8, 16)"', accepts)
    must_be = f'one or more integers of at least {low}: a tuple, as in "(1, 2)"'
    return Row(tuple, f"integers from {low}", must_be, accepts)


def number(low: float = -math.inf, high: float = math.inf, below: float = math.inf) -> Row:
    """A finite number from `low`, to `high` with it or up to `below` without."""
    to = f" to {high}" if high < math.inf else f", below {below}" if below < math.inf else ""
    told = f"number from {low}{to}" if low > -math.inf else "number"
    must_be = f"from {low}{to}" if to else f"at least {low}"
    return Row(float, told, must_be, lambda value: low <= value <= high and value < below)


def numbers_from(low: float, high: float = math.inf) -> Row:
    """A tuple of any finite numbers from `low`, to `high` with it."""

    def accepts(value: tuple) -> bool:
        return all(_is_a(item, float) and low <= item <= high for item in value)

    told = f"numbers from {low}" + (f" to {high}" if high < math.inf else "")
    return Row(tuple, told, f"a tuple of {told}", accepts)


def _is_range(value: tuple) -> bool:
    ends = len(value) == 2 and all(_is_a(item, float) for item in value)
    return value == () or (ends and 0 <= value[0] <= value[1])


_RANGE = Row(
    tuple,
    "(low, high), numbers from 0, or ()",
    "(low, high) with 0 <= low <= high, or ()",
    _is_range,
)
_TEXT = Row(str, "text")
_FLAG = Row(bool, "`True`, `False`")
_POWER_OF_2 = Row(int, "power of 2", "a power of 2", lambda v: v >= 1 and v & (v - 1) == 0)
_FRACTION = number(0, below=1)
_SHARE = number(0, high=1)
_RESAMPLING = one_of("conv", "resnet")
_SEED = integer(0, 2**31 - 1)
_BASELINE_IMAGES = Row(
    int, "integer from 2, or 0", "at least 2, or 0 for eval.num_images", lambda v: v >= 2 or v == 0
)
_LR_SCHEDULE = one_of("constant", "linear")

ROWS = {
    "seed": _SEED,
    "data.name": one_of("cifar10", "digits", "folder", "npz", "prepared", "tfds"),
    "data.path": _TEXT,
    "data.split": _TEXT,
    "data.image_size": integer(0),
    "data.resize": one_of("area", "antialias"),
    "data.channels": one_of(0, 1, 3),
    "data.folder_labels": _FLAG,
    "data.upright": _FLAG,
    "data.tfds_name": _TEXT,
    "data.random_flip": _FLAG,
    "diffusion.parameterization": one_of("x", "eps", "v", "both"),
    "diffusion.weighting": one_of("constant", "snr", "truncated_snr", "snr_plus_one"),
    "diffusion.logsnr_min": number(),
    "diffusion.logsnr_max": number(),
    "model.architecture": one_of("unet", "unet2d"),
    "model.channels": integer(1),
    "model.channel_multipliers": integers(1),
    "model.num_blocks": integer(1),
    "model.emb_channels": integer(1),
    "model.attention_resolutions": integers(),
    "model.patch_size": integer(1),
    "model.num_heads": integer(0),
    "model.head_dim": integer(0),
    "model.num_groups": integer(1),
    "model.class_conditional": _FLAG,
    "model.resample_blocks": _FLAG,
    "model.time_input": one_of("arctan", "linear", "sigmoid"),
    "model.dtype": one_of(*DTYPES),
    "model.guidance": _RANGE,
    "unet2d.center_input_sample": _FLAG,
    "unet2d.time_embedding_type": one_of("positional", "learned"),
    "unet2d.time_embedding_dim": integer(0),
    "unet2d.freq_shift": number(0),
    "unet2d.flip_sin_to_cos": _FLAG,
    "unet2d.down_block_types": names(
        ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"), 1
    ),
    "unet2d.up_block_types": names(("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"), 1),
    "unet2d.block_out_channels": integers(1),
    "unet2d.layers_per_block": integer(1),
    "unet2d.mid_block_scale_factor": number(),
    "unet2d.downsample_padding": one_of(0, 1),
    "unet2d.downsample_type": _RESAMPLING,
    "unet2d.upsample_type": _RESAMPLING,
    "unet2d.attention_head_dim": integer(0),
    "unet2d.norm_num_groups": integer(1),
    "unet2d.attn_norm_num_groups": integer(0),
    "unet2d.norm_eps": number(0),
    "unet2d.resnet_time_scale_shift": one_of("default", "scale_shift"),
    "unet2d.add_attention": _FLAG,
    "unet2d.num_class_embeds": integer(0),
    "scheduler.num_train_timesteps": integer(2),
    "scheduler.beta_start": _SHARE,
    "scheduler.beta_end": _SHARE,
    "scheduler.beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "scheduler.trained_betas": numbers_from(0, 1),
    "scheduler.rescale_betas_zero_snr": _FLAG,
    "scheduler.clip_sample": _FLAG,
    "scheduler.clip_sample_range": number(0),
    "scheduler.timestep_spacing": one_of("leading", "trailing", "linspace"),
    "scheduler.steps_offset": integer(0),
    "scheduler.set_alpha_to_one": _FLAG,
    "train.batch_size": integer(1),
    "train.adam_b1": _FRACTION,
    "train.adam_b2": _FRACTION,
    "train.adam_eps": number(0),
    "train.grad_clip_norm": number(0),
    "train.checkpoint_every": integer(1),
    "train.checkpoints_kept": integer(2),
    "teacher.updates": integer(1),
    "teacher.learning_rate": number(0),
    "teacher.warmup": integer(0),
    "teacher.lr_schedule": _LR_SCHEDULE,
    "teacher.weight_decay": number(0),
    "teacher.ema_decay": _FRACTION,
    "teacher.dropout": _FRACTION,
    "teacher.label_dropout": _FRACTION,
    "match.updates": integer(0),
    "match.guidance": _RANGE,
    "match.learning_rate": number(0),
    "match.warmup": integer(0),
    "match.lr_schedule": _LR_SCHEDULE,
    "match.weight_decay": number(0),
    "match.ema_decay": _FRACTION,
    "match.dropout": _FRACTION,
    "distill.teacher": _TEXT,
    "distill.start_steps": _POWER_OF_2,
    "distill.end_steps": _POWER_OF_2,
    "distill.divide_by": one_of(2, 4, 8, 16, 32, 64, 128),
    "distill.first_round_solver": one_of("ddim", "heun"),
    "distill.updates": integer(1),
    "distill.updates_last_rounds": integer(1),
    "distill.learning_rate": number(0),
    "distill.warmup": integer(0),
    "distill.lr_schedule": _LR_SCHEDULE,
    "distill.weight_decay": number(0),
    "distill.ema_decay": _FRACTION,
    "distill.dropout": _FRACTION,
    "eval.metrics": names(("fd", "kid", "precision_recall", "inception_score"), least=1),
    "eval.num_images": integer(2),
    "eval.seed": _SEED,
    "eval.features": one_of("pixels", "thumbnails", "inception"),
    "eval.split": _TEXT,
    "eval.reference": _TEXT,
    "eval.allow_biased": _FLAG,
    "eval.max_steps": integer(1),
    "eval.baselines": names(("ddim", "ancestral", "dpmpp_2m", "heun", "ddim_diffusers")),
    "eval.baseline_images": _BASELINE_IMAGES,
    "eval.ancestral_variance": _SHARE,
    "eval.label_agreement": _FLAG,
    "eval.guidance": numbers_from(0),
    "eval.grid_images": integer(1),
    "runtime.data_on_device": one_of("auto", "always", "never"),
    "runtime.fsdp": integer(1),
    "runtime.accumulation": integer(1),
    "runtime.remat": _FLAG,
    "runtime.fused_attention": _FLAG,
    "runtime.updates_per_call": integer(0),
    "runtime.sampler_loop": one_of("auto", "inside", "outside"),
    "runtime.sampler_batch_size": integer(1),
    "runtime.feature_weights": _TEXT,
    "runtime.cache_dir": _TEXT,
    "runtime.log_every_seconds": number(0),
    "runtime.log_every_updates": integer(1),
}


def validate(config: ConfigDict) -> None:
    """Checks every field's type and range, before anything is computed or written.

    Raises:
        UserError: naming the first field that is wrong, its value, and what would be accepted.
    """
    _check_names("config", config, base())
    for path, row in ROWS.items():
        value = config
        for name in path.split("."):
            value = value[name]
        if not _is_a(value, row.type):
            kind = "float, and finite" if row.type is float else row.type.__name__
            _reject(path, value, f"of type {kind}")
        if not row.accepts(value):
            _reject(path, value, row.must_be)
    _check_together(config)


def from_dict(fields: dict) -> ConfigDict:
    """The config that `to_dict` (or its JSON) came from, validated.

    A field that is missing has its default: the version that wrote it did not know it, and defaults
    of new fields change nothing (but data.upright turns photos).

    Raises:
        UserError: the fields are not those of a valid config.
    """

    def with_tuples(value):
        if isinstance(value, dict):
            return {name: with_tuples(inner) for name, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    def with_defaults(value, default):
        if not isinstance(value, dict) or not isinstance(default, ConfigDict):
            return value
        missing = {name: default[name] for name in default if name not in value}
        return {n: with_defaults(v, default.get(n)) for n, v in value.items()} | missing

    config = ConfigDict(with_defaults(with_tuples(fields), base()))
    validate(config)
    return config


def from_file(path: str) -> ConfigDict:
    """The config of a file in configs/, validated; "FILE.py:VARIANT" works as for --config.

    Raises:
        UserError: there is no such file, it cannot be run, or its config is not valid.
    """
    name, _, variant = str(path).partition(".py:")
    file = Path(f"{name}.py" if variant else path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no config file {file}")
    if file.suffix != ".py":
        raise UserError(f"{file} must be a config file in Python, FILE.py")
    try:
        spec = importlib.util.spec_from_file_location("_config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:  # of any kind: it is the user's code
        raise UserError(f"config file {path}: {error!r}") from error
    validate(config)
    return config


def _check_names(path, fields, expected):
    """Every field is known, and none is missing."""
    if not isinstance(fields, ConfigDict):
        raise UserError(f"{path} is {fields!r}; it must have the fields {_list(expected)}")
    for name in fields:
        if name not in expected:
            raise UserError(f"{path}.{name} is not a field; {path} has {_list(expected)}")
    for name, default in expected.items():
        if name not in fields:
            raise UserError(f"{path}.{name} is missing")
        if isinstance(default, ConfigDict):
            _check_names(f"{path}.{name}", fields[name], default)


def _check_together(config):
    """What no field's own row can say."""
    diffusion, distill, evaluation, model = (
        config[section] for section in ("diffusion", "distill", "eval", "model")
    )
    if (model.num_heads == 0) == (model.head_dim == 0):
        _reject("model.num_heads", model.num_heads, "0 exactly where model.head_dim is not")
    if model.architecture == "unet2d":
        _check_unet2d(config)
    elif "ddim_diffusers" in evaluation.baselines and not distill.teacher:
        accepted = "without ddim_diffusers where model.architecture is not unet2d"
        _reject("eval.baselines", evaluation.baselines, accepted)
    if diffusion.logsnr_min >= diffusion.logsnr_max:
        _reject("diffusion.logsnr_min", diffusion.logsnr_min, "less than logsnr_max")
    if distill.end_steps > distill.start_steps:
        _reject("distill.end_steps", distill.end_steps, "at most distill.start_steps")
    if distill.divide_by > 2 and distill.first_round_solver != "ddim":
        _reject("distill.first_round_solver", distill.first_round_solver, "ddim with divide_by > 2")
    _check_guidance(config)
    for name in ("num_images", "baseline_images"):
        if "fd" in evaluation.metrics and evaluation[name]:
            what = f"config.eval.{name}"
            check_count(evaluation.features, evaluation[name], evaluation.allow_biased, what)


def _check_unet2d(config):
    model, unet2d, scheduler = config.model, config.unet2d, config.scheduler
    levels = len(unet2d.block_out_channels)
    for name in ("down_block_types", "up_block_types"):
        if len(unet2d[name]) != levels:
            accepted = f"{levels} names, one for each of unet2d.block_out_channels"
            _reject(f"unet2d.{name}", unet2d[name], accepted)
    if (unet2d.num_class_embeds > 0) != model.class_conditional:
        accepted = "0 exactly where model.class_conditional is False"
        _reject("unet2d.num_class_embeds", unet2d.num_class_embeds, accepted)
    betas, count = scheduler.trained_betas, scheduler.num_train_timesteps
    if betas and len(betas) != count:
        raise UserError(
            f"config.scheduler.trained_betas has {len(betas)} numbers; it must have {count}, "
            "config.scheduler.num_train_timesteps"
        )


def _check_guidance(config):
    """Who is guided has labels, was taught without some of them, and is guided once."""
    model, match, teacher = config.model, config.match, config.teacher
    own_teacher = not config.distill.teacher
    if teacher.label_dropout and not model.class_conditional:
        _reject("teacher.label_dropout", teacher.label_dropout, "0 for a model without labels")
    if model.guidance and match.updates:
        _reject("model.guidance", model.guidance, "() where match.updates is not 0")
    if not match.guidance:
        return
    if not match.updates:
        _reject("match.guidance", match.guidance, "() where match.updates is 0")
    if not model.class_conditional:
        _reject("match.guidance", match.guidance, "() for a model without labels")
    if own_teacher and not teacher.label_dropout:
        problem = "() where the teacher knows nothing without labels: teacher.label_dropout is 0"
        _reject("match.guidance", match.guidance, problem)


def _reject(path, value, accepted):
    raise UserError(f"config.{path} is {value!r}; it must be {accepted}")


def _is_a(value, kind):
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, kind)
