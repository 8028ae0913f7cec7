"""How a round is laid out as Zarr arrays: types, chunks, shards and codecs.

Everything here can be called again on a round that is there, in whole or in part, by any number of writers: what is
missing is created, what is there is left alone, and nothing is deleted.
"""

from __future__ import annotations

from typing import Any, cast

import ml_dtypes
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from lenscache.bfloat16 import BFloat16
from lenscache.errors import StoreMismatchError
from lenscache.header import StoreHeader, show_value
from lenscache.prompts import KINDS, SamplePlan

DEFAULT_BLOCK_ROWS = 256

NATIVE_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
# zstd codes at most 128 KiB with one table. In Blosc blocks of 256 KiB of 2-byte values, the shuffled exponent bytes
# fill exactly one such run and the mantissa bytes another: measured 0.70 of raw, against 0.73-0.75 in smaller blocks.
_BLOSC_BLOCK_BYTES = 2**18
_COLUMN_CHUNK_ROWS = 8192


def lay_out_round(
    group: zarr.Group,
    header: StoreHeader,
    plan: SamplePlan,
    keys: NDArray[np.uint8],
    n_prompt_tokens: NDArray[np.int32],
    *,
    block_rows: int,
    limit: int | None,
) -> None:
    """Create whatever a round lacks; see `Store.create_round`. `complete` comes last and says the rest is there."""
    attributes = {
        "n_samples": len(plan), "block_rows": block_rows, "plan_digest": plan.digest, "seed": header.seed,
        "limit": limit, "concepts": list(plan.concepts), "n_targets": plan.n_targets, "kinds": list(KINDS),
    }  # fmt: skip
    if "plan_digest" not in group.attrs:
        group.update_attributes(attributes)
    for key in ("limit", "block_rows", "seed", "plan_digest"):
        if group.attrs[key] != attributes[key]:
            raise StoreMismatchError(key.replace("_", " "), show_value(group.attrs[key]), show_value(attributes[key]))
    # One by one: zarr writes the groups above an array together with it, and a writer may be killed in between.
    for place in ("samples", "labels", "activations", *(f"activations/{phase}" for phase in header.phases)):
        require_group(group, place)
    columns: dict[str, NDArray[Any]] = {
        "samples/key": keys, "samples/text": np.array(plan.texts, dtype=object), "samples/kind": plan.kind,
        "samples/split": plan.split, "samples/n_prompt_tokens": n_prompt_tokens,
        "samples/temperature": plan.temperature, "labels/sample": plan.label_sample,
        "labels/concept": plan.label_concept, "labels/role": plan.label_role,
    }  # fmt: skip
    for place, values in columns.items():
        write_column(group, place, values)
    _create_empty_columns(group, header, len(plan), block_rows)


def write_column(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    """Create a column and fill it, or mend it if it is there and differs."""
    if name in group:
        array = cast("zarr.Array[Any]", group[name]).with_config({"write_empty_chunks": True})
        try:
            if np.array_equal(np.asarray(array[:]).astype(values.dtype), values):
                return
        except Exception:  # noqa: BLE001, S110 - codecs raise anything; what does not decode is written again
            pass
    else:
        array = _create_array(
            group,
            name,
            shape=values.shape,
            chunks=(max(1, min(len(values), _COLUMN_CHUNK_ROWS)), *values.shape[1:]),
            dtype="string" if values.dtype == object else values.dtype,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            dimension_names=[name.split("/")[0].rstrip("s"), *(["byte"] if values.ndim > 1 else [])],
            config={"write_empty_chunks": True},
        )
    array[:] = values


def require_group(group: zarr.Group, name: str) -> zarr.Group:
    """Open a group below `group`, or create it; whoever else creates it at this moment, too."""
    try:
        return group.require_group(name)
    except ContainsGroupError:
        return cast("zarr.Group", group[name])


def _create_array(group: zarr.Group, name: str, **spec: Any) -> zarr.Array[Any]:
    """Create an array, or take the one that another writer of the same plan created at this moment."""
    try:
        return group.create_array(name, **spec)
    except ContainsArrayError:
        return cast("zarr.Array[Any]", group[name])


def _create_empty_columns(group: zarr.Group, header: StoreHeader, n: int, block_rows: int) -> None:
    """Lay out what extraction fills block by block; `complete` last."""
    for phase in header.phases:
        for model_layer in header.model_layers:
            if (name := f"activations/{phase}/{model_layer}") not in group:
                _create_activations(group, name, header, n, block_rows)
    for name, dtype, fill in (("samples/completion", "string", ""), ("samples/n_completion_tokens", "int32", -1)):
        if name not in group:
            _create_array(
                group, name, shape=(n,), chunks=(block_rows,), dtype=dtype, fill_value=fill,
                compressors=[ZstdCodec(level=3), Crc32cCodec()], dimension_names=["sample"],
            )  # fmt: skip
    if "complete" not in group:
        _create_array(
            group, "complete", shape=(-(-n // block_rows),), chunks=(1,), dtype="uint8", compressors=[Crc32cCodec()],
            dimension_names=["block"],
        )  # fmt: skip


def _create_activations(group: zarr.Group, name: str, header: StoreHeader, n: int, block_rows: int) -> None:
    dtype: Any = BFloat16() if header.store_dtype == "bfloat16" else header.store_dtype
    itemsize = NATIVE_DTYPES[header.store_dtype].itemsize
    # The smallest chunk that fills a Blosc block, so that reading a few rows decodes little else.
    chunk_rows = next(
        (n for n in (16, 32, 64, 128, 256) if n * header.hidden * itemsize >= _BLOSC_BLOCK_BYTES), block_rows
    )
    if block_rows % chunk_rows:
        chunk_rows = block_rows
    blosc = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=itemsize, blocksize=_BLOSC_BLOCK_BYTES)
    _create_array(
        group,
        name,
        shape=(n, header.hidden),
        dtype=dtype,
        chunks=(chunk_rows, header.hidden),
        shards=(block_rows, header.hidden),
        filters=[TransposeCodec(order=(1, 0))],
        serializer=BytesCodec(endian="little"),  # explicit: tensorstore refuses a "bytes" codec without it
        compressors=[blosc, Crc32cCodec()],
        fill_value=float("nan"),
        dimension_names=["sample", "hidden"],
    )
