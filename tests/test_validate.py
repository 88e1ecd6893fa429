"""Configs: what is accepted, and what is said of the rest."""

import re
import subprocess
import sys

import pytest

from configs.digits_distill import get_config
from diffusion_distill.config import base, to_dict
from diffusion_distill.data.preprocess import RESIZES
from diffusion_distill.data.sources import SOURCES
from diffusion_distill.diffusion.discrete import BETAS, SPACINGS
from diffusion_distill.diffusion.distill import TARGETS
from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.process import PARAMETERIZATIONS
from diffusion_distill.diffusion.samplers import SAMPLERS
from diffusion_distill.errors import UserError
from diffusion_distill.generate import DIFFUSERS
from diffusion_distill.metrics.measure import FEATURES
from diffusion_distill.metrics.yardstick import METRICS
from diffusion_distill.models.unet import TIME_INPUTS
from diffusion_distill.models.unet2d import DOWN_BLOCKS, UP_BLOCKS
from diffusion_distill.validate import from_dict, validate
from diffusion_distill.validate.rows import ROWS


def test_accepted_names_are_those_of_the_mappings():
    named = {
        "data.name": SOURCES,
        "data.resize": RESIZES,
        "diffusion.parameterization": PARAMETERIZATIONS,
        "diffusion.weighting": WEIGHTINGS,
        "model.time_input": TIME_INPUTS,
        "distill.first_round_solver": TARGETS,
        "eval.metrics": METRICS,
        "eval.features": FEATURES,
        "eval.baselines": (*SAMPLERS, DIFFUSERS),
        "unet2d.down_block_types": DOWN_BLOCKS,
        "unet2d.up_block_types": UP_BLOCKS,
        "scheduler.beta_schedule": BETAS,
        "scheduler.timestep_spacing": SPACINGS,
    }
    for path, known in named.items():
        assert re.findall("`(.+?)`", ROWS[path].told) == list(known), path


