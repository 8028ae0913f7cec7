"""Texts of no concept in a fit: half of them teach what no concept is, half are judged by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.plan import SPLITS, plan_background
from lenscache.errors import StoreIncompleteError
from lenscache.store.layout import BACKGROUND
from lenscache.store.store import Store
from lenstrain.data.background import Background
from lenstrain.data.dataset import LensDataset, extraction_state
from lenstrain.data.features import Features
from lenstrain.errors import SettingsError
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.train import train
from lenstrain.metrics.score import rank_positives
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import (
    SIGNAL_LAYER,
    make_planted_store,
    plant_round,
    planted_pack,
)

TEXTS = tuple(f"Line {i} of a paper, page {i * i}." for i in range(80))
DISCRIMINANT = FitSettings(family="discriminant", model_layers=(SIGNAL_LAYER,))
TEST = SPLITS.index("test")


def make_store(path: Path, texts: tuple[str, ...] = TEXTS, **options: Any) -> Store:
    """A planted store with texts that express nothing."""
    store = make_planted_store(path)
    plant_round(store, BACKGROUND, 0, plan_background(planted_pack(), texts), **options)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("background") / "s")


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture(scope="module")
def pack(dataset: LensDataset) -> LensPack:
    return train(dataset, DISCRIMINANT)


def weights_of(pack: LensPack) -> dict[str, NDArray[Any]]:
    return {lens.concept: lens.weights.weight for lens in pack}  # type: ignore[union-attr]


def held_out(dataset: LensDataset, model_layer: int = SIGNAL_LAYER) -> NDArray[np.float32]:
    source = dataset.background
    assert source is not None
    return source.vectors(model_layer)[source.is_held_out]


# --- what is read --------------------------------------------------------------------------------


def test_its_rows_are_no_rows_of_the_dataset(dataset: LensDataset, planted: LensDataset) -> None:
    assert dataset.texts == planted.texts
    assert dataset.concepts == planted.concepts
    assert dataset.rounds == planted.rounds
    np.testing.assert_array_equal(dataset.vectors(SIGNAL_LAYER), planted.vectors(SIGNAL_LAYER))


@pytest.mark.parametrize("phase", ["both", "prompt", "completion"])
def test_there_is_a_vector_for_each_phase_that_is_read(store: Store, phase: Any) -> None:
    source = LensDataset(store, phase=phase).background
    assert source is not None
    n = 2 if phase == "both" else 1
    assert source.n_texts == len(TEXTS) // 2
    assert source.is_held_out.sum() == n * len(TEXTS) // 2
    assert source.vectors(0).shape == (n * len(TEXTS), 48)


def test_features_are_those_of_training_rows_standardised_alike(dataset: LensDataset) -> None:
    for unit_norm in (False, True):
        features = Features.of_model_layers(dataset, (0, 1), unit_norm=unit_norm)
        assert features.standardizer is not None
        assert features.natural is not None
        raw = np.hstack([held_out(dataset, number) for number in (0, 1)])
        expected = features.standardizer.transform(raw)
        np.testing.assert_allclose(features.natural.numpy(), expected, atol=1e-6)


def test_an_unfinished_background_ends_a_fit_and_not_one_that_follows(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", n_blocks=1, verified=False)
    with pytest.raises(StoreIncompleteError, match=r"background/round_0 is not finished"):
        LensDataset(store)
    assert LensDataset(store, partial=True).background is None
    assert not extraction_state(tmp_path / "s").complete


# --- what is learned -----------------------------------------------------------------------------


def test_the_mean_negative_is_a_quarter_background(dataset: LensDataset) -> None:
    """The same means as without, moved by the weight; the covariance is that of the concepts."""
    fits = {
        weight: fit_lenses(dataset, dataclasses.replace(DISCRIMINANT, background_weight=weight))
        for weight in (None, 0.0, 0.25, 0.5)
    }
    of = {
        weight: np.array([lens.weights.weight for lens in fit.lenses])  # type: ignore[union-attr]
        for weight, fit in fits.items()
    }
    np.testing.assert_array_equal(of[None], of[0.25])  # the examples of these concepts name none
    assert not np.allclose(of[0.0], of[0.25])
    assert not np.allclose(of[0.5], of[0.25])


def test_a_store_without_one_has_the_lenses_that_it_had(planted: LensDataset) -> None:
    plain, heavy = (
        train(planted, dataclasses.replace(DISCRIMINANT, background_weight=weight))
        for weight in (None, 0.5)
    )
    for one, two in zip(plain, heavy, strict=True):
        np.testing.assert_array_equal(one.weights.weight, two.weights.weight)  # type: ignore[union-attr]
        assert "natural_score" not in one.metrics
    assert "background" not in plain.provenance


def test_concepts_that_training_texts_all_name_take_a_smaller_share(
    dataset: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LensDataset, "unnamed", lambda *args: np.zeros(len(args[2]), np.bool_))
    named = fit_lenses(LensDataset(dataset.store), DISCRIMINANT)
    monkeypatch.undo()
    small = fit_lenses(dataset, dataclasses.replace(DISCRIMINANT, background_weight=0.1))
    for one, two in zip(named.lenses, small.lenses, strict=True):
        np.testing.assert_array_equal(one.weights.weight, two.weights.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "text"])
def test_rows_to_judge_by_are_in_no_fit(
    dataset: LensDataset, family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is planted in them, means, covariance, weights and thresholds stay."""
    settings = FitSettings(family=family, n_model_layers=2 if family == "ensemble" else None)
    plain = fit_lenses(dataset, settings)
    read = Background.vectors

    def changed(self: Background, model_layer: int) -> NDArray[np.float32]:
        X = read(self, model_layer)
        X[self.is_held_out] += 100.0
        return X

    monkeypatch.setattr(Background, "vectors", changed)
    planted = fit_lenses(LensDataset(dataset.store), settings)
    for one, two in zip(plain.lenses, planted.lenses, strict=True):
        X = np.random.default_rng(0).normal(size=(5, 48 * len(one.model_layers)))
        before, after = (each.weights.decision_function(X) for each in (one, two))
        np.testing.assert_array_equal(before, after)
        assert one.threshold == two.threshold
        assert one.score == two.score


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_pack_is_the_same_on_any_number_of_jobs(
    dataset: LensDataset, pack: LensPack, jobs: int
) -> None:
    again = train(dataset, DISCRIMINANT, jobs=jobs)
    for concept, weight in weights_of(again).items():
        np.testing.assert_array_equal(weight, weights_of(pack)[concept])


