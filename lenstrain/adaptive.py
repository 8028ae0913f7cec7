"""Adaptive training: give every concept as many samples as it needs, and no more.

    Task of each concept --choose_model_layers--> one model layer each, by the calibration split
                         --rounds of fit and judge--> graduated, or out of samples

A concept starts with a few training samples and gets more until its lens graduates: test F1 at the target, without
overfitting. All concepts of a model layer that are still in training are fitted as one batch an iteration.

What each split is for: training rows fit the lens and give the feature statistics; calibration rows choose the model
layer, the decision threshold and the probabilities; test rows decide graduation and fill the report, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.calibration import Grade, Ranking, Sigmoid, best_threshold, classify, fit_sigmoid, ranking
from lenstrain.choice import FitProgress, OnProgress, choose_model_layers, choose_strengths
from lenstrain.dataset import CALIBRATION, TEST, TRAIN, LensDataset, Task
from lenstrain.errors import SettingsError, TooFewSamplesError
from lenstrain.layerdata import LayerData
from lenstrain.linear import LinearBatch
from lenstrain.settings import FitSettings, settings_to_json

__all__ = [
    "FitProgress", "FitResult", "FitSettings", "FittedLens", "Iteration", "OnProgress", "choose_model_layers",
    "fit_lenses", "fit_targets", "settings_to_json",
]  # fmt: skip


class Iteration(NamedTuple):
    """One fit of one concept at one sample count."""

    n_samples: int
    """Positive training samples."""
    n_negatives: int
    train_f1: float
    test_f1: float
    score: float
    grade: str
    graduated: bool


@dataclass
class FittedLens:
    """A lens and what is known about it."""

    concept: str
    model_layer: int
    weight: NDArray[np.float64]
    """(hidden,) on raw activations."""
    bias: float
    C: float
    """Inverse L2 strength it was fitted with."""
    threshold: float
    """Logit from which on the concept counts as present."""
    sigmoid: Sigmoid
    """Calibrated probability; both classes alike in prevalence."""
    ranking: Ranking
    """Against all held-out samples."""
    unnamed_score: float
    """Score on held-out samples that do not name their concept."""
    phase_scores: dict[str, float]
    """Score on the vectors of each phase alone."""
    train_f1: float
    test_f1: float
    f1_unnamed: float
    """Test F1 of the positives that do not name the concept, against the same negatives; NaN if there are none."""
    f1_named: float
    """Test F1 of those that do."""
    precision: float
    recall: float
    graduated: bool
    hungry: bool
    """Every cached sample was used and the lens did not graduate."""
    n_test: int
    """Positive test samples."""
    converged: bool
    trajectory: list[Iteration]

    @property
    def grade(self) -> Grade:
        """How far it can be trusted."""
        return Grade.of(self.ranking.score)

    @property
    def n_samples(self) -> int:
        """Positive training samples it was fitted on."""
        return self.trajectory[-1].n_samples


@dataclass
class FitResult:
    """All lenses of one fit."""

    lenses: list[FittedLens] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a concept got no lens, by concept."""

    @property
    def hungry(self) -> list[str]:
        """Concepts that used every cached sample and did not graduate."""
        return [lens.concept for lens in self.lenses if lens.hungry]


