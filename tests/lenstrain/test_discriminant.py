"""Lenses that share a covariance: what it is made of, what is found with it, how it is shipped."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from scipy.sparse import csr_array

from lenscache.store.store import Store
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows, training_classes
from lenstrain.data.tasks import draw_task
from lenstrain.errors import SettingsError
from lenstrain.families.discriminant import Within
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.train import train
from lenstrain.live.steering import directions_of
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import (
    SIGNAL_LAYER,
    direction_of,
    make_planted_store,
    planted_pack,
)
from tests.lenstrain.test_adaptive import (
    EAGER,
    ChangedDataset,
    cosine,
    replace,
    weight_of,
    weights_of,
)

DISCRIMINANT = FitSettings(family="discriminant", model_layers=(SIGNAL_LAYER,))
PLAIN = dataclasses.replace(DISCRIMINANT, unit_norm=False)


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    return train(planted, DISCRIMINANT)


def overlapping(n: int = 300, d: int = 8) -> tuple[torch.Tensor, csr_array]:
    """Rows, and what they express: one to three of four concepts, the fourth being the third."""
    rng = np.random.default_rng(0)
    y = rng.random((n, 3)) < 0.4
    y[~y.any(axis=1), 0] = True
    classes = np.column_stack([y, y[:, 2]]).astype(np.float32)
    Z = rng.normal(size=(n, d)) + y @ rng.normal(scale=5, size=(3, d))
    return torch.from_numpy(Z.astype(np.float32)), csr_array(classes)


# --- what is shared -----------------------------------------------------------------------------


def test_covariance_is_that_of_what_the_means_of_a_rows_concepts_leave() -> None:
    Z, classes = overlapping()
    (inverse,) = Within.fit(Z, classes, 1).inverses
    y, rows = classes.toarray().astype(np.float64), Z.double().numpy()
    rest = rows - y @ np.linalg.lstsq(y, rows, rcond=None)[0]
    S = rest.T @ rest / len(rest)
    expected = S + np.trace(S) / len(S) * np.eye(len(S))
    np.testing.assert_allclose(np.linalg.inv(inverse), expected, rtol=1e-4, atol=1e-5)


def test_rows_that_express_nothing_are_a_class_of_their_own(planted: LensDataset) -> None:
    features = Features.of_model_layers(planted, (SIGNAL_LAYER,))
    training = planted.split_slices[TRAIN]
    usable = np.ones(training.stop, np.bool_)
    usable[5] = False
    classes = training_classes(planted, usable)
    assert classes.shape[1] == len(planted.positive_rows) + 1
    counts = np.diff(classes.indptr)
    assert counts[5] == 0
    assert (np.delete(counts, 5) > 0).all()
    none = classes[:, [-1]].toarray()[:, 0] > 0
    assert none.any()
    assert (counts[none] == 1).all()
    assert Within.fit(features.Z[training], classes, 1).n_rows == training.stop - 1


def test_blocks_are_summed_in_their_order_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Z, classes = overlapping()
    monkeypatch.setattr("lenstrain.families.discriminant._BLOCK_ROWS", 16)
    with ThreadPoolExecutor(3) as pool:
        one, many = Within.fit(Z, classes, 2), Within.fit(Z, classes, 2, pool.map)
    for a, b in zip([*one.inverses, one.total], [*many.inverses, many.total], strict=True):
        assert torch.equal(a, b)
    monkeypatch.undo()
    whole = Within.fit(Z, classes, 2)
    torch.testing.assert_close(one.inverses[1], whole.inverses[1], rtol=1e-5, atol=1e-6)


def test_negatives_are_all_rows_but_those_of_the_concept_and_its_relatives(
    planted: LensDataset,
) -> None:
    features = Features.of_model_layers(planted, (SIGNAL_LAYER,))
    training, settings = planted.split_slices[TRAIN], FitSettings()
    within = Within.fit(
        features.Z[training], training_classes(planted, features.finite[training]), 1
    )
    rows = TaskRows(planted, draw_task(planted, "bird", settings.n_negatives), settings)
    sample = planted.samples_by_split[training]
    relatives = np.concatenate([planted.labelled("nature"), planted.positives("bird")])
    expected = features.Z[training][torch.from_numpy(~np.isin(sample, relatives))].mean(dim=0)
    found = within.mean_without(features.Z, rows.apart)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("split", [CALIBRATION, TEST])
@pytest.mark.parametrize("settings", [DISCRIMINANT, PLAIN])
def test_no_held_out_row_is_in_a_mean_or_the_covariance(
    settings: FitSettings, split: int, planted_store: Store, planted: LensDataset
) -> None:
    once = dataclasses.replace(settings, initial_samples=200, beyond_graduation=False)
    changed = ChangedDataset(planted_store, replace, split)
    assert weights_of(fit_lenses(changed, once)) == weights_of(fit_lenses(planted, once))


# --- what is found ------------------------------------------------------------------------------


def test_planted_directions_are_recovered_as_well_as_by_linear_lenses(tmp_path: Path) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(n_examples=60)))

    def cosines(settings: FitSettings) -> list[float]:
        found = fit_lenses(dataset, settings).lenses
        return [cosine(weight_of(lens), direction_of(lens.concept)) for lens in found]

    linear = cosines(dataclasses.replace(EAGER, C=0.01))
    for settings in (DISCRIMINANT, PLAIN):
        own = cosines(dataclasses.replace(settings, initial_samples=200))
        assert min(own) >= 0.9
        assert np.mean(own) >= np.mean(linear) - 0.005


def test_logits_have_deviation_one_within_a_class(planted: LensDataset) -> None:
    X, sample = planted.vectors(SIGNAL_LAYER), planted.vector_sample
    held = planted.split[sample] != TRAIN
    for lens in fit_lenses(planted, PLAIN).lenses:
        own = np.isin(sample, planted.positives(lens.concept)) & held
        assert 0.3 < lens.weights.decision_function(X[own]).std() < 2


# --- how it is shipped --------------------------------------------------------------------------


def test_what_lenses_share_is_stored_once(pack: LensPack, tmp_path: Path) -> None:
    pack.save(tmp_path / "lenses")
    tensors = safetensors.numpy.load_file(tmp_path / "lenses" / "lenses.safetensors")
    hidden = tensors["weight"].shape[1]
    assert tensors["norm.model_layer"].tolist() == [SIGNAL_LAYER]
    assert tensors["norm.mean"].shape == tensors["norm.scale"].shape == (1, hidden)
    norms = {id(lens.weights.norm) for lens in LensPack.load(tmp_path / "lenses")}  # type: ignore[union-attr]
    assert len(norms) == 1


@pytest.mark.parametrize(("settings", "version"), [(DISCRIMINANT, 3), (PLAIN, 2)])
def test_only_packs_that_an_older_reader_would_score_wrongly_have_a_newer_format(
    settings: FitSettings, version: int, planted: LensDataset, tmp_path: Path
) -> None:
    pack = train(planted, settings, concepts=["bird", "vote"])
    pack.save(tmp_path / "lenses")
    assert f'"format_version": {version}' in (tmp_path / "lenses" / "lenses.json").read_text()


def test_activations_are_over_the_length_that_they_have_standardised(
    pack: LensPack, planted: LensDataset
) -> None:
    X = planted.vectors(SIGNAL_LAYER)[:9]
    lens = pack["vote"]
    assert isinstance(lens.weights, LinearWeights)
    assert lens.weights.norm is not None
    mean, scale, n_unit = lens.weights.norm
    assert n_unit == 1
    z = (X - mean) / scale
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = u @ (lens.weights.weight * scale) + lens.weights.bias
    np.testing.assert_allclose(lens.decision_function(X), expected, rtol=1e-4, atol=1e-4)
    far = mean + 1000 * (X - mean)  # the same direction, a thousand times as long
    np.testing.assert_allclose(lens.decision_function(far), expected, rtol=1e-3, atol=1e-3)


def test_directions_are_those_of_the_same_rows_without_unit_norm(
    pack: LensPack, planted: LensDataset
) -> None:
    """In units of activations, whatever the lens divides by."""
    for lens in train(planted, dataclasses.replace(PLAIN), concepts=["bird", "vote"]):
        (plain,), (own,) = lens.directions, pack[lens.concept].directions
        np.testing.assert_allclose(own.vector, plain.vector, atol=1e-5)
        assert own.deviation == pytest.approx(plain.deviation, rel=1e-5)


def test_their_weights_are_no_vector_to_steer_along(pack: LensPack) -> None:
    with pytest.raises(SettingsError, match="not linear: steer along its mean difference"):
        directions_of(pack["bird"], "weights", allow_grade_c=True)
    with pytest.raises(TypeError, match="not linear"):
        pack["bird"].weight  # noqa: B018


# --- several model layers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Six model layers, the directions in one of them."""
    path = tmp_path_factory.mktemp("deep") / "s"
    return LensDataset(make_planted_store(path, n_layers=6, model_layers=tuple(range(6))))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"n_model_layers": 3}, (1, 3, 5)),
        ({"model_layers": (0, 1, 4, 5), "n_model_layers": 2}, (1, 5)),
        ({"model_layers": (0, 1)}, (0, 1)),  # fewer than six
        ({"n_model_layers": 1}, (SIGNAL_LAYER,)),  # chosen on the calibration split
    ],
)
def test_model_layers_are_spread_evenly_or_one_is_chosen(
    changes: dict[str, Any], expected: tuple[int, ...], deep: LensDataset
) -> None:
    settings = FitSettings(family="discriminant", max_iterations=1, **changes)
    (lens,) = train(deep, settings, concepts=["bird"])
    assert lens.model_layers == expected
    if len(expected) > 1:
        with pytest.raises(TypeError, match=r"reads not one model layer .* use model_layers"):
            lens.model_layer  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "linear", "n_model_layers": 2}, "linear lenses read one model layer, 2 were"),
        ({"family": "discriminant", "n_model_layers": 7}, "read 7 model layers, there are 6 to"),
        ({"family": "text", "n_model_layers": 2}, "text lenses read what the model wrote"),
        ({"n_model_layers": 0}, "n_model_layers is 0, expected 1 or more"),
    ],
)
def test_numbers_of_model_layers_that_make_no_sense_are_refused(
    changes: dict[str, Any], message: str, deep: LensDataset
) -> None:
    with pytest.raises(SettingsError, match=message):
        fit_lenses(deep, FitSettings(**changes))


