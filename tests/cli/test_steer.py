from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def lens_pack(
    tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, finished_store: Path
) -> Path:
    folder = tmp_path_factory.mktemp("steer") / "lenses"
    result = lenstrain("fit", finished_store, "--out", folder)
    assert result.exit_code == 0, result.stderr
    return folder


def concept_of_grade(folder: Path, *grades: str) -> str:
    return next(lens.concept for lens in LensPack.load(folder) if lens.grade.value in grades)


@pytest.fixture
def steer(lenstrain: Run, lens_pack: Path, model_folder: Path) -> Any:
    concept = concept_of_grade(lens_pack, "A", "B")
    return lambda *options: lenstrain(
        "steer",
        lens_pack,
        "--model",
        model_folder,
        "--dtype",
        "float32",
        "--concept",
        concept,
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


def test_grade_c_is_refused_in_one_line_and_allowed_when_asked(
    lenstrain: Run, lens_pack: Path, model_folder: Path, tmp_path: Path
) -> None:
    data = json.loads((lens_pack / "lenses.json").read_text())
    data["lenses"][0]["grade"] = "C"
    poor = tmp_path / "poor"
    poor.mkdir()
    (poor / "lenses.json").write_text(json.dumps(data))
    (poor / "lenses.safetensors").write_bytes((lens_pack / "lenses.safetensors").read_bytes())
    command = [
        "steer",
        poor,
        "--model",
        model_folder,
        "--concept",
        data["lenses"][0]["concept"],
        "--prompt",
        "The",
        "--max-new-tokens",
        "3",
        "--dtype",
        "float32",
    ]
    refused = lenstrain(*command)
    assert refused.exit_code == 1
    assert "grade C" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert lenstrain(*command, "--allow-grade", "C").exit_code == 0


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
    concept = concept_of_grade(lens_pack, "A", "B")
    result = lenstrain(
        "steer", other, "--model", model_folder, "--concept", concept, "--prompt", "x"
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
    concept = concept_of_grade(lens_pack, "A", "B")
    result = lenstrain(
        "steer",
        other,
        "--model",
        model_folder,
        "--concept",
        concept,
        "--prompt",
        "x",
        "--dtype",
        "float32",
    )
    assert result.exit_code == 1
    assert "0000000000000000" in result.stderr
