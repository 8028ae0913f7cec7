"""The linear lens: L2-regularised logistic regression with an unpenalised intercept, solved exactly, many at a time.

Samples are few and the hidden size is large, so the problem is solved in the space of samples. With the standardised
rows Z (n, hidden) and K = Z Z^T, the optimum has the form w = Z^T a, and Newton's method on

    sum_i v_i log(1 + exp(-y_i f_i)) + |w|^2 / (2 C),    f = K a + b

comes down to one n x n positive definite system a step (iteratively reweighted least squares in its dual form; Murphy,
Machine Learning, section 8.3, with the representer theorem). The systems of many concepts are one batch.

Standardisation is folded into the result, so a lens is one vector and one number on raw activations.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lenstrain.errors import NotFittedError, TooFewSamplesError

DEFAULT_C = 1.0
"""Inverse L2 strength on standardised features; 1 to 10 was best for every pooling and model measured."""

_TOLERANCE = 1e-7  # on the optimality condition, relative to the largest dual variable
_MAX_STEPS = 100
_SMALLEST_CURVATURE = 1e-15  # of p(1-p), so that it can be divided by
_BATCH_BYTES = 64 * 2**20
_BATCH_CONCEPTS = 16

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
    C: float | Sequence[float] = DEFAULT_C,
    balanced: bool = False,
    standardizer: Standardizer | None = None,
) -> LinearBatch:
    """Fit one lens for each entry of `rows`.

    Parameters
    ----------
    X : (n, hidden) raw activations that all concepts share.
    rows : for each concept, the rows of X to train on.
    targets : for each concept, whether each of those rows expresses it.
    C : inverse L2 strength, as in scikit-learn: on the standardised features, against the *sum* of the losses;
        one for all concepts, or one each.
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
    strengths = torch.from_numpy(np.broadcast_to(np.asarray(C, np.float64), len(rows)).copy())
    weight, bias = np.empty((len(rows), hidden)), np.empty(len(rows))
    converged = np.empty(len(rows), np.bool_)

    def fit(chosen: list[int]) -> None:
        Z, y, importance = _gather(X, [rows[i] for i in chosen], [targets[i] for i in chosen], standardizer, balanced)
        dual, offset, done = _solve(Z @ Z.mT, y, importance, strengths[chosen])
        standardised = (Z.mT @ dual.unsqueeze(2)).squeeze(2).numpy()  # (batch, hidden)
        weight[chosen] = standardised / standardizer.scale
        bias[chosen] = offset.numpy() - weight[chosen] @ standardizer.mean
        converged[chosen] = done.numpy()

    with _one_thread_an_operation(), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fit, _batches([len(r) for r in rows], hidden)))
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


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    """Spend the cores on batches, not inside one: threads that spin on small systems are many times slower as soon as a
    second trainer wants the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(lengths: Sequence[int], hidden: int) -> list[list[int]]:
    """Concepts of similar length together, few enough that their rows and Gram matrices fit in memory.

    Depends on the problem alone, not on the number of cores, so that every machine adds up the same numbers alike.
    """
    batches: list[list[int]] = []
    width = 0
    for concept in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = (len(batches[-1]) + 1 if batches else 1) * width * (hidden + 4 * width) * 8
        if not batches or size > _BATCH_BYTES or len(batches[-1]) == _BATCH_CONCEPTS:
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
    gram: torch.Tensor, y: torch.Tensor, importance: torch.Tensor, C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Newton's method with step halving for a batch of dual problems.

    Parameters
    ----------
    gram : (batch, n, n) float64.
    y, importance : (batch, n) targets and weights of the rows; padding has weight 0.
    C : (batch,) inverse L2 strengths.

    Returns
    -------
    dual (batch, n), intercept (batch,), converged (batch,)
    """
    cost = C.unsqueeze(1) * importance
    dual, intercept = torch.zeros_like(y), torch.logit((y * cost).sum(dim=1) / cost.sum(dim=1))
    converged = torch.zeros(len(y), dtype=torch.bool)
    active = torch.arange(len(y))
    for _ in range(_MAX_STEPS):
        f = _logits(gram[active], dual[active], intercept[active])
        residual = _residual(f, y[active])
        # At the optimum each dual variable is its row's weighted residual, and the intercept has no gradient.
        pull = cost[active] * residual
        slack = torch.maximum((dual[active] - pull).abs().amax(dim=1), pull.sum(dim=1).abs())
        converged[active] = slack <= _TOLERANCE * pull.abs().amax(dim=1)
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
        # Near the optimum the objective is flat to rounding, and a full Newton step is right whatever it says.
        worse = _objective(*problem, *trial) > before + 1e-9 * before.abs()
        if not bool(worse.any()):
            break
        step = torch.where(worse, step / 2, step)
    return trial


def _newton_target(
    gram: torch.Tensor, f: torch.Tensor, residual: torch.Tensor, cost: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a full Newton step leads: (K + 1/W) a + b 1 = f + cost residual / W with 1^T a = 0, W = cost p (1 - p).

    Solved through B = I + W^1/2 K W^1/2, whose eigenvalues are at least 1 however small W gets (Rasmussen and Williams,
    Gaussian Processes for Machine Learning, section 3.4.3).
    """
    curvature = (torch.sigmoid(f) * torch.sigmoid(-f)).clamp(min=_SMALLEST_CURVATURE)
    root = (cost * curvature).sqrt()  # 0 for padding, which so drops out
    system = torch.diag_embed(torch.ones_like(root)) + root.unsqueeze(2) * gram * root.unsqueeze(1)
    right = torch.stack([root * f + cost.sqrt() * residual / curvature.sqrt(), root], dim=2)
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(system))
    along = torch.einsum("bi,bik->bk", root, solved)
    intercept = along[:, 0] / along[:, 1]
    return root * (solved[:, :, 0] - intercept.unsqueeze(1) * solved[:, :, 1]), intercept


def _objective(
    gram: torch.Tensor, y: torch.Tensor, cost: torch.Tensor, dual: torch.Tensor, intercept: torch.Tensor
) -> torch.Tensor:
    """(batch,) C times the weighted loss plus half the squared norm of the weights."""
    f = _logits(gram, dual, intercept)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(f, y, reduction="none")
    return (cost * loss).sum(dim=1) + (dual * (f - intercept.unsqueeze(1))).sum(dim=1) / 2


def _residual(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y - sigmoid(f), to full relative precision where it is tiny."""
    sign = 2 * y - 1
    return sign * torch.sigmoid(-sign * f)


def _logits(gram: torch.Tensor, dual: torch.Tensor, intercept: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bij,bj->bi", gram, dual) + intercept.unsqueeze(1)
