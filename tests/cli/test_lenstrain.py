from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lens_cli import meter as progress

from lenstrain.metrics.grade import MIN_TEXTS
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error, tree
from tests.packs import small_pack


@pytest.fixture(scope="module")
def lens_folder(
    tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, finished_store: Path
) -> Path:
    folder = tmp_path_factory.mktemp("lenses") / "lenses"
    result = lenstrain("fit", finished_store, "--f1", 0.9, "--out", folder)
    assert result.exit_code == 0, result.stderr
    assert "7 lenses: " in result.stdout
    assert f"next: lenstrain show {folder}" in " ".join(result.stdout.split())
    return folder


@pytest.mark.parametrize("command", ["fit", "show", "impact", "compare", "check", "audit"])
def test_help_of_every_command_ends_with_an_example(lenstrain: Run, command: str) -> None:
    result = lenstrain(command, "--help")
    assert f"Example: lenstrain {command}" in " ".join(result.stdout.split())


def test_show_prints_a_row_a_lens_and_a_summary(lenstrain: Run, lens_folder: Path) -> None:
    text = lenstrain("show", lens_folder).stdout
    for lens in LensPack.load(lens_folder):
        row = next(line for line in text.splitlines() if line.startswith(f"{lens.name} "))
        assert row.split()[1:3] == [str(lens.level), str(lens.model_layer)]
        assert lens.grade_shown in row.replace("?", " ").split()
    assert "target F1 0.9, advisory validation" in text
    assert "7 lenses: " in text


def test_show_json_holds_every_metric(lenstrain: Run, lens_folder: Path) -> None:
    shown = json.loads(lenstrain("show", lens_folder, "--json").stdout)
    assert sum(shown["grades"].values()) == len(shown["lenses"]) == shown["n_lenses"] == 7
    assert {
        *("grade", "status", "reason", "capped", "grade_uncertain", "threshold", "test_f1"),
        *("score", "score_low", "score_high", "score_named", "score_all", "auroc"),
        *("n_test", "n_test_unnamed", "best_control", "lead_over_controls"),
    } <= set(shown["lenses"][0])
    assert "score_unnamed" not in shown["lenses"][0]


def test_fitting_twice_writes_the_same_bytes(
    lenstrain: Run, finished_store: Path, lens_folder: Path, tmp_path: Path
) -> None:
    lenstrain("fit", finished_store, "--f1", 0.9, "--out", tmp_path / "again")
    again, before = tree(tmp_path / "again"), tree(lens_folder)
    assert again.pop("run.json") != before.pop("run.json")  # what took how long, and nothing else
    assert again == before


