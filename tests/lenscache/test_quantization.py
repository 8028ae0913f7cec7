"""Stores of 8-bit activations: half the bytes, at an error that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lenscache.errors import StoreDamagedError
from lenscache.store.quantization import LARGEST, MISSING, dequantize, quantize
from lenscache.store.round import Round
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from lenstrain.data.dataset import LensDataset
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from tests.lenscache.conftest import SETTINGS, run_small
from tests.lenstrain.conftest import make_planted_store

FP32, INT8 = replace(SETTINGS, store_dtype="float32"), replace(SETTINGS, store_dtype="int8")
VECTORS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 8)),
    elements=st.floats(-(2.0**90), 2.0**90, width=32),
)


@given(VECTORS)
def test_error_is_at_most_half_a_step_in_every_feature(values: np.ndarray) -> None:
    whole, scale = quantize(values)
    error = np.abs(dequantize(whole, scale).astype(np.float64) - values)
    assert (error <= 0.5001 * scale[:, None] + 1e-37).all()
    assert np.abs(whole.astype(int)).max() <= LARGEST
    np.testing.assert_allclose(scale, np.abs(values).max(axis=1) / LARGEST, rtol=1e-6)


def test_magnitudes_too_small_for_a_scale_of_their_own_read_back_as_tiny_and_never_as_nan() -> None:
    values = np.array([[1.977e-42, -1.4e-45, 1e-40]], np.float32)
    whole, scale = quantize(values)
    assert (whole != MISSING).all()
    assert (np.abs(dequantize(whole, scale)) < 1e-39).all()


@given(VECTORS)
def test_what_was_read_is_stored_again_without_loss(values: np.ndarray) -> None:
    once = dequantize(*quantize(values))
    np.testing.assert_allclose(dequantize(*quantize(once)), once, rtol=1e-6)


def test_rows_that_are_not_finite_read_back_as_nan_and_zeros_as_zeros() -> None:
    values = np.array([[1, np.nan], [0, 0], [np.inf, 1]], np.float32)
    found = dequantize(*quantize(values))
    assert np.isnan(found[[0, 2]]).all()
    assert (found[1] == 0).all()
    assert (quantize(values)[0] != MISSING).all()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    run_small(folder / "float32", settings=FP32)
    run_small(folder / "int8", settings=INT8)
    return {name: folder / name for name in ("float32", "int8")}


def the_round(path: Path) -> Round:
    return open_store(path).rounds(1)[0]


@pytest.mark.parametrize("phase", ["prompt", "completion"])
@pytest.mark.parametrize("model_layer", [0, 2])
def test_a_store_of_int8_holds_what_float32_does_within_half_a_step(
    stores: dict[str, Path], phase: str, model_layer: int
) -> None:
    rounds = [the_round(stores[name]) for name in ("float32", "int8")]
    exact, found = (r.read(phase, model_layer) for r in rounds)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    step = np.abs(exact).max(axis=1, keepdims=True) / LARGEST
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    present = ~np.isnan(exact).any(axis=1)
    assert (np.abs(found - exact)[present] <= 0.51 * step[present]).all()
    assert the_round(stores["int8"]).is_complete


def test_a_store_of_int8_verifies_and_is_taken_up_again(stores: dict[str, Path]) -> None:
    assert verify_store(stores["int8"]).findings == []
    assert run_small(stores["int8"], settings=INT8).rows_run == 0


@pytest.mark.parametrize("array", ["activations", "scales"])
@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_damaged_object_of_values_or_scales_is_named_and_mended(
    array: str, harm: str, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    run_small(path, settings=INT8)
    before = the_round(path).read("prompt", 2)
    folder = path / the_round(path).name / array / "prompt/2/c"
    chunk = sorted(file for file in folder.rglob("*") if file.is_file())[1]
    if harm == "gone":
        chunk.unlink()
    else:
        data = bytearray(chunk.read_bytes())
        data[len(data) // 3] ^= 16
        chunk.write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match=rf"{array}/prompt/2"):
        the_round(path).read("prompt", 2)
    assert [f.array.split("/", 2)[2] for f in verify_store(path).findings] == [f"{array}/prompt/2"]
    report = run_small(path, settings=INT8)
    assert report.repaired_blocks == ["layer_1/round_0 block 1"]
    np.testing.assert_array_equal(the_round(path).read("prompt", 2), before)


def test_lenses_of_int8_find_what_lenses_of_float32_find(tmp_path: Path) -> None:
    settings = FitSettings(model_layers=(1,), C=1.0)
    exact, lossy = (
        fit_lenses(
            LensDataset(make_planted_store(tmp_path / dtype, store_dtype=dtype)), settings
        ).lenses
        for dtype in ("float32", "int8")
    )
    for one, other in zip(exact, lossy, strict=True):
        assert isinstance(one.weights, LinearWeights)
        assert isinstance(other.weights, LinearWeights)
        a, b = one.weights.weight, other.weights.weight
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert cosine > 0.98
        assert other.ranking.auroc == pytest.approx(one.ranking.auroc, abs=0.02)
