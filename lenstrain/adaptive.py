"""Adaptive training: give every concept as many samples as it needs, and no more.

    Task of each concept --choose_model_layers--> its model layers, by the calibration split
                         --iterations of fit and judge--> graduated, or out of samples
                         --measure, controls--> FittedLens

A concept starts with a few training samples and gets more until its lens graduates: test F1 at the target, without
overfitting. Concepts of a model layer are trained in chunks, each on one core: the products of their rows are computed
once, and every iteration is a batch of small problems.

What each split is for: training rows fit the lens and give the feature statistics; calibration rows choose the model
layer, the decision threshold and the probabilities; test rows decide graduation and fill the report, nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.calibration import Grade
from lenstrain.choice import (
    FitProgress,
    ModelLayerChoice,
    OnProgress,
    best_for_each,
    calibration_scores,
    choose_model_layers,
)
from lenstrain.controls import Controls
from lenstrain.dataset import CALIBRATION, TEST, TRAIN, LensDataset, Task, stable_seed
from lenstrain.directions import steering_directions
from lenstrain.errors import SettingsError, TooFewSamplesError
from lenstrain.families import FAMILIES, Fitted, Job, Trainer
from lenstrain.features import Features, check_device
from lenstrain.lens import Iteration
from lenstrain.measure import FittedLens, judge, measure
from lenstrain.parallel import chunks_by_size, in_parallel
from lenstrain.settings import FitSettings, settings_to_json
from lenstrain.taskrows import TaskRows
from lenstrain.text import Vocabulary, word_features

__all__ = [
    "FitProgress", "FitResult", "FitSettings", "FittedLens", "Iteration", "OnProgress", "choose_model_layers",
    "fit_lenses", "fit_targets", "settings_to_json",
]  # fmt: skip

_KEPT_BYTES = 2 * 2**30  # of Gram matrices that are kept from choosing strengths to training


class IterationTime(NamedTuple):
    """What an iteration cost, over all concepts that got to it."""

    fits: int
    seconds: float
    """Of one core: fit and judge."""


@dataclass
class FitResult:
    """All lenses of one fit."""

    lenses: list[FittedLens] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a concept got no lens, by concept."""
    times: dict[int, IterationTime] = field(default_factory=dict)
    """By iteration, those after graduation included; the same for all targets of one pass."""
    vocabulary: Vocabulary | None = None
    """Of lenses that read text."""

    @property
    def hungry(self) -> list[str]:
        """Concepts that used every cached sample and did not graduate."""
        return [lens.concept for lens in self.lenses if lens.hungry]


