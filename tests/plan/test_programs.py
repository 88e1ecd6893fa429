"""The programs of a run, as the maths and the network say that they must be."""

from pathlib import Path

import jax
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.plan.programs import describe, programs
from diffusion_distill.stages import plan
from diffusion_distill.validate import from_file
from tests.plan.conftest import mesh, small_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_an_update_takes_as_many_forward_passes_as_the_maths_says(flops):
    """Teacher: one forward, two in its gradient. Student: two more, of its teacher.

    Less what the first layer has no gradient for, its input's: hence the tolerance.
    """
    forward = flops("sampler")
    assert flops("teacher") / forward == pytest.approx(3, rel=0.03)
    assert flops("student") / forward == pytest.approx(5, rel=0.03)


def test_accumulation_computes_the_same_in_a_loop_and_remat_more(flops):
    in_parts = {"runtime.accumulation": 4}
    assert flops("student", **in_parts) == pytest.approx(flops("student"), rel=1e-9)
    assert flops("student", **in_parts | {"runtime.remat": True}) > 1.1 * flops("student")


@pytest.mark.parametrize(
    ("teacher", "names"),
    [("", ["teacher", "student", "sampler"]), ("somewhere", ["student", "sampler"])],
)
def test_one_teacher_and_one_student_and_none_that_is_not_trained(teacher, names):
    config = small_config(**{"distill.teacher": teacher})
    assert [p.name for p in programs(config, plan(config), describe(config), mesh())] == names


def test_a_students_teacher_takes_half_of_its_memory_in_bfloat16(program):
    exact = program("student").argument_bytes()
    weights = sum(x.size for x in jax.tree.leaves(program("sampler").arguments[0]))
    saved = exact - program("student", **{"model.dtype": "bfloat16"}).argument_bytes()
    assert 0.9 * 2 * weights < saved < 2 * weights


def test_a_resident_data_set_is_an_argument_on_every_device(program):
    resident = program("teacher")
    streamed = program("teacher", **{"runtime.data_on_device": "never"})
    images, labels, ten_batches = 1797 * 64, 1797 * 4, 10 * resident.images
    difference = resident.argument_bytes() - streamed.argument_bytes()
    assert difference == images + labels - ten_batches * 64


def test_the_data_need_not_be_there():
    config = from_file(str(CONFIGS / "imagenet64_distill.py"))
    data = describe(config)
    assert (data.image_shape, data.num_classes, data.num_images) == ((64, 64, 3), 1000, 0)
    assert "there is no data/imagenet64: 64x64x3, read ahead, 1000 labels" in data.assumed
    config.data.image_size = 0
    with pytest.raises(UserError, match="config.data.image_size is 0"):
        describe(config)
    cifar = describe(from_file(str(CONFIGS / "cifar10_distill.py")))
    assert (cifar.image_shape, cifar.num_images) == ((32, 32, 3), 50_000)
