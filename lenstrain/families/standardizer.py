"""Features with mean 0 and deviation 1 over the training rows."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK_ROWS = 4096

_SMALLEST = 1e-39  # of a deviation: below the normal numbers of float32

_RELATIVE_STEP = {
    "float64": 1e-9,
    "float32": 2.0**-23,
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "int8": 1 / 127,
}
"""From 1 to the next number, by the type of stored activations; of int8, in the largest feature; of
float64, what sums over many rows are exact to."""

Matrix: TypeAlias = torch.Tensor | Any
"""Features, one row a vector: a dense tensor or a sparse matrix (scipy.sparse.csr_array)."""


class Standardizer(NamedTuple):
    """Mean and deviation of each feature over training rows."""

    mean: NDArray[np.float64]
    """(hidden,)"""
    scale: NDArray[np.float64]
    """(hidden,), where a feature is constant 1, or how far rounding takes it if that is more."""

    @classmethod
    def fit(cls, X: NDArray[Any], stored_as: str | None = None) -> Standardizer:
        """Measure X (rows, hidden), without a copy of it.

        Parameters
        ----------
        stored_as : the type in which a store keeps the activations, whatever the type of X; None
            for the type of X, float32 or float64. What varies by no more than rounding to that type
            is a constant.
        """
        parts = [X[start : start + _CHUNK_ROWS] for start in range(0, len(X), _CHUNK_ROWS)]
        mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / len(X)
        squares = np.sum([np.square(part - mean).sum(axis=0) for part in parts], axis=0)
        scale = np.sqrt(squares / len(X))
        # A feature that varies by rounding alone would be blown up to look like signal.
        of_X = "float64" if X.dtype == np.float64 else "float32"
        rounding = _RELATIVE_STEP[stored_as or of_X] * np.abs(mean)
        constant = scale <= np.maximum(rounding, _SMALLEST)
        return cls(mean, np.where(constant, np.maximum(rounding, 1.0), scale))

    def transform(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Standardise X (rows, hidden)."""
        return np.asarray((X - self.mean) / self.scale)

    def transform_in_place(self, X: NDArray[np.float32]) -> None:
        """Standardise X (rows, hidden), which may fill most of the memory."""
        for start in range(0, len(X), _CHUNK_ROWS):
            X[start : start + _CHUNK_ROWS] = self.transform(X[start : start + _CHUNK_ROWS])
