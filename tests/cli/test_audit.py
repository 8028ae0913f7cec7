from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lenscache.concepts.plan import SamplePlan
from lenstrain.data.dataset import TEST, TRAIN
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error, tree
from tests.lenstrain.conftest import make_planted_store, planted_pack
from tests.lenstrain.test_audit import PARAPHRASE, SENTENCE, in_both_splits, rows_of, with_texts


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "store.zarr"
    make_planted_store(path)
    return path


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("leaky") / "store.zarr"
    make_planted_store(path, change_plan=in_both_splits(SENTENCE, PARAPHRASE))
    return path


def test_help_ends_with_an_example(lenstrain: Run) -> None:
    assert "Example: lenstrain audit" in " ".join(lenstrain("audit", "--help").stdout.split())


def test_a_clean_store_gets_two_tables_and_one_sentence(lenstrain: Run, clean: Path) -> None:
    before = tree(clean)
    result = lenstrain("audit", clean, "--strict")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert next(line for line in lines if line.startswith("train and test")).split()[-2:] == [
        "0",
        "0",
    ]
    assert [line.split("  ")[0] for line in lines[7:12]] == [
        "prompt length",
        "completion length",
        "position",
        "temperature",
        "prompt kind",
    ]
    assert lines[-1].startswith("no findings")
    assert "finding:" not in result.stdout
    assert tree(clean) == before


def test_a_near_twin_is_shown_with_both_texts_and_named(lenstrain: Run, leaky: Path) -> None:
    result = lenstrain("audit", leaky)
    assert result.exit_code == 0
    assert f"{SENTENCE} (train) = {PARAPHRASE} (test)" in result.stdout
    assert "finding: bird: 1 of " in result.stdout
    assert (
        result.stdout.splitlines()[-1]
        == "of 12 concepts, 1 may score higher for texts seen in training"
    )


def test_strict_exits_with_1_where_there_is_a_finding(lenstrain: Run, leaky: Path) -> None:
    assert lenstrain("audit", leaky, "--strict").exit_code == 1
    assert lenstrain("audit", leaky, "--strict", "--json").exit_code == 1


def test_json_is_the_whole_report(lenstrain: Run, leaky: Path) -> None:
    report = json.loads(lenstrain("audit", leaky, "--json").stdout, parse_constant=pytest.fail)
    assert report["twins"][0] == {
        "concept": "bird",
        "n_test": report["twins"][0]["n_test"],
        "exact": 0,
        "near": 1,
    }
    assert [factor["name"] for factor in report["factors"]][:2] == [
        "prompt length",
        "completion length",
    ]


def test_layers_select_what_is_audited(lenstrain: Run, leaky: Path) -> None:
    report = json.loads(lenstrain("audit", leaky, "--level", 0, "--json").stdout)
    assert (sorted(report["names"]), report["findings"]) == (["craft", "nature", "society"], [])


def test_many_findings_are_cut_and_counted(lenstrain: Run, tmp_path: Path) -> None:
    concepts = [replace(planted_pack()["bird"], id=f"c{i}", name=f"c{i}") for i in range(24)]
    concepts = [
        replace(c, examples=tuple(f"Word {c.id} number {n * 7}" for n in range(9)))
        for c in concepts
    ]

    def confuse(plan: SamplePlan) -> SamplePlan:
        for concept in [c.id for c in concepts]:
            rows = [*rows_of(plan, concept, TRAIN)[:1], *rows_of(plan, concept, TEST)[:1]]
            marks = zip(rows, ".!", strict=False)
            plan = with_texts(plan, {row: f"Copied for {concept}{mark}" for row, mark in marks})
        return plan

    make_planted_store(
        tmp_path / "store.zarr", pack=planted_pack(changes=concepts), change_plan=confuse
    )
    lines = lenstrain("audit", tmp_path / "store.zarr").stdout.splitlines()
    n = len(json.loads(lenstrain("audit", tmp_path / "store.zarr", "--json").stdout)["findings"])
    assert n > 24
    assert sum(line.startswith("finding: ") for line in lines) == 20
    assert f"and {n - 20} more (--json has all)" in lines


def test_hostile_texts_and_names_are_shown_and_do_nothing(lenstrain: Run, tmp_path: Path) -> None:
    hostile = "[bold red]boo[/]\x1b[2J\nfake: 0 findings\u202e :smile: " + "long " * 100
    name = "\x1b[31mname[/]\n" + "x" * 500
    bad = replace(planted_pack()["bird"], name=name)

    def change(plan: SamplePlan) -> SamplePlan:
        return in_both_splits(hostile, hostile.upper() + "!")(plan)

    store = tmp_path / "store.zarr"
    make_planted_store(store, pack=planted_pack(changes=[bad]), change_plan=change)
    shown = lenstrain("audit", store)
    assert shown.exit_code == 0, shown.stderr
    assert "[bold red]boo[/]\\x1b[2J\\nfake: 0 findings\\u202e :smile:" in shown.stdout
    assert "finding: \\x1b[31mname[/]\\n" in shown.stdout
    assert {char for char in shown.stdout if not char.isprintable()} == {"\n"}
    assert max(map(len, shown.stdout.splitlines())) < 300


def test_an_unfinished_store_says_how_far_it_is_and_how_to_go_on(
    lenstrain: Run, interrupted_store: Path
) -> None:
    result = lenstrain("audit", interrupted_store)
    assert_one_line_error(
        result, "layer_1/round_0 is not finished", "blocks are extracted", "lenscache extract"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "5"], ["level 5 is not in the store"]),
        (["--labels", "ghost"], ["no label set 'ghost'"]),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(
    lenstrain: Run, clean: Path, options: list[str], words: list[str]
) -> None:
    assert_one_line_error(lenstrain("audit", clean, *options), *words)
