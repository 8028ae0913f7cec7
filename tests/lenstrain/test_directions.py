from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from lenstrain.data.dataset import TRAIN, LensDataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.directions import steering_directions
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FamilyName, FitSettings
from tests.lenstrain.conftest import SIGNAL_LAYER, direction_of, make_planted_store


def directions(
    dataset: LensDataset, features: Features | None = None
) -> dict[str, tuple[NDArray[Any], float]]:
    settings = FitSettings()
    tasks = [
        TaskRows(dataset, draw_task(dataset, c, settings.n_negatives), settings)
        for c in dataset.concepts
    ]
    features = features or Features.of_model_layers(dataset, (SIGNAL_LAYER,))
    found = steering_directions(features, tasks, (SIGNAL_LAYER,))
    return {
        task.task.concept: (each.vector, each.deviation)
        for task, (each,) in zip(tasks, found, strict=True)
    }


def test_a_planted_direction_is_found(planted: LensDataset) -> None:
    for concept, (vector, _) in directions(planted).items():
        assert vector @ direction_of(concept) > 0.9, concept
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_its_deviation_is_that_of_training_vectors_along_it(planted: LensDataset) -> None:
    X = planted.vectors(SIGNAL_LAYER, planted.split_place)[planted.split_slices[TRAIN]]
    for vector, deviation in directions(planted).values():
        assert deviation == pytest.approx(float((X @ vector).std()), rel=1e-3)


def test_no_held_out_vector_has_a_say(planted: LensDataset) -> None:
    features = Features.of_model_layers(planted, (SIGNAL_LAYER,))
    before = directions(planted, features)
    train = planted.split_slices[TRAIN]
    for rows in (slice(0, train.start), slice(train.stop, None)):
        features.Z[rows] = 1e6
    for concept, (vector, deviation) in directions(planted, features).items():
        np.testing.assert_array_equal(vector, before[concept][0])
        assert deviation == before[concept][1]


@pytest.mark.parametrize(
    "family", sorted(name for name, family in FAMILIES.items() if family.n_model_layers)
)
def test_a_saved_pack_keeps_one_for_each_model_layer(tmp_path: Path, family: FamilyName) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", n_layers=3, model_layers=(0, 1, 2)))
    settings = FitSettings(family=family, max_iterations=1)
    pack = make_lens_pack(fit_lenses(dataset, settings), dataset, settings)
    pack.save(tmp_path / "lenses")
    for lens, again in zip(pack, LensPack.load(tmp_path / "lenses"), strict=True):
        assert tuple(each.model_layer for each in again.directions) == lens.model_layers
        for ours, its in zip(lens.directions, again.directions, strict=True):
            assert its.deviation == ours.deviation
            np.testing.assert_allclose(its.vector, ours.vector, atol=1e-3)
            if its.model_layer == SIGNAL_LAYER:
                assert its.vector @ direction_of(lens.concept) > 0.7


def test_lenses_that_read_text_have_none(planted: LensDataset) -> None:
    result = fit_lenses(planted, FitSettings(family="text", max_iterations=1))
    assert all(lens.directions == () for lens in result.lenses)


def test_a_pack_of_before_there_were_directions_still_loads(
    planted: LensDataset, tmp_path: Path
) -> None:
    settings = FitSettings(max_iterations=1)
    make_lens_pack(fit_lenses(planted, settings), planted, settings).save(tmp_path / "lenses")
    file = tmp_path / "lenses" / "lenses.safetensors"
    tensors = safetensors.numpy.load_file(file)
    del tensors["direction"]
    file.write_bytes(safetensors.numpy.save(tensors))
    data = json.loads((tmp_path / "lenses" / "lenses.json").read_text())
    for lens in data["lenses"]:
        del lens["deviations"]
    (tmp_path / "lenses" / "lenses.json").write_text(json.dumps(data))
    assert all(lens.directions == () for lens in LensPack.load(tmp_path / "lenses"))
