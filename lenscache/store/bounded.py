"""Arrays that are refused where their metadata are absurd, and decode to no more than their shape.

Compressed, 270 kB may hold 8 GB: what an object says of its size is compared with the shape of its
chunk before anything is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zarr
from zarr import codecs
from zarr.codecs import BloscCodec, ShardingCodec, ZstdCodec
from zarr.core.array import AsyncArray

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

LARGEST_LENGTH = 2**31 - 1
"""Rows, features ... of an array; samples and labels are counted in int32."""
LARGEST_CHUNK = 2**31 - 1
"""Bytes of a chunk or shard in memory; Blosc compresses no more."""
_SLACK = 2**16  # bytes that codecs may add to those of the values
# Of strings, whose sizes no shape tells: compressed to less than a thousandth only if few.
_STRING_BYTES, _STRING_RATIO = 2**26, 1000
_ZSTD_BLOCK = 2**17
_ZSTD_SIZE_BYTES = {0: 0, 1: 2, 2: 4, 3: 8}


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, whose codecs refuse what decodes to more than a chunk.

    Raises
    ------
    ValueError
        If its shape or its chunks are larger than any store has them.
    """
    itemsize = array.dtype.itemsize or 1
    if max(array.shape, default=0) > LARGEST_LENGTH:
        raise ValueError(f"an array of shape {array.shape}, expected up to {LARGEST_LENGTH} a side")
    for part in filter(None, (array.chunks, array.shards)):
        if (size := math.prod(part) * itemsize) > LARGEST_CHUNK:
            raise ValueError(f"chunks of {part}, {size} bytes, expected up to {LARGEST_CHUNK}")
    metadata: Any = array.metadata
    metadata = replace(metadata, codecs=tuple(map(_bounded_codec, metadata.codecs)))
    return zarr.Array(AsyncArray(metadata, array.store_path))


def _bounded_codec(codec: Any) -> Any:
    if type(codec) is ShardingCodec:
        return replace(codec, codecs=tuple(map(_bounded_codec, codec.codecs)))
    if type(codec) is ZstdCodec:
        return _BoundedZstd(level=codec.level, checksum=codec.checksum)
    if type(codec) is BloscCodec:
        names = ("typesize", "cname", "clevel", "shuffle", "blocksize")
        return _BoundedBlosc(**{name: getattr(codec, name) for name in names})
    return VLenUTF8Codec() if type(codec) is codecs.VLenUTF8Codec else codec


class _BoundedZstd(ZstdCodec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = _view(chunk_bytes)
        check_size(zstd_size(data), len(data), chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class _BoundedBlosc(BloscCodec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = _view(chunk_bytes)
        check_size(blosc_size(data), len(data), chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


@dataclass(frozen=True)
class VLenUTF8Codec(codecs.VLenUTF8Codec):
    """Strings, no more than a chunk has. zarr insists on the name of the class."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        count = int.from_bytes(_view(chunk_bytes)[:4], "little")
        if count != math.prod(chunk_spec.shape):
            raise ValueError(f"{count} strings in a chunk of {chunk_spec.shape}")
        return await super()._decode_single(chunk_bytes, chunk_spec)


def _view(data: Buffer) -> memoryview:
    return data.as_numpy_array().view("u1").data


def check_size(size: int, compressed: int, chunk_spec: ArraySpec) -> None:
    """Raise ValueError if an object says that it decodes to more bytes than its chunk has."""
    dtype = chunk_spec.dtype.to_native_dtype()
    most = max(_STRING_BYTES, _STRING_RATIO * compressed)
    if dtype.kind not in ("O", "T", "U"):
        most = math.prod(chunk_spec.shape) * dtype.itemsize + _SLACK
    if size > most:
        raise ValueError(f"decodes to {size} bytes, expected up to {most} for {chunk_spec.shape}")


def blosc_size(data: bytes | memoryview) -> int:
    """Bytes that a Blosc buffer says it decodes to."""
    return int.from_bytes(data[4:8], "little")


def zstd_size(data: bytes | memoryview) -> int:
    """Bytes that a Zstandard frame (RFC 8878) says it decodes to; else the most that it can."""
    descriptor = data[4] if len(data) > 4 else 0
    is_single = bool(descriptor & 0x20)
    at = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = _ZSTD_SIZE_BYTES[descriptor >> 6] or int(is_single)
    if width:
        said = int.from_bytes(data[at : at + width], "little")
        return said + (256 if width == 2 else 0)
    most = 0
    while at + 3 <= len(data):
        head = int.from_bytes(data[at : at + 3], "little")
        is_last, kind, size = head & 1, head >> 1 & 3, head >> 3
        most += _ZSTD_BLOCK if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)  # kind 1: one byte, repeated
        if is_last:
            break
    return most
