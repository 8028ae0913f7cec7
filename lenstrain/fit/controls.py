"""What a lens has to beat: shuffled labels, a random direction, text length, the prompt's words.

A concept whose prompts are longer than others', or that is always named, gets a good lens from any
model. The controls are judged exactly as the lens is, on the same rows (Hewitt and Liang,
"Designing and Interpreting Probes with Control Tasks", 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, LensDataset, stable_seed
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.data.words import word_features
from lenstrain.families.contract import Scores, Trainer
from lenstrain.families.linear import LinearFit, LinearTrainer
from lenstrain.fit.fitted import Control
from lenstrain.fit.measure import calibration_score, decide, deciding
from lenstrain.metrics.score import Ranked
from lenstrain.metrics.thresholds import classify
from lenstrain.settings import FitSettings

CONTROLS = ("shuffled labels", "random direction", "text length", "words of the prompt")

_WORDS_C = 10.0  # in the middle of what text lenses choose from
_LENGTH_C = 1.0


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
    def words(self) -> Features:
        """TF-IDF of the prompts."""
        return word_features(self.dataset, self.dataset.texts)[0]

    @cached_property
    def lengths(self) -> Features:
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
        return Features.of_dense(dataset, np.stack([centred, centred**2], axis=1))

    def measure(
        self,
        trainer: Trainer,
        features: Features,
        tasks: Sequence[TaskRows],
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],
    ) -> list[MeasuredControls]:
        """All controls of some concepts.

        Parameters
        ----------
        trainer : holds the rows of `tasks`, with their Gram matrices: shuffled labels are more
            right-hand sides.
        which : numbers of the concepts in `trainer`, one for each of `tasks`.
        counts : how many of its rows each concept's lens learned.
        strengths : inverse L2 strength of each lens.
        """
        learned = [*zip(tasks, counts, strict=True)]
        rows = [task.training.rows[:count] for task, count in learned]
        targets = [task.training.targets[:count] for task, count in learned]

        def fit_alone(other: Features, C: float) -> LinearFit:
            return LinearTrainer(other.Z, rows, targets).path([C])[
                0
            ]  # compared with, never shipped

        shuffled = [self._shuffled(task, count) for task, count in learned]
        of_features: dict[str, Scores] = {
            "shuffled labels": trainer.fit(which, counts, strengths, shuffled),
            "random direction": self._random_directions(features, tasks, rows, targets),
        }
        fits: list[tuple[Features, dict[str, Scores]]] = [
            (features, of_features),
            (self.lengths, {"text length": fit_alone(self.lengths, _LENGTH_C)}),
            (self.words, {"words of the prompt": fit_alone(self.words, _WORDS_C)}),
        ]
        measured: list[dict[str, tuple[float, Ranked, Control]]] = [{} for _ in tasks]
        prevalence = self.settings.prevalence
        for seen, named in fits:
            test, calibration = (seen.logits([*named.values()], s) for s in (TEST, CALIBRATION))
            for column, (name, number) in enumerate(product(named, range(len(tasks)))):
                task, drawn, logits = tasks[number], tasks[number].drawn(TEST), test[column]
                held, chosen = deciding(task, self.settings), calibration[column]
                threshold = decide(held, chosen[held.rows], self.settings)
                ranked = task.ranked(TEST, logits)
                f1 = classify(drawn.y, logits[drawn.rows], threshold).f1
                control = Control(ranked.score(prevalence), f1)
                by = calibration_score(task, chosen, prevalence)
                measured[number][name] = by, ranked, control
        return [_with_best(each) for each in measured]

    def _shuffled(self, task: TaskRows, count: int) -> NDArray[np.bool_]:
        """Targets of the rows, shuffled among samples: both phases of a sample stay alike."""
        samples, target = task.training.samples[:count], task.training.targets[:count]
        distinct, first, place = np.unique(samples, return_index=True, return_inverse=True)
        rng = np.random.default_rng(stable_seed("shuffled", self.settings.seed, task.task.concept))
        return np.asarray(target[first][rng.permutation(len(distinct))][place])

    def _random_directions(
        self,
        features: Features,
        tasks: Sequence[TaskRows],
        rows: Sequence[NDArray[np.intp]],
        targets: Sequence[NDArray[np.bool_]],
    ) -> LinearFit:
        """A direction for each concept, along which its training positives lie above its
        negatives."""
        Z, weight = features.Z, np.empty((len(tasks), features.Z.shape[1]))
        for number, (task, chosen, target) in enumerate(zip(tasks, rows, targets, strict=True)):
            seed = stable_seed("direction", self.settings.seed, task.task.concept)
            direction = np.random.default_rng(seed).normal(size=weight.shape[1])
            direction /= np.sqrt(weight.shape[1])
            part = Z[torch.from_numpy(chosen)] if isinstance(Z, torch.Tensor) else Z[chosen]
            along = _unfitted(direction[None]).decision_function(part)[:, 0]
            is_right = along[target].mean() >= along[~target].mean()
            weight[number] = direction if is_right else -direction
        return _unfitted(weight)


def _unfitted(weight: NDArray[np.float64]) -> LinearFit:
    """Weights (lenses, features) as a fit, without biases."""
    n = len(weight)
    return LinearFit(weight, np.zeros(n), [], np.ones(n, np.bool_))


def _with_best(measured: dict[str, tuple[float, Ranked, Control]]) -> MeasuredControls:
    best = max(CONTROLS, key=lambda name: np.nan_to_num(measured[name][0], nan=-1.0))
    controls = {name: control for name, (_, _, control) in measured.items()}
    return MeasuredControls(controls, best, measured[best][1])
