from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.errors import SettingsError
from lenstrain.fit.transfer import ONE_FIT, Transfer, at_model_layer, transfer
from tests.lenstrain.conftest import Planting, make_planted_store

FAINT = Planting(strength=3.0, completion_strength=3.0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[LensDataset, LensDataset]:
    """The same activations, in float32 and rounded to bfloat16."""
    folder = tmp_path_factory.mktemp("transfer")
    made = [
        make_planted_store(folder / dtype, planting=FAINT, store_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]
    return LensDataset(made[0]), LensDataset(made[1])


@pytest.fixture(scope="module")
def found(stores: tuple[LensDataset, LensDataset]) -> Transfer:
    return transfer(*stores)


def test_every_concept_is_fitted_and_judged_four_ways(found: Transfer) -> None:
    assert len(found.concepts) == 12
    assert not found.skipped
    assert set(found.measured) == {("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")}
    assert all(values.shape == (12, 2) for values in found.measured.values())
    assert found.quality("a", "a").score > 0.2


def test_rounding_to_bfloat16_changes_hardly_anything(found: Transfer) -> None:
    for fitted, judged in (("a", "b"), ("b", "a"), ("b", "b")):
        for change in found.change(fitted, judged).values():
            assert abs(change.mean) < 0.02
            assert change.low <= change.mean <= change.high
    assert (found.measured["b", "a"] != found.measured["a", "a"]).any()


def test_a_store_beside_itself_makes_no_difference(stores: tuple[LensDataset, LensDataset]) -> None:
    found = transfer(stores[0], stores[0])
    assert found.change("b", "a")["f1"] == found.change("a", "b")["score"] == (0, 0, 0)


def test_lenses_of_damaged_activations_are_worse_beyond_doubt(
    stores: tuple[LensDataset, LensDataset], tmp_path: Path
) -> None:
    noise = make_planted_store(
        tmp_path / "noise", planting=Planting(strength=0.0, completion_strength=0.0)
    )
    change = transfer(stores[0], LensDataset(noise)).change("b", "a")
    assert change["score"].high < -0.02
    assert change["f1"].high < -0.02


def test_both_lenses_of_a_concept_read_the_model_layer_that_was_chosen_on_the_first_store(
    found: Transfer, monkeypatch: pytest.MonkeyPatch, stores: tuple[LensDataset, LensDataset]
) -> None:
    assert set(found.model_layers) == {1}
    read: list[int] = []
    vectors = LensDataset.vectors

    def spy(dataset: LensDataset, model_layer: int, *args: NDArray[np.intp]) -> NDArray[np.float32]:
        if dataset is stores[1]:
            read.append(model_layer)
        return vectors(dataset, model_layer, *args)

    monkeypatch.setattr(LensDataset, "vectors", spy)
    transfer(*stores)
    assert set(read) == {1}


def test_the_score_is_that_of_the_fit_where_a_lens_is_judged_on_its_own_store(
    found: Transfer, stores: tuple[LensDataset, LensDataset]
) -> None:
    from lenstrain.fit.adaptive import fit_lenses

    fitted = fit_lenses(stores[0], ONE_FIT).lenses
    assert found.measured["a", "a"][:, 1] == pytest.approx(
        [lens.ranking.score for lens in fitted], abs=1e-6
    )
    assert found.measured["a", "a"][:, 0] == pytest.approx(
        [lens.test_f1 for lens in fitted], abs=1e-6
    )


def test_intervals_are_drawn_over_concepts_and_always_the_same(found: Transfer) -> None:
    assert found.change("b", "a") == found.change("b", "a")
    many = Transfer(
        ("a", "b"),
        (0, 0),
        {("a", "a"): np.zeros((2, 2)), ("b", "a"): np.array([[0.0, 0.1], [1.0, 0.1]])},
        {},
    )
    assert many.change("b", "a")["f1"] == (0.5, 0.0, 1.0)
    assert many.change("b", "a")["score"] == pytest.approx((0.1, 0.1, 0.1))


def test_stores_of_other_samples_are_refused(
    stores: tuple[LensDataset, LensDataset], tmp_path: Path
) -> None:
    other = LensDataset(make_planted_store(tmp_path / "other", levels=[1]))
    with pytest.raises(SettingsError, match="hold other samples"):
        transfer(stores[0], other)


def test_stores_that_split_in_another_way_are_refused(
    tmp_path: Path, stores: tuple[LensDataset, LensDataset]
) -> None:
    other = LensDataset(make_planted_store(tmp_path / "other", planting=FAINT))
    other.split = np.where(other.split == TEST, 0, TEST).astype(np.uint8)
    with pytest.raises(SettingsError, match="split their samples in another way"):
        transfer(stores[0], other)


def test_settings_at_one_model_layer_differ_in_nothing_else() -> None:
    assert at_model_layer(ONE_FIT, 7).model_layers == (7,)
    assert at_model_layer(ONE_FIT, 7).C == ONE_FIT.C
