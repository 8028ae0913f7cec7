from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lenstrain.data.dataset import LensDataset
from lenstrain.errors import SettingsError
from lenstrain.families.kinds import FAMILIES
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import FitSettings, fit_lenses


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_device_that_is_not_there_is_one_clear_line(planted: LensDataset, device: str) -> None:
    with pytest.raises(
        SettingsError, match=f"device '{device}' cannot be used .*: use cpu"
    ) as caught:
        fit_lenses(planted, FitSettings(device=device))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["linear", "ensemble", "discriminant", "mean-difference"])
def test_lenses_of_a_gpu_are_those_of_the_cpu(planted: LensDataset, family: str) -> None:
    """Iterations, strengths and grades alike; weights within the rounding of float32 products."""
    n = FAMILIES[family].n_model_layers
    if n > len(planted.model_layers) and not FAMILIES[family].spread:
        pytest.skip(
            f"the planted store has {len(planted.model_layers)} model layers, an ensemble reads {n}"
        )
    settings = FitSettings(family=family)  # type: ignore[arg-type]
    here = fit_lenses(planted, settings)
    there = fit_lenses(planted, dataclasses.replace(settings, device="cuda"))
    for one, other in zip(here.lenses, there.lenses, strict=True):
        assert isinstance(one.weights, LinearWeights)
        assert isinstance(other.weights, LinearWeights)
        assert (one.model_layers, one.metrics.C, one.verdict.grade) == (
            other.model_layers,
            other.metrics.C,
            other.verdict.grade,
        )
        np.testing.assert_allclose(one.weights.weight, other.weights.weight, rtol=1e-3, atol=1e-5)
        assert one.ranking.score == pytest.approx(other.ranking.score, abs=0.02)
