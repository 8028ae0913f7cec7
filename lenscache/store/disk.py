"""How much room a run needs, asked before anything is spent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from lenscache.errors import DiskSpaceError
from lenscache.store.header import StoreHeader
from lenscache.store.layout import NATIVE_DTYPES
from lenscache.store.remote import local_folder

_COMPRESSED_SHARE = 0.75
"""Of the raw size of a bfloat16 store; 0.70 was measured, so there is room to spare."""


def estimate_bytes(header: StoreHeader, n_rows: int) -> int:
    """Raw bytes of the activations of `n_rows` rows, before compression."""
    itemsize = NATIVE_DTYPES[header.store_dtype].itemsize
    scale = 4 if header.store_dtype == "int8" else 0
    vectors = n_rows * len(header.phases) * len(header.model_layers)
    return vectors * (header.hidden * itemsize + scale)


def estimate_stored_bytes(header: StoreHeader, n_rows: int) -> int:
    """Bytes on disk of the activations of `n_rows` rows, a little more than was measured."""
    share = _COMPRESSED_SHARE if header.store_dtype == "bfloat16" else 1.0
    return int(estimate_bytes(header, n_rows) * share)


def check_disk_space(
    path: str | Path, header: StoreHeader, rows_of_round: Mapping[str, int]
) -> None:
    """Refuse to start what the disk cannot hold.

    Parameters
    ----------
    rows_of_round : rows to extract, by the path of their round inside the store.

    Raises
    ------
    DiskSpaceError
        If the file system has less room than what is still to be written.
    """
    if (named := local_folder(path)) is None:
        return  # an object store has no end that we could ask for
    folder = named.absolute()
    # Bytes of other rounds say nothing about how much of these is written already.
    files = (file for name in rows_of_round for file in (folder / name).rglob("*"))
    written = sum(file.stat().st_size for file in files if file.is_file())
    needed = estimate_stored_bytes(header, sum(rows_of_round.values())) - written
    advice = "choose another disk, fewer --model-layers or --mode prompt"
    require_room(folder, needed, "the run needs about {} more", advice)


def require_room(folder: Path, needed: int, need: str, advice: str) -> None:
    """Refuse what the disk of `folder` cannot hold; the folder need not exist yet.

    Parameters
    ----------
    need : start of the message, with {} in place of the size.

    Raises
    ------
    DiskSpaceError
        If fewer than `needed` bytes are free.
    """
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        what = need.format(f"{needed / 1e9:.1f} GB")
        raise DiskSpaceError(f"{what}, {there} has {free / 1e9:.1f} GB free: {advice}")
