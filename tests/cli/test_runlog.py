"""What a run leaves behind, and what machines see while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lens_cli.meter import Meter
from lens_cli.runlog import RunLog

from tests.cli.conftest import Run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_extraction_says_afterwards_what_happened(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    assert lenscache("extract", store, *extract_options, "--level", "0").exit_code == 0
    assert lenscache("extract", store, *extract_options, "--level", "1").exit_code == 0
    found = lines(tmp_path / "s.zarr.log.jsonl")
    assert [entry["event"] for entry in found if entry["event"] != "progress"] == [
        "start",
        "end",
    ] * 2
    start, end = found[0], next(entry for entry in found if entry["event"] == "end")
    assert start["asked"]["settings"]["max_new_tokens"] == 4
    assert set(start["versions"]) >= {"python", "torch", "lenscache"}
    assert end["report"]["rows_run"] == end["report"]["rows"] > 0
    last = [entry for entry in found if entry["event"] == "progress"][-1]
    assert last["done"] == last["total"]
    assert last["concepts_done"] == last["concepts_total"] > 0
    assert last["tokens_per_s"] > 0


def test_a_run_that_fails_says_why(
    lenscache: Run, extract_options: list[str], finished_store: Path
) -> None:
    result = lenscache("extract", finished_store, *extract_options[:-2], "--seed", "7")
    assert result.exit_code == 1
    last = lines(Path(f"{finished_store}.log.jsonl"))[-1]
    assert (last["event"], last["error"]) == ("error", "StoreMismatchError")
    assert "seed" in last["message"]


def test_a_fit_records_its_grades_and_graduations(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("fit", finished_store, "--out", tmp_path / "lenses", "--log-json")
    assert result.exit_code == 0, result.stderr
    found = lines(tmp_path / "lenses.log.jsonl")
    assert found[-1]["event"] == "end"
    fitting = [entry for entry in found if entry.get("what") == "fitting"][-1]
    assert sum(fitting["grades"].values()) == fitting["total"] == found[-1]["n_lenses"]
    assert fitting["graduated"] == found[-1]["graduated"]
    assert not list((tmp_path / "lenses").glob("*.jsonl"))


def test_with_log_json_stderr_is_json_lines_and_nothing_else(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("fit", finished_store, "--out", tmp_path / "lenses", "--log-json")
    shown = [json.loads(line) for line in result.stderr.splitlines()]
    assert shown == lines(tmp_path / "lenses.log.jsonl")


def test_progress_is_thinned_out_and_the_last_line_is_kept(tmp_path: Path) -> None:
    with RunLog("fit", tmp_path / "x") as log:
        meter = Meter(log)
        for done in range(1001):
            meter.update("fitting", done, 1000, "concepts", note="so far", graduated=done // 2)
        meter.say("a [bold]line[/]")
    events = lines(tmp_path / "x.log.jsonl")
    assert [entry["event"] for entry in events] == [
        "start",
        "progress",
        "progress",
        "message",
        "end",
    ]
    assert (events[2]["done"], events[2]["graduated"]) == (1000, 500)
    assert events[3]["message"] == "a [bold]line[/]"


def test_an_interrupted_run_is_recorded_as_that(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunLog("extract", tmp_path / "s"):
        raise KeyboardInterrupt
    assert [entry["event"] for entry in lines(tmp_path / "s.log.jsonl")] == ["start", "interrupted"]


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with RunLog("fit", tmp_path / "file" / "lenses") as log:
        log.event("message", message="still here")
    assert capsys.readouterr().err.count("no log is kept") == 1


def test_a_store_at_a_url_has_no_log_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog("extract", "s3://bucket/store.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []
