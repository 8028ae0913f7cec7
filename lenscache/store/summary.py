"""What `lenscache info` shows: how far a store is and how much it holds, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from lenscache.drawing import visible
from lenscache.store.attributes import is_verified
from lenscache.store.header import StoreHeader
from lenscache.store.layout import NATIVE_DTYPES
from lenscache.store.round import Round
from lenscache.terms import Phase

_SIZES_AT_ONCE = 32  # requests: one after the other, an object store is slow to answer


def summarize(
    path: str, digest: str, header: StoreHeader, rounds: Sequence[Round]
) -> dict[str, Any]:
    """Everything `lenscache info` shows. Sizes count the activations of complete blocks."""
    entries = [summarize_round(r, header) for r in rounds]
    by_model_layer = [entry["stored_bytes_by_model_layer"] for entry in entries]
    return {
        "path": path,
        "digest": digest,
        **header.to_attributes(),
        "phases": list(header.phases),
        "rounds": entries,
        "stored_bytes": sum(entry["stored_bytes"] for entry in entries),
        "stored_bytes_by_model_layer": {
            str(i): sum(sizes[str(i)] for sizes in by_model_layer) for i in header.model_layers
        },
        "raw_bytes": sum(entry["raw_bytes"] for entry in entries),
    }


def store_html(title: str, rounds: Sequence[Round]) -> str:
    """The rounds of a store as a table of HTML, for notebooks."""
    rows = [
        (r.name, len(r.targets), r.n_samples, "complete" if r.is_complete else "not finished")
        for r in rounds
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{each}</td>' for each in row)}</tr>" for row in rows)
    head = "".join(f"<th>{each}</th>" for each in ("round", "concepts", "samples", "state"))
    return (
        f"<p>{escape(visible(title, 200))}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )


def summarize_round(target: Round, header: StoreHeader) -> dict[str, Any]:
    """How far a round is and how much it holds."""
    attributes, done = target.attributes, target.complete_blocks()
    verification = attributes["verification"] if is_verified(attributes, header) else None
    rows = [range(target.n_samples)[target.rows(block)] for block in np.flatnonzero(done).tolist()]
    arrays = [(phase, i) for phase in header.phases for i in header.model_layers]
    stored = _stored_bytes(target, arrays, done)
    itemsize = NATIVE_DTYPES[header.store_dtype].itemsize
    errors = verification["max_relative_error"].values() if verification else ()
    written = "complete" if verification else "not verified"
    return {
        "name": target.name,
        "concepts": len(target.targets),
        "rows": target.n_samples,
        "blocks": target.n_blocks,
        "complete_blocks": int(done.sum()),
        "state": written if done.all() else "unfinished",
        "limit": attributes["limit"],
        "batch_size": attributes.get("batch_size"),
        "max_relative_error": max(errors) if verification else None,
        "stored_bytes": sum(stored.values()),
        "stored_bytes_by_model_layer": {str(i): size for i, size in stored.items()},
        "raw_bytes": sum(map(len, rows)) * len(arrays) * header.hidden * itemsize,
    }


def stored_bytes(target: Round, phase: Phase, model_layer: int) -> int:
    """Bytes on disk of one model layer's activations: complete blocks, without metadata."""
    return _stored_bytes(target, [(phase, model_layer)], target.complete_blocks())[model_layer]


def _stored_bytes(
    target: Round, arrays: Sequence[tuple[Phase, int]], done: NDArray[np.bool_]
) -> dict[int, int]:
    """Bytes by model layer, compressed, without metadata."""
    places = [
        (model_layer, place)
        for phase, model_layer in arrays
        for block in np.flatnonzero(done)
        for place in target.objects_of(phase, model_layer, int(block))
    ]

    async def sizes() -> list[int]:
        return await concurrent_map(
            places, lambda _, place: place.store.getsize(place.path), _SIZES_AT_ONCE
        )

    total = dict.fromkeys((model_layer for _, model_layer in arrays), 0)
    for (model_layer, _), size in zip(places, sync(sizes()), strict=True):
        total[model_layer] += size
    return total
