"""Probabilities of presence from the logits of a lens, and how good they are.

A calibrator is fitted on the calibration split. Which kind it is, sigmoid, temperature or isotonic,
is chosen there too, by the log loss on samples that it was not fitted on. Both classes weigh alike
throughout: negatives cost nothing, so how many there are says nothing about how often the concept
occurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Kind = Literal["sigmoid", "temperature", "isotonic"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_NAMES = {"sigmoid": ("slope", "intercept"), "temperature": ("slope",)}  # of parameters, in JSON
_TINY = 1e-12  # no probability is nearer to 0 or 1

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrator:
    """A rising map from logit to probability of presence, both classes alike in prevalence."""

    kind: Kind
    x: tuple[float, ...]
    """Sigmoid: slope, intercept. Temperature: slope. Isotonic: logits of the knots, ascending."""
    p: tuple[float, ...] = ()
    """Probabilities at the knots (isotonic)."""

    def __call__(self, logits: NDArray[Any]) -> Floats:
        """Probabilities of logits, any shape; never 0 or 1 as far as float64 can tell."""
        values = np.asarray(logits, np.float64)
        if self.kind == "isotonic":
            return np.asarray(np.interp(values, self.x, self.p))
        slope, intercept = (*self.x, 0.0)[:2]
        p = scipy.special.expit(slope * values + intercept)
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


def fit_calibrator(kind: Kind, y: Labels, logits: Floats) -> Calibrator:
    """Fit one kind on rows y, logits (n,), both classes present.

    sigmoid: slope and intercept (Platt, "Probabilistic outputs for support vector machines", 1999).
    temperature: a slope alone (Guo et al., "On calibration of modern neural networks", 2017).
    isotonic: any rising function (Zadrozny and Elkan, "Transforming classifier scores into accurate
    multiclass probability estimates", 2002). Targets are smoothed as Platt does, so that a
    separable calibration set does not give certainty. Logits that run the wrong way get a flat
    curve, not an inverted one.
    """
    (calibrator,) = _fit_each(kind, y, logits, np.ones((1, len(y)), np.bool_))
    return calibrator


def choose_calibrator(
    y: Labels, logits: Floats, groups: NDArray[np.integer], *, n_folds: int = 5, seed: int = 0
) -> tuple[Calibrator, dict[str, float]]:
    """The kind with the lowest log loss on rows it was not fitted on, fitted on all of them.

    Cross-validation in `n_folds` folds, or in as many as the rarer class has samples; rows of one
    sample are never in two folds, and each fold has its share of both classes. With fewer than two
    samples of a class there is nothing to choose by, and it is the sigmoid. Equal ones go to the
    first of sigmoid, temperature, isotonic.

    Parameters
    ----------
    y, logits : (n,) of the calibration split, both classes present.
    groups : (n,) the sample of each row.
    seed : all that the folds depend on.

    Returns
    -------
    The calibrator, and the held-out log loss of each kind in nats; without any if nothing could be
    held out.
    """
    fold = _folds(y, groups, n_folds, seed)
    if fold is None:
        return fit_calibrator("sigmoid", y, logits), {}
    losses, used = {}, fold != np.arange(fold.max() + 1)[:, None]
    for kind in _KINDS:
        p = np.empty(len(y))
        for number, calibrator in enumerate(_fit_each(kind, y, logits, used)):
            p[fold == number] = calibrator(logits[fold == number])
        losses[str(kind)] = log_loss(y, p)
    best = min(_KINDS, key=lambda kind: round(losses[kind], 12))
    return fit_calibrator(best, y, logits), losses


def log_loss(y: Labels, p: Floats) -> float:
    """Mean -log of the probability of the truth, both classes weighing alike; log 2 is guessing.

    y, p : (n,). In nats. NaN if a class is missing; certainty counts as one in 1e12.
    """
    p = np.clip(p, _TINY, 1 - _TINY)
    return _mean(y, -np.where(y, np.log(p), np.log1p(-p)))


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


def reliability(y: Labels, p: Floats, n_bins: int = 10) -> Reliability:
    """What was observed in bins of equal width, as in a reliability diagram (Guo et al., 2017).

    y, p : (n,), both classes present.
    """
    edges = np.linspace(0, 1, n_bins + 1)
    place = np.clip(np.digitize(p, edges) - 1, 0, n_bins - 1)
    balanced = _balanced(y)
    weight = np.bincount(place, weights=balanced, minlength=n_bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, balanced * p, n_bins) / weight
        observed = np.bincount(place, balanced * y, n_bins) / weight
    rows = np.bincount(place, minlength=n_bins).astype(np.float64)
    return Reliability(edges, predicted, observed, rows, weight)


def expected_calibration_error(y: Labels, p: Floats, n_bins: int = 10) -> float:
    """Mean distance of predicted and observed over bins (Naeini et al., 2015), classes alike.

    y, p : (n,). From 0 to 1; NaN if a class is missing.
    """
    if not y.any() or y.all():
        return math.nan
    bins = reliability(y, p, n_bins)
    return float(np.nansum(bins.weight * np.abs(bins.predicted - bins.observed)))


def _mean(y: Labels, values: Floats) -> float:
    """Both classes weighing alike; NaN if one is missing."""
    return float(_balanced(y) @ values) if y.any() and not y.all() else math.nan


def _balanced(y: Labels) -> Floats:
    """Row weights that give each class one half."""
    return np.asarray(np.where(y, 0.5 / max(int(y.sum()), 1), 0.5 / max(int((~y).sum()), 1)))


def _fit_each(kind: Kind, y: Labels, logits: Floats, used: NDArray[np.bool_]) -> list[Calibrator]:
    """One calibrator for each row of `used` (sets, n), which says what rows it is fitted on.

    Parametric ones are fitted together: what a step costs is the call, not the arithmetic.
    """
    n_positive, n_negative = ((used & own).sum(axis=1, keepdims=True) for own in (y, ~y))
    target = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    weight = used * np.where(y, 0.5 / n_positive, 0.5 / n_negative)
    if kind == "isotonic":
        sets = zip(target, weight, used, strict=True)
        return [_fit_isotonic(t[u], w[u], logits[u]) for t, w, u in sets]
    if kind == "temperature":
        unit = float(np.abs(logits).max()) or 1.0
        theta = _newton((logits / unit)[:, None], target, weight)
        return [Calibrator(kind, (max(float(slope / unit), 0.0),)) for slope in theta[:, 0]]
    # Centred, or the slope of logits far from 0 would drown in its intercept.
    middle, unit = float(np.mean(logits)), float(np.ptp(logits)) or 1.0
    theta = _newton(np.stack([(logits - middle) / unit, np.ones(len(y))], axis=1), target, weight)
    flat = scipy.special.logit((weight * target).sum(axis=1))
    is_flat = (theta[:, 0] <= 0) | (np.ptp(logits) == 0)
    theta[:, 0] /= unit
    theta[:, 1] -= theta[:, 0] * middle
    theta[is_flat] = np.stack([np.zeros_like(flat), flat], axis=1)[is_flat]
    return [Calibrator(kind, (slope, intercept)) for slope, intercept in theta.tolist()]


def _folds(
    y: Labels, groups: NDArray[np.integer], n_folds: int, seed: int
) -> NDArray[np.intp] | None:
    """(n,) fold of each row; None if a class has fewer than two samples, one with any positive row
    counting as positive."""
    samples, place = np.unique(groups, return_inverse=True)
    positive = np.bincount(place, y) > 0
    n_folds = min(n_folds, int(positive.sum()), int((~positive).sum()))
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
    rising = isotonic_regression(np.bincount(place, weight * target) / mass, weights=mass).x
    ends = np.flatnonzero(np.diff(rising))
    keep = np.unique(np.concatenate([[0, len(x) - 1], ends, ends + 1]))
    return Calibrator("isotonic", tuple(x[keep].tolist()), tuple(rising[keep].tolist()))


def _newton(x: Floats, target: Floats, weight: Floats) -> Floats:
    """(sets, columns) coefficients of least weighted logistic loss on x (n, columns).

    Newton's method with halving; `target` and `weight` are (sets, n).
    """
    theta, f = np.zeros((len(target), x.shape[1])), np.zeros_like(target)

    def loss(f: Floats) -> Floats:
        return np.asarray((weight * (np.logaddexp(0, f) - target * f)).sum(axis=1))

    now = loss(f)
    for _ in range(100):
        p = scipy.special.expit(f)
        gradient = (weight * (p - target)) @ x
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = np.einsum("sn,ni,nj->sij", weight * p * (1 - p), x, x)
        hessian += 1e-12 * np.eye(x.shape[1])
        step, scale = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], np.ones(len(target))
        along = step @ x.T
        # Near the optimum the loss is flat to rounding, and a full step is right whatever it says.
        while (
            worse := (then := loss(f - scale[:, None] * along)) > now + 1e-12
        ).any() and scale.min() > 1e-9:
            scale = np.where(worse, scale / 2, scale)
        theta, f, now = theta - scale[:, None] * step, f - scale[:, None] * along, then
    return theta