def fit_lenses(
    dataset: LensDataset,
    settings: FitSettings | None = None,
    *,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> FitResult:
    """Train a lens for every concept of a dataset.

    A concept with too few samples is left out and the reason kept in `FitResult.skipped`.

    Parameters
    ----------
    concepts : which concepts; None for all that the store was extracted for.
    jobs : threads; None for one a core, 8 at most. The lenses are the same, bit for bit, whatever it is.

    Raises
    ------
    SettingsError
        If a concept or model layer is not in the store.
    TooFewSamplesError
        If not one concept has enough samples.
    """
    settings = settings or FitSettings()
    (result,) = fit_targets(
        dataset, settings, [settings.target_f1], concepts=concepts, jobs=jobs, on_progress=on_progress
    )
    return result


def fit_targets(
    dataset: LensDataset,
    settings: FitSettings,
    targets: Sequence[float],
    *,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
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
    check_device(settings.device)
    skipped: dict[str, str] = {}
    tasks = [TaskRows(dataset, task, settings) for task in _tasks(dataset, settings, concepts, skipped)]
    family, controls = FAMILIES[settings.family], Controls(dataset, settings)
    vocabulary = None
    lenses: dict[str, list[FittedLens]] = {}
    spent: dict[int, list[float]] = defaultdict(list)
    if tasks and family.n_model_layers:
        chosen = choose_model_layers(
            dataset, tasks, settings, family.n_model_layers, jobs=jobs, on_progress=tell
        )  # fmt: skip
    else:
        chosen = [ModelLayerChoice((), {})] * len(tasks)
    scores = {task.task.concept: each.score_by_model_layer for task, each in zip(tasks, chosen, strict=True)}
    for model_layers in sorted({each.model_layers for each in chosen}):
        features, vocabulary = _features(dataset, model_layers, settings)
        here = [task for task, its in zip(tasks, chosen, strict=True) if its.model_layers == model_layers]
        training = _AdaptiveTraining(features, here, model_layers, wanted, controls, jobs, skipped)
        for found in training.run(spent):
            for lens in found:
                lens.score_by_model_layer = scores[lens.concept]
            lenses[found[0].concept] = found
            tell(_progress(lenses, len(tasks)))
        del features, training
    if not lenses:
        reason = next(iter(skipped.values()), "the store holds no concepts")
        raise TooFewSamplesError(f"no concept has enough samples to fit a lens; the first: {reason}")
    times = {iteration: IterationTime(len(each), sum(each)) for iteration, each in sorted(spent.items())}
    order = [task.task.concept for task in tasks if task.task.concept in lenses]
    return [
        FitResult([lenses[concept][number] for concept in order], dict(skipped), times, vocabulary)
        for number in range(len(wanted))
    ]


def fit_again(
    dataset: LensDataset,
    tasks: Sequence[TaskRows],
    model_layers: tuple[int, ...],
    settings: FitSettings,
    strengths: Mapping[str, float | None],
    *,
    jobs: int | None = None,
) -> list[FittedLens]:
    """Fit tasks that read the same model layers once, with all of their rows; nothing is chosen anew.

    Parameters
    ----------
    strengths : inverse L2 strength of each concept.
    """
    skipped: dict[str, str] = {}
    wanted = [replace(settings, beyond_graduation=False)]
    training = _AdaptiveTraining(
        _features(dataset, model_layers, settings)[0], tasks, model_layers, wanted, Controls(dataset, settings), jobs,
        skipped,
    )  # fmt: skip
    known = [np.nan if (C := strengths[task.task.concept]) is None else C for task in training.tasks]
    return [lens for (lens,) in training.run(defaultdict(list), known)]


def _progress(lenses: Mapping[str, Sequence[FittedLens]], total: int) -> FitProgress:
    first = [found[0] for found in lenses.values()]
    grades = Counter(lens.grade.value for lens in first)
    return FitProgress(
        "fitting", len(first), total, sum(lens.graduated for lens in first),
        tuple((grade.value, grades[grade.value]) for grade in Grade),
    )  # fmt: skip


def _features(
    dataset: LensDataset, model_layers: tuple[int, ...], settings: FitSettings
) -> tuple[Features, Vocabulary | None]:
    """Activations of some model layers, or without any the words of the completions."""
    if model_layers:
        return Features.of_model_layers(dataset, model_layers, settings.device), None
    return word_features(dataset, dataset.completions)


class _Run:
    """One concept on its way: what was recorded, and for which of the settings it has a lens."""

    def __init__(self, rows: TaskRows, wanted: Sequence[FitSettings]) -> None:
        self.rows, self.wanted, self._n_test = rows, wanted, len(rows.task.positives[TEST])
        self.steps: list[Iteration] = []
        self.stopped: dict[int, int] = {}  # number of the settings: iteration
        self.lenses: dict[int, FittedLens] = {}  # by iteration
        # Whoever satisfies this has satisfied every other mode before.
        self._strictest = replace(
            max(wanted, key=lambda s: s.target_f1), validation="blocking", min_grade=Grade.A
        )  # fmt: skip
        self._strictest_met = not wanted[0].beyond_graduation

    def record(self, step: Iteration) -> bool:
        """Take down an iteration; true if it is the last for any of the settings."""
        self.steps.append(step)
        iteration = len(self.steps)
        self._strictest_met |= self._strictest.graduates(step, iteration, is_last=self._is_last, n_test=self._n_test)
        ended = [
            number for number, settings in enumerate(self.wanted) if number not in self.stopped
            and (self._is_last or settings.graduates(step, iteration, n_test=self._n_test))
        ]  # fmt: skip
        self.stopped |= dict.fromkeys(ended, iteration)
        return bool(ended)

    @property
    def _is_last(self) -> bool:
        return len(self.steps) == self.rows.last_iteration

    @property
    def is_through(self) -> bool:
        """Whether no more iterations are needed."""
        return self._is_last or (len(self.stopped) == len(self.wanted) and self._strictest_met)

    def result(self) -> list[FittedLens]:
        """The lens for each of the settings."""
        return [self._lens(settings, self.stopped[number]) for number, settings in enumerate(self.wanted)]

    def _lens(self, settings: FitSettings, end: int) -> FittedLens:
        last = self.rows.last_iteration
        steps = [
            step._replace(graduated=settings.graduates(step, number, is_last=number == last, n_test=self._n_test))
            for number, step in enumerate(self.steps, start=1)
        ]
        graduated = steps[end - 1].graduated
        used = steps[end - 1].n_samples
        is_spent = used == len(self.rows.task.positives[TRAIN])
        return replace(
            self.lenses[end], graduated=graduated, hungry=not graduated and is_spent and used < settings.max_samples,
            trajectory=steps[:end], beyond=steps[end:],
        )  # fmt: skip


class _End(NamedTuple):
    """Where the training of a concept ended for some of the settings."""

    lens: FittedLens
    which: int
    """Number of the concept in its chunk."""
    n_rows: int
    """Rows it learned."""
    C: float


class _AdaptiveTraining:
    """The iterations of all tasks that read the same features, for settings that differ in their target F1 alone."""

    def __init__(
        self,
        features: Features,
        tasks: Sequence[TaskRows],
        model_layers: tuple[int, ...],
        wanted: Sequence[FitSettings],
        controls: Controls,
        jobs: int | None,
        skipped: dict[str, str],
    ) -> None:
        self.features, self.model_layers, self.wanted, self.controls = features, model_layers, wanted, controls
        self.settings, self.jobs = wanted[0], jobs
        self.family = FAMILIES[self.settings.family]
        self.tasks = [usable for task in tasks if (usable := self._usable(task, skipped)) is not None]
        lengths = [len(task) for task in self.tasks]
        per_concept = self.family.bytes_per_feature * features.Z.shape[1]
        self.chunks = chunks_by_size(lengths, features.row_bytes, per_concept)
        self._kept: dict[int, Trainer] = {}

    def run(
        self, spent: dict[int, list[float]], strengths: Sequence[float] | None = None
    ) -> Iterator[list[FittedLens]]:
        """For each concept its lens for each of the settings; `spent` gets the seconds of each fit, by iteration."""
        strengths = strengths or self._choose_strengths()
        for lenses, times in in_parallel(lambda chunk: self._train(chunk, strengths), self.chunks, self.jobs):
            yield from lenses
            for iteration, (fits, seconds) in times.items():
                spent[iteration] += [seconds / fits] * fits

    def _trainer(self, chunk: list[int]) -> Trainer:
        if chunk[0] in self._kept:
            return self._kept.pop(chunk[0])
        here = [self.tasks[i] for i in chunk]
        return self.family.trainer(
            Job(
                self.features.Z, [task.training.rows for task in here], [task.training.targets for task in here],
                [stable_seed("lens", self.settings.seed, task.task.concept) for task in here],
            )
        )  # fmt: skip

    def _choose_strengths(self) -> list[float]:
        """The L2 strength of each task: the best of the family's on the calibration split.

        With a dozen samples they hardly differ; with hundreds of labelled texts a weak penalty costs 0.02-0.05 of
        AUROC (`benchmarks/labelled.py`), so it is chosen as the model layer is. Equal ones go to the stronger penalty.
        """
        if not self.family.strengths or self.settings.C is not None:
            return [self.settings.C or np.nan] * len(self.tasks)
        scores = np.empty((len(self.family.strengths), len(self.tasks)))
        widest = max(map(len, self.tasks), default=0)
        keep = len(self.tasks) * widest * (self.features.row_bytes + 8 * widest) <= _KEPT_BYTES

        def score(chunk: list[int]) -> None:
            trainer, here = self._trainer(chunk), [self.tasks[i] for i in chunk]
            for number, strength in enumerate(self.family.strengths):
                scores[number, chunk] = calibration_scores(trainer, self.features, here, strength)
            for task in here:
                task.forget()
            if keep:
                self._kept[chunk[0]] = trainer

        for _ in in_parallel(score, self.chunks, self.jobs):
            pass
        return [self.family.strengths[number] for number in best_for_each(scores, self.tasks)]

    def _train(
        self, chunk: list[int], strengths: Sequence[float]
    ) -> tuple[list[list[FittedLens]], dict[int, tuple[int, float]]]:
        trainer = self._trainer(chunk)
        runs = [_Run(self.tasks[i], self.wanted) for i in chunk]
        times: dict[int, tuple[int, float]] = {}
        ends: list[_End] = []
        active = list(range(len(chunk)))
        for iteration in count(1):
            start = time.perf_counter()
            counts = [runs[i].rows.training.ends[iteration - 1] for i in active]
            C = [strengths[chunk[i]] for i in active]
            fitted = trainer.fit(active, counts, C)
            logits = {split: self.features.logits(fitted, split) for split in (CALIBRATION, TEST)}
            ended = 0.0
            for column, i in enumerate(active):
                held = {split: values[:, column] for split, values in logits.items()}
                step, threshold = judge(
                    runs[i].rows, fitted.training_logits[column], held, self.settings, iteration
                )  # fmt: skip
                if runs[i].record(step):
                    measured = time.perf_counter()
                    lens = self._measure(runs[i], fitted, column, held, threshold, C[column])
                    runs[i].lenses[iteration] = lens
                    ends.append(_End(lens, i, counts[column], C[column]))
                    ended += time.perf_counter() - measured
            times[iteration] = len(active), time.perf_counter() - start - ended
            active = [i for i in active if not runs[i].is_through]
            if not active:
                break
        # All at once: a product with a few columns costs hardly less than one with many.
        which, counts, C = [end.which for end in ends], [end.n_rows for end in ends], [end.C for end in ends]
        controls = self.controls.measure(trainer, self.features, [runs[i].rows for i in which], which, counts, C)
        directions = steering_directions(self.features, [run.rows for run in runs], self.model_layers)
        for end, found in zip(ends, controls, strict=True):
            end.lens.controls, end.lens.directions = found, directions[end.which]
        for run in runs:
            run.rows.forget()
        return [run.result() for run in runs], times

    def _measure(
        self,
        run: _Run,
        fitted: Fitted,
        column: int,
        held: dict[int, NDArray[np.float64]],
        threshold: float,
        C: float,
    ) -> FittedLens:
        return measure(
            run.rows, self.features, fitted.ship(column, self.features.standardizer), held, run.steps[-1], threshold,
            self.settings, model_layers=self.model_layers, C=None if np.isnan(C) else C,
            converged=bool(fitted.converged[column]),
        )  # fmt: skip

    def _usable(self, task: TaskRows, skipped: dict[str, str]) -> TaskRows | None:
        """A task without the samples whose activations are no numbers; None, and a line, if they are its own."""
        dataset, finite = self.features.dataset, self.features.finite
        if finite.all():
            return task
        broken = np.unique(dataset.samples_by_split[~finite])
        own = int(np.isin(np.concatenate(task.task.positives), broken).sum())
        if not own:
            return task.without(broken)
        where = ", ".join(map(str, self.model_layers))
        skipped[task.task.concept] = (
            f"{task.task.concept}: {own} of its samples have activations at model layer {where} that are NaN or "
            "infinite: run `lenscache verify`, then `lenscache repair` and extract again"
        )
        return None


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
