"""Single objects of a store: is one there, is it whole, does it decode.

    group, name --StoredArray.open--> rows of each object
        --look---> missing, empty or cut short, by size alone
        --check--> values, every checksum of the object compared

An object is what the store keeps of an array under one key: a file in a folder, a shard where an
array has shards.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from lenscache.errors import StoreDamagedError
from lenscache.store.access import raise_unless_damage, type_and_text
from lenscache.store.layout import find_node

ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that a shard does not hold."""
CHECKSUM_BYTES = 4


class Look(NamedTuple):
    """What one object was found to be."""

    size: int
    """Bytes; 0 if it is not there."""
    fault: str | None
    """What is wrong with it, if anything."""
    values: NDArray[Any] | None = None
    """What it holds, if it was decoded."""


@dataclass(frozen=True)
class StoredArray:
    """One array and the objects that hold it, cut along the rows."""

    name: str
    """Path inside the store."""
    array: zarr.Array[Any]

    @classmethod
    def open(cls, group: zarr.Group, name: str) -> StoredArray | None:
        """The array `name` below the root group of a store; None if nothing is there.

        Raises
        ------
        StoreDamagedError
            If its metadata does not parse, or it is no array.
        """
        node = find_node(group, name)
        if node is None:
            return None
        if not isinstance(node, zarr.Array):
            raise StoreDamagedError(f"{name} is a group, expected an array")
        return cls(name, node)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape by the metadata."""
        return self.array.shape

    @property
    def n_rows(self) -> int:
        """Rows by the metadata; 0 of a number alone."""
        return self.shape[0] if self.shape else 0

    @property
    def data_type(self) -> str:
        """Name of the Zarr data type."""
        return str(self.array.metadata.data_type.to_json(zarr_format=3))  # type: ignore[union-attr]

    @property
    def object_rows(self) -> int:
        """Rows of one object; the last may have fewer."""
        return int((self.array.shards or self.array.chunks or (1,))[0])

    @property
    def n_objects(self) -> int:
        """Objects that a complete array has. Other axes than the first are never cut."""
        return -(-self.n_rows // self.object_rows)

    def rows(self, number: int) -> slice:
        """The rows in one object."""
        return slice(number * self.object_rows, min((number + 1) * self.object_rows, self.n_rows))

    def object_path(self, number: int) -> str:
        """Path of one object inside the store."""
        return self._place(number).path

    def size(self, number: int) -> int | None:
        """Bytes of one object, None if it is not there."""
        place = self._place(number)
        try:
            return int(sync(place.store.getsize(place.path)))
        except FileNotFoundError:
            return None

    def decode(self, number: int) -> NDArray[Any]:
        """The values of one object; codecs raise anything on damaged input."""
        return np.asarray(self.array[self.rows(number)])

    def look(self, number: int) -> Look:
        """What shows of an object without decoding it."""
        size = self.size(number)
        if not size:
            return Look(0, "the object is missing" if size is None else "the object is empty")
        try:
            return Look(size, self._shard_fault(number, size) if self.array.shards else None)
        except Exception as error:
            raise_unless_damage(error, self.object_path(number))
            raise

    def check(self, number: int) -> Look:
        """Decode an object, which compares every checksum of it, and keep the values."""
        size = self.size(number)
        if not size:
            return self.look(number)
        try:
            return Look(size, None, self.decode(number))
        except Exception as error:  # noqa: BLE001 - codecs raise anything on damaged input
            raise_unless_damage(error, self.object_path(number))
            fault = self.look(number).fault or f"does not read back ({type_and_text(error)})"
            return Look(size, fault)

    def _shard_fault(self, number: int, size: int) -> str | None:
        """A shard ends with its index: offset and length of each inner chunk, then a checksum."""
        n_chunks = self.object_rows // self.array.chunks[0]
        index_bytes = 16 * n_chunks + CHECKSUM_BYTES
        if size < index_bytes:
            return f"the object has {size} bytes, its index alone has {index_bytes}"
        request = SuffixByteRequest(index_bytes)
        tail = sync(self._place(number).get(default_buffer_prototype(), byte_range=request))
        if tail is None:
            return "the object is missing"
        numbers = struct.unpack(f"<{2 * n_chunks}Q", tail.to_bytes()[:-CHECKSUM_BYTES])
        chunks = set(zip(numbers[::2], numbers[1::2], strict=True)) - {(ABSENT, ABSENT)}
        end = max((offset + length for offset, length in chunks), default=0)
        if end + index_bytes != size:
            return (
                f"the object has {size} bytes, which its index does not account for: "
                "it was cut short or changed"
            )
        return None

    def _place(self, number: int) -> StorePath:
        return object_place(self.array, number)


def object_place(array: zarr.Array[Any], number: int) -> StorePath:
    """Where an object of an array lies, counted along the rows."""
    return array.store_path / array.metadata.encode_chunk_key((number,) + (0,) * (array.ndim - 1))


def object_names(group: zarr.Group, name: str) -> list[str]:
    """What a folder below `group` holds, temporary files aside; nothing if there is no folder."""
    place = group.store_path / name

    async def names() -> list[str]:
        return [entry async for entry in place.store.list_dir(place.path)]

    return [entry for entry in sync(names()) if not entry.endswith(".partial")]


def leftover_files(group: zarr.Group) -> list[str]:
    """Temporary files of a killed writer, or of one at work; object stores have none."""
    store = group.store_path.store
    if not isinstance(store, LocalStore):
        return []
    return sorted(
        file.relative_to(store.root).as_posix()
        for file in (store.root / group.store_path.path).rglob("*.partial")
        if file.is_file()
    )
