"""Lenses fitted again with their confusers: by the calibration split alone, and on training samples
alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.store.store import Store
from lenstrain.compare.rivals import LensCheck, check_pack
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.fit import refine
from lenstrain.fit.adaptive import FitResult, fit_again, fit_lenses
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.refine import refine_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.fit.train import train
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import LEAVES, Planting, make_planted_store
from tests.lenstrain.test_adaptive import ChangedDataset, replace, weights_of

SETTINGS = FitSettings(initial_samples=200, model_layers=(1,), C=0.1, negatives_per_positive=2.0)
"""So that there are negatives left to add."""
CONFUSED = LensCheck(3.0, 0.0, 8, 0.0, 0.0, 0.0, ["boat", "oven"], 0.1)
"""A lens that others outrank on all of its samples."""
LEAF_NAMES = [leaf for leaves in LEAVES for leaf in leaves]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Directions faint enough for lenses to be confused."""
    planting = Planting(strength=2.5, completion_strength=2.0)
    return make_planted_store(tmp_path_factory.mktemp("refine") / "s", planting=planting)


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture(scope="module")
def result(dataset: LensDataset) -> FitResult:
    return fit_lenses(dataset, SETTINGS)


@pytest.fixture(scope="module")
def checks() -> dict[str, LensCheck]:
    """Every leaf is confused with three others."""
    found = {}
    for number, leaf in enumerate(LEAF_NAMES):
        confusers = [LEAF_NAMES[(number + step) % 9] for step in (1, 4, 7)]
        found[leaf] = CONFUSED._replace(confusers=confusers)
    return found


