"""What is known of data that is not at hand."""

from pathlib import Path

import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.plan.describe import describe
from diffusion_distill.validate import from_file

CONFIGS = Path(__file__).parents[2] / "configs"


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
