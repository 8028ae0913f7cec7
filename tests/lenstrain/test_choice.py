"""The choice between model layers: by whose votes, and what decides a tie."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import naming
from lenscache.store.store import Store
from lenstrain.data.dataset import CALIBRATION, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.choice import MANY_CONCEPTS, best_for_each, settled
from lenstrain.fit.train import train
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import (
    BRANCHES,
    HIDDEN,
    LEAVES,
    SIGNAL_LAYER,
    Planting,
    make_planted_store,
    planted_pack,
)


class Votes:
    """A task of which only its number of unnamed calibration texts is known."""

    def __init__(self, n_unnamed: int) -> None:
        self.n_unnamed = n_unnamed

    def n_texts(self, split: int, which: str) -> int:
        assert (split, which) == (CALIBRATION, "unnamed")
        return self.n_unnamed


def best(scores: list[list[float]], votes: list[int]) -> list[int]:
    """The choice of each task by scores (candidates, tasks)."""
    tasks = cast(list[TaskRows], [Votes(n) for n in votes])
    return best_for_each(np.array(scores), tasks)


# --- by numbers ---------------------------------------------------------------------------------


def test_the_better_model_layer_is_chosen_by_each_task() -> None:
    assert best([[0.9, 0.1], [0.1, 0.9], [0.2, 0.2]], [100, 100]) == [0, 1]


def test_few_texts_are_drawn_towards_what_all_say() -> None:
    """A hundred texts have their way; two do not, against ten tasks."""
    scores = [[0.5] * 10 + [1.0], [0.9] * 10 + [0.8]]
    assert best(scores, [20] * 10 + [100])[-1] == 0
    assert best(scores, [20] * 10 + [2])[-1] == 1


@pytest.mark.parametrize(("n_candidates", "middle"), [(2, 0), (3, 1), (5, 2), (30, 14)])
def test_of_model_layers_that_are_all_alike_the_middle_one_is_taken(
    n_candidates: int, middle: int
) -> None:
    assert best([[1.0, 0.3]] * n_candidates, [4, 4]) == [middle, middle]


def test_a_tie_is_decided_by_what_the_mean_says_not_by_the_place() -> None:
    """The first task is perfect on every model layer, the others are not."""
    scores = [[1.0, 0.2, 0.3], [1.0, 0.3, 0.3], [1.0, 0.6, 0.7], [1.0, 0.6, 0.4]]
    assert best(scores, [4, 4, 4])[0] == 2


def test_a_tie_of_two_of_the_best_is_decided_between_those_two() -> None:
    scores = [[0.1, 0.1], [0.9, 0.9], [0.2, 0.2], [0.9, 0.9], [0.9, 0.9]]
    assert best(scores, [4, 4]) == [3, 3]


def test_rounding_is_no_difference() -> None:
    nearly = [[0.3 + 0.0], [0.1 + 0.2], [0.3 + 0.0]]
    assert best(nearly, [4]) == [1]


def test_a_task_without_a_vote_takes_what_the_others_say_and_moves_nobody() -> None:
    with_voters = [[0.4, 0.5, 1.0], [0.6, 0.5, 0.0], [0.5, 0.5, 0.0]]
    assert best(with_voters, [4, 4, 0]) == [1, 1, 1]
    # Had it a vote, the mean would say 0.
    assert best(with_voters, [4, 4, 4])[1] == 0


def test_a_task_without_scores_has_no_vote_whatever_its_texts() -> None:
    scores = [[0.4, np.nan], [0.6, np.nan], [0.5, 1.0]]
    assert best(scores, [4, 100]) == [1, 1]


def test_where_nobody_has_a_vote_the_middle_one_is_taken() -> None:
    assert best([[1.0, np.nan], [0.0, np.nan], [0.5, np.nan]], [0, 7]) == [1, 1]


# --- in a store ---------------------------------------------------------------------------------

WITHOUT_EXAMPLES = (*LEAVES[0], *LEAVES[1])
NAMES_LAYER = 0
"""The model layer at which names can be read."""


class Named(LensDataset):
    """A dataset whose first model layer holds the names of concepts and nothing of what they
    mean."""

    def vectors(
        self, model_layer: int, place: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        X = super().vectors(model_layer, place)
        if model_layer == NAMES_LAYER:
            for number, concept in enumerate(self.concepts):
                pattern = naming([self.concept_names[concept]])
                named = [i for i, text in enumerate(self.texts) if pattern.search(text)]
                rows = self.vectors_of(np.array(named, np.intp))
                X[rows if place is None else place[rows], HIDDEN - 1 - number] += 30.0
        return X


@pytest.fixture(scope="module")
def names_only(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of the leaves of the first two branches there are no examples: they are named throughout."""
    pack = planted_pack(n_contrasts=0)
    changes = [dataclasses.replace(pack[concept], examples=()) for concept in WITHOUT_EXAMPLES]
    return make_planted_store(
        tmp_path_factory.mktemp("names") / "s",
        pack=planted_pack(n_contrasts=0, changes=changes),
        n_layers=5,
        model_layers=tuple(range(5)),
    )


