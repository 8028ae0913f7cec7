"""What every lens family promises. `test_contract.py` runs the list over all of them.

A family is anything that makes an unfitted lens; to add one, add it to `FAMILIES`. A check takes
the family and raises AssertionError; `CHECKS` is collected by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from lenstrain.errors import LenstrainError, NotFittedError, TooFewSamplesError
from lenstrain.estimators import LinearLens, MeanDifferenceLens, MlpLens
from lenstrain.families import checks
from lenstrain.families.contract import Job
from lenstrain.families.kinds import FAMILIES as KINDS
from lenstrain.families.standardizer import Standardizer


class LensFamily(Protocol):
    """The interface under test."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Any: ...
    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]: ...
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]: ...


Family = Callable[[], LensFamily]


class Trained:
    """A family as adaptive training uses it: its trainer on standardised rows, with what each
    family reads."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fit(self, X: ArrayLike, y: ArrayLike) -> Trained:
        rows, target = checks.check_rows(X, y)
        kind, Z = KINDS[self.name], self._fit_features(rows)
        job = Job(Z, [np.arange(len(rows))], [target], [0], [np.flatnonzero(target)])
        job = job._replace(n_model_layers=max(1, kind.n_model_layers))
        if kind.share is not None:
            classes = scipy.sparse.csr_array(np.stack([target, ~target], axis=1).astype(np.float32))
            job = job._replace(shared=kind.share(Z, classes, kind.n_model_layers))
        self.fitted = kind.trainer(job).fit([0], [len(rows)], [1.0])
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        if not hasattr(self, "fitted"):
            raise NotFittedError("this lens is not fitted yet: call fit(X, y) first")
        return self.fitted.decision_function(self._features(np.asarray(X)))[:, 0]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        present = expit(self.decision_function(X))
        return np.stack([1 - present, present], axis=1)

    def _fit_features(self, X: NDArray[Any]) -> Any:
        fitted = Standardizer.fit(X.astype(np.float64))
        self.standardizer = fitted._replace(n_unit=int(KINDS[self.name].unit_norm))
        return self._features(X)

    def _features(self, X: NDArray[Any]) -> Any:
        Z = self.standardizer.transform(X.astype(np.float64))
        if self.name == "text":
            return scipy.sparse.csr_array(Z)
        return torch.from_numpy(np.hstack([Z] * KINDS[self.name].n_model_layers))


FAMILIES: dict[str, Family] = {
    "linear": LinearLens,
    "mlp": MlpLens,
    "mean difference": MeanDifferenceLens,
    # The MLP's trainer takes the order of rows as it comes, so it is checked as the estimator that
    # sorts them.
    **{f"{name}, trained": partial(Trained, name) for name in KINDS if name != "mlp"},
}


def make_data(
    n: int = 40, d: int = 12, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """X (n, d) and y (n,); the classes overlap a little."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3 == 0
    return rng.normal(size=(n, d)) + 2.0 * y[:, None] * (np.arange(d) < 3) + 1.0, y


def check_errors_before_fit(family: Family) -> None:
    X, _ = make_data()
    for method in (family().decision_function, family().predict_proba):
        with pytest.raises(NotFittedError, match="not fitted yet: call fit"):
            method(X)


def check_fit_returns_the_lens_itself(family: Family) -> None:
    lens = family()
    assert lens.fit(*make_data()) is lens


def check_logits_are_one_a_row(family: Family) -> None:
    X, y = make_data()
    lens = family().fit(X, y)
    assert lens.decision_function(X).shape == (40,)
    assert lens.decision_function(X[:1]).shape == (1,)
    assert lens.decision_function(X[:0]).shape == (0,)


def check_logits_are_no_probabilities(family: Family) -> None:
    X, y = make_data()
    logits = family().fit(X, y).decision_function(X)
    assert logits.min() < 0 < 1 < logits.max()


def check_learns_what_can_be_learned(family: Family) -> None:
    X, y = make_data(200)
    held_out, truth = make_data(200, seed=1)
    assert ((family().fit(X, y).decision_function(held_out) > 0) == truth).mean() > 0.9


def check_probabilities_sum_to_one_and_rise_with_the_logit(family: Family) -> None:
    X, y = make_data()
    lens = family().fit(X, y)
    p, order = lens.predict_proba(X), np.argsort(lens.decision_function(X))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert (np.diff(p[order, 1]) >= 0).all()
    assert ((p >= 0) & (p <= 1)).all()


def check_order_of_rows_does_not_matter(family: Family) -> None:
    X, y = make_data()
    order = np.random.default_rng(1).permutation(len(X))
    a, b = family().fit(X, y), family().fit(X[order], y[order])
    np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        a.decision_function(X)[order], a.decision_function(X[order]), rtol=1e-9
    )


