"""Small objects that decode to gigabytes, and metadata of arrays that no disk could hold."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from numcodecs.zstd import Zstd

from lenscache.errors import StoreDamagedError, StoreFormatError
from lenscache.store.bounded import blosc_size, zstd_size
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import ROUND
from tests.lenscache.faults import object_file

ROOT = Path(__file__).parents[2]
BLOCK = 2**17


def with_checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")


def zstd_bomb(size: int, *, says_size: bool = True) -> bytes:
    """A Zstandard frame of zeros: runs of 128 KiB in four bytes each."""
    head = b"\x28\xb5\x2f\xfd" + (b"\xc0\x38" if says_size else b"\x00\x38")
    head += struct.pack("<Q", size) if says_size else b""
    runs = [struct.pack("<I", BLOCK << 3 | 1 << 1)[:3] + b"\0"] * (size // BLOCK)
    runs[-1] = bytes([runs[-1][0] | 1]) + runs[-1][1:]
    return head + b"".join(runs)


def blosc_bomb(shard: bytes) -> bytes:
    """A shard of one chunk, whose Blosc header says two gigabytes."""
    offset, length = struct.unpack("<2Q", shard[-20:-4])
    chunk = bytearray(shard[offset : offset + length - 4])
    chunk[4:8] = (2**31 - 256).to_bytes(4, "little")
    return with_checksum(bytes(chunk)) + shard[length:]


def test_bombs_are_what_they_are_meant_to_be() -> None:
    assert len(Zstd().decode(zstd_bomb(2**20))) == 2**20
    assert len(zstd_bomb(8_600_000_000)) < 270_000


@pytest.mark.parametrize("size", [1, 255, 256, 300, 65_791, 65_792, 10**6])
def test_size_of_a_frame_is_read_from_its_header(size: int) -> None:
    assert zstd_size(Zstd().encode(bytes(size))) == size
    assert zstd_size(zstd_bomb(8_600_000_000)) == 8_600_000_000
    assert zstd_size(zstd_bomb(2**30, says_size=False)) == 2**30


@pytest.mark.parametrize("says_size", [True, False])
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("samples/n_completion_tokens", 1),
        ("samples/completion", 1),
        ("samples/completion_ids", 1),
        ("samples/text", 0),
        ("labels/sample", 0),
        ("activations/prompt/2", 1),
    ],
)
def test_object_that_would_decode_to_gigabytes_is_found_and_not_decoded(
    name: str, block: int, says_size: bool, store_copy: Path
) -> None:
    file = object_file(store_copy, name, block)
    if name.startswith("activations"):
        file.write_bytes(blosc_bomb(file.read_bytes()))
    else:
        file.write_bytes(with_checksum(zstd_bomb(8_600_000_000, says_size=says_size)))
    ran = subprocess.run(
        [sys.executable, "-c", _READ, str(store_copy)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = json.loads(ran.stdout)
    assert found["paths"] == [file.relative_to(store_copy).as_posix()]
    assert "expected up to" in found["found"][0]
    assert "does not read back" in found["read"]
    assert found["grew_mb"] < 300


_READ = """
import json, resource, sys
from lenscache.errors import StoreDamagedError
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report, read = verify_store(sys.argv[1], jobs=1), ""
target = open_store(sys.argv[1]).rounds()[0]
for use in (target.samples, target.completion_ids, target.labels, lambda: target.read("prompt", 2)):
    try:
        use()
    except StoreDamagedError as error:
        read = str(error)
grew = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
paths, found = [f.path for f in report.findings], [f.found for f in report.findings]
print(json.dumps({"paths": paths, "found": found, "read": read, "grew_mb": grew}))
"""


def test_strings_that_are_more_than_a_chunk_has_are_not_made_room_for(store_copy: Path) -> None:
    file = object_file(store_copy, "samples/completion", 1)
    file.write_bytes(with_checksum(Zstd().encode(struct.pack("<I", 2**32 - 1))))
    (finding,) = verify_store(store_copy).findings
    assert "4294967295 strings in a chunk of (8,)" in finding.found


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def set_attributes(store: Path, **values: Any) -> None:
    file = store / ROUND / "zarr.json"
    change(file, attributes={**json.loads(file.read_text())["attributes"], **values})


@pytest.mark.parametrize(
    ("n_samples", "block_rows"), [(10**12, 8), (2**31 - 1, 8), (10**30, 10**29), (2**40, 2**40)]
)
def test_absurd_number_of_samples_is_refused_at_once(
    n_samples: int, block_rows: int, store_copy: Path
) -> None:
    set_attributes(store_copy, n_samples=n_samples, block_rows=block_rows)
    start = time.perf_counter()
    with pytest.raises(StoreDamagedError, match="more than any store has"):
        open_store(store_copy).rounds()
    assert "more than any store has" in verify_store(store_copy).findings[0].found
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["samples/text", "labels/sample", "complete", "samples/key"])
@pytest.mark.parametrize("size", [10**12, 10**30])
def test_absurd_shape_and_chunks_are_refused_at_once(
    size: int, name: str, store_copy: Path
) -> None:
    file = store_copy / ROUND / name / "zarr.json"
    axes = json.loads(file.read_text())["shape"][1:]
    grid = {"name": "regular", "configuration": {"chunk_shape": [size, *axes]}}
    change(file, shape=[size, *axes], chunk_grid=grid)
    start = time.perf_counter()
    with pytest.raises(StoreDamagedError, match=r"expected up to|is damaged"):
        read_columns(store_copy)
    (finding,) = verify_store(store_copy).findings
    assert finding.path == f"{ROUND}/{name}/zarr.json"
    assert time.perf_counter() - start < 5


def read_columns(store: Path) -> None:
    for target in open_store(store).rounds():
        target.samples()
        target.labels()


def test_shape_that_does_not_fit_the_round_is_refused(store_copy: Path) -> None:
    change(store_copy / ROUND / "samples/kind/zarr.json", shape=[19])
    with pytest.raises(StoreDamagedError, match=r"samples/kind has the shape \(19,\), expected 20"):
        open_store(store_copy).rounds()[0].samples()


@pytest.mark.parametrize("value", [10**12, -1, "32", None])
def test_absurd_size_of_the_model_is_refused_at_once(value: Any, store_copy: Path) -> None:
    file = store_copy / "zarr.json"
    attributes = json.loads(file.read_text())["attributes"]
    change(file, attributes={**attributes, "model": {**attributes["model"], "hidden": value}})
    with pytest.raises(StoreFormatError, match="hidden is"):
        open_store(store_copy)


def test_blosc_says_what_it_decodes_to(store_copy: Path) -> None:
    shard = object_file(store_copy, "activations/prompt/2", 0).read_bytes()
    assert blosc_size(shard) == 8 * 32 * 2
