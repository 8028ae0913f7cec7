"""The store as a dataset: labelled, lazy, exact, and never a row that is not there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lenscache.concepts.plan import plan_samples
from lenscache.errors import (
    MissingPackageError,
    ModelLayerError,
    StoreDamagedError,
    StoreIncompleteError,
)
from lenscache.store.layout import NATIVE_DTYPES
from lenscache.store.round import Round
from lenscache.store.store import Store, create_store, open_store
from tests.lenscache.conftest import ROUND
from tests.lenstrain.conftest import (
    Planting,
    make_planted_store,
    plant_round,
    planted_activations,
    planted_header,
    planted_pack,
)

PLANTING = Planting(without_completion=0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two levels, four blocks and two, bfloat16, rows without a completion. Do not change it."""
    path = tmp_path_factory.mktemp("xarray") / "s.zarr"
    return make_planted_store(path, planting=PLANTING, store_dtype="bfloat16")


@pytest.fixture(scope="module")
def whole(store: Store) -> NDArray[np.float32]:
    """All of level 1."""
    return read_all(store, 1)


@pytest.fixture
def unfinished(tmp_path: Path) -> Store:
    """Level 1 with blocks 0, 1 and 3 of four; level 0 laid out and empty."""
    pack = planted_pack()
    made = create_store(tmp_path / "unfinished.zarr", planted_header(pack), pack)
    plant_round(made, 0, 0, plan_samples(pack, [0]), n_blocks=0, verified=False)
    target = plant_round(made, 1, 0, plan_samples(pack, [1]), verified=False)
    target.unmark_block(2)
    return made