def fit_lenses(
    dataset: LensDataset,
    settings: FitSettings | None = None,
    *,
    concepts: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> FitResult:
    """Train a lens for every concept of a dataset.

    A concept with too few samples is left out and the reason kept in `FitResult.skipped`.

    Parameters
    ----------
    concepts : which concepts; None for all that the store was extracted for.

    Raises
    ------
    SettingsError
        If a concept or model layer is not in the store.
    TooFewSamplesError
        If not one concept has enough samples.
    """
    settings = settings or FitSettings()
    (result,) = fit_targets(dataset, settings, [settings.target_f1], concepts=concepts, on_progress=on_progress)
    return result


def fit_targets(
    dataset: LensDataset,
    settings: FitSettings,
    targets: Sequence[float],
    *,
    concepts: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> list[FitResult]:
    """Train for several target F1 in one pass: what `fit_lenses` gives for each of them, in their order.

    The iterations of a concept are the same whatever the target is, which only says where to stop. So each is fitted
    and judged once, until the last target is reached.

    Raises
    ------
    SettingsError, TooFewSamplesError
        As `fit_lenses`.
    """
    tell = on_progress or (lambda _: None)
    wanted = [replace(settings, target_f1=target) for target in targets]
    if not wanted:
        raise SettingsError("no target F1 to train for: name at least one")
    skipped: dict[str, str] = {}
    tasks = _tasks(dataset, settings, concepts, skipped)
    if not tasks:
        reason = next(iter(skipped.values()), "the store holds no concepts")
        raise TooFewSamplesError(f"no concept has enough samples to fit a lens; the first: {reason}")
    chosen = choose_model_layers(dataset, tasks, settings, on_progress=tell)
    lenses: dict[str, list[FittedLens]] = {}
    for model_layer in sorted(set(chosen)):
        here = [task for task, layer in zip(tasks, chosen, strict=True) if layer == model_layer]
        for found in _AdaptiveTraining(dataset, here, model_layer, wanted).run():
            lenses[found[0].concept] = found
            tell(FitProgress("fitting", len(lenses), len(tasks)))
    return [FitResult([lenses[task.concept][number] for task in tasks], dict(skipped)) for number in range(len(wanted))]


class _AdaptiveTraining:
    """The iterations of all tasks of one model layer, for settings that differ in their target F1 alone."""

    def __init__(
        self, dataset: LensDataset, tasks: Sequence[Task], model_layer: int, wanted: Sequence[FitSettings]
    ) -> None:
        self.dataset, self.tasks, self.model_layer, self.wanted = dataset, tasks, model_layer, wanted
        self.settings = wanted[0]
        self.layer = LayerData(dataset, model_layer, self.settings)
        self.strength = dict(
            zip((t.concept for t in tasks), choose_strengths(self.layer, tasks, self.settings), strict=True)
        )

    def run(self) -> Iterable[list[FittedLens]]:
        """For each concept, when it is through, its lens for each of the settings."""
        active = list(self.tasks)
        steps: dict[str, list[Iteration]] = {task.concept: [] for task in active}
        found: dict[str, list[FittedLens | None]] = {task.concept: [None] * len(self.wanted) for task in active}
        iteration = 0
        while active:
            iteration += 1
            counts = [self.settings.n_samples(iteration, len(task.positives[TRAIN])) for task in active]
            fitted = self.layer.fit(active, counts, [self.strength[task.concept] for task in active])
            logits = [self.layer.logits(fitted, split) for split in (TRAIN, CALIBRATION, TEST)]
            remaining = []
            for i, task in enumerate(active):
                lens = self._judge(task, counts[i], fitted, i, [values[:, i] for values in logits])
                steps[task.concept].append(lens.trajectory[0])
                more = self.settings.n_samples(iteration + 1, len(task.positives[TRAIN])) > counts[i]
                is_last = not more or iteration >= self.settings.max_iterations
                lenses = found[task.concept]
                for number, settings in enumerate(self.wanted):
                    graduated = settings.graduates(lens.trajectory[0], iteration)
                    if lenses[number] is None and (graduated or is_last):
                        hungry = not graduated and not more and counts[i] < settings.max_samples
                        trajectory = [
                            step._replace(graduated=settings.graduates(step, k))
                            for k, step in enumerate(steps[task.concept], start=1)
                        ]
                        lenses[number] = replace(lens, graduated=graduated, hungry=hungry, trajectory=trajectory)
                if None in lenses:
                    remaining.append(task)
                else:
                    yield [one for one in lenses if one is not None]
            active = remaining

    def _judge(
        self,
        task: Task,
        n: int,
        fitted: LinearBatch,
        i: int,
        logits: Sequence[NDArray[np.float64]],
    ) -> FittedLens:
        y, values = self.layer.drawn(task, CALIBRATION, logits[CALIBRATION])
        threshold, sigmoid = best_threshold(y, values), fit_sigmoid(y, values)
        rows, target = self.layer.training_rows(task, n)
        place = np.searchsorted(self.layer.vectors[TRAIN], rows)
        n_negatives = min(self.settings.n_negatives(n), len(task.negatives[TRAIN]))
        train_f1 = classify(target, logits[TRAIN][place], threshold).f1
        test = classify(*self.layer.drawn(task, TEST, logits[TEST]), threshold)
        rank = ranking(*self.layer.judged(task, TEST, logits[TEST]), self.settings.prevalence)
        return FittedLens(
            concept=task.concept, model_layer=self.model_layer, weight=fitted.weight[i], bias=float(fitted.bias[i]),
            C=self.strength[task.concept], threshold=threshold, sigmoid=sigmoid, ranking=rank,
            unnamed_score=self._score(task, logits[TEST], self.dataset.unnamed[self.layer.samples[TEST]]),
            phase_scores={
                phase: self._score(task, logits[TEST], self.dataset.vector_phase[self.layer.vectors[TEST]] == number)
                for number, phase in enumerate(self.dataset.phases)
            },
            train_f1=train_f1, test_f1=test.f1, f1_unnamed=self._f1_of(task, logits[TEST], threshold, named=False),
            f1_named=self._f1_of(task, logits[TEST], threshold, named=True),
            precision=test.precision, recall=test.recall, graduated=False,
            hungry=False, n_test=len(task.positives[TEST]), converged=bool(fitted.converged[i]),
            trajectory=[Iteration(n, n_negatives, train_f1, test.f1, rank.score, Grade.of(rank.score), False)],
        )  # fmt: skip

    def _f1_of(self, task: Task, logits: NDArray[np.float64], threshold: float, *, named: bool) -> float:
        positives = task.positives[TEST]
        chosen = positives[self.dataset.unnamed[positives] != named]
        return classify(*self.layer.drawn(task, TEST, logits, chosen), threshold).f1 if len(chosen) else np.nan

    def _score(self, task: Task, logits: NDArray[np.float64], only: NDArray[np.bool_]) -> float:
        return ranking(*self.layer.judged(task, TEST, logits, only), self.settings.prevalence).score


def _tasks(
    dataset: LensDataset, settings: FitSettings, concepts: Sequence[str] | None, skipped: dict[str, str]
) -> list[Task]:
    if concepts is not None and (unknown := [c for c in concepts if c not in dataset.concepts]):
        raise SettingsError(f"concept {unknown[0]!r} was not extracted into the store: see `lenscache info`")
    tasks = []
    for concept in dataset.concepts if concepts is None else concepts:
        try:
            tasks.append(dataset.task(concept, settings.n_negatives))
        except TooFewSamplesError as error:
            skipped[concept] = str(error)
    return tasks
