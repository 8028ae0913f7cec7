from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lenstrain.errors import TooFewSamplesError
from lenstrain.estimators import MeanDifferenceLens
from lenstrain.families.standardizer import Standardizer
from tests.lenstrain.batches import LinearBatch, fit_mean_difference_batch


def make_planted(
    n: int = 200, d: int = 30, *, strength: float = 3.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """X (n, d), y (n,) and the unit direction that tells the classes apart."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    y = rng.random(n) < 0.3
    return rng.normal(size=(n, d)) + strength * y[:, None] * direction + 5.0, y, direction


def fit_one(X: NDArray[Any], y: NDArray[np.bool_], **options: Any) -> LinearBatch:
    return fit_mean_difference_batch(X, [np.arange(len(X))], [y], **options)


def test_logits_are_those_of_the_discriminant_formula() -> None:
    X, y, _ = make_planted()
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    positive, negative = Z[y].mean(axis=0), Z[~y].mean(axis=0)
    length = np.sqrt(((positive - negative) ** 2).sum())
    t = (Z - (positive + negative) / 2) @ (positive - negative) / length
    variance = (((t[y] - t[y].mean()) ** 2).mean() + ((t[~y] - t[~y].mean()) ** 2).mean()) / 2
    np.testing.assert_allclose(
        fit_one(X, y).decision_function(X)[:, 0], t * length / variance, rtol=1e-9, atol=1e-9
    )


def test_direction_is_the_planted_one() -> None:
    X, y, direction = make_planted(1000)
    weight = fit_one(X, y).weight[0]
    assert weight @ direction / np.linalg.norm(weight) >= 0.9


def test_logits_are_log_odds_where_the_classes_are_gaussian_along_the_direction() -> None:
    """Two unit Gaussians at -1 and 1 have the log odds 2 x."""
    rng = np.random.default_rng(0)
    y = np.arange(20_000) % 2 == 0
    X = (rng.normal(size=20_000) + np.where(y, 1.0, -1.0))[:, None]
    grid = np.linspace(-2, 2, 9)[:, None]
    np.testing.assert_allclose(fit_one(X, y).decision_function(grid), 2 * grid, atol=0.15)


def test_units_of_the_features_do_not_matter() -> None:
    X, y, _ = make_planted()
    factor = np.geomspace(1e-4, 1e4, X.shape[1])
    statistics = Standardizer.fit(X)
    scaled = Standardizer(statistics.mean * factor, statistics.scale * factor)
    np.testing.assert_allclose(
        fit_one(X * factor, y, standardizer=scaled).decision_function(X * factor),
        fit_one(X, y, standardizer=statistics).decision_function(X),
        rtol=1e-8,
        atol=1e-8,
    )


def test_statistics_are_those_given() -> None:
    X, y, _ = make_planted()
    plain = Standardizer(np.zeros(30), np.ones(30))
    weight = fit_one(X, y, standardizer=plain).weight[0]
    difference = X[y].mean(axis=0) - X[~y].mean(axis=0)
    assert weight @ difference == pytest.approx(np.linalg.norm(weight) * np.linalg.norm(difference))


def test_share_of_the_classes_does_not_move_the_lens() -> None:
    X, y, _ = make_planted()
    rows = [np.arange(200), np.concatenate([np.arange(200), np.repeat(np.flatnonzero(y), 4)])]
    batch = fit_mean_difference_batch(
        X, rows, [y[r] for r in rows], standardizer=Standardizer.fit(X)
    )
    np.testing.assert_allclose(batch.weight[1], batch.weight[0])
    assert batch.bias[1] == pytest.approx(batch.bias[0])


def test_classes_that_do_not_vary_have_logits_of_plus_and_minus_ten() -> None:
    X = np.repeat([[0.0, 1.0], [1.0, 0.0]], 5, axis=0)
    logits = MeanDifferenceLens().fit(X, np.arange(10) >= 5).decision_function(X)
    np.testing.assert_allclose(logits, np.repeat([-10.0, 10.0], 5))


def test_equal_class_means_give_the_logit_0_however_they_are_added_up() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(50, 6)) * 1e3
    X = np.concatenate([half, half[::-1]])
    logits = fit_one(X, np.arange(100) < 50).decision_function(X)
    np.testing.assert_array_equal(logits, 0)


def test_batch_is_its_concepts_one_by_one() -> None:
    X, y, _ = make_planted()
    rows = [np.arange(200), np.arange(0, 200, 3), np.arange(50)]
    statistics = Standardizer.fit(X)
    together = fit_mean_difference_batch(X, rows, [y[r] for r in rows], standardizer=statistics)
    for i, chosen in enumerate(rows):
        alone = fit_mean_difference_batch(X, [chosen], [y[chosen]], standardizer=statistics)
        np.testing.assert_array_equal(together.weight[i], alone.weight[0])
        assert together.bias[i] == pytest.approx(alone.bias[0], rel=1e-12)
    assert len({together.bias[i] for i in range(3)}) == 3
    assert together.converged.all()


def test_one_class_missing_names_the_concept() -> None:
    X, y, _ = make_planted()
    with pytest.raises(
        TooFewSamplesError, match="concept number 1: 0 of 200 training rows are positive"
    ):
        fit_mean_difference_batch(X, [np.arange(200)] * 2, [y, np.zeros(200, np.bool_)])
