"""Do generated images show the label that was asked for? Asked of an independent classifier."""

import numpy as np


class LabelJudge:
    """A support vector machine on raw pixels, fitted on real images. For small images only.

    It knows nothing of the diffusion model: other method, other code, real images alone.

    Attributes:
        held_out_accuracy: how often it is right on real images that it was not fitted on, by
            five-fold cross-validation: about the best that agreement can reach.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Fits on uint8 images [N, H, W, C] and labels [N]."""
        from sklearn import model_selection, svm

        model = svm.SVC(C=10.0, gamma="scale")
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        scores = model_selection.cross_val_score(model, _flat(images), labels, cv=folds)
        self.held_out_accuracy = float(scores.mean())
        self._model = model.fit(_flat(images), labels)

    def agreement(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images in which it sees the label that was asked for."""
        return float(np.mean(self._model.predict(_flat(images)) == labels))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0
