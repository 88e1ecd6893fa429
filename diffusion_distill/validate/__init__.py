"""What makes a config valid: what each field accepts (rows.py), and what they must hold together.

Whoever makes a config validates it: `from_file`, `from_dict`, or `validate` after changing one.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.metrics.names import check_count
from diffusion_distill.validate.rows import ROWS, is_a, listed


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
        if not is_a(value, row.type):
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
        raise UserError(f"{path} is {fields!r}; it must have the fields {listed(expected)}")
    for name in fields:
        if name not in expected:
            raise UserError(f"{path}.{name} is not a field; {path} has {listed(expected)}")
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
