"""Names of metrics: each says on what, of how many images, and against what it was measured."""

from diffusion_distill.errors import UserError

# Fewer images than features leave the covariance singular, and the distance mostly bias.
LEAST_IMAGES = {"inception": 2049}

# Digits behind the point of what a metric's name begins with; 2 for the others.
_DIGITS = {"kid": 5, "precision": 3, "recall": 3}
_ON_INCEPTION = {"fd": "fid"}


def metric_name(
    label: str, features: str, count: int, reference: str = "", biased: bool = False
) -> str:
    """The name of a metric, which is its definition.

    `fid50k_train`: on Inception features, 50,000 images, against all of the training split.
    `kid_pixels1797_test`: on pixels, 1,797 images. `is50k`: of a score that has no reference.
    `fid1k_train_biased`: of fewer images than can be compared.

    Args:
        label: fd, kid, precision, recall or is.
        features: name of the feature network.
        count: images measured.
        reference: a split; "vs_NAME" for what is no split of the data set; "" for none.
        biased: see `is_biased`.
    """
    name = _ON_INCEPTION.get(label, label) if features == "inception" else f"{label}_{features}"
    number = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    return "_".join([f"{name}{number}", *[reference] * bool(reference), *["biased"] * biased])


def is_biased(features: str, count: int) -> bool:
    """Whether a Frechet distance of so few images says more of their number than of them."""
    return count < LEAST_IMAGES.get(features, 0)


def check_count(features: str, count: int, allow_biased: bool, what: str) -> None:
    """Raises UserError where a Frechet distance would be biased and that was not asked for.

    The message begins with `what` has so many images: "config.eval.num_images".
    """
    if is_biased(features, count) and not allow_biased:
        raise UserError(
            f"{what} is {count}; a Frechet distance on {features} takes at least "
            f"{LEAST_IMAGES[features]} images. For fewer, ask for it by name: "
            "--allow_biased or config.eval.allow_biased=True"
        )


def value_text(
    metric: str, value: float | None, spread: float | None = None, more_digits: int = 0
) -> str:
    """A metric's value, and its spread, as a person reads it; "" for None."""
    if value is None:
        return ""
    digits = _DIGITS.get(kind(metric), 2) + more_digits
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def kind(metric: str) -> str:
    """What a metric's name begins with: kid of kid50k_train and of kid_pixels1k_train."""
    return metric.split("_")[0].rstrip("k").rstrip("0123456789")
