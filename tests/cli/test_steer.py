from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error


@pytest.fixture(scope="module")
def lens_pack(
    tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, finished_store: Path
) -> Path:
    """Lenses as if all had a grade that nothing is the matter with: bird A, oven C, others B."""
    folder = tmp_path_factory.mktemp("steer")
    result = lenstrain("fit", finished_store, "--out", folder / "fitted")
    assert result.exit_code == 0, result.stderr
    fitted = LensPack.load(folder / "fitted")
    grades = {"bird": Grade.A, "oven": Grade.C}
    standing = {lens.concept: {"grade": grades.get(lens.concept, Grade.B)} for lens in fitted}
    with_standing(fitted, standing).save(folder / "lenses")
    return folder / "lenses"


def with_standing(pack: LensPack, standing: dict[str, Any]) -> LensPack:
    """The same pack with other grades, statuses and reasons for some concepts."""
    usual = {"status": "provisional", "reason": ""}
    lenses = [
        replace(lens, **{**usual, **standing[lens.concept]}) if lens.concept in standing else lens
        for lens in pack
    ]
    return LensPack(lenses, pack.provenance, pack.skipped)


@pytest.fixture
def steer(lenstrain: Run, lens_pack: Path, model_folder: Path) -> Any:
    return lambda *options: lenstrain(
        "steer",
        lens_pack,
        "--model",
        model_folder,
        "--dtype",
        "float32",
        "--concept",
        "bird",
        "--prompt",
        "The old man",
        "--max-new-tokens",
        "8",
        *options,
    )


def test_texts_with_and_without_are_shown_with_what_their_lens_says(steer: Any) -> None:
    result = steer("--strength", "50", "--strength", "-50")
    assert result.exit_code == 0, result.stderr
    blocks = result.stdout.split("\n\n")
    assert [block.strip().splitlines()[0] for block in blocks[:3]] == [
        "not steered",
        "strength +50",
        "strength -50",
    ]
    assert all("perplexity" in block and "deviations" in block for block in blocks[:3])
    assert blocks[0].splitlines()[1] != blocks[1].splitlines()[1]


def test_json_holds_every_text_and_reading(steer: Any) -> None:
    found = json.loads(steer("--strength", "50", "--json").stdout)
    assert [entry["strength"] for entry in found] == [None, 50.0]
    assert found[0]["text"] != found[1]["text"]
    ((reading),) = found[1]["lenses"].values()
    assert 0 <= reading["probability"] <= 1


def test_the_same_command_says_the_same(steer: Any) -> None:
    assert steer("--strength", "5").stdout == steer("--strength", "5").stdout


@pytest.mark.parametrize(
    "options",
    [["--ablate"], ["--direction", "weights"], ["--positions", "completion"], ["--strength", "0"]],
)
def test_every_way_to_steer_runs(steer: Any, options: list[str]) -> None:
    result = steer(*options)
    assert result.exit_code == 0, result.stderr


def test_no_strength_writes_the_same_text(steer: Any) -> None:
    plain, same = json.loads(steer("--strength", "0", "--json").stdout)
    assert plain["text"] == same["text"]


@pytest.mark.parametrize(
    ("standing", "words", "shown"),
    [
        ({"grade": Grade.C}, ["has grade C (score"], "(C)"),
        (
            {"grade": Grade.C, "reason": "fires on 30% of unrelated samples"},
            ["grade", "C", "fires on 30% of unrelated samples"],
            "(C)",
        ),
        (
            {"grade": Grade.B, "reason": "test F1 is 0.31 at its threshold"},
            ["has grade B (test F1 is 0.31 at its threshold)", "allow grade C"],
            "(B)",
        ),
        (
            {"grade": None, "status": "ungraded", "reason": "no test text"},
            ["is ungraded (no test text)"],
            "(-)",
        ),
    ],
)
def test_a_lens_that_cannot_be_trusted_is_refused_in_one_line_and_allowed_when_asked(
    lenstrain: Run,
    lens_pack: Path,
    model_folder: Path,
    tmp_path: Path,
    standing: dict[str, Any],
    words: list[str],
    shown: str,
) -> None:
    with_standing(LensPack.load(lens_pack), {"fish": standing}).save(tmp_path / "poor")
    command = ["steer", tmp_path / "poor", "--model", model_folder, "--concept", "fish"]
    command += ["--prompt", "The", "--max-new-tokens", "3", "--dtype", "float32"]
    assert_one_line_error(lenstrain(*command), *words)
    allowed = lenstrain(*command, "--allow-grade", "C")
    assert allowed.exit_code == 0, allowed.stderr
    assert f"fish {shown} p = " in allowed.stdout
    found = json.loads(lenstrain(*command, "--allow-grade", "C", "--json").stdout)
    grade = standing["grade"]
    assert found[0]["lenses"]["fish"]["grade"] == (None if grade is None else grade.value)
    assert found[0]["lenses"]["fish"]["status"] == standing.get("status", "provisional")
    assert found[0]["lenses"]["fish"]["reason"] == standing.get("reason", "")


