"""How far a lens can be trusted: its score, the grade of it, and the decision threshold.

The **score** is the average precision of the lens over all held-out samples, with the negatives
reweighted so that the concept has a reference prevalence of 1 % (calibrated average precision;
Siblini et al., "Master your metrics with calibration", 2020). It means the same on a level of 5
concepts and of 2,687: 1 is perfect and 0.01 is chance, and a lens that fires on everything is at
chance.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REFERENCE_PREVALENCE = 0.01

# positives: up to so many, a comparison of each with all negatives is faster than to sort the
# negatives
_FEW = 40


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
    """A confidence interval; NaN where there is nothing to compute it from."""

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
    reaching: NDArray[np.float64]
    """Logits of the negatives that are at or above any positive."""

    @property
    def strictly_above(self) -> NDArray[np.intp]:
        """(positives,) negatives above each"""
        return len(self.reaching) - np.searchsorted(
            np.sort(self.reaching), self.logits, side="right"
        )


def _cuts(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> _Cuts:
    if np.isnan(positives).any():
        positives, negatives = (
            np.where(np.isnan(values), -np.inf, values) for values in (positives, negatives)
        )
    order = np.argsort(-positives, kind="stable")
    descending = positives[order]
    reaching = negatives[
        negatives >= descending[-1]
    ]  # of a good lens hardly any; NaN is not among them
    if len(descending) <= _FEW:
        above = np.array([np.count_nonzero(reaching >= logit) for logit in descending])
    else:
        above = len(reaching) - np.searchsorted(np.sort(reaching), descending, side="left")
    last = np.searchsorted(-descending, -descending, side="right") - 1
    return _Cuts(descending, order, last, above, reaching)


def ranking(
    y: NDArray[np.bool_], logits: NDArray[np.float64], prevalence: float = REFERENCE_PREVALENCE
) -> Ranking:
    """Rank metrics of logits (n,) against y (n,); tied logits are one threshold, and NaN ranks
    below all numbers.

    NaN throughout if a class is missing.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    if not n_positive or not n_negative:
        return Ranking(np.nan, np.nan, np.nan, n_positive, n_negative)
    cuts = _cuts(logits[y], logits[~y])
    auroc = float(1 - ((cuts.above + cuts.strictly_above) / 2).mean() / n_negative)
    natural = n_positive / (n_positive + n_negative)
    score, average_precision = (
        _average_precision(cuts, n_negative, share) for share in (prevalence, natural)
    )
    return Ranking(score, average_precision, auroc, n_positive, n_negative)


def ranking_score(
    positives: NDArray[np.float64],
    negatives: NDArray[np.float64],
    n_negative: int,
    prevalence: float,
) -> float:
    """The score of `ranking` alone, from the logits of each class.

    Parameters
    ----------
    negatives : those that are not below all positives will do.
    n_negative : how many there are in all.
    """
    if not len(positives) or not n_negative:
        return np.nan
    return _average_precision(_cuts(positives, negatives), n_negative, prevalence)


def _average_precision(cuts: _Cuts, n_negative: int, share: float) -> float:
    true, false = (cuts.last_of_tie + 1) / len(cuts.logits), cuts.above / n_negative
    return float((share * true / (share * true + (1 - share) * false)).mean())


def score_interval(
    y: NDArray[np.bool_],
    logits: NDArray[np.float64],
    prevalence: float = REFERENCE_PREVALENCE,
    *,
    groups: NDArray[np.integer],
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `ranking(y, logits, prevalence).score`.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993. Samples are drawn, not rows, each
    class by itself: the phases of a sample stand and fall together. Negatives enter the score only
    by how many lie above each positive, so their counts between positives are drawn, as many as
    there are samples of them: as if the rows of a sample were one, which makes the interval too
    wide rather than too narrow.

    With a single positive sample only the negatives vary, and the interval is too narrow. With all
    positives above all negatives it is (1, 1), however few they are: a bootstrap cannot draw what
    it has not seen.

    Parameters
    ----------
    y, logits : (n,)
    groups : (n,) the sample of each row.
    n_resamples : how often the samples are drawn anew.
    confidence : share of such intervals that should contain the true score.
    seed : all that the draws depend on.

    Returns
    -------
    NaN at both ends if a class is missing.
    """
    if not y.any() or y.all():
        return Interval(np.nan, np.nan)
    rng = np.random.default_rng(seed)
    cuts = _cuts(logits[y], logits[~y])
    _, member = np.unique(groups[y][cuts.order], return_inverse=True)
    drawn = _redrawn(rng, n_resamples, int(member.max()) + 1)[:, member]
    n_positive = drawn.sum(axis=1)
    true = np.cumsum(drawn, axis=1)[:, cuts.last_of_tie] / n_positive[:, None]
    n_negative = _n_distinct(groups[~y])
    share = np.diff(cuts.above, prepend=0) / int(
        (~y).sum()
    )  # of negatives that each positive lets in
    let_in = rng.multinomial(
        n_negative, np.append(share, max(0.0, 1 - share.sum())), size=n_resamples
    )
    false = np.cumsum(let_in[:, :-1], axis=1) / n_negative
    wanted = prevalence * true
    # A positive that was not drawn weighs nothing, and 0 / 0 must not come of it.
    precision = wanted / np.maximum(wanted + (1 - prevalence) * false, 1e-300)
    scores = (drawn * precision).sum(axis=1) / n_positive
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _redrawn(rng: np.random.Generator, times: int, n: int) -> NDArray[np.intp]:
    """(times, n) how often each of n is drawn in n draws; a multinomial, several times as fast as
    numpy's."""
    drawn = rng.integers(n, size=(times, n)) + n * np.arange(times)[:, None]
    return np.bincount(drawn.ravel(), minlength=times * n).reshape(times, n)


def _n_distinct(numbers: NDArray[np.integer]) -> int:
    """How many different numbers there are; without sorting them where they lie as close as row
    numbers do."""
    low, high = int(numbers.min()), int(numbers.max())
    if high - low > 16 * len(numbers):
        return len(np.unique(numbers))
    return int(np.count_nonzero(np.bincount(numbers - low)))


def is_uncertain(score: float, interval: Interval) -> bool:
    """Whether the interval of a score crosses the boundary of a grade."""
    return Grade.of(interval.low) != Grade.of(interval.high) if score == score else False
