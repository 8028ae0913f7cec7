from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error, tree
from tests.packs import small_pack

SHARD = "layer_1/round_0/activations/prompt/1/c/0/0"


@pytest.fixture
def damaged_store(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished store with one shard of its first block cut short."""
    store = Path(shutil.copytree(finished_store, tmp_path / "damaged.zarr"))
    (store / SHARD).write_bytes((store / SHARD).read_bytes()[:-7])
    return store


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_verify_says_clean_and_how_much_it_checked(
    lenscache: Run, finished_store: Path, quick: list[str]
) -> None:
    result = lenscache("verify", finished_store, "--jobs", 2, *quick)
    assert result.exit_code == 0, result.stdout
    *rounds, summary = result.stdout.strip().splitlines()
    assert [line.split(",")[0] for line in rounds] == [
        "layer_0/round_0: complete",
        "layer_1/round_0: complete",
    ]
    assert summary.startswith(f"{finished_store}: clean; ")
    assert ("looked at, not decoded" if quick else "arrays decoded") in summary
    assert "objects" in result.stderr


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_verify_names_array_rows_and_file_of_damage_in_one_line_and_exits_1(
    lenscache: Run, damaged_store: Path, quick: list[str]
) -> None:
    before = tree(damaged_store)
    result = lenscache("verify", damaged_store, *quick)
    assert result.exit_code == 1
    lines = result.stdout.strip().splitlines()
    assert lines[0].startswith(
        f"layer_1/round_0/activations/prompt/1, rows 0-31 ({SHARD}): the object has "
    )
    assert lines[0].endswith(
        "run the same `lenscache extract` again, which extracts these rows anew"
    )
    assert "layer_1/round_0: damaged, " in result.stdout
    assert f"{damaged_store}: 1 findings; " in result.stdout
    assert lines[-1] == f"next: lenscache repair {damaged_store}"
    assert "error:" not in result.stderr
    assert tree(damaged_store) == before


def test_verify_prints_json(lenscache: Run, damaged_store: Path) -> None:
    result = lenscache("verify", damaged_store, "--level", 1, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["damaged"], len(report["findings"])) == (True, 1)
    assert (report["findings"][0]["path"], report["findings"][0]["rows"]) == (SHARD, [0, 31])


def test_verify_of_an_unfinished_store_says_how_far_it_is_and_exits_0(
    lenscache: Run, interrupted_store: Path
) -> None:
    result = lenscache("verify", interrupted_store)
    assert result.exit_code == 0, result.stdout
    assert "layer_1/round_0: unfinished, " in result.stdout
    assert "run the same `lenscache extract` again to continue" in result.stdout


def test_verify_compares_with_a_pack(
    lenscache: Run, finished_store: Path, pack_file: Path, tmp_path: Path
) -> None:
    assert lenscache("verify", finished_store, "--pack", pack_file).exit_code == 0
    other = tmp_path / "other.json"
    other.write_text(json.dumps(small_pack(n_examples=13).to_dict()))
    result = lenscache("verify", finished_store, "--pack", other)
    assert result.exit_code == 1
    assert "store (zarr.json): extracted from pack small 1 (" in result.stdout
    assert "give the pack it was extracted from" in result.stdout
    assert lenscache("verify", finished_store, "--pack", other, "--quick").exit_code == 2


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_verify_and_repair_of_something_else_are_one_line(
    lenscache: Run, command: str, tmp_path: Path
) -> None:
    assert_one_line_error(lenscache(command, tmp_path / "s.zarr"), "no store at", "s.zarr")


def test_layer_that_is_not_in_the_store_is_one_line(lenscache: Run, finished_store: Path) -> None:
    assert_one_line_error(
        lenscache("verify", finished_store, "--level", 7), "has no level 7, it has [0, 1]"
    )


def test_repair_unmarks_the_block_and_extract_then_restores_every_byte(
    lenscache: Run, damaged_store: Path, finished_store: Path, extract_options: list[str]
) -> None:
    result = lenscache("repair", damaged_store)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines() == [
        "unmarked: layer_1/round_0 block 0, rows 0-31",
        f"{damaged_store}: 1 blocks unmarked, 32 rows to extract again; "
        "next: lenscache extract with the arguments it was run with before",
    ]
    assert lenscache("verify", damaged_store).exit_code == 0
    assert (
        json.loads(lenscache("extract", damaged_store, *extract_options, "--json").stdout)[
            "rows_run"
        ]
        == 32
    )
    assert tree(damaged_store) == tree(finished_store)


def test_repair_of_a_clean_store_changes_nothing(lenscache: Run, finished_store: Path) -> None:
    before = tree(finished_store)
    result = lenscache("repair", finished_store)
    assert (result.exit_code, result.stdout) == (0, f"{finished_store}: nothing to repair\n")
    assert tree(finished_store) == before


def test_repair_leaves_what_extract_writes_anew_and_says_so(
    lenscache: Run, damaged_store: Path
) -> None:
    (damaged_store / "layer_1/round_0/samples/text/c/0").write_bytes(b"")
    result = lenscache("repair", damaged_store)
    assert result.exit_code == 0
    assert "left to extract: layer_1/round_0/samples/text, rows 0-" in result.stdout
    assert "which writes it anew without extracting a row" in result.stdout
    assert "unmarked: layer_1/round_0 block 0" in result.stdout


def test_repair_refuses_what_only_a_person_can_mend_and_exits_1(
    lenscache: Run, damaged_store: Path
) -> None:
    (damaged_store / "layer_1/round_0/samples/key/zarr.json").write_text("{")
    result = lenscache("repair", damaged_store, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["unmarked"] == ["layer_1/round_0 block 0, rows 0-31"]  # all the same
    (left,) = report["left_to_user"]
    assert left["advice"].startswith("remove layer_1/round_0/samples/key/zarr.json and run ")


def test_a_store_in_which_no_round_is_found_is_not_called_clean(
    lenscache: Run, finished_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(finished_store, tmp_path / "s"))
    for folder in store.glob("layer_*"):
        shutil.rmtree(folder)
    result = lenscache("verify", store)
    said = " ".join(result.stdout.split())
    assert "no round was found" in said
    assert "clean" not in said
    assert result.exit_code == 1
    told = json.loads(lenscache("verify", store, "--json").stdout)
    assert (told["damaged"], told["clean"]) == (False, False)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_cannot_show_end_no_command(tmp_path: Path, encoding: str) -> None:
    pack = small_pack()
    bird = dataclasses.replace(pack["bird"], name="\u96e8 Wörter", definition="\u96e8 fällt.")
    others = [concept for concept in pack.concepts if concept.id != "bird"]
    dataclasses.replace(pack, concepts=(*others, bird)).save(tmp_path / "pack.json")
    command = [sys.executable, "-m", "lenscache", "pack", "show", str(tmp_path / "pack.json")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for options in ([], ["--json"]):
        ran = subprocess.run(
            [*command, *options], capture_output=True, env=environment, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        shown = ran.stdout.decode(encoding)
        if options:
            assert "\u96e8 Wörter" in str(json.loads(shown))
        else:
            assert "\\u96e8" in shown
