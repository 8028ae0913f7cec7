"""Features that vary by rounding alone are constants, whatever type they are stored in."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.store.quantization import dequantize, quantize
from lenscache.terms import StoreDtype
from lenstrain.families.standardizer import Standardizer
from lenstrain.pack.lens import NoiseFloor

DTYPES: tuple[StoreDtype, ...] = ("float32", "float16", "bfloat16", "int8")


def rounded(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """(n,) values as they are read from a store: float32, with the precision of what it holds."""
    if dtype == "int8":
        return dequantize(*quantize(values[:, None]))[:, 0]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return np.asarray(np.asarray(values).astype(kind).astype(np.float32))


@pytest.mark.parametrize("mean", [0.37, -3.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_what_jumps_between_two_stored_numbers_is_a_constant(dtype: str, mean: float) -> None:
    step = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=500)
    x = rounded(mean * (1 + step * noise), dtype)
    assert 1 < len(np.unique(x)) <= 4
    statistics = Standardizer.fit(x[:, None], dtype)
    assert np.abs(statistics.transform(x[:, None])).max() <= 1.5  # not blown up
    assert statistics.scale[0] == max(1.0, step * abs(float(x.mean(dtype=np.float64))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_varies_by_more_than_rounding_keeps_its_deviation(dtype: str) -> None:
    x = rounded(2 + 0.1 * np.random.default_rng(0).normal(size=500), dtype)
    found = Standardizer.fit(x[:, None], dtype).scale[0]
    assert found == pytest.approx(x.std(), rel=1e-4)


def test_what_float32_tells_apart_is_a_constant_in_bfloat16() -> None:
    x = (100 + 0.2 * np.random.default_rng(0).normal(size=(500, 1))).astype(np.float32)
    assert Standardizer.fit(x).scale[0] == pytest.approx(0.2, rel=0.1)
    assert Standardizer.fit(x, "bfloat16").scale[0] == 1.0


def test_wider_rows_are_judged_by_what_was_stored() -> None:
    x = 1000 * (1 + 1e-7 * np.random.default_rng(0).normal(size=(500, 1)))
    x = x.astype(np.float32)
    assert Standardizer.fit(x.astype(np.float64), "float32").scale[0] == 1.0
    assert Standardizer.fit(x).scale[0] == 1.0


def test_small_features_around_zero_are_no_constants() -> None:
    x = 1e-12 * np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
    assert Standardizer.fit(x, "bfloat16").scale[0] == pytest.approx(1e-12, rel=0.1)


@pytest.mark.parametrize(
    ("floor", "unit"),
    [((-2.0, 0.5), 0.5), ((1000.0, 6e-5), 1000 * 2.0**-23), ((0.0, 0.0), 1e-12)],
)
def test_the_unit_of_a_signal_is_no_less_than_rounding(
    floor: tuple[float, float], unit: float
) -> None:
    assert NoiseFloor(*floor).unit == unit
