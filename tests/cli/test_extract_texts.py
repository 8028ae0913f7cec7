"""`lenscache extract` says which concepts lack texts for a grade before it costs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.packs import small_pack

LACK = "       5  1 unnamed test text of 3: bird, fish, tree, boat, oven"


@pytest.fixture
def poor_options(tmp_path: Path, extract_options: list[str]) -> list[str]:
    """Extract level 1 of a pack with five examples a concept: one of them for testing."""
    small_pack(n_examples=5).save(tmp_path / "poor.json")
    given = [*extract_options, "--level", "1"]
    given[given.index("--pack") + 1] = str(tmp_path / "poor.json")
    return given


def messages(store: Path) -> list[dict[str, Any]]:
    lines = Path(f"{store}.log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == "message"]


def test_extract_says_it_on_stderr_before_the_model_is_loaded(
    lenscache: Run, poor_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s", *poor_options)
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("5 of 5 concepts have too few unnamed texts for a grade")
    assert lines[3] == LACK
    assert max(map(len, lines[:6])) <= 80
    assert lines[6].startswith("loading ")
    assert "unnamed" not in result.stdout
    (message,) = messages(tmp_path / "s")
    assert LACK in message["message"]
    assert (message["concepts"], message["ungraded_at_best"]) == (5, 5)


def test_extract_says_it_though_no_model_can_be_loaded(
    lenscache: Run, poor_options: list[str], tmp_path: Path
) -> None:
    poor_options[poor_options.index("--model") + 1] = str(tmp_path / "none")
    result = lenscache("extract", tmp_path / "s", *poor_options)
    assert result.exit_code == 1
    assert LACK in result.stderr.splitlines()


def test_extract_says_nothing_where_all_is_well(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s", *extract_options, "--limit", "1")
    assert result.stderr.startswith("loading ")
    assert messages(tmp_path / "s") == []


def test_with_log_json_it_is_a_message_of_the_log(
    lenscache: Run, poor_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s", *poor_options, "--log-json")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert LACK not in lines
    assert messages(tmp_path / "s")[0] in [json.loads(x) for x in lines if x.startswith("{")]


def test_a_top_up_is_judged_by_all_that_it_could_ever_add(
    lenscache: Run, poor_options: list[str], tmp_path: Path
) -> None:
    store, hungry = tmp_path / "s", tmp_path / "hungry.json"
    asked = [*poor_options[: poor_options.index("--level")], "--samples", "3"]
    first = lenscache("extract", store, *asked, "--level", "1")
    assert first.exit_code == 0, first.stderr
    assert "5 of 5 concepts have too few unnamed texts" in first.stderr
    hungry.write_text(json.dumps({"concepts": ["bird", "oven"]}))
    more = lenscache("extract", store, *asked, "--top-up", hungry)
    assert more.exit_code == 0, more.stderr
    assert "       2  1 unnamed test text of 3: bird, oven" in more.stderr.splitlines()
    hungry.write_text(json.dumps({"concepts": ["ghost"]}))
    assert_one_line_error(lenscache("extract", store, *asked, "--top-up", hungry), "'ghost'")
