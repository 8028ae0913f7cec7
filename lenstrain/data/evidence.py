"""How many texts a grade could rest on, counted before anything is fitted.

A grade rests on test texts that express a concept without naming it (`lenstrain.metrics.grade`).
How many there are is known as soon as a store is open, and fitting does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lenscache.concepts.evidence import FEW_TEXTS
from lenscache.concepts.plan import SPLITS
from lenstrain.data.dataset import CALIBRATION, TEST, LensDataset
from lenstrain.metrics.grade import MIN_TEXTS


class TextCounts(NamedTuple):
    """How many concepts have too few texts that express them without naming them."""

    n_concepts: int
    no_text: int
    """Without such a text in any split."""
    no_test_text: int
    """Without one in the test split; those of `no_text` included."""
    one_test_text: int
    """With exactly one there."""
    too_few_test_texts: int
    """With fewer than `MIN_TEXTS` there: the status of their lenses is "ungraded" at best."""
    no_calibration_text: int
    """Without one in the calibration split: they have no vote on the model layer."""
    few_texts: int = 0
    """With 1 to `FEW_TEXTS` in all splits together: good to learn from, not to judge by."""


def count_texts(dataset: LensDataset, concepts: Sequence[str] | None = None) -> TextCounts:
    """Count the concepts of a dataset that have too few unnamed texts.

    Parameters
    ----------
    concepts : ids, of which those without samples do not count; None for all of the dataset.
    """
    chosen = [concept for concept in dataset.concepts if concepts is None or concept in concepts]
    counts = np.array([unnamed_texts(dataset, concept) for concept in chosen], np.intp)
    by_split = counts.reshape(len(chosen), len(SPLITS))
    test, total = by_split[:, TEST], by_split.sum(axis=1)
    return TextCounts(
        n_concepts=len(chosen),
        no_text=int((total == 0).sum()),
        no_test_text=int((test == 0).sum()),
        one_test_text=int((test == 1).sum()),
        too_few_test_texts=int((test < MIN_TEXTS).sum()),
        no_calibration_text=int((by_split[:, CALIBRATION] == 0).sum()),
        few_texts=int(((total > 0) & (total <= FEW_TEXTS)).sum()),
    )


def unnamed_texts(dataset: LensDataset, concept: str) -> tuple[int, ...]:
    """Distinct texts of each split that express a concept without naming it."""
    rows = dataset.positives(concept)
    rows = rows[dataset.unnamed(concept, rows)]
    split = dataset.split[rows]
    return tuple(
        len(np.unique(dataset.text_number[rows[split == number]])) for number in range(len(SPLITS))
    )
