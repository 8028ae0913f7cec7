"""Paying for the model once: rows copied from an older store, samples capped and topped up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lenscache.concepts.prompts import KINDS
from lenscache.store.store import open_store
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error
from tests.packs import small_pack


@pytest.fixture
def edited_pack(tmp_path: Path) -> Path:
    pack = small_pack(n_examples=12).to_dict()
    pack["concepts"][2]["examples"] = [*pack["concepts"][2]["examples"], "A beak at the window."]
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(pack))
    return file


def with_pack(options: list[str], pack: Path) -> list[str]:
    return [
        *options[: options.index("--pack")],
        "--pack",
        str(pack),
        *options[options.index("--pack") + 2 :],
    ]


def test_an_edited_pack_is_refused_with_the_way_to_go_on(
    lenscache: Run, finished_store: Path, extract_options: list[str], edited_pack: Path
) -> None:
    result = lenscache("extract", finished_store, *with_pack(extract_options, edited_pack))
    assert result.exit_code == 1
    assert "extract into another store, with --reuse for what stays the same" in " ".join(
        result.stderr.split()
    )


def test_reuse_says_how_many_rows_were_copied(
    lenscache: Run,
    finished_store: Path,
    extract_options: list[str],
    edited_pack: Path,
    tmp_path: Path,
) -> None:
    options = [*with_pack(extract_options, edited_pack), "--reuse", str(finished_store)]
    result = lenscache("extract", tmp_path / "new.zarr", *options)
    assert result.exit_code == 0, result.stderr
    assert "; 1 extracted now" in result.stdout
    assert "copied: " in result.stdout


def test_hungry_concepts_are_topped_up_and_fitted_again(
    lenscache: Run, lenstrain: Run, extract_options: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    assert lenscache("extract", store, *extract_options, "--samples", "8").exit_code == 0
    assert lenstrain("fit", store, "--f1", "1.0", "--out", tmp_path / "few").exit_code == 0
    hungry = tmp_path / "few" / "hungry.json"
    asked = json.loads(hungry.read_text())["concepts"]
    assert asked
    options = [*extract_options, "--top-up", str(hungry), "--samples", "4"]
    report = json.loads(lenscache("extract", store, *options, "--json").stdout)
    assert 0 < report["rows_run"] <= 4 * len(asked)
    assert "layer_1/round_1" in lenscache("info", store).stdout
    result = lenstrain("fit", store, "--out", tmp_path / "more")
    assert result.exit_code == 0, result.stderr
    rounds = json.loads((tmp_path / "more" / "lenses.json").read_text())["provenance"]["rounds"]
    assert "layer_1/round_1" in rounds
    assert json.loads(lenscache("extract", store, *options, "--json").stdout)["rows_run"] == 0
    open_store(store, mode="r+").rounds(1)[1].unmark_block(0)
    for command in (
        ["fit", "--out", tmp_path / "fewer"],
        ["fit", "--f1", "0.9", "--f1", "0.8", "--out", tmp_path / "two"],
    ):
        result = lenstrain(command[0], store, *command[1:])
        assert "left out: layer_1/round_1 is not finished" in " ".join(result.stderr.split())


def test_a_top_up_that_adds_nothing_is_refused_before_the_model_is_loaded(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    store, hungry = tmp_path / "s.zarr", tmp_path / "hungry.json"
    prompts = [*extract_options, "--mode", "prompt"]
    assert lenscache("extract", store, *prompts).exit_code == 0
    no_model = [*prompts, "--model", str(tmp_path / "no model")]
    for concept, told in (("bird", "every prompt of the 1 concepts"), ("ghost", "'ghost'")):
        hungry.write_text(json.dumps({"concepts": [concept]}))
        result = lenscache("extract", store, *no_model, "--top-up", hungry)
        assert_one_line_error(result, told)


def test_further_completions_are_not_called_more_samples(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    store, hungry = tmp_path / "s.zarr", tmp_path / "hungry.json"
    assert lenscache("extract", store, *extract_options, "--level", "1").exit_code == 0
    hungry.write_text(json.dumps({"concepts": ["bird"]}))
    options = [*extract_options, "--samples", "3", "--top-up", hungry]
    result = lenscache("extract", store, *options)
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "3 of the 3 samples to add are further completions of texts" in told
    assert "(--templates)" in told


def test_top_up_with_layers_of_its_own_is_one_line(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache(
        "extract", tmp_path / "s.zarr", *extract_options, "--top-up", "hungry.json", "--level", "1"
    )
    assert result.exit_code == 1
    assert "error: --top-up takes its concepts from the file" in result.stderr


def test_templates_are_extracted_beside_the_other_prompts(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    templates = tmp_path / "t.txt"
    templates.write_text("Tell me all about {name}.\n")
    result = lenscache(
        "extract", tmp_path / "s.zarr", *extract_options, "--level", "0", "--templates", templates
    )
    assert result.exit_code == 0, result.stderr
    samples = open_store(tmp_path / "s.zarr").rounds(0)[0].samples()
    filled = {
        str(text)
        for text, kind in zip(samples.text, samples.kind, strict=True)
        if KINDS[kind] == "template"
    }
    assert filled == {"Tell me all about nature.", "Tell me all about craft."}


def test_cut_prompts_are_reported(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache(
        "extract",
        tmp_path / "s.zarr",
        *extract_options,
        "--level",
        "0",
        "--max-prompt-tokens",
        "12",
    )
    assert result.exit_code == 0, result.stderr
    assert "prompts to their first 12 tokens (samples/n_cut_tokens says which)" in " ".join(
        result.stdout.split()
    )
    same = extract_options[: extract_options.index("--block-rows")]
    plan = json.loads(lenscache("plan", *same, "--max-prompt-tokens", "12", "--json").stdout)
    assert plan["cut_prompts"] > 0
