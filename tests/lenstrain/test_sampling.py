from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lenstrain.data.dataset
from lenscache.store.store import Store
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.data.sampling import spread_sample
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from tests.lenstrain.conftest import Planting, make_planted_store

ROWS = 64


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=200), st.integers(1, 200), st.integers(0, 9)
)
def test_a_sample_has_as_many_rows_as_asked_for_and_the_share_of_every_stratum(
    strata: list[int], size: int, seed: int
) -> None:
    numbers = np.array(strata)
    chosen = spread_sample(numbers, size, np.random.default_rng(seed))
    assert len(np.unique(chosen)) == len(chosen) == min(size, len(strata))
    assert np.array_equal(chosen, np.sort(chosen))
    for stratum in np.unique(numbers):
        share = (numbers == stratum).mean() * len(chosen)
        assert abs((numbers[chosen] == stratum).sum() - share) <= 1


def test_every_row_is_in_a_sample_as_often_as_any_other() -> None:
    strata = np.repeat([0, 1, 2], [1, 10, 40])
    times = np.zeros(len(strata))
    for seed in range(2000):
        times[spread_sample(strata, 17, np.random.default_rng(seed))] += 1
    assert np.abs(times / 2000 - 1 / 3).max() < 0.05


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Concepts that are hard to tell apart, so that scores lie between 0 and 1."""
    return make_planted_store(tmp_path_factory.mktemp("s") / "s", planting=Planting(strength=2.5))


@pytest.fixture
def among_all_rows(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture
def sampled(store: Store) -> LensDataset:
    with patch.object(lenstrain.data.dataset, "SAMPLED_ROWS", ROWS):
        dataset = LensDataset(store)
        assert all(len(rows) == ROWS for rows in dataset.sampled_rows)
    assert dataset.split_slices[TEST].stop - dataset.split_slices[TEST].start > 2 * ROWS
    return dataset


def test_lenses_that_trained_among_a_sample_are_measured_among_all_rows(
    sampled: LensDataset, among_all_rows: LensDataset
) -> None:
    settings = FitSettings(model_layers=(1,), initial_samples=200)
    ours, among_all = (fit_lenses(data, settings) for data in (sampled, among_all_rows))
    for one, other in zip(ours.lenses, among_all.lenses, strict=True):
        assert one.score == pytest.approx(other.score)
        assert one.ranking.n_negative == other.ranking.n_negative
        assert one.cut.threshold == pytest.approx(other.cut.threshold)
        assert one.test_f1 == pytest.approx(other.test_f1)


def test_scores_among_a_sample_are_those_among_all_rows_but_for_its_error(
    sampled: LensDataset, among_all_rows: LensDataset
) -> None:
    settings = FitSettings(model_layers=(1,), initial_samples=200)
    ours, among_all = (fit_lenses(data, settings) for data in (sampled, among_all_rows))
    errors = [
        one.trajectory[-1].score - other.trajectory[-1].score
        for one, other in zip(ours.lenses, among_all.lenses, strict=True)
    ]
    assert any(errors)
    # of a share p of n sampled negatives the standard error is sqrt(p (1 - p) / n)
    assert abs(np.mean(errors)) < 0.05
    assert np.abs(errors).max() < 0.35


def test_controls_among_a_sample_are_close_to_those_among_all_rows(
    sampled: LensDataset, among_all_rows: LensDataset
) -> None:
    settings = FitSettings(model_layers=(1,), initial_samples=200)
    ours, among_all = (fit_lenses(data, settings) for data in (sampled, among_all_rows))
    for name in ours.lenses[0].controls:
        differences = [
            one.controls[name].score - other.controls[name].score
            for one, other in zip(ours.lenses, among_all.lenses, strict=True)
        ]
        assert abs(np.mean(differences)) < 0.03