def check_rows_are_judged_one_by_one(family: Family) -> None:
    X, y = make_data()
    lens = family().fit(X, y)
    single = np.concatenate([lens.decision_function(X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(single, lens.decision_function(X), rtol=1e-9)


def check_input_is_never_changed_and_may_be_read_only(family: Family) -> None:
    X, y = make_data()
    X.flags.writeable = y.flags.writeable = False
    kept = X.copy(), y.copy()
    lens = family().fit(X, y)
    lens.predict_proba(X)
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(y, kept[1])


def check_later_change_of_the_input_does_not_reach_the_lens(family: Family) -> None:
    X, y = make_data()
    probe = X.copy()
    lens = family().fit(X, y)
    before = lens.decision_function(probe)
    X[:] = 0
    np.testing.assert_array_equal(lens.decision_function(probe), before)


def check_deterministic_bit_for_bit(family: Family) -> None:
    X, y = make_data()
    np.random.seed(1)
    a = family().fit(X, y).decision_function(X)
    np.random.seed(2)
    assert a.tobytes() == family().fit(X, y).decision_function(X).tobytes()


def check_fit_again_forgets_the_first_fit(family: Family) -> None:
    X, y = make_data()
    again = family().fit(X, ~y).fit(X, y)
    np.testing.assert_array_equal(
        again.decision_function(X), family().fit(X, y).decision_function(X)
    )


def check_one_class_missing_is_an_error(family: Family) -> None:
    X, y = make_data()
    for only in (np.zeros_like(y), np.ones_like(y)):
        with pytest.raises(TooFewSamplesError, match="of 40 training rows are positive"):
            family().fit(X, only)


def check_nan_and_infinity_are_errors(family: Family) -> None:
    for bad in (np.nan, np.inf):
        X, y = make_data()
        X[3, 4] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            family().fit(X, y)


def check_shapes_that_do_not_fit_are_errors(family: Family) -> None:
    X, y = make_data()
    with pytest.raises(ValueError, match=r"shape \(40, 12\) and y \(39,\)"):
        family().fit(X, y[1:])
    with pytest.raises(ValueError, match=r"shape \(12,\)"):
        family().fit(X[0], y)


def check_constant_features_are_harmless(family: Family) -> None:
    X, y = make_data()
    with_constants = np.concatenate([X, np.full((len(X), 2), 7.3), np.zeros((len(X), 2))], axis=1)
    expected = family().fit(X, y).decision_function(X)
    np.testing.assert_allclose(
        family().fit(with_constants, y).decision_function(with_constants), expected, rtol=1e-6
    )


def check_duplicate_rows_are_harmless(family: Family) -> None:
    X, y = make_data()
    logits = family().fit(np.repeat(X, 5, axis=0), np.repeat(y, 5)).decision_function(X)
    assert np.isfinite(logits).all()
    assert ((logits > 0) == y).mean() > 0.9


def check_duplicates_of_both_classes_are_undecided(family: Family) -> None:
    X = np.ones((10, 4))
    logits = family().fit(X, np.arange(10) % 2 == 0).decision_function(X)
    np.testing.assert_allclose(logits, 0, atol=1e-6)


def check_huge_norms_are_harmless(family: Family) -> None:
    X, y = make_data()
    X[:, 0] = X[:, 0] * 1e5 + 1e5
    logits = family().fit(X, y).decision_function(X)
    assert np.isfinite(logits).all()
    assert ((logits > 0) == y).mean() > 0.9


def check_two_samples_are_enough(family: Family) -> None:
    X = np.array([[0.0, 1.0], [1.0, 0.0]])
    logits = family().fit(X, [False, True]).decision_function(X)
    assert logits[0] < 0 < logits[1]


def check_more_features_than_rows(family: Family) -> None:
    X, y = make_data(10, 500)
    assert ((family().fit(X, y).decision_function(X) > 0) == y).all()


def check_any_floating_point_type_is_accepted(family: Family) -> None:
    X, y = make_data()
    exact = family().fit(X, y).decision_function(X)
    for dtype, tolerance in (
        (np.float64, 0),
        (np.float32, 1e-4),
        (np.float16, 0.05),
        (ml_dtypes.bfloat16, 0.3),
    ):
        rounded = X.astype(dtype)
        logits = family().fit(rounded, y).decision_function(rounded)
        assert logits.dtype == np.float64
        np.testing.assert_allclose(logits, exact, atol=tolerance * 4)


def check_integer_and_boolean_labels_mean_the_same(family: Family) -> None:
    X, y = make_data()
    a, b = family().fit(X, y), family().fit(X.tolist(), y.astype(int).tolist())
    np.testing.assert_array_equal(a.decision_function(X), b.decision_function(X))


def check_errors_are_ours_and_builtin(family: Family) -> None:
    with pytest.raises(NotFittedError, match="fit") as caught:
        family().decision_function(np.zeros((1, 1)))
    assert isinstance(caught.value, LenstrainError)
    assert isinstance(caught.value, ValueError)


CHECKS: dict[str, Callable[[Family], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}
