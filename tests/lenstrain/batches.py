"""Lenses of many concepts by the trainers of their families, on raw activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.families.linear import DEFAULT_C, LinearTrainer
from lenstrain.families.mean_difference import MeanDifferenceTrainer
from lenstrain.families.mlp import MlpTrainer, MlpWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.parallel import chunks_by_size

Rows = Sequence[NDArray[np.intp]]
Targets = Sequence[NDArray[np.bool_]]


class LinearBatch(NamedTuple):
    """Linear lenses: weight (concepts, hidden), bias and converged (concepts,)."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    converged: NDArray[np.bool_]

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(rows, concepts) logits."""
        return np.asarray(X.astype(np.float64) @ self.weight.T + self.bias)


class MlpBatch(NamedTuple):
    """Networks: one for each concept, and whether its loss stayed finite."""

    networks: list[MlpWeights]
    converged: NDArray[np.bool_]

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(rows, concepts) logits."""
        return np.stack([network.decision_function(X) for network in self.networks], axis=1)


def _statistics(X: NDArray[Any], rows: Rows, given: Standardizer | None) -> Standardizer:
    return given or Standardizer.fit(X[np.unique(np.concatenate(list(rows)))])


def fit_linear_batch(
    X: NDArray[Any],
    rows: Rows,
    targets: Targets,
    *,
    C: float | Sequence[float] = DEFAULT_C,
    balanced: bool = False,
    standardizer: Standardizer | None = None,
) -> LinearBatch:
    """Concepts of similar length together, as fits take them."""
    statistics = _statistics(X, rows, standardizer)
    strengths = np.broadcast_to(np.asarray(C, np.float64), len(rows))
    weight, bias = np.empty((len(rows), X.shape[1])), np.empty(len(rows))
    converged = np.empty(len(rows), np.bool_)
    Z = torch.from_numpy(statistics.transform(X))
    for chosen in chunks_by_size([len(r) for r in rows], 8 * X.shape[1]):
        own = [rows[i] for i in chosen], [targets[i] for i in chosen]
        trainer = LinearTrainer(Z, *own, balanced=balanced)
        counts = [len(r) for r in own[0]]
        fitted = trainer.fit(range(len(chosen)), counts, strengths[chosen].tolist())
        weight[chosen], bias[chosen] = fitted.raw(statistics)
        converged[chosen] = fitted.converged
    return LinearBatch(weight, bias, converged)


def fit_mean_difference_batch(
    X: NDArray[Any], rows: Rows, targets: Targets, *, standardizer: Standardizer | None = None
) -> LinearBatch:
    statistics = _statistics(X, rows, standardizer)
    trainer = MeanDifferenceTrainer(torch.from_numpy(statistics.transform(X)), rows, targets)
    fitted = trainer.fit(range(len(rows)), [len(r) for r in rows], [np.nan] * len(rows))
    return LinearBatch(*fitted.raw(statistics), fitted.converged)


def fit_mlp_batch(
    X: NDArray[Any],
    rows: Rows,
    targets: Targets,
    *,
    standardizer: Standardizer | None = None,
    keys: Sequence[int] | None = None,
    device: str = "cpu",
) -> MlpBatch:
    statistics = _statistics(X, rows, standardizer)
    Z = torch.from_numpy(statistics.transform(X).astype(np.float32)).to(device)
    trainer = MlpTrainer(Z, rows, targets, range(len(rows)) if keys is None else keys)
    fitted = trainer.fit(range(len(rows)), [len(r) for r in rows], [np.nan] * len(rows))
    networks = [fitted.ship(number, statistics) for number in range(len(rows))]
    return MlpBatch(networks, fitted.converged)
