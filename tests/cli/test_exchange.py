"""`lenstrain export` and `lenstrain import`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.lenstrain.conftest import HIDDEN, make_planted_store
from tests.lenstrain.test_gguf import as_repeng


def plain(text: str) -> str:
    return " ".join(text.split())


def succeeded(result: Any) -> Any:
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "s.zarr"
    make_planted_store(path)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, store: Path) -> Path:
    folder = tmp_path_factory.mktemp("lenses") / "linear"
    succeeded(
        lenstrain("fit", store, "--f1", 0.8, "--model-layers", "1", "--no-beyond", "--out", folder)
    )
    return folder


@pytest.fixture
def them(tmp_path: Path) -> Path:
    """A classifier with nothing beside it, whose name would move the cursor."""
    folder = tmp_path / "them"
    (folder / "layer1").mkdir(parents=True)
    torch.save(
        torch.nn.ModuleDict({"linear": torch.nn.Linear(HIDDEN, 1)}).state_dict(),
        folder / "layer1/Bird.pt",
    )
    return folder


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_of_every_command_ends_with_an_example(lenstrain: Run, command: str) -> None:
    assert f"Example: lenstrain {command}" in plain(lenstrain(command, "--help").stdout)


def test_a_pack_goes_to_hatcat_and_back_without_a_difference(
    lenstrain: Run, pack: Path, tmp_path: Path
) -> None:
    command = ["export", pack, "--ungraded", "--to", "hatcat", "--out", tmp_path / "them"]
    out = succeeded(lenstrain(*command)).stdout
    assert plain(out) == f"12 classifiers written to {tmp_path / 'them'}; 0 left out"
    out = succeeded(
        lenstrain("import", tmp_path / "them", "--from", "hatcat", "--out", tmp_path / "back")
    ).stdout
    assert plain(out).endswith(f"next: lenstrain show {tmp_path / 'back'}")
    assert "not known" not in out
    X = np.random.default_rng(0).normal(size=(20, HIDDEN)).astype(np.float32)
    assert (
        LensPack.load(tmp_path / "back").score(X, 1).tobytes()
        == LensPack.load(pack).score(X, 1).tobytes()
    )
    assert (
        lenstrain("show", tmp_path / "back").stdout.splitlines()[1:]
        == lenstrain("show", pack).stdout.splitlines()[1:]
    )


def test_control_vectors_of_chosen_concepts(lenstrain: Run, pack: Path, tmp_path: Path) -> None:
    options = [
        "--to",
        "gguf",
        "--concept",
        "bird",
        "--concept",
        "boat",
        "--out",
        tmp_path / "vectors",
    ]
    out = succeeded(lenstrain("export", pack, *options)).stdout
    assert plain(out) == f"2 control vectors written to {tmp_path / 'vectors'}; 0 left out"
    ((_, vector, deviation),) = LensPack.load(pack)["bird"].directions
    found = as_repeng(tmp_path / "vectors" / "bird.gguf")[1][1]
    np.testing.assert_allclose(found, vector * deviation, rtol=1e-5, atol=1e-6)
    succeeded(lenstrain("export", pack, *options, "--overwrite", "--direction", "weights"))
    assert not np.allclose(as_repeng(tmp_path / "vectors" / "bird.gguf")[1][1], found)


def test_part_of_a_pack_as_a_pack(lenstrain: Run, pack: Path, tmp_path: Path) -> None:
    succeeded(
        lenstrain(
            "export", pack, "--to", "safetensors", "--concept", "bird", "--out", tmp_path / "one"
        )
    )
    assert [lens.concept for lens in LensPack.load(tmp_path / "one")] == ["bird"]


@pytest.fixture
def poor(pack: Path, tmp_path: Path) -> Path:
    """The same lenses, of grade A but bird, which has C, boat, ungraded, and fish, capped at B."""
    whole = LensPack.load(pack)
    standing: dict[str, dict[str, Any]] = {
        "bird": {"grade": Grade.C},
        "boat": {"grade": None, "status": "ungraded", "reason": "no test text"},
        "fish": {"grade": Grade.B, "reason": "test F1 is 0.31 at its threshold"},
    }
    usual = {"grade": Grade.A, "status": "provisional", "reason": ""}
    lenses = [replace(lens, **{**usual, **standing.get(lens.concept, {})}) for lens in whole]
    LensPack(lenses, whole.provenance, {}).save(tmp_path / "poor")
    return tmp_path / "poor"


def test_json_lists_files_and_what_was_left_out(lenstrain: Run, poor: Path, tmp_path: Path) -> None:
    command = ["export", poor, "--to", "gguf", "--min-grade", "B", "--out", tmp_path / "out"]
    found = json.loads(succeeded(lenstrain(*command, "--json")).stdout)
    reasons = {
        "bird": "the lens of bird has grade C",
        "boat": "the lens of boat is ungraded (no test text)",
        "fish": "the lens of fish has grade B (test F1 is 0.31 at its threshold)",
    }
    assert found["left_out"] == reasons
    assert len(found["files"]) == 9
    assert all((tmp_path / "out" / file).exists() for file in found["files"].values())
    said = succeeded(lenstrain(*command, "--overwrite"))
    assert sorted(said.stderr.splitlines()) == [f"left out: {why}" for why in reasons.values()]


def test_ungraded_and_capped_lenses_are_exported_when_asked_for(
    lenstrain: Run, poor: Path, tmp_path: Path
) -> None:
    command = ["export", poor, "--to", "gguf", "--min-grade", "B", "--out", tmp_path / "out"]
    found = json.loads(succeeded(lenstrain(*command, "--ungraded", "--json")).stdout)
    assert {"boat", "fish"} < set(found["files"])
    assert found["left_out"] == {"bird": "the lens of bird has grade C"}
    alone = ["export", poor, "--to", "gguf", "--concept", "boat", "--out", tmp_path / "alone"]
    assert_one_line_error(lenstrain(*alone), "no lens to export has grade C", "--ungraded")
    succeeded(lenstrain(*alone, "--ungraded"))


def test_an_imported_classifier_is_shown_and_what_is_not_known_of_it_is_said(
    lenstrain: Run, pack: Path, store: Path, them: Path, tmp_path: Path
) -> None:
    (them / "layer1" / "Bird.pt").rename(them / "layer1" / "bird_classifier.pt")
    command = ["import", them, "--from", "hatcat", "--model-layer", 1, "--out", tmp_path / "back"]
    out = plain(succeeded(lenstrain(*command)).stdout)
    assert (
        "not known, and stood in for: calibration, grade, metrics, noise floor, threshold; "
        "ungraded until they are judged"
    ) in out
    shown = succeeded(lenstrain("show", tmp_path / "back")).stdout
    assert "unknown, linear lenses" in shown
    assert "nan" not in shown
    assert "1 of 1 ungraded: 1 imported: never measured here" in shown
    assert "rule of versions before 0.3" not in shown  # it has no grade of any rule
    assert "what helps" not in shown  # its concept has no texts here
    row = next(line.split() for line in shown.splitlines() if line.startswith("bird "))
    assert row[:10] == ["bird", "1", "1", "-", "-", "-", "-", "-", "-", "-"]
    data = json.loads(succeeded(lenstrain("show", tmp_path / "back", "--json")).stdout)
    assert data["mean_score"] is None
    assert (data["lenses"][0]["grade"], data["lenses"][0]["status"]) == (None, "ungraded")
    refused = lenstrain("compare", pack, tmp_path / "back", "--store", store)
    assert_one_line_error(refused, "another model (unknown)", "held out is not known")
    assert_one_line_error(
        lenstrain("check", tmp_path / "back", "--store", store), "another model (unknown)"
    )
    assert_one_line_error(lenstrain("impact", tmp_path / "back"), "target F1")


def test_a_name_that_moves_the_cursor_is_escaped(
    lenstrain: Run, them: Path, tmp_path: Path
) -> None:
    (them / "layer1" / "Bird.pt").rename(them / "layer1" / "evil\x1b[31m\nfake.pt")
    succeeded(
        lenstrain(
            "import", them, "--from", "hatcat", "--model-layer", 0, "--out", tmp_path / "back"
        )
    )
    result = lenstrain(
        *("export", tmp_path / "back", "--ungraded", "--to", "gguf", "--out", tmp_path / "out")
    )
    assert_one_line_error(result, "no direction to steer along")
    assert "\x1b" not in lenstrain("show", tmp_path / "back").stdout


def test_every_refusal_is_one_line(lenstrain: Run, pack: Path, them: Path, tmp_path: Path) -> None:
    hatcat = ["--from", "hatcat", "--out", tmp_path / "back"]
    assert_one_line_error(lenstrain("import", them, *hatcat), "--model-layer")
    assert_one_line_error(lenstrain("import", tmp_path, *hatcat), "has no <concept>_classifier.pt")
    assert_one_line_error(
        lenstrain("import", them, "--from", "hatcat", "--out", pack), "or pass --overwrite"
    )
    (them / "layer1" / "Torn_classifier.pt").write_bytes(b"\x80\x04")
    assert_one_line_error(
        lenstrain("import", them, *hatcat, "--model-layer", 1), "Torn_classifier.pt is refused"
    )
    export = ["--to", "hatcat", "--out"]
    assert_one_line_error(lenstrain("export", tmp_path, *export, tmp_path / "o"), "no lens pack at")
    assert_one_line_error(lenstrain("export", pack, *export, them, "--overwrite"), "exists already")
    assert_one_line_error(
        lenstrain("export", pack, *export, pack, "--overwrite"), "holds the lenses"
    )
    assert_one_line_error(
        lenstrain("export", pack, *export, tmp_path / "o", "--concept", "brid"), "did you mean bird"
    )
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("options", [["--to", "pickle"], ["--to", "gguf", "--min-grade", "D"], []])
def test_wrong_options_are_usage_errors(
    lenstrain: Run, pack: Path, tmp_path: Path, options: list[str]
) -> None:
    assert lenstrain("export", pack, "--out", tmp_path / "o", *options).exit_code == 2
