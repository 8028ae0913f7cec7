"""From a dataset to finished packs: fitted, refined, checked, compared with what is written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from lenscache.store.store import Store
from lenstrain.compare.agreement import agreements
from lenstrain.compare.rivals import check_pack
from lenstrain.compare.two_packs import compare, open_for
from lenstrain.data.dataset import LensDataset
from lenstrain.errors import SettingsError
from lenstrain.fit.train import text_settings, train, train_targets
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitProgress, FitSettings
from tests.lenstrain.conftest import Planting, make_planted_store
from tests.lenstrain.test_text import name_concepts, write_completions

SETTINGS = FitSettings(model_layers=(1,), C=0.1, target_f1=0.9)
CONCEPTS = ["nature", "bird", "fish", "vote"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Completions hold the words of their concepts, and a third of the rows has none."""
    planting = Planting(strength=4.0, completion_strength=3.0, without_completion=0.3)
    made = make_planted_store(tmp_path_factory.mktemp("training") / "s", planting=planting)
    return write_completions(made, name_concepts)


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture(scope="module")
def both(dataset: LensDataset) -> LensPack:
    return train(dataset, SETTINGS, text=text_settings(SETTINGS), concepts=CONCEPTS)


def test_text_settings_change_what_text_lenses_do_not_share() -> None:
    settings = text_settings(dataclasses.replace(SETTINGS, seed=5, fpr=0.1), 0.7, max_samples=30)
    assert (settings.family, settings.phase, settings.model_layers, settings.C) == (
        "text",
        "completion",
        None,
        None,
    )
    assert (settings.target_f1, settings.max_samples, settings.seed, settings.fpr) == (
        0.7,
        30,
        5,
        0.1,
    )


def test_text_lenses_come_with_the_lenses_they_were_trained_beside(both: LensPack) -> None:
    assert both.text is not None
    assert [lens.concept for lens in both.text] == [lens.concept for lens in both] == CONCEPTS
    assert (both.family, both.text.family) == ("linear", "text")
    assert both.text.provenance["settings"]["target_f1"] == 0.8
    assert all(lens.metrics["score"] > 0.9 for lens in both.text)


def test_lenses_say_how_they_do_beside_each_other_and_beside_the_text_lenses(
    both: LensPack, dataset: LensDataset
) -> None:
    assert both.text is not None
    texts = dataset.with_phase("completion")
    checks, expected = check_pack(both, dataset), agreements(both, both.text, dataset, texts)
    for lens in both:
        check = {
            **checks[lens.concept]._asdict(),
            "fires_everywhere": checks[lens.concept].fires_everywhere,
        }
        np.testing.assert_equal(lens.metrics["beside_others"], check)
        np.testing.assert_equal(lens.metrics["agreement"], expected[lens.concept]._asdict())
    assert all("beside_others" in lens.metrics for lens in both.text)


def test_lenses_without_text_lenses_say_nothing_of_agreement_and_are_the_same(
    both: LensPack, dataset: LensDataset
) -> None:
    alone = train(dataset, SETTINGS, concepts=CONCEPTS)
    assert alone.text is None
    for lens in alone:
        assert "agreement" not in lens.metrics
        assert lens.weight.tobytes() == both[lens.concept].weight.tobytes()


def test_text_family_is_judged_on_samples_with_a_completion_alone_now_and_later(
    store: Store, dataset: LensDataset, tmp_path: Path
) -> None:
    settings = FitSettings(family="text", max_iterations=2)  # whatever the phase says
    train(dataset, settings, concepts=CONCEPTS).save(tmp_path / "text")
    pack = LensPack.load(tmp_path / "text")
    assert pack.provenance["settings"]["phase"] == "completion"
    again = open_for(pack, str(store.path))
    assert again.phases == ("completion",)
    for concept, check in check_pack(pack, again).items():
        found = {**check._asdict(), "fires_everywhere": check.fires_everywhere}
        np.testing.assert_equal(pack[concept].metrics["beside_others"], found)
    assert compare(pack, pack, again).n_samples < compare(pack, pack, dataset).n_samples