def test_checking_a_config_takes_none_of_what_it_names():
    script = "import sys, diffusion_distill.validate, diffusion_distill.paper; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert "diffusion_distill.paper" in loaded.split()
    assert not {"jax", "flax", "numpy", "PIL"} & set(loaded.split())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.batch_size", 0, r"config.train.batch_size is 0; it must be at least 1"),
        ("train.batch_size", "64", r"config.train.batch_size is '64'; it must be of type int"),
        ("train.batch_size", True, r"config.train.batch_size is True; it must be of type int"),
        ("train.adam_b2", 1.0, r"config.train.adam_b2 is 1.0; it must be from 0"),
        ("train.checkpoints_kept", 1, r"checkpoints_kept is 1; it must be at least 2"),
        ("data.name", "mnist", r"config.data.name is 'mnist'; it must be one of cifar10, digits"),
        ("diffusion.parameterization", "score", r"'score'; it must be one of x, eps, v, both"),
        ("diffusion.weighting", "p2", r"one of constant, snr, truncated_snr, snr_plus_one"),
        ("diffusion.logsnr_min", 30.0, r"logsnr_min is 30.0; it must be less than logsnr_max"),
        ("distill.start_steps", 24, r"config.distill.start_steps is 24; it must be a power of 2"),
        ("distill.divide_by", 3, r"config.distill.divide_by is 3; it must be one of 2, 4, 8, 16"),
        ("distill.end_steps", 64, r"end_steps is 64; it must be at most distill.start_steps"),
        ("teacher.dropout", 1.0, r"config.teacher.dropout is 1.0"),
        ("teacher.learning_rate", -1e-3, r"learning_rate is -0.001; it must be at least 0"),
        ("model.head_dim", 64, r"config.model.num_heads is 1; it must be 0 exactly where"),
        ("model.channel_multipliers", (1, 0.5), r"channel_multipliers is \(1, 0.5\)"),
        ("model.patch_size", 0, r"config.model.patch_size is 0; it must be at least 1"),
        ("model.dtype", "float16", r"config.model.dtype is 'float16'; it must be one of float32"),
        ("eval.baselines", ("ddim", "euler"), r"must be any of ddim, ancestral, dpmpp_2m"),
        ("eval.num_images", 1, r"config.eval.num_images is 1; it must be at least 2"),
        ("model.channel_multipliers", (), r"is \(\); it must be one or more integers"),
        ("model.channel_multipliers", (0, 1), r"\(0, 1\); it must be one or more integers"),
        ("teacher.learning_rate", float("inf"), r"learning_rate is inf; .* float, and finite"),
        ("eval.seed", -1, r"config.eval.seed is -1; it must be an integer from 0"),
        ("eval.features", "vgg", r"config.eval.features is 'vgg'; it must be one of pixels"),
        ("eval.metrics", ("fd", "fid"), r"is \('fd', 'fid'\); it must be one or more of fd, kid"),
        ("eval.metrics", (), r"config.eval.metrics is \(\); it must be one or more of fd, kid"),
        ("eval.max_steps", 0, r"config.eval.max_steps is 0; it must be at least 1"),
        ("eval.num_images", -1, r"config.eval.num_images is -1; it must be at least 2"),
        (
            "eval.baseline_images",
            -1,
            r"config.eval.baseline_images is -1; it must be at least 2, or 0",
        ),
        (
            "eval.baseline_images",
            1,
            r"baseline_images is 1; it must be at least 2, or 0 for eval.num_images",
        ),
        ("runtime.sampler_loop", "both", r"'both'; it must be one of auto, inside, outside"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_do(field, value, message):
    config = get_config()
    section, name = field.split(".")
    with config.ignore_type():
        config[section][name] = value
    with pytest.raises(UserError, match=message) as error:
        validate(config)
    assert "\n" not in str(error.value)


def test_too_few_images_for_fid_must_be_asked_for():
    config = base()
    config.eval.features = "inception"
    validate(config)
    config.eval.baseline_images = 2048
    with pytest.raises(UserError, match="config.eval.baseline_images is 2048; .* at least 2049"):
        validate(config)
    config.eval.allow_biased = True
    validate(config)


def test_tract_has_no_other_first_round():
    config = base()
    config.distill.divide_by, config.distill.first_round_solver = 8, "heun"
    with pytest.raises(UserError, match="solver is 'heun'; it must be ddim with divide_by > 2"):
        validate(config)


def test_unknown_and_missing_fields():
    config = base()
    with config.unlocked():
        config.train.batchsize = 3
    with pytest.raises(UserError, match="config.train.batchsize is not a field; config.train has"):
        validate(config)
    config = base()
    del config.train.batch_size
    with pytest.raises(UserError, match="config.train.batch_size is missing"):
        validate(config)


@pytest.mark.parametrize("value", [3, None])
def test_a_section_that_is_no_section(value):
    config = base()
    with config.ignore_type():
        config.train = value
    with pytest.raises(UserError, match=f"config.train is {value}; it must have the fields adam"):
        validate(config)


def test_a_stored_config_of_an_older_version_takes_the_defaults():
    stored = to_dict(get_config("tiny"))
    del stored["unet2d"], stored["scheduler"], stored["model"]["architecture"]
    assert from_dict(stored) == get_config("tiny")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("down_block_types", ("DownBlock2D",), "must be 4 names, one for each of unet2d.block_out"),
        ("num_class_embeds", 3, "0 exactly where model.class_conditional is False"),
        ("trained_betas", (0.1,), "trained_betas has 1 numbers; it must have 1000"),
    ],
)
def test_a_unet2d_that_does_not_fit_together_is_refused(field, value, message):
    config = base()
    config.model.architecture = "unet2d"
    config["unet2d" if field in config.unet2d else "scheduler"][field] = value
    with pytest.raises(UserError, match=message):
        validate(config)
