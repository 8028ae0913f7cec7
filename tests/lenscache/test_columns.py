"""The columns of a store stand once: what is laid out, read and verified follows from the list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lenscache.store import layout
from lenscache.store.columns import COLUMNS, HIERARCHY, Column
from lenscache.store.round import Labels, Samples
from lenscache.store.store import open_store
from lenscache.store.verify import round as verify_round
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import ROUND, run_small


def test_a_store_has_the_columns_of_the_list_and_no_others(finished_store: Path) -> None:
    store = open_store(finished_store)
    root: Any = zarr.open_group(finished_store, mode="r")
    of_round: Any = zarr.open_group(finished_store / ROUND, mode="r")
    for group, columns, folders in (
        (of_round, COLUMNS, ("samples", "labels")),
        # The pack of this store names nothing confusable and has no attributes.
        (root, tuple(column for column in HIERARCHY if not column.optional), ("hierarchy",)),
    ):
        found = {f"{folder}/{name}" for folder in folders for name in group[folder].array_keys()}
        assert found == {column.place for column in columns}
        for column in columns:
            array = group[column.place]
            assert array.metadata.to_dict()["data_type"] == column.dtype
            assert array.shape[1:] == tuple(column.more_axes(store.header).values())


@pytest.mark.parametrize(("group", "fields"), [("samples", Samples), ("labels", Labels)])
def test_what_is_read_of_a_round_is_every_column_that_each_round_has(
    group: str, fields: type[Samples | Labels]
) -> None:
    columns = [c for c in COLUMNS if c.place.startswith(f"{group}/") and not c.optional]
    assert tuple(column.name for column in columns) == fields._fields


def test_a_column_that_is_added_is_laid_out_and_missed_where_it_lacks(
    finished_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (layout, verify_round):
        monkeypatch.setattr(module, "COLUMNS", (*COLUMNS, Column("samples/new", "uint8", "kind")))
    run_small(tmp_path / "s.zarr")
    assert verify_store(tmp_path / "s.zarr").findings == []
    written: Any = zarr.open_group(tmp_path / "s.zarr" / ROUND, mode="r")
    assert np.array_equal(written["samples/new"][:], written["samples/kind"][:])
    (finding,) = verify_store(finished_store).findings
    assert (finding.array, finding.found) == (f"{ROUND}/samples/new", "the array is missing")
