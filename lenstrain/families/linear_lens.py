"""Linear lenses of plain arrays: one lens as a scikit-learn classifier, or many fitted at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lenstrain.errors import NotFittedError
from lenstrain.families.checks import check_both_classes, check_rows
from lenstrain.families.linear import DEFAULT_C, LinearTrainer
from lenstrain.families.standardizer import Standardizer
from lenstrain.parallel import chunks_by_size, in_parallel


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
    """Fit one lens for each entry of `rows`, in float64.

    Parameters
    ----------
    X : (n, hidden) raw activations that all concepts share.
    rows : for each concept, the rows of X to train on.
    targets : for each concept, whether each of those rows expresses it.
    C : inverse L2 strength, as in scikit-learn: on the standardised features, against the *sum* of
        the losses; one for all concepts, or one each.
    balanced : as for `LinearTrainer`.
    standardizer : feature statistics of the training split; None to take them from the rows used.

    Raises
    ------
    TooFewSamplesError
        If a concept has rows of one class only.
    """
    check_both_classes(targets)
    statistics = standardizer or Standardizer.fit(X[np.unique(np.concatenate(list(rows)))])
    strengths = np.broadcast_to(np.asarray(C, np.float64), len(rows))
    weight, bias = np.empty((len(rows), X.shape[1])), np.empty(len(rows))
    converged = np.empty(len(rows), np.bool_)

    def fit(chosen: list[int]) -> None:
        used, place = np.unique(np.concatenate([rows[i] for i in chosen]), return_inverse=True)
        counts = [len(rows[i]) for i in chosen]
        places = np.split(place, np.cumsum(counts)[:-1])
        Z = torch.from_numpy(statistics.transform(X[used]))
        trainer = LinearTrainer(Z, places, [targets[i] for i in chosen], balanced=balanced)
        fitted = trainer.fit(range(len(chosen)), counts, strengths[chosen].tolist())
        weight[chosen], bias[chosen] = fitted.raw(statistics)
        converged[chosen] = fitted.converged

    for _ in in_parallel(fit, chunks_by_size([len(r) for r in rows], 8 * X.shape[1])):
        pass
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
        X, target = check_rows(X, y)
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
