"""Adaptive training: give every concept as many samples as it needs, and no more.

    Task of each concept --choose_model_layers--> one model layer each, by the calibration split
                         --rounds of fit and judge--> graduated, or out of samples

A concept starts with a few training samples and gets more until its lens graduates: test F1 at the target, without
overfitting. All concepts of a model layer that are still in training are fitted as one batch an iteration.

What each split is for: training rows fit the lens and give the feature statistics; calibration rows choose the model
layer, the decision threshold and the probabilities; test rows decide graduation and fill the report, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lenstrain.calibration import (
    REFERENCE_PREVALENCE,
    Grade,
    Ranking,
    Sigmoid,
    best_threshold,
    classify,
    fit_sigmoid,
    ranking,
)
from lenstrain.dataset import CALIBRATION, TEST, TRAIN, LensDataset, PhaseChoice, Rows, Task
from lenstrain.errors import SettingsError, TooFewSamplesError
from lenstrain.linear import DEFAULT_C, LinearBatch, Standardizer, fit_linear_batch

Validation = Literal["advisory", "blocking", "falloff"]

_LAYER_PRIOR = 12  # calibration samples that the mean over concepts is worth; 4 to 36 chose about equally well


@dataclass(frozen=True)
class FitSettings:
    """How to train. Samples are rows of the store; in a combined store each gives a vector a phase."""

    target_f1: float = 0.95
    """Test F1 at which a lens graduates."""
    max_overfit_gap: float = 0.10
    """Largest difference between train and test F1 at graduation."""
    initial_samples: int = 5
    """Positive training samples of the first iteration."""
    first_increment: int = 5
    """Positive training samples added at the second iteration."""
    increment: int = 10
    """Positive training samples added at every later iteration."""
    max_samples: int = 200
    """Positive training samples at most."""
    max_iterations: int = 50
    negatives_per_positive: float = 10.0
    """Negatives cost nothing, and a lens that saw few of them fires at everything. Classes are weighed alike."""
    max_negatives: int = 300
    """Negative training samples at most (never fewer than positives)."""
    validation: Validation = "advisory"
    """Whether the grade can hold back graduation: "advisory" never, "blocking" until it reaches `min_grade`, "falloff"
    asks A of iterations 1-3, B until 9, then C."""
    min_grade: Grade = Grade.B
    """Grade that "blocking" asks for."""
    C: float = DEFAULT_C
    """Inverse L2 strength on standardised features."""
    phase: PhaseChoice = "both"
    model_layers: tuple[int, ...] | None = None
    """Transformer blocks to choose from; None for all that the store holds."""
    prevalence: float = REFERENCE_PREVALENCE
    """Prevalence at which the calibration score is computed."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target_f1 <= 1:
            raise SettingsError(f"target F1 is {self.target_f1}, expected above 0 and at most 1")
        if min(self.initial_samples, self.first_increment, self.increment, self.max_iterations) < 1:
            raise SettingsError("initial samples, increments and iterations must be 1 or more")
        if self.max_samples < self.initial_samples:
            raise SettingsError(f"max_samples {self.max_samples} is below initial_samples {self.initial_samples}")
        if self.C <= 0 or self.negatives_per_positive <= 0 or not 0 < self.prevalence < 1:
            raise SettingsError("C and negatives per positive must be above 0, prevalence between 0 and 1")
        if self.model_layers == ():
            raise SettingsError("no model layers to choose from: name at least one, or None for all that are stored")
        if self.validation not in get_args(Validation):
            raise SettingsError(f"validation is {self.validation!r}, expected {', '.join(get_args(Validation))}")

    def required_grade(self, iteration: int) -> Grade:
        """The grade that graduation asks for at an iteration, counted from 1."""
        if self.validation == "advisory":
            return Grade.C
        if self.validation == "blocking":
            return self.min_grade
        return Grade.A if iteration <= 3 else Grade.B if iteration <= 9 else Grade.C

    def n_samples(self, iteration: int, available: int) -> int:
        """Positive training samples of an iteration, counted from 1."""
        grown = self.initial_samples
        if iteration > 1:
            grown += self.first_increment + (iteration - 2) * self.increment
        return min(grown, self.max_samples, available)

    def n_negatives(self, n_positives: int) -> int:
        """Negative samples that go with some positives."""
        return max(n_positives, min(round(self.negatives_per_positive * n_positives), self.max_negatives))


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


class FitProgress(NamedTuple):
    """Where a fit stands."""

    stage: Literal["choosing model layers", "fitting"]
    done: int
    total: int
    """Model layers to try, or concepts to fit."""

    @property
    def unit(self) -> str:
        """What `done` and `total` count."""
        return "concepts" if self.stage == "fitting" else "model layers"


