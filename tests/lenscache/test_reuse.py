"""Rows that another store holds are copied; the model runs for the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import StoreMismatchError
from lenscache.extract import ExtractProgress, ExtractReport, ExtractSettings, extract
from lenscache.store.round import Round
from lenscache.store.store import open_store
from tests.lenscache.conftest import PACK, SETTINGS
from tests.models import tiny_model
from tests.packs import small_pack

FP32 = replace(SETTINGS, store_dtype="float32")


def run(
    path: Path, pack: ConceptPack, *reuse: Path, settings: ExtractSettings = FP32, **options: Any
) -> ExtractReport:
    stores = [open_store(old) for old in reuse]
    return extract(path, pack, tiny_model(), settings, levels=[1], reuse=stores, **options)


def the_round(path: Path) -> Round:
    return open_store(path).rounds(1)[0]


def edited(pack: ConceptPack) -> ConceptPack:
    """One concept's definition changes, one gets two examples more, one is dropped."""
    concepts = {concept.id: concept for concept in pack.concepts}
    bird = concepts["bird"]
    concepts["bird"] = replace(
        bird, examples=(*bird.examples, "A beak at the window.", "Feathers on the path.")
    )
    concepts["fish"] = replace(concepts["fish"], definition="What swims.")
    del concepts["oven"]
    return replace(pack, concepts=tuple(concepts.values()))


def by_key(target: Round) -> dict[bytes, dict[str, Any]]:
    samples = target.samples()
    activations = {(p, m): target.read(p, m) for p in ("prompt", "completion") for m in (0, 2)}
    return {
        bytes(key): {
            "completion": str(samples.completion[i]),
            "n": int(samples.n_completion_tokens[i]),
            **{str(place): values[i].tobytes() for place, values in activations.items()},
        }
        for i, key in enumerate(samples.key)
    }


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "s.zarr"
    run(path, PACK)
    return path


def test_an_edited_pack_runs_the_model_for_what_changed_alone(old: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "new.zarr", edited(PACK), old)
    before, after = by_key(the_round(old)), by_key(the_round(tmp_path / "new.zarr"))
    shared = before.keys() & after.keys()
    assert report.rows_reused == len(shared) > 20
    assert report.rows_run == len(after) - len(shared) == 3  # two examples and a definition
    assert report.rows == report.rows_run + report.rows_reused


def test_copied_rows_are_the_old_ones_bit_for_bit(old: Path, tmp_path: Path) -> None:
    run(tmp_path / "new.zarr", edited(PACK), old)
    before, after = by_key(the_round(old)), by_key(the_round(tmp_path / "new.zarr"))
    for key in before.keys() & after.keys():
        assert after[key] == before[key]


def test_a_store_with_copied_rows_equals_one_extracted_from_nothing(
    old: Path, tmp_path: Path
) -> None:
    run(tmp_path / "new.zarr", edited(PACK), old)
    run(tmp_path / "fresh.zarr", edited(PACK))
    new, fresh = the_round(tmp_path / "new.zarr"), the_round(tmp_path / "fresh.zarr")
    assert list(new.samples().completion) == list(fresh.samples().completion)
    for phase in ("prompt", "completion"):
        for model_layer in (0, 2):
            np.testing.assert_allclose(
                new.read(phase, model_layer), fresh.read(phase, model_layer), rtol=1e-3, atol=1e-5
            )


def test_the_same_pack_is_copied_whole_into_other_blocks_and_fewer_model_layers(
    old: Path, tmp_path: Path
) -> None:
    settings = replace(FP32, block_rows=5, model_layers=(2,))
    report = run(tmp_path / "new.zarr", PACK, old, settings=settings)
    assert report.rows_run == 0
    assert the_round(tmp_path / "new.zarr").is_complete
    np.testing.assert_array_equal(
        the_round(tmp_path / "new.zarr").read("prompt", 2), the_round(old).read("prompt", 2)
    )


def test_a_store_without_a_wanted_model_layer_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StoreMismatchError, match="model layers 0,2, without 1, this run asks for 0,1"
    ):
        run(tmp_path / "new.zarr", PACK, old, settings=replace(FP32, model_layers=(0, 1)))
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize(
    "change", [{"pooling": "max"}, {"max_new_tokens": 4}, {"store_dtype": "bfloat16"}, {"seed": 1}]
)
def test_rows_of_another_setting_are_not_copied(
    change: dict[str, Any], old: Path, tmp_path: Path
) -> None:
    assert run(tmp_path / "new.zarr", PACK, old, settings=replace(FP32, **change)).rows_reused == 0


def test_rows_of_a_damaged_block_are_extracted_and_it_is_said(tmp_path: Path) -> None:
    run(tmp_path / "old.zarr", PACK)
    target = the_round(tmp_path / "old.zarr")
    chunk = tmp_path / "old.zarr" / target.name / "activations/prompt/0/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    messages: list[ExtractProgress] = []
    report = run(tmp_path / "new.zarr", PACK, tmp_path / "old.zarr", on_progress=messages.append)
    rows = target.rows(1)
    assert report.rows_run == rows.stop - rows.start
    assert [
        m.message
        for m in messages
        if f"rows {rows.start}-{rows.stop - 1} are not copied" in m.message
    ]
    assert the_round(tmp_path / "new.zarr").is_complete


def test_rows_of_blocks_that_are_not_marked_are_not_copied(old: Path, tmp_path: Path) -> None:
    run(tmp_path / "old.zarr", PACK)
    the_round_rw = open_store(tmp_path / "old.zarr", mode="r+").rounds(1)[0]
    the_round_rw.unmark_block(0)
    report = run(tmp_path / "new.zarr", PACK, tmp_path / "old.zarr")
    assert report.rows_run == the_round_rw.rows(0).stop


def test_an_interrupted_copy_goes_on_and_gives_the_same_bytes(old: Path, tmp_path: Path) -> None:
    pack = edited(small_pack(n_examples=3))

    def stop(progress: ExtractProgress) -> None:
        if progress.rows_done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "new.zarr", pack, old, on_progress=stop)
    run(tmp_path / "new.zarr", pack, old)
    run(tmp_path / "whole.zarr", pack, old)
    assert by_key(the_round(tmp_path / "new.zarr")) == by_key(the_round(tmp_path / "whole.zarr"))
