"""Names that say what was measured."""

import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.names import check_count, is_biased, metric_name


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("fd", "inception", 50_000, "train"), "fid50k_train"),
        (("fd", "inception", 10_000, "test"), "fid10k_test"),
        (("fd", "pixels", 1000, "train"), "fd_pixels1k_train"),
        (("fd", "inception", 50_000, "vs_mine"), "fid50k_vs_mine"),
        (("fd", "inception", 500, "train", True), "fid500_train_biased"),
        (("kid", "inception", 50_000, "train"), "kid50k_train"),
        (("precision", "pixels", 1797, "train"), "precision_pixels1797_train"),
        (("is", "inception", 50_000), "is50k"),
    ],
)
def test_names(arguments, name):
    assert metric_name(*arguments) == name


def test_fewer_images_than_fid_takes_must_be_asked_for_by_name():
    with pytest.raises(UserError, match="eval.num_images is 2048; .* takes at least 2049 images"):
        check_count("inception", 2048, False, "config.eval.num_images")
    check_count("inception", 2048, True, "config.eval.num_images")
    check_count("inception", 2049, False, "config.eval.num_images")
    check_count("pixels", 2, False, "config.eval.num_images")
    assert is_biased("inception", 2048)
    assert not is_biased("inception", 2049)
