"""Many readers of a store while it is written: none may ever take an unmarked or torn block for
data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lenscache.concurrency import run


@pytest.mark.parametrize(
    ("readers", "seconds"),
    [(4, 8.0), pytest.param(10, 150.0, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_readers_of_a_growing_store_see_whole_blocks_only(
    readers: int, seconds: float, tmp_path: Path
) -> None:
    counts = run(str(tmp_path), readers, seconds)
    assert counts["torn"] == 0
    assert min(counts[key] for key in ("right", "refused", "grew", "written")) > 5, counts
