"""Texts of no concept at the commands: extracted, told of, learned from, judged by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TEXTS = [f"Line {i} of a paper that nobody read." for i in range(24)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    lenscache: Run,
    extract_options: list[str],
    texts: Path,
) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s"
    result = lenscache("extract", path, *extract_options, "--background", texts)
    assert result.exit_code == 0, result.stderr
    assert "background: 24 rows that express no concept" in result.stdout
    return path


def test_info_and_verify_name_it(lenscache: Run, store: Path) -> None:
    shown = lenscache("info", store, "--json")
    assert json.loads(shown.stdout)["rounds"][-1]["name"] == "background/round_0"
    assert "background/round_0" in lenscache("info", store).stdout
    verified = lenscache("verify", store)
    assert verified.exit_code == 0
    assert "background/round_0" in verified.stdout


@pytest.mark.parametrize("family", ["linear", "discriminant"])
def test_fit_and_show_tell_how_lenses_do_there(
    lenstrain: Run, store: Path, tmp_path: Path, family: str
) -> None:
    pack = tmp_path / "pack"
    fitted = lenstrain("fit", store, "--out", pack, "--f1", "0.9", "--family", family)
    assert fitted.exit_code == 0, fitted.stderr
    line = "natural: among 12 texts that express no concept, mean score"
    assert line in fitted.stdout
    shown = lenstrain("show", pack)
    assert line in shown.stdout
    assert "fires" in shown.stdout
    for lens in json.loads(lenstrain("show", pack, "--json").stdout)["lenses"]:
        assert 0 <= lens["natural_false_positive_rate"] <= 1


def test_by_default_the_model_writes_texts_once(
    lenscache: Run, extract_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenscache.extract.background.DEFAULT_BACKGROUND", 20)
    options = [*extract_options[: extract_options.index("--background")], "--level", 0]
    first = lenscache("extract", tmp_path / "s", *options)
    assert first.exit_code == 0, first.stderr
    assert "writing 20 background texts" in first.stderr
    again = lenscache("extract", tmp_path / "s", *options)
    assert again.exit_code == 0, again.stderr
    assert "; 0 extracted now" in again.stdout
    assert "writing" not in again.stderr


@pytest.mark.parametrize(
    ("background", "message"),
    [
        ("9", "9 background texts are asked for, expected 10 or more"),
        ("nowhere.txt", "the background texts of nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_a_background_is_one_line(
    lenscache: Run, extract_options: list[str], tmp_path: Path, background: str, message: str
) -> None:
    result = lenscache("extract", tmp_path / "s", *extract_options, "--background", background)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "s").exists()


def test_a_top_up_takes_none(
    lenscache: Run, extract_options: list[str], store: Path, tmp_path: Path
) -> None:
    hungry = tmp_path / "hungry.json"
    hungry.write_text(json.dumps({"concepts": ["bird"]}))
    result = lenscache("extract", store, *extract_options, "--top-up", hungry, "--background", 12)
    assert result.exit_code == 1
    assert "leave out --level, --limit, --reuse and --background" in result.stderr.replace(
        "\n", " "
    )


@pytest.mark.parametrize("devices", [(), ("--device-kind", "h100")])
def test_plan_tells_what_it_costs(
    lenscache: Run, model_folder: Path, pack_file: Path, texts: Path, devices: tuple[str, ...]
) -> None:
    arguments = ("plan", "--pack", pack_file, "--model", model_folder, *devices, "--json")
    plain = json.loads(lenscache(*arguments, "--background", 0).stdout)
    assert json.loads(lenscache(*arguments).stdout)["prompts"] == plain["prompts"] + 200
    for background, n in ((texts, 24), (30, 30)):
        found = json.loads(lenscache(*arguments, "--background", background).stdout)
        assert found["prompts"] == plain["prompts"] + n
        assert found["stored_bytes"] > plain["stored_bytes"]
