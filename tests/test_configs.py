"""The configs that a person starts from hold the paper's settings, and are valid."""

import re
from pathlib import Path

import jax
import pytest

from diffusion_distill.config import differences, to_dict
from diffusion_distill.models.build import build_unet, init_params
from diffusion_distill.paper import DATASETS
from diffusion_distill.plan.hardware import parse_topology
from diffusion_distill.plan.make import better
from diffusion_distill.stages import plan
from diffusion_distill.validate import from_file

ROOT = Path(__file__).resolve().parents[1]
FROM_FOLDER = ROOT / "configs/from_diffusers.py"  # a folder is its variant
FILES = sorted(set((ROOT / "configs").glob("*.py")) - {FROM_FOLDER})


def load(name, variant=""):
    path = ROOT / "configs" / f"{name}.py"
    return from_file(f"{path}:{variant}" if variant else str(path))


def fields_that_differ(one, other):
    return [line.split(":")[0] for line in differences(to_dict(one), to_dict(other))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_every_config_is_valid_and_says_what_to_expect(path, variant):
    load(path.stem, variant)  # which validates it
    docstring = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in docstring
    paragraphs = {p.partition(":")[0].strip(): p for p in docstring.split("\n\n")}
    assert re.search("TPU v4|CPU cores|H200", paragraphs["Hardware"])
    assert re.search("(hours?|minutes)", paragraphs["Time"])
    assert re.search("[Mm]easured", paragraphs["Time"])
    assert re.search(r"not\s+measured here|measured there, fd_\w+: .*\d", paragraphs["Result"])
    assert ":tiny" in docstring


@pytest.mark.parametrize(
    "path", [*FILES, FROM_FOLDER, ROOT / "diffusion_distill/paper.py"], ids=lambda p: p.stem
)
def test_every_field_that_is_set_says_why(path):
    fields = [s for s in path.read_text().splitlines() if re.match(r" +config\.[\w., ]+ = ", s)]
    assert [line for line in fields if not re.search(r"  # \w.{4,}", line)] == []


def test_fast_measures_its_baselines_by_fewer_images():
    evaluation = load("cifar10_distill", "fast").eval
    assert (evaluation.num_images, evaluation.baseline_images) == (50_000, 10_000)


@pytest.mark.parametrize(
    ("name", "steps", "batch", "parameterization", "learning_rates", "dropout"),
    [
        ("cifar10", 8192, 128, "x", (2e-4, 5e-5), 0.2),
        ("imagenet64", 1024, 2048, "both", (3e-4, 1e-4), 0.1),
        ("lsun_bedroom128", 1024, 2048, "both", (3e-4, 1e-4), 0.1),
        ("lsun_church128", 1024, 2048, "both", (3e-4, 1e-4), 0.1),
    ],
)
def test_the_paper_settings(name, steps, batch, parameterization, learning_rates, dropout):
    config = load(f"{name}_distill")
    stages = plan(config)
    assert [s.num_steps for s in stages] == [steps >> n for n in range(steps.bit_length())]
    assert {s.updates for s in stages[1:-2]} == {50_000}
    assert {s.updates for s in stages[-2:]} == {100_000}
    assert {s.dropout for s in stages[1:]} == {0.0}
    assert {s.weight_decay for s in stages[1:]} == {0.0}
    assert {s.lr_schedule for s in stages[1:]} == {"linear"}
    assert (stages[0].learning_rate, stages[1].learning_rate) == learning_rates
    assert (stages[0].dropout, stages[0].warmup, stages[0].ema_decay) == (dropout, 1000, 0.9999)
    assert stages[0].weight_decay == (0.001 if name == "cifar10" else 0.0)
    assert stages[0].updates == (800_000 if name == "cifar10" else 550_000)
    assert config.train.batch_size == batch
    assert config.train.grad_clip_norm == 1.0
    assert config.data.random_flip
    assert config.diffusion.parameterization == parameterization
    assert config.diffusion.weighting == "truncated_snr"
    assert config.model.class_conditional == (name == "imagenet64")
    assert (config.model.resample_blocks, config.model.time_input) == (True, "arctan")
    assert (config.diffusion.logsnr_min, config.diffusion.logsnr_max) == (-20.0, 20.0)
    assert (config.eval.num_images, config.eval.features) == (50_000, "inception")
    assert config.eval.metrics[0] == "fd"


def test_the_papers_data_sets():
    facts = {n: (d.image_size, d.num_classes, d.counts["train"]) for n, d in DATASETS.items()}
    assert facts == {
        "cifar10": (32, 10, 50_000),
        "imagenet64": (64, 1000, 1_281_167),
        "lsun_bedroom128": (128, 0, 3_033_042),
        "lsun_church128": (128, 0, 126_227),
    }
    for name, data in DATASETS.items():
        assert load(f"{name}_distill").data.image_size == data.image_size


@pytest.mark.parametrize(
    ("name", "millions"), [("cifar10", 60.0), ("imagenet64", 295.9), ("lsun_church128", 139.6)]
)
def test_networks_have_the_papers_number_of_parameters(name, millions):
    config = load(f"{name}_teacher")
    size = config.data.image_size
    model = build_unet(config, 3, 1000 if config.model.class_conditional else 0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), (size, size, 3)))
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 1) == millions


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_a_teacher_config_is_its_distill_config_without_the_rounds(name, variant):
    teacher, distill = load(f"{name}_teacher", variant), load(f"{name}_distill", variant)
    assert fields_that_differ(teacher, distill) == ["distill.end_steps"]
    assert [stage.name for stage in plan(teacher)] == ["teacher"]


