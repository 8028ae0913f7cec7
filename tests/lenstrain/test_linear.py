from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import lenstrain.families.logistic
import lenstrain.parallel
from lenstrain.errors import TooFewSamplesError
from lenstrain.estimators import LinearLens
from lenstrain.families.linear import LinearTrainer
from lenstrain.families.standardizer import Standardizer
from tests.lenstrain.batches import LinearBatch, fit_linear_batch

Problem = tuple[NDArray[np.float64], NDArray[np.bool_]]


def make_problem(
    n: int, d: int, *, seed: int = 0, signal: float = 1.0, share: float = 0.3
) -> Problem:
    """Overlapping classes in features of very different scale and mean."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < share
    y[:2] = True, False
    X = rng.normal(size=(n, d)) + signal * y[:, None] * rng.normal(size=d)
    return X * rng.uniform(0.1, 50, size=d) + rng.normal(size=d) * 20, y


def fit_one(X: NDArray[Any], y: NDArray[np.bool_], **options: Any) -> LinearBatch:
    return fit_linear_batch(X, [np.arange(len(X))], [y], **options)


def fit_sklearn(
    X: NDArray[Any], y: NDArray[np.bool_], C: float, balanced: bool
) -> tuple[NDArray[np.float64], float]:
    """Coefficients and intercept on standardised features."""
    model = LogisticRegression(
        C=C, class_weight="balanced" if balanced else None, tol=1e-10, max_iter=100_000
    )
    model.fit(StandardScaler().fit_transform(X), y)
    return model.coef_[0], float(model.intercept_[0])


def standardised(
    batch: LinearBatch, X: NDArray[Any], number: int = 0
) -> tuple[NDArray[np.float64], float]:
    """The weights and bias on raw features, turned into those on standardised features."""
    statistics = Standardizer.fit(X)
    weight = batch.weight[number] * statistics.scale
    return weight, float(batch.bias[number] + batch.weight[number] @ statistics.mean)


def test_concepts_with_strengths_of_their_own_are_solved_as_if_alone() -> None:
    X, y = make_problem(60, 30)
    rows, strengths = [np.arange(60)] * 3, [0.01, 1.0, 30.0]
    together = fit_linear_batch(X, rows, [y] * 3, C=strengths)
    for number, C in enumerate(strengths):
        alone = fit_one(X, y, C=C)
        np.testing.assert_allclose(together.weight[number], alone.weight[0], rtol=1e-6)
        assert together.bias[number] == pytest.approx(alone.bias[0], rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("C", [0.01, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("n", "d"), [(20, 5), (40, 200), (150, 30)])
def test_solution_is_that_of_sklearn(n: int, d: int, C: float, balanced: bool) -> None:
    X, y = make_problem(n, d)
    batch = fit_one(X, y, C=C, balanced=balanced)
    weight, bias = standardised(batch, X)
    expected_weight, expected_bias = fit_sklearn(X, y, C, balanced)
    np.testing.assert_allclose(weight, expected_weight, atol=1e-3 * np.abs(expected_weight).max())
    assert bias == pytest.approx(expected_bias, abs=1e-3 * max(1, abs(expected_bias)))
    assert batch.converged.all()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(5, 60),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    balanced=st.booleans(),
    C=st.sampled_from([0.03, 0.3, 3.0]),
)
def test_logits_are_those_of_sklearn_on_any_problem(
    n: int, d: int, seed: int, balanced: bool, C: float
) -> None:
    X, y = make_problem(n, d, seed=seed)
    weight, bias = fit_sklearn(X, y, C, balanced)
    expected = StandardScaler().fit_transform(X) @ weight + bias
    logits = fit_one(X, y, C=C, balanced=balanced).decision_function(X)[:, 0]
    np.testing.assert_allclose(logits, expected, atol=2e-3 * max(1.0, np.abs(expected).max()))


def test_optimality_condition_holds() -> None:
    """Checked on the loss itself, without another solver: gradient of weights and of the
    intercept."""
    X, y = make_problem(80, 20)
    weight, bias = standardised(fit_one(X, y, C=2.0), X)
    Z = Standardizer.fit(X).transform(X)
    error = 1 / (1 + np.exp(-(Z @ weight + bias))) - y
    np.testing.assert_allclose(2.0 * Z.T @ error + weight, 0, atol=1e-4)
    assert abs(error.sum()) < 1e-4


def test_intercept_is_not_penalised() -> None:
    """With features that say nothing the logit is that of the class shares, however strong the
    penalty."""
    X = np.random.default_rng(0).normal(size=(100, 5))
    y = np.arange(100) < 10
    batch = fit_one(X, y, C=1e-6)
    np.testing.assert_allclose(batch.decision_function(X), np.log(0.1 / 0.9), atol=1e-3)


def test_balanced_intercept_does_not_favour_the_larger_class() -> None:
    X = np.random.default_rng(0).normal(size=(100, 5))
    batch = fit_one(X, np.arange(100) < 10, C=1e-6, balanced=True)
    np.testing.assert_allclose(batch.decision_function(X), 0, atol=1e-3)


def test_raw_logits_are_those_of_the_standardised_fit() -> None:
    X, y = make_problem(60, 300)
    Z = Standardizer.fit(X).transform(X)
    raw, standard = fit_one(X, y), fit_one(Z, y)
    np.testing.assert_allclose(
        raw.decision_function(X), standard.decision_function(Z), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_units_of_a_feature_do_not_matter(factor: float) -> None:
    X, y = make_problem(60, 10)
    scaled = X * np.where(np.arange(10) == 3, factor, 1.0)
    np.testing.assert_allclose(
        fit_one(X, y).decision_function(X), fit_one(scaled, y).decision_function(scaled)
    )


# --- batches ------------------------------------------------------------------------------------


def make_batch(lengths: list[int], d: int = 20) -> tuple[NDArray[np.float64], list[Any], list[Any]]:
    """Tasks of several lengths over shared rows."""
    X, _ = make_problem(120, d)
    rng = np.random.default_rng(1)
    rows = [rng.permutation(120)[:n] for n in lengths]
    targets = [(rng.random(n) < 0.4) | (np.arange(n) == 0) for n in lengths]
    for target in targets:
        target[-1] = False
    return X, rows, targets


@pytest.mark.parametrize("lengths", [[30, 30, 30], [5, 100, 17, 2, 60]])
@pytest.mark.parametrize("balanced", [False, True])
def test_batch_is_its_problems_one_by_one(lengths: list[int], balanced: bool) -> None:
    X, rows, targets = make_batch(lengths)
    statistics = Standardizer.fit(X)
    together = fit_linear_batch(X, rows, targets, balanced=balanced, standardizer=statistics)
    for i in range(len(lengths)):
        alone = fit_linear_batch(
            X, rows[i : i + 1], targets[i : i + 1], balanced=balanced, standardizer=statistics
        )
        np.testing.assert_allclose(together.weight[i], alone.weight[0], rtol=1e-6, atol=1e-9)
        assert together.bias[i] == pytest.approx(alone.bias[0], rel=1e-6)


def test_memory_bound_cuts_batches_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, rows, targets = make_batch([40, 10, 80, 33, 12, 64])
    whole = fit_linear_batch(X, rows, targets)
    monkeypatch.setattr(lenstrain.parallel, "_CHUNK_BYTES", 1)
    parts = fit_linear_batch(X, rows, targets)
    np.testing.assert_allclose(whole.weight, parts.weight, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(whole.bias, parts.bias, rtol=1e-6)


def test_order_of_the_problems_does_not_matter() -> None:
    X, rows, targets = make_batch([40, 10, 80])
    a, b = fit_linear_batch(X, rows, targets), fit_linear_batch(X, rows[::-1], targets[::-1])
    np.testing.assert_allclose(a.weight, b.weight[::-1], rtol=1e-6, atol=1e-9)


def test_statistics_are_those_given() -> None:
    X, y = make_problem(60, 10)
    statistics = Standardizer(np.zeros(10), np.full(10, 3.0))
    given_ = fit_one(X, y, standardizer=statistics)
    by_hand = fit_one(X / 3.0, y, standardizer=Standardizer(np.zeros(10), np.ones(10)))
    np.testing.assert_allclose(given_.weight * 3.0, by_hand.weight, rtol=1e-6)


def test_rows_that_no_problem_uses_do_not_matter() -> None:
    X, rows, targets = make_batch([40, 10])
    changed = X.copy()
    unused = np.setdiff1d(np.arange(len(X)), np.concatenate(rows))
    changed[unused] = 1e6
    np.testing.assert_array_equal(
        fit_linear_batch(X, rows, targets).weight, fit_linear_batch(changed, rows, targets).weight
    )


def test_one_class_missing_names_the_problem() -> None:
    X, rows, targets = make_batch([40, 10])
    targets[1][:] = False
    with pytest.raises(
        TooFewSamplesError, match="concept number 1: 0 of 10 training rows are positive"
    ):
        fit_linear_batch(X, rows, targets)


# --- convergence --------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0, 1e4, 1e6])
def test_separable_data_converges(C: float) -> None:
    X, y = make_problem(40, 100, signal=10.0)
    batch = fit_one(X, y, C=C)
    assert batch.converged.all()
    assert ((batch.decision_function(X)[:, 0] > 0) == y).all()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_lopsided_classes_converge(share: float) -> None:
    X, y = make_problem(200, 50, share=share)
    assert fit_one(X, y, balanced=True).converged.all()


def test_weaker_penalty_fits_more_closely() -> None:
    X, y = make_problem(60, 10)
    norms = [
        float(np.linalg.norm(standardised(fit_one(X, y, C=C), X)[0]))
        for C in (0.01, 0.1, 1.0, 10.0)
    ]
    assert norms == sorted(norms)


def test_fit_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = make_problem(60, 10)
    monkeypatch.setattr(lenstrain.families.logistic, "_MAX_STEPS", 1)
    lens = LinearLens().fit(X, y)
    assert not lens.converged_
    monkeypatch.undo()
    assert LinearLens().fit(X, y).converged_


def test_converged_is_told_for_each_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    # many rows for few features, and few rows that any weights separate
    X, rows, targets = make_batch([100, 8])
    finished = []
    for steps in range(1, 20):
        monkeypatch.setattr(lenstrain.families.logistic, "_MAX_STEPS", steps)
        finished.append(tuple(fit_linear_batch(X, rows, targets, C=10.0).converged.tolist()))
    assert finished[0] == (False, False)
    assert finished[-1] == (True, True)
    assert {(True, False), (False, True)} & set(finished)


def test_a_path_ends_near_the_fit_of_each_strength() -> None:
    X, rows, targets = make_batch([60, 25, 40])
    Z, strengths = torch.from_numpy(StandardScaler().fit_transform(X)), (0.01, 0.1, 1.0, 100.0)
    trainer = LinearTrainer(Z, rows, targets)
    for C, near in zip(strengths, trainer.path(strengths), strict=True):
        exact = trainer.fit(range(3), [60, 25, 40], [C] * 3)
        assert near.converged.all()
        apart = np.abs(near.decision_function(Z) - exact.decision_function(Z)).max()
        assert apart < 0.02 * np.abs(exact.decision_function(Z)).max(), C


def test_starting_from_a_stronger_penalty_leads_to_the_same_optimum() -> None:
    gram, y, importance, C = separable_systems()
    cold = lenstrain.families.logistic.solve(gram, y, importance, C)
    start = lenstrain.families.logistic.solve(gram, y, importance, C / 10)
    warm = lenstrain.families.logistic.solve(gram, y, importance, C, start=start)
    torch.testing.assert_close(warm.logits, cold.logits, rtol=1e-5, atol=1e-6)


@pytest.fixture
def corrections(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the first solve of a Newton step end with an error; the precisions solved in."""

    def set_error(error: Exception) -> list[torch.dtype]:
        solved, solve = [], lenstrain.families.logistic._correction

        def correction(rough: torch.Tensor, *system: torch.Tensor) -> Any:
            solved.append(rough.dtype)
            if len(solved) == 1:
                raise error
            return solve(rough, *system)

        monkeypatch.setattr(lenstrain.families.logistic, "_correction", correction)
        return solved

    return set_error


