"""What lenses look at: a row of numbers for every vector of a dataset, sorted by split.

Activations of one model layer or of several side by side, standardised by the statistics of the
training split; or the words of a text, or its length. Everything a lens is fitted on or judged by
goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.errors import argument, first_line
from lenscache.memory import available_bytes
from lenstrain.data.dataset import TRAIN, LensDataset, Rows
from lenstrain.errors import SettingsError
from lenstrain.families.contract import Scores
from lenstrain.families.linear import LinearFit
from lenstrain.families.standardizer import Matrix, Standardizer, scale_to_unit

# Rows of a product: the same on any number of cores, since other slices may round differently.
_SLICE = 1024


class Features:
    """Rows of numbers for the vectors of a dataset.

    Parameters
    ----------
    Z : (vectors, features), sorted by split as `LensDataset.split_place` says.
    standardizer : what Z was standardised with; None if it is what it was.
    finite : (vectors,) rows that can be used; None for all.
    lengths : (vectors, model layers) of the standardised vectors, where Z has them scaled to 1.
    """

    def __init__(
        self,
        dataset: LensDataset,
        Z: Matrix,
        standardizer: Standardizer | None = None,
        finite: NDArray[np.bool_] | None = None,
        lengths: NDArray[np.float32] | None = None,
    ) -> None:
        self.dataset, self.Z, self.standardizer = dataset, Z, standardizer
        self._lengths = lengths
        self.background: torch.Tensor | None = None
        """(vectors, features) texts of no concept to learn from; None where there are none."""
        self.natural: torch.Tensor | None = None
        """(vectors, features) texts of no concept to judge by."""
        self.finite = np.ones(Z.shape[0], np.bool_) if finite is None else finite
        self._samples: dict[int, Matrix] = {}

    @classmethod
    def of_model_layers(
        cls,
        dataset: LensDataset,
        model_layers: Sequence[int],
        device: str = "cpu",
        *,
        unit_norm: bool = False,
    ) -> Features:
        """Standardised activations of one model layer, or of several side by side.

        With `unit_norm`, vectors of each model layer have length 1.
        """
        hidden, n_parts = dataset.store.header.hidden, len(model_layers)
        _check_memory(len(dataset.vector_sample), hidden, n_parts)
        read = (dataset.vectors(number, dataset.split_place) for number in model_layers)
        if n_parts == 1:
            X = next(read)
        else:
            X = np.empty((len(dataset.vector_sample), hidden * n_parts), np.float32)
            for part, its in enumerate(read):
                X[:, part * hidden : (part + 1) * hidden] = its
        n_unit = n_parts if unit_norm else 0
        found = cls.of_dense(dataset, X, device, dataset.store.header.store_dtype, n_unit)
        if (source := dataset.background) is not None and found.standardizer is not None:
            raw = np.hstack([source.vectors(model_layer) for model_layer in model_layers])
            Z = found.standardizer.transform(raw).astype(np.float32)
            found.background, found.natural = (
                torch.from_numpy(Z[source.is_held_out == held_out]).to(device)
                for held_out in (False, True)
            )
        return found

    @classmethod
    def of_dense(
        cls,
        dataset: LensDataset,
        X: NDArray[np.float32],
        device: str = "cpu",
        stored_as: str = "float32",
        n_unit: int = 0,
    ) -> Features:
        """Standardise X (vectors, features), sorted by split, in place; see `Standardizer`."""
        finite = _finite_rows(X)
        train = X[dataset.split_slices[TRAIN]]
        if not finite.all():
            train = train[finite[dataset.split_slices[TRAIN]]]
        standardizer = Standardizer.fit(train, stored_as)
        standardizer.transform_in_place(X)
        X[~finite] = 0.0  # so that no product with it is NaN; whoever needs such a row is told
        lengths = None
        if n_unit:
            lengths = scale_to_unit(X, n_unit)
            mean, scale = (each.astype(np.float32) for each in standardizer[:2])
            standardizer = Standardizer(mean, scale, n_unit)  # as it is shipped
        return cls(dataset, torch.from_numpy(X).to(device), standardizer, finite, lengths)

    def standardised(self, rows: Any) -> torch.Tensor:
        """(rows, features) some dense rows, by number or slice, as they were before scaling to
        length 1."""
        Z: torch.Tensor = self.Z[rows]
        if self._lengths is None:
            return Z
        lengths = torch.from_numpy(self._lengths[rows]).to(Z)
        return (Z.reshape(*lengths.shape, -1) * lengths[:, :, None]).reshape(Z.shape)

    def natural_logits(self, lenses: Sequence[Scores]) -> list[NDArray[np.float64]]:
        """For each lens, its logits on the texts of no concept to judge by; none without any."""
        if self.natural is None:
            return [np.zeros(0)] * len(lenses)
        return [*np.hstack([decide(self.natural) for decide in side_by_side(lenses)]).T]

    @property
    def row_bytes(self) -> int:
        """Memory of one row while it is trained on."""
        return self.Z.shape[1] * self.Z.element_size() if isinstance(self.Z, torch.Tensor) else 4096

    def logits(
        self, fits: Sequence[Scores], split: int, pool: Executor | None = None
    ) -> NDArray[np.float64]:
        """(lenses, rows of the split) logits of some fits, in their order; a pool shares the rows.

        A product with 4 columns costs as much as with 60, so linear lenses are put side by side.
        """
        return self._product(fits, self.Z[self.dataset.split_slices[split]], pool)

    def sampled_logits(
        self, fits: Sequence[Scores], split: int, pool: Executor | None = None
    ) -> NDArray[np.float64]:
        """(lenses, rows) as `logits`, on `LensDataset.sampled_rows`."""
        return self._product(fits, self._sampled(split), pool)

    def _sampled(self, split: int) -> Matrix:
        if split not in self._samples:
            here, rows = self.dataset.split_slices[split], self.dataset.sampled_rows[split]
            is_all = len(rows) == here.stop - here.start
            self._samples[split] = self.Z[here] if is_all else self.rows_of(split, rows)
        return self._samples[split]

    def _product(
        self, fits: Sequence[Scores], Z: Matrix, pool: Executor | None
    ) -> NDArray[np.float64]:
        wide = side_by_side(fits)
        step = _SLICE if self._is_on_cpu else max(1, Z.shape[0])
        slices = [slice(start, start + step) for start in range(0, Z.shape[0], step)]

        def of(some: slice) -> NDArray[np.float64]:
            return np.vstack([decide(Z[some]).T for decide in wide])

        return np.hstack([*(pool.map if pool else map)(of, slices)])

    def rows_of(self, split: int, rows: Rows) -> Matrix:
        """(rows, features) some rows of a split, counted from its first."""
        chosen = self.dataset.split_slices[split].start + rows
        return (
            self.Z[torch.from_numpy(chosen)] if isinstance(self.Z, torch.Tensor) else self.Z[chosen]
        )

    def logits_of(self, fit: Scores, number: int, split: int, rows: Rows) -> NDArray[np.float64]:
        """(rows,) logits of one lens of a fit on a few rows of a split; for many see `logits`."""
        return fit.some([number]).decision_function(self.rows_of(split, rows))[:, 0]

    @property
    def _is_on_cpu(self) -> bool:
        return not isinstance(self.Z, torch.Tensor) or self.Z.device.type == "cpu"


def side_by_side(fits: Sequence[Scores]) -> list[Callable[[Matrix], NDArray[np.float64]]]:
    """The decision functions of the same lenses in the same order, as few as can be."""
    linear = [fit for fit in fits if isinstance(fit, LinearFit)]
    if len(linear) == len(fits):
        return [partial(LinearFit.joined(linear).decision_function, even=True)]
    return [fit.decision_function for fit in fits]


def _check_memory(n_rows: int, hidden: int, n_model_layers: int) -> None:
    """Raise SettingsError if the activations of some model layers do not fit the memory."""
    copies = n_model_layers + (n_model_layers > 1)
    needed, available = 4 * n_rows * hidden * copies, available_bytes()
    if available is not None and needed > available:
        raise SettingsError(
            f"{n_rows} vectors of {n_model_layers} model layers take {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB of memory are free: fit fewer levels, or read fewer with "
            f"{argument('n_model_layers', None)}"
        )


def check_device(device: str) -> None:
    """Raise SettingsError unless torch can compute on a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, depending on its build
        raise SettingsError(
            f"device {device!r} cannot be used ({first_line(error)}): use cpu, or see `nvidia-smi`"
        ) from error


def _finite_rows(X: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(rows,) finite or not, without a mask of the size of X: by the sum of squares of each row."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", X, X)
    found: NDArray[np.bool_] = np.isfinite(squares)
    found[~found] = np.isfinite(X[~found]).all(axis=1)
    return found
