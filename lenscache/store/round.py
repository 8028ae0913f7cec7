"""One round of a store: its samples, labels and activations, block by block.

    layer_0/round_0/           attributes: n_samples, block_rows, plan_digest, concepts, kinds ...
      samples/  labels/        one row a text; one row a (sample, concept, role)
      activations/prompt/15    (n, hidden), dimension names ["sample", "hidden"]
      complete                 (n_blocks,), a chunk a block: 1 once all arrays of it are written

A block's arrays are written first and its mark last, so a reader sees complete blocks only. Missing
objects can not be mistaken for data: floats are filled with NaN, counts with -1, and
`Round.verify_block` asks for the object itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.storage import StorePath

from lenscache.errors import (
    NonFiniteError,
    StoreDamagedError,
    StoreIncompleteError,
)
from lenscache.store.access import raise_unless_damage
from lenscache.store.attributes import attributes_fault, is_verified
from lenscache.store.columns import COLUMNS, COMPLETION_IDS
from lenscache.store.folder import FolderStore
from lenscache.store.header import StoreHeader
from lenscache.store.layout import (
    BACKGROUND,
    NATIVE_DTYPES,
    find_node,
    round_name,
    vector_arrays,
    writing,
)
from lenscache.store.objects import object_place
from lenscache.store.quantization import dequantize, quantize
from lenscache.store.remote import RemoteStore
from lenscache.store.shards import ShardReader
from lenscache.store.token_ids import impossible_rows, unknown_rows
from lenscache.terms import Phase


class Samples(NamedTuple):
    """The `samples` columns of a round, n rows each."""

    key: NDArray[np.uint8]
    """(n, 16) digest of everything the activation depends on."""
    text: NDArray[Any]
    completion: NDArray[Any]
    kind: NDArray[np.uint8]
    split: NDArray[np.uint8]
    repeat: NDArray[np.uint16]
    """How often the text was sampled before, in earlier rows of its level."""
    n_prompt_tokens: NDArray[np.int32]
    """Tokens that the model was given, special tokens included."""
    n_cut_tokens: NDArray[np.int32]
    """Tokens at the end of a prompt that is too long, which the model was not given; mostly 0."""
    n_completion_tokens: NDArray[np.int32]
    """Generated tokens that were fed back; -1 in blocks that are not complete."""
    temperature: NDArray[np.float32]


class Labels(NamedTuple):
    """The `labels` columns of a round, m rows each; see `lenscache.concepts.plan.SamplePlan`."""

    sample: NDArray[np.int32]
    concept: NDArray[np.int32]
    role: NDArray[np.uint8]


class Block(NamedTuple):
    """What extraction found for the rows of one block, in row order."""

    activations: Mapping[tuple[Phase, int], NDArray[Any]]
    """(rows, hidden) by phase and model layer; a row with no pooled position is all NaN."""
    completion: Sequence[str]
    n_completion_tokens: NDArray[np.int32]
    completion_ids: NDArray[np.int32] | None = None
    """(rows, max_new_tokens), see `lenscache.store.token_ids`; None if no row's are known."""


def has_position(
    header: StoreHeader, n_prompt_tokens: NDArray[np.int32], n_completion_tokens: NDArray[np.int32]
) -> dict[Phase, NDArray[np.bool_]]:
    """(rows,) by phase: whether a position was pooled. Rows without one are NaN, and only they."""
    pooled = n_prompt_tokens - (not header.pool_first_position)
    counts: dict[Phase, NDArray[Any]] = {"prompt": pooled, "completion": n_completion_tokens}
    return {phase: np.asarray(counts[phase] > 0) for phase in header.phases}