def test_a_pack_of_the_rule_before_says_so(
    steer: Any, lenstrain: Run, lens_pack: Path, model_folder: Path, tmp_path: Path
) -> None:
    pack = LensPack.load(lens_pack)
    before = replace(pack.provenance, grading_rule=None)
    LensPack(pack.lenses, before, {}).save(tmp_path / "before")
    command = ["steer", tmp_path / "before", "--model", model_folder, "--concept", "bird"]
    command += ["--prompt", "The", "--max-new-tokens", "3", "--dtype", "float32"]
    said = "note: the grades of this pack come from the rule of versions before 0.3"
    assert said in lenstrain(*command).stdout
    assert said not in steer().stdout


def test_an_unknown_concept_is_one_line(
    lenstrain: Run, lens_pack: Path, model_folder: Path
) -> None:
    result = lenstrain(
        "steer", lens_pack, "--model", model_folder, "--concept", "quark", "--prompt", "x"
    )
    assert result.exit_code == 1
    assert "no lens of 'quark'" in result.stderr


def test_a_model_of_another_shape_is_refused(
    lenstrain: Run, lens_pack: Path, model_folder: Path, tmp_path: Path
) -> None:
    data = json.loads((lens_pack / "lenses.json").read_text())
    data["provenance"]["store"]["model"]["hidden"] = 64
    other = tmp_path / "other"
    other.mkdir()
    (other / "lenses.json").write_text(json.dumps(data))
    (other / "lenses.safetensors").write_bytes((lens_pack / "lenses.safetensors").read_bytes())
    result = lenstrain(
        "steer", other, "--model", model_folder, "--concept", "bird", "--prompt", "x"
    )
    assert result.exit_code == 1
    assert "made with another model" in result.stderr


def test_other_weights_of_the_same_shape_are_refused(
    lenstrain: Run, lens_pack: Path, tmp_path: Path, model_folder: Path
) -> None:
    data = json.loads((lens_pack / "lenses.json").read_text())
    data["provenance"]["store"]["model"]["fingerprint"] = "0" * 16
    other = tmp_path / "other"
    other.mkdir()
    (other / "lenses.json").write_text(json.dumps(data))
    (other / "lenses.safetensors").write_bytes((lens_pack / "lenses.safetensors").read_bytes())
    result = lenstrain(
        "steer",
        other,
        "--model",
        model_folder,
        "--concept",
        "bird",
        "--prompt",
        "x",
        "--dtype",
        "float32",
    )
    assert result.exit_code == 1
    assert "0000000000000000" in result.stderr


def test_a_lens_of_several_model_layers_pushes_at_one_and_ablates_at_all(
    lenstrain: Run, finished_store: Path, model_folder: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "pack"
    fitted = lenstrain("fit", finished_store, "--family", "discriminant", "--out", pack)
    assert fitted.exit_code == 0, fitted.stderr
    given = ["--model", model_folder, "--dtype", "float32", "--prompt", "The old man"]
    given += ["--concept", "bird", "--allow-grade", "C", "--max-new-tokens", 4]
    pushed = lenstrain("steer", pack, *given)
    assert pushed.exit_code == 0, pushed.stderr
    note = "steered at model layer {}: --at chooses others that the lens reads"
    assert note.format(1) in " ".join(pushed.stdout.split())
    chosen = lenstrain("steer", pack, *given, "--at", 0, "--at", 2)
    assert note.format("0, 2") in " ".join(chosen.stdout.split())
    assert "steered at model layer" not in lenstrain("steer", pack, *given, "--ablate").stdout
    assert_one_line_error(lenstrain("steer", pack, *given, "--at", 7), "it reads 0, 1, 2")
