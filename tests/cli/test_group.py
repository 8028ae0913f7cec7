"""What both commands share: `--version`, and `--layer` as a hidden alias of `--level`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.conftest import Run

RENAMED = "--layer is called --level now; transformer blocks are selected with --model-layers"


@pytest.mark.parametrize("alias", [("--layer", "1"), ("--layer=1",)])
def test_layer_selects_a_level_and_says_so_on_stderr_only(
    lenscache: Run, finished_store: Path, alias: tuple[str, ...]
) -> None:
    expected = lenscache("verify", finished_store, "--quick", "--level", "1", "--json")
    ran = lenscache("verify", finished_store, "--quick", *alias, "--json")
    assert ran.exit_code == expected.exit_code == 0
    (checked,) = json.loads(ran.stdout)["rounds"]
    assert json.loads(expected.stdout)["rounds"] == [checked]
    assert ran.stderr.count(RENAMED) == 1
    assert RENAMED not in expected.stderr


def test_the_alias_is_one_of_lenstrain_too(lenstrain: Run, finished_store: Path) -> None:
    expected = lenstrain("audit", finished_store, "--level", "0", "--level", "1", "--json")
    ran = lenstrain("audit", finished_store, "--layer", "0", "--layer=1", "--json")
    assert (ran.exit_code, ran.stdout) == (0, expected.stdout), ran.stderr
    assert ran.stderr.count(RENAMED) == 1


def test_a_level_that_is_no_number_is_told_of_the_new_name(
    lenscache: Run, finished_store: Path
) -> None:
    ran = lenscache("verify", finished_store, "--layer", "x")
    assert ran.exit_code == 2
    assert "--level" in ran.stderr


@pytest.mark.parametrize("option", [("--layers", "1"), ("--layers=1",)])
@pytest.mark.parametrize("command", ["lenscache", "lenstrain"])
def test_layers_could_mean_either_and_is_refused(
    request: pytest.FixtureRequest, command: str, option: tuple[str, ...]
) -> None:
    subcommand = {"lenscache": "verify", "lenstrain": "audit"}[command]
    ran = request.getfixturevalue(command)(subcommand, "store.zarr", *option)
    assert ran.exit_code == 2
    assert not ran.stdout
    assert "--level" in ran.stderr
    assert "--model-layers" in ran.stderr


@pytest.mark.parametrize("argument", ["--layer", "--layers"])
def test_two_dashes_end_the_options(lenscache: Run, argument: str) -> None:
    ran = lenscache("info", "--", argument)
    assert ran.exit_code == 1  # a store of this name is looked for, and is not there
    assert argument in ran.stderr
    assert RENAMED not in ran.stderr


@pytest.mark.parametrize(
    ("command", "subcommand"),
    [("lenscache", "verify"), ("lenscache", "extract"), ("lenstrain", "fit")],
)
def test_the_alias_is_not_in_the_help(
    request: pytest.FixtureRequest, command: str, subcommand: str
) -> None:
    ran = request.getfixturevalue(command)(subcommand, "--help")
    assert ran.exit_code == 0
    assert "--level" in ran.stdout
    assert "--layer" not in ran.stdout


@pytest.mark.parametrize("command", ["lenscache", "lenstrain"])
def test_the_version_is_shown_with_the_name(command: str) -> None:
    for called in ([str(Path(sys.executable).with_name(command))], [sys.executable, "-m", command]):
        ran = subprocess.run([*called, "--version"], capture_output=True, text=True, check=True)
        assert ran.stdout == f"{command} {version('lenscache')}\n"
        assert not ran.stderr


@pytest.mark.parametrize("command", ["lenscache", "lenstrain"])
def test_the_help_of_a_subcommand_breaks_no_line_early(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Line breaks of a docstring are no line breaks of its help."""
    monkeypatch.setenv("COLUMNS", "200")
    run = request.getfixturevalue(command)
    subcommand, words = {
        "lenscache": ("plan", "estimate for other machines: time and bytes"),
        "lenstrain": ("fit", "a pack for each combination, in a folder of its own, and a table"),
    }[command]
    assert words in run(subcommand, "--help").stdout