class Round:
    """One extraction of samples for a level of concepts, or of `BACKGROUND`. Immutable once
    complete."""

    def __init__(self, group: zarr.Group, header: StoreHeader, level: int, index: int) -> None:
        self.level, self.index, self._group, self._header = level, index, group, header
        if fault := attributes_fault(self._fixed, header, level):
            raise StoreDamagedError(
                f"the metadata of {self.name} is damaged ({fault}): run `lenscache verify`, which "
                "says what to do"
            )
        self._opened: dict[str, zarr.Array[Any]] = {}
        self._mark = self._array("complete")
        self._columns_seen: set[str] = set()
        self._seen_complete = np.zeros(self.n_blocks, np.bool_)

    def __repr__(self) -> str:
        held = f"{self.n_samples} samples in {self.n_blocks} blocks"
        return f"Round({self.name}: {held}, {len(self.targets)} concepts)"

    @property
    def name(self) -> str:
        """Path of the round inside the store."""
        return round_name(self.level, self.index)

    @property
    def place(self) -> tuple[int, int]:
        """Two numbers of 0 or more that no other round of the store has: what is drawn is keyed by
        them."""
        return (2**31 if self.level == BACKGROUND else self.level), self.index

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes as they are on disk now."""
        return dict(zarr.open_group(self._group.store_path, mode="r", use_consolidated=False).attrs)

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        return dict(self._group.attrs)

    @property
    def n_samples(self) -> int:
        """Rows of the round."""
        return int(self._fixed["n_samples"])

    @property
    def block_rows(self) -> int:
        """Rows of a block; the last may have fewer."""
        return int(self._fixed["block_rows"])

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_samples // self.block_rows)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept ids that `labels.concept` points into."""
        return tuple(self._fixed["concepts"])

    @property
    def targets(self) -> tuple[str, ...]:
        """The concepts this round was planned for."""
        return self.concepts[: self._fixed["n_targets"]]

    def rows(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.n_samples))

    def complete_blocks(self, blocks: slice = slice(None)) -> NDArray[np.bool_]:
        """(blocks,) which blocks are marked complete, read anew; no mark if it does not decode."""
        try:
            return np.asarray(np.asarray(self._mark[blocks]) == 1)
        except Exception as error:  # noqa: BLE001 - codecs raise anything on damaged input
            raise_unless_damage(error, f"{self.name}/complete")
            return np.array([*map(self._has_mark, range(self.n_blocks)[blocks])], np.bool_)

    def _has_mark(self, block: int) -> bool:
        try:
            return bool(np.asarray(self._mark[block : block + 1]) == 1)
        except Exception as error:  # noqa: BLE001 - as above
            raise_unless_damage(error, self._object("complete", block).path)
            return False

    @property
    def is_complete(self) -> bool:
        """Every block is written and the batched rows were verified one by one."""
        return is_verified(self.attributes, self._header) and bool(self.complete_blocks().all())

    def samples(self, rows: slice = slice(None)) -> Samples:
        """All sample columns, of some consecutive rows.

        Raises
        ------
        StoreDamagedError
            If a column is gone, in whole or in part, or does not decode.
        """
        self._require_columns("samples")
        return Samples(*(self._read(f"samples/{name}", rows) for name in Samples._fields))

    def completion_ids(self, rows: slice = slice(None)) -> NDArray[np.int32] | None:
        """(rows, max_new_tokens) tokens of completions, see `lenscache.store.token_ids`.

        None in a round that holds none: in mode prompt, and in rounds that are older than they.
        """
        return self._read(f"samples/{COMPLETION_IDS}", rows) if self._has_ids else None

    @property
    def _has_ids(self) -> bool:
        return bool(self._fixed.get(COMPLETION_IDS))

    def labels(self) -> Labels:
        """All label columns.

        Raises
        ------
        StoreDamagedError
            If a column is gone, in whole or in part, or does not decode.
        """
        self._require_columns("labels")
        return Labels(*(self._read(f"labels/{name}") for name in Labels._fields))

    def read(self, phase: Phase, model_layer: int, rows: slice = slice(None)) -> NDArray[Any]:
        """Activations of some rows, (rows, hidden), in the store's dtype; float32 where it is int8.

        Raises
        ------
        ModelLayerError, StoreMismatchError
            If the store holds no such model layer or phase.
        StoreIncompleteError
            If a block of these rows is not complete.
        StoreDamagedError
            If a checksum does not match or an object is gone.
        """
        self._header.check_phase(phase)
        self._header.check_model_layer(model_layer)
        start, stop, step = rows.indices(self.n_samples)
        if step != 1:
            raise ValueError(
                f"rows step by {step}, expected consecutive rows: read them all and pick"
            )
        if start >= stop:  # no rows, no blocks
            start = stop = 0
        blocks = slice(start // self.block_rows, -(-stop // self.block_rows))
        # Marks that were seen are not read again: each is an object, and a long round has many.
        if not self._seen_complete[blocks].all():
            self._seen_complete[blocks] = self.complete_blocks(blocks)
            if not (done := self._seen_complete[blocks]).all():
                raise StoreIncompleteError(
                    f"{self.name}: {int((~done).sum())} of {done.size} blocks of these rows are "
                    "not extracted yet: run `lenscache extract` again to continue"
                )
        values = self._read_vectors(phase, model_layer, slice(start, stop))
        # Zarr reads a missing object as fill values: where a block is all NaN, look for the object.
        for block in range(blocks.start, blocks.stop):
            part = values[max(self.rows(block).start - start, 0) : self.rows(block).stop - start]
            if np.isnan(part[:, 0]).all() and np.isnan(part).all():
                for name in self._arrays_of(phase, model_layer):
                    self._require_object(name, block)
        return values

    def write_block(self, block: int, data: Block) -> None:
        """Write one block: every array first, the mark last.

        Raises
        ------
        NonFiniteError
            If a pooled activation is NaN or infinite in the store's dtype; the block is not marked.
        StoreAccessError
            If the store was moved away or removed since it was opened.
        """
        self._check_there()
        rows = self.rows(block)
        present = self._has_position(rows, data.n_completion_tokens)
        encoded = {
            place: self._encode(values, place, rows.start, present[place[0]])
            for place, values in data.activations.items()
        }
        for place, values in encoded.items():
            parts: tuple[NDArray[Any], ...] = (
                quantize(values) if self._header.store_dtype == "int8" else (values,)
            )
            for name, part in zip(self._arrays_of(*place), parts, strict=True):
                self._write(name, block, part)
        self._write("samples/completion", block, np.array(list(data.completion), dtype=object))
        self._write("samples/n_completion_tokens", block, data.n_completion_tokens)
        if self._has_ids:
            ids = data.completion_ids
            if ids is None:
                ids = unknown_rows(rows.stop - rows.start, self._header.max_new_tokens)
            self._write(f"samples/{COMPLETION_IDS}", block, ids)
        self._set_mark(block, 1)

    def verify_block(self, block: int) -> None:
        """Read a complete block back, checksums included.

        Raises
        ------
        StoreDamagedError
            Naming the array and rows that are gone, do not decode, or hold impossible values.
        """
        rows = self.rows(block)
        where = f"rows {rows.start}-{rows.stop - 1}"
        counts = self._read_present("samples/n_completion_tokens", block)
        if (counts < 0).any():
            raise StoreDamagedError(
                f"{self.name}/samples/n_completion_tokens: {where} were never written"
            )
        self._read_present("samples/completion", block)
        if self._has_ids:
            ids = self._read_present(f"samples/{COMPLETION_IDS}", block)
            if impossible_rows(ids, counts).any():
                raise StoreDamagedError(
                    f"{self.name}/samples/{COMPLETION_IDS}: {where} hold impossible token ids"
                )
        for phase, present in self._has_position(rows, counts).items():
            for model_layer in self._header.model_layers:
                for name in self._arrays_of(phase, model_layer):
                    self._require_object(name, block)
                if not np.isfinite(self._read_vectors(phase, model_layer, rows)[present]).all():
                    raise StoreDamagedError(
                        f"{self.name}/{name}: {where} hold values that are not finite"
                    )

    def _has_position(
        self, rows: slice, n_completion_tokens: NDArray[np.int32]
    ) -> dict[Phase, NDArray[np.bool_]]:
        """(rows,) by phase: whether a position was pooled. Only rows without one may hold NaN."""
        return has_position(
            self._header, self._read("samples/n_prompt_tokens", rows), n_completion_tokens
        )

    def objects_of(self, phase: Phase, model_layer: int, block: int) -> list[StorePath]:
        """Where a block of the activations of one model layer lies."""
        return [self._object(name, block) for name in self._arrays_of(phase, model_layer)]

    def _arrays_of(self, phase: Phase, model_layer: int) -> tuple[str, ...]:
        """What holds the activations of one model layer."""
        return tuple(f"{name}/{phase}/{model_layer}" for name in vector_arrays(self._header))

    def _read_vectors(self, phase: Phase, model_layer: int, rows: slice) -> NDArray[Any]:
        parts = [self._read(name, rows) for name in self._arrays_of(phase, model_layer)]
        return dequantize(parts[0], parts[1]) if len(parts) > 1 else parts[0]

    def _read_present(self, name: str, block: int) -> NDArray[Any]:
        """Rows of one block; here a missing object is an error and does not read as fill values."""
        self._require_object(name, block)
        return self._read(name, self.rows(block))

    def _require_columns(self, of: str) -> None:
        """Look once for all objects of columns whole from the start: missing ones read as zeros."""
        names = {c.place for c in COLUMNS if c.place.startswith(f"{of}/") and not c.by_block}
        for name in names - self._columns_seen:
            array = self._array(name)
            for chunk in range(-(-array.shape[0] // array.chunks[0])):
                key = array.metadata.encode_chunk_key((chunk,) + (0,) * (array.ndim - 1))
                if not sync((array.store_path / key).exists()):
                    raise StoreDamagedError(
                        f"{self.name}/{name}: the object {key} is gone: run `lenscache extract` "
                        "again, which writes it anew"
                    )
            self._columns_seen.add(name)

    def _require_object(self, name: str, block: int) -> None:
        if not sync(self._object(name, block).exists()):
            rows = self.rows(block)
            raise StoreDamagedError(
                f"{self.name}/{name}: the object of rows {rows.start}-{rows.stop - 1} is gone"
            )

    def unmark_block(self, block: int) -> None:
        """Take the mark off a damaged block: it is extracted, and the round verified, again."""
        self.update_attributes({"verification": None})
        self._set_mark(block, 0)

    def update_attributes(self, values: Mapping[str, Any]) -> None:
        """Add attributes, or replace them."""
        with writing(f"{self.name}, its attributes,"):
            zarr.open_group(
                self._group.store_path, mode="r+", use_consolidated=False
            ).update_attributes(dict(values))

    def _check_there(self) -> None:
        """Raise StoreAccessError if the store was moved away or removed."""
        cast("FolderStore | RemoteStore", self._group.store_path.store).check_there()

    def _array(self, name: str) -> zarr.Array[Any]:
        if (opened := self._opened.get(name)) is not None:
            return opened
        if (node := cast("zarr.Array[Any] | None", find_node(self._group, name))) is None:
            self._check_there()
            raise StoreDamagedError(
                f"{self.name}/{name} is missing from the store: run `lenscache extract` again, "
                "which writes it anew"
            )
        length = self.n_blocks if name == "complete" else self.n_samples
        if not name.startswith("labels/") and node.shape[:1] != (length,):
            raise StoreDamagedError(
                f"{self.name}/{name} has the shape {node.shape}, expected {length} rows: run "
                "`lenscache verify`, which says what to do"
            )
        # Kept: metadata never change, and asking an object store takes as long as reading a block.
        self._opened[name] = node.with_config({"write_empty_chunks": True})
        return self._opened[name]

    def _object(self, name: str, block: int) -> StorePath:
        """Where the rows of one block are stored."""
        return object_place(self._array(name), block)

    def _write(self, name: str, block: int, values: NDArray[Any]) -> None:
        array, rows = self._array(name), self.rows(block)
        with writing(f"{self.name}/{name}, rows {rows.start}-{rows.stop - 1},"):
            try:
                array[rows] = values
            except OSError:
                raise
            # zarr reads a shard's index before it replaces it; codecs raise anything
            except Exception as error:  # noqa: BLE001
                raise_unless_damage(error, self._object(name, block).path)
                sync(self._object(name, block).delete())  # damaged, and not marked complete
                array[rows] = values

    def _set_mark(self, block: int, value: int) -> None:
        with writing(f"{self.name}/complete, the mark of block {block},"):
            self._mark[block : block + 1] = np.array([value], np.uint8)
        self._seen_complete[block] = False

    def _read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        try:
            array = self._array(name)
            if name.startswith("activations/") and (reader := ShardReader.of(array)) is not None:
                start, stop, _ = rows.indices(array.shape[0])
                return reader.read(start, stop)
            return np.asarray(array[rows])
        except StoreDamagedError:
            raise
        except Exception as error:  # codecs raise anything on damaged input
            raise_unless_damage(error, f"{self.name}/{name}")
            where = f", rows {rows.start}-{rows.stop - 1}," if rows.stop is not None else ""
            raise StoreDamagedError(
                f"{self.name}/{name}{where} does not read back ({error}): run `lenscache extract` "
                "again, which extracts damaged blocks anew"
            ) from error

    def _advice(self, vector: NDArray[Any]) -> str:
        if np.isfinite(vector).all():
            option = "--store-dtype bfloat16, which has the range of float32"
        elif self._header.model_dtype == "float16":
            option = "--dtype bfloat16 or float32, which have a wider range"
        else:
            return (
                "the model itself produces it: "
                "check its weights, or leave this model layer out with --model-layers"
            )
        return f"extract into another store with {option}"

    def _encode(
        self,
        values: NDArray[Any],
        place: tuple[Phase, int],
        first_row: int,
        has_position: NDArray[np.bool_],
    ) -> NDArray[Any]:
        stored = self._header.store_dtype
        dtype = NATIVE_DTYPES[
            "float32" if stored == "int8" else stored
        ]  # quantized by vector later
        with np.errstate(over="ignore"):  # an overflow is found below, with the row's number
            encoded = np.asarray(values).astype(dtype)
        finite = np.isfinite(encoded).all(axis=1) | ~has_position
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            what = "NaN" if np.isnan(values[row]).any() else "infinity"
            raise NonFiniteError(
                f"{self.name} row {first_row + row}, model layer {place[1]}, {place[0]}: {what} "
                f"when stored as {stored} (model dtype {self._header.model_dtype}): "
                f"{self._advice(values[row])}"
            )
        return encoded