def test_logits_are_the_mean_over_model_layers(deep: LensDataset) -> None:
    once = FitSettings(family="discriminant", initial_samples=200, model_layers=(1, 4))
    (both,) = fit_lenses(deep, once, concepts=["bird"]).lenses
    parts = []
    for number in (1, 4):
        (alone,) = fit_lenses(
            deep, dataclasses.replace(once, model_layers=(number,)), concepts=["bird"]
        ).lenses
        parts.append(alone.weights.decision_function(deep.vectors(number)))
    X = np.hstack([deep.vectors(number) for number in (1, 4)])
    expected = np.mean(parts, axis=0)
    np.testing.assert_allclose(both.weights.decision_function(X), expected, rtol=1e-3, atol=1e-4)


def test_a_lens_of_several_model_layers_says_what_it_reads_at_each(planted: LensDataset) -> None:
    """As a lens on that model layer alone would score, by the part of its weights there."""
    result = fit_lenses(planted, FitSettings(family="discriminant", unit_norm=False))
    sides = planted.split_slices[CALIBRATION]
    for lens in result.lenses:
        assert lens.model_layers == (0, SIGNAL_LAYER)
        assert set(lens.score_by_model_layer) == {0, SIGNAL_LAYER}
        rows = TaskRows(
            planted, draw_task(planted, lens.concept, FitSettings().n_negatives), FitSettings()
        )
        assert isinstance(lens.weights, LinearWeights)
        for part, model_layer in enumerate(lens.model_layers):
            X = planted.vectors(model_layer, planted.split_place)[sides]
            logits = X @ np.split(lens.weights.weight, 2)[part]
            expected = rows.score(CALIBRATION, logits.astype(np.float64), 0.01)
            assert lens.score_by_model_layer[model_layer] == pytest.approx(expected, abs=1e-3)
    means = np.mean([[lens.score_by_model_layer[i] for i in (0, 1)] for lens in result.lenses], 0)
    assert means[SIGNAL_LAYER] > means[0] + 0.5


def test_activations_that_do_not_fit_the_memory_are_refused_before_they_are_read(
    planted: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 4 * planted.vectors(0).size
    monkeypatch.setattr("lenstrain.data.features.available_bytes", lambda: 2 * one)
    monkeypatch.setattr(LensDataset, "vectors", None)
    with pytest.raises(SettingsError, match=r"2 model layers take .* read fewer with n_model_la"):
        Features.of_model_layers(planted, (0, 1))
    monkeypatch.undo()
    monkeypatch.setattr("lenstrain.data.features.available_bytes", lambda: one)
    assert Features.of_model_layers(planted, (0,)).Z.shape[1] == 48
