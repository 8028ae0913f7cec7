"""Concepts that take their iterations in step: whoever is in a wave with whom changes no lens."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows, Which, training_classes
from lenstrain.data.tasks import draw_task
from lenstrain.data.words import word_features
from lenstrain.families.contract import Job
from lenstrain.families.kinds import FAMILIES
from lenstrain.families.linear import LinearFit, LinearTrainer, LinearWeights
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.iterations import _blocks
from lenstrain.metrics.score import ranking
from lenstrain.parallel import cores
from tests.lenstrain.conftest import make_planted_store


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    store = make_planted_store(
        tmp_path_factory.mktemp("iterations") / "s", n_layers=3, model_layers=(0, 1, 2)
    )
    return LensDataset(store)


@pytest.mark.parametrize("family", ["linear", "ensemble", "discriminant", "mean-difference"])
def test_waves_of_any_size_give_the_same_lenses(
    family: str, dataset: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenstrain.parallel._CHUNK_CONCEPTS", 3)
    settings = FitSettings(family=family)  # type: ignore[arg-type]
    together = fit_lenses(dataset, settings).lenses
    monkeypatch.setattr("lenstrain.fit.iterations._WAVE_BYTES", 1)
    monkeypatch.setattr("lenstrain.fit.iterations._COLUMNS", 2)
    for one, other in zip(fit_lenses(dataset, settings).lenses, together, strict=True):
        assert isinstance(one.weights, LinearWeights)
        assert isinstance(other.weights, LinearWeights)
        np.testing.assert_array_equal(one.weights.weight, other.weights.weight)
        assert (one.concept, one.metrics.C, one.graduated, len(one.trajectory)) == (
            other.concept,
            other.metrics.C,
            other.graduated,
            len(other.trajectory),
        )
        # A product with other lenses beside it may round differently.
        assert one.threshold == pytest.approx(other.threshold, rel=1e-3, abs=1e-3)
        assert one.ranking.score == pytest.approx(other.ranking.score, abs=1e-3)


def test_blocks_are_neighbours_in_about_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lenstrain.fit.iterations._COLUMNS", 100)
    parts = [range(n) for n in (30, 30, 30, 30, 30, 30, 30, 30, 20, 4)]
    blocks = list(_blocks(parts, len))
    assert [part for block in blocks for part in block] == parts
    sizes = [sum(map(len, block)) for block in blocks]
    assert len(sizes) == 3
    assert max(sizes) <= 130
    assert list(_blocks(parts[:1], len)) == [parts[:1]]


def test_logits_are_those_of_each_fit_alone_on_any_number_of_threads(dataset: LensDataset) -> None:
    features = Features.of_model_layers(dataset, (0,))
    rng = np.random.default_rng(0)
    fits = [
        LinearFit(
            rng.normal(size=(n, features.Z.shape[1])), rng.normal(size=n), [], np.ones(n, np.bool_)
        )
        for n in (3, 1, 4)
    ]
    found = features.logits(fits, TEST)
    with cores(3) as pool:
        np.testing.assert_array_equal(features.logits(fits, TEST, pool), found)
    held_out = features.Z[dataset.split_slices[TEST]]
    alone = np.hstack([fit.decision_function(held_out) for fit in fits])
    np.testing.assert_allclose(found.T, alone, rtol=1e-4, atol=1e-4)
    assert found.shape == (8, len(held_out))


def test_thresholds_that_are_chosen_on_nearly_all_rows_copy_them_for_no_lens(
    dataset: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    logits_of = Features.logits_of

    def noting(self: Features, fit: Any, number: int, split: int, rows: Any) -> Any:
        asked.extend([len(rows)] * (split == CALIBRATION))
        return logits_of(self, fit, number, split, rows)

    monkeypatch.setattr(Features, "logits_of", noting)
    fit_lenses(dataset, FitSettings(fpr=0.05))
    assert not asked
    fit_lenses(dataset, FitSettings())
    assert asked  # the few that any other threshold is chosen on


@pytest.mark.parametrize(
    ("rows", "hidden"), [(3, 32), (40, 32), (333, 64), (1024, 576), (700, 2560)]
)
def test_logits_of_a_lens_are_the_same_bits_whatever_others_are_beside_it(
    rows: int, hidden: int
) -> None:
    """So a fit for three targets, which keeps other lenses in an iteration, gives the packs of
    three fits."""
    rng = np.random.default_rng(0)
    Z = torch.from_numpy(rng.normal(size=(rows, hidden)).astype(np.float32))
    every = LinearFit(rng.normal(size=(70, hidden)), rng.normal(size=70), [], np.ones(70, np.bool_))
    expected = every.decision_function(Z, even=True)
    np.testing.assert_allclose(expected, every.decision_function(Z), rtol=1e-3, atol=1e-3)
    for n in (1, 2, 3, 15, 16, 17, 64):
        chosen = rng.choice(70, n, replace=False).tolist()
        np.testing.assert_array_equal(
            every.some(chosen).decision_function(Z, even=True), expected[:, chosen]
        )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_some_lenses_of_a_fit_say_on_some_rows_what_they_say_among_all(
    family: str, dataset: LensDataset
) -> None:
    kind, settings = FAMILIES[family], FitSettings()
    n = min(kind.n_model_layers, len(dataset.model_layers))
    if n:
        features = Features.of_model_layers(dataset, tuple(range(n)))
    else:
        dataset = dataset.with_phase("completion")
        features = word_features(dataset, dataset.completions)[0]
    tasks = [
        TaskRows(dataset, draw_task(dataset, each, settings.n_negatives), settings)
        for each in dataset.concepts[:3]
    ]
    rows, targets = (
        [task.training.rows for task in tasks],
        [task.training.targets for task in tasks],
    )
    job = Job(features.Z, rows, targets, [0, 1, 2], [task.apart for task in tasks], n)
    if kind.share is not None:
        training = dataset.split_slices[TRAIN]
        classes = training_classes(dataset, features.finite[training])
        job = job._replace(shared=kind.share(features.Z[training], classes, n))
    fitted = kind.trainer(job).fit(range(3), list(map(len, tasks)), [0.1] * 3)
    every = features.logits([fitted], TEST)
    chosen = np.array([3, 0, 7])
    for number in range(3):
        alone = features.logits_of(fitted, number, TEST, chosen)
        np.testing.assert_allclose(alone, every[number, chosen], rtol=1e-4, atol=1e-4)
    two = fitted.some([2, 0])
    np.testing.assert_allclose(features.logits([two], TEST), every[[2, 0]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        features.logits([two.some([1])], TEST), every[[0]], rtol=1e-4, atol=1e-4
    )


def test_score_is_the_ranking_of_unnamed_rows_among_all_negatives(dataset: LensDataset) -> None:
    features, settings = Features.of_model_layers(dataset, (0,)), FitSettings()
    for concept in dataset.concepts:
        task = TaskRows(dataset, draw_task(dataset, concept, settings.n_negatives), settings)
        fitted = LinearTrainer(features.Z, [task.training.rows], [task.training.targets]).fit(
            [0], [len(task)], [0.1]
        )
        for split in (CALIBRATION, TEST):
            (logits,) = features.logits([fitted], split)
            judged = task.judged(split)
            expected = ranking(judged.y, logits[judged.rows], 0.01)
            assert task.score(split, logits, 0.01, "all") == expected.score
            unnamed = dataset.unnamed(concept, judged.samples)
            sides: list[tuple[Which, NDArray[np.bool_]]]
            sides = [("unnamed", unnamed), ("named", ~unnamed)]
            for which, kept in sides:
                some = ~judged.y | kept  # positives of one kind, and the same negatives
                one = ranking(judged.y[some], logits[judged.rows[some]], 0.01)
                found = task.score(split, logits, 0.01, which)
                np.testing.assert_equal(found, one.score)  # NaN where there are none
                if which == "unnamed":
                    assert task.score(split, logits, 0.01) == one.score
                if split == TEST:
                    assert 0 < one.n_positive < expected.n_positive
            assert task.sides(split).n_negative == expected.n_negative
            assert expected.n_negative < len(logits) - expected.n_positive or not len(
                task.task.related
            )


def test_a_concept_with_relatives_is_not_judged_by_them(dataset: LensDataset) -> None:
    settings = FitSettings()
    tasks = [
        TaskRows(dataset, draw_task(dataset, concept, settings.n_negatives), settings)
        for concept in dataset.concepts
    ]
    related = [task for task in tasks if len(task.task.related)]
    assert related
    for task in related:
        sides = task.sides(TEST)
        positives, is_negative = sides.positives, sides.is_negative
        logits = np.full(len(is_negative), 2.0)  # above all positives, if they counted
        logits[is_negative], logits[positives] = 0.0, 1.0
        assert task.score(TEST, logits, 0.01) == 1.0
        logits[np.flatnonzero(is_negative)[0]] = 1.5
        assert task.score(TEST, logits, 0.01) < 1.0


def test_logits_that_are_no_numbers_rank_last(dataset: LensDataset) -> None:
    task = TaskRows(
        dataset, draw_task(dataset, dataset.concepts[0], FitSettings().n_negatives), FitSettings()
    )
    sides = task.sides(TEST)
    logits = np.random.default_rng(0).normal(size=len(sides.is_negative))
    unnamed, named = (sides.positives[kept][0] for kept in (sides.is_unnamed, ~sides.is_unnamed))
    logits[[unnamed, named]] = np.nan
    judged = task.judged(TEST)
    expected = ranking(judged.y, logits[judged.rows], 0.01).score
    assert task.score(TEST, logits, 0.01, "all") == expected
    below_all = np.where(np.isnan(logits), -100.0, logits)
    for which in get_args(Which):
        found = task.score(TEST, logits, 0.01, which)
        assert found == task.score(TEST, below_all, 0.01, which) > 0
