"""Which rows share a batch: rows of about the same length, so that little of it is padding.

    lengths, ascending; BatchLimits --the cheapest cuts--> sizes of the batches

A batch costs its positions, padding included, and a fixed overhead: each pass reads every weight
and launches every operation once, however many rows there are. Where the overhead is known, it is
given in positions, and a batch ends where more padding would cost more than another batch. Else
batches are filled, and halved where that is more positions than they may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class BatchLimits(NamedTuple):
    """How large a batch may be, and what another batch costs."""

    rows: int
    """Most rows of a batch."""
    positions: int | None = None
    """Most positions of a batch of several rows, padding and completions included; None for no
    limit."""
    overhead: float | None = None
    """Fixed cost of a batch: positions that cost as much; None to fill every batch."""


DEFAULT_LIMITS = BatchLimits(rows=4)


def batch_sizes(
    lengths: Sequence[int] | NDArray[np.integer], limits: BatchLimits, *, new_tokens: int = 0
) -> list[int]:
    """Rows of each batch, one after the other.

    Parameters
    ----------
    lengths : tokens of each prompt, ascending.
    new_tokens : positions that every row gets beside its prompt.
    """
    most, max_positions, overhead = limits
    n, widths = len(lengths), np.asarray(lengths, np.int64) + new_tokens
    if max_positions is None:
        max_positions = int(most * widths.max(initial=0))
    if overhead is None:
        return _filled(widths, most, max_positions)
    # least[i] is the cost of the first i rows; the last batch that ends at row i begins at cut[i].
    least, cut = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    for end in range(1, n + 1):
        starts = np.arange(max(0, end - most), end)
        positions = (end - starts) * widths[end - 1]
        fits = (positions <= max_positions) | (starts == end - 1)
        cost = np.where(fits, least[starts] + positions + overhead, np.inf)
        best = int(np.argmin(cost))
        least[end], cut[end] = cost[best], starts[best]
    sizes, end = [], n
    while end:
        sizes.append(end - int(cut[end]))
        end = int(cut[end])
    return sizes[::-1]


def full_sizes(most: int) -> list[int]:
    """Sizes of batches that are filled, the largest first: `most` rows, halved where a limit of
    positions allows no more. They are few, so that a step recorded for one serves others."""
    return [most >> halvings for halvings in range(most.bit_length())]


def _filled(widths: NDArray[np.int64], most: int, max_positions: int) -> list[int]:
    sizes, start = [], 0
    while start < len(widths):
        left = len(widths) - start
        some = [min(most, left), *(size for size in full_sizes(most) if size < left)]
        fitting = (size for size in some if size * widths[start + size - 1] <= max_positions)
        sizes.append(next(fitting, 1))
        start += sizes[-1]
    return sizes
