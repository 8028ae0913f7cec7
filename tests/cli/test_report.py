"""`lenstrain report`: what is written and what is said of it."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.cli.test_lenses import HOSTILE
from tests.lenstrain.conftest import make_planted_store
from tests.lenstrain.report_packs import made_up_pack


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "s.zarr"
    make_planted_store(path)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, store: Path) -> Path:
    folder = tmp_path_factory.mktemp("lenses") / "pack"
    assert lenstrain("fit", store, "--f1", 0.8, "--out", folder).exit_code == 0
    return folder


def test_report_writes_one_file_and_says_what_next(
    lenstrain: Run, pack: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "r.html"
    result = lenstrain("report", pack, "--store", store, "--out", out)
    assert result.exit_code == 0, result.stderr
    size = out.stat().st_size / 1e6
    assert f"written to {out}: 12 lenses, {size:.1f} MB" in result.stdout
    assert f"next: open {out} in a browser; it needs no network" in result.stdout
    assert "without" not in result.stdout
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(out.parent.iterdir()) == [out]


def test_without_a_store_it_says_what_is_missing(
    lenstrain: Run, pack: Path, tmp_path: Path
) -> None:
    result = lenstrain("report", pack, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    assert "without --store STORE it has no hierarchy and no samples" in result.stdout


def test_a_pack_of_one_model_layer_has_no_heat_map_and_it_says_so(
    lenstrain: Run, store: Path, tmp_path: Path
) -> None:
    assert lenstrain("fit", store, "--model-layers", "1", "--out", tmp_path / "one").exit_code == 0
    result = lenstrain("report", tmp_path / "one", "--out", tmp_path / "r.html")
    assert "no scores by model layer: fit it again over several" in result.stdout


def test_packs_of_one_name_are_told_apart(lenstrain: Run, pack: Path, tmp_path: Path) -> None:
    from tests.lenstrain.test_report import packed

    for name in ("a", "b"):
        made_up_pack(3).save(tmp_path / name / "pack")
    beside = ["--beside", tmp_path / "a" / "pack", "--beside", tmp_path / "b" / "pack"]
    result = lenstrain("report", pack, *beside, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    overview = packed((tmp_path / "r.html").read_text(encoding="utf-8"), "overview")
    assert re.findall(r'"label":"([^"]*)"', overview) == ["pack", "a/pack", "b/pack"]


def test_a_pack_beside_itself_is_no_error(lenstrain: Run, pack: Path, tmp_path: Path) -> None:
    result = lenstrain("report", pack, "--beside", pack, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr


def test_open_opens_it(
    lenstrain: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    lenstrain("report", pack, "--out", tmp_path / "r.html")
    assert opened == []
    lenstrain("report", pack, "--out", tmp_path / "r.html", "--open")
    assert opened == [(tmp_path / "r.html").as_uri()]


def test_nothing_hostile_reaches_the_terminal(lenstrain: Run, tmp_path: Path) -> None:
    made_up_pack(3, names=[HOSTILE]).save(tmp_path / "pack")
    result = lenstrain("report", tmp_path / "pack", "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "fake" not in result.stdout


def test_folder_of_something_else_is_one_line(lenstrain: Run, tmp_path: Path) -> None:
    assert_one_line_error(lenstrain("report", tmp_path), "no lens pack at", "lenstrain fit")


def test_another_store_is_one_line_and_nothing_is_written(
    lenstrain: Run, pack: Path, finished_store: Path, tmp_path: Path
) -> None:
    result = lenstrain("report", pack, "--store", finished_store, "--out", tmp_path / "r.html")
    assert_one_line_error(
        result, "trained on a store with another model", "give it the store it was fitted on"
    )
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(
    lenstrain: Run, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenstrain.report.page.find_spec", lambda _: None)
    result = lenstrain("report", pack, "--out", tmp_path / "r.html")
    assert_one_line_error(result, "a report needs plotly", "pip install '.[report]'")