def test_store_without_completions_is_refused_before_the_work(tmp_path: Path) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", mode="prompt", levels=[1]))
    told: list[FitProgress] = []
    wanted = "holds the phase prompt only, completion was asked for: extract with mode='combined'"
    with pytest.raises(SettingsError, match=wanted):
        train(dataset, SETTINGS, text=text_settings(SETTINGS), on_progress=told.append)
    with pytest.raises(SettingsError, match=wanted):
        train(dataset, FitSettings(family="text"), on_progress=told.append)
    assert told == []


def test_text_lenses_beside_text_lenses_are_refused(dataset: LensDataset) -> None:
    with pytest.raises(SettingsError, match="text lenses beside text lenses"):
        train(dataset, FitSettings(family="text"), text=text_settings(SETTINGS))


def test_targets_share_one_pass_and_the_text_lenses(dataset: LensDataset) -> None:
    targets = [0.6, 1.0]
    low, high = train_targets(
        dataset, SETTINGS, targets, text=text_settings(SETTINGS), concepts=["bird", "fish"]
    )
    assert [pack.provenance["settings"]["target_f1"] for pack in (low, high)] == targets
    assert low.text is high.text is not None
    assert low.summary()["mean_samples"] <= high.summary()["mean_samples"]


def test_pack_says_when_and_how_long_it_was_fitted(both: LensPack, tmp_path: Path) -> None:
    assert both.run["elapsed_s"] > 0
    assert both.run["finished"].endswith("Z")
    assert both.run["iterations"]["1"]["fits"] == len(CONCEPTS)
    both.save(tmp_path / "l")
    assert LensPack.load(tmp_path / "l").run == both.run


def test_lenses_are_the_same_whatever_the_number_of_threads(
    dataset: LensDataset, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, max_iterations=2)
    packs = [
        train(
            dataset,
            settings,
            text=text_settings(settings),
            refine=True,
            jobs=jobs,
            concepts=CONCEPTS,
        )
        for jobs in (1, 2)
    ]
    for name, pack in zip("ab", packs, strict=True):
        pack.save(tmp_path / name)
    for file in (
        "lenses.json",
        "lenses.safetensors",
        "text/lenses.json",
        "text/lenses.safetensors",
    ):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_progress_ends_with_the_check_of_every_pack(dataset: LensDataset) -> None:
    told: list[FitProgress] = []
    train(
        dataset,
        SETTINGS,
        text=text_settings(SETTINGS),
        refine=True,
        concepts=["bird"],
        on_progress=told.append,
    )
    assert told[-1] == FitProgress("checking", 1, 1)
    assert {step.stage for step in told} >= {"fitting", "checking"}


def test_measures_survive_the_disk_where_there_was_nothing_to_measure(
    dataset: LensDataset, tmp_path: Path
) -> None:
    alone = train(dataset, dataclasses.replace(SETTINGS, max_iterations=1), concepts=["bird"])
    assert math.isnan(alone["bird"].metrics["beside_others"]["above_siblings"])
    alone.save(tmp_path / "l")
    assert "NaN" not in (tmp_path / "l" / "lenses.json").read_text()
    loaded = LensPack.load(tmp_path / "l")["bird"].metrics.to_json()
    np.testing.assert_equal(loaded, alone["bird"].metrics.to_json())


def test_refining_text_lenses_is_refused_before_the_work(planted: LensDataset) -> None:
    with pytest.raises(SettingsError, match="text lenses are not refined"):
        train(planted, FitSettings(family="text"), refine=True)


def test_model_layers_of_text_lenses_are_refused() -> None:
    with pytest.raises(
        SettingsError, match="text lenses read what the model wrote, not a model layer"
    ):
        FitSettings(family="text", model_layers=(3,))
