"""How well a lens puts the samples of its concept above all others, and how sure that is.

The **score** is the average precision of the lens over all held-out samples, with the negatives
reweighted so that the concept has a reference prevalence of 1 % (calibrated average precision;
Siblini et al., "Master your metrics with calibration", 2020). It means the same on a level of 5
concepts and of 2,687: 1 is perfect and 0.01 is chance, and a lens that fires on everything is at
chance.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

REFERENCE_PREVALENCE = 0.01

# Positives: up to so many, to compare each with all negatives is faster than to sort the negatives.
_FEW = 40


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
    above: NDArray[np.number]
    """(positives,) negatives at or above each"""
    reaching: NDArray[np.float64]
    """Logits of the negatives that are at or above any positive."""

    def drawn(self, times: int) -> _Cuts:
        """Where there are several draws, one of them for each of `times` resamples, in turn."""
        if self.logits.ndim == 1:
            return self
        turn = np.arange(times) % len(self.logits)
        of_turn = self.order[turn], self.last_of_tie[turn], self.above[turn]
        return _Cuts(self.logits[turn], *of_turn, self.reaching)

    @property
    def strictly_above(self) -> NDArray[np.intp]:
        """(positives,) negatives above each"""
        ascending = np.sort(self.reaching)
        return len(ascending) - np.searchsorted(ascending, self.logits, side="right")


def _cuts(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> _Cuts:
    if np.isnan(positives).any():
        positives, negatives = (np.where(np.isnan(x), -np.inf, x) for x in (positives, negatives))
    order = np.argsort(-positives, kind="stable")
    descending = positives[order]
    reaching = negatives[negatives >= descending[-1]]  # hardly any, of a good lens; never NaN
    if len(descending) <= _FEW:
        above = np.array([np.count_nonzero(reaching >= logit) for logit in descending])
    else:
        above = len(reaching) - np.searchsorted(np.sort(reaching), descending, side="left")
    last = np.searchsorted(-descending, -descending, side="right") - 1
    return _Cuts(descending, order, last, above, reaching)


def ranking(
    y: NDArray[np.bool_], logits: NDArray[np.float64], prevalence: float = REFERENCE_PREVALENCE
) -> Ranking:
    """Rank metrics of logits (n,) against y (n,); ties are one threshold, NaN is below all numbers.

    NaN throughout if a class is missing.
    """
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    if not n_positive or not n_negative:
        return Ranking(np.nan, np.nan, np.nan, n_positive, n_negative)
    cuts = _cuts(logits[y], logits[~y])
    auroc = float(1 - ((cuts.above + cuts.strictly_above) / 2).mean() / n_negative)
    shares = prevalence, n_positive / (n_positive + n_negative)
    score, average_precision = (_average_precision(cuts, n_negative, share) for share in shares)
    return Ranking(score, average_precision, auroc, n_positive, n_negative)


def _average_precision(cuts: _Cuts, n_negative: int, share: float) -> float:
    true, false = (cuts.last_of_tie + 1) / cuts.logits.shape[-1], cuts.above / n_negative
    return float((share * true / (share * true + (1 - share) * false)).mean())


class Ranked(NamedTuple):
    """The positives of a concept, ranked among its negatives: all that its score is made of.

    By one lens, or by several draws of a lens that knows nothing of the concept: then the cuts are
    arrays (draws, positives), and the score is the mean over the draws.
    """

    cuts: _Cuts
    texts: NDArray[np.integer]
    """(positives,) the text of each, in the order in which their logits were given."""
    n_rows: int
    """Negatives."""
    n_texts: int
    """Distinct texts among them."""

    @property
    def n_positive_texts(self) -> int:
        """Distinct texts among the positives."""
        return len(np.unique(self.texts))

    def score(self, prevalence: float = REFERENCE_PREVALENCE) -> float:
        """Average precision at a prevalence; NaN if a class is missing."""
        if not len(self.texts) or not self.n_rows:
            return np.nan
        return _average_precision(self.cuts, self.n_rows, prevalence)

    def interval(
        self,
        prevalence: float = REFERENCE_PREVALENCE,
        *,
        n_resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Interval:
        """Bootstrap interval of the score that holds for few texts; NaN if a class is missing.

        A bootstrap cannot draw what it has not seen: of five positives above all negatives it says
        1.00-1.00. So each end is that with one text more, the one that would hurt most: the low end
        the lower of two, with a negative above all positives or a positive below everything; the
        high end with a positive above everything. Negatives enter by how many lie above each
        positive, a number that varies as a Poisson variable does.

        `benchmarks/intervals.py` measures coverage and width. Raising a positive never lowers an
        end, for a given seed, rows that are texts, and no ties among positives.
        """
        if not len(self.texts) or not self.n_rows:
            return Interval(np.nan, np.nan)
        # Texts are numbered by rank, so that the same draws hit the same ranks whatever the logits.
        in_order = self.texts[self.cuts.order]
        _, first, text = np.unique(in_order, return_index=True, return_inverse=True)
        text = np.argsort(np.argsort(first))[text]
        resampled = _Resampled(np.random.default_rng(seed), self, n_resamples, prevalence)
        luck, tail = resampled.luck(), (1 - confidence) / 2

        def end(unseen: _Unseen, share: float) -> float:
            return float(np.quantile(resampled.scores(self.cuts, text, luck, unseen), share))

        return Interval(min(end("negative", tail), end("lowest", tail)), end("highest", 1 - tail))

    def lead_over(
        self,
        other: Ranked,
        prevalence: float = REFERENCE_PREVALENCE,
        *,
        n_resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> float:
        """Lower end of the interval of this score minus that of other logits of the same rows.

        The positives are drawn once for both, which makes the comparison a paired one. The
        negatives that lie high are others on each side, and vary by themselves. Where the other is
        several draws, each resample takes one of them. The spread is that
        of the bootstrap times sqrt(n / (n - 1)) for n texts: drawing n from n understates it. It is
        still too narrow for few: of two equally good lenses one is said to lead in 7 % of cases
        with 3 texts, in 5 % with 5, in 2 % with 12 (900 negatives), and in 8 % with 20 texts and 20
        negatives, where 2.5 % would be right (`benchmarks/intervals.py`).
        NaN if a class is missing, and no lead with a single text.
        """
        if not len(self.texts) or not self.n_rows:
            return np.nan
        if not other.n_rows:
            return np.nan
        _, text = np.unique(self.texts, return_inverse=True)
        resampled = _Resampled(np.random.default_rng(seed), self, n_resamples, prevalence)
        beside = other.cuts.drawn(n_resamples)
        beside = beside._replace(above=beside.above * (self.n_rows / other.n_rows))
        own, others = (
            resampled.scores(cuts, text[cuts.order], resampled.luck())
            for cuts in (self.cuts, beside)
        )
        ahead, n = own - others, resampled.n_texts
        if n == 1:
            return -1.0
        middle = float(ahead.mean())
        low = float(np.quantile(ahead, (1 - confidence) / 2))
        return middle - (middle - low) * float(np.sqrt(n / (n - 1)))


def rank_texts(
    y: NDArray[np.bool_], logits: NDArray[np.float64], texts: NDArray[np.integer]
) -> Ranked:
    """Rank the positives of some rows: y, logits and the text of each row (n,)."""
    return rank_positives(logits[y], texts[y], logits[~y], int((~y).sum()), _n_distinct(texts[~y]))


def rank_positives(
    positives: NDArray[np.float64],
    texts: NDArray[np.integer],
    negatives: NDArray[np.float64],
    n_rows: int,
    n_texts: int,
) -> Ranked:
    """Rank positives by the logits of each class.

    Parameters
    ----------
    texts : the text of each positive.
    negatives : those that are not below all positives will do.
    n_rows, n_texts : how many negatives, and texts among them, there are in all.
    """
    cuts = _cuts(positives, negatives) if len(positives) else _NO_CUTS
    return Ranked(cuts._replace(reaching=_NONE), texts, n_rows, n_texts)


def rank_draws(
    positives: NDArray[np.float64],
    texts: NDArray[np.integer],
    above: NDArray[np.intp],
    n_rows: int,
    n_texts: int,
) -> Ranked:
    """Rank positives by several draws of a lens.

    Parameters
    ----------
    positives : (draws, positives) logits.
    texts : (positives,) the text of each.
    above : (draws, positives) negatives at or above each.
    n_rows, n_texts : how many negatives, and texts among them, there are in all.
    """
    positives = np.where(np.isnan(positives), -np.inf, positives)
    order = np.argsort(-positives, axis=1, kind="stable")
    descending = np.take_along_axis(positives, order, axis=1)
    n = positives.shape[1]
    last = np.broadcast_to(np.arange(n), positives.shape).copy()
    last[:, :-1][descending[:, :-1] == descending[:, 1:]] = n
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    above = np.take_along_axis(above, order, axis=1)
    return Ranked(_Cuts(descending, order, last, above, _NONE), texts, n_rows, n_texts)


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
    """`Ranked.interval` of logits (n,) against y (n,); `groups` (n,) is the text of each row."""
    return rank_texts(y, logits, groups).interval(
        prevalence, n_resamples=n_resamples, confidence=confidence, seed=seed
    )


_Unseen = Literal["negative", "lowest", "highest"]
_NONE = np.zeros(0)
_NO_CUTS = _Cuts(_NONE, _NONE.astype(np.intp), _NONE.astype(np.intp), _NONE.astype(np.intp), _NONE)


class _Resampled:
    """Scores on texts drawn anew: the rows of a text stand and fall together (Efron and Tibshirani,
    An Introduction to the Bootstrap, 1993)."""

    def __init__(self, rng: np.random.Generator, ranked: Ranked, times: int, share: float) -> None:
        self._rng, self._share, self.n_texts = rng, share, ranked.n_positive_texts
        self._n_rows, self._n_negative = ranked.n_rows, ranked.n_texts
        self._places = rng.random((times, self.n_texts + 1))

    def luck(self) -> NDArray[np.float64]:
        """(times, 1) standard normal: how many negatives lie above the positives, for better or
        worse."""
        return self._rng.standard_normal((len(self._places), 1))

    def scores(
        self,
        cuts: _Cuts,
        text: NDArray[np.intp],
        luck: NDArray[np.float64],
        unseen: _Unseen | None = None,
    ) -> NDArray[np.float64]:
        """(times,) scores.

        Parameters
        ----------
        text : (positives,) the text of each, from the highest logit down; (times, positives) where
            `cuts` are those of several draws.
        unseen : one text more: a negative above all positives, a positive below everything, or a
            positive above everything.
        """
        above = np.asarray(cuts.above * (self._n_negative / self._n_rows), np.float64)
        last = cuts.last_of_tie
        drawn, size = self._drawn(unseen in ("lowest", "highest")), len(text) / self.n_texts
        if unseen == "highest":
            weight = np.hstack([size * drawn[:, :1], drawn[:, 1:][:, text]])
            above, last = np.append(0.0, above), np.append(0, last + 1)
        elif unseen == "lowest":
            weight = np.hstack([drawn[:, text], size * drawn[:, -1:]])
            above, last = np.append(above, np.inf), np.append(last, len(last))
        else:
            weight = _columns(drawn, text)
            above = above + float(unseen == "negative")
        false = np.minimum(_gamma_quantile(above, luck) / self._n_negative, 1.0)
        total = weight.sum(axis=1)
        true = self._share * _columns(np.cumsum(weight, axis=1), last) / total[:, None]
        # A positive that was not drawn weighs nothing, and 0 / 0 must not come of it.
        precision = true / np.maximum(true + (1 - self._share) * false, 1e-300)
        return np.asarray((weight * precision).sum(axis=1) / total)

    def _drawn(self, one_more: bool) -> NDArray[np.float64]:
        """(times, texts) how often each text is drawn, in as many draws as there are texts."""
        n, times = self.n_texts + one_more, len(self._places)
        numbers = (self._places[:, :n] * n).astype(np.intp) + n * np.arange(times)[:, None]
        counts = np.bincount(numbers.ravel(), minlength=times * n)
        return counts.reshape(times, n).astype(np.float64)


def _columns(values: NDArray[Any], numbers: NDArray[np.intp]) -> NDArray[Any]:
    """Columns of values (rows, columns) by number; numbers (rows, n) are others for each row."""
    if numbers.ndim == 1:
        return np.asarray(values[:, numbers])
    return np.take_along_axis(values, numbers, axis=1)


def _gamma_quantile(shape: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of gamma variables at normal deviates z, by Wilson and Hilferty (1931); rises with
    both, and is 0 at shape 0."""
    k = np.clip(shape, 1e-9, 1e15)
    return np.asarray(k * np.maximum(0.0, 1 - 1 / (9 * k) + z / (3 * np.sqrt(k))) ** 3)


def _n_distinct(numbers: NDArray[np.integer]) -> int:
    """How many different numbers there are; without sorting if they are as dense as row numbers."""
    if not len(numbers):
        return 0
    low, high = int(numbers.min()), int(numbers.max())
    if high - low > 16 * len(numbers):
        return len(np.unique(numbers))
    return int(np.count_nonzero(np.bincount(numbers - low)))
