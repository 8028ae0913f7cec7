from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from lenstrain.estimators import LinearLens
from tests.lenstrain.contract import CHECKS, FAMILIES


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lens_family_keeps_the_contract(family: str, check: str) -> None:
    CHECKS[check](FAMILIES[family])


class _Scribbler(LinearLens):
    """Changes its input."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> _Scribbler:
        super().fit(X, y)
        if isinstance(X, np.ndarray):
            X -= X.mean(axis=0)
        return self


class _Gambler(LinearLens):
    """Reads the global random state."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> _Gambler:
        super().fit(X, y)
        self.weight_ = self.weight_ + 1e-9 * np.random.normal(size=self.weight_.shape)
        return self


class _Batcher(LinearLens):
    """Judges a row by the others in its batch."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        logits = super().decision_function(X)
        return logits - logits.mean() if len(logits) else logits


class _Shouter(LinearLens):
    """Calls probabilities logits."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-super().decision_function(X))))


@pytest.mark.parametrize(
    ("family", "check"),
    [
        (_Scribbler, "input_is_never_changed_and_may_be_read_only"),
        (_Gambler, "deterministic_bit_for_bit"),
        (_Batcher, "rows_are_judged_one_by_one"),
        (_Shouter, "logits_are_no_probabilities"),
    ],
)
def test_contract_catches_a_family_that_breaks_it(family: type[LinearLens], check: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"(?s).*"):
        CHECKS[check](family)
