from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lenstrain.pack.records import LensMetrics, Provenance, Record

GOLDEN = Path(__file__).parents[1] / "golden/lenses-2/lenses.json"


def records() -> list[Record]:
    data = json.loads(GOLDEN.read_text())
    found: list[Record] = [LensMetrics.from_json(lens["metrics"]) for lens in data["lenses"]]
    found += [Provenance.from_json(data["provenance"]), LensMetrics(), Provenance()]
    return [*found, LensMetrics.from_json({"score": 0.5, "of another version": [1]})]


@pytest.mark.parametrize("record", records(), ids=lambda its: type(its).__name__)
def test_a_record_is_a_mapping_of_what_it_writes(record: Record) -> None:
    written = record.to_json()
    np.testing.assert_equal({key: record[key] for key in record}, written)
    assert len(record) == len(written)
    for name in (*vars(record), "order", "others", "nothing of the kind"):
        assert (name in record) == (name in written)
        np.testing.assert_equal(record.get(name), written.get(name))


def test_keys_of_other_versions_are_kept_in_their_place() -> None:
    data = {"of another version": 1, "score": 0.5}
    assert list(LensMetrics.from_json(data).to_json())[:2] == ["of another version", "score"]


def test_no_strength_and_no_label_set_are_written_as_null() -> None:
    assert LensMetrics()["C"] is None
    assert Provenance()["labels"] is None
    assert "C" not in LensMetrics.from_json({"score": 0.5})
