"""Probabilities of presence from the logits of a lens, and how good they are.

A calibrator is fitted on the calibration split. Which kind it is, sigmoid, temperature or isotonic, is chosen there
too, by the log loss on samples that it was not fitted on. Both classes weigh alike throughout: negatives cost nothing,
so how many there are says nothing about how often the concept occurs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import scipy.special
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

Kind = Literal["sigmoid", "temperature", "isotonic"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_FOLDS = 5
_TINY = 1e-12

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrator:
    """A rising map from logit to probability of presence, both classes alike in prevalence."""

    kind: Kind
    x: tuple[float, ...]
    """Slope and intercept (sigmoid), slope (temperature), or logits of the knots, ascending (isotonic)."""
    p: tuple[float, ...] = ()
    """Probabilities at the knots (isotonic)."""

    def __call__(self, logits: NDArray[Any]) -> Floats:
        """Probabilities of logits, any shape; never 0 or 1 as far as float64 can tell."""
        values = np.asarray(logits, np.float64)
        if self.kind == "isotonic":
            return np.asarray(np.interp(values, self.x, self.p))
        slope, intercept = (*self.x, 0.0)[:2]
        return np.asarray(np.clip(scipy.special.expit(slope * values + intercept), _TINY, 1 - _TINY))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = {"sigmoid": ("slope", "intercept"), "temperature": ("slope",)}
        if self.kind == "isotonic":
            return {"kind": self.kind, "logits": list(self.x), "probabilities": list(self.p)}
        return {"kind": self.kind, **dict(zip(names[self.kind], self.x, strict=True))}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibrator:
        """The inverse of `to_json`.

        Raises
        ------
        ValueError
            If the kind is not known or a value is missing.
        """
        try:
            if data["kind"] == "sigmoid":
                return cls("sigmoid", (float(data["slope"]), float(data["intercept"])))
            if data["kind"] == "temperature":
                return cls("temperature", (float(data["slope"]),))
            if data["kind"] == "isotonic" and 0 < len(data["logits"]) == len(data["probabilities"]):
                return cls("isotonic", tuple(map(float, data["logits"])), tuple(map(float, data["probabilities"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a calibrator without {error}") from error
        raise ValueError(f"calibrator {data!r:.80}, expected one of {', '.join(_KINDS)} with its values")


def fit_calibrator(kind: Kind, y: Labels, logits: Floats) -> Calibrator:
    """Fit one kind on rows y, logits (n,), both classes present.

    sigmoid: slope and intercept (Platt, "Probabilistic outputs for support vector machines", 1999). temperature: a
    slope alone (Guo et al., "On calibration of modern neural networks", 2017). isotonic: any rising function (Zadrozny
    and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002). Targets are
    smoothed as Platt does, so that a separable calibration set does not give certainty. Logits that run the wrong way
    get a flat curve, not an inverted one.
    """
    target, weight = _smoothed(y), _balanced(y)
    if kind == "isotonic":
        return _fit_isotonic(target, weight, logits)
    unit = float(np.std(logits)) or 1.0
    columns = [logits / unit, np.ones(len(y))] if kind == "sigmoid" else [logits / unit]
    theta = _newton(np.stack(columns, axis=1), target, weight)
    slope = float(theta[0] / unit)
    if kind == "temperature":
        return Calibrator(kind, (max(slope, 0.0),))
    if slope <= 0:
        return Calibrator(kind, (0.0, float(scipy.special.logit(weight @ target))))
    return Calibrator(kind, (slope, float(theta[1])))


def choose_calibrator(
    y: Labels, logits: Floats, groups: NDArray[np.intp], *, seed: int = 0
) -> tuple[Calibrator, dict[str, float]]:
    """The kind with the lowest log loss on rows it was not fitted on, fitted on all of them.

    Cross-validation in five folds, or in as many as the rarer class has samples; rows of one sample are never in two
    folds, and each fold has its share of both classes. With fewer than two samples of a class there is nothing to
    choose by, and it is the sigmoid. Equal ones go to the first of sigmoid, temperature, isotonic.

    Parameters
    ----------
    y, logits : (n,) of the calibration split, both classes present.
    groups : (n,) the sample of each row.

    Returns
    -------
    The calibrator, and the held-out log loss of each kind.
    """
    fold = _folds(y, groups, seed)
    if fold is None:
        return fit_calibrator("sigmoid", y, logits), {}
    losses = {}
    for kind in _KINDS:
        p = np.empty(len(y))
        for number in range(int(fold.max()) + 1):
            held_out = fold == number
            p[held_out] = fit_calibrator(kind, y[~held_out], logits[~held_out])(logits[held_out])
        losses[str(kind)] = log_loss(y, p)
    best = min(_KINDS, key=lambda kind: round(losses[kind], 12))
    return fit_calibrator(best, y, logits), losses


def log_loss(y: Labels, p: Floats) -> float:
    """Mean of -log of the probability given to the truth, both classes weighing alike; log 2 is guessing."""
    p = np.clip(p, _TINY, 1 - _TINY)
    return float(-_balanced(y) @ np.where(y, np.log(p), np.log1p(-p)))


def brier_score(y: Labels, p: Floats) -> float:
    """Mean squared distance from the truth, both classes weighing alike; 0.25 is guessing (Brier, 1950)."""
    return float(_balanced(y) @ (p - y) ** 2)


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


def reliability(y: Labels, p: Floats, n_bins: int = 10) -> Reliability:
    """Bins of equal width."""
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.clip(np.digitize(p, edges) - 1, 0, n_bins - 1)
    balanced = _balanced(y)
    weight = np.bincount(place, balanced, n_bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, balanced * p, n_bins) / weight
        observed = np.bincount(place, balanced * y, n_bins) / weight
    return Reliability(edges, predicted, observed, np.bincount(place, minlength=n_bins).astype(np.float64), weight)


def expected_calibration_error(y: Labels, p: Floats, n_bins: int = 10) -> float:
    """Mean distance of predicted and observed over bins (Naeini et al., 2015), both classes weighing alike."""
    bins = reliability(y, p, n_bins)
    return float(np.nansum(bins.weight * np.abs(bins.predicted - bins.observed)))


def _balanced(y: Labels) -> Floats:
    """Row weights that give each class one half; NaN-free only if both are there."""
    return np.asarray(np.where(y, 0.5 / max(int(y.sum()), 1), 0.5 / max(int((~y).sum()), 1)))


def _smoothed(y: Labels) -> Floats:
    return np.asarray(np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2)))


def _folds(y: Labels, groups: NDArray[np.intp], seed: int) -> NDArray[np.intp] | None:
    """(n,) fold of each row; None if a class has fewer than two samples."""
    samples, first, place = np.unique(groups, return_index=True, return_inverse=True)
    positive = y[first]
    n_folds = min(_FOLDS, int(positive.sum()), int((~positive).sum()))
    if n_folds < 2:
        return None
    rng, fold = np.random.default_rng(seed), np.empty(len(samples), np.intp)
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        fold[rng.permutation(members)] = np.arange(len(members)) % n_folds
    return fold[place]


def _fit_isotonic(target: Floats, weight: Floats, logits: Floats) -> Calibrator:
    """Knots of the rising step function, both ends of each step."""
    x, place = np.unique(logits, return_inverse=True)
    mass = np.bincount(place, weight)
    rising = isotonic_regression(np.bincount(place, weight * target) / mass, sample_weight=mass)
    ends = np.flatnonzero(np.diff(rising))
    keep = np.unique(np.concatenate([[0, len(x) - 1], ends, ends + 1]))
    return Calibrator("isotonic", tuple(x[keep].tolist()), tuple(rising[keep].tolist()))


def _newton(x: Floats, target: Floats, weight: Floats) -> Floats:
    """(columns,) coefficients of least weighted logistic loss, by Newton's method with step halving."""
    theta = np.zeros(x.shape[1])
    loss: Callable[[Floats], float] = lambda f: float(weight @ (np.logaddexp(0, f) - target * f))  # noqa: E731
    f = x @ theta
    now = loss(f)
    for _ in range(100):
        p = scipy.special.expit(f)
        gradient = x.T @ (weight * (p - target))
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = (x.T * (weight * p * (1 - p))) @ x + 1e-12 * np.eye(x.shape[1])
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        along = x @ step
        while (then := loss(f - scale * along)) > now and scale > 1e-9:
            scale /= 2
        theta, f, now = theta - scale * step, f - scale * along, then
    return theta
