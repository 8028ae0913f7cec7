"""Batch sizes found by trying: the most that fit and that pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lenscache.batching
from lenscache.batching import BatchChoice, choose_batch
from lenscache.extract import ExtractProgress, ExtractSettings, extract
from lenscache.runner import Row, Runner
from lenscache.store import open_store
from tests.models import tiny_model
from tests.packs import small_pack

ROWS = [Row(list(range(2, 2 + n)), n, 0.7) for n in range(3, 43)]


def new_runner(batch_size: int) -> Runner:
    return Runner(tiny_model(), (0,), max_new_tokens=3, batch_size=batch_size)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Have batches run at a pace of the test's; the sizes that are tried."""

    def set_pace(rates: dict[int, float]) -> list[int]:
        tried: list[int] = []

        def rate(_runner: Runner, rows: Sequence[Row]) -> float:
            tried.append(len(rows))
            return rates[len(rows)]

        monkeypatch.setattr(lenscache.batching, "_rate", rate)
        return tried

    return set_pace


def test_batches_grow_as_long_as_that_pays(pace: Any) -> None:
    tried = pace({4: 10.0, 8: 18.0, 16: 24.0, 32: 24.5, 40: 100.0})
    assert choose_batch(new_runner, ROWS, most=256) == BatchChoice(32, None, {4: 10.0, 8: 18.0, 16: 24.0, 32: 24.5})
    assert tried == [4, 8, 16, 32]


def test_a_larger_batch_that_is_slower_is_not_taken(pace: Any) -> None:
    pace({4: 10.0, 8: 9.0})
    assert choose_batch(new_runner, ROWS, most=256).rows == 4


def test_no_batch_has_more_rows_than_a_block_or_than_there_are(pace: Any) -> None:
    pace({4: 1.0, 8: 2.0, 16: 4.0, 12: 3.0, 32: 8.0, 40: 9.0})
    assert choose_batch(new_runner, ROWS, most=12).rows == 12
    assert choose_batch(new_runner, ROWS, most=256).rows == 40
    pace({3: 1.0})
    assert choose_batch(new_runner, ROWS[:3], most=256).rows == 3


def test_what_does_not_fit_sets_a_limit_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runner._run_batch

    def out_of_memory(self: Runner, rows: Sequence[Row], replay: bool) -> Any:
        if len(rows) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, rows, replay)

    monkeypatch.setattr(Runner, "_run_batch", out_of_memory)
    monkeypatch.setattr(lenscache.batching, "_PAYS", 0.0)
    choice = choose_batch(new_runner, ROWS, most=256)
    assert (choice.rows, set(choice.tried)) == (max(choice.tried, key=lambda s: choice.tried[s]), {4, 8})
    assert choice.tokens == 8 * (42 + 3)


def test_the_choice_is_told_kept_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stop(Exception):  # noqa: N818
        pass

    def stop(progress: ExtractProgress) -> None:
        told.append(progress.message)
        if progress.rows_done > 40:
            raise Stop

    settings = ExtractSettings(max_new_tokens=3, block_rows=32, batch_size="auto")
    with pytest.raises(Stop):
        extract(tmp_path / "s", small_pack(), tiny_model(), settings, on_progress=stop)
    (line,) = [message for message in told if message]
    assert line.startswith("batches of ")
    assert "rows/s by batch size: 4:" in line
    chosen = [target.attributes["auto_batch"][0] for target in open_store(tmp_path / "s").rounds()]
    monkeypatch.setattr(lenscache.batching, "choose_batch", None)
    report = extract(tmp_path / "s", small_pack(), tiny_model(), settings)
    assert chosen == [report.batch_size] * 2


def test_a_batch_size_found_by_trying_gives_what_a_given_one_does(tmp_path: Path) -> None:
    settings = ExtractSettings(max_new_tokens=3, block_rows=32, store_dtype="float32")
    for name, batch_size in (("auto", "auto"), ("four", 4)):
        extract(
            tmp_path / name, small_pack(), tiny_model(), dataclasses.replace(settings, batch_size=batch_size)  # type: ignore[arg-type]
        )  # fmt: skip
    for a, b in zip(open_store(tmp_path / "auto").rounds(), open_store(tmp_path / "four").rounds(), strict=True):
        assert a.samples().completion.tolist() == b.samples().completion.tolist()
        torch.testing.assert_close(
            torch.from_numpy(a.read("prompt", 1)), torch.from_numpy(b.read("prompt", 1)), rtol=1e-4, atol=1e-5
        )
