"""`lenstrain show`: which lenses, in which order, how many, and what a row says of each."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lens_cli import console
from lens_cli.train.grades import count_reasons
from rich.console import Console

from lenstrain.metrics.grade import MIN_TEXTS, Grade
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.cli.test_lenses import plain, strict_json
from tests.lenstrain.report_packs import made_up_pack

LONG = "a concept whose name takes up more than there is room for"


@pytest.fixture(scope="module")
def pack() -> LensPack:
    return made_up_pack(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pack: LensPack) -> Path:
    path = tmp_path_factory.mktemp("made up") / "pack"
    pack.save(path)
    return path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make commands believe that they write to a terminal of so many columns."""
    like: dict[str, Any] = {"force_terminal": True, "color_system": None}
    like |= {"highlight": False, "emoji": False}
    return lambda width: monkeypatch.setattr(console, "out", lambda: Console(width=width, **like))


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each lens, by its name."""
    names = re.compile(r"^([a-z]+ \d+) +(\d.*)", re.MULTILINE)
    return {name: cells.split() for name, cells in names.findall(text)}


def shown(result: Any) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return list(rows_of(result.stdout))


def names_of(lenses: list[Lens]) -> set[str]:
    return {lens.name for lens in lenses}


def test_what_lenses_of_several_model_layers_read_and_cost_is_told(
    lenstrain: Run, pack: LensPack, tmp_path: Path
) -> None:
    several = (4, 9, 14, 19)
    lenses = [replace(lens, model_layers=several, directions=()) for lens in pack.lenses[:3]]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "several")
    result = lenstrain("show", tmp_path / "several")
    assert result.exit_code == 0, result.stderr
    told = "a lens reads 4 model layers, and the pack 4, 9, 14, 19: each costs a product"
    assert told in " ".join(result.stdout.split())
    assert result.stdout.count("4..19") == 3


# --- which ones, and in which order -------------------------------------------------------------


def test_filters_choose_lenses(lenstrain: Run, folder: Path, pack: LensPack) -> None:
    def ask(*options: Any) -> set[str]:
        return set(shown(lenstrain("show", folder, "--limit", 99, *options)))

    by_grade = {
        grade: [x for x in pack if x.grade_shown == grade] for grade in ("A", "B", "C", "-")
    }
    assert all(by_grade.values())
    assert ask("--grade", "A") == names_of(by_grade["A"])
    assert ask("--grade", "C", "--grade", "ungraded") == names_of(by_grade["C"] + by_grade["-"])
    assert ask("--status", "ungraded") == names_of(by_grade["-"])
    assert ask("--status", "provisional") == names_of([x for x in pack if x.grade is not None])
    assert ask("--level", 0) == names_of([x for x in pack if x.level == 0])
    assert ask("--level", 0, "--level", 1) == names_of([x for x in pack if x.level < 2])
    assert ask("--level", 1, "--grade", "B") == names_of([x for x in by_grade["B"] if x.level == 1])


def test_concepts_are_chosen_by_id_or_name(lenstrain: Run, pack: LensPack, tmp_path: Path) -> None:
    first, second, third, *others = pack
    named = [replace(x, name=f"same-{i}") for i, x in enumerate((first, second))]
    twins = [replace(x, name="twin-7") for x in (third, others[0])]
    LensPack([*named, *twins, *others[1:]], pack.provenance, {}).save(tmp_path / "p")
    ask = ["show", tmp_path / "p", "--json"]
    found = strict_json(lenstrain(*ask, "--concept", first.concept, "--concept", "SAME-1"))
    assert [x["concept"] for x in found["lenses"]] == [first.concept, second.concept]
    found = strict_json(lenstrain(*ask, "--concept", "twin-7"))
    assert [x["concept"] for x in found["lenses"]] == [third.concept, others[0].concept]
    result = lenstrain(*ask, "--concept", first.concept[:-1] + "x")
    assert_one_line_error(result, "the pack has no lens of", "did you mean")


def test_attributes_choose_lenses(lenstrain: Run, pack: LensPack, tmp_path: Path) -> None:
    risks = ("high", "low", "none")
    lenses = [
        replace(x, attributes={"risk_level": (risks[i % 3],), "impacts": ("consent", str(i))})
        for i, x in enumerate(pack)
    ]
    LensPack([*lenses[:-1], pack.lenses[-1]], pack.provenance, {}).save(tmp_path / "p")

    def ask(*options: Any) -> set[str]:
        return set(shown(lenstrain("show", tmp_path / "p", "--limit", 99, *options)))

    high, low = names_of(lenses[:-1:3]), names_of(lenses[1:-1:3])
    assert ask("--where", "risk_level=high") == high
    assert ask("--where", "risk_level=high", "--where", "risk_level=low") == high | low
    assert ask("--where", "risk_level=high", "--where", "impacts=3") == {lenses[3].name}
    found = strict_json(lenstrain("show", tmp_path / "p", "--json", "--where", "impacts=3"))
    assert [x["attributes"] for x in found["lenses"]] == [
        {"risk_level": ["high"], "impacts": ["consent", "3"]}
    ]


@pytest.mark.parametrize("given", ["risk_level", "riks=high"])
def test_an_attribute_that_no_lens_has_is_refused_with_those_that_are_there(
    lenstrain: Run, pack: LensPack, tmp_path: Path, given: str
) -> None:
    lenses = [replace(x, attributes={"risk_level": ("high",)}) for x in pack]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "p")
    result = lenstrain("show", tmp_path / "p", "--where", given)
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert "of this pack, which has: risk_level" in told


@pytest.mark.parametrize(
    ("by", "metric"), [("score", "score"), ("f1", "test_f1"), ("samples", "n_samples")]
)
def test_sorting_puts_the_highest_first_and_what_has_none_last(
    lenstrain: Run, folder: Path, pack: LensPack, by: str, metric: str
) -> None:
    names = shown(lenstrain("show", folder, "--sort", by, "--limit", 60))
    value = {lens.name: lens.metrics[metric] for lens in pack}
    found = [value[name] for name in names]
    known = [x for x in found if not math.isnan(x)]
    assert known == sorted(known, reverse=True)
    assert len(found) == 60
    assert all(math.isnan(x) for x in found[len(known) :])
    assert (len(known) < 60) == (by == "score")


def test_sorting_by_grade_name_and_level(lenstrain: Run, folder: Path, pack: LensPack) -> None:
    lenses = {lens.name: lens for lens in pack}

    def ordered(*options: str) -> list[Lens]:
        names = shown(lenstrain("show", folder, "--limit", 60, *options))
        assert len(names) == 60
        return [lenses[name] for name in names]

    grades = [lens.grade_shown for lens in ordered("--sort", "grade")]
    assert grades == sorted(grades, key="ABC-".index)
    names = [lens.name for lens in ordered("--sort", "name")]
    assert names == sorted(names)
    by_level = ordered("--sort", "level")
    assert [lens.level for lens in by_level] == sorted(lens.level for lens in pack)
    of_one = [x.metrics["score"] for x in by_level if x.level == 1 and x.metrics["n_test_unnamed"]]
    assert of_one == sorted(of_one, reverse=True)
    assert by_level == ordered()


def test_of_many_lenses_twenty_are_shown_with_how_to_see_more_and_a_summary_of_all(
    lenstrain: Run, folder: Path, pack: LensPack
) -> None:
    result = lenstrain("show", folder)
    assert len(shown(result)) == 20
    text = plain(result.stdout)
    assert "20 of 60 lenses are shown: --limit 60 shows them all" in text
    grades = ", ".join(f"{n} {grade}" for grade, n in pack.grades().items())
    assert f"60 lenses: {grades}; " in text
    assert len(shown(lenstrain("show", folder, "--limit", 3))) == 3
    assert "3 of 60 lenses are shown" in lenstrain("show", folder, "--limit", 3).stdout
    everything = lenstrain("show", folder, "--limit", 60)
    assert len(shown(everything)) == 60
    assert "are shown" not in everything.stdout


def test_up_to_forty_lenses_are_all_shown(lenstrain: Run, tmp_path: Path) -> None:
    for n, expected in ((40, 40), (41, 20)):
        made_up_pack(n).save(tmp_path / str(n))
        assert len(shown(lenstrain("show", tmp_path / str(n)))) == expected


def test_the_summary_is_of_the_whole_pack_whatever_is_asked_for(
    lenstrain: Run, folder: Path, pack: LensPack
) -> None:
    result = lenstrain("show", folder, "--grade", "A", "--level", 0)
    n = len([x for x in pack if x.grade is Grade.A and x.level == 0])
    text = plain(result.stdout)
    assert f"{n} of 60 lenses were asked for; of the whole pack: 60 lenses: " in text
    capped = [x for x in pack if x.is_capped]
    reasons = Counter(why for x in capped for why in x.reason.split("; "))
    assert 0 < len(reasons) < sum(reasons.values())
    told = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    assert f"{len(capped)} of 60 capped: {told}" in text
    assert (
        "12 of 60 ungraded: 6 no test text that expresses the concept without naming it, 6 too few "
        f"test texts without the concept's name: 2 of {MIN_TEXTS} needed"
    ) in text
    uncertain = sum(lens.metrics["grade_uncertain"] for lens in pack)
    assert f"{uncertain} of 60 have a score whose interval crosses a grade's boundary" in text
    none = lenstrain("show", folder, "--status", "certified")
    assert none.exit_code == 0
    assert "no lens is as asked for" in none.stdout
    assert "0 of 60 lenses were asked for" in none.stdout


# --- what a row says ----------------------------------------------------------------------------


def test_a_row_has_every_column_and_a_dash_where_nothing_is_known(
    lenstrain: Run, folder: Path, pack: LensPack
) -> None:
    result = lenstrain("show", folder, "--limit", 60)
    assert "nan" not in result.stdout
    assert "None" not in result.stdout
    rows = rows_of(result.stdout)
    for lens in pack:
        m = lens.metrics
        score, interval = "-", "-"
        if m["n_test_unnamed"]:
            score = f"{m['score']:.2f}"
            interval = f"{m['score_low']:.2f}-{m['score_high']:.2f}"
        known = [c["score"] for c in m["controls"].values() if not math.isnan(c["score"])]
        control = f"{max(known):.2f}{'!' * bool(m['unbeaten_controls'])}" if known else "-"
        expected = [
            *(str(lens.level), str(lens.model_layer)),
            *(str(m["n_test"]), f"({m['n_test_unnamed']})"),
            *(f"{m['test_f1']:.2f}", score, interval, f"{m['score_named']:.2f}"),
            lens.grade_shown + "?" * m["grade_uncertain"],
            control,
            *(["at", str(m["iterations"])] if m["graduated"] else ["no"]),
            *lens.reason.split(),
        ]
        assert rows[lens.name] == expected


def test_a_pipe_has_a_line_a_lens_with_its_whole_reason(
    lenstrain: Run, tmp_path: Path, pack: LensPack
) -> None:
    reason = "; ".join(["not ahead of the control 'words of the prompt'"] * 4)
    first, *others = pack.lenses[:5]
    lenses = [replace(first, grade=Grade.C, reason=reason), *others]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "p")
    lines = lenstrain("show", tmp_path / "p").stdout.splitlines()
    (row,) = [line for line in lines if line.startswith(f"{first.name} ")]
    assert row.rstrip().endswith(f" {reason}")


def test_at_eighty_columns_names_and_figures_are_whole_and_reasons_shortened(
    lenstrain: Run, terminal: Callable[[int], None], tmp_path: Path, pack: LensPack
) -> None:
    reason = "; ".join(["not ahead of the control 'words of the prompt'"] * 4)
    first, second, *others = pack.lenses[:9]
    lenses = [
        replace(first, grade=Grade.C, reason=reason),
        replace(second, name=LONG, grade=Grade.C, reason="fires on 49% of unrelated samples"),
        *others,
    ]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "p")
    terminal(80)
    result = lenstrain("show", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    table = result.stdout.split("\ntests: ")[0].splitlines()[1:]
    assert max(map(len, table)) <= 80
    heads = " ".join(table[0].split() + table[1].split())
    assert heads == (
        "model test best gradu- concept level layer tests F1 score 95 % names grade control ated"
    )
    below = [line.strip() for line in table if line.startswith("  ") and line[2:3].isalpha()]
    assert f"{reason[:75]}..." in below
    assert "fires on 49% of unrelated samples" in below
    width = table[1].index("level")
    names = " ".join(line[:width].strip() for line in table if not line.startswith("  "))
    assert LONG in names
    figures = rows_of(result.stdout)
    assert all(len(figures[lens.name]) in (11, 12) for lens in (first, *others))


def test_columns_that_a_terminal_has_no_room_for_are_named_and_left_out(
    lenstrain: Run, terminal: Callable[[int], None], tmp_path: Path, pack: LensPack
) -> None:
    lenses = [
        replace(lens, metrics=replace(lens.metrics, agreement={"kappa": 0.123}))
        for lens in pack.lenses[:9]
    ]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "p")
    everything = lenstrain("show", tmp_path / "p").stdout
    assert "agree-" in everything
    assert "agreement: with the lens" in everything
    assert "no room" not in everything
    found = [(80, "agreement"), (74, "graduated, agreement"), (70, "control, graduated, agreement")]
    for width, missing in found:
        terminal(width)
        text = lenstrain("show", tmp_path / "p").stdout
        assert f"no room for: {missing} (--json has them)" in plain(text)
        assert max(map(len, text.split("\ntests: ")[0].splitlines()[1:])) <= width
        assert "0.12 " not in text
        assert "agreement: with" not in plain(text)


def test_on_a_wide_terminal_the_reason_is_in_the_row(
    lenstrain: Run, terminal: Callable[[int], None], folder: Path, pack: LensPack
) -> None:
    terminal(160)
    rows = rows_of(lenstrain("show", folder, "--grade", "ungraded").stdout)
    assert len(rows) == pack.grades()["ungraded"]
    for lens in pack:
        if lens.name in rows:
            assert " ".join(rows[lens.name]).endswith(lens.reason)


# --- packs of before, JSON ----------------------------------------------------------------------


def test_a_pack_of_the_rule_before_says_so_in_one_line(lenstrain: Run, tmp_path: Path) -> None:
    made_up_pack(12, rule=1).save(tmp_path / "old")
    result = lenstrain("show", tmp_path / "old")
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stdout.splitlines() if "rule of versions before 0.3" in line]
    assert said == [
        "the grades of this pack come from the rule of versions before 0.3, by which test "
        "samples that name the concept count, too: fit again"
    ]
    assert "nan" not in result.stdout
    rows = rows_of(result.stdout)
    assert len(rows) == 12
    assert all(cells[3] == "(-)" and cells[7] == "-" for cells in rows.values())
    assert "do no better than a control, whatever their grade: " in result.stdout
    made_up_pack(12).save(tmp_path / "new")
    assert "rule of versions before 0.3" not in lenstrain("show", tmp_path / "new").stdout


def test_json_has_all_fields_of_the_lenses_that_are_asked_for(
    lenstrain: Run, folder: Path, pack: LensPack
) -> None:
    found = strict_json(lenstrain("show", folder, "--json"))
    assert [x["concept"] for x in found["lenses"]] == [lens.concept for lens in pack]
    for lens, row in zip(pack, found["lenses"], strict=True):
        grade = None if lens.grade is None else lens.grade.value
        assert (row["grade"], row["status"], row["reason"]) == (grade, lens.status, lens.reason)
        assert row["capped"] == lens.is_capped
        assert set(lens.metrics) <= set(row)
        assert row["n_test_unnamed"] == lens.metrics["n_test_unnamed"]
    options = ["--status", "ungraded", "--sort", "name", "--limit", 5, "--json"]
    some = strict_json(lenstrain("show", folder, *options))
    names = sorted(lens.name for lens in pack if lens.grade is None)
    assert [x["name"] for x in some["lenses"]] == names[:5]
    assert (some["chosen"], some["n_lenses"]) == (len(names), 60)
    assert some["grades"] == found["grades"] == pack.grades()
    assert some["reasons"] == found["reasons"] == count_reasons(pack)
    assert some["uncertain"] == sum(lens.metrics["grade_uncertain"] for lens in pack)


def test_json_of_nothing_is_an_empty_list(lenstrain: Run, folder: Path) -> None:
    found = json.loads(lenstrain("show", folder, "--status", "certified", "--json").stdout)
    assert (found["lenses"], found["chosen"], found["n_lenses"]) == ([], 0, 60)


# --- reasons ------------------------------------------------------------------------------------


def test_reasons_that_differ_in_numbers_are_counted_as_one(pack: LensPack) -> None:
    reasons = [
        "fires on 26% of unrelated samples",
        "fires on 9% of unrelated samples; test F1 is 0.31 at its threshold",
        "",
        "test F1 is 0.48 at its threshold",
        "fires on 49% of unrelated samples",
        "not ahead of the control 'text length'",
    ]
    lenses = [replace(lens, reason=why) for lens, why in zip(pack, reasons, strict=False)]
    assert count_reasons(lenses) == {
        "fires on 9-49% of unrelated samples": 3,
        "test F1 is 0.31-0.48 at its threshold": 2,
        "not ahead of the control 'text length'": 1,
    }
    assert list(count_reasons(lenses).values()) == [3, 2, 1]
    assert count_reasons([]) == {}
