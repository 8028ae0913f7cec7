"""Features with mean 0 and deviation 1 over the training rows."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK_ROWS = 4096

Matrix: TypeAlias = torch.Tensor | Any
"""Features, one row a vector: a dense tensor or a sparse matrix (scipy.sparse.csr_array)."""


class Standardizer(NamedTuple):
    """Mean and deviation of each feature over training rows."""

    mean: NDArray[np.float64]
    """(hidden,)"""
    scale: NDArray[np.float64]
    """(hidden,), 1 where a feature is constant."""

    @classmethod
    def fit(cls, X: NDArray[Any]) -> Standardizer:
        """Measure X (rows, hidden), without a copy of it."""
        parts = [X[start : start + _CHUNK_ROWS] for start in range(0, len(X), _CHUNK_ROWS)]
        mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / len(X)
        squares = np.sum([np.square(part - mean).sum(axis=0) for part in parts], axis=0)
        scale = np.sqrt(squares / len(X))
        # A feature that varies by rounding alone would be blown up to look like signal.
        constant = scale <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
        return cls(mean, np.where(constant, 1.0, scale))

    def transform(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Standardise X (rows, hidden)."""
        return np.asarray((X - self.mean) / self.scale)

    def transform_in_place(self, X: NDArray[np.float32]) -> None:
        """Standardise X (rows, hidden), which may fill most of the memory."""
        for start in range(0, len(X), _CHUNK_ROWS):
            X[start : start + _CHUNK_ROWS] = self.transform(X[start : start + _CHUNK_ROWS])
