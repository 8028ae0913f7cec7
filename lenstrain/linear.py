"""The linear lens: L2-regularised logistic regression with an unpenalised intercept, solved exactly, many at a time.

Samples are few and the hidden size is large, so the problem is solved in the space of samples. With the standardised
rows Z (n, hidden) and K = Z Z^T, the optimum has the form w = Z^T a, and Newton's method on

    sum_i v_i log(1 + exp(-y_i f_i)) + |w|^2 / (2 C),    f = K a + b

comes down to one n x n positive definite system a step (iteratively reweighted least squares in its dual form; Murphy,
Machine Learning, section 8.3, with the representer theorem). The systems of many concepts are one batch.

Standardisation is folded into the result, so a lens is one vector and one number on raw activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lenstrain.errors import NotFittedError, TooFewSamplesError

DEFAULT_C = 1.0
"""Inverse L2 strength on standardised features; 1 to 10 was best for every pooling and model measured."""

_TOLERANCE = 1e-6  # on the optimality condition, in units of C where C is above 1
_MAX_STEPS = 100
_CURVATURE_FLOOR = 1e-4  # p(1-p) of rows far on their side; without it Newton's system is not solvable in float64
_BATCH_BYTES = 256 * 2**20

_Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # gram, targets, cost of each row
_Point = tuple[torch.Tensor, torch.Tensor]  # dual variables, intercept


class Standardizer(NamedTuple):
    """Mean and deviation of each feature over training rows."""

    mean: NDArray[np.float64]
    """(hidden,)"""
    scale: NDArray[np.float64]
    """(hidden,), 1 where a feature is constant."""

    @classmethod
    def fit(cls, X: NDArray[Any]) -> Standardizer:
        """Measure X (rows, hidden)."""
        mean = X.mean(axis=0, dtype=np.float64)
        scale = X.std(axis=0, dtype=np.float64)
        # A feature that varies by rounding alone would be blown up to look like signal.
        constant = scale <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
        return cls(mean, np.where(constant, 1.0, scale))

    def transform(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Standardise X (rows, hidden)."""
        return np.asarray((X - self.mean) / self.scale)


class LinearBatch(NamedTuple):
    """Fitted linear lenses of many concepts on one model layer, on raw activations."""

    weight: NDArray[np.float64]
    """(concepts, hidden)"""
    bias: NDArray[np.float64]
    """(concepts,)"""
    converged: NDArray[np.bool_]
    """(concepts,) whether the optimality condition was met."""

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(rows, concepts) logits of raw activations X (rows, hidden)."""
        return np.asarray(X.astype(np.float64) @ self.weight.T + self.bias)


def fit_linear_batch(
    X: NDArray[Any],
    rows: Sequence[NDArray[np.intp]],
    targets: Sequence[NDArray[np.bool_]],
    *,
    C: float = DEFAULT_C,
    balanced: bool = False,
    standardizer: Standardizer | None = None,
) -> LinearBatch:
    """Fit one lens for each entry of `rows`.

    Parameters
    ----------
    X : (n, hidden) raw activations that all concepts share.
    rows : for each concept, the rows of X to train on.
    targets : for each concept, whether each of those rows expresses it.
    C : inverse L2 strength, as in scikit-learn: on the standardised features, against the *sum* of the losses.
    balanced : weigh the rows so that both classes count alike and the mean weight is 1, as scikit-learn's
        ``class_weight="balanced"``.
    standardizer : feature statistics of the training split; None to take them from the rows used.

    Raises
    ------
    TooFewSamplesError
        If a concept has rows of one class only.
    """
    for number, target in enumerate(targets):
        if not 0 < target.sum() < len(target):
            raise TooFewSamplesError(
                f"concept number {number}: {target.sum()} of {len(target)} training rows are positive"
            )
    if standardizer is None:
        standardizer = Standardizer.fit(X[np.unique(np.concatenate(list(rows)))])
    hidden = X.shape[1]
    weight, bias = np.empty((len(rows), hidden)), np.empty(len(rows))
    converged = np.empty(len(rows), np.bool_)
    for chosen in _batches([len(r) for r in rows], hidden):
        Z, y, importance = _gather(X, [rows[i] for i in chosen], [targets[i] for i in chosen], standardizer, balanced)
        dual, offset, done = _solve(Z @ Z.mT, y, importance, C)
        standardised = (Z.mT @ dual.unsqueeze(2)).squeeze(2).numpy()  # (batch, hidden)
        weight[chosen] = standardised / standardizer.scale
        bias[chosen] = offset.numpy() - weight[chosen] @ standardizer.mean
        converged[chosen] = done.numpy()
    return LinearBatch(weight, bias, converged)


class LinearLens:
    """One linear lens, as a scikit-learn style estimator.

    Parameters
    ----------
    C : inverse L2 strength on the standardised features.

    Attributes
    ----------
    weight_ : (hidden,) on raw activations.
    bias_ : float
    converged_ : bool
    """

    def __init__(self, C: float = DEFAULT_C) -> None:
        self.C = C

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on X (n, hidden) and y (n,), true where a row expresses the concept."""
        X, target = np.asarray(X), np.asarray(y).astype(np.bool_)
        if X.ndim != 2 or target.shape != (len(X),):
            raise ValueError(f"X has shape {X.shape} and y {target.shape}, expected (n, hidden) and (n,)")
        if not np.isfinite(X).all():
            raise ValueError("X holds NaN or infinity: leave out rows without activations")
        batch = fit_linear_batch(X, [np.arange(len(X))], [target], C=self.C)
        self.weight_, self.bias_ = batch.weight[0], float(batch.bias[0])
        self.converged_ = bool(batch.converged[0])
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,) logits."""
        if not hasattr(self, "weight_"):
            raise NotFittedError("this LinearLens is not fitted yet: call fit(X, y) first")
        return np.asarray(np.asarray(X).astype(np.float64) @ self.weight_ + self.bias_)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) probabilities of absence and presence, uncalibrated."""
        present = torch.sigmoid(torch.from_numpy(self.decision_function(X))).numpy()
        return np.stack([1 - present, present], axis=1)


