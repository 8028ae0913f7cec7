"""Batch sizes found by trying: the most that fit and that pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lenscache.extract.batch_size
from lenscache.extract import ExtractProgress, ExtractSettings, extract
from lenscache.extract.batch_size import BatchChoice, choose_batch
from lenscache.extract.rows import PlannedRows, Tokenized
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.store.store import open_store
from tests.models import tiny_model
from tests.packs import small_pack


def planned(lengths: Sequence[int]) -> PlannedRows:
    """Rows of these lengths, of a plan that says nothing else."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found = Tokenized(
        np.arange(starts[-1], dtype=np.int32) % 250 + 2, starts, np.zeros(len(lengths), np.int32)
    )
    plan: Any = SimpleNamespace(
        sampling_seed=np.arange(len(lengths)), temperature=np.full(len(lengths), 0.7)
    )
    return PlannedRows(plan, found)


ROWS = [planned(range(3, 23)), planned(range(42, 22, -1))]


def new_runner(limits: BatchLimits) -> Runner:
    return Runner(tiny_model(), (0,), max_new_tokens=3, limits=limits)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Have batches run at a pace of the test's; the sizes that are tried."""

    def set_pace(rates: dict[int, float]) -> list[int]:
        tried: list[int] = []

        def rate(_runner: Runner, rows: Sequence[Row]) -> float:
            tried.append(len(rows))
            return rates[len(rows)]

        monkeypatch.setattr(lenscache.extract.batch_size, "_rate", rate)
        return tried

    return set_pace


class Clock:
    """Runners whose batches take the seconds that the test says, by batch size, run after run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, list[float]]) -> None:
        self.now, self.left = 0.0, {size: iter(each) for size, each in seconds.items()}
        self.runs: list[int] = []
        watch = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(lenscache.extract.batch_size, "time", watch)

    def new_runner(self, limits: BatchLimits) -> Runner:
        runner = new_runner(limits)

        def run(rows: Sequence[Row]) -> None:
            self.runs.append(len(rows))
            self.now += next(self.left[len(rows)])

        vars(runner)["run"] = run
        return runner

    def choose(self) -> BatchChoice:
        return choose_batch(self.new_runner, ROWS, most=32)


def test_the_second_run_of_a_size_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one records steps, which takes the same time whatever the size."""
    clock = Clock(monkeypatch, {4: [9.4, 0.4], 8: [9.8, 0.8], 16: [9.9, 1.6]})
    choice = clock.choose()
    assert clock.runs == [4, 4, 8, 8, 16, 16]
    assert choice.tried == pytest.approx({4: 10.0, 8: 10.0, 16: 10.0})
    assert choice.limits.rows == 4


