"""No flipped bit of a store does harm unnoticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lenscache.errors import StoreFormatError
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.bitflips import LARGEST, flip_bits, make_store
from tests.lenscache.conftest import ROUND


@pytest.mark.parametrize("step", [97, pytest.param(7, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_or_harmless(step: int, tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr")
    flips = list(flip_bits(tmp_path / "s.zarr", step=step))
    assert [flip.place for flip in flips if flip.outcome not in ("found", "harmless")] == []
    counted = Counter(flip.outcome for flip in flips)
    assert counted["found"] > counted["harmless"] > 0
    assert len(flips) * step > LARGEST // 2
    assert verify_store(tmp_path / "s.zarr").is_clean


@pytest.mark.parametrize("place", ["zarr.json", f"{ROUND}/zarr.json"])
def test_metadata_that_are_no_text_are_one_line(place: str, store_copy: Path) -> None:
    file = store_copy / place
    file.write_bytes(file.read_bytes().replace(b"node_type", b"n\xf4de_type", 1))
    if place == "zarr.json":
        with pytest.raises(StoreFormatError, match=r"zarr\.json does not parse"):
            open_store(store_copy)
    else:
        assert "does not parse" in verify_store(store_copy).findings[0].found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"kinds": ["eyample"]}, "the attribute kinds is ['eyample'], expected example"),
        (
            {"completion_ids": False},
            "samples/completion_ids is there, the attribute",
        ),
    ],
)
def test_attribute_that_changes_what_columns_mean_is_found(
    change: dict[str, object], found: str, store_copy: Path
) -> None:
    file = store_copy / ROUND / "zarr.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({**metadata, "attributes": {**metadata["attributes"], **change}}))
    assert found in verify_store(store_copy).findings[0].found


def test_marks_that_would_read_as_set_where_they_are_missing_are_found(store_copy: Path) -> None:
    file = store_copy / ROUND / "complete/zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fill_value": 1}))
    found = [finding.found for finding in verify_store(store_copy).findings]
    assert "marks that are missing would read as set" in found
