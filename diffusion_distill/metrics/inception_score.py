"""The Inception Score of a set of images, from a classifier's logits."""

import numpy as np

SPLITS = 10


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """(mean, standard deviation) over splits of exp(E KL(p(y | x) || p(y))), in float64.

    Salimans et al. 2016, section 4; p(y) is that of the split. Splits are drawn at random, once and
    for all, as equal in size as can be: where images come class by class, consecutive ones, as
    other implementations take them, would lack classes and score far too low.

    logits are [N, K], N at least `splits`.
    """
    order = np.random.default_rng(0).permutation(len(logits))
    logits = np.asarray(logits, np.float64)
    scores = [_score(logits[part]) for part in np.array_split(order, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # Where p(y) underflows to 0 all p(y | x) are 0, too, and 0 log 0 counts as 0.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    return np.exp((p * (log_p - log_marginal)).sum(axis=1).mean())
