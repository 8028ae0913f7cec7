"""The rows of one concept: what it learns at each iteration, and what it is judged by.

    Task (samples) --TaskRows--> training: rows in the order in which iterations take them up
                                 drawn(split): its own positives and negatives
                                 judged(split): all but its ancestors' and descendants' samples

Rows are those of the dataset's vectors sorted by split (`LensDataset.split_place`); those of a
held-out split are counted from its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lenstrain.data.dataset import NO_ROWS, TEST, TRAIN, LensDataset, Rows
from lenstrain.data.tasks import Task
from lenstrain.errors import LeakageError
from lenstrain.metrics.score import Ranked, rank_positives
from lenstrain.settings import FitSettings

Which = Literal["unnamed", "named", "all"]


class TrainingRows(NamedTuple):
    """What a concept learns. The first `ends[k]` rows are those of iteration k."""

    rows: Rows
    targets: NDArray[np.bool_]
    """Whether each row expresses the concept."""
    samples: Rows
    """The sample of each row."""
    ends: list[int]
    n_positives: list[int]
    """Positive samples of each iteration."""
    n_negatives: list[int]


class Sides(NamedTuple):
    """What a lens is judged by in a held-out split."""

    positives: Rows
    is_negative: NDArray[np.bool_]
    """(rows of the split,) neither a positive nor of its ancestors' and descendants' samples."""
    n_negative: int
    is_unnamed: NDArray[np.bool_]
    """(positives,) whether a row's text expresses the concept without naming it."""
    n_negative_texts: int
    """Distinct texts among the negatives."""


class HeldOut(NamedTuple):
    """Rows of a held-out split that a lens is measured on."""

    rows: Rows
    y: NDArray[np.bool_]
    """Whether each row expresses the concept."""
    samples: Rows
    """The sample of each row: both phases of a sample belong together."""


