"""Lenses of plain arrays as scikit-learn estimators, thin over the trainers of the families.

    X (n, hidden), y (n,) --standardised--> Trainer.fit --> weights on raw activations

They are binary classifiers: the greater of the two labels of y says that the concept is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse
import sklearn.exceptions
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d, validate_data

from lenstrain.errors import NotFittedError
from lenstrain.families.checks import check_both_classes, check_rows, plain_rows
from lenstrain.families.linear import DEFAULT_C, LinearTrainer
from lenstrain.families.mean_difference import MeanDifferenceTrainer
from lenstrain.families.mlp import EPOCHS, MlpTrainer
from lenstrain.families.standardizer import Standardizer
from lenstrain.parallel import cores


class _NotFittedError(NotFittedError, sklearn.exceptions.NotFittedError):  # type: ignore[misc]
    """Both libraries' error, so that either can be caught."""


class _Estimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What the estimators have in common; `converged_` is there once one is fitted."""

    classes_: NDArray[Any]
    """(2,) the labels of absence and presence."""
    converged_: bool

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "converged_")

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,) logits."""
        if not hasattr(self, "converged_"):
            name = type(self).__name__
            raise _NotFittedError(f"this {name} is not fitted yet: call fit(X, y) first")
        X = validate_data(self, plain_rows(X), reset=False, ensure_min_samples=0)
        return np.asarray(self._logits(np.asarray(X).astype(np.float64)))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) probabilities of absence and presence, uncalibrated."""
        present = expit(self.decision_function(X))
        return np.stack([1 - present, present], axis=1)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(n,) the likelier of the two labels that it was fitted with."""
        is_present = self.decision_function(X) > 0
        return np.asarray(self.classes_[is_present.astype(int)])

    def _rows(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """X (n, hidden) and which of its rows have the greater label; notes `classes_`.

        Raises
        ------
        ValueError
            If the shapes do not fit, X is not finite, or y has more than two labels.
        TooFewSamplesError
            If y has one label.
        """
        X, y = plain_rows(X), plain_rows(y)
        if y is None or scipy.sparse.issparse(X):
            validate_data(self, X, y)  # which refuses it, in scikit-learn's words
        y = column_or_1d(y, warn=True)
        if np.asarray(X).ndim == 2 and len(y) == len(np.asarray(X)):  # others are refused below
            X = validate_data(self, X, ensure_all_finite=False)
            check_classification_targets(y)
        self.classes_, number = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(y)}."
            )
        one = len(self.classes_) == 1
        X, target = check_rows(X, np.full(len(y), bool(self.classes_[0])) if one else number)
        check_both_classes([target])
        return X, target

    def _logits(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError


class _LinearEstimator(_Estimator):
    """An estimator whose logit is a product with `weight_`, plus `bias_`."""

    C = float("nan")
    _trainer: Callable[..., LinearTrainer | MeanDifferenceTrainer]

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on X (n, hidden) and y (n,), the greater label where a row expresses the concept."""
        X, target = self._rows(X, y)
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
    """One mean-difference lens, as an estimator of scikit-learn.

    Attributes
    ----------
    weight_ : (hidden,) on raw activations.
    bias_ : float
    """

    _trainer = MeanDifferenceTrainer


class LinearLens(_LinearEstimator):
    """One linear lens, as an estimator of scikit-learn.

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
    """One MLP lens, an estimator of scikit-learn; rows in any order give the same lens.

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
        """Fit on X (n, hidden) and y (n,), the greater label where a row expresses the concept."""
        X, target = self._rows(X, y)
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