@pytest.mark.parametrize("kind", ["teacher", "distill:tiny"])
def test_the_bedrooms_config_is_the_churches_with_another_path(kind):
    kind, _, variant = kind.partition(":")
    bedroom, church = (load(f"lsun_{name}128_{kind}", variant) for name in ("bedroom", "church"))
    assert fields_that_differ(bedroom, church) == ["data.path"]


def test_imagenets_tiny_chain_is_the_churches_on_smaller_images_with_labels():
    imagenet, church = load("imagenet64_distill", "tiny"), load("lsun_church128_distill", "tiny")
    assert fields_that_differ(imagenet, church) == [
        "data.image_size",
        "data.path",
        "model.attention_resolutions",
        "model.class_conditional",
    ]
    assert load("cifar10_small", "tiny").model.class_conditional  # which runs, too


def test_the_hours_tiny_chain_is_that_of_cifar10_with_the_small_ones_loss():
    hour, cifar10 = load("cifar10_hour", "tiny"), load("cifar10_distill", "tiny")
    assert fields_that_differ(hour, cifar10) == [
        "diffusion.parameterization",
        "diffusion.weighting",
        "distill.first_round_solver",
        "distill.lr_schedule",
        "teacher.dropout",
        "teacher.lr_schedule",
    ]
    small = load("cifar10_small", "tiny")
    assert hour.diffusion == small.diffusion
    assert hour.distill == small.distill
    assert hour.teacher.lr_schedule == small.teacher.lr_schedule
    # One with more runs, and the small one, without.
    assert 0 < hour.teacher.dropout < cifar10.teacher.dropout


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_first_round_of_the_papers_is_by_ddim_and_of_the_others_by_heuns_method(path):
    papers = [f"{name}_{kind}" for name in DATASETS for kind in ("teacher", "distill")]
    solver = load(path.stem).distill.first_round_solver
    assert solver == ("ddim" if path.stem in papers else "heun")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((path.stem, "") for path in FILES),
        *((f"{name}_distill", "fast") for name in DATASETS),
        ("digits_distill", "guided"),
    ],
)
def test_no_average_keeps_much_of_its_start(name, variant):
    """A student's begins at its teacher's weights, a match student's at random ones."""
    stages = plan(load(name, variant))
    assert [s.name for s in stages if "of its start" in s.heading(1, 1)] == []


@pytest.mark.parametrize("name", DATASETS)
def test_fast_has_fewer_rounds_of_ten_thousand_updates(name):
    stages = plan(load(f"{name}_distill", "fast"))
    assert [s.num_steps for s in stages] == [256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert {s.updates for s in stages[1:]} == {10_000}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("kind", ["teacher", "distill"])
def test_the_papers_compute_in_bfloat16_and_float32_does_not(name, kind):
    assert load(f"{name}_{kind}").model.dtype == "bfloat16"
    both = (to_dict(load(f"{name}_{kind}", variant)) for variant in ("", "float32"))
    assert differences(*both) == ["model.dtype: 'bfloat16' -> 'float32'"]
    assert load(f"{name}_{kind}", "tiny").model.dtype == "float32"


@pytest.mark.parametrize("variant", ["", "float32"])
@pytest.mark.parametrize("name", DATASETS)
def test_the_papers_are_split_as_is_cheapest_on_a_slice(name, variant):
    known = better(load(f"{name}_distill", variant), parse_topology("v4:4x4x4"))
    assert known == ({"model.dtype": "bfloat16"} if variant else {})


def test_an_unknown_variant_is_refused():
    for name in ("cifar10_distill", "digits_distill", "cifar10_hour"):
        with pytest.raises(ValueError, match="not huge"):
            load(name, "huge")


def test_two_students_of_cifar10_small_take_at_most_12_mb_in_bfloat16():
    """So that they can travel with the project."""
    model = build_unet(load("cifar10_small"), 3, 10)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), (32, 32, 3)))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == 2.9  # as its docstring says
    assert 2 * 2 * count < 12e6
