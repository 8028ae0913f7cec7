"""Blocks are put together and written in a thread, while the model runs the next ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lenscache.extract import ExtractSettings
from lenscache.extract.extraction import Extraction, lay_out
from lenscache.extract.request import Request
from lenscache.inference.runner import Row, RowResult, Runner
from lenscache.store.round import Block, Round
from tests.models import tiny_model
from tests.packs import small_pack

SETTINGS = ExtractSettings(max_new_tokens=3, block_rows=8)
PATIENCE = 60.0  # seconds


@pytest.fixture
def extraction(tmp_path: Path) -> Iterator[Extraction]:
    request = Request(str(tmp_path / "s"), small_pack(), SETTINGS, levels=(1,))
    with lay_out(request, tiny_model()) as extraction:
        yield extraction


def test_a_block_is_put_together_in_the_writer_thread(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[str]] = {"text_of": set(), "write_block": set(), "run": set()}

    def noted(of: type, name: str) -> None:
        method = getattr(of, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            threads[name].add(threading.current_thread().name.rpartition("_")[0])
            return method(*args, **kwargs)

        monkeypatch.setattr(of, name, call)

    noted(Runner, "text_of")
    noted(Runner, "run")
    noted(Round, "write_block")
    for block in range(3):
        extraction.do(0, block)
    extraction.flush()
    assert threads == {
        "text_of": {"lenscache-write"},
        "write_block": {"lenscache-write"},
        "run": {""},
    }


def test_two_blocks_are_in_flight_while_another_one_runs_and_no_more(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block is not written before the third one runs."""
    third_runs, write, run = threading.Event(), Round.write_block, Runner.run
    n_run, n_written, in_flight = 0, 0, []

    def write_block(self: Round, block: int, data: Block) -> None:
        nonlocal n_written
        assert third_runs.wait(PATIENCE)
        write(self, block, data)
        n_written += 1

    def run_rows(self: Runner, rows: Sequence[Row], **options: Any) -> list[RowResult]:
        nonlocal n_run
        if len(rows) == 1:  # checked, of the first block
            return run(self, rows, **options)
        in_flight.append(n_run - n_written)
        n_run += 1
        if n_run == 3:
            third_runs.set()
        return run(self, rows, **options)

    monkeypatch.setattr(Round, "write_block", write_block)
    monkeypatch.setattr(Runner, "run", run_rows)
    written = [done for block in range(6) for done in extraction.do(0, block)]
    written += extraction.flush()
    assert written == [(0, block) for block in range(6)]
    assert in_flight[:3] == [0, 1, 2]
    assert max(in_flight) == 2
