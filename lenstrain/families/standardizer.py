"""Features with mean 0 and deviation 1 over the training rows, and rows of length 1."""

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

    mean: Any
    """(hidden,) array; a tensor where it is applied to tensors."""
    scale: Any
    """(hidden,), where a feature is constant 1, or how far rounding takes it if that is more."""
    n_unit: int = 0
    """Model layers side by side whose standardised vectors are scaled to length 1; 0 if none is."""

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
        return np.asarray(self.over_length(X) / self.scale)

    def part(self, number: int, n_parts: int) -> Standardizer:
        """That of one of some model layers that lie side by side."""
        mean, scale = (np.split(each, n_parts)[number] for each in self[:2])
        return Standardizer(mean, scale, min(self.n_unit, 1))

    def over_length(self, X: Any) -> Any:
        """X (rows, hidden), array or tensor, less the mean, and over the length that it has when
        standardised if that is to be 1, a model layer at a time."""
        centred = X - self.mean
        if not self.n_unit:
            return centred
        shape = len(X), self.n_unit, X.shape[1] // self.n_unit
        lengths = ((centred / self.scale).reshape(shape) ** 2).sum(2)[:, :, None] ** 0.5
        return (centred.reshape(shape) / (lengths + (lengths == 0))).reshape(X.shape)

    def transform_in_place(self, X: NDArray[np.float32]) -> None:
        """Standardise X (rows, hidden), which may fill most of the memory."""
        for start in range(0, len(X), _CHUNK_ROWS):
            X[start : start + _CHUNK_ROWS] = self.transform(X[start : start + _CHUNK_ROWS])


def scale_to_unit(X: NDArray[np.float32], n_parts: int) -> NDArray[np.float32]:
    """Scale each of the parts of X (rows, features), side by side, to length 1, in place.

    Returns
    -------
    (rows, parts) the lengths before; of a part of zeros, which stays as it is, 1.
    """
    parts = X.reshape(len(X), n_parts, -1)
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("rpf,rpf->rp", parts, parts))
    lengths[lengths == 0] = 1
    parts /= lengths[:, :, None]
    return lengths
