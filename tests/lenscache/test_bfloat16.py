"""The bfloat16 data type: every bit pattern survives, and other Zarr readers see bfloat16."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec

from lenscache.bfloat16 import DTYPE, BFloat16
from lenscache.store.store import open_store

SPECIAL = {
    "nan": 0x7FC0,
    "nan with payload": 0xFFA5,
    "infinity": 0x7F80,
    "-infinity": 0xFF80,
    "-0": 0x8000,
    "subnormal": 0x0001,
    "-subnormal": 0x807F,
    "largest": 0x7F7F,
}


def stored_and_read(
    bits: NDArray[np.uint16], *, shards: tuple[int, int] | None
) -> NDArray[np.uint16]:
    """Bit patterns of bfloat16 after a round trip through an array that is encoded like an
    activation array."""
    array = zarr.create_array(
        {},
        shape=bits.shape,
        dtype=BFloat16(),
        chunks=(2, bits.shape[1]),
        shards=shards,
        filters=[TransposeCodec(order=(1, 0))],
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
    )
    array[:] = bits.view(DTYPE)
    read: NDArray[Any] = np.asarray(array[:])
    assert read.dtype == DTYPE
    return read.view(np.uint16)


def activation_arrays(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.glob("layer_*/round_*/activations/*/*/zarr.json"))


@pytest.mark.parametrize("shards", [None, (4, 3)], ids=["plain", "sharded"])
@given(bits=arrays(np.uint16, (5, 3), elements=st.integers(0, 2**16 - 1)))
def test_round_trip_keeps_every_bit(
    bits: NDArray[np.uint16], shards: tuple[int, int] | None
) -> None:
    np.testing.assert_array_equal(stored_and_read(bits, shards=shards), bits)


@pytest.mark.parametrize("pattern", SPECIAL.values(), ids=SPECIAL)
def test_round_trip_keeps_special_values(pattern: int) -> None:
    bits = np.full((4, 2), pattern, np.uint16)
    np.testing.assert_array_equal(stored_and_read(bits, shards=(4, 2)), bits)


def test_every_activation_array_opens_in_tensorstore_with_the_same_bits(
    finished_store: Path,
) -> None:
    (target,) = open_store(finished_store).rounds()
    found = activation_arrays(finished_store)
    assert len(found) == 4  # two phases, two model layers
    for folder in found:
        other = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
        ).result()
        assert other.dtype.name == "bfloat16"
        ours = target.read(
            "prompt" if folder.parent.name == "prompt" else "completion", int(folder.name)
        )
        np.testing.assert_array_equal(other.read().result().view(np.uint16), ours.view(np.uint16))


def test_plain_zarr_opens_every_activation_array_once_the_type_is_registered(
    finished_store: Path,
) -> None:
    """In an interpreter of its own, that knows nothing of lenscache but the data type."""
    code = f"""
import sys, hashlib, zarr, lenscache.bfloat16
for name in sys.argv[1:]:
    array = zarr.open({str(finished_store)!r}, mode="r")[name]
    print(array.dtype, array.shape, hashlib.sha256(array[:].tobytes()).hexdigest())
print("torch" in sys.modules, "lenscache.store.store" in sys.modules)
"""
    (target,) = open_store(finished_store).rounds()
    found = [
        folder.relative_to(finished_store).as_posix()
        for folder in activation_arrays(finished_store)
    ]
    ran = subprocess.run(
        [sys.executable, "-c", code, *found], capture_output=True, text=True, check=True
    )
    *lines, last = ran.stdout.splitlines()
    for name, line in zip(found, lines, strict=True):
        *_, phase, model_layer = name.split("/")
        ours = target.read("prompt" if phase == "prompt" else "completion", int(model_layer))
        assert line == f"bfloat16 {ours.shape} {hashlib.sha256(ours.tobytes()).hexdigest()}"
    assert last == "False False"


def test_metadata_names_the_registered_type_and_codecs(finished_store: Path) -> None:
    for folder in activation_arrays(finished_store):
        metadata = json.loads((folder / "zarr.json").read_text())
        (sharding,) = metadata["codecs"]
        codecs = {
            codec["name"]: codec.get("configuration")
            for codec in sharding["configuration"]["codecs"]
        }
        assert (metadata["data_type"], metadata["fill_value"]) == ("bfloat16", "NaN")
        assert metadata["dimension_names"] == ["sample", "hidden"]
        assert (sharding["name"], list(codecs)) == (
            "sharding_indexed",
            ["transpose", "bytes", "blosc", "crc32c"],
        )
        assert (codecs["transpose"], codecs["bytes"]) == ({"order": [1, 0]}, {"endian": "little"})
        blosc = codecs["blosc"]
        assert (blosc["cname"], blosc["clevel"], blosc["shuffle"], blosc["typesize"]) == (
            "zstd",
            1,
            "shuffle",
            2,
        )


def test_one_shard_is_one_block(finished_store: Path) -> None:
    for folder in activation_arrays(finished_store):
        metadata = json.loads((folder / "zarr.json").read_text())
        assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [8, 32]
        assert sorted(file.name for file in (folder / "c").iterdir()) == ["0", "1", "2"]
