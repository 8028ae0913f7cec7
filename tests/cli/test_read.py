"""`lenstrain read`: a text through a model and a lens pack, as a table, a page and JSON."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lens_cli.train import app as lenstrain_cli
from lens_cli.train import read as read_cli
from typer.testing import CliRunner

from lenstrain.live.monitor import WINDOW
from lenstrain.live.naming_rule import MIN_SIGNAL
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.cli.test_lenses import plain, strict_json
from tests.models import tiny_model, tiny_tokenizer

TEXT = "Wings over the roof and roots below the wall."
HOSTILE = "[bold red]boo[/] \x1b[2J\nfake: 0 lenses \u202e :smile:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, finished_store: Path) -> Path:
    path = tmp_path_factory.mktemp("lenses") / "lenses"
    result = lenstrain("fit", finished_store, "--f1", 0.8, "--out", path)
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def options(model_folder: Path) -> list[Any]:
    return ["--model", model_folder, "--dtype", "float32"]


@pytest.fixture
def read(lenstrain: Run, folder: Path, options: list[Any]) -> Run:
    return lambda *args: lenstrain("read", folder, *args, *options)


@pytest.fixture
def read_all(read: Run) -> Run:
    """With bars so low that every token has lenses, ungraded and capped ones among them."""
    return lambda *args: read("--min-grade", "C", "--ungraded", "--min-signal", "-99", *args)


def test_help_ends_with_an_example(lenstrain: Run) -> None:
    assert "Example: lenstrain read" in plain(lenstrain("read", "--help").stdout)


def test_the_defaults_are_those_of_the_library() -> None:
    found = inspect.signature(read_cli.read).parameters
    assert (found["window"].default, found["min_signal"].default) == (WINDOW, MIN_SIGNAL)


def test_every_token_is_in_the_json_and_reading_twice_gives_the_same(read_all: Run) -> None:
    first, second = (strict_json(read_all("--text", TEXT, "--json")) for _ in range(2))
    assert first == second
    assert "".join(token["text"] for token in first["tokens"]) == TEXT
    assert not first["tokens"][0]["lenses"]  # the first position is not pooled
    assert any(token["lenses"] for token in first["tokens"])
    assert first["notes"] == []


@pytest.fixture
def graded(folder: Path, tmp_path: Path) -> Path:
    """The same lenses: bird has grade A, fish is ungraded, tree is capped, the others have C."""
    pack = LensPack.load(folder)
    standing: dict[str, dict[str, Any]] = {
        "bird": {"grade": Grade.A},
        "fish": {"grade": None, "status": "ungraded", "reason": "no test text"},
        "tree": {"grade": Grade.B, "reason": "test F1 is 0.40 at its threshold"},
    }
    plain = {"grade": Grade.C, "status": "provisional", "reason": ""}
    lenses = [replace(lens, **{**plain, **standing.get(lens.concept, {})}) for lens in pack]
    LensPack(lenses, pack.provenance, {}).save(tmp_path / "graded")
    return tmp_path / "graded"


def test_ungraded_and_capped_lenses_are_named_only_when_asked_for(
    lenstrain: Run, graded: Path, options: list[Any]
) -> None:
    wanted = ["read", graded, "--text", TEXT, "--min-signal", "-99", "--top", 9, *options]

    def names(*args: str) -> set[str]:
        data = strict_json(lenstrain(*wanted, "--json", *args))
        return {found["concept"] for token in data["tokens"] for found in token["lenses"]}

    possible = names("--min-grade", "C", "--ungraded")
    assert {"bird", "fish", "tree"} <= possible
    assert names() == {"bird"}
    assert names("--min-grade", "C") == possible - {"fish", "tree"}
    assert names("--ungraded") == {"bird", "fish", "tree"}
    said = "2 of 7 lenses are ungraded or have a capped grade, and are not named: --ungraded"
    assert said in plain(lenstrain(*wanted).stdout)
    shown = lenstrain(*wanted, "--ungraded").stdout
    assert "--ungraded" not in shown
    assert re.search(r"fish - \d\.\d\d [+-]", shown)
    assert re.search(r"tree B \d\.\d\d [+-]", shown)


def test_a_pack_of_the_rule_before_says_so(
    lenstrain: Run, graded: Path, options: list[Any], tmp_path: Path
) -> None:
    pack = LensPack.load(graded)
    before = replace(pack.provenance, grading_rule=None)
    LensPack(pack.lenses, before, {}).save(tmp_path / "before")
    said = "note: the grades of this pack come from the rule of versions before 0.3"
    assert said in plain(lenstrain("read", tmp_path / "before", "--text", TEXT, *options).stdout)
    assert said not in plain(lenstrain("read", graded, "--text", TEXT, *options).stdout)


def test_the_table_names_lenses_with_grade_probability_and_deviations(read_all: Run) -> None:
    data, shown = strict_json(read_all("--text", TEXT, "--json")), read_all("--text", TEXT)
    assert shown.exit_code == 0, shown.stderr
    found = next(token for token in data["tokens"] if token["lenses"])["lenses"][0]
    assert (
        f"{found['name']} {found['grade'] or '-'} {found['probability']:.2f} {found['signal']:+.1f}"
        in plain(shown.stdout)
    )
    assert "whole text" in shown.stdout
    assert "lenses have grade C or better" in plain(shown.stdout)


def test_where_no_lens_is_sure_there_is_a_dash_and_a_sentence(read: Run) -> None:
    shown = read("--text", TEXT, "--min-signal", 99)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[1].split() == [*TEXT.split(), "-"]
    assert "whole text: no lens is sure that its concept is there" in shown.stdout


def test_a_file_and_standard_input_read_like_a_text(
    lenstrain: Run, read: Run, folder: Path, options: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    expected = strict_json(read("--text", TEXT, "--json"))
    assert strict_json(read(tmp_path / "t.txt", "--json")) == expected
    for place in ([], ["-"]):
        args = [str(arg) for arg in ("read", folder, *place, "--json", *options)]
        assert (
            json.loads(CliRunner().invoke(lenstrain_cli.app, args, input=TEXT).stdout) == expected
        )


def test_a_long_text_is_shown_in_stretches(read_all: Run) -> None:
    shown = read_all("--text", "The old mill, slow and brown. " * 12, "--top", 1)
    assert shown.exit_code == 0, shown.stderr
    assert "a row is a stretch of tokens with the same strongest lens" in plain(shown.stdout)


def test_concepts_and_top_choose_what_is_named(read_all: Run) -> None:
    data = strict_json(read_all("--text", TEXT, "--concept", "bird", "--concept", "tree", "--json"))
    assert {found["concept"] for token in data["tokens"] for found in token["lenses"]} <= {
        "bird",
        "tree",
    }
    assert data["n_lenses"] == 2
    data = strict_json(read_all("--text", TEXT, "--top", 1, "--json"))
    assert max(len(token["lenses"]) for token in data["tokens"]) == 1


def test_hostile_text_is_shown_in_the_terminal_and_does_nothing(read_all: Run) -> None:
    shown = read_all("--text", HOSTILE, "--min-signal", 99)
    assert shown.exit_code == 0, shown.stderr
    assert {char for char in shown.stdout if not char.isprintable()} == {"\n"}
    assert "[bold red]boo[/] \\x1b" in shown.stdout
    assert "lenses \\u202e :smile:" in shown.stdout
    shown = read_all("--text", HOSTILE)
    assert {char for char in shown.stdout if not char.isprintable()} == {"\n"}


def test_the_page_is_written(read_all: Run, tmp_path: Path) -> None:
    shown = read_all("--text", f"{TEXT} <script>", "--html", tmp_path / "page.html")
    assert f"written to {tmp_path / 'page.html'}" in shown.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "lenses on tiny" in page


def test_another_model_is_refused_and_another_dtype_is_remarked_on(
    lenstrain: Run, folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tiny_model(seed=1).model.save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    wanted = ["read", folder, "--text", TEXT, "--model", other, "--dtype", "float32"]
    assert_one_line_error(lenstrain(*wanted), "made with another model", "--allow-other-model")
    assert "no grade or probability of it is known" in plain(
        lenstrain(*wanted, "--allow-other-model").stdout
    )
    shown = lenstrain(
        "read", folder, "--text", TEXT, "--model", model_folder, "--dtype", "bfloat16"
    )
    assert "note: computed in bfloat16, the pack's activations in float32" in plain(shown.stdout)


def test_text_lenses_are_refused_before_the_model_is_loaded(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    fitted = lenstrain(
        "fit", finished_store, "--f1", 0.8, "--family", "text", "--out", tmp_path / "text"
    )
    assert fitted.exit_code == 0, fitted.stderr
    result = lenstrain("read", tmp_path / "text", "--text", TEXT, "--model", "no-such-model")
    assert_one_line_error(result, "read what a model wrote, not its activations")


@pytest.mark.parametrize("family", ["mlp", "ensemble", "mean-difference"])
def test_packs_of_every_family_are_read(
    lenstrain: Run, finished_store: Path, options: list[Any], tmp_path: Path, family: str
) -> None:
    fitted = lenstrain(
        "fit",
        finished_store,
        "--f1",
        0.8,
        "--family",
        family,
        "--level",
        0,
        "--out",
        tmp_path / "p",
    )
    assert fitted.exit_code == 0, fitted.stderr
    data = strict_json(lenstrain("read", tmp_path / "p", "--text", TEXT, "--json", *options))
    assert len(data["tokens"]) > 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--text", ""], ["the text is empty"]),
        (["no-such-file.txt"], ["no-such-file.txt"]),
        (
            ["--text", "a", "--concept", "ghost"],
            ["no lens for the concept 'ghost'", "expected one of nature"],
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(read: Run, args: list[str], words: list[str]) -> None:
    assert_one_line_error(read(*args), *words)


def test_a_text_and_a_file_together_are_a_usage_error(read: Run, tmp_path: Path) -> None:
    assert read(tmp_path / "t.txt", "--text", "a").exit_code == 2
