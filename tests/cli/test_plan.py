"""`lenscache plan` for machines that are not this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.models import CONFIGS
from tests.packs import small_pack


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which there is no more than its configuration."""
    folder = tmp_path_factory.mktemp("models") / "outline"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIGS["llama"]().to_json_string())
    return folder


def test_plan_for_other_devices_needs_no_weights(
    lenscache: Run, pack_file: Path, config_folder: Path
) -> None:
    result = lenscache(
        "plan",
        "--pack",
        pack_file,
        "--model",
        config_folder,
        "--devices",
        16,
        "--device-kind",
        "h100",
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("7 concepts on levels 0, 1: ")
    assert "guessed from their letters" in lines[0]
    assert lines[1].startswith("16 x h100: 16 copies of the model, batches of 4, ")
    assert " device hours with --engine ray or --partition: loading " in lines[2]
    assert " stored, of " in lines[3]
    assert lines[4].startswith("not counted: waiting for an object store")


def test_plan_for_other_devices_counts_what_extract_left(
    lenscache: Run, extract_options: list[str], finished_store: Path
) -> None:
    found = json.loads(lenscache("info", finished_store, "--json").stdout)
    result = lenscache("plan", *extract_options, "--device-kind", "l40s", "--json")
    planned = json.loads(result.stdout)
    assert planned["prompts"] == sum(entry["rows"] for entry in found["rounds"])
    assert planned["blocks"] == sum(entry["blocks"] for entry in found["rounds"])
    assert planned["raw_bytes"] == found["raw_bytes"]
    assert (planned["devices"], planned["are_tokens_guessed"]) == (1, False)
    assert planned["seconds_low"] < planned["seconds"] < planned["seconds_high"]


def test_plan_measures_this_device_if_it_is_meant(
    lenscache: Run, extract_options: list[str]
) -> None:
    result = lenscache("plan", *extract_options, "--devices", 3, "--json")
    assert result.exit_code == 0, result.output
    assert "loading " in result.stderr
    planned = json.loads(result.stdout)
    assert (planned["device_kind"], planned["copies"]) == ("here", 3)


def test_plan_refuses_devices_it_knows_nothing_of(
    lenscache: Run, extract_options: list[str]
) -> None:
    result = lenscache("plan", *extract_options, "--device-kind", "abacus")
    assert_one_line_error(result, "no figures of the device kind 'abacus'", "h100", "here")


def test_plan_refuses_model_layers_that_the_outline_lacks(
    lenscache: Run, pack_file: Path, config_folder: Path
) -> None:
    result = lenscache(
        "plan",
        "--pack",
        pack_file,
        "--model",
        config_folder,
        "--device-kind",
        "a100",
        "--model-layers",
        "7",
    )
    assert_one_line_error(result, "model layer 7 does not exist")


@pytest.fixture
def poor_pack(tmp_path: Path) -> Path:
    """Seven concepts with five examples each: one of them for testing."""
    small_pack(n_examples=5).save(tmp_path / "poor.json")
    return tmp_path / "poor.json"


def test_plan_says_how_many_concepts_have_too_few_texts_for_a_grade(
    lenscache: Run, poor_pack: Path, config_folder: Path
) -> None:
    asked = ("plan", "--model", config_folder, "--device-kind", "a100", "--pack", poor_pack)
    result = lenscache(*asked, "--level", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-6:] == [
        "5 of 5 concepts have too few unnamed texts for a grade: the status of their",
        'lenses is "ungraded" at best. A grade rests on test texts that do not name the',
        "concept, at least 3 of them.",
        "       5  1 unnamed test text of 3: bird, fish, tree, boat, oven",
        "What to do for 5: write at least 12 example sentences for each that do not name",
        "it (splits are 60/20/20: of 12, 3 are test texts).",
    ]
    found = json.loads(lenscache(*asked, "--json").stdout)["unnamed_texts"]
    assert (found["concepts"], found["ungraded_at_best"]) == (7, 7)
    assert found["test_texts"]["1"]["concepts"] == 7


def test_plan_counts_the_prompts_that_are_asked_for(
    lenscache: Run, pack_file: Path, config_folder: Path
) -> None:
    asked = ("plan", "--model", config_folder, "--device-kind", "a100", "--pack", pack_file)
    assert "unnamed" not in lenscache(*asked).stdout  # all is well
    some = lenscache(*asked, "--samples", 6, "--limit", 1)
    assert "2 of 2 concepts have too few unnamed texts" in some.stdout
    assert "What to do for 2: the pack has enough texts, and not all are" in some.stdout
    assert "write at least" not in some.stdout


def test_plan_says_it_after_timing_this_device_too(
    lenscache: Run, poor_pack: Path, model_folder: Path
) -> None:
    asked = ("plan", "--model", model_folder, "--pack", poor_pack, "--dtype", "float32")
    result = lenscache(*asked, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    assert "7 of 7 concepts have too few unnamed texts" in result.stdout