class Refits:
    """Notes what is fitted again, and what came of it."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskRows] = {}
        self.lenses: dict[str, FittedLens] = {}

    def __call__(
        self, dataset: LensDataset, tasks: Sequence[TaskRows], *args: Any, **options: Any
    ) -> Any:
        self.tasks |= {rows.task.concept: rows for rows in tasks}
        found = fit_again(dataset, tasks, *args, **options)
        self.lenses |= {lens.concept: lens for lens in found}
        return found


@pytest.fixture
def refits(monkeypatch: pytest.MonkeyPatch) -> Refits:
    seen = Refits()
    monkeypatch.setattr(refine, "fit_again", seen)
    return seen


def decisions(result: FitResult) -> list[tuple[Any, ...]]:
    return [(lens.concept, lens.refined, lens.threshold, lens.calibrator) for lens in result.lenses]


def test_refined_lenses_do_not_depend_on_the_test_split(
    store: Store, dataset: LensDataset, result: FitResult, checks: Mapping[str, LensCheck]
) -> None:
    blind = ChangedDataset(store, replace, TEST)
    refined = refine_lenses(dataset, SETTINGS, result, checks)
    without = refine_lenses(blind, SETTINGS, fit_lenses(blind, SETTINGS), checks)
    assert decisions(refined) == decisions(without)
    assert weights_of(refined) == weights_of(without)
    assert weights_of(refined) != weights_of(result)
    assert [lens.test_f1 for lens in refined.lenses] != [lens.test_f1 for lens in without.lenses]


def test_confusers_are_found_without_the_test_split(
    store: Store, dataset: LensDataset, result: FitResult
) -> None:
    blind = ChangedDataset(store, replace, TEST)
    pack = make_lens_pack(result, dataset, SETTINGS)
    seen = check_pack(pack, dataset, CALIBRATION)
    np.testing.assert_equal(check_pack(pack, blind, CALIBRATION), seen)
    other = ChangedDataset(store, replace, CALIBRATION)
    assert check_pack(pack, other, CALIBRATION) != seen


def test_refit_is_kept_only_where_the_calibration_score_improves(
    dataset: LensDataset, result: FitResult, checks: Mapping[str, LensCheck], refits: Refits
) -> None:
    refined = refine_lenses(dataset, SETTINGS, result, checks)
    assert set(refits.lenses) == set(LEAF_NAMES)
    kept = set()
    for old, new in zip(result.lenses, refined.lenses, strict=True):
        again = refits.lenses.get(old.concept)
        if again is not None and again.calibration_score > old.calibration_score:
            kept.add(old.concept)
            assert new.weights is again.weights
            assert new.refined == tuple(checks[old.concept].confusers)
        else:
            assert new is old
            assert new.refined == ()
    assert 0 < len(kept) < len(LEAF_NAMES)


def test_extra_negatives_are_training_samples_of_the_confusers_and_nothing_else_changes(
    dataset: LensDataset, result: FitResult, checks: Mapping[str, LensCheck], refits: Refits
) -> None:
    refine_lenses(dataset, SETTINGS, result, checks)
    for concept, rows in refits.tasks.items():
        before = draw_task(dataset, concept, SETTINGS.n_negatives)
        n = len(before.positives[TRAIN])
        used = before.negatives[TRAIN][: SETTINGS.n_negatives(n)]
        negatives = rows.task.negatives[TRAIN]
        np.testing.assert_array_equal(negatives[: len(used)], used)
        extra = negatives[len(used) :]
        assert 0 < len(extra) <= 100
        assert set(dataset.split[extra]) == {TRAIN}
        of_confusers = np.concatenate(
            [dataset.positives(confuser) for confuser in checks[concept].confusers]
        )
        assert set(extra.tolist()) <= set(of_confusers.tolist())
        assert not set(extra.tolist()) & set(
            np.concatenate([before.related, *before.positives]).tolist()
        )
        assert len(set(negatives.tolist())) == len(negatives)
        assert set(rows.training.samples[~rows.training.targets].tolist()) == set(
            negatives.tolist()
        )
        assert set(rows.training.samples[rows.training.targets].tolist()) == set(
            before.positives[TRAIN].tolist()
        )
        for split in (CALIBRATION, TEST):
            np.testing.assert_array_equal(rows.task.positives[split], before.positives[split])
            np.testing.assert_array_equal(rows.task.negatives[split], before.negatives[split])


def test_lens_that_leads_and_keeps_still_is_left_alone(
    dataset: LensDataset, result: FitResult, refits: Refits
) -> None:
    fine = CONFUSED._replace(first=0.6)
    checks = {
        "bird": fine,
        "fish": fine._replace(firing_rate=0.3),
        "tree": CONFUSED._replace(confusers=[]),
    }
    refine_lenses(dataset, SETTINGS, result, checks)
    assert set(refits.tasks) == {"fish"}


def test_confusers_that_have_no_samples_to_give_change_nothing(
    dataset: LensDataset, result: FitResult, refits: Refits
) -> None:
    """The samples of an ancestor are no negatives."""
    refined = refine_lenses(
        dataset, SETTINGS, result, {"bird": CONFUSED._replace(confusers=["nature"])}
    )
    assert refits.tasks == {}
    assert all(new is old for new, old in zip(refined.lenses, result.lenses, strict=True))


@pytest.mark.parametrize(("iterations", "graduates"), [(1, False), (9, True)])
def test_refining_is_one_more_iteration_for_what_graduation_asks(
    dataset: LensDataset, result: FitResult, iterations: int, graduates: bool
) -> None:
    """Falloff asks grade A of iteration 2 and C of iteration 10."""
    settings = dataclasses.replace(
        SETTINGS, target_f1=0.1, max_overfit_gap=1.0, validation="falloff"
    )
    lens = next(lens for lens in result.lenses if lens.concept == "tree")
    step = lens.trajectory[-1]._replace(graduated=False)
    before = dataclasses.replace(
        lens, graduated=False, hungry=True, calibration_score=-1.0, trajectory=[step] * iterations
    )
    (after,) = refine_lenses(dataset, settings, FitResult([before]), {"tree": CONFUSED}).lenses
    assert after.refined == ("boat", "oven")
    assert Grade.of(after.score) is Grade.B
    assert (after.graduated, after.hungry) == (graduates, not graduates)
    assert after.trajectory == before.trajectory


def test_trained_pack_says_what_its_lenses_were_refined_against(
    dataset: LensDataset, tmp_path: Path
) -> None:
    settings = dataclasses.replace(
        SETTINGS, initial_samples=2, max_samples=2, negatives_per_positive=1.0
    )
    train(dataset, settings, refine=True).save(tmp_path / "refined")
    plain = train(dataset, settings)
    refined = LensPack.load(tmp_path / "refined")
    against = {lens.concept: lens.metrics["refined_against"] for lens in refined}
    assert any(against.values())
    for lens in refined:
        same = lens.weight.tobytes() == plain[lens.concept].weight.tobytes()
        assert same == (not against[lens.concept])
        assert set(against[lens.concept]) <= set(LEAF_NAMES) | {"nature", "society", "craft"}
