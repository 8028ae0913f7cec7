from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.pack import Concept
from lenscache.store.store import Store
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import FitResult, FitSettings, fit_lenses
from lenstrain.fit.controls import CONTROLS, random_directions
from tests.lenstrain.conftest import BRANCHES, Planting, make_planted_store, planted_pack

SETTINGS = FitSettings(model_layers=(1,))


@pytest.fixture(scope="module")
def fitted(planted: LensDataset) -> FitResult:
    return fit_lenses(planted, SETTINGS)


def mean_score(result: FitResult, control: str) -> float:
    return float(np.mean([lens.controls[control].score for lens in result.lenses]))


def test_every_lens_has_all_four_controls(fitted: FitResult) -> None:
    assert {tuple(lens.controls) for lens in fitted.lenses} == {CONTROLS}


def test_planted_lenses_beat_shuffled_labels_and_a_random_direction(fitted: FitResult) -> None:
    for control in ("shuffled labels", "random direction"):
        assert mean_score(fitted, control) < 0.2
        assert not any(control in lens.unbeaten for lens in fitted.lenses)


def test_controls_do_not_depend_on_activations_where_they_read_texts(
    tmp_path: Path, planted: LensDataset
) -> None:
    loud = LensDataset(make_planted_store(tmp_path / "s", planting=Planting(strength=30.0)))
    # all samples at once: the same rows
    settings = dataclasses.replace(SETTINGS, initial_samples=200)
    a, b = fit_lenses(planted, settings), fit_lenses(loud, settings)
    for one, other in zip(a.lenses, b.lenses, strict=True):
        for control in ("text length", "words of the prompt"):
            assert one.controls[control] == other.controls[control]


def test_controls_that_read_texts_learn_from_all_negatives_whichever_were_drawn(
    planted_store: Store,
) -> None:
    settings = dataclasses.replace(SETTINGS, initial_samples=200)
    a, b = (
        fit_lenses(LensDataset(planted_store, seed=seed), dataclasses.replace(settings, seed=seed))
        for seed in (0, 1)
    )
    for one, other in zip(a.lenses, b.lenses, strict=True):
        for control in ("text length", "words of the prompt"):
            assert one.controls[control] == other.controls[control]


def test_a_random_control_is_the_mean_of_many_draws_so_another_seed_hardly_changes_it(
    planted: LensDataset,
) -> None:
    settings = dataclasses.replace(SETTINGS, initial_samples=200)
    a, b = (fit_lenses(planted, dataclasses.replace(settings, seed=seed)) for seed in (0, 1))
    for one, other in zip(a.lenses, b.lenses, strict=True):
        for control in ("shuffled labels", "random direction"):
            assert abs(one.controls[control].score - other.controls[control].score) < 0.06


def test_a_random_direction_is_ranked_as_any_lens_would_be(planted: LensDataset) -> None:
    task = TaskRows(
        planted, draw_task(planted, planted.concepts[0], SETTINGS.n_negatives), SETTINGS
    )
    features = Features.of_model_layers(planted, (1,))
    draws = random_directions(features, 0)
    chosen = np.array([0, 3, 5])
    (found,) = draws.judge([task], [chosen])
    logits = features.logits([draws.fit], TEST)
    expected = [task.ranked(TEST, logits[number]).score() for number in chosen]
    assert found.test.score() == pytest.approx(np.mean(expected))


@pytest.fixture(scope="module")
def told_by_its_words(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A concept of which the activations know nothing, and every text says the same word."""
    wordy = Concept(
        "wordy",
        "wordy",
        1,
        parents=(BRANCHES[0],),
        examples=tuple(f"The zyzzyva sat on leaf {i}." for i in range(30)),
    )
    store = make_planted_store(
        tmp_path_factory.mktemp("wordy") / "s",
        pack=planted_pack(changes=[wordy]),
        planting=Planting(flat=("wordy",)),
    )
    return fit_lenses(LensDataset(store), SETTINGS)


def test_a_concept_told_by_its_words_alone_does_not_beat_the_words(
    told_by_its_words: FitResult,
) -> None:
    (lens,) = [lens for lens in told_by_its_words.lenses if lens.concept == "wordy"]
    assert lens.controls["words of the prompt"].score > 0.5
    assert "words of the prompt" in lens.unbeaten


def test_a_concept_told_by_its_length_alone_does_not_beat_length(tmp_path: Path) -> None:
    long = Concept(
        "long",
        "long",
        1,
        parents=(BRANCHES[0],),
        examples=tuple(" ".join(["and so it went on"] * 30) + f" {i}." for i in range(30)),
    )
    store = make_planted_store(
        tmp_path / "s", pack=planted_pack(changes=[long]), planting=Planting(flat=("long",))
    )
    (lens,) = fit_lenses(LensDataset(store), SETTINGS, concepts=["long"]).lenses
    assert lens.controls["text length"].score > 0.3
    assert "text length" in lens.unbeaten


def test_controls_are_drawn_anew_with_another_seed_and_alike_with_the_same(
    planted: LensDataset,
) -> None:
    settings = dataclasses.replace(SETTINGS, max_iterations=1)
    a, again, b = (
        fit_lenses(planted, dataclasses.replace(settings, seed=seed)) for seed in (0, 0, 1)
    )
    assert [lens.controls for lens in a.lenses] == [lens.controls for lens in again.lenses]
    for control in ("shuffled labels", "random direction"):
        assert [lens.controls[control] for lens in a.lenses] != [
            lens.controls[control] for lens in b.lenses
        ]
