from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lenscache.store.store import open_store
from tests.cli.conftest import Run
from tests.packs import small_pack

COMMANDS = ["extract", "plan", "info", "export", "verify", "repair"]


def tree(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def assert_one_line_error(result: Any, *words: str) -> None:
    """Exit code 1, and the last line on stderr is the error, with no traceback."""
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_ends_with_an_example(lenscache: Run, command: str) -> None:
    result = lenscache(command, "--help")
    assert result.exit_code == 0
    assert f"Example: lenscache {command}" in " ".join(result.stdout.split())


def test_extract_reports_rows_size_agreement_and_the_next_command(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options)
    assert result.exit_code == 0, result.stderr
    assert "on levels 0, 1;" in result.stdout
    assert "of the" in result.stdout
    assert "one by one within" in result.stdout
    assert "next: lenstrain fit" in result.stdout
    assert "level 1: " in result.stderr


def test_extract_again_extracts_nothing(
    lenscache: Run, finished_store: Path, extract_options: list[str]
) -> None:
    before = tree(finished_store)
    result = lenscache("extract", finished_store, *extract_options, "--json")
    assert json.loads(result.stdout)["rows_run"] == 0
    assert tree(finished_store) == before


def test_extract_selects_layers_model_layers_and_concepts(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    result = lenscache(
        "extract",
        store,
        *extract_options,
        "--level",
        1,
        "--model-layers",
        "0,2",
        "--limit",
        2,
        "--mode",
        "prompt",
    )
    assert result.exit_code == 0, result.stderr
    opened = open_store(store)
    assert opened.levels() == [1]
    assert opened.header.model_layers == (0, 2)
    assert opened.header.phases == ("prompt",)
    assert opened.rounds()[0].targets == ("bird", "fish")


def test_info_prints_the_same_facts_as_its_json(lenscache: Run, finished_store: Path) -> None:
    facts = json.loads(lenscache("info", finished_store, "--json").stdout)
    text = lenscache("info", finished_store).stdout
    assert facts["rounds"][0]["state"] == "complete"
    for fact in (
        facts["digest"],
        facts["model"]["fingerprint"],
        facts["pack"]["digest"],
        "layer_1/round_0",
    ):
        assert fact in text
    assert f"{facts['stored_bytes'] / facts['raw_bytes']:.2f} of the" in text


def test_info_counts_only_what_is_extracted(lenscache: Run, interrupted_store: Path) -> None:
    entry = json.loads(lenscache("info", interrupted_store, "--json").stdout)["rounds"][0]
    assert entry["state"] == "unfinished"
    assert 0 < entry["complete_blocks"] < entry["blocks"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "not json", ["is not JSON", "line 1"]),
        (lambda d: [d], ["expected a JSON object"]),
        (lambda d: {**d, "concepts": [{"id": "x", "name": "x"}]}, ["'x' lacks the field 'layer'"]),
        (
            lambda d: {**d, "concepts": [*d["concepts"], d["concepts"][0]]},
            ["'nature' occurs twice"],
        ),
        (lambda d: replace_parents(d, "bird", ["ghost"]), ["'bird' names the parent 'ghost'"]),
        (lambda d: replace_parents(d, "nature", ["bird"]), ["form a cycle", "nature", "bird"]),
    ],
)
def test_a_malformed_pack_is_one_line(
    lenscache: Run, model_folder: Path, tmp_path: Path, change: Any, words: list[str]
) -> None:
    changed = change(small_pack().to_dict())
    file = tmp_path / "pack.json"
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    result = lenscache("extract", tmp_path / "s.zarr", "--pack", file, "--model", model_folder)
    assert_one_line_error(result, *words)
    assert not (tmp_path / "s.zarr").exists()


def replace_parents(pack: dict[str, Any], concept: str, parents: list[str]) -> dict[str, Any]:
    concepts = [{**c, "parents": parents} if c["id"] == concept else c for c in pack["concepts"]]
    return {**pack, "concepts": concepts}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "7"], ["level 7 is not in pack", "[0, 1]", "--model-layers"]),
        (["--model-layers", "0-3"], ["model layer 3 does not exist", "0 to 2"]),
        (["--model", "/no/such/model"], ["cannot load the model '/no/such/model'"]),
        (["--pack", "/no/such/pack.json"], ["no concept pack at /no/such/pack.json"]),
        (["--max-new-tokens", "1"], ["max_new_tokens is 1"]),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(
    lenscache: Run, extract_options: list[str], tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, *options)
    assert_one_line_error(result, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "bfloat16"], ["dtype float32", "bfloat16"]),
        (["--pooling", "max"], ["pooling mean", "max"]),
        (["--mode", "prompt"], ["mode combined", "prompt"]),
        (["--seed", "1"], ["seed 0", "asks for 1"]),
        (["--model-layers", "1"], ["model layers 0,1,2", "asks for 1"]),
        (["--limit", "1"], ["limit none", "asks for 1"]),
        (["--store-dtype", "float32"], ["store dtype bfloat16", "float32"]),
    ],
)
def test_a_store_written_with_another_setting_is_refused_and_left_alone(
    lenscache: Run,
    finished_store: Path,
    extract_options: list[str],
    options: list[str],
    words: list[str],
) -> None:
    before = tree(finished_store)
    result = lenscache("extract", finished_store, *extract_options, *options)
    assert_one_line_error(result, "the store was written with", *words)
    assert tree(finished_store) == before


