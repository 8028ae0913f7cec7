"""How many concepts have too few texts that do not name them, counted before a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.pack import Concept
from lenscache.concepts.prompts import EXAMPLE
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset, open_dataset
from lenstrain.data.evidence import TextCounts, count_texts, unnamed_texts
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.metrics.grade import MIN_TEXTS, lack_of_texts
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import make_planted_store, planted_pack


def poor_concept(name: str, n_examples: int) -> Concept:
    """A concept that its other prompts all name."""
    examples = tuple(f"Glimpse {i} of some {hash_of(name)}." for i in range(n_examples))
    return Concept(
        name, name, 1, definition=f"What {name} is.", parents=("craft",), examples=examples
    )


def hash_of(name: str) -> str:
    return "-".join(str(ord(letter)) for letter in name)


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """A planted store with three more concepts: without examples, with one, and with five."""
    path = tmp_path_factory.mktemp("poor") / "s.zarr"
    changes = [poor_concept(name, n) for name, n in (("none", 0), ("one", 1), ("five", 5))]
    make_planted_store(path, pack=planted_pack(changes=changes))
    return open_dataset(path)


def by_hand(dataset: LensDataset, concept: str) -> list[int]:
    """Distinct unnamed texts of each split, sample by sample."""
    found: list[set[str]] = [set(), set(), set()]
    for row in dataset.positives(concept):
        text = dataset.texts[row]
        if dataset.kind[row] == EXAMPLE and concept not in text.lower():
            found[dataset.split[row]].add(text)
    return [len(texts) for texts in found]


def test_distinct_unnamed_texts_are_counted_by_split(poor: LensDataset) -> None:
    for concept in poor.concepts:
        assert list(unnamed_texts(poor, concept)) == by_hand(poor, concept), concept
    assert unnamed_texts(poor, "none") == (0, 0, 0)
    assert sum(unnamed_texts(poor, "five")) == 5
    assert unnamed_texts(poor, "bird")[TEST] >= MIN_TEXTS


def test_completions_of_one_text_are_one_text(tmp_path: Path) -> None:
    make_planted_store(tmp_path / "s.zarr", pack=planted_pack(n_examples=5, n_contrasts=0))
    dataset = open_dataset(tmp_path / "s.zarr")
    once = unnamed_texts(dataset, "bird")
    rows = dataset.positives("bird")
    dataset.text_number[rows[dataset.unnamed("bird", rows)]] = 0
    assert unnamed_texts(dataset, "bird") == tuple(min(n, 1) for n in once)
    assert sum(once) == 5


def test_concepts_are_counted_by_what_they_lack(poor: LensDataset) -> None:
    counts = np.array([by_hand(poor, concept) for concept in poor.concepts])
    expected = TextCounts(
        n_concepts=15,
        no_text=1,
        no_test_text=int((counts[:, TEST] == 0).sum()),
        one_test_text=int((counts[:, TEST] == 1).sum()),
        too_few_test_texts=3,
        no_calibration_text=int((counts[:, CALIBRATION] == 0).sum()),
        few_texts=int(((counts.sum(axis=1) > 0) & (counts.sum(axis=1) <= 3)).sum()),
    )
    assert count_texts(poor) == expected
    assert expected.few_texts >= 1
    assert expected.no_calibration_text >= 2
    assert expected.one_test_text >= 1
    assert count_texts(poor, ["none"]) == TextCounts(1, 1, 1, 0, 1, 1)


def test_nothing_is_wrong_with_concepts_that_have_enough(poor: LensDataset) -> None:
    assert count_texts(poor, ["bird", "fish"]) == TextCounts(2, 0, 0, 0, 0, 0)
    assert count_texts(poor, ["ghost"]) == TextCounts(0, 0, 0, 0, 0, 0)


def test_those_with_too_few_are_those_that_a_fit_leaves_ungraded(poor: LensDataset) -> None:
    settings = FitSettings()
    ungraded = 0
    for concept in poor.concepts:
        rows = TaskRows(poor, draw_task(poor, concept, settings.n_negatives), settings)
        ungraded += bool(lack_of_texts(rows.n_graded))
    assert count_texts(poor).too_few_test_texts == ungraded == 3


def test_the_splits_are_those_of_training(poor: LensDataset) -> None:
    assert unnamed_texts(poor, "bird")[TRAIN] > unnamed_texts(poor, "bird")[TEST]
