"""Partitions: disjoint shares of one store, run by processes that know nothing of each other."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenscache.errors import PlanError
from lenscache.extract import ExtractSettings, extract
from lenscache.extract.partitions import Partition, partitions_done
from lenscache.store.store import open_store
from tests.models import tiny_model
from tests.packs import small_pack

SETTINGS = ExtractSettings(max_new_tokens=3, block_rows=8)


def run(path: Path, text: str | None, **changes: object) -> list[str]:
    """One partition; the rounds it leaves unfinished."""
    partition = None if text is None else Partition.parse(text)
    settings = dataclasses.replace(SETTINGS, partition=partition, **changes)  # type: ignore[arg-type]
    return extract(path, small_pack(), tiny_model(), settings).unfinished_rounds


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "zarr.json"
    }


@given(n_blocks=st.integers(0, 200), count=st.integers(1, 20))
def test_partitions_are_disjoint_and_whole(n_blocks: int, count: int) -> None:
    blocks = [block for k in range(1, count + 1) for block in Partition(k, count).blocks(n_blocks)]
    assert sorted(blocks) == list(range(n_blocks))


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 2, 3, 1)])
def test_four_partitions_in_any_order_make_the_same_store_bit_for_bit(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    run(tmp_path / "whole", None)
    *first, last = [run(tmp_path / "parts", f"{k}/4") for k in order]
    assert all(first)
    assert last == []
    assert all(target.is_complete for target in open_store(tmp_path / "parts").rounds())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_partitions_in_processes_at_the_same_time_make_the_same_store(tmp_path: Path) -> None:
    run(tmp_path / "whole", None)
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        list(processes.map(run, [tmp_path / "parts"] * 3, ["1/3", "2/3", "3/3"]))
    assert all(target.is_complete for target in open_store(tmp_path / "parts").rounds())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_partition_that_runs_again_extracts_nothing(tmp_path: Path) -> None:
    run(tmp_path / "s", "2/3")
    settings = dataclasses.replace(SETTINGS, partition=Partition(2, 3))
    report = extract(tmp_path / "s", small_pack(), tiny_model(), settings)
    assert (report.rows_run, report.rows > 0) == (0, True)


def test_how_far_each_partition_is_can_be_told_from_the_store(tmp_path: Path) -> None:
    run(tmp_path / "s", "2/3")
    found = partitions_done(open_store(tmp_path / "s"), 3)
    assert [entry["is_done"] for entry in found] == [False, True, False]
    assert [entry["complete"] for entry in found] == [0, found[1]["blocks"], 0]


def test_a_run_without_a_partition_finishes_what_others_left(tmp_path: Path) -> None:
    run(tmp_path / "s", "2/3")
    assert run(tmp_path / "s", None) == []
    assert all(entry["is_done"] for entry in partitions_done(open_store(tmp_path / "s"), 3))


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/b", "1/2/3", "-1/4"])
def test_what_is_no_partition_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="is no partition"):
        Partition.parse(text)
