"""Lenses fitted on the calibration split as well: what is chosen, is chosen by other folds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lenscache.store.store import Store
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.errors import LeakageError
from lenstrain.fit.adaptive import FitResult, fit_lenses
from lenstrain.fit.refit import refit_lenses
from lenstrain.fit.train import train
from lenstrain.settings import FamilyName, FitSettings
from tests.lenstrain.conftest import Planting, make_planted_store
from tests.lenstrain.test_adaptive import ChangedDataset, replace, weights_of

FAMILIES: tuple[FamilyName, ...] = ("linear", "discriminant")


def settings_of(family: FamilyName, **changes: Any) -> FitSettings:
    return FitSettings(family=family, initial_samples=200, model_layers=(1,), **changes)


def refit(dataset: LensDataset, settings: FitSettings, jobs: int | None = None) -> FitResult:
    return refit_lenses(dataset, settings, fit_lenses(dataset, settings), jobs=jobs)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Directions faint enough for lenses to err."""
    planting = Planting(strength=2.5, completion_strength=2.0)
    return make_planted_store(tmp_path_factory.mktemp("refit") / "s", planting=planting)


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.mark.parametrize("family", FAMILIES)
def test_test_activations_reach_nothing_but_what_is_reported(
    store: Store, dataset: LensDataset, family: FamilyName
) -> None:
    settings = settings_of(family)
    before, after = (
        refit(data, settings) for data in (dataset, ChangedDataset(store, replace, TEST))
    )
    assert weights_of(before) == weights_of(after)
    assert [(a.threshold, a.calibrator) for a in before.lenses] == [
        (b.threshold, b.calibrator) for b in after.lenses
    ]
    assert [a.score for a in before.lenses] != [b.score for b in after.lenses]


class Reversed(LensDataset):
    """The activations of some samples are in the wrong order, in whatever split these are."""

    changed: NDArray[np.intp]

    def vectors(
        self, model_layer: int, place: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        X = super().vectors(model_layer, place)
        sample = self.vector_sample if place is None else self.vector_sample[np.argsort(place)]
        rows = np.isin(sample, self.changed)
        X[rows] = X[rows][::-1]
        return X


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_activations_reach_the_weights(
    store: Store, dataset: LensDataset, family: FamilyName
) -> None:
    settings, changed = settings_of(family), Reversed(store)
    changed.changed = np.flatnonzero(changed.split == CALIBRATION)
    first = fit_lenses(dataset, settings)
    before, after = (refit_lenses(data, settings, first) for data in (dataset, changed))
    assert weights_of(before) != weights_of(after)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_row_is_judged_by_a_lens_that_was_fitted_on_it(
    tmp_path: Path, family: FamilyName
) -> None:
    """Activations that know nothing: a lens tells rows apart that it was fitted on, no others."""
    blind = Planting(strength=0.0, completion_strength=0.0)
    data = LensDataset(make_planted_store(tmp_path / "s", planting=blind))
    found = refit(data, settings_of(family, C=1.0 if family == "linear" else None))
    own = [lens.calibration_rows for lens in found.lenses]
    cross_fitted = [roc_auc_score(rows.y, rows.signals) for rows in own]
    assert abs(np.mean(cross_fitted) - 0.5) < 0.1
    lens = found.lenses[0]
    rows = data.positives(lens.concept)
    mark = np.isin(data.vector_sample, rows)
    learned = np.isin(data.split[data.vector_sample], (TRAIN, CALIBRATION))
    logits = lens.weights.decision_function(data.vectors(1))
    assert roc_auc_score(mark[learned], logits[learned]) > 0.8


def test_lenses_are_judged_on_all_texts_of_both_splits(dataset: LensDataset) -> None:
    for lens in refit(dataset, settings_of("linear")).lenses:
        rows = dataset.positives(lens.concept)
        both = rows[dataset.split[rows] != TEST]
        texts = lens.calibration_rows.texts[lens.calibration_rows.y]
        assert set(texts.tolist()) == set(dataset.text_number[both].tolist())


def test_what_was_chosen_before_stays(dataset: LensDataset) -> None:
    settings = settings_of("linear")
    before = fit_lenses(dataset, settings)
    after = refit_lenses(dataset, settings, before)
    for old, new in zip(before.lenses, after.lenses, strict=True):
        for name in (
            "concept",
            "model_layers",
            "trajectory",
            "graduated",
            "controls",
            "directions",
        ):
            assert getattr(old, name) == getattr(new, name), name
        assert new.metrics.C == old.metrics.C
        assert new.ranking.n_positive == old.ranking.n_positive
    assert weights_of(before) != weights_of(after)


def test_refined_lenses_stay_as_they_are(dataset: LensDataset) -> None:
    settings = settings_of("linear")
    result = fit_lenses(dataset, settings)
    first = result.lenses[0]
    first.refined = ("other",)
    after = refit_lenses(dataset, settings, result)
    assert after.lenses[0] is first
    assert after.lenses[1] is not result.lenses[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_lenses_are_the_same_bits_on_any_number_of_jobs(
    dataset: LensDataset, family: FamilyName
) -> None:
    one, three = (refit(dataset, settings_of(family), jobs=jobs) for jobs in (1, 3))
    assert weights_of(one) == weights_of(three)
    assert [lens.threshold for lens in one.lenses] == [lens.threshold for lens in three.lenses]


def test_a_threshold_for_a_false_positive_rate_is_chosen_on_rows_of_other_folds(
    dataset: LensDataset,
) -> None:
    lenses = refit(dataset, settings_of("linear", fpr=0.1)).lenses
    assert 0.03 < np.mean([lens.cut.metrics.false_positive_rate for lens in lenses]) < 0.2


def test_a_planted_leak_is_caught(dataset: LensDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("linear")
    result = fit_lenses(dataset, settings)

    def leaky(dataset: LensDataset, concept: str, n_negatives: Any) -> Task:
        task = draw_task(dataset, concept, n_negatives)
        train = np.concatenate([task.positives[TEST][:1], task.positives[TRAIN]])
        return dataclasses.replace(task, positives=(train, *task.positives[1:]))

    def kept(taken: Any, split: Any) -> Any:
        return taken

    monkeypatch.setattr("lenstrain.fit.refit.draw_task", leaky)
    monkeypatch.setattr("lenstrain.fit.refit._of_split", kept)
    with pytest.raises(LeakageError):
        refit_lenses(dataset, settings, result)


def test_positives_that_are_not_taken_up_are_no_negatives(dataset: LensDataset) -> None:
    task = draw_task(dataset, dataset.concepts[0], FitSettings().n_negatives)
    few = dataclasses.replace(task, positives=(task.positives[TRAIN][:2], *task.positives[1:]))
    settings = FitSettings()
    apart = [TaskRows(dataset, its, settings).apart.tolist() for its in (task, few)]
    assert apart[0] == apart[1]


def test_a_pack_says_that_its_lenses_were_refitted(dataset: LensDataset) -> None:
    settings = settings_of("linear", refit=True)
    pack = train(dataset, settings, concepts=dataset.concepts[:3])
    assert pack.provenance.settings["refit"] is True
    assert (
        train(dataset, settings_of("linear"), concepts=dataset.concepts[:3]).provenance.settings[
            "refit"
        ]
        is False
    )
