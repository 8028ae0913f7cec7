"""What a lens has to beat: shuffled labels, a random direction, text length, the prompt's words.

    training texts, all of them --means of classes--> text length, words of the prompt: a lens each
    rows of a chunk of concepts, labels shuffled --the family's own fit--> lenses of no concept
    random directions, the same for all concepts ----------------------> lenses of no concept

A concept whose prompts are longer than others', or whose texts share words, gets a good lens from
any model. So controls are judged on the texts that the lens is judged on (Hewitt and Liang,
"Designing and Interpreting Probes with Control Tasks", 2019).

What a single random lens gets on three test texts is luck. So those of all concepts that are fitted
together judge each of them: the score of such a control is the mean over these draws, and a lead
over it is one over all of them. What reads texts learns from all negatives, not from those that
were drawn for a lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset, Rows, stable_seed
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows, as_matrix
from lenstrain.data.words import word_features
from lenstrain.families.contract import Scores, Trainer
from lenstrain.families.linear import LinearFit
from lenstrain.fit.fitted import Control
from lenstrain.metrics.score import Ranked, rank_draws
from lenstrain.settings import FitSettings

CONTROLS = ("shuffled labels", "random direction", "text length", "words of the prompt")

_DIRECTIONS = 32
_SHUFFLES = 8  # at least, where few concepts are fitted together


class MeasuredControls(NamedTuple):
    """The controls of one lens."""

    controls: dict[str, Control]
    best: str
    """The control with the best score on the calibration split: by the test split, the luckiest of
    four would be chosen."""
    ranked: Ranked
    """What it makes of the graded texts."""


class Controls:
    """The controls of a dataset's lenses; features of the texts are made when first needed."""

    def __init__(self, dataset: LensDataset, settings: FitSettings) -> None:
        self.dataset, self.settings = dataset, settings

    @cached_property
    def words(self) -> _OfTexts:
        """TF-IDF of the prompts."""
        return _OfTexts(word_features(self.dataset, self.dataset.texts)[0])

    @cached_property
    def lengths(self) -> _OfTexts:
        """Logarithm of each text's length in tokens, and its square: texts of a concept may be of
        middling length."""
        dataset, samples = self.dataset, self.dataset.samples_by_split
        is_completion = np.array([phase == "completion" for phase in dataset.phases])
        counts = np.where(
            is_completion[dataset.phases_by_split],
            dataset.n_completion_tokens[samples],
            dataset.n_prompt_tokens[samples],
        )
        length = np.log1p(counts.astype(np.float32))
        centred = length - length.mean()
        return _OfTexts(Features.of_dense(dataset, np.stack([centred, centred**2], axis=1)))

    def measure(
        self,
        draws: tuple[Draws, Draws],
        tasks: Sequence[TaskRows],
        counts: Sequence[int],
    ) -> list[MeasuredControls]:
        """All controls of some lenses.

        Parameters
        ----------
        draws : lenses of shuffled labels, and random directions.
        tasks : the concept of each lens.
        counts : how many of its training rows each lens learned.
        """
        shuffled, directions = draws
        learned = [
            task.training.rows[:count][task.training.targets[:count]]
            for task, count in zip(tasks, counts, strict=True)
        ]
        by_control = (
            shuffled.judge(tasks),
            directions.judge(tasks, directions.pointing_at(learned)),
            self.lengths.judge(tasks, learned),
            self.words.judge(tasks, learned),
        )
        return [
            self._with_best(dict(zip(CONTROLS, ranked, strict=True)))
            for ranked in zip(*by_control, strict=True)
        ]

    def _with_best(self, ranked: dict[str, _BySplit]) -> MeasuredControls:
        prevalence = self.settings.prevalence
        chosen_by = {name: each.calibration.score(prevalence) for name, each in ranked.items()}
        best = max(CONTROLS, key=lambda name: np.nan_to_num(chosen_by[name], nan=-1.0))
        scores = {name: Control(each.test.score(prevalence)) for name, each in ranked.items()}
        return MeasuredControls(scores, best, ranked[best].test)

    def shuffled(
        self,
        trainer: Trainer,
        features: Features,
        tasks: Sequence[TaskRows],
        strengths: Sequence[float],
    ) -> Draws:
        """Lenses of all rows of some concepts with shuffled labels, each as often as it takes.

        Parameters
        ----------
        trainer : holds the rows of `tasks`, with their Gram matrices: shuffled labels are more
            right-hand sides.
        strengths : inverse L2 strength of each concept's lens.
        """
        times = -(-_SHUFFLES // len(tasks))
        targets = [self._shuffle(task, time) for time in range(times) for task in tasks]
        which, counts = [*range(len(tasks))] * times, [*map(len, tasks)] * times
        return Draws(features, trainer.fit(which, counts, [*strengths] * times, targets))

    def _shuffle(self, task: TaskRows, time: int) -> NDArray[np.bool_]:
        """Targets of the rows, shuffled among samples: both phases of a sample stay alike."""
        samples, target = task.training.samples, task.training.targets
        distinct, first, place = np.unique(samples, return_index=True, return_inverse=True)
        seed = stable_seed("shuffled", self.settings.seed, task.task.concept, time)
        rng = np.random.default_rng(seed)
        return np.asarray(target[first][rng.permutation(len(distinct))][place])


class _BySplit(NamedTuple):
    """What a control makes of the texts that a lens is judged on."""

    calibration: Ranked
    test: Ranked


_HELD_OUT = (CALIBRATION, TEST)


class Draws:
    """Lenses that know nothing of any concept, judged on the texts of each."""

    def __init__(self, features: Features, fit: Scores) -> None:
        self._features, self.fit = features, fit
        self._sampled = {split: features.sampled_logits([fit], split) for split in _HELD_OUT}
        self._sorted = {split: np.sort(logits) for split, logits in self._sampled.items()}
        self._every = np.arange(len(self._sampled[TEST]))

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        """(lenses,) mean logit of all training rows."""
        training = self._features.Z[self._features.dataset.split_slices[TRAIN]]
        mean = _sums(training)[None] / training.shape[0]
        return np.asarray(self.fit.decision_function(mean)[0])

    def pointing_at(self, learned: Sequence[Rows]) -> list[Rows]:
        """For each concept, of each random direction and its opposite, the one along which its
        training rows `learned` lie above the mean of all training rows."""
        mean, own = self._mean, _logits_of_each(self._features, self.fit, TRAIN, learned)
        first = np.arange(len(mean) // 2)
        return [
            np.where((logits.mean(axis=1) >= mean)[: len(first)], first, first + len(first))
            for logits in own
        ]

    def judge(
        self, tasks: Sequence[TaskRows], chosen: Sequence[Rows] | None = None
    ) -> list[_BySplit]:
        """What the lenses make of the texts of some concepts; `chosen` are some of the lenses, for
        each concept."""
        chosen = chosen or [self._every] * len(tasks)
        calibration, test = (self._judge(tasks, chosen, split) for split in _HELD_OUT)
        return [*map(_BySplit, calibration, test)]

    def _judge(self, tasks: Sequence[TaskRows], chosen: Sequence[Rows], split: int) -> list[Ranked]:
        positives = [task.sides(split).positives for task in tasks]
        own = _logits_of_each(self._features, self.fit, split, positives)
        return [
            self._ranked(task, split, lenses, logits[lenses])
            for task, lenses, logits in zip(tasks, chosen, own, strict=True)
        ]

    def _ranked(
        self, task: TaskRows, split: int, lenses: Rows, logits: NDArray[np.float64]
    ) -> Ranked:
        counted, texts = task.chosen(split, task.counted(split))
        own, negative = logits[:, counted], task.sampled_negatives(split)
        apart = np.sort(self._sampled[split][np.ix_(lenses, ~negative)])
        above = [
            (len(every) - np.searchsorted(every, its))
            - (len(others) - np.searchsorted(others, its))
            for every, others, its in zip(
                (self._sorted[split][lens] for lens in lenses), apart, own, strict=True
            )
        ]
        n_rows = int(negative.sum())
        n_texts = min(task.sides(split).n_negative_texts, n_rows)
        return rank_draws(own, texts, np.array(above).reshape(own.shape), n_rows, n_texts)


def random_directions(features: Features, seed: int) -> Draws:
    """Random directions, then their opposites."""
    width = features.Z.shape[1]
    rng = np.random.default_rng(stable_seed("directions", seed, width))
    weight = rng.normal(size=(_DIRECTIONS, width)) / np.sqrt(width)
    return Draws(features, _unfitted(np.concatenate([weight, -weight])))


class _OfTexts:
    """Lenses that read texts instead of activations: by the means of a concept's training texts
    and of all others, each feature over its variance."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._training: Any = features.Z[features.dataset.split_slices[TRAIN]]
        self._total = _sums(self._training)
        squares = self._training * self._training
        n = self._training.shape[0]
        variance = _sums(squares) / n - (self._total / n) ** 2
        scale = variance + variance.mean()
        self._scale = np.where(scale > 0, scale, 1.0)  # texts may all be of one length

    def judge(self, tasks: Sequence[TaskRows], learned: Sequence[Rows]) -> list[_BySplit]:
        """What they make of the texts of some concepts, whose lenses learned some rows."""
        fit = self._fit([task.apart for task in tasks], learned)
        calibration, test = (self._judge(fit, tasks, split) for split in _HELD_OUT)
        return [*map(_BySplit, calibration, test)]

    def _judge(self, fit: LinearFit, tasks: Sequence[TaskRows], split: int) -> list[Ranked]:
        sampled = self._features.sampled_logits([fit], split)
        positives = [task.sides(split).positives for task in tasks]
        own = _logits_of_each(self._features, fit, split, positives)
        return [
            task.ranked_in_sample(split, own[i][i], sampled[i], task.counted(split))
            for i, task in enumerate(tasks)
        ]

    def _fit(self, apart: Sequence[Rows], learned: Sequence[Rows]) -> LinearFit:
        n_rest = np.array([self._training.shape[0] - len(rows) for rows in apart])
        rest = (self._total - self._sums_of(apart)) / np.maximum(n_rest, 1)[:, None]
        mean = self._sums_of(learned) / np.array([*map(len, learned)])[:, None]
        return _unfitted((mean - rest) / self._scale)

    def _sums_of(self, rows: Sequence[Rows]) -> NDArray[np.float64]:
        """(concepts, features) sums of some training rows of each concept."""
        chosen = as_matrix(rows, self._training.shape[0])
        dense = isinstance(self._training, torch.Tensor)
        found = chosen @ (self._training.cpu().numpy() if dense else self._training)
        return np.asarray(found if dense else found.toarray(), np.float64)


def _logits_of_each(
    features: Features, fit: Scores, split: int, rows: Sequence[Rows]
) -> list[NDArray[np.float64]]:
    """For each concept, (lenses, rows) logits of all lenses on its rows of a split."""
    logits = fit.decision_function(features.rows_of(split, np.concatenate(rows))).T
    ends = np.cumsum([0, *map(len, rows)])
    return [logits[:, start:end] for start, end in pairwise(ends)]


def _sums(matrix: Any) -> NDArray[np.float64]:
    """(features,) sums over the rows of a tensor or a sparse matrix."""
    if isinstance(matrix, torch.Tensor) and matrix.device.type == "cpu":
        # torch would make a float64 copy of all of it first
        return np.asarray(matrix.numpy().sum(axis=0, dtype=np.float64))
    if isinstance(matrix, torch.Tensor):
        return np.asarray(matrix.sum(0, dtype=torch.float64).cpu())
    return np.asarray(matrix.sum(0), np.float64).ravel()


def _unfitted(weight: NDArray[np.float64]) -> LinearFit:
    """Weights (lenses, features) as a fit, without biases."""
    n = len(weight)
    return LinearFit(weight, np.zeros(n), [], np.ones(n, np.bool_))