def _batches(lengths: Sequence[int], hidden: int) -> list[list[int]]:
    """Concepts of similar length together, few enough that their rows and Gram matrices fit in memory."""
    batches: list[list[int]] = []
    width = 0
    for concept in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width * (hidden + 4 * width) * 8 > _BATCH_BYTES:
            batches.append([])
            width = lengths[concept]
        batches[-1].append(concept)
    return batches


def _gather(
    X: NDArray[Any],
    rows: Sequence[NDArray[np.intp]],
    targets: Sequence[NDArray[np.bool_]],
    standardizer: Standardizer,
    balanced: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised rows (batch, n, hidden), targets and row weights (batch, n); padding has weight 0."""
    width = max(len(r) for r in rows)
    Z = np.zeros((len(rows), width, X.shape[1]))
    y, importance = np.zeros((len(rows), width)), np.zeros((len(rows), width))
    for i, (chosen, target) in enumerate(zip(rows, targets, strict=True)):
        n = len(chosen)
        Z[i, :n], y[i, :n] = standardizer.transform(X[chosen]), target
        share = target.mean()
        importance[i, :n] = np.where(target, 0.5 / share, 0.5 / (1 - share)) if balanced else 1.0
    return torch.from_numpy(Z), torch.from_numpy(y), torch.from_numpy(importance)


def _solve(
    gram: torch.Tensor, y: torch.Tensor, importance: torch.Tensor, C: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Newton's method with step halving for a batch of dual problems.

    Parameters
    ----------
    gram : (batch, n, n) float64.
    y, importance : (batch, n) targets and weights of the rows; padding has weight 0.

    Returns
    -------
    dual (batch, n), intercept (batch,), converged (batch,)
    """
    cost = C * importance
    dual, intercept = torch.zeros_like(y), torch.logit((y * cost).sum(dim=1) / cost.sum(dim=1))
    converged = torch.zeros(len(y), dtype=torch.bool)
    active = torch.arange(len(y))
    for _ in range(_MAX_STEPS):
        f = _logits(gram[active], dual[active], intercept[active])
        residual = y[active] - torch.sigmoid(f)
        # At the optimum each dual variable is its row's weighted residual, and the intercept has no gradient.
        pull = cost[active] * residual
        slack = torch.maximum((dual[active] - pull).abs().amax(dim=1), pull.sum(dim=1).abs())
        converged[active] = slack <= _TOLERANCE * max(C, 1.0)
        going = ~converged[active]
        if not bool(going.any()):
            break
        active, f, residual = active[going], f[going], residual[going]
        problem = gram[active], y[active], cost[active]
        target = _newton_target(problem[0], f, residual, problem[2])
        dual[active], intercept[active] = _damped_step(problem, (dual[active], intercept[active]), target)
    return dual, intercept, converged


def _damped_step(problem: _Problem, at: _Point, target: _Point) -> _Point:
    """From `at` towards `target`, halving the step of each problem until its objective does not rise."""
    (dual, intercept), (new_dual, new_intercept) = at, target
    before = _objective(*problem, dual, intercept)
    step = torch.ones_like(intercept)
    for _ in range(30):
        trial = dual + step.unsqueeze(1) * (new_dual - dual), intercept + step * (new_intercept - intercept)
        worse = _objective(*problem, *trial) > before + 1e-12 * before.abs()
        if not bool(worse.any()):
            break
        step = torch.where(worse, step / 2, step)
    return trial


def _newton_target(
    gram: torch.Tensor, f: torch.Tensor, residual: torch.Tensor, cost: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a full Newton step leads: (K + diag(1/(cost s))) a + b 1 = f + residual / s, 1^T a = 0, s = p(1 - p)."""
    real = cost > 0
    p = torch.sigmoid(f)
    curvature = (p * (1 - p)).clamp(min=_CURVATURE_FLOOR)
    system = gram + torch.diag_embed(torch.where(real, 1 / (cost * curvature), 1.0))
    right = torch.stack([torch.where(real, f + residual / curvature, 0.0), real.to(f.dtype)], dim=2)
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(system))
    intercept = solved[:, :, 0].sum(dim=1) / solved[:, :, 1].sum(dim=1)
    return solved[:, :, 0] - intercept.unsqueeze(1) * solved[:, :, 1], intercept


def _objective(
    gram: torch.Tensor, y: torch.Tensor, cost: torch.Tensor, dual: torch.Tensor, intercept: torch.Tensor
) -> torch.Tensor:
    """(batch,) C times the weighted loss plus half the squared norm of the weights."""
    f = _logits(gram, dual, intercept)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(f, y, reduction="none")
    return (cost * loss).sum(dim=1) + (dual * (f - intercept.unsqueeze(1))).sum(dim=1) / 2


def _logits(gram: torch.Tensor, dual: torch.Tensor, intercept: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bij,bj->bi", gram, dual) + intercept.unsqueeze(1)
