"""Probabilities of presence from the logits of lenses, and how good they are.

    calibration rows of all concepts --fit_calibrators--> slope and intercept of each
                                     logit --Calibrator--> probability

A concept has a handful of calibration texts, and a map fitted on a handful is partly luck. So one
slope and intercept is fitted on the rows of all concepts, and each concept's own are drawn towards
them, the more so the fewer texts it has (empirical Bayes). Both classes weigh alike throughout:
negatives cost nothing, so how many there are says nothing about how often the concept occurs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.special
from numpy.typing import NDArray

Kind = Literal["sigmoid", "temperature", "isotonic"]
"""What is fitted is a sigmoid. Lens packs of earlier versions hold the others, too."""

_KINDS = ("sigmoid", "temperature", "isotonic")
PULLS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)
"""Texts that the shared slope and intercept may be worth."""
_FEWEST_SHARING = 3  # concepts: the two classes of a labelled set are each other's opposite
_N_FOLDS = 5
_CHOSEN_ON = 500  # concepts, of thousands: there is one number to choose
_FARTHEST = 50.0  # deviations: a lens next to without noise must not outweigh all others
_NAMES = {"sigmoid": ("slope", "intercept"), "temperature": ("slope",)}  # of parameters, in JSON
_GRID = 1001  # probabilities that the smooth calibration error tells apart
_TINY = 1e-12  # no probability is nearer to 0 or 1

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrator:
    """A rising map from logit to probability of presence."""

    kind: Kind
    x: tuple[float, ...]
    """Sigmoid: slope, intercept. Temperature: slope. Isotonic: logits of the knots, ascending."""
    p: tuple[float, ...] = ()
    """Probabilities at the knots (isotonic)."""

    def __call__(self, logits: NDArray[Any], prevalence: float = 0.5) -> Floats:
        """Probabilities of logits, any shape; never 0 or 1 as far as float64 can tell.

        Parameters
        ----------
        prevalence : share of texts that express the concept where the lens is used (Saerens et al.,
            "Adjusting the outputs of a classifier to new a priori probabilities", 2002). The
            default takes both classes to be as frequent.

        Raises
        ------
        ValueError
            If the prevalence is not between 0 and 1.
        """
        if not 0 < prevalence < 1:
            raise ValueError(f"prevalence {prevalence}, expected one above 0 and below 1")
        values, shift = np.asarray(logits, np.float64), scipy.special.logit(prevalence)
        if self.kind == "isotonic":
            p = np.interp(values, self.x, self.p)
            p = scipy.special.expit(scipy.special.logit(p) + shift) if shift else p
        else:
            slope, intercept = (*self.x, 0.0)[:2]
            p = scipy.special.expit(slope * values + intercept + shift)
        return np.asarray(np.clip(p, _TINY, 1 - _TINY))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        if self.kind == "isotonic":
            return {"kind": self.kind, "logits": list(self.x), "probabilities": list(self.p)}
        return {"kind": self.kind, **dict(zip(_NAMES[self.kind], self.x, strict=True))}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibrator:
        """The inverse of `to_json`.

        Raises
        ------
        ValueError
            If the kind is not known, or a value is missing or makes no rising map to (0, 1); names
            what was found.
        """
        try:
            if data["kind"] == "isotonic":
                x, p = (tuple(map(float, data[name])) for name in ("logits", "probabilities"))
                if (found := cls("isotonic", x, p))._is_rising():
                    return found
            elif data["kind"] in _KINDS:
                values = tuple(float(data[name]) for name in _NAMES[data["kind"]])
                if values[0] >= 0 and all(map(math.isfinite, values)):
                    return cls(data["kind"], values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"calibrator {data!r:.80} cannot be read: {error!r}") from error
        raise ValueError(f"calibrator {data!r:.80}, expected a rising one of {', '.join(_KINDS)}")

    def _is_rising(self) -> bool:
        """Whether knots are finite and ascending, and lead from (0, 1) to (0, 1)."""
        x, p = np.array(self.x), np.array(self.p)
        fits = 0 < len(x) == len(p) and np.isfinite(x).all() and 0 < p[0] <= p[-1] < 1
        return bool(fits and (np.diff(x) > 0).all() and (np.diff(p) >= 0).all())


class CalibrationRows(NamedTuple):
    """The rows of one concept that its calibrator is fitted on."""

    y: Labels
    """(n,) whether each expresses the concept."""
    signals: Floats
    """(n,) logits in deviations above the noise floor of the lens, so that those of all lenses are
    alike."""
    texts: NDArray[np.integer]
    """(n,) the text of each."""


class Calibration(NamedTuple):
    """How the signals of some lenses become probabilities."""

    shared: Floats
    """(2,) slope and intercept of all concepts together."""
    pull: float
    """Calibration texts that these are worth."""
    lines: Floats
    """(concepts, 2) slope and intercept of each."""


def fit_calibrators(concepts: Sequence[CalibrationRows], *, seed: int = 0) -> Calibration:
    """Slope and intercept of each concept: its own, drawn towards those of all concepts together.

    With n texts of its own a concept has n / (n + pull) of its own line. The pull is what predicts
    texts best that neither line was fitted on, in five folds over the texts of every concept. One
    or two concepts share nothing.

    Parameters
    ----------
    seed : all that the folds depend on.
    """
    rows = _Rows.of(concepts)
    if len(concepts) < _FEWEST_SHARING:
        pull = 0.0
    else:
        step = -(-len(concepts) // _CHOSEN_ON)
        pull = _choose_pull(concepts[::step], seed)
    own, shared = rows.own_lines(), rows.shared_line()
    n_texts = np.array([_n_positive_texts(its) for its in concepts])
    return Calibration(shared, pull, _drawn(own, shared, n_texts, pull))


def _drawn(own: Floats, shared: Floats, n_texts: NDArray[Any], pull: float) -> Floats:
    """(concepts, 2) the lines of concepts with so many texts, drawn towards the shared one."""
    weight = np.zeros(len(own)) if math.isinf(pull) else n_texts / np.maximum(n_texts + pull, 1)
    return np.asarray(weight[:, None] * own + (1 - weight[:, None]) * shared)


def _choose_pull(concepts: Sequence[CalibrationRows], seed: int) -> float:
    """The pull of least log loss on held-out texts, concepts weighing alike; of equal ones, the
    strongest."""
    rows = _Rows.of(concepts)
    folds = [
        _folds(its.y, its.texts, _N_FOLDS, seed + number) for number, its in enumerate(concepts)
    ]
    fold = np.concatenate(folds)
    loss = np.zeros((len(PULLS), len(rows.y)))
    for number in range(_N_FOLDS):
        kept = rows.some(fold != number)
        own, shared = kept.own_lines(), kept.shared_line()
        n_texts = np.array(
            [
                _n_positive_texts(CalibrationRows(*(part[its != number] for part in concept)))
                for concept, its in zip(concepts, folds, strict=True)
            ]
        )
        here = fold == number
        for place, pull in enumerate(PULLS):
            line = _drawn(own, shared, n_texts, pull)[rows.concept[here]]
            f = line[:, 0] * rows.x[here] + line[:, 1]
            loss[place, here] = np.logaddexp(0, f) - rows.y[here] * f
    weight = rows.some(fold >= 0).weight
    means = (loss[:, fold >= 0] @ weight).round(12)
    return PULLS[int(np.flatnonzero(means == means.min())[-1])]


def _n_positive_texts(its: CalibrationRows) -> int:
    return len(np.unique(its.texts[its.y]))


class _Rows(NamedTuple):
    """Calibration rows of some concepts, end to end."""

    y: Labels
    x: Floats
    concept: NDArray[np.intp]
    n_concepts: int

    @classmethod
    def of(cls, concepts: Sequence[CalibrationRows]) -> _Rows:
        numbers = np.repeat(np.arange(len(concepts)), [len(its.y) for its in concepts])
        x = np.concatenate([its.signals for its in concepts]).clip(-_FARTHEST, _FARTHEST)
        return cls(np.concatenate([its.y for its in concepts]), x, numbers, len(concepts))

    def some(self, kept: NDArray[np.bool_]) -> _Rows:
        """Some of the rows."""
        return self._replace(y=self.y[kept], x=self.x[kept], concept=self.concept[kept])

    def _counts(self) -> Floats:
        """(2, concepts) rows of each class, negatives first."""
        places = self.y * self.n_concepts + self.concept
        return np.bincount(places, minlength=2 * self.n_concepts).reshape(2, -1).astype(np.float64)

    @property
    def weight(self) -> Floats:
        """(rows,) one half for each class of a concept; nothing where one is missing."""
        counts = self._counts()
        half = np.where((counts > 0).all(axis=0), 0.5 / np.maximum(counts, 1), 0.0)
        return np.asarray(half[self.y.astype(np.intp), self.concept])

    def own_lines(self) -> Floats:
        """(concepts, 2) slope and intercept fitted on the rows of each by themselves (Platt,
        "Probabilistic outputs for support vector machines", 1999).

        Targets are smoothed as Platt does, so that separable rows do not give certainty. Logits
        that run the wrong way get a flat curve, not an inverted one.
        """
        negative, positive = self._counts()
        target = np.where(
            self.y,
            ((positive + 1) / (positive + 2))[self.concept],
            (1 / (negative + 2))[self.concept],
        )
        return _newton(self.x, target, self.weight, self.concept, self.n_concepts)

    def shared_line(self) -> Floats:
        """(2,) slope and intercept fitted on all rows, concepts weighing alike."""
        negative, positive = self._counts().sum(axis=1)
        target = np.where(self.y, (positive + 1) / (positive + 2), 1 / (negative + 2))
        weight = self.weight / self.n_concepts
        return np.asarray(_newton(self.x, target, weight, np.zeros_like(self.concept), 1)[0])


def brier_score(y: Labels, p: Floats) -> float:
    """Mean squared distance from the truth, classes weighing alike; 0.25 is guessing (Brier, 1950).

    y, p : (n,). NaN if a class is missing.
    """
    return _mean(y, (p - y) ** 2)


class Reliability(NamedTuple):
    """What happened where what was foretold: bins of probability."""

    edges: Floats
    """(bins + 1,)"""
    predicted: Floats
    """(bins,) mean probability; NaN where a bin is empty"""
    observed: Floats
    """(bins,) share of positives, both classes weighing alike; NaN where a bin is empty"""
    rows: Floats
    """(bins,) rows"""
    weight: Floats
    """(bins,) share of the weight of all rows"""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: values.tolist() for name, values in self._asdict().items()}


def reliability(
    y: Labels, p: Floats, n_bins: int = 10, weight: Floats | None = None
) -> Reliability:
    """What was observed in bins of equal width, as in a reliability diagram (Guo et al., 2017).

    y, p : (n,), both classes present. They weigh alike, if there is no other weight (n,).
    """
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.clip(np.digitize(p, edges) - 1, 0, n_bins - 1)
    weights = balanced(y) if weight is None else weight
    mass = np.bincount(place, weights, n_bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, weights * p, n_bins) / mass
        observed = np.bincount(place, weights * y, n_bins) / mass
    rows = np.bincount(place, minlength=n_bins).astype(np.float64)
    return Reliability(edges, predicted, observed, rows, mass)


def expected_calibration_error(
    y: Labels, p: Floats, n_bins: int = 10, weight: Floats | None = None
) -> float:
    """Mean distance of predicted and observed over bins (Naeini et al., 2015).

    y, p, weight : as for `reliability`. From 0 to 1; NaN if a class is missing.
    """
    if not y.any() or y.all():
        return math.nan
    bins = reliability(y, p, n_bins, weight)
    return float(np.nansum(bins.weight * np.abs(bins.predicted - bins.observed)))


def smooth_calibration_error(y: Labels, p: Floats, weight: Floats) -> float:
    """Distance of predicted and observed without bins: both smoothed by a kernel, as wide as the
    error that it shows (Błasiok and Nakkiran, "Smooth ECE", 2024).

    y, p, weight : (n,), weights of sum 1. From 0 to 1.
    """
    place = np.round(p * (_GRID - 1)).astype(np.intp)
    gaps = np.bincount(place, weight * (y - p), _GRID)
    low, high = 1 / _GRID, 1.0
    while high - low > 1e-4:
        width = (low + high) / 2
        smoothed = scipy.ndimage.gaussian_filter1d(gaps, width * _GRID, mode="reflect")
        low, high = (width, high) if np.abs(smoothed).sum() > width else (low, width)
    return high


def _mean(y: Labels, values: Floats) -> float:
    """Both classes weighing alike; NaN if one is missing."""
    return float(balanced(y) @ values) if y.any() and not y.all() else math.nan


def balanced(y: Labels) -> Floats:
    """(n,) row weights that give each class of y (n,) one half."""
    return np.asarray(np.where(y, 0.5 / max(int(y.sum()), 1), 0.5 / max(int((~y).sum()), 1)))


def _folds(y: Labels, texts: NDArray[np.integer], n_folds: int, seed: int) -> NDArray[np.intp]:
    """(n,) fold of each row, those of a text in one; -1 throughout if a class has fewer than two
    texts, one with any positive row counting as positive."""
    distinct, place = np.unique(texts, return_inverse=True)
    positive = np.bincount(place, y) > 0
    n_folds = min(n_folds, int(positive.sum()), int((~positive).sum()))
    fold = np.full(len(distinct), -1, np.intp)
    if n_folds > 1:
        rng = np.random.default_rng(seed)
        for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
            fold[rng.permutation(members)] = np.arange(len(members)) % n_folds
    return np.asarray(fold[place])


def _newton(
    x: Floats, target: Floats, weight: Floats, group: NDArray[np.intp], n_groups: int
) -> Floats:
    """(groups, 2) slope and intercept of least weighted logistic loss in each group of rows (n,),
    groups ascending.

    Newton's method with halving, of all groups in step: what a step costs is the call, not the
    arithmetic. A slope below 0 becomes 0, with the mean of the targets.
    """

    def total(values: Floats) -> Floats:
        return np.asarray(np.bincount(group, values, n_groups))

    def loss(f: Floats) -> Floats:
        return total(weight * (np.logaddexp(0, f) - target * f))

    # From a row of the group: where all are alike, slope and intercept could not be told apart.
    origin = np.append(x, 0.0)[np.searchsorted(group, np.arange(n_groups))]
    x = x - origin[group]
    line, f = np.zeros((n_groups, 2)), np.zeros_like(x)
    now = loss(f)
    for _ in range(100):
        p = scipy.special.expit(f)
        rest, curve = weight * (p - target), weight * p * (1 - p)
        gradient = np.stack([total(rest * x), total(rest)], axis=1)
        if np.abs(gradient).max() < 1e-10:
            break
        mixed = total(curve * x)
        hessian = np.stack([total(curve * x * x), mixed, mixed, total(curve)], axis=1)
        hessian = hessian.reshape(-1, 2, 2) + 1e-12 * np.eye(2)
        step, scale = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], np.ones(n_groups)
        along = step[group, 0] * x + step[group, 1]
        # Near the optimum the loss is flat to rounding, and a full step is right whatever it says.
        while (
            worse := (then := loss(f - scale[group] * along)) > now + 1e-12
        ).any() and scale.min() > 1e-9:
            scale = np.where(worse, scale / 2, scale)
        line, f, now = line - scale[:, None] * step, f - scale[group] * along, then
    line[:, 1] -= line[:, 0] * origin
    mean = np.clip(total(weight * target) / np.maximum(total(weight), _TINY), 1e-6, 1 - 1e-6)
    flat = np.stack([np.zeros(n_groups), scipy.special.logit(mean)], axis=1)
    return np.asarray(np.where(line[:, :1] > 0, line, flat))
