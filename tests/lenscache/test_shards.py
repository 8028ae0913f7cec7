"""The fast reader of local shards gives what zarr gives, and refuses what zarr refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from lenscache.store.layout import default_block_rows
from lenscache.store.round import Round
from lenscache.store.shards import ShardReader
from lenscache.store.store import open_store
from tests.lenscache.conftest import ROUND, SETTINGS, run_small
from tests.lenstrain.conftest import make_planted_store

PLACE = f"{ROUND}/activations/prompt/2"


def the_array(path: Path, place: str = PLACE) -> zarr.Array[Any]:
    array = zarr.open_group(str(path), mode="r")[place]
    assert isinstance(array, zarr.Array)
    return array


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == np.ascontiguousarray(other).tobytes()
    )


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32", "int8"])
def array(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> zarr.Array[Any]:
    """70 rows in blocks of 12, each of two or more chunks where they are that small."""
    path = tmp_path_factory.mktemp("stores") / request.param
    run_small(
        path, settings=replace(SETTINGS, store_dtype=request.param, block_rows=12), limit=None
    )
    return the_array(path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_rows_read_as_zarr_reads_them(array: zarr.Array[Any], data: st.DataObject) -> None:
    n = array.shape[0]
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    reader = ShardReader.of(array)
    assert reader is not None
    assert same(reader.read(start, stop), np.asarray(array[start:stop]))


def test_chunks_that_a_shard_does_not_hold_read_as_fill_values(tmp_path: Path) -> None:
    make_planted_store(tmp_path / "s", store_dtype="bfloat16")
    place = f"{ROUND}/activations/prompt/1"
    whole = the_array(tmp_path / "s", place)
    spec = {key: getattr(whole, key) for key in ("shape", "chunks", "shards")}
    metadata: Any = whole.metadata
    codecs = metadata.codecs[0].codecs
    chunks = (spec["shards"][0] // 4, spec["shape"][1])
    sparse = zarr.create_array(
        str(tmp_path / "sparse"),
        shape=spec["shape"],
        chunks=chunks,
        shards=spec["shards"],
        dtype=metadata.data_type,
        filters=[codecs[0]],
        serializer=codecs[1],
        compressors=codecs[2:],
        fill_value=float("nan"),
    )
    sparse[chunks[0] : 2 * chunks[0]] = np.ones(chunks, ml_dtypes.bfloat16)
    reader = ShardReader.of(sparse)
    assert reader is not None
    assert same(reader.read(0, spec["shape"][0]), np.asarray(sparse[:]))
    assert np.isnan(reader.read(0, 1).astype(np.float32)).all()


def shard_of(path: Path, block: int = 1) -> Path:
    return path / PLACE / "c" / str(block) / "0"


@pytest.mark.parametrize("number", range(12))
def test_a_flipped_bit_anywhere_in_what_is_read_is_an_error(number: int, store_copy: Path) -> None:
    shard = shard_of(store_copy)
    data = bytearray(shard.read_bytes())
    place = len(data) * number // 12 + (number == 11) * (len(data) // 12 - 1)
    data[place] ^= 1 << (number % 8)
    shard.write_bytes(bytes(data))
    array = the_array(store_copy)
    reader = ShardReader.of(array)
    assert reader is not None
    with pytest.raises((ValueError, RuntimeError)):
        reader.read(0, array.shape[0])


@pytest.mark.parametrize("kept", [0, 3, 20, 60, 0.5, 0.99])
def test_a_shard_cut_short_is_an_error(kept: float, store_copy: Path) -> None:
    shard = shard_of(store_copy)
    data = shard.read_bytes()
    shard.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    reader = ShardReader.of(the_array(store_copy))
    assert reader is not None
    with pytest.raises((ValueError, RuntimeError)):
        reader.read(0, 20)


def test_arrays_of_other_stores_and_codecs_are_left_to_zarr(tmp_path: Path) -> None:
    plain = zarr.create_array(str(tmp_path / "plain"), shape=(4, 3), chunks=(2, 3), dtype="float32")
    memory = zarr.create_array(
        MemoryStore(), shape=(4, 3), chunks=(2, 3), shards=(4, 3), dtype="float32"
    )
    assert ShardReader.of(plain) is None
    assert ShardReader.of(memory) is None


def test_reading_touches_the_shards_of_its_rows_alone(store_copy: Path) -> None:
    target: Round = open_store(store_copy).rounds(1)[0]
    shard_of(store_copy, 0).write_bytes(b"")
    rows = target.rows(1)
    assert len(target.read("prompt", 2, rows)) == rows.stop - rows.start


@pytest.mark.parametrize(
    ("hidden", "rows"), [(64, 256), (576, 227), (2560, 255), (4096, 256), (200_000, 256)]
)
def test_blocks_are_about_256_rows_in_chunks_that_fill_a_blosc_block(
    hidden: int, rows: int
) -> None:
    assert default_block_rows(hidden) == rows