def test_a_system_that_is_singular_in_float32_is_solved_in_float64(corrections: Any) -> None:
    solved = corrections(torch.linalg.LinAlgError("singular"))  # type: ignore[attr-defined]
    assert LinearLens().fit(*make_problem(60, 10)).converged_
    assert solved[0] == torch.float32
    assert set(solved[1:]) == {torch.float64}


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: illegal access")],
)
def test_what_is_wrong_with_the_device_does_not_lead_to_a_larger_system(
    corrections: Any, error: Exception
) -> None:
    solved = corrections(error)
    with pytest.raises(type(error), match="CUDA"):
        LinearLens().fit(*make_problem(60, 10))
    assert solved == [torch.float32]


def test_classes_that_come_apart_take_few_newton_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full steps add about 1 to a margin: with a weak penalty they would be as many as the margin
    is wide."""
    gram, y, importance, C = separable_systems()
    steps = 0
    correction = lenstrain.families.logistic._correction

    def counting(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        return correction(*args)

    monkeypatch.setattr(lenstrain.families.logistic, "_correction", counting)
    solution = lenstrain.families.logistic.solve(gram, y, importance, 100_000 * C)
    margins = ((2 * y - 1) * solution.logits).amin(dim=1)
    assert margins.min() > 11
    assert solution.converged.all()
    assert steps <= 10


def separable_systems() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gram matrices, targets, weights and strengths of four problems of 30 rows and 200
    features."""
    Z = torch.randn(4, 30, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (torch.arange(30) < 10).double().expand(4, 30).contiguous()
    return Z @ Z.mT, y, torch.ones_like(y), torch.full((4,), 0.1, dtype=torch.float64)


# --- statistics ---------------------------------------------------------------------------------


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    X, _ = make_problem(60, 10)
    Z = Standardizer.fit(X).transform(X)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(Z.std(axis=0), 1, rtol=1e-12)


def test_feature_that_varies_by_rounding_alone_is_not_blown_up() -> None:
    X, y = make_problem(60, 10)
    X[:, 4] = 1e3 * (1 + 1e-14 * np.arange(60))
    assert Standardizer.fit(X).scale[4] == 1.0
    assert abs(fit_one(X, y).weight[0, 4]) < 1e-9


def test_float32_statistics_are_accumulated_in_float64() -> None:
    X = np.full((100_000, 1), 1e4, np.float32)
    X[::2] += 1
    assert Standardizer.fit(X).mean[0] == pytest.approx(1e4 + 0.5, abs=1e-6)
    assert Standardizer.fit(X).scale[0] == pytest.approx(0.5, rel=1e-6)
