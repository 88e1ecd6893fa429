"""What each field of a config accepts: one row a field, which docs/config.md shows too.

Accepted names stand here as text, so that a config can be checked without importing what they name.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a field accepts."""

    type: type  # of the value. A float may be any finite number; True and False are no numbers.
    told: str  # what is accepted, as docs/config.md says it
    must_be: str = ""  # the same, as it follows "it must be" in a message
    accepts: Callable[[Any], bool] = lambda value: True  # whether a value of that type is accepted


def is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a row's type."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, kind)


def _in(values):
    return lambda value: value in values


def listed(values: Iterable) -> str:
    """Names as a sentence has them: "x, eps, v"."""
    return ", ".join(map(str, values))


def _codes(values):
    return ", ".join(f"`{value}`" for value in values)


def one_of(*values: str | int) -> Row:
    """One of these names, or of these numbers."""
    return Row(type(values[0]), f"one of {_codes(values)}", f"one of {listed(values)}", _in(values))


def names(known: tuple[str, ...], least: int = 0) -> Row:
    """A tuple of `least` or more of the known names."""
    start = "one or more of" if least else "any of"

    def accepts(value: tuple) -> bool:
        return len(value) >= least and all(map(_in(known), value))

    must_be = f'{start} {listed(known)}: a tuple, as in "{known[:2]}"'
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
        whole = all(is_a(item, int) for item in value)
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
        return all(is_a(item, float) and low <= item <= high for item in value)

    told = f"numbers from {low}" + (f" to {high}" if high < math.inf else "")
    return Row(tuple, told, f"a tuple of {told}", accepts)


def _is_range(value: tuple) -> bool:
    ends = len(value) == 2 and all(is_a(item, float) for item in value)
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
    "runtime.pixel_pairs": _FLAG,
    "runtime.updates_per_call": integer(0),
    "runtime.sampler_loop": one_of("auto", "inside", "outside"),
    "runtime.sampler_batch_size": integer(1),
    "runtime.feature_weights": _TEXT,
    "runtime.cache_dir": _TEXT,
    "runtime.log_every_seconds": number(0),
    "runtime.log_every_updates": integer(1),
}
