"""Sizes that metadata claim, compared with what is there.

n_samples, block_rows of a round --contradicted_sizes--> what all arrays say against them
shape of an array                --rows_beyond---------> rows that its objects hold and it hides
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from zarr.core.array import AsyncArray

from lenscache.errors import StoreDamagedError
from lenscache.store.columns import COLUMNS
from lenscache.store.objects import StoredArray, object_names

_SAMPLES = [c for c in COLUMNS if c.place.startswith("samples/") and not c.optional]
_WHOLE = tuple(column.place for column in _SAMPLES if not column.by_block)
_BY_BLOCK = tuple(column.place for column in _SAMPLES if column.by_block)


def contradicted_sizes(
    root: zarr.Group, name: str, attributes: Mapping[str, Any]
) -> Iterator[tuple[str, int]]:
    """The attributes of a round that all its arrays contradict, and what they have instead."""
    for key, arrays, size in (
        ("n_samples", _WHOLE, "n_rows"),
        ("block_rows", _BY_BLOCK, "object_rows"),
    ):
        opened = (_open(root, f"{name}/{array}") for array in arrays)
        sizes = (getattr(array, size) for array in opened if array is not None)
        held = next(sizes, attributes[key])
        # Most often the first agrees, and the others are not opened.
        if held != attributes[key] and all(other == held for other in sizes):
            yield key, held


def _open(root: zarr.Group, name: str) -> StoredArray | None:
    try:
        return StoredArray.open(root, name)
    except StoreDamagedError:
        return None  # reported when it is opened to be checked


def rows_beyond(root: zarr.Group, column: StoredArray) -> int:
    """Rows that the objects of a column hold beyond its shape, those at the end that are fill
    values aside: its shape was cut."""
    numbers = [int(n) for n in object_names(root, f"{column.name}/c") if n.isdecimal()]
    held = (max(numbers, default=-1) + 1) * column.object_rows
    if held <= column.n_rows:
        return 0
    metadata: Any = replace(column.array.metadata, shape=(held, *column.shape[1:]))
    whole: zarr.Array[Any] = zarr.Array(AsyncArray(metadata, column.array.store_path))
    values = np.asarray(whole[column.n_rows :]).reshape(held - column.n_rows, -1)
    filled = np.flatnonzero((values != column.array.fill_value).any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else 0
