"""Lenses of plain arrays as scikit-learn style estimators, thin over the trainers of the families.

X (n, hidden), y (n,) --standardised--> Trainer.fit --> weights on raw activations
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from lenstrain.errors import NotFittedError
from lenstrain.families.checks import check_both_classes, check_rows
from lenstrain.families.linear import DEFAULT_C, LinearTrainer
from lenstrain.families.mean_difference import MeanDifferenceTrainer
from lenstrain.families.mlp import EPOCHS, MlpTrainer
from lenstrain.families.standardizer import Standardizer
from lenstrain.parallel import cores


class _Estimator:
    """What the estimators have in common; `converged_` is there once one is fitted."""

    converged_: bool

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,) logits."""
        if not hasattr(self, "converged_"):
            name = type(self).__name__
            raise NotFittedError(f"this {name} is not fitted yet: call fit(X, y) first")
        return np.asarray(self._logits(np.asarray(X).astype(np.float64)))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) probabilities of absence and presence, uncalibrated."""
        present = expit(self.decision_function(X))
        return np.stack([1 - present, present], axis=1)

    def _logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError


class _LinearEstimator(_Estimator):
    """An estimator whose logit is a product with `weight_`, plus `bias_`."""

    C = float("nan")
    _trainer: Callable[..., LinearTrainer | MeanDifferenceTrainer]

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on X (n, hidden) and y (n,), true where a row expresses the concept."""
        X, target = check_rows(X, y)
        check_both_classes([target])
        statistics = Standardizer.fit(X)
        with cores(1):
            Z = torch.from_numpy(statistics.transform(X))
            trainer = self._trainer(Z, [np.arange(len(X))], [target])
            fitted = trainer.fit([0], [len(X)], [self.C])
        (self.weight_,), (bias,) = fitted.raw(statistics)
        self.bias_, self.converged_ = float(bias), bool(fitted.converged[0])
        return self

    def _logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(X @ self.weight_ + self.bias_)


class MeanDifferenceLens(_LinearEstimator):
    """One mean-difference lens, as a scikit-learn style estimator.

    Attributes
    ----------
    weight_ : (hidden,) on raw activations.
    bias_ : float
    """

    _trainer = MeanDifferenceTrainer


class LinearLens(_LinearEstimator):
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

    _trainer = staticmethod(partial(LinearTrainer, balanced=False))

    def __init__(self, C: float = DEFAULT_C) -> None:
        self.C = C


class MlpLens(_Estimator):
    """One MLP lens, a scikit-learn style estimator; rows in any order give the same lens.

    Parameters
    ----------
    epochs : steps to take; each sees all rows.
    seed : of the first weights.

    Attributes
    ----------
    network_ : the fitted network on raw activations.
    converged_ : bool, whether the loss stayed finite.
    """

    def __init__(self, epochs: int = EPOCHS, seed: int = 0) -> None:
        self.epochs = epochs
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on X (n, hidden) and y (n,), true where a row expresses the concept."""
        X, target = check_rows(X, y)
        check_both_classes([target])
        # Training blows up the rounding of sums, which hangs on the order of the rows.
        X = X.astype(np.float64)
        order = np.lexsort((target, *X.T[::-1]))
        statistics = Standardizer.fit(X[order])
        Z = torch.from_numpy(statistics.transform(X[order]).astype(np.float32))
        own = [np.arange(len(X))], [target[order]], [0]
        trainer = MlpTrainer(Z, *own, epochs=self.epochs, seed=self.seed)
        fitted = trainer.fit([0], [len(X)], [np.nan])
        self.network_ = fitted.ship(0, statistics)
        self.converged_ = bool(fitted.converged[0])
        return self

    def _logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.network_.decision_function(X)