def test_a_size_that_is_slower_than_a_smaller_one_is_timed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other load met the first timings of 8 and of 16 rows."""
    seconds = {4: [1, 0.4], 8: [1, 9.0, 0.5], 16: [1, 9.0, 0.8], 32: [1, 0.8]}
    clock = Clock(monkeypatch, seconds)
    choice = clock.choose()
    assert clock.runs == [4, 4, 8, 8, 8, 16, 16, 16, 32, 32]
    assert choice.tried == pytest.approx({4: 10.0, 8: 16.0, 16: 20.0, 32: 40.0})
    assert choice.limits.rows == 32


def test_a_size_that_is_slower_twice_counts_as_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {4: [1, 0.4], 8: [1, 2.0, 1.0], 16: [1, 4.0, 5.0]})
    choice = clock.choose()
    assert choice.tried == pytest.approx({4: 10.0, 8: 8.0, 16: 4.0})
    assert choice.limits.rows == 4


def test_batches_grow_as_long_as_that_pays(pace: Any) -> None:
    rates = {4: 10.0, 8: 18.0, 16: 24.0, 32: 24.5, 40: 24.9}
    tried = pace(rates)
    choice = choose_batch(new_runner, ROWS, most=256)
    assert choice.limits[:2] == (16, None)
    assert choice.tried == rates
    assert tried == [4, 8, 16, 32, 40]


def test_what_a_batch_costs_beside_its_positions_is_read_off_the_sizes_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rate(runner: Runner, rows: Sequence[Row]) -> float:
        positions = len(rows) * (len(rows[-1].token_ids) + runner.n_passes - 1)
        return len(rows) / (runner.n_passes * 0.050 + positions * 0.002)  # 25 positions a pass

    monkeypatch.setattr(lenscache.extract.batch_size, "_rate", rate)
    # a whole run of 3 new tokens
    assert choose_batch(new_runner, ROWS, most=256).limits.overhead == 25 * 3
    assert choose_batch(new_runner, ROWS, most=8).limits.overhead is None  # two sizes make no line


def test_a_batch_ends_where_the_next_rows_are_much_longer() -> None:
    rows = [Row([5] * length, number) for number, length in enumerate([4, 4, 4, 4, 90, 90])]
    seen: list[int] = []
    runner = Runner(tiny_model(), (0,), mode="prompt", limits=BatchLimits(8, overhead=40.0))
    runner.run(rows, on_rows=seen.append)
    assert seen == [4, 2]
    runner.limits = BatchLimits(8, overhead=1000.0)
    runner.run(rows, on_rows=seen.append)
    assert seen[2:] == [6]


def test_after_two_sizes_that_do_not_pay_no_more_are_tried(pace: Any) -> None:
    tried = pace({4: 10.0, 8: 10.1, 16: 10.2, 32: 99.0})
    assert choose_batch(new_runner, ROWS, most=256).limits.rows == 4
    assert max(tried) == 16


def test_one_size_that_was_slow_by_chance_does_not_end_it(pace: Any) -> None:
    pace({4: 10.0, 8: 9.0, 16: 20.0, 32: 30.0, 40: 31.0})
    assert choose_batch(new_runner, ROWS, most=256).limits.rows == 32


def test_a_larger_batch_that_is_slower_is_not_taken(pace: Any) -> None:
    pace({4: 10.0, 8: 9.0, 16: 9.5})
    assert choose_batch(new_runner, ROWS, most=256).limits.rows == 4


def test_no_batch_has_more_rows_than_a_block_or_than_there_are(pace: Any) -> None:
    pace({4: 1.0, 8: 2.0, 16: 4.0, 12: 3.0, 32: 8.0, 40: 9.0})
    assert choose_batch(new_runner, ROWS, most=12).limits.rows == 12
    assert choose_batch(new_runner, ROWS, most=256).limits.rows == 40
    pace({3: 1.0})
    assert choose_batch(new_runner, [planned([4, 5, 6])], most=256).limits.rows == 3


def test_on_a_cpu_middling_prompts_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def rate(_runner: Runner, rows: Sequence[Row]) -> float:
        seen.extend(len(row.token_ids) for row in rows)
        return 1.0

    monkeypatch.setattr(lenscache.extract.batch_size, "_rate", rate)
    choose_batch(new_runner, ROWS, most=4)
    assert seen == [21, 22, 23, 24]


def test_what_does_not_fit_sets_a_limit_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runner._run_batch

    def out_of_memory(self: Runner, rows: Sequence[Row]) -> Any:
        if len(rows) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, rows)

    monkeypatch.setattr(Runner, "_run_batch", out_of_memory)
    monkeypatch.setattr(lenscache.extract.batch_size, "_MOST_IN_VAIN", 9)
    choice = choose_batch(new_runner, ROWS, most=256)
    assert choice.limits.rows in choice.tried
    assert set(choice.tried) == {4, 8}
    assert choice.limits.positions == 8 * (42 + 3)


def test_the_choice_is_told_kept_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    attributes = [target.attributes for target in open_store(tmp_path / "s").rounds()]
    chosen = [each["auto_batch"][0] for each in attributes]
    for each in attributes:
        rates = ", ".join(f"{size}: {rate:.1f}" for size, rate in each["auto_batch_rates"].items())
        assert f"(rows/s by batch size: {rates})" in line
    monkeypatch.setattr(lenscache.extract.batch_size, "choose_batch", None)
    report = extract(tmp_path / "s", small_pack(), tiny_model(), settings)
    assert chosen == [report.batch_size] * 2


def test_a_batch_size_found_by_trying_gives_what_a_given_one_does(tmp_path: Path) -> None:
    settings = ExtractSettings(max_new_tokens=3, block_rows=32, store_dtype="float32")
    for name, batch_size in (("auto", "auto"), ("four", 4)):
        extract(
            tmp_path / name,
            small_pack(),
            tiny_model(),
            dataclasses.replace(settings, batch_size=batch_size),  # type: ignore[arg-type]
        )
    for a, b in zip(
        open_store(tmp_path / "auto").rounds(), open_store(tmp_path / "four").rounds(), strict=True
    ):
        assert a.samples().completion.tolist() == b.samples().completion.tolist()
        torch.testing.assert_close(
            torch.from_numpy(a.read("prompt", 1)),
            torch.from_numpy(b.read("prompt", 1)),
            rtol=1e-4,
            atol=1e-5,
        )