# --- what is reported ----------------------------------------------------------------------------


def test_natural_figures_are_those_of_the_pack_on_rows_to_judge_by(
    dataset: LensDataset, pack: LensPack
) -> None:
    natural = pack.score(held_out(dataset), model_layer=SIGNAL_LAYER)
    X = dataset.vectors(SIGNAL_LAYER)
    for number, lens in enumerate(pack):
        found = lens.metrics["natural_false_positive_rate"]
        assert found == pytest.approx((natural[:, number] >= lens.threshold).mean(), abs=1e-9)
        samples = dataset.positives(lens.concept)
        mine = (dataset.split[samples] == TEST) & dataset.unnamed(lens.concept, samples)
        vectors = dataset.vectors_of(samples[mine])
        own = pack.score(X[vectors], model_layer=SIGNAL_LAYER)[:, number]
        ranked = rank_positives(
            own.astype(np.float64),
            dataset.text_number[dataset.vector_sample[vectors]],
            natural[:, number].astype(np.float64),
            len(natural),
            len(TEXTS) // 2,
        )
        assert lens.metrics["natural_score"] == pytest.approx(ranked.score(), abs=1e-4)
    assert pack.provenance["background"] == {"texts_to_judge_by": len(TEXTS) // 2}


def test_natural_figures_survive_saving(pack: LensPack, tmp_path: Path) -> None:
    pack.save(tmp_path / "pack")
    loaded = LensPack.load(tmp_path / "pack")
    summary = loaded.summary()
    assert summary["mean_natural_score"] == pytest.approx(pack.summary()["mean_natural_score"])
    assert 0 <= summary["mean_natural_false_positive_rate"] < 0.2


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"background_weight is 1.0, expected 0 or more"):
        FitSettings(background_weight=1.0)


def test_planted_concepts_are_told_from_it(pack: LensPack) -> None:
    assert np.mean([lens.metrics["natural_score"] for lens in pack]) > 0.9
