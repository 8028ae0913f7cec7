"""`lenstrain show`, `impact`, `compare` and `check`: what is printed of finished packs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.pack import Concept
from lenstrain.data.dataset import LensDataset
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.lenstrain.conftest import Planting, make_planted_store, planted_pack
from tests.lenstrain.test_text import name_concepts, write_completions

HOSTILE = "[red]evil[/] \x1b[31mansi\nfake: 0 lenses :smile: \u202e"
SHOWN = r"[red]evil[/] \x1b[31mansi\nfake: 0 lenses :smile: \u202e"


def strict_json(result: Any) -> Any:
    """The one document on stdout; NaN is no JSON."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted store with a concept that has a hostile name, and one without a sibling."""
    hostile = Concept(
        "hostile",
        HOSTILE,
        1,
        parents=("craft",),
        examples=tuple(f"A use {i} of it." for i in range(20)),
    )
    path = tmp_path_factory.mktemp("planted") / "s.zarr"
    planting = Planting(strength=3.0, completion_strength=2.0)
    write_completions(
        make_planted_store(path, pack=planted_pack(changes=[hostile]), planting=planting),
        name_concepts,
    )
    return path


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, store: Path) -> Path:
    folder = tmp_path_factory.mktemp("lenses") / "dual"
    result = lenstrain("fit", store, "--f1", 0.8, "--text", "--out", folder)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, store: Path) -> Path:
    """Of one level, without a record beyond graduation."""
    folder = tmp_path_factory.mktemp("lenses") / "other"
    options = ["--level", 1, "--family", "mean-difference", "--no-beyond", "--out", folder]
    assert lenstrain("fit", store, *options).exit_code == 0
    return folder


# --- show ---------------------------------------------------------------------------------------


def test_show_says_there_are_text_lenses_and_how_they_agree(lenstrain: Run, dual: Path) -> None:
    text = plain(lenstrain("show", dual).stdout)
    assert "agreement" in text
    assert "text lenses: 13 lenses: " in text
    assert f"see them with: lenstrain show {dual / 'text'}" in text
    shown = lenstrain("show", dual / "text").stdout
    assert "text lenses, target F1 0.8" in shown
    assert "agreement" not in shown


def test_show_without_text_lenses_has_no_column_for_them(lenstrain: Run, other: Path) -> None:
    text = lenstrain("show", other).stdout
    assert "mean-difference lenses, target F1 0.95" in text
    assert "agreement" not in text


# --- impact -------------------------------------------------------------------------------------


def test_impact_prints_a_row_a_mode(lenstrain: Run, dual: Path) -> None:
    result = lenstrain("impact", dual)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    for mode in ("advisory", "falloff", "blocking, grade B", "blocking, grade A"):
        (row,) = (line for line in lines if line.startswith(f"{mode} "))
        assert re.search(r"\d", row)
    assert "13 lenses, target F1 0.8" in lines[0]
    assert "in vain: " in result.stdout


def test_impact_json_has_the_same_figures_and_null_for_what_cannot_be_said(
    lenstrain: Run, dual: Path
) -> None:
    found = strict_json(lenstrain("impact", dual, "--json"))
    assert found["n_lenses"] == 13
    modes = {mode["mode"]: mode for mode in found["modes"]}
    assert modes["advisory"]["forced_on"] == 0
    assert modes["advisory"]["mean_extra_iterations"] is None
    assert modes["blocking, grade A"]["forced_on"] >= modes["blocking, grade B"]["forced_on"]
    graduated = strict_json(lenstrain("show", dual, "--json"))["graduated"]
    assert modes["advisory"]["graduated"] == graduated > 0


def test_impact_of_a_pack_without_a_record_is_one_line(lenstrain: Run, other: Path) -> None:
    assert_one_line_error(
        lenstrain("impact", other), "without going on after graduation", "without --no-beyond"
    )


# --- compare ------------------------------------------------------------------------------------


def test_compare_prints_concepts_differences_and_what_is_missing(
    lenstrain: Run, dual: Path, other: Path, store: Path
) -> None:
    result = lenstrain("compare", dual, other, "--store", store)
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert text.startswith(f"A: {dual} (linear); B: {other} (mean-difference)")
    assert sum(line.startswith(("bird ", "fish ", "boat ")) for line in text.splitlines()) == 3
    assert not any(line.startswith("nature ") for line in text.splitlines())
    for what in ("test F1", "score"):
        assert re.search(
            rf"^{what}, B minus A: [+-]\d\.\d\d\d \[[+-]\d\.\d\d\d, [+-]\d\.\d\d\d\]",
            text,
            re.MULTILINE,
        )
    assert "10 concepts on " in text
    assert "3 only in A, 0 only in B" in text
    assert "nan" not in text


def test_compare_shows_the_grades_of_the_packs_and_how_many_lenses_have_none(
    lenstrain: Run, dual: Path, store: Path, tmp_path: Path
) -> None:
    pack = LensPack.load(dual)
    bird = dataclasses.replace(pack["bird"], grade=None, status="ungraded", reason="no text")
    fish = dataclasses.replace(pack["fish"], grade=Grade.C, reason="fires on 30% of samples")
    others = [lens for lens in pack if lens.concept not in ("bird", "fish")]
    LensPack([bird, fish, *others], pack.provenance, {}).save(tmp_path / "b")
    result = lenstrain("compare", dual, tmp_path / "b", "--store", store)
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["bird"][-2:] == [pack["bird"].grade_shown, "-"]
    assert rows["fish"][-1] == "C"
    assert rows["pack"][1:] == ["lenses", "A", "B", "C", "ungraded", "capped"]
    changed = LensPack.load(tmp_path / "b").summary()
    assert changed["grades"]["ungraded"] >= 1
    assert rows["B"][1:] == [*map(str, (13, *changed["grades"].values(), changed["capped"]))]


