"""How a round is laid out as Zarr arrays: types, chunks, shards and codecs.

Everything here can be called again on a round that is there, in whole or in part, by any number of
writers: what is missing is created, what is there is left alone, and nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import ml_dtypes
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import GroupMetadata
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import StorePath

from lenscache.bfloat16 import BFloat16
from lenscache.concepts.plan import SamplePlan
from lenscache.concepts.prompts import KINDS
from lenscache.errors import (
    StoreDamagedError,
    StoreError,
    StoreMismatchError,
    StoreWriteError,
)
from lenscache.store.access import raise_unless_damage
from lenscache.store.bounded import bounded
from lenscache.store.columns import COLUMNS, COMPLETION_IDS
from lenscache.store.header import StoreHeader, show_value
from lenscache.store.quantization import MISSING

NATIVE_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
# zstd codes at most 128 KiB with one table. In a Blosc block of 256 KiB of 2-byte values, the
# shuffled exponent bytes fill exactly one such run and the mantissa bytes another: measured 0.69 of
# raw where a chunk is one full Blosc block, and 0.70-0.77 elsewhere (benchmarks/codecs.py). Level 1
# is smaller and faster here than 3.
_BLOSC_BLOCK_BYTES = 2**18
_BLOSC_LEVEL = 1
_BLOCK_ROWS = 256  # about as many rows are written, and may be lost, as one unit
COLUMN_CHUNK_ROWS = 8192
"""Rows of an object of a column that is whole from the start."""
BACKGROUND = -1
"""In place of a level: rows that express no concept."""


def round_name(level: int, index: int) -> str:
    """Path of a round inside the store."""
    folder = "background" if level == BACKGROUND else f"layer_{level}"
    return f"{folder}/round_{index}"


def create_group(place: StorePath, attributes: Mapping[str, Any]) -> None:
    """Create a group with its attributes in one write, unless something is there already.

    Of several writers that do so at the same moment one has its way; the others find what it wrote
    when they read the group.
    """
    content = GroupMetadata(attributes=dict(attributes)).to_buffer_dict(default_buffer_prototype())
    for name, data in content.items():
        sync((place / name).set_if_not_exists(data))


def lay_out_round(
    root: zarr.Group,
    name: str,
    header: StoreHeader,
    plan: SamplePlan,
    keys: NDArray[np.uint8],
    n_prompt_tokens: NDArray[np.int32],
    n_cut_tokens: NDArray[np.int32],
    *,
    block_rows: int | None,
    request: Mapping[str, Any],
) -> None:
    """Create what a round lacks, `complete` last: it says the rest is there. See `create_round`."""
    group = _require_round(root, name, header, plan, block_rows=block_rows, request=request)
    # One by one: a writer may be killed while zarr creates an array and the groups above it.
    vectors = vector_arrays(header)
    of_phases = (f"{name}/{phase}" for name in vectors for phase in header.phases)
    for place in ("samples", "labels", *vectors, *of_phases):
        require_group(group, place)
    columns: dict[str, NDArray[Any]] = {
        "samples/key": keys,
        "samples/text": np.array(plan.texts, dtype=object),
        "samples/n_prompt_tokens": n_prompt_tokens,
        "samples/n_cut_tokens": n_cut_tokens,
        **{column.place: getattr(plan, column.plan) for column in COLUMNS if column.plan},
    }
    for column in COLUMNS:
        if not column.by_block:
            write_column(group, column.place, columns[column.place])
    _create_empty_columns(group, header, len(plan), int(cast(Any, group.attrs["block_rows"])))


def _require_round(
    root: zarr.Group,
    name: str,
    header: StoreHeader,
    plan: SamplePlan,
    *,
    block_rows: int | None,
    request: Mapping[str, Any],
) -> zarr.Group:
    """The group of a round, created unless it is there; it must be one of this plan and request."""
    require_group(root, name.partition("/")[0])
    found = find_node(root, name)
    if block_rows is None:
        default: Any = default_block_rows(header.hidden)
        block_rows = int(default if found is None else found.attrs.get("block_rows", default))
    attributes = {
        "n_samples": len(plan),
        "block_rows": block_rows,
        "plan_digest": plan.digest,
        "seed": header.seed,
        **request,
        "concepts": list(plan.concepts),
        "n_targets": plan.n_targets,
        "kinds": list(KINDS),
        COMPLETION_IDS: _has_completion_ids(root, name, header),
    }
    if found is None:
        create_group(root.store_path / name, attributes)
    elif "plan_digest" not in found.attrs:  # a writer of before was killed between group and these
        cast("zarr.Group", found).update_attributes(attributes)
    # Read anew: another writer may have created it at this moment, for something else.
    group = cast("zarr.Group", root[name])
    # Not the kinds: a later lenscache may have more, and the plan's digest covers those used.
    compared = (*request, "block_rows", "seed", "plan_digest", "n_samples", "concepts", "n_targets")
    for key in compared:
        if (there := group.attrs.get(key)) != (wanted := attributes[key]):
            raise StoreMismatchError(key.replace("_", " "), show_value(there), show_value(wanted))
    return group


def _has_completion_ids(root: zarr.Group, name: str, header: StoreHeader) -> bool:
    """Whether a round whose attributes are written now is to hold token ids.

    Not where none are generated, nor in a round of before there were any, whose attributes were
    lost: its complete blocks have none.
    """
    is_laid_out = find_node(root, f"{name}/complete") is not None
    has_array = find_node(root, f"{name}/samples/{COMPLETION_IDS}") is not None
    return header.mode != "prompt" and (has_array or not is_laid_out)


def default_block_rows(hidden: int) -> int:
    """Rows of a block, about 256: as many chunks as fit, each of which fills one Blosc block."""
    fitting = _fitting_rows(hidden)
    return fitting * max(1, round(_BLOCK_ROWS / fitting))


def chunk_rows(hidden: int, block_rows: int) -> int:
    """Rows of an inner chunk, of which a block has a whole number."""
    fitting = min(_fitting_rows(hidden), block_rows)
    rows = next(n for n in range(fitting, 0, -1) if block_rows % n == 0)
    # Where no divisor comes near, the whole block: small chunks compress badly.
    return block_rows if 2 * rows <= fitting else rows


def _fitting_rows(hidden: int) -> int:
    """Rows of 2-byte values that fill one Blosc block."""
    return max(1, min(_BLOSC_BLOCK_BYTES // (2 * hidden), _BLOCK_ROWS))


def vector_arrays(header: StoreHeader) -> tuple[str, ...]:
    """The groups whose arrays, by phase and model layer, together hold the activations."""
    return ("activations", "scales") if header.store_dtype == "int8" else ("activations",)


def write_column(
    group: zarr.Group, name: str, values: NDArray[Any], dimensions: Sequence[str] | None = None
) -> None:
    """Create a column and fill it, or mend it if it is there and differs.

    `dimensions` names its axes; by default "sample" or "label" for what stands below `samples` and
    `labels`.
    """
    if (node := find_node(group, name)) is not None:
        array = cast("zarr.Array[Any]", node).with_config({"write_empty_chunks": True})
        try:
            # An object that is gone reads as fill values, and a column may well be zero throughout.
            whole = array.nchunks_initialized == array.nchunks
            if whole and np.array_equal(np.asarray(array[:]).astype(values.dtype), values):
                return
        # codecs raise anything; what does not decode is written again
        except Exception as error:  # noqa: BLE001
            raise_unless_damage(error, array.path)
    else:
        default = [name.split("/")[0].rstrip("s"), *(["byte"] if values.ndim > 1 else [])]
        array = _create_array(
            group,
            name,
            shape=values.shape,
            chunks=(max(1, min(len(values), COLUMN_CHUNK_ROWS)), *values.shape[1:]),
            dtype="string" if values.dtype == object else values.dtype,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            dimension_names=dimensions or default,
            config={"write_empty_chunks": True},
        )
    array[:] = values


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Name what was being written where the file system refuses it.

    Raises
    ------
    StoreWriteError
        If anything below raises an OSError of its own.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreWriteError(
            f"{what} cannot be written ({error}): make room on the disk, or make it writable, and "
            "run the same `lenscache extract` again; complete blocks are kept"
        ) from error


def find_node(group: zarr.Group, name: str) -> zarr.Group | zarr.Array[Any] | None:
    """What is there under a name below `group`, None if nothing.

    Raises
    ------
    StoreDamagedError
        If its metadata does not parse, or tells of an array too large to be one.
    """
    try:
        node = group[name]
        return bounded(node) if isinstance(node, zarr.Array) else node
    except KeyError:
        return None
    except OSError:
        raise
    except Exception as error:  # zarr raises anything on metadata that it cannot parse
        place = f"{group.path}/{name}".lstrip("/")
        raise_unless_damage(error, f"{place}/zarr.json")
        raise StoreDamagedError(
            f"the metadata of {place} is damaged ({type(error).__name__}: {error}): remove "
            f"{place}/zarr.json and run `lenscache extract` again, which writes it anew"
        ) from error


def require_group(group: zarr.Group, name: str) -> zarr.Group:
    """Open a group below `group`, or create it; whoever else creates it at this moment, too.

    Raises
    ------
    StoreDamagedError
        If its metadata does not parse.
    """
    if (node := find_node(group, name)) is not None:
        return cast("zarr.Group", node)
    try:
        return group.require_group(name)
    except ContainsGroupError:
        return cast("zarr.Group", group[name])


def _create_array(group: zarr.Group, name: str, **spec: Any) -> zarr.Array[Any]:
    """Create an array, or take the one that another writer of the same plan created meanwhile."""
    try:
        return group.create_array(name, **spec)
    except ContainsArrayError:
        array = cast("zarr.Array[Any]", group[name])
        # Else writing zeros would delete the object that the other writer has just written.
        return array.with_config({"write_empty_chunks": True})


def _create_empty_columns(group: zarr.Group, header: StoreHeader, n: int, block_rows: int) -> None:
    """Lay out what extraction fills block by block; `complete` last."""

    def create_column(name: str, dtype: str, fill: Any, more: Mapping[str, int]) -> None:
        """`more`: length by name of further axes."""
        if find_node(group, name) is None:
            _create_array(
                group,
                name,
                shape=(n, *more.values()),
                chunks=(block_rows, *more.values()),
                dtype=dtype,
                fill_value=fill,
                compressors=[ZstdCodec(level=3), Crc32cCodec()],
                dimension_names=["sample", *more],
            )

    for phase in header.phases:
        for model_layer in header.model_layers:
            if find_node(group, name := f"activations/{phase}/{model_layer}") is None:
                _create_activations(group, name, header, n, block_rows)
            if header.store_dtype == "int8":
                create_column(f"scales/{phase}/{model_layer}", "float32", float("nan"), {})
    for column in COLUMNS:
        if column.by_block and (not column.optional or group.attrs.get(column.name)):
            create_column(column.place, column.dtype, column.fill, column.more_axes(header))
    if find_node(group, "complete") is None:
        _create_array(
            group,
            "complete",
            shape=(-(-n // block_rows),),
            chunks=(1,),
            dtype="uint8",
            compressors=[Crc32cCodec()],
            dimension_names=["block"],
        )


def _create_activations(
    group: zarr.Group, name: str, header: StoreHeader, n: int, block_rows: int
) -> None:
    dtype: Any = BFloat16() if header.store_dtype == "bfloat16" else header.store_dtype
    blosc = BloscCodec(
        cname="zstd",
        clevel=_BLOSC_LEVEL,
        shuffle="shuffle",
        typesize=NATIVE_DTYPES[header.store_dtype].itemsize,
        blocksize=_BLOSC_BLOCK_BYTES,
    )
    _create_array(
        group,
        name,
        shape=(n, header.hidden),
        dtype=dtype,
        chunks=(chunk_rows(header.hidden, block_rows), header.hidden),
        shards=(block_rows, header.hidden),
        filters=[TransposeCodec(order=(1, 0))],
        serializer=BytesCodec(endian="little"),  # tensorstore refuses "bytes" without an endianness
        compressors=[blosc, Crc32cCodec()],
        fill_value=MISSING if header.store_dtype == "int8" else float("nan"),
        dimension_names=["sample", "hidden"],
    )