def read_all(store: Store, level: int) -> NDArray[np.float32]:
    """(sample, phase, model layer, hidden) of the rounds of a level, through `Round.read`."""
    header = store.header
    return np.concatenate(
        [
            np.stack(
                [np.stack([r.read(p, m) for m in header.model_layers], 1) for p in header.phases], 1
            )
            for r in store.rounds(level)
        ]
    ).astype(np.float32)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is read from here on."""
    seen: list[tuple[Any, ...]] = []
    original = Round.read

    def spy(self: Round, phase: Any, model_layer: int, rows: slice = slice(None)) -> NDArray[Any]:
        seen.append((phase, model_layer, rows.start, rows.stop))
        return original(self, phase, model_layer, rows)

    monkeypatch.setattr(Round, "read", spy)
    return seen


def test_values_are_those_of_the_store_in_float32(store: Store) -> None:
    dataset = store.to_xarray(1)
    assert dataset.activation.dims == ("sample", "phase", "model_layer", "hidden")
    assert dataset.activation.dtype == np.float32
    np.testing.assert_array_equal(dataset.activation.values, read_all(store, 1))


def test_rows_stand_beside_their_texts_splits_and_keys(store: Store) -> None:
    dataset, (target,) = store.to_xarray(1), store.rounds(1)
    samples = target.samples()
    row = dataset.sel(sample="layer_1/round_0/100")
    assert row.text == samples.text[100]
    assert row.completion == samples.completion[100]
    assert row.split == ("train", "calibration", "test")[samples.split[100]]
    assert row.kind == ("example", "definition", "relation", "contrast")[samples.kind[100]]
    assert bytes.fromhex(str(row.key.item())) == bytes(samples.key[100])
    assert [row[name].item() for name in ("level", "round", "row")] == [1, 0, 100]
    np.testing.assert_array_equal(
        row.activation.sel(phase="completion", model_layer=1),
        target.read("completion", 1, slice(100, 101))[0],
    )


def test_row_without_a_completion_is_nan_and_has_no_tokens(store: Store) -> None:
    dataset = store.to_xarray(1)
    missing = np.isnan(dataset.activation.sel(phase="completion")).all(["model_layer", "hidden"])
    np.testing.assert_array_equal(missing, dataset.n_completion_tokens == 0)
    assert 0 < int(missing.sum()) < len(missing)
    assert not np.isnan(dataset.activation.sel(phase="prompt")).any()


def test_all_levels_follow_one_another(store: Store) -> None:
    both = store.to_xarray()
    xr.testing.assert_identical(both.sel(sample=both["level"] == 1), store.to_xarray(1))
    assert both.sizes["sample"] == sum(r.n_samples for r in store.rounds())
    assert both.indexes["sample"].is_unique


def test_model_layers_and_phases_are_selected_in_the_order_asked_for(store: Store) -> None:
    dataset = store.to_xarray(1, model_layers=[1, 0], phases=["completion"])
    assert (dataset.model_layer.values.tolist(), dataset.phase.values.tolist()) == (
        [1, 0],
        ["completion"],
    )
    np.testing.assert_array_equal(dataset.activation.values, read_all(store, 1)[:, 1:, ::-1])


def indices(size: int) -> st.SearchStrategy[Any]:
    number = st.integers(-size, size - 1)
    some = st.lists(number, max_size=6).map(lambda chosen: np.array(chosen, np.int64))
    # xarray itself fails on a slice that runs backwards over nothing.
    slices = st.slices(size).filter(
        lambda part: (part.step or 1) > 0 or len(range(*part.indices(size))) > 0
    )
    return st.one_of(slices, number, some)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_indexing_equals_numpy(
    store: Store, whole: NDArray[np.float32], data: st.DataObject
) -> None:
    """Any selection along any dimensions gives what numpy gives for the whole array."""
    dims = ("hidden", "model_layer", "phase", "sample")
    chosen = {
        dim: data.draw(indices(size)) for dim, size in zip(dims, whole.shape[::-1], strict=True)
    }
    expected = whole
    # from the last axis on: an integer drops its axis
    for axis, dim in zip((3, 2, 1, 0), dims, strict=True):
        expected = expected[(slice(None),) * axis + (chosen[dim],)]
    np.testing.assert_array_equal(store.to_xarray(1).activation.isel(chosen).values, expected)


def test_opening_reads_no_activation_and_indexing_only_what_it_touches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(monkeypatch)
    dataset = store.to_xarray(1)
    picked = dataset.activation.sel(phase="prompt", model_layer=1).isel(sample=[70, 66, 3])
    assert seen == []
    assert picked.shape == (3, 48)
    picked.load()
    assert seen == [("prompt", 1, 3, 4), ("prompt", 1, 66, 71)]


def test_rows_that_are_not_extracted_are_left_out_and_counted(unfinished: Store) -> None:
    dataset = unfinished.to_xarray(1)
    expected = [*range(128), *range(192, 252)]
    assert dataset.row.values.tolist() == expected
    assert dataset.attrs["rows_not_extracted"] == 64
    assert not np.isnan(dataset.activation).any()
    plan = plan_samples(planted_pack(), [1])
    np.testing.assert_allclose(
        dataset.activation.sel(phase="prompt", model_layer=1),
        planted_activations(plan, Planting(), "prompt", 1)[expected],
        rtol=1e-6,
    )
    assert (dataset.n_completion_tokens >= 0).all()


def test_level_without_a_complete_block_has_no_samples(unfinished: Store) -> None:
    dataset = unfinished.to_xarray(0)
    assert dataset.sizes == {"sample": 0, "phase": 2, "model_layer": 2, "hidden": 48}
    assert dataset.activation.values.shape == (0, 2, 2, 48)
    assert dataset.attrs["rows_not_extracted"] == unfinished.rounds(0)[0].n_samples


def test_dataset_shows_blocks_that_come_later_once_it_is_opened_again(unfinished: Store) -> None:
    before = unfinished.to_xarray(1)
    plant_round(unfinished, 1, 0, plan_samples(planted_pack(), [1]))
    assert before.activation.values.shape[0] == 188
    after = unfinished.to_xarray(1)
    assert after.attrs["rows_not_extracted"] == 0
    xr.testing.assert_equal(after.sel(sample=before.sample), before)


def test_completion_of_a_row_that_is_extracted_while_the_dataset_opens_is_not_lost(
    unfinished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marks are read before the columns: a block that is finished in between is left out, not
    half there."""
    original = Round.samples

    def slow(self: Round) -> Any:
        samples = original(self)
        if self.level == 1:
            self._set_mark(2, 1)
        return samples

    unfinished.rounds(1)[0]._write("samples/n_completion_tokens", 2, np.full(64, -1, np.int32))
    monkeypatch.setattr(Round, "samples", slow)
    assert (unfinished.to_xarray(1).n_completion_tokens >= 0).all()


