"""Where to cut logits: by the best F1, the best accuracy, or a false positive rate."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Of a logit: shipped lenses are float32, and a logit on the bound must stay below it there, too.
_ABOVE_ALL = 1e-3


class Classification(NamedTuple):
    """Metrics at a threshold, as if half of the samples were positive."""

    f1: float
    precision: float
    recall: float
    accuracy: float


Best = Literal["f1", "accuracy"]
"""What a threshold makes as high as it can be, both classes alike in prevalence."""


def classify(y: NDArray[np.bool_], logits: NDArray[np.float64], threshold: float) -> Classification:
    """F1, precision, recall and accuracy of `logits >= threshold` at a prevalence of one half.

    Negatives cost nothing here, so there are more of them than positives, and F1 would depend on
    how many. Weighting the classes alike gives the F1 of a balanced test set with the precision of
    all its negatives.
    """
    passes = logits >= threshold
    n_positive, n_passed, found = int(y.sum()), int(passes.sum()), int((passes & y).sum())
    recall = found / n_positive if n_positive else np.nan
    n_negative = len(y) - n_positive
    false_rate = (n_passed - found) / n_negative if n_negative else np.nan
    precision = recall / (recall + false_rate) if recall else 0.0
    f1, accuracy = 2 * recall / (recall + false_rate + 1), (recall + 1 - false_rate) / 2
    return Classification(f1, precision, recall, accuracy)


def best_threshold(y: NDArray[np.bool_], logits: NDArray[np.float64], best: Best = "f1") -> float:
    """The logit that maximises F1 or accuracy as `classify` defines them; among equals the one
    nearest to 0.

    F1 does not count negatives that are told right: on overlapping classes it takes a lower
    threshold than accuracy does.
    """
    order = np.argsort(logits)
    ascending = logits[order]
    positives_below = np.concatenate([[0], np.cumsum(y[order])])
    cut = np.flatnonzero(ascending[1:] > ascending[:-1]) + 1  # with so many logits below it
    below = np.concatenate([[0, np.searchsorted(ascending, 0.0)], cut])
    cuts = np.concatenate([[ascending[0] - 1.0, 0.0], (ascending[cut - 1] + ascending[cut]) / 2])
    n_positive = positives_below[-1]
    n_negative = len(logits) - n_positive
    # In the arithmetic of `classify`: what ties there must tie here.
    recall = (n_positive - positives_below[below]) / n_positive
    false_rate = (n_negative - (below - positives_below[below])) / n_negative
    f1, accuracy = 2 * recall / (recall + false_rate + 1), (recall + 1 - false_rate) / 2
    worth = f1 if best == "f1" else accuracy
    equal = cuts[worth == worth.max()]
    return float(equal[np.abs(equal).argmin()])


def threshold_for_fpr(y: NDArray[np.bool_], logits: NDArray[np.float64], fpr: float) -> float:
    """The lowest threshold at which `logit >= threshold` passes at most a share of the negatives.

    Midway between the highest negative that is kept out and the next logit of either class above
    it; 1 below the lowest logit if all may pass.

    Parameters
    ----------
    y, logits : (n,); positives may be missing, and a NaN never passes.
    fpr : share of the negatives, 0 to 1. A tie that would exceed it is kept out as a whole.

    Raises
    ------
    ValueError
        If there are no negatives, or `fpr` is not a share.
    """
    negatives = logits[~y]
    n = len(negatives)
    if not n:
        raise ValueError("no negatives to set a threshold by")
    if not 0 <= fpr <= 1:
        raise ValueError(f"a false positive rate is a share, 0 to 1, not {fpr}")
    allowed = int(fpr * n) + 1
    while allowed / n > fpr:  # by the quotient, since a product rounds: 0.29 * 100 is below 29
        allowed -= 1
    negatives = negatives[~np.isnan(negatives)]
    if allowed >= len(negatives):
        return float(np.nanmin(logits)) - 1.0
    place = len(negatives) - 1 - allowed
    bound = float(np.partition(negatives, place)[place])  # the highest that must stay below
    above = logits[logits > bound]
    if not len(above):
        return bound + _ABOVE_ALL * max(1.0, abs(bound))
    following = float(above.min())
    middle = bound / 2 + following / 2  # neighbouring floats have none
    return middle if bound < middle <= following else following
