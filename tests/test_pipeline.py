"""From a pack to lenses, whole: what must not depend on how it was run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lenscache.extract import ExtractSettings, extract
from lenscache.inference.runner import Row, Runner
from lenscache.store.store import open_store
from lenstrain.data.dataset import open_dataset
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.pack import LensPack
from tests.models import tiny_model
from tests.packs import small_pack


def lenses_at(folder: Path, batch_size: int, store_dtype: str = "float32") -> LensPack:
    settings = ExtractSettings(
        batch_size=batch_size,
        max_new_tokens=5,
        block_rows=32,
        store_dtype=store_dtype,  # type: ignore[arg-type]
    )
    extract(folder / "store.zarr", small_pack(n_examples=14), tiny_model(), settings)
    dataset = open_dataset(folder / "store.zarr")
    return make_lens_pack(fit_lenses(dataset, FitSettings()), dataset, FitSettings())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_lenses_do_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    one, other = lenses_at(tmp_path / "a", 4), lenses_at(tmp_path / "b", batch_size)
    calibrations = [dict(pack.provenance.calibration or {}) for pack in (one, other)]
    assert calibrations[0] == pytest.approx(calibrations[1], abs=1e-3)
    origins = [dataclasses.replace(pack.provenance, calibration=None) for pack in (one, other)]
    assert origins[0] == origins[1]
    for a, b in zip(one, other, strict=True):
        assert (
            a.concept,
            a.model_layer,
            a.grade,
            a.metrics["n_samples"],
            a.metrics["graduated"],
        ) == (
            b.concept,
            b.model_layer,
            b.grade,
            b.metrics["n_samples"],
            b.metrics["graduated"],
        )
        assert [i.n_samples for i in a.trajectory] == [i.n_samples for i in b.trajectory]
        assert np.linalg.norm(a.weight - b.weight) <= 1e-2 * np.linalg.norm(a.weight)
        assert a.metrics["score"] == pytest.approx(b.metrics["score"], abs=1e-2)
    for ours, theirs in zip(
        *(open_store(tmp_path / name / "store.zarr").rounds() for name in "ab"), strict=True
    ):
        for column, other in zip(ours.samples(), theirs.samples(), strict=True):
            np.testing.assert_array_equal(column, other)
        for model_layer in range(3):
            mine, its = (
                r.read("completion", model_layer).astype(np.float64) for r in (ours, theirs)
            )
            error = np.linalg.norm(mine - its, axis=1) / np.linalg.norm(its, axis=1)
            assert np.nanmax(error) <= 1e-4


def test_two_runs_give_the_same_lenses_bit_for_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lenses_at(tmp_path / name, 4, "bfloat16").save(tmp_path / name / "lenses")
    for file in ("lenses.json", "lenses.safetensors", "hungry.json"):
        assert (tmp_path / "a/lenses" / file).read_bytes() == (
            tmp_path / "b/lenses" / file
        ).read_bytes()


def test_a_text_scored_live_gets_the_logit_of_its_stored_activation(tmp_path: Path) -> None:
    """Training, calibration and serving read the same model layer, pooled the same way."""
    pack = lenses_at(tmp_path, 4)
    dataset = open_dataset(tmp_path / "store.zarr", phase="prompt")
    loaded = tiny_model()
    for lens in list(pack)[:3]:
        live = Runner(loaded, [lens.model_layer], mode="prompt").run(
            [Row(loaded.tokenizer(text)["input_ids"]) for text in dataset.texts[:6]]
        )
        alive = np.stack([result.pooled["prompt"][0] for result in live])
        stored = dataset.vectors(lens.model_layer)[dataset.vectors_of(np.arange(6))]
        np.testing.assert_allclose(
            lens.decision_function(alive), lens.decision_function(stored), atol=1e-3
        )
