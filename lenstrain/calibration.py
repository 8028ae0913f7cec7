"""How far a lens can be trusted: its score, the grade of it, and the decision threshold.

The **score** is the average precision of the lens over all held-out samples, with the negatives reweighted so that
the concept has a reference prevalence of 1 % (calibrated average precision; Siblini et al., "Master your metrics with
calibration", 2020). It means the same on a layer of 5 concepts and of 2,687: 1 is perfect and 0.01 is chance, and a
lens that fires on everything is at chance.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
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


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class _Cuts(NamedTuple):
    """Positives from the highest logit down, and how many negatives each of them leaves above."""

    logits: NDArray[np.float64]
    """(positives,) descending"""
    order: NDArray[np.intp]
    """(positives,) which of the positives each is"""
    last_of_tie: NDArray[np.intp]
    """(positives,) place of the last positive with the same logit: tied logits are one threshold"""
    above: NDArray[np.intp]
    """(positives,) negatives at or above each"""
    strictly_above: NDArray[np.intp]
    """(positives,) negatives above each"""


def _cuts(y: NDArray[np.bool_], logits: NDArray[np.float64]) -> _Cuts:
    """Positives are few and negatives many, so the positives alone are sorted, and the negatives counted into them."""
    positives, negatives = logits[y], logits[~y]
    order = np.argsort(-positives, kind="stable")
    ascending = positives[order][::-1]
    n = len(ascending)
    # bins[k]: negatives with exactly k positives at or below them (side right), or below them (side left)
    at_or_above = np.bincount(np.searchsorted(ascending, negatives, side="right"), minlength=n + 1)
    strictly = np.bincount(np.searchsorted(ascending, negatives, side="left"), minlength=n + 1)
    last = np.searchsorted(-ascending[::-1], -ascending[::-1], side="right") - 1
    return _Cuts(
        ascending[::-1], order, last,
        np.cumsum(at_or_above[::-1])[:n], np.cumsum(strictly[::-1])[:n],
    )  # fmt: skip


def ranking(y: NDArray[np.bool_], logits: NDArray[np.float64], prevalence: float = REFERENCE_PREVALENCE) -> Ranking:
    """Rank metrics of logits (n,) against y (n,); tied logits count as one threshold.

    NaN throughout if a class is missing.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    if not n_positive or not n_negative:
        return Ranking(np.nan, np.nan, np.nan, n_positive, n_negative)
    cuts = _cuts(y, logits)
    true, false = (cuts.last_of_tie + 1) / n_positive, cuts.above / n_negative
    auroc = float(1 - ((cuts.above + cuts.strictly_above) / 2).mean() / n_negative)
    natural = n_positive / (n_positive + n_negative)

    def average_precision(share: float) -> float:
        return float((share * true / (share * true + (1 - share) * false)).mean())

    return Ranking(average_precision(prevalence), average_precision(natural), auroc, n_positive, n_negative)


def score_interval(
    y: NDArray[np.bool_],
    logits: NDArray[np.float64],
    prevalence: float = REFERENCE_PREVALENCE,
    *,
    groups: NDArray[np.intp],
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the score (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    Samples are resampled, not rows: the phases of a sample stand and fall together. Negatives enter the score only by
    how many lie above each positive, so their counts between positives are drawn, as many as there are samples of
    them: as if the rows of a sample were one. NaN if a class is missing; with a single positive sample only the
    negatives vary, and the interval is too narrow.

    Parameters
    ----------
    groups : (n,) the sample of each row.
    """
    if not y.any() or y.all():
        return Interval(np.nan, np.nan)
    rng = np.random.default_rng(seed)
    cuts = _cuts(y, logits)
    _, member = np.unique(groups[y][cuts.order], return_inverse=True)
    n_groups = int(member.max()) + 1
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)[:, member]
    n_negative = int(np.count_nonzero(np.bincount(groups[~y])))
    share = np.diff(cuts.above, prepend=0) / int((~y).sum())  # of negatives that each positive lets in
    let_in = rng.multinomial(n_negative, np.append(share, max(0.0, 1 - share.sum())), size=n_resamples)
    false = np.cumsum(let_in[:, :-1], axis=1) / n_negative
    weight = drawn / drawn.sum(axis=1, keepdims=True)
    true = np.cumsum(weight, axis=1)[:, cuts.last_of_tie]
    wanted = prevalence * true
    # A positive that was not drawn weighs nothing, and 0 / 0 must not come of it.
    precision = wanted / np.maximum(wanted + (1 - prevalence) * false, 1e-300)
    scores = (weight * precision).sum(axis=1)
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def is_uncertain(score: float, interval: Interval) -> bool:
    """Whether the interval of a score crosses the boundary of a grade."""
    return Grade.of(interval.low) != Grade.of(interval.high) if score == score else False


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


def threshold_for_fpr(y: NDArray[np.bool_], logits: NDArray[np.float64], fpr: float) -> float:
    """The lowest threshold that at most a share `fpr` of the negatives is at or above; midway to the next logit below.

    Raises
    ------
    ValueError
        If there are no negatives.
    """
    negatives = np.sort(logits[~y])[::-1]
    if not len(negatives):
        raise ValueError("no negatives to set a threshold by")
    allowed = int(fpr * len(negatives) + 1e-9)  # short of what rounding takes away
    if allowed >= len(negatives):
        return float(negatives[-1])
    bound = negatives[allowed]  # the first that must stay below
    above = logits[logits > bound]
    return float((bound + above.min()) / 2) if len(above) else float(np.nextafter(bound, np.inf))
