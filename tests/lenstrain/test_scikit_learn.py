"""The estimators are scikit-learn's: its own checks pass, and its tools take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.exceptions
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lenstrain.estimators import LinearLens, MeanDifferenceLens, MlpLens
from tests.lenstrain.contract import make_data

ESTIMATORS = [LinearLens(), MeanDifferenceLens(), MlpLens(epochs=60)]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_its_tools_take_them(estimator: Any) -> None:
    X, y = make_data(90)
    assert cross_val_score(estimator, X, y, scoring="roc_auc").mean() > 0.9
    inside = make_pipeline(StandardScaler(), clone(estimator)).fit(X, y)
    assert inside.score(X, y) > 0.9
    # Its score is far from where it is 0, and clone forgets what was fitted.
    with pytest.raises(sklearn.exceptions.NotFittedError):
        clone(inside[-1]).predict(X)


def test_a_grid_is_searched() -> None:
    X, y = make_data(90)
    found = GridSearchCV(LinearLens(), {"C": [1e-4, 0.1]}, scoring="roc_auc").fit(X, y)
    assert found.best_params_["C"] in (1e-4, 0.1)
    assert repr(found.best_estimator_).startswith("LinearLens(C=")


def test_labels_come_back_as_they_were() -> None:
    X, y = make_data()
    names = np.where(y, "sea", "other")  # "sea" is the greater one
    by_name, plain = LinearLens().fit(X, names), LinearLens().fit(X, y)
    assert list(by_name.classes_) == ["other", "sea"]
    assert (by_name.predict(X) == np.where(plain.predict(X), "sea", "other")).all()
    signs = LinearLens().fit(X, np.where(y, 1, -1))
    np.testing.assert_array_equal(signs.decision_function(X), plain.decision_function(X))
    with pytest.raises(ValueError, match="Only binary classification is supported"):
        LinearLens().fit(X, np.arange(40) % 3)


def test_tensors_and_tables_are_arrays() -> None:
    X, y = make_data()
    narrow = torch.from_numpy(X).bfloat16()
    wanted = LinearLens().fit(narrow.float().numpy(), y).decision_function(narrow.float().numpy())
    lens = LinearLens().fit(narrow, torch.from_numpy(y))
    np.testing.assert_allclose(lens.decision_function(narrow), wanted, rtol=1e-6)
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    named = LinearLens().fit(frame, y)
    assert list(named.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(frame[frame.columns[::-1]])


def test_positions_that_are_not_pooled_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2\) and y \(4,\), expected \(n, hidden\)"):
        LinearLens().fit(np.zeros((4, 3, 2)), [0, 1, 0, 1])
