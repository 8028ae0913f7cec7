"""One round of a store: its samples, labels and activations, block by block.

    layer_0/round_0/                attributes: n_samples, block_rows, plan_digest, concepts, kinds, verification ...
      samples/  labels/             one row a text; one row a (sample, concept, role)
      activations/prompt/15         (n, hidden), dimension names ["sample", "hidden"]
      complete                      (n_blocks,), one chunk a block: 1 once every array of the block is written

A block's arrays are written first and its mark last, so a reader sees complete blocks only. Missing objects can not be
mistaken for data: floats are filled with NaN, counts with -1, and `Round.verify_block` asks for the object itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.storage import StorePath

from lenscache.errors import (
    ModelLayerError,
    NonFiniteError,
    StoreDamagedError,
    StoreIncompleteError,
    StoreMismatchError,
)
from lenscache.header import Phase, StoreHeader, show_value
from lenscache.layout import NATIVE_DTYPES


class Samples(NamedTuple):
    """The `samples` columns of a round, n rows each."""

    key: NDArray[np.uint8]
    """(n, 16) digest of everything the activation depends on."""
    text: NDArray[Any]
    completion: NDArray[Any]
    kind: NDArray[np.uint8]
    split: NDArray[np.uint8]
    n_prompt_tokens: NDArray[np.int32]
    n_completion_tokens: NDArray[np.int32]
    """Generated tokens that were fed back; -1 in blocks that are not complete."""
    temperature: NDArray[np.float32]


class Labels(NamedTuple):
    """The `labels` columns of a round, m rows each; see `lenscache.prompts.SamplePlan`."""

    sample: NDArray[np.int32]
    concept: NDArray[np.int32]
    role: NDArray[np.uint8]


class Block(NamedTuple):
    """What extraction found for the rows of one block, in row order."""

    activations: Mapping[tuple[Phase, int], NDArray[Any]]
    """(rows, hidden) by phase and model layer; a row with no pooled position is all NaN."""
    completion: Sequence[str]
    n_completion_tokens: NDArray[np.int32]


class Round:
    """One extraction of samples for a layer of concepts. Immutable once complete."""

    def __init__(self, group: zarr.Group, header: StoreHeader, layer: int, index: int) -> None:
        self.layer, self.index, self._group, self._header = layer, index, group, header
        self._mark = self._array("complete")

    @property
    def name(self) -> str:
        """Path of the round inside the store."""
        return f"layer_{self.layer}/round_{self.index}"

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes as they are on disk now."""
        return dict(zarr.open_group(self._group.store_path, mode="r").attrs)

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

    def complete_blocks(self) -> NDArray[np.bool_]:
        """(n_blocks,) which blocks are marked complete, read anew. A mark that does not decode is none."""
        try:
            return np.asarray(np.asarray(self._mark[:]) == 1)
        except Exception:  # noqa: BLE001 - codecs raise anything on damaged input
            return np.array([self._has_mark(block) for block in range(self.n_blocks)])

    def _has_mark(self, block: int) -> bool:
        try:
            return bool(np.asarray(self._mark[block : block + 1]) == 1)
        except Exception:  # noqa: BLE001 - as above
            return False

    @property
    def is_complete(self) -> bool:
        """Every block is written and the batched rows were verified one by one."""
        return bool(self.attributes.get("verification")) and bool(self.complete_blocks().all())

    def samples(self) -> Samples:
        """All sample columns."""
        return Samples(*(self._read(f"samples/{name}") for name in Samples._fields))

    def labels(self) -> Labels:
        """All label columns."""
        return Labels(*(self._read(f"labels/{name}") for name in Labels._fields))

    def read(self, phase: Phase, model_layer: int, rows: slice = slice(None)) -> NDArray[Any]:
        """Activations of some rows, (rows, hidden), in the store's dtype.

        Raises
        ------
        ModelLayerError, StoreMismatchError
            If the store holds no such model layer or phase.
        StoreIncompleteError
            If a block of these rows is not complete.
        StoreDamagedError
            If a checksum does not match or an object is gone.
        """
        if phase not in self._header.phases:
            raise StoreMismatchError("mode", self._header.mode, phase)
        if model_layer not in self._header.model_layers:
            raise ModelLayerError(
                f"model layer {model_layer} is not in the store, which holds {show_value(self._header.model_layers)}"
            )
        start, stop, _ = rows.indices(self.n_samples)
        blocks = slice(start // self.block_rows, -(-stop // self.block_rows))
        if not (done := self.complete_blocks()[blocks]).all():
            raise StoreIncompleteError(
                f"{self.name}: {int((~done).sum())} of {done.size} blocks of these rows are not extracted yet: "
                "run `lenscache extract` again to continue"
            )
        return self._read(f"activations/{phase}/{model_layer}", slice(start, stop))

    def write_block(self, block: int, data: Block) -> None:
        """Write one block: every array first, the mark last.

        Raises
        ------
        NonFiniteError
            If a pooled activation is NaN or infinite in the store's dtype; nothing of the block is marked.
        """
        rows = self.rows(block)
        present = self._has_position(rows, data.n_completion_tokens)
        encoded = {
            place: self._encode(values, place, rows.start, present[place[0]])
            for place, values in data.activations.items()
        }
        for (phase, model_layer), values in encoded.items():
            self._write(f"activations/{phase}/{model_layer}", block, values)
        self._write("samples/completion", block, np.array(list(data.completion), dtype=object))
        self._write("samples/n_completion_tokens", block, data.n_completion_tokens)
        self._set_mark(block, 1)

    def verify_block(self, block: int) -> None:
        """Read a complete block back, checksums included.

        Raises
        ------
        StoreDamagedError
            Naming the array and the rows that are gone, do not decode or hold what cannot have been written.
        """
        rows = self.rows(block)
        where = f"rows {rows.start}-{rows.stop - 1}"
        counts = self._read_present("samples/n_completion_tokens", block)
        if (counts < 0).any():
            raise StoreDamagedError(f"{self.name}/samples/n_completion_tokens: {where} were never written")
        self._read_present("samples/completion", block)
        for phase, has_position in self._has_position(rows, counts).items():
            for model_layer in self._header.model_layers:
                name = f"activations/{phase}/{model_layer}"
                if not np.isfinite(self._read_present(name, block)[has_position]).all():
                    raise StoreDamagedError(f"{self.name}/{name}: {where} hold values that are not finite")

    def _has_position(self, rows: slice, n_completion_tokens: NDArray[np.int32]) -> dict[Phase, NDArray[np.bool_]]:
        """(rows,) by phase: whether a position was pooled. Only rows without one may hold NaN."""
        pooled = self._read("samples/n_prompt_tokens", rows) - (not self._header.pool_first_position)
        counts: dict[Phase, NDArray[Any]] = {"prompt": pooled, "completion": n_completion_tokens}
        return {phase: np.asarray(counts[phase] > 0) for phase in self._header.phases}

    def _read_present(self, name: str, block: int) -> NDArray[Any]:
        """Rows of one block; unlike in any other reading, a missing object is an error and not the fill value."""
        if not sync(self._object(name, block).exists()):
            rows = self.rows(block)
            raise StoreDamagedError(f"{self.name}/{name}: the object of rows {rows.start}-{rows.stop - 1} is gone")
        return self._read(name, self.rows(block))

    def unmark_block(self, block: int) -> None:
        """Take the mark off a damaged block, so that it is extracted, and the round verified, again."""
        self.update_attributes({"verification": None})
        self._set_mark(block, 0)

    def update_attributes(self, values: Mapping[str, Any]) -> None:
        """Add attributes, or replace them."""
        zarr.open_group(self._group.store_path, mode="r+").update_attributes(dict(values))

    def stored_bytes(self, phase: Phase, model_layer: int) -> int:
        """Bytes on disk of one activation array, compressed: its complete blocks, without metadata."""
        name = f"activations/{phase}/{model_layer}"
        places = [self._object(name, int(block)) for block in np.flatnonzero(self.complete_blocks())]
        return sum(int(sync(place.store.getsize(place.path))) for place in places)

    def summary(self) -> dict[str, Any]:
        """How far the round is and how much it holds, as plain values."""
        attributes, done = self.attributes, self.complete_blocks()
        verification = attributes.get("verification")
        rows = sum(self.rows(int(block)).stop - self.rows(int(block)).start for block in np.flatnonzero(done))
        arrays = [(phase, i) for phase in self._header.phases for i in self._header.model_layers]
        itemsize = NATIVE_DTYPES[self._header.store_dtype].itemsize
        return {
            "name": self.name,
            "concepts": len(self.targets),
            "rows": self.n_samples,
            "blocks": self.n_blocks,
            "complete_blocks": int(done.sum()),
            "state": "complete" if verification and done.all() else "unfinished" if not done.all() else "not verified",
            "limit": attributes["limit"],
            "batch_size": attributes.get("batch_size"),
            "max_relative_error": max(verification["max_relative_error"].values()) if verification else None,
            "stored_bytes": sum(self.stored_bytes(*array) for array in arrays),
            "raw_bytes": rows * len(arrays) * self._header.hidden * itemsize,
        }

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            return cast("zarr.Array[Any]", self._group[name]).with_config({"write_empty_chunks": True})
        except json.JSONDecodeError:
            raise StoreDamagedError(
                f"the metadata of {self.name}/{name} is damaged (zarr.json is not JSON): remove that file and run "
                "`lenscache extract` again, which writes it anew"
            ) from None

    def _object(self, name: str, block: int) -> StorePath:
        """Where the rows of one block are stored."""
        array = self._array(name)
        return array.store_path / array.metadata.encode_chunk_key((block,) + (0,) * (array.ndim - 1))

    def _write(self, name: str, block: int, values: NDArray[Any]) -> None:
        array, rows = self._array(name), self.rows(block)
        try:
            array[rows] = values
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - zarr reads the index of a shard before it replaces it; codecs raise anything
            sync(self._object(name, block).delete())  # damaged, and not marked complete
            array[rows] = values

    def _set_mark(self, block: int, value: int) -> None:
        self._mark[block : block + 1] = np.array([value], np.uint8)

    def _read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[rows])
        except KeyError:
            raise StoreDamagedError(f"{self.name}/{name} is missing from the store") from None
        except Exception as error:  # codecs raise ValueError, RuntimeError and struct errors on damaged input
            where = f", rows {rows.start}-{rows.stop - 1}," if rows.stop is not None else ""
            raise StoreDamagedError(
                f"{self.name}/{name}{where} does not read back ({error}): run `lenscache extract` again, which "
                "extracts damaged blocks anew"
            ) from error

    def _advice(self, vector: NDArray[Any]) -> str:
        if np.isfinite(vector).all():
            return "extract into another store with --store-dtype bfloat16, which has the range of float32"
        if self._header.model_dtype == "float16":
            return "extract into another store with --dtype bfloat16 or float32, which have a wider range"
        return "the model itself produces it: check its weights, or leave this model layer out with --model-layers"

    def _encode(
        self, values: NDArray[Any], place: tuple[Phase, int], first_row: int, has_position: NDArray[np.bool_]
    ) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # an overflow is found below, with the row's number
            encoded = np.asarray(values).astype(NATIVE_DTYPES[self._header.store_dtype])
        finite = np.isfinite(encoded).all(axis=1) | ~has_position
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            what = "NaN" if np.isnan(values[row]).any() else "infinity"
            raise NonFiniteError(
                f"{self.name} row {first_row + row}, model layer {place[1]}, {place[0]}: {what} when stored as "
                f"{self._header.store_dtype} (model dtype {self._header.model_dtype}): {self._advice(values[row])}"
            )
        return encoded