def chosen(dataset: LensDataset) -> dict[str, int]:
    lenses = fit_lenses(dataset, FitSettings(max_iterations=1)).lenses
    return {lens.concept: lens.model_layers[0] for lens in lenses}


def test_names_are_read_at_the_first_model_layer(names_only: Store) -> None:
    """Else the test below would say little."""
    found = fit_lenses(Named(names_only), FitSettings(model_layers=(NAMES_LAYER,))).lenses
    blind = [lens for lens in found if lens.concept in WITHOUT_EXAMPLES]
    assert len(blind) >= 3
    assert {lens.metrics.score_named for lens in blind} == {1.0}
    assert {lens.calibration_score for lens in blind} == {1.0}
    assert all(lens.score < 0.2 for lens in found if lens.n_test_unnamed)


def test_concepts_without_unnamed_calibration_samples_follow_the_others(names_only: Store) -> None:
    dataset = Named(names_only)
    found = chosen(dataset)
    assert {*found} & {*WITHOUT_EXAMPLES}
    assert {*found} - {*WITHOUT_EXAMPLES}
    assert {*found.values()} == {SIGNAL_LAYER}


def test_a_store_of_names_alone_is_not_read_at_the_first_model_layer(tmp_path: Path) -> None:
    store = make_planted_store(
        tmp_path / "s",
        pack=planted_pack(n_examples=0, n_contrasts=0),
        planting=Planting(flat=BRANCHES),
        n_layers=5,
        model_layers=tuple(range(5)),
    )
    assert {*chosen(Named(store)).values()} == {2}


# --- the family ---------------------------------------------------------------------------------


def test_auto_is_discriminant_of_many_concepts_and_linear_elsewhere() -> None:
    auto = FitSettings()
    assert auto.family == "auto"
    assert settled(auto, MANY_CONCEPTS - 1).family == "linear"
    assert settled(auto, MANY_CONCEPTS).family == "discriminant"
    strength = dataclasses.replace(auto, C=0.1)
    assert settled(strength, MANY_CONCEPTS).family == "linear"
    mlp = dataclasses.replace(auto, family="mlp")
    assert settled(mlp, MANY_CONCEPTS) == mlp


@pytest.mark.parametrize(("many", "family"), [(12, "discriminant"), (13, "linear")])
def test_a_pack_says_which_family_auto_was(
    planted: LensDataset, monkeypatch: pytest.MonkeyPatch, many: int, family: str
) -> None:
    """The concepts of the store count, however few are asked for."""
    monkeypatch.setattr("lenstrain.fit.choice.MANY_CONCEPTS", many)
    pack = train(planted, FitSettings(), concepts=["bird", "fish"])
    assert pack.family == family
    named = train(planted, FitSettings(family=family), concepts=["bird", "fish"])  # type: ignore[arg-type]
    for one, two in zip(pack, named, strict=True):
        np.testing.assert_array_equal(one.weights.weight, two.weights.weight)  # type: ignore[union-attr]