OnProgress = Callable[[FitProgress], None]


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
    settings, tell = settings or FitSettings(), on_progress or (lambda _: None)
    result = FitResult()
    tasks = _tasks(dataset, settings, concepts, result.skipped)
    if not tasks:
        reason = next(iter(result.skipped.values()), "the store holds no concepts")
        raise TooFewSamplesError(f"no concept has enough samples to fit a lens; the first: {reason}")
    chosen = choose_model_layers(dataset, tasks, settings, on_progress=tell)
    lenses: dict[str, FittedLens] = {}
    for model_layer in sorted(set(chosen)):
        here = [task for task, layer in zip(tasks, chosen, strict=True) if layer == model_layer]
        for lens in _AdaptiveTraining(dataset, here, model_layer, settings).run():
            lenses[lens.concept] = lens
            tell(FitProgress("fitting", len(lenses), len(tasks)))
    result.lenses = [lenses[task.concept] for task in tasks]
    return result


def choose_model_layers(
    dataset: LensDataset,
    tasks: Sequence[Task],
    settings: FitSettings,
    *,
    on_progress: OnProgress = lambda _: None,
) -> list[int]:
    """The model layer of each task: the best on the calibration split, with all training samples.

    A concept has a handful of calibration samples, and the best of thirty layers on a handful is mostly luck. So a
    concept's own score is drawn towards the mean score of the layer over all concepts (empirical Bayes), with the
    weight of `_LAYER_PRIOR` samples. Equal layers go to the lower one.

    Raises
    ------
    SettingsError
        If a model layer asked for is not in the store.
    """
    candidates = dataset.model_layers if settings.model_layers is None else settings.model_layers
    for model_layer in candidates:
        if model_layer not in dataset.model_layers:
            raise SettingsError(
                f"model layer {model_layer} is not in the store, which has {_ranges(dataset.model_layers)}"
            )
    if len(candidates) == 1:
        return [candidates[0]] * len(tasks)
    scores = np.empty((len(candidates), len(tasks)))
    for number, model_layer in enumerate(candidates):
        on_progress(FitProgress("choosing model layers", number, len(candidates)))
        layer = _LayerData(dataset, model_layer, settings)
        fitted = layer.fit(tasks, [settings.n_samples(settings.max_iterations, len(t.positives[TRAIN])) for t in tasks])
        logits = layer.logits(fitted, CALIBRATION)
        for i, task in enumerate(tasks):
            scores[number, i] = ranking(*layer.judged(task, CALIBRATION, logits[:, i]), settings.prevalence).score
    on_progress(FitProgress("choosing model layers", len(candidates), len(candidates)))
    seen = np.array([len(task.positives[CALIBRATION]) for task in tasks])
    drawn = (seen * scores + _LAYER_PRIOR * scores.mean(axis=1, keepdims=True)) / (seen + _LAYER_PRIOR)
    return [candidates[number] for number in drawn.round(9).argmax(axis=0)]