def test_another_threshold_needs_no_model_and_no_other_store(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    before = tree(finished_store)
    result = lenstrain("fit", finished_store, "--f1", 0.5, "--out", tmp_path / "l", "--json")
    assert json.loads(result.stdout)["n_lenses"] == 7
    assert tree(finished_store) == before


def test_options_reach_the_provenance(lenstrain: Run, finished_store: Path, tmp_path: Path) -> None:
    result = lenstrain(
        "fit",
        finished_store,
        "--out",
        tmp_path / "l",
        "--level",
        1,
        "--model-layers",
        2,
        "--phase",
        "prompt",
        "--validation",
        "blocking",
        "--min-grade",
        "A",
        "--C",
        0.5,
        "--no-unit-norm",
        "--n-model-layers",
        1,
        "--concept",
        "bird",
        "--concept",
        "fish",
    )
    assert result.exit_code == 0, result.stderr
    pack = LensPack.load(tmp_path / "l")
    settings = pack.provenance["settings"]
    assert [lens.concept for lens in pack] == ["bird", "fish"]
    assert {lens.model_layer for lens in pack} == {2}
    assert (settings["unit_norm"], settings["n_model_layers"]) == (False, 1)
    assert (settings["validation"], settings["min_grade"], settings["C"], settings["phase"]) == (
        "blocking",
        "A",
        0.5,
        "prompt",
    )


def test_a_part_of_a_store_is_fitted_marked_shown_and_fitted_again(
    lenstrain: Run, interrupted_store: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "now", tmp_path / "page.html"
    for _ in range(2):  # the same command again takes the place of what it wrote
        result = lenstrain("fit", interrupted_store, "--partial", "--out", out)
        assert result.exit_code == 0, result.stderr
        assert "provisional: " in result.stdout
    part = LensPack.load(out).provenance.extracted
    assert part is not None
    assert 0 < part["concepts"] < part["of_concepts"] == 5
    assert 0 < part["blocks"] < part["of_blocks"]
    told = " ".join(lenstrain("show", out).stdout.split())
    assert f"provisional: {part['concepts']} of 5 concepts, on {part['blocks']} of" in told
    result = lenstrain("report", out, "--store", interrupted_store, "--out", page)
    assert result.exit_code == 0, result.stderr
    assert page.exists()


def test_an_unfinished_store_says_how_far_it_is_and_how_to_go_on(
    lenstrain: Run, interrupted_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("fit", interrupted_store, "--out", tmp_path / "l")
    assert_one_line_error(
        result, "layer_1/round_0 is not finished", "blocks are extracted", "lenscache extract"
    )
    assert not (tmp_path / "l").exists()


def test_an_existing_output_folder_is_refused_and_left_alone(
    lenstrain: Run, finished_store: Path, lens_folder: Path
) -> None:
    before = tree(lens_folder)
    result = lenstrain("fit", finished_store, "--out", lens_folder)
    assert_one_line_error(result, "exists already", "--overwrite")
    assert tree(lens_folder) == before


def test_overwrite_does_not_replace_a_folder_of_something_else(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_one_line_error(
        lenstrain("fit", finished_store, "--out", tmp_path, "--overwrite"), "exists already"
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "5"], ["level 5 is not in the store", "[0, 1]", "--model-layers"]),
        (["--model-layers", "9"], ["model layer 9 is not in the store", "0-2"]),
        (["--concept", "ghost"], ["'ghost'"]),
        (["--f1", "0"], ["target F1 is 0"]),
        (["--initial-samples", "300"], ["max_samples 200", "initial_samples 300"]),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(
    lenstrain: Run, finished_store: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = lenstrain("fit", finished_store, "--out", tmp_path / "l", *options)
    assert_one_line_error(result, *words)


@pytest.fixture(scope="module")
def named_store(
    tmp_path_factory: pytest.TempPathFactory,
    lenscache: Run,
    extract_options: list[str],
    pack_file: Path,
) -> Path:
    """Of level 1, where the concept "named" has no text that does not name it."""
    folder = tmp_path_factory.mktemp("named")
    pack = json.loads(pack_file.read_text())
    texts = {
        "definition": "Only words about it.",
        "aliases": ["called", "termed"],
        "contrasts": ["A named road."],
    }
    named = {"id": "named", "name": "named", "layer": 1, "parents": ["craft"], **texts}
    children = [
        {"id": f"c{i}", "name": f"kind {i}", "layer": 2, "parents": ["named"]} for i in range(3)
    ]
    (folder / "pack.json").write_text(
        json.dumps({**pack, "concepts": [*pack["concepts"], named, *children]})
    )
    options = [*extract_options, "--pack", folder / "pack.json", "--level", 1]
    result = lenscache("extract", folder / "s.zarr", *options)
    assert result.exit_code == 0, result.stderr
    return folder / "s.zarr"


def test_json_has_null_where_nothing_could_be_measured(
    lenstrain: Run, named_store: Path, tmp_path: Path
) -> None:
    """A concept without examples has no score on unnamed samples; JSON has no NaN."""
    lenstrain("fit", named_store, "--out", tmp_path / "l")
    shown = json.loads(
        lenstrain("show", tmp_path / "l", "--json").stdout, parse_constant=pytest.fail
    )
    lens = next(lens for lens in shown["lenses"] if lens["concept"] == "named")
    assert (lens["grade"], lens["status"], lens["score"]) == (None, "ungraded", None)
    assert (lens["n_test"] > 0, lens["n_test_unnamed"]) == (True, 0)
    assert 0 < lens["score_named"] <= 1
    assert shown["grades"]["ungraded"] == 1
    assert shown["reasons"][lens["reason"]] == 1


NO_TEXT = "no test text that expresses the concept without naming it"


def test_fit_says_before_and_after_which_concepts_can_have_no_grade_and_what_to_do(
    lenstrain: Run, named_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("fit", named_store, "--out", tmp_path / "l")
    assert result.exit_code == 0, result.stderr
    before = result.stderr.split("fitting: ")[0]
    assert "1 of 6 concepts have too few unnamed texts for a grade" in before
    assert 'the status of their lenses is "ungraded" at best' in before
    assert (
        f"It takes {MIN_TEXTS} test texts that do not name the concept: 1 have no unnamed text, "
        "0 have some and none for testing, 0 have one test text\n"
    ) in before
    assert "1 of 6 concepts have no unnamed calibration text: no vote on the model layer" in before
    wanted = "examples of each concept that do not name it, and extract more"
    assert re.search(rf"what helps: write at least \d+ {wanted}", before)
    assert f"1 of 6 ungraded: 1 {NO_TEXT}\n" in result.stdout
    assert re.search(rf"what helps: write at least \d+ {wanted}", result.stdout)
    assert "nan" not in result.stdout
    messages = [
        entry["message"]
        for line in (tmp_path / "l.log.jsonl").read_text().splitlines()
        if (entry := json.loads(line))["event"] == "message"
    ]
    assert [message in " ".join(before.split()) for message in messages] == [True] * 3


def test_fit_says_what_few_unnamed_texts_are_good_for(
    lenstrain: Run, lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    pack = small_pack(n_examples=12).to_dict()
    pack["concepts"][2]["examples"] = pack["concepts"][2]["examples"][:3]
    (tmp_path / "p.json").write_text(json.dumps(pack))
    options = [*extract_options, "--pack", str(tmp_path / "p.json"), "--level", "1"]
    assert lenscache("extract", tmp_path / "s", *options).exit_code == 0
    result = lenstrain("fit", tmp_path / "s", "--out", tmp_path / "l")
    told = " ".join(result.stderr.split())
    use = "of 1, 2, 3 the fit learns from 1, 1, 2; none judges: docs/grades.md"
    assert f"1 of 5 concepts have 3 unnamed texts or fewer: {use}" in told


def test_fit_counts_the_concepts_that_it_is_asked_for(
    lenstrain: Run, named_store: Path, tmp_path: Path
) -> None:
    options = ["--concept", "bird", "--concept", "fish", "--out", tmp_path / "l"]
    result = lenstrain("fit", named_store, *options)
    assert result.exit_code == 0, result.stderr
    assert "unnamed" not in result.stderr
    assert "what helps" not in result.stderr
    only = lenstrain("fit", named_store, "--concept", "named", "--out", tmp_path / "n")
    assert "1 of 1 concepts have too few unnamed texts" in only.stderr
    assert "\n1 of 1 ungraded: 1 " in only.stdout
    assert "(0." in only.stdout  # a mean test F1 on named samples
    assert "unnamed samples" not in only.stdout
    assert "mean score -; " in only.stdout


def test_tables_of_several_packs_count_the_ungraded(
    lenstrain: Run, named_store: Path, tmp_path: Path
) -> None:
    options = ["--f1", "0.9", "--f1", "0.5", "--out", tmp_path / "p"]
    result = lenstrain("fit", named_store, *options)
    assert result.exit_code == 0, result.stderr
    assert "1 of 6 concepts have too few unnamed texts for a grade" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines()[:3]]
    at = lines[0].index("ungraded") - lines[0].index("lenses") + 1
    assert lines[0][lines[0].index("lenses") :][2:6] == ["A", "B", "C", "ungraded"]
    assert [row[at] for row in lines[1:]] == ["1", "1"]
    for row in lines[1:]:
        assert sum(map(int, row[3:7])) == int(row[1]) == 6


def test_a_concept_with_too_few_samples_is_left_out_and_named(
    lenscache: Run, lenstrain: Run, extract_options: list[str], pack_file: Path, tmp_path: Path
) -> None:
    pack = json.loads(pack_file.read_text())
    bare = {"id": "bare", "name": "bare", "layer": 1, "parents": ["craft"]}
    (tmp_path / "pack.json").write_text(json.dumps({**pack, "concepts": [*pack["concepts"], bare]}))
    lenscache("extract", tmp_path / "s.zarr", *extract_options, "--pack", tmp_path / "pack.json")
    result = lenstrain("fit", tmp_path / "s.zarr", "--out", tmp_path / "l")
    assert result.exit_code == 0
    assert "left out: bare: " in result.stderr
    assert "1 left out" in result.stdout
    assert len(LensPack.load(tmp_path / "l")) == 7


def test_show_of_something_else_is_one_line(lenstrain: Run, tmp_path: Path) -> None:
    assert_one_line_error(lenstrain("show", tmp_path), "no lens pack at")


def test_progress_that_starts_again_is_timed_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(float(i) for i in range(0, 10_000, 10))
    monkeypatch.setattr("lens_cli.meter.time.monotonic", lambda: next(now))
    meter = progress.Meter()
    for _ in range(2):
        for done in (0, 1, 2):
            meter.update("fitting", done, 2, "concepts")
    ends = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("fitting: 2 of 2")
    ]
    assert len(ends) == 2
    assert ends[0] == ends[1]


@pytest.mark.parametrize("family", ["linear", "mlp", "mean-difference", "ensemble", "text"])
def test_lenses_of_every_family_are_fitted_and_shown(
    lenstrain: Run, finished_store: Path, tmp_path: Path, family: str
) -> None:
    options = ["--family", family, "--out", tmp_path / "l", "--level", 0, "--max-iterations", 2]
    result = lenstrain("fit", finished_store, *options)
    assert result.exit_code == 0, result.stderr
    pack = LensPack.load(tmp_path / "l")
    assert (pack.family, len(pack)) == (family, 2)
    assert {len(lens.model_layers) for lens in pack} == {{"ensemble": 3, "text": 0}.get(family, 1)}
    shown = lenstrain("show", tmp_path / "l")
    assert shown.exit_code == 0, shown.stderr
    assert f"{family} lenses, target F1 0.95" in shown.stdout
    assert ("vocabulary.json" in tree(tmp_path / "l")) == (family == "text")


def test_text_lenses_are_written_beside_with_a_target_and_schedule_of_their_own(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    result = lenstrain(
        "fit",
        finished_store,
        "--out",
        tmp_path / "l",
        "--level",
        0,
        "--text",
        "--text-f1",
        0.7,
        "--text-initial-samples",
        3,
        "--text-increment",
        2,
        "--text-max-samples",
        7,
        "--max-iterations",
        3,
    )
    assert result.exit_code == 0, result.stderr
    settings = LensPack.load(tmp_path / "l" / "text").provenance["settings"]
    assert (settings["family"], settings["target_f1"], settings["max_iterations"]) == (
        "text",
        0.7,
        3,
    )
    assert (settings["initial_samples"], settings["increment"], settings["max_samples"]) == (
        3,
        2,
        7,
    )
    assert LensPack.load(tmp_path / "l").provenance["settings"]["initial_samples"] == 5
    assert "lenstrain show" in lenstrain("show", tmp_path / "l").stdout.split("text lenses: ")[1]


def test_text_lenses_of_a_store_without_completions_are_refused_before_the_work(
    lenscache: Run, lenstrain: Run, extract_options: list[str], tmp_path: Path
) -> None:
    lenscache("extract", tmp_path / "s.zarr", *extract_options, "--mode", "prompt", "--level", 0)
    for option in (["--text"], ["--family", "text"]):
        result = lenstrain("fit", tmp_path / "s.zarr", "--out", tmp_path / "l", *option)
        assert_one_line_error(result, "completion was asked for", "--mode combined")
        assert "fitting" not in result.stderr
        assert not (tmp_path / "l").exists()


def test_threads_do_not_change_a_byte(lenstrain: Run, finished_store: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        options = ["--f1", 0.9, "--text", "--refine", "--jobs", jobs, "--out", tmp_path / str(jobs)]
        assert lenstrain("fit", finished_store, *options).exit_code == 0
    one, two = tree(tmp_path / "1"), tree(tmp_path / "2")
    for name in ("run.json", "text/run.json"):
        assert one.pop(name)
        assert two.pop(name)
    assert one == two
    assert {"lenses.safetensors", "text/lenses.safetensors"} <= set(one)


def test_thresholds_for_a_false_positive_rate_let_less_through(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    for share in (0.01, 0.5):
        assert (
            lenstrain(
                "fit", finished_store, "--fpr", share, "--out", tmp_path / str(share)
            ).exit_code
            == 0
        )
    strict, lax = LensPack.load(tmp_path / "0.01"), LensPack.load(tmp_path / "0.5")
    assert (strict.provenance["settings"]["fpr"], lax.provenance["settings"]["fpr"]) == (0.01, 0.5)
    rates = [[lens.metrics["false_positive_rate"] for lens in pack] for pack in (strict, lax)]
    assert sum(rates[0]) < sum(rates[1])
    assert_one_line_error(
        lenstrain("fit", finished_store, "--fpr", 1, "--out", tmp_path / "l"), "false-positive rate"
    )


def test_refine_reaches_the_lenses(lenstrain: Run, finished_store: Path, tmp_path: Path) -> None:
    options = ["--refine", "--initial-samples", 2, "--max-samples", 2, "--level", 1, "--json"]
    result = lenstrain("fit", finished_store, *options, "--out", tmp_path / "l")
    assert result.exit_code == 0, result.stderr
    json.loads(result.stdout, parse_constant=pytest.fail)
    assert any(lens.metrics["refined_against"] for lens in LensPack.load(tmp_path / "l"))


def test_no_lens_graduates_before_as_many_iterations_as_asked_for(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    common = [
        "--f1",
        0.3,
        "--max-overfit-gap",
        1,
        "--initial-samples",
        2,
        "--first-increment",
        2,
        "--increment",
        2,
    ]
    for name, options in (("free", []), ("held", ["--min-iterations", 3])):
        assert (
            lenstrain("fit", finished_store, *common, *options, "--out", tmp_path / name).exit_code
            == 0
        )
    free, held = LensPack.load(tmp_path / "free"), LensPack.load(tmp_path / "held")
    assert min(lens.metrics["iterations"] for lens in free) == 1
    assert {lens.metrics["iterations"] for lens in held if lens.metrics["graduated"]} == {3}
    result = lenstrain("fit", finished_store, "--min-iterations", 51, "--out", tmp_path / "l")
    assert_one_line_error(result, "min_iterations 51 is above max_iterations 50")


def test_fit_json_is_the_summary_and_no_nan(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("fit", finished_store, "--out", tmp_path / "l", "--level", 0, "--json")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["out"] == str(tmp_path / "l")
    assert found["n_lenses"] == sum(found["grades"].values()) == 2