class TaskRows:
    """The rows of one concept.

    Raises
    ------
    LeakageError
        If a row to train on is not of the training split.
    """

    def __init__(self, dataset: LensDataset, task: Task, settings: FitSettings) -> None:
        self.dataset, self.task, self._settings = dataset, task, settings
        self.training = _training_rows(dataset, task, settings)
        self._drawn: dict[int, HeldOut] = {}
        self._sides: dict[int, Sides] = {}

    def __len__(self) -> int:
        """Training rows of the last iteration."""
        return self.training.ends[-1]

    @property
    def last_iteration(self) -> int:
        """Counted from 1."""
        return len(self.training.ends)

    def without(self, samples: Rows) -> TaskRows:
        """The same without some samples, for training and judging; not for the concept's own."""
        negatives = tuple(rows[~np.isin(rows, samples)] for rows in self.task.negatives)
        related = np.union1d(self.task.related, samples)
        task = replace(self.task, negatives=negatives, related=related)
        return TaskRows(self.dataset, task, self._settings)

    @property
    def apart(self) -> Rows:
        """Rows of the training split that are no negatives: its own, taken up or not, and its
        ancestors' and descendants'."""
        mark = np.zeros(self.dataset.n_samples, np.bool_)
        mark[self.dataset.positives(self.task.concept)] = mark[self.task.related] = True
        return np.flatnonzero(mark[_samples(self.dataset, TRAIN)])

    def drawn_from(self, split: int, positives: Rows) -> HeldOut:
        """Some of its positive samples in a split, and its negatives there."""
        mark = np.zeros(self.dataset.n_samples, np.int8)
        mark[self.task.negatives[split]] = 1
        mark[positives] = 2
        samples = _samples(self.dataset, split)
        rows = np.flatnonzero(mark[samples])
        return HeldOut(rows, mark[samples[rows]] == 2, samples[rows])

    def drawn(self, split: int) -> HeldOut:
        """Its own positives and negatives in a split."""
        if split not in self._drawn:
            self._drawn[split] = self.drawn_from(split, self.task.positives[split])
        return self._drawn[split]

    def judged(self, split: int) -> HeldOut:
        """Everything in a split but the samples of its ancestors and descendants.

        Made anew each time: of thousands of concepts it is more than their activations.
        """
        samples, sides = _samples(self.dataset, split), self.sides(split)
        is_positive = np.zeros(len(samples), np.bool_)
        is_positive[sides.positives] = True
        rows = np.flatnonzero(is_positive | sides.is_negative)
        return HeldOut(rows, is_positive[rows], samples[rows])

    def sides(self, split: int) -> Sides:
        """The rows of `judged`, by class."""
        if split not in self._sides:
            mark = np.zeros(self.dataset.n_samples, np.int8)
            mark[self.task.positives[split]] = 1
            mark[self.task.related] = 2
            here = mark[_samples(self.dataset, split)]
            positives, is_negative = np.flatnonzero(here == 1), here == 0
            own = _samples(self.dataset, split)[positives]
            seen = np.zeros(self.dataset.n_samples, np.bool_)
            seen[self._texts(split)[is_negative]] = True
            self._sides[split] = Sides(
                positives,
                is_negative,
                int(is_negative.sum()),
                self.dataset.unnamed(self.task.concept, own),
                int(seen.sum()),
            )
        return self._sides[split]

    def n_texts(self, split: int, which: Which = "all") -> int:
        """Distinct texts that express the concept in a split."""
        rows = self.task.positives[split]
        if which != "all":
            rows = rows[self.dataset.unnamed(self.task.concept, rows) == (which == "unnamed")]
        return len(np.unique(self.dataset.text_number[rows]))

    @cached_property
    def n_graded(self) -> int:
        """Distinct test texts that a grade rests on: those that do not name the concept."""
        return self.n_texts(TEST, "unnamed")

    def _texts(self, split: int) -> Rows:
        """The text of each row of a split."""
        return self.dataset.text_number[_samples(self.dataset, split)]

    def ranked(self, split: int, logits: NDArray[np.float64], which: Which = "unnamed") -> Ranked:
        """Its positives ranked among everything that it is judged by.

        Parameters
        ----------
        logits : (rows of the split,)
        which : the positives that do not name the concept, those that do, or all.
        """
        sides, (chosen, texts) = self.sides(split), self.chosen(split, which)
        own = logits[sides.positives[chosen]]
        # Negatives below all positives, nearly all of them, do not count.
        lowest = own.min(initial=np.inf)  # NaN if there is one among them
        reaching = sides.is_negative
        if not np.isnan(lowest):
            reaching = reaching & (logits >= lowest)
        return rank_positives(
            own, texts, logits[reaching], sides.n_negative, sides.n_negative_texts
        )

    def ranked_in_sample(
        self,
        split: int,
        own: NDArray[np.float64],
        sampled: NDArray[np.float64],
        which: Which = "unnamed",
    ) -> Ranked:
        """Its positives ranked among a sample of what it is judged by.

        Parameters
        ----------
        own : (positive rows of the split,) logits.
        sampled : (rows of `LensDataset.sampled_rows`,) logits.
        """
        chosen, texts = self.chosen(split, which)
        negative = sampled[self.sampled_negatives(split)]
        n_texts = min(self.sides(split).n_negative_texts, len(negative))
        return rank_positives(own[chosen], texts, negative, len(negative), n_texts)

    def sampled_negatives(self, split: int) -> NDArray[np.bool_]:
        """(rows of `LensDataset.sampled_rows`,) which of them are negatives."""
        return self.sides(split).is_negative[self.dataset.sampled_rows[split]]

    def counted(self, split: int) -> Which:
        """The positives that a lens is judged by in a split: those that do not name the concept; of
        the calibration split, where there are none, all."""
        has_any = split == TEST or self.sides(split).is_unnamed.any()
        return "unnamed" if has_any else "all"

    def chosen(self, split: int, which: Which) -> tuple[NDArray[np.bool_], Rows]:
        """(positive rows of the split,) which of them count, and the text of each of these."""
        sides = self.sides(split)
        every = np.ones(len(sides.positives), np.bool_)
        chosen = every if which == "all" else sides.is_unnamed == (which == "unnamed")
        samples = _samples(self.dataset, split)[sides.positives[chosen]]
        return chosen, self.dataset.text_number[samples]

    def ranked_among_natural(
        self, test: NDArray[np.float64], natural: NDArray[np.float64]
    ) -> Ranked:
        """Its unnamed test positives ranked among texts that express no concept.

        Parameters
        ----------
        test : (rows of the test split,) logits.
        natural : (background vectors to judge by,) logits, see `LensDataset.background`.
        """
        (chosen, texts), source = self.chosen(TEST, "unnamed"), self.dataset.background
        own = test[self.sides(TEST).positives[chosen]]
        n_texts = 0 if source is None else source.n_texts
        return rank_positives(own, texts, natural, len(natural), n_texts)

    def score(
        self, split: int, logits: NDArray[np.float64], prevalence: float, which: Which = "unnamed"
    ) -> float:
        """The score of logits (rows of the split,) among everything that it is judged by."""
        return self.ranked(split, logits, which).score(prevalence)

    def forget(self) -> None:
        """Let go of what was looked up."""
        self._drawn.clear()
        self._sides.clear()


