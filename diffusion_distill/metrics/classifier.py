"""Do generated images show the label that was asked for? Asked of an independent classifier."""

import functools

import numpy as np

from diffusion_distill.errors import UserError

FOLDS = 5  # of cross-validation


class LabelJudge:
    """A support vector machine on raw pixels, fitted on real images. For small images only.

    It knows nothing of the diffusion model: other method, other code, real images alone.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Fits on uint8 images [N, H, W, C] and labels [N]; see `check_labels`."""
        from sklearn import svm

        self._pixels, self._labels = _flat(images), labels
        self._model = svm.SVC(C=10.0, gamma="scale").fit(self._pixels, labels)

    @functools.cached_property
    def held_out_accuracy(self) -> float:
        """How often its like is right on real images that it was not fitted on.

        By five-fold cross-validation; about the best that agreement can reach.
        """
        from sklearn import base, model_selection

        folds = model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        like = base.clone(self._model)
        return float(
            model_selection.cross_val_score(like, self._pixels, self._labels, cv=folds).mean()
        )

    def agreement(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images in which it sees the label that was asked for."""
        return float(np.mean(self._model.predict(_flat(images)) == labels))


def check_labels(labels: np.ndarray, name: str) -> None:
    """Raises UserError where a judge cannot be fitted on these labels [N] of `name`, or not tested.

    Whatever fold is left out, images of two labels must remain.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if sum(counts > 1) < 2 or max(counts) < FOLDS:
        takes = f"it takes two labels of at least 2 images, one of them of {FOLDS}"
        found = f"{name} has {len(labels)} images of {len(counts)} labels"
        raise UserError(f"config.eval.label_agreement is True, but {found}; {takes}")


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0
