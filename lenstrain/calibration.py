"""How far a lens can be trusted: discriminability (score and grade) and probabilities.

The **score** is the average precision of the lens over all held-out samples, with the negatives reweighted so that
the concept has a reference prevalence of 1 % (calibrated average precision; Siblini et al., "Master your metrics with
calibration", 2020). It means the same on a layer of 5 concepts and of 2,687: 1 is perfect and 0.01 is chance, and a
lens that fires on everything is at chance.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

REFERENCE_PREVALENCE = 0.01


class Grade(StrEnum):
    """How far a lens can be trusted."""

    A = "A"
    """score >= 0.5"""
    B = "B"
    """score >= 0.2"""
    C = "C"
    """below"""

    @classmethod
    def of(cls, score: float) -> Grade:
        """The grade of a calibration score."""
        return cls.A if score >= 0.5 else cls.B if score >= 0.2 else cls.C

    def reaches(self, wanted: Grade) -> bool:
        """Whether this grade is at least as good."""
        return self.value <= wanted.value


class Ranking(NamedTuple):
    """How well logits put the samples of a concept above all others."""

    score: float
    """Average precision at the reference prevalence."""
    average_precision: float
    """Average precision at the prevalence of the samples."""
    auroc: float
    """Chance that a positive is above a negative."""
    n_positive: int
    n_negative: int


def ranking(y: NDArray[np.bool_], logits: NDArray[np.float64], prevalence: float = REFERENCE_PREVALENCE) -> Ranking:
    """Rank metrics of logits (n,) against y (n,); tied logits count as one threshold.

    NaN throughout if a class is missing.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    if not n_positive or not n_negative:
        return Ranking(np.nan, np.nan, np.nan, n_positive, n_negative)
    order = np.argsort(-logits, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(logits[order])), len(y) - 1)
    true = np.cumsum(y[order])[last_of_tie] / n_positive  # true positive rate at each threshold
    false = np.cumsum(~y[order])[last_of_tie] / n_negative  # false positive rate
    gained = np.diff(true, prepend=0.0)

    def average_precision(share: float) -> float:
        return float((gained * (share * true / (share * true + (1 - share) * false))).sum())

    auroc = float(np.trapezoid(np.append(0.0, true), np.append(0.0, false)))
    natural = n_positive / (n_positive + n_negative)
    return Ranking(average_precision(prevalence), average_precision(natural), auroc, n_positive, n_negative)


class Classification(NamedTuple):
    """Metrics at a threshold, as if half of the samples were positive."""

    f1: float
    precision: float
    recall: float


def classify(y: NDArray[np.bool_], logits: NDArray[np.float64], threshold: float) -> Classification:
    """F1, precision and recall of `logits >= threshold` at a prevalence of one half.

    Negatives cost nothing here, so there are more of them than positives, and F1 would depend on how many. Weighting
    the classes alike gives the F1 of a balanced test set with the precision of all its negatives.
    """
    recall = float((logits[y] >= threshold).mean())
    false_rate = float((logits[~y] >= threshold).mean())
    precision = recall / (recall + false_rate) if recall else 0.0
    return Classification(2 * recall / (recall + false_rate + 1), precision, recall)


def best_threshold(y: NDArray[np.bool_], logits: NDArray[np.float64]) -> float:
    """The logit that maximises F1 as `classify` defines it; among equals the one nearest to 0, the fit's own choice."""
    values = np.unique(logits)
    cuts = np.concatenate([[values[0] - 1.0, 0.0], (values[:-1] + values[1:]) / 2])
    recall = 1 - np.searchsorted(np.sort(logits[y]), cuts, side="left") / y.sum()
    false_rate = 1 - np.searchsorted(np.sort(logits[~y]), cuts, side="left") / (~y).sum()
    f1 = 2 * recall / (recall + false_rate + 1)
    return float(cuts[np.lexsort((np.abs(cuts), -f1))[0]])


class Sigmoid(NamedTuple):
    """Calibrated probability of presence: 1 / (1 + exp(-(slope * logit + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities of logits, any shape."""
        return np.asarray(scipy.special.expit(self.slope * logits + self.intercept))


def fit_sigmoid(y: NDArray[np.bool_], logits: NDArray[np.float64]) -> Sigmoid:
    """Platt's sigmoid on calibration rows, both classes weighted alike.

    Targets are smoothed as Platt (1999) does, so that a separable calibration set does not give certainty. The slope
    stays positive: a lens whose logits run the wrong way gets a flat curve, not an inverted one.

    Parameters
    ----------
    y, logits : (n,) of the calibration split, both classes present.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    target = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    weight = np.where(y, 0.5 / n_positive, 0.5 / n_negative)
    unit = float(np.std(logits)) or 1.0
    x = np.stack([logits / unit, np.ones(len(y))], axis=1)
    theta = np.zeros(2)

    def loss(at: NDArray[np.float64]) -> float:
        f = x @ at
        return float(weight @ (np.logaddexp(0, f) - target * f))

    for _ in range(100):
        p = scipy.special.expit(x @ theta)
        gradient = x.T @ (weight * (p - target))
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = (x.T * (weight * p * (1 - p))) @ x + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while loss(theta - scale * step) > loss(theta) and scale > 1e-9:
            scale /= 2
        theta = theta - scale * step
    if theta[0] <= 0:
        return Sigmoid(0.0, float(scipy.special.logit(weight @ target)))
    return Sigmoid(float(theta[0] / unit), float(theta[1]))