@pytest.mark.parametrize(
    ("value", "words"), [("first", "not a model layer"), ("2-0", "runs backwards")]
)
def test_a_wrong_option_is_a_usage_error(
    lenscache: Run, finished_store: Path, extract_options: list[str], value: str, words: str
) -> None:
    result = lenscache("extract", finished_store, *extract_options, "--model-layers", value)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_info_of_something_else_is_one_line(lenscache: Run, tmp_path: Path, make: Any) -> None:
    make(tmp_path / "s.zarr")
    assert_one_line_error(lenscache("info", tmp_path / "s.zarr"), "s.zarr")


def test_debug_shows_the_traceback() -> None:
    script = "from lens_cli.cache.app import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", script, "info", "nowhere", "--debug"], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "StoreNotFoundError" in ran.stderr


def test_plan_counts_what_extract_then_extracts(
    lenscache: Run, pack_file: Path, model_folder: Path, finished_store: Path, tmp_path: Path
) -> None:
    options = [
        "--pack",
        pack_file,
        "--model",
        model_folder,
        "--dtype",
        "float32",
        "--max-new-tokens",
        4,
        "--background",
        0,
    ]
    planned = json.loads(lenscache("plan", *options, "--json").stdout)
    found = json.loads(lenscache("info", finished_store, "--json").stdout)
    assert planned["prompts"] == sum(entry["rows"] for entry in found["rounds"])
    assert planned["raw_bytes"] == found["raw_bytes"]
    assert planned["prompt_tokens"] == sum(
        int(r.samples().n_prompt_tokens.sum()) for r in open_store(finished_store).rounds()
    )
    assert planned["concepts"] == 7
    assert planned["seconds"] > 0
    text = lenscache("plan", *options, "--level", 1, "--limit", 2).stdout
    assert "2 concepts on level 1: " in text
    assert "3 model layers: about " in text
    assert "prompts/s" in text


def test_plan_refuses_what_extract_would(
    lenscache: Run, pack_file: Path, model_folder: Path
) -> None:
    result = lenscache("plan", "--pack", pack_file, "--model", model_folder, "--model-layers", "7")
    assert_one_line_error(result, "model layer 7 does not exist")


@pytest.mark.parametrize("to", ["safetensors", "npz", "parquet"])
def test_export_writes_what_was_selected_and_says_how_much(
    lenscache: Run, finished_store: Path, to: str, tmp_path: Path
) -> None:
    options = [
        "--to",
        to,
        "--out",
        tmp_path / "out",
        "--level",
        1,
        "--model-layers",
        "0,2",
        "--phase",
        "prompt",
    ]
    result = lenscache("export", finished_store, *options)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["selection"] == {"phases": ["prompt"], "model_layers": [0, 2]}
    (entry,) = manifest["rounds"]
    assert f"out: {entry['rows']} rows as {to}, " in result.stdout
    assert f"in {len(manifest['files']) + 1} files\n" in result.stdout
    assert "left out" not in result.stdout


def test_export_of_an_unfinished_store_says_what_it_leaves_out(
    lenscache: Run, interrupted_store: Path, tmp_path: Path
) -> None:
    result = lenscache("export", interrupted_store, "--to", "npz", "--out", tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out/manifest.json").read_text())["rounds"]
    assert entry["rows_left_out"] > 0
    assert (
        f"; {entry['rows_left_out']} rows that are not extracted yet are left out" in result.stdout
    )


def test_export_over_something_is_refused_in_one_line_and_overwrite_replaces_an_export(
    lenscache: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = ["export", finished_store, "--to", "npz", "--out", tmp_path / "out"]
    first = json.loads(lenscache(*options, "--json").stdout)
    assert_one_line_error(lenscache(*options), "out exists", "--overwrite")
    assert json.loads(lenscache(*options, "--overwrite", "--json").stdout) == first
    (tmp_path / "out/thesis.txt").write_text("all my work")
    assert_one_line_error(lenscache(*options, "--overwrite"), "thesis.txt")


def test_partitions_say_what_is_left_and_info_shows_how_far_they_are(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    first = lenscache("extract", tmp_path / "s", *extract_options, "--partition", "1/2")
    assert first.exit_code == 0, first.stderr
    assert "other partitions have blocks to do in layer_0/round_0" in first.stdout
    shown = lenscache("info", tmp_path / "s", "--partitions", 2).stdout
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith(("1/2", "2/2"))] == [
        "complete",
        "do",
    ]
    second = lenscache("extract", tmp_path / "s", *extract_options, "--partition", "2/2")
    assert "next: lenstrain fit" in second.stdout
    assert (
        lenscache("extract", tmp_path / "s", *extract_options, "--partition", "3/2").exit_code == 1
    )
