"""`samples/completion_ids`: the tokens of each completion, one row of a rectangular array a sample.

    lists of token ids --as_rows--> (rows, max_new_tokens) int32 --ids_of_row--> a list, or unknown

Rows are padded at their end. Padding compresses to almost nothing, and a plain array is read by
every Zarr library, which offsets into a flat array or a ragged type are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1
"""Stands after the last token of a completion."""
UNKNOWN = -2
"""Throughout a row whose tokens were never recorded, and in blocks that are not written."""


def as_rows(completions: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.int32]:
    """(rows, max_new_tokens) token ids, and `NO_TOKEN` after each completion."""
    rows = np.full((len(completions), max_new_tokens), NO_TOKEN, np.int32)
    for row, ids in zip(rows, completions, strict=True):
        row[: len(ids)] = ids
    return rows


def unknown_rows(n_rows: int, max_new_tokens: int) -> NDArray[np.int32]:
    """(n_rows, max_new_tokens) of completions whose tokens nobody recorded."""
    return np.full((n_rows, max_new_tokens), UNKNOWN, np.int32)


def ids_of_row(row: NDArray[np.int32]) -> tuple[int, ...] | None:
    """The tokens of one completion; None if they are unknown."""
    if (row == UNKNOWN).any():
        return None
    return tuple(row[row != NO_TOKEN].tolist())


def impossible_rows(
    rows: NDArray[np.int32], n_completion_tokens: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """(rows,) whether a row contradicts itself or the number of tokens that were fed back.

    A completion of `max_new_tokens` tokens was cut off there and its last token not fed back; a
    shorter one ended by itself, and all its tokens were.
    """
    width = rows.shape[1]
    is_token = rows >= 0
    n_tokens = is_token.sum(axis=1)
    is_padded = np.where(np.arange(width) < n_tokens[:, None], is_token, rows == NO_TOKEN)
    fits = is_padded.all(axis=1) & (np.minimum(n_tokens, width - 1) == n_completion_tokens)
    return np.asarray(~fits & ~(rows == UNKNOWN).all(axis=1))