def training_classes(dataset: LensDataset, usable: NDArray[np.bool_]) -> Any:
    """Sparse (training rows, concepts + 1): 1 where a row expresses a concept, in the last column
    where it expresses none; nothing for rows that are not `usable` (training rows,)."""
    concepts = [*dataset.positive_rows.values()]
    expressed = as_matrix(concepts, dataset.n_samples).T.tocsr()
    none = csr_array((np.diff(expressed.indptr) == 0)[:, None].astype(np.float32))
    rows = scipy.sparse.hstack([expressed, none], format="csr")[_samples(dataset, TRAIN)]
    rows.data[np.repeat(~usable, np.diff(rows.indptr))] = 0
    rows.eliminate_zeros()
    return rows


def as_matrix(rows: Sequence[Rows], n: int) -> Any:
    """Sparse (lists, n): 1 where a number is in a list of row numbers below n."""
    numbers = np.repeat(np.arange(len(rows)), [*map(len, rows)])
    places = numbers, np.concatenate([NO_ROWS, *rows])
    return csr_array((np.ones(len(numbers), np.float32), places), (len(rows), n))


def _samples(dataset: LensDataset, split: int) -> Rows:
    """The sample of each row of a split."""
    return dataset.samples_by_split[dataset.split_slices[split]]


def _training_rows(dataset: LensDataset, task: Task, settings: FitSettings) -> TrainingRows:
    positives, negatives = task.positives[TRAIN], task.negatives[TRAIN]
    parts: list[Rows] = []
    targets: list[NDArray[np.bool_]] = []
    ends: list[int] = []
    n_positives, n_negatives = [0], [0]
    for iteration in range(1, settings.max_iterations + 1):
        p, n = n_positives[-1], n_negatives[-1]
        more_p = settings.n_samples(iteration, len(positives))
        more_n = min(settings.n_negatives(more_p), len(negatives))
        if ends and more_p == p:
            break
        for rows, target in ((positives[p:more_p], True), (negatives[n:more_n], False)):
            parts.append(dataset.vectors_of(rows))
            targets.append(np.full(len(parts[-1]), target))
        ends.append(sum(map(len, parts)))
        n_positives.append(more_p)
        n_negatives.append(more_n)
    vectors = np.concatenate(parts)
    samples = dataset.vector_sample[vectors]
    if (strange := dataset.split[samples] != TRAIN).any():
        raise LeakageError(
            f"{task.concept}: {int(strange.sum())} of {len(strange)} rows to train on are held out "
            "for calibration or test: the splits of the dataset were changed after its tasks were "
            "made"
        )
    counts = n_positives[1:], n_negatives[1:]
    place, y = dataset.split_place[vectors], np.concatenate(targets)
    return TrainingRows(place, y, samples, ends, *counts)
