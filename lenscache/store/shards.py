"""Activations read shard by shard, faster than zarr's own codec pipeline reads them.

    bytes of a shard -> index, checksum -> chunk: checksum, Blosc, transposition -> rows of an array

zarr 3.1 spends about half a millisecond of Python on a chunk, as long as decoding takes, and copies
the values three times. Here a thread takes a shard and decodes it into its place. Arrays with other
codecs, and stores that are not local, are left to zarr.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec
from zarr.storage import LocalStore

from lenscache.store.bounded import blosc_size
from lenscache.store.folder import FolderStore
from lenscache.store.objects import ABSENT, CHECKSUM_BYTES

_BLOSC = Blosc()


class ShardReader(NamedTuple):
    """How the shards of one activation array are found and decoded."""

    array: zarr.Array[Any]
    folder: Path
    block_rows: int
    chunk_rows: int

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ShardReader | None:
        """The reader of a local array as `lenscache.store.layout` makes them, else None."""
        metadata: Any = array.metadata
        store = array.store_path.store
        if sys.byteorder != "little" or not isinstance(store, LocalStore):
            return None
        match tuple(metadata.codecs):
            case (ShardingCodec() as sharding,):
                pass
            case _:
                return None
        match tuple(sharding.codecs):
            case (TransposeCodec(order=(1, 0)), BytesCodec(), BloscCodec(), Crc32cCodec()):
                pass
            case _:
                return None
        index = tuple(type(codec) for codec in sharding.index_codecs)
        if index != (BytesCodec, Crc32cCodec) or sharding.index_location.value != "end":
            return None
        block_rows, (chunk_rows, hidden) = metadata.chunk_grid.chunk_shape[0], sharding.chunk_shape
        if hidden != array.shape[1]:
            return None
        return cls(array, Path(store.root) / array.path, block_rows, chunk_rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, hidden) values. A shard that is gone reads as fill values, as with zarr.

        Raises
        ------
        ValueError, RuntimeError
            If something does not decode, or a checksum does not match.
        """
        out = np.empty((stop - start, self.array.shape[1]), self.array.dtype)

        def read_block(block: int) -> None:
            first = block * self.block_rows
            low, high = max(start, first), min(stop, first + self.block_rows)
            self._read_rows(block, low - first, out[low - start : high - start])

        blocks = range(start // self.block_rows, -(-stop // self.block_rows))
        list(_threads().map(read_block, blocks))  # list: an error in a thread is raised here
        if isinstance(store := self.array.store_path.store, FolderStore):
            store.check_root()
        return out

    def _read_rows(self, block: int, start: int, out: NDArray[Any]) -> None:
        """Rows of one block from row `start` on, from the chunks that hold them and no others."""
        n_chunks, stop = self.block_rows // self.chunk_rows, start + len(out)
        index_bytes = 16 * n_chunks + CHECKSUM_BYTES
        path = self.folder / self.array.metadata.encode_chunk_key((block, 0))
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            out[:] = self.array.fill_value
            return
        with file:
            end = max(0, os.fstat(file.fileno()).st_size - index_bytes)
            file.seek(end)
            index = np.frombuffer(_checked(file.read(index_bytes)), "<u8").reshape(n_chunks, 2)
            for chunk in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
                first = chunk * self.chunk_rows
                low, high = max(start, first), min(stop, first + self.chunk_rows)
                target = out[low - start : high - start]
                offset, length = map(int, index[chunk])
                if offset == ABSENT:
                    target[:] = self.array.fill_value
                    continue
                if offset + length > end:
                    raise ValueError("a chunk lies beyond the end of its shard")
                file.seek(offset)
                data = _checked(file.read(length))
                if (size := blosc_size(data[:8])) != self.chunk_rows * out.shape[1] * out.itemsize:
                    raise ValueError(f"a chunk decodes to {size} bytes, which do not fit its shape")
                # as integers: numpy transposes them without holding the lock
                values = _BLOSC.decode(data)
                decoded = np.frombuffer(values, f"u{out.itemsize}").reshape(-1, self.chunk_rows)
                target.view(decoded.dtype)[:] = decoded[:, low - first : high - first].T


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="lenscache-shards")


def _checked(data: bytes) -> memoryview:
    """The bytes before a checksum, which must match."""
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
        raise ValueError("a checksum does not match")
    return memoryview(data)[:-CHECKSUM_BYTES]
