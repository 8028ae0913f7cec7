"""The decision threshold of a lens, and all that is measured at it.

A concept has a handful of calibration positives, and the best threshold on a handful is partly
luck. So each threshold is drawn towards the typical one of its level of abstraction, in deviations
above the noise floor, the more so the fewer calibration texts the concept has (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.metrics.thresholds import classify
from lenstrain.pack.lens import NoiseFloor

PRIOR_TEXTS = 6
"""Calibration texts that the typical threshold of a level is worth."""
_FEWEST = 5  # lenses that a typical threshold is the median of
_LOWEST, _STEP = -5.0, 0.01  # deviations: thresholds that were drawn lie on this grid
_HIGHEST = 50.0  # where what is kept of the grid ends


class AtThreshold(NamedTuple):
    """Test metrics at a threshold, both classes alike in prevalence."""

    f1: float
    precision: float
    recall: float
    accuracy: float
    f1_unnamed: float
    """Of positives that do not name the concept, against the same negatives; NaN without any."""
    f1_named: float
    """Of those that do."""
    false_positive_rate: float
    """Share of all unrelated test samples at or above the threshold."""
    natural_false_positive_rate: float
    """Of texts that express no concept; NaN without any."""


class Drawn(NamedTuple):
    """The test samples drawn for a concept."""

    y: NDArray[np.bool_]
    """(n,) whether each expresses the concept."""
    is_unnamed: NDArray[np.bool_]
    """(n,) whether it does so without naming it."""
    logits: NDArray[np.float64]
    natural: NDArray[np.float64] = np.zeros(0)
    """Logits of texts that express no concept."""


@dataclass(frozen=True)
class Cut:
    """A decision threshold, with what it takes to move it."""

    threshold: float
    """Logit from which on the concept counts as present."""
    metrics: AtThreshold
    own: float
    """Deviations above the noise floor at which the concept's own samples would have it."""
    n_texts: int
    """Distinct calibration texts that it was chosen on."""
    noise: NoiseFloor
    drawn: Drawn
    passing: NDArray[np.float32]
    """Share of unrelated test samples at or above each threshold of a grid in deviations, up to the
    first that none of them reaches."""
    beyond: NDArray[np.float64]
    """Those above the grid, in deviations: of a lens next to without noise, perhaps all of them."""

    @classmethod
    def make(
        cls,
        threshold: float,
        noise: NoiseFloor,
        drawn: Drawn,
        unrelated: NDArray[np.float64],
        n_texts: int,
    ) -> Cut:
        """A threshold and its metrics; `unrelated` are the logits of all unrelated test samples."""
        signal = np.sort((unrelated - noise.mean) / _deviation(noise))
        top = min(float(signal[-1]), _HIGHEST)
        steps = np.arange(max(0, int(np.ceil((top - _LOWEST) / _STEP)) + 1))
        above = len(signal) - np.searchsorted(signal, _LOWEST + _STEP * steps, side="left")
        rate = float((unrelated >= threshold).mean())
        own = (threshold - noise.mean) / _deviation(noise)
        passing = (above / len(signal)).astype(np.float32)
        metrics, beyond = _measure(drawn, threshold, rate), signal[len(signal) - above[-1] :]
        return cls(threshold, metrics, own, n_texts, noise, drawn, passing, beyond)

    def moved(self, deviations: float) -> Cut:
        """The cut at so many deviations above the noise floor, to the next step of the grid."""
        place = max(0, round((deviations - _LOWEST) / _STEP))
        at = _LOWEST + _STEP * place
        threshold = self.noise.mean + _deviation(self.noise) * at
        if place < len(self.passing):
            rate = float(self.passing[place])
        else:
            among = float((self.beyond >= at).mean()) if len(self.beyond) else 0.0
            rate = float(self.passing[-1]) * among
        return replace(self, threshold=threshold, metrics=_measure(self.drawn, threshold, rate))


def draw_thresholds(cuts: Sequence[Cut], levels: Sequence[int]) -> list[Cut]:
    """Each cut drawn towards the median of its level; towards that of all where a level has few.

    It starts from what the concept's own samples say, so that doing it twice changes nothing.

    Parameters
    ----------
    levels : the level of abstraction of each.
    """
    own, at = np.array([cut.own for cut in cuts]), np.array(levels)
    drawn = []
    for cut, level in zip(cuts, levels, strict=True):
        others = own[at == level]
        others = others if len(others) >= _FEWEST else own
        weight = cut.n_texts / (cut.n_texts + PRIOR_TEXTS)
        goal = weight * cut.own + (1 - weight) * float(np.median(others))
        drawn.append(cut.moved(goal) if len(others) >= _FEWEST else cut)
    return drawn


def _measure(drawn: Drawn, threshold: float, rate: float) -> AtThreshold:
    y, is_unnamed, logits, natural = drawn

    def f1_of(kept: NDArray[np.bool_]) -> float:
        some = kept | ~y
        return classify(y[some], logits[some], threshold).f1 if kept.any() else np.nan

    found = classify(y, logits, threshold)
    by_name = f1_of(is_unnamed), f1_of(y & ~is_unnamed)
    in_natural = float((natural >= threshold).mean()) if len(natural) else np.nan
    return AtThreshold(*found, *by_name, rate, in_natural)


def _deviation(noise: NoiseFloor) -> float:
    return max(noise.deviation, 1e-12)