class _LayerData:
    """The vectors of one model layer, by split, and what the tasks make of them."""

    def __init__(self, dataset: LensDataset, model_layer: int, settings: FitSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self.X = dataset.vectors(model_layer)
        vector_split = dataset.split[dataset.vector_sample]
        self.vectors = [np.flatnonzero(vector_split == split) for split in (TRAIN, CALIBRATION, TEST)]
        self.samples = [dataset.vector_sample[vectors] for vectors in self.vectors]
        self.standardizer = Standardizer.fit(self.X[self.vectors[TRAIN]])

    def fit(self, tasks: Sequence[Task], n_samples: Sequence[int]) -> LinearBatch:
        """Fit each task on its first `n_samples` positives and the negatives that go with them."""
        rows, targets = zip(
            *(self.training_rows(task, n) for task, n in zip(tasks, n_samples, strict=True)), strict=True
        )
        return fit_linear_batch(
            self.X, rows, targets, C=self.settings.C, balanced=True, standardizer=self.standardizer
        )  # fmt: skip

    def training_rows(self, task: Task, n: int) -> tuple[Rows, NDArray[np.bool_]]:
        """Vectors of the first n positives and their negatives, and which are which."""
        positives = self.dataset.vectors_of(task.positives[TRAIN][:n])
        negatives = self.dataset.vectors_of(task.negatives[TRAIN][: self.settings.n_negatives(n)])
        target = np.arange(len(positives) + len(negatives)) < len(positives)
        return np.concatenate([positives, negatives]), target

    def logits(self, fitted: LinearBatch, split: int) -> NDArray[np.float64]:
        """(vectors of the split, tasks)"""
        return fitted.decision_function(self.X[self.vectors[split]])

    def drawn(
        self, task: Task, split: int, logits: NDArray[np.float64], positives: Rows | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """y and logits of the task's own positives, or of some of them, and negatives in a split."""
        mark = np.zeros(self.dataset.n_samples, np.int8)
        mark[task.negatives[split]] = 1
        mark[task.positives[split] if positives is None else positives] = 2
        found = mark[self.samples[split]]
        return found[found > 0] == 2, logits[found > 0]

    def judged(
        self, task: Task, split: int, logits: NDArray[np.float64], only: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """y and logits of all samples in a split but those of the concept's ancestors and descendants.

        `only` (vectors of the split,) restricts the vectors further.
        """
        is_positive, is_related = np.zeros((2, self.dataset.n_samples), np.bool_)
        is_positive[task.positives[split]] = is_related[task.related] = True
        keep = ~is_related[self.samples[split]]
        if only is not None:
            keep &= only
        return is_positive[self.samples[split]][keep], logits[keep]


class _AdaptiveTraining:
    """The iterations of all tasks of one model layer."""

    def __init__(self, dataset: LensDataset, tasks: Sequence[Task], model_layer: int, settings: FitSettings) -> None:
        self.dataset, self.tasks, self.model_layer, self.settings = dataset, tasks, model_layer, settings
        self.layer = _LayerData(dataset, model_layer, settings)

    def run(self) -> Iterable[FittedLens]:
        """Lenses as their concepts graduate or run out of samples."""
        active = list(self.tasks)
        trajectories: dict[str, list[Iteration]] = {task.concept: [] for task in active}
        iteration = 0
        while active:
            iteration += 1
            counts = [self.settings.n_samples(iteration, len(task.positives[TRAIN])) for task in active]
            fitted = self.layer.fit(active, counts)
            logits = [self.layer.logits(fitted, split) for split in (TRAIN, CALIBRATION, TEST)]
            remaining = []
            for i, task in enumerate(active):
                lens = self._judge(task, iteration, counts[i], fitted, i, [values[:, i] for values in logits])
                trajectories[task.concept].append(lens.trajectory[0])
                more = self.settings.n_samples(iteration + 1, len(task.positives[TRAIN])) > counts[i]
                if not lens.graduated and more and iteration < self.settings.max_iterations:
                    remaining.append(task)
                    continue
                lens.trajectory = trajectories[task.concept]
                lens.hungry = not lens.graduated and not more and counts[i] < self.settings.max_samples
                yield lens
            active = remaining

    def _judge(
        self,
        task: Task,
        iteration: int,
        n: int,
        fitted: LinearBatch,
        i: int,
        logits: Sequence[NDArray[np.float64]],
    ) -> FittedLens:
        y, values = self.layer.drawn(task, CALIBRATION, logits[CALIBRATION])
        threshold, sigmoid = best_threshold(y, values), fit_sigmoid(y, values)
        rows, target = self.layer.training_rows(task, n)
        place = np.searchsorted(self.layer.vectors[TRAIN], rows)
        train_f1 = classify(target, logits[TRAIN][place], threshold).f1
        test = classify(*self.layer.drawn(task, TEST, logits[TEST]), threshold)
        rank = ranking(*self.layer.judged(task, TEST, logits[TEST]), self.settings.prevalence)
        grade = Grade.of(rank.score)
        graduated = (
            test.f1 >= self.settings.target_f1
            and train_f1 - test.f1 <= self.settings.max_overfit_gap
            and grade.reaches(self.settings.required_grade(iteration))
        )
        return FittedLens(
            concept=task.concept, model_layer=self.model_layer, weight=fitted.weight[i], bias=float(fitted.bias[i]),
            threshold=threshold, sigmoid=sigmoid, ranking=rank,
            unnamed_score=self._score(task, logits[TEST], self.dataset.unnamed[self.layer.samples[TEST]]),
            phase_scores={
                phase: self._score(task, logits[TEST], self.dataset.vector_phase[self.layer.vectors[TEST]] == number)
                for number, phase in enumerate(self.dataset.phases)
            },
            train_f1=train_f1, test_f1=test.f1, f1_unnamed=self._f1_of(task, logits[TEST], threshold, named=False),
            f1_named=self._f1_of(task, logits[TEST], threshold, named=True),
            precision=test.precision, recall=test.recall, graduated=graduated,
            hungry=False, n_test=len(task.positives[TEST]), converged=bool(fitted.converged[i]),
            trajectory=[Iteration(n, self.settings.n_negatives(n), train_f1, test.f1, rank.score, grade, graduated)],
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


def _ranges(numbers: Sequence[int]) -> str:
    """0-29 rather than thirty numbers."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def settings_to_json(settings: FitSettings) -> dict[str, Any]:
    """Plain values, for provenance."""
    values = asdict(settings)
    values["model_layers"] = None if settings.model_layers is None else list(settings.model_layers)
    return values
