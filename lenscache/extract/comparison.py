"""Rows as a batch left them, beside the same rows alone, and what may differ.

    Written, runner --Comparison.add--> errors by model layer, tokens that no rounding explains

A row is read in one forward pass. Some models decode otherwise than they read, by design, so a row
that seems to differ is decoded alone, a token a pass, and that decides. So is one row in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.extract.tolerance import OTHER_COMPLETIONS, TOKEN_DISTANCE, allowed_error
from lenscache.inference.alone import Alone, decode_alone, read_alone
from lenscache.inference.runner import FAILURES, Row, RowResult, Runner
from lenscache.store.header import StoreHeader
from lenscache.store.quantization import as_stored
from lenscache.terms import Phase

Vectors = Mapping[Phase, NDArray[Any]]
"""(model layer, hidden) by phase."""


class Written(NamedTuple):
    """A row as a batch left it."""

    number: int
    """In its round, or of those that ran."""
    row: Row
    """Along the completion that it wrote; in mode prompt there is none."""
    vectors: Vectors


def written_by(header: StoreHeader, number: int, row: Row, result: RowResult) -> Written:
    """A row as it came out of a runner."""
    if header.mode != "prompt":
        row = replace(row, completion_ids=tuple(result.completion_ids))
    return Written(number, row, result.pooled)


class Difference(NamedTuple):
    """Of one vector, between a row in a batch and alone."""

    share: float
    """Of the error that is allowed; above 1, the row differs."""
    error: float
    """Norm of the difference over the norm."""
    allowed: float
    model_layer: int


class Comparison:
    """What rows of a store came to.

    Parameters
    ----------
    header : of the store.
    runner : of the model, for rows alone.
    """

    def __init__(self, header: StoreHeader, runner: Runner) -> None:
        self.header, self.runner = header, runner
        self.rows = 0
        self.errors = dict.fromkeys(header.model_layers, 0.0)
        """Largest relative error by model layer."""
        self.tolerance = 0.0
        """Largest error that one of the rows was allowed."""
        self.worst: Difference | None = None
        self.suspect: Written | None = None
        """The row that differs most, in a vector or in a token."""
        self.other_completions = 0
        """Rows with a token that no rounding explains."""
        self.token_distance = 0.0
        """The largest, see `Alone.distances`."""
        self._share = 0.0

    def add(self, written: Written, *, decode: bool) -> None:
        """Compare one more row; `decode` to decode it alone without trying to read it."""
        alone = None if decode else self._read(written.row)
        if alone is None or not self._is_alike(written, alone):
            alone = decode_alone(self.runner, written.row)
        self.rows += 1
        self.take(written, alone.pooled)
        farthest = float(alone.distances.max(initial=0.0))
        self.token_distance = max(self.token_distance, farthest)
        share = farthest / TOKEN_DISTANCE[self.header.model_dtype]
        self.other_completions += share > 1
        self._suspect(written, share)

    def take(self, written: Written, alone: Vectors, phases: Sequence[Phase] | None = None) -> None:
        """Note how far the vectors of a row are from others of it, in all phases or some."""
        for difference in differences(self.header, written, alone, phases):
            layer = difference.model_layer
            self.errors[layer] = max(self.errors[layer], difference.error)
            self.tolerance = max(self.tolerance, difference.allowed)
            if self.worst is None or difference > self.worst:
                self.worst = difference
            self._suspect(written, difference.share)

    def _suspect(self, written: Written, share: float) -> None:
        if self.suspect is None or share > self._share:
            self.suspect, self._share = written, share

    @property
    def differs(self) -> bool:
        """Whether a vector is further off than is allowed."""
        return self.worst is not None and self.worst.share > 1

    @property
    def has_other_tokens(self) -> bool:
        """Whether more rows than are allowed hold tokens that no rounding explains."""
        return self.other_completions > OTHER_COMPLETIONS[self.header.model_dtype] * self.rows

    def _read(self, row: Row) -> Alone | None:
        """The row in one pass; None if the model cannot be read so."""
        if self.header.mode == "prompt":
            return None
        try:
            return read_alone(self.runner, row)
        except FAILURES:  # decoding makes room for itself, or says what is wrong
            return None

    def _is_alike(self, written: Written, alone: Alone) -> bool:
        most = max(each.share for each in differences(self.header, written, alone.pooled))
        farthest = alone.distances.max(initial=0.0)
        return most <= 1 and bool(farthest <= TOKEN_DISTANCE[self.header.model_dtype])


def differences(
    header: StoreHeader, written: Written, alone: Vectors, phases: Sequence[Phase] | None = None
) -> Iterator[Difference]:
    """How far each vector of a row is from that of the row alone; all phases unless told which."""
    for phase in phases or header.phases:
        allowed = allowed_error(header, n_positions(header, written.row, phase))
        pairs = zip(header.model_layers, written.vectors[phase], alone[phase], strict=True)
        for model_layer, one, other in pairs:
            # in int8 both are quantized: a vector loses more than it may be off
            stored = (as_stored(vector, header.store_dtype) for vector in (one, other))
            error = _relative_error(*stored)
            yield Difference(error / allowed, error, allowed, model_layer)


def n_positions(header: StoreHeader, row: Row, phase: Phase) -> int:
    """How many positions of a row are pooled."""
    if phase == "prompt":
        return len(row.token_ids) - (not header.pool_first_position)
    return min(len(row.completion_ids or ()), header.max_new_tokens - 1)


def _relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over the norm; 0 where both have no position, or both are zero."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if np.isnan(found).all() and np.isnan(expected).all():
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # infinity is far from anything
        difference, norm = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if difference == 0:
        return 0.0
    return float(difference / norm) if np.isfinite(difference) and norm > 0 else float("inf")
