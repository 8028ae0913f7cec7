"""What a lens has to beat: the same fit with shuffled labels, a random direction, text length, and
the prompt's words.

A concept whose prompts are longer than others', or that is always named, gets a good lens from any
model. The controls are judged exactly as the lens is, on the same rows (Hewitt and Liang,
"Designing and Interpreting Probes with Control Tasks", 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product

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
from lenstrain.fit.measure import decide, deciding
from lenstrain.metrics.thresholds import classify
from lenstrain.settings import FitSettings

CONTROLS = ("shuffled labels", "random direction", "text length", "words of the prompt")

_WORDS_C = 10.0  # in the middle of what text lenses choose from
_LENGTH_C = 1.0


class Controls:
    """The controls of a dataset's lenses; what they need of the texts is made when first asked
    for."""

    def __init__(self, dataset: LensDataset, settings: FitSettings) -> None:
        self.dataset, self.settings = dataset, settings

    @cached_property
    def words(self) -> Features:
        """TF-IDF of the prompts."""
        return word_features(self.dataset, self.dataset.texts)[0]

    @cached_property
    def lengths(self) -> Features:
        """Logarithm of each text's length in tokens, and its square: a concept may be of middling
        length."""
        dataset = self.dataset
        is_completion = np.array([phase == "completion" for phase in dataset.phases])[
            dataset.phases_by_split
        ]
        counts = np.where(
            is_completion,
            dataset.n_completion_tokens[dataset.samples_by_split],
            dataset.n_prompt_tokens[dataset.samples_by_split],
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
    ) -> list[dict[str, Control]]:
        """All controls of some concepts.

        Parameters
        ----------
        trainer : holds the rows of `tasks`, with their Gram matrices: shuffled labels are more
            right-hand sides.
        which : numbers of the concepts in `trainer`, one for each of `tasks`.
        counts : how many of its rows each concept's lens learned.
        strengths : inverse L2 strength of each lens.
        """
        rows = [task.training.rows[:count] for task, count in zip(tasks, counts, strict=True)]
        targets = [task.training.targets[:count] for task, count in zip(tasks, counts, strict=True)]

        def fit_alone(other: Features, C: float) -> LinearFit:
            return LinearTrainer(other.Z, rows, targets).path([C])[
                0
            ]  # to compare with, not to ship

        shuffled = [self._shuffled(task, count) for task, count in zip(tasks, counts, strict=True)]
        fits: list[tuple[Features, dict[str, Scores]]] = [
            (
                features,
                {
                    "shuffled labels": trainer.fit(which, counts, strengths, shuffled),
                    "random direction": self._random_directions(features, tasks, rows, targets),
                },
            ),
            (self.lengths, {"text length": fit_alone(self.lengths, _LENGTH_C)}),
            (self.words, {"words of the prompt": fit_alone(self.words, _WORDS_C)}),
        ]
        found: list[dict[str, Control]] = [{} for _ in tasks]
        for seen, named in fits:
            test = seen.logits([*named.values()], TEST)
            # A threshold for a false positive rate is chosen on nearly all rows, any other on a
            # few.
            every = (
                None if self.settings.fpr is None else seen.logits([*named.values()], CALIBRATION)
            )
            for column, (name, number) in enumerate(product(named, range(len(tasks)))):
                task, drawn, logits = tasks[number], tasks[number].drawn(TEST), test[column]
                held = deciding(task, self.settings)
                if every is None:
                    chosen = seen.logits_of(named[name], number, CALIBRATION, held.rows)
                else:
                    chosen = every[column, held.rows]
                threshold = decide(held, chosen, self.settings)
                score = task.score(TEST, logits, self.settings.prevalence)
                found[number][name] = Control(
                    score, classify(drawn.y, logits[drawn.rows], threshold).f1
                )
        return found

    def _shuffled(self, task: TaskRows, count: int) -> NDArray[np.bool_]:
        """Targets of the rows, dealt out anew among their samples: both phases of a sample stay
        alike."""
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
        """A direction for each concept, turned so that its training positives are above its
        negatives."""
        weight = np.empty((len(tasks), features.Z.shape[1]))
        for number, (task, chosen, target) in enumerate(zip(tasks, rows, targets, strict=True)):
            rng = np.random.default_rng(
                stable_seed("direction", self.settings.seed, task.task.concept)
            )
            direction = rng.normal(size=weight.shape[1]) / np.sqrt(weight.shape[1])
            part = (
                features.Z[torch.from_numpy(chosen)]
                if isinstance(features.Z, torch.Tensor)
                else features.Z[chosen]
            )
            along = LinearFit(
                direction[None], np.zeros(1), [], np.ones(1, np.bool_)
            ).decision_function(part)[:, 0]
            weight[number] = direction * (
                1 if along[target].mean() >= along[~target].mean() else -1
            )
        return LinearFit(weight, np.zeros(len(tasks)), [], np.ones(len(tasks), np.bool_))