def test_compare_of_concepts_without_an_unnamed_text_says_a_dash(
    lenstrain: Run, dual: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LensDataset, "unnamed", lambda self, concept, rows: np.zeros(len(rows), np.bool_)
    )
    result = lenstrain("compare", dual, dual, "--store", store)
    assert result.exit_code == 0, result.stderr
    assert "nan" not in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("bird "))
    assert row[3:6] == ["-", "-", "-"]
    assert "score, B minus A: -\n" in result.stdout


def test_compare_json_is_what_the_table_shows(
    lenstrain: Run, dual: Path, other: Path, store: Path
) -> None:
    found = strict_json(lenstrain("compare", dual, other, "--store", store, "--json"))
    assert len(found["pairs"]) == 10
    assert found["only_a"] == ["nature", "society", "craft"]
    assert found["score"]["low"] <= found["score"]["mean"] <= found["score"]["high"]
    pair = found["pairs"][0]
    assert set(pair) == {"concept", "name", "a", "b"}
    assert set(pair["a"]) == {"f1", "score"}
    assert min(pair["a"]["f1"], pair["b"]["f1"]) > 0.5


def test_activation_lenses_are_compared_with_their_text_lenses(
    lenstrain: Run, dual: Path, store: Path
) -> None:
    found = strict_json(lenstrain("compare", dual, dual / "text", "--store", store, "--json"))
    assert len(found["pairs"]) == 13
    itself = strict_json(lenstrain("compare", dual, dual, "--store", store, "--json"))
    assert itself["score"] == {"mean": 0, "low": 0, "high": 0}


def test_compare_on_a_store_of_something_else_is_one_line(
    lenstrain: Run, dual: Path, other: Path, finished_store: Path
) -> None:
    result = lenstrain("compare", dual, other, "--store", finished_store)
    assert_one_line_error(
        result, "trained on a store with another model", "give it the store it was fitted on"
    )


# --- check --------------------------------------------------------------------------------------


def test_check_prints_a_row_a_lens_and_a_summary(lenstrain: Run, dual: Path, store: Path) -> None:
    result = lenstrain("check", dual, "--store", store)
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("bird "))
    assert row.split()[1:3] == ["1", LensPack.load(dual)["bird"].grade_shown]
    assert row.split()[4] == "10"  # lenses of the level, its own among them
    assert re.search(
        r"13 lenses: first of their level on \d+% of their samples; \d+ fire everywhere",
        result.stdout,
    )


def test_check_json_is_what_the_pack_says_of_itself(
    lenstrain: Run, dual: Path, store: Path
) -> None:
    found = strict_json(lenstrain("check", dual, "--store", store, "--json"))
    shown = strict_json(lenstrain("show", dual, "--json"))
    for lens in shown["lenses"]:
        beside = dict(lens["beside_others"])
        assert beside.pop("fires_everywhere") in (True, False)
        assert found[lens["concept"]] == beside
    assert found["nature"]["above_ancestors"] is None


# --- all of them --------------------------------------------------------------------------------


def test_hostile_names_are_shown_on_one_line_and_do_nothing(
    lenstrain: Run, dual: Path, other: Path, store: Path
) -> None:
    for command in (
        ["show", dual],
        ["show", dual / "text"],
        ["compare", dual, other, "--store", store],
        ["check", dual, "--store", store],
    ):
        result = lenstrain(*command)
        assert result.exit_code == 0, result.stderr
        assert "\x1b" not in result.stdout
        assert "\u202e" not in result.stdout
        assert SHOWN.split()[0] in result.stdout
        assert ":smile:" in result.stdout
        assert not any(line.startswith("fake") for line in result.stdout.splitlines())


def test_hostile_names_in_warnings_do_nothing(lenstrain: Run, dual: Path, tmp_path: Path) -> None:
    pack = LensPack.load(dual)
    for lens in pack:
        lens.metrics["beside_others"]["fires_everywhere"] = lens.concept == "hostile"
    pack.save(tmp_path / "l")
    text = lenstrain("show", tmp_path / "l").stdout
    assert "\x1b" not in text
    grade = pack["hostile"].grade_shown
    assert f"1 of 13 fire everywhere: {SHOWN} {grade}\n" in text


@pytest.mark.parametrize("command", ["show", "impact", "check", "compare"])
def test_folder_of_something_else_is_one_line(
    lenstrain: Run, tmp_path: Path, store: Path, command: str
) -> None:
    folders = [tmp_path, tmp_path] if command == "compare" else [tmp_path]
    options = ["--store", store] if command in ("check", "compare") else []
    assert_one_line_error(
        lenstrain(command, *folders, *options), "no lens pack at", "lenstrain fit"
    )


@pytest.mark.parametrize("command", ["check", "compare"])
def test_store_that_is_not_there_is_one_line(
    lenstrain: Run, dual: Path, tmp_path: Path, command: str
) -> None:
    folders = [dual, dual] if command == "compare" else [dual]
    assert_one_line_error(lenstrain(command, *folders, "--store", tmp_path / "nowhere"), "nowhere")