def test_block_that_is_taken_back_is_an_error_when_read(store: Store, tmp_path: Path) -> None:
    copy = open_store(shutil.copytree(store.path, tmp_path / "copy.zarr"), "r+")
    dataset = copy.to_xarray(1)
    copy.rounds(1)[0].unmark_block(1)
    with pytest.raises(
        StoreIncompleteError, match="1 of 1 blocks of these rows are not extracted yet"
    ):
        dataset.activation.isel(sample=64).load()
    assert dataset.activation.isel(sample=63).load().notnull().any()


def test_object_that_is_gone_is_an_error_and_not_nan(store: Store, tmp_path: Path) -> None:
    path = shutil.copytree(store.path, tmp_path / "copy.zarr")
    dataset = open_store(path).to_xarray(1)
    (path / ROUND / "activations/prompt/1/c/1/0").unlink()
    with pytest.raises(
        StoreDamagedError, match=r"activations/prompt/1: the object of rows 64-127 is gone"
    ):
        dataset.activation.load()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_are_exact_in_float32(dtype: Any, tmp_path: Path) -> None:
    made = make_planted_store(tmp_path / "s.zarr", levels=[0], store_dtype=dtype)
    stored = made.rounds(0)[0].read("prompt", 0)
    assert stored.dtype == NATIVE_DTYPES[dtype]
    values = made.to_xarray(0).activation.sel(phase="prompt", model_layer=0).values
    np.testing.assert_array_equal(values.astype(stored.dtype), stored)


def test_chunks_are_the_blocks_of_the_store_and_read_the_same(store: Store) -> None:
    plain, chunked = store.to_xarray(1), store.to_xarray(1, chunks={})
    assert chunked.activation.chunksizes == {
        "sample": (64, 64, 64, 60),
        "phase": (1, 1),
        "model_layer": (1, 1),
        "hidden": (48,),
    }
    assert chunked.text.chunks is None
    xr.testing.assert_identical(chunked.compute(scheduler="threads"), plain)
    assert store.to_xarray(1, chunks={"sample": 100}).activation.chunksizes["sample"] == (
        100,
        100,
        52,
    )
    assert chunked.activation.data.name == store.to_xarray(1, chunks={}).activation.data.name
    assert (
        chunked.activation.data.name
        != store.to_xarray(1, model_layers=[0], chunks={}).activation.data.name
    )


def test_dataset_can_be_sent_to_another_process(store: Store) -> None:
    dataset = store.to_xarray(1)
    xr.testing.assert_identical(pickle.loads(pickle.dumps(dataset)), dataset)


def test_labels_join_by_sample(store: Store) -> None:
    dataset, frame, (target,) = store.to_xarray(1), store.labels_frame(1), store.rounds(1)
    labels = target.labels()
    assert len(frame) == len(labels.sample)
    birds = frame[(frame.concept == "bird") & (frame.role == "positive")]
    picked = dataset.sel(sample=birds.index)
    rows = labels.sample[(labels.concept == target.concepts.index("bird")) & (labels.role == 0)]
    assert picked.row.values.tolist() == rows.tolist()
    assert picked.key.values.tolist() == birds["key"].tolist()
    assert birds.order.is_monotonic_increasing


def test_labels_of_rows_that_are_not_extracted_are_left_out(unfinished: Store) -> None:
    frame = unfinished.labels_frame()
    assert set(frame.index) == set(unfinished.to_xarray().sample.values)
    kept = unfinished.rounds(1)[0].labels()
    assert len(frame) == int((~np.isin(kept.sample, range(128, 192))).sum())


def test_what_the_store_does_not_hold_is_an_error(store: Store) -> None:
    with pytest.raises(
        StoreIncompleteError,
        match=r"level 4 is not in the store, which holds 0,1: run `lenscache ex",
    ):
        store.to_xarray(4)
    with pytest.raises(ModelLayerError, match="model layer 9 is not in the store, which holds 0,1"):
        store.to_xarray(1, model_layers=[9])


def test_chunks_without_dask_say_what_to_install(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs dask: run `pip install '\.\[dask\]'`"):
        store.to_xarray(1, chunks={})
