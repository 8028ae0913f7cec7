"""Choices before training: the family by the number of concepts; on the calibration split, a
concept's model layers and L2 strength."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, LensDataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.errors import SettingsError
from lenstrain.families.contract import Scores
from lenstrain.families.kinds import FAMILIES, Family
from lenstrain.families.linear import LinearTrainer
from lenstrain.parallel import chunks_by_size, in_parallel
from lenstrain.settings import FitProgress, FitSettings, OnProgress, ThresholdRule

_MIDDLE_STRENGTH = 0.1  # for choosing the model layer, before the strength is chosen
# Average precision at 1 % depends on the few best negatives, and a calibration split is small. At
# one half it chose lenses with a better test F1 (0.808 against 0.795 over 75 concepts,
# benchmarks/choice.py) and a score at 1 % that is no worse.
CHOICE_PREVALENCE = 0.5
# Calibration samples that the mean over concepts is worth; 4 to 36 chose about equally well.
_PRIOR = 12


MANY_CONCEPTS = 30
"""Concepts from which on "auto" is "discriminant": the fewest with which it was better than
"linear" in the pack, on natural text and on unnamed sentences, beyond the 95 % intervals of all
three (`benchmarks/RESULTS.md`)."""


def settled(
    settings: FitSettings, n_concepts: int, *, has_two_classes: bool | None = None
) -> FitSettings:
    """The settings with what "auto" stands for in a store of so many concepts.

    The family is "linear" below `MANY_CONCEPTS`, and where an L2 strength is asked for. Thresholds
    are chosen for accuracy where texts are labelled in two classes: there, to call a negative a
    negative counts as much. `has_two_classes` is None where that is not known yet.
    """
    if settings.threshold == "auto" and has_two_classes is not None:
        rule: ThresholdRule = "accuracy" if has_two_classes else "f1"
        rule = rule if settings.fpr is None else "fpr"
        settings = replace(settings, threshold=rule)
    if settings.refit is None and has_two_classes is not None:
        settings = replace(settings, refit=has_two_classes)
    if settings.family != "auto":
        return settings
    is_shared = n_concepts >= MANY_CONCEPTS and settings.C is None
    return replace(settings, family="discriminant" if is_shared else "linear")


class ModelLayerChoice(NamedTuple):
    """The model layers of one task, and what it was chosen by."""

    model_layers: tuple[int, ...]
    score_by_model_layer: dict[int, float]
    """Score of a linear lens on each candidate alone, on the calibration split and with all
    samples; empty where there was nothing to choose. At the prevalence of the lens's own score, so
    that the two can be compared."""


def choose_model_layers(
    dataset: LensDataset,
    tasks: Sequence[TaskRows],
    settings: FitSettings,
    *,
    jobs: int | None = None,
    on_progress: OnProgress = lambda _: None,
) -> list[ModelLayerChoice]:
    """The model layers of each task: the best of each of n parts, on the calibration split.

    Of a family whose model layers are spread, the last of each part, of all tasks alike.

    Linear lenses, fitted on all samples, find where a concept can be read, whatever the family. A
    concept has few calibration samples, and the best of thirty model layers on a few samples is
    mostly luck. So a concept's own score is drawn towards the mean score of the model layer over
    all concepts (empirical Bayes), with the weight of `_PRIOR` samples. `best_for_each` says what
    decides a tie.

    Raises
    ------
    SettingsError
        If a model layer asked for is not in the store, or there are fewer than n, or the family
        reads no other number than its own.
    """
    settings = settled(settings, dataset.n_concepts)
    candidates = dataset.model_layers
    if settings.model_layers is not None:
        candidates = tuple(sorted(set(settings.model_layers)))
    for model_layer in candidates:
        if model_layer not in dataset.model_layers:
            raise SettingsError(
                f"model layer {model_layer} is not in the store, which has "
                f"{ranges(dataset.model_layers)}"
            )
    family = FAMILIES[settings.family]
    n = _number_of_model_layers(family, settings.n_model_layers, len(candidates))
    parts = np.array_split(np.arange(len(candidates)), n)
    if all(len(part) == 1 for part in parts) or (family.spread and n > 1):
        last = tuple(candidates[part[-1]] for part in parts)
        return [ModelLayerChoice(last, {})] * len(tasks)
    strength = settings.C or _MIDDLE_STRENGTH
    scores, shown = np.empty((2, len(candidates), len(tasks)))
    for number, model_layer in enumerate(candidates):
        on_progress(FitProgress("choosing model layers", number, len(candidates)))
        features = Features.of_model_layers(dataset, (model_layer,), settings.device)
        prevalences = (CHOICE_PREVALENCE, settings.prevalence)
        scores[number], shown[number] = _linear_scores(features, tasks, strength, jobs, prevalences)
    on_progress(FitProgress("choosing model layers", len(candidates), len(candidates)))
    best = [
        [int(part[0]) + chosen for chosen in best_for_each(scores[part], tasks)] for part in parts
    ]
    return [
        ModelLayerChoice(
            tuple(candidates[number] for number in numbers),
            dict(zip(candidates, shown[:, task].tolist(), strict=True)),
        )
        for task, numbers in enumerate(zip(*best, strict=True))
    ]


def _number_of_model_layers(family: Family, wanted: int | None, available: int) -> int:
    """How many model layers a lens reads."""
    n = wanted or family.n_model_layers
    if n > 1 and family.n_model_layers == 1:
        raise SettingsError(
            f"{family.name} lenses read one model layer, {n} were asked for: leave that out, or "
            "choose discriminant or ensemble"
        )
    if family.spread and wanted is None:
        return min(n, available)
    if available < n:
        raise SettingsError(
            f"{family.name} lenses are to read {n} model layers, there are {available} to choose "
            "from: extract or name more"
        )
    return n


def _linear_scores(
    features: Features,
    tasks: Sequence[TaskRows],
    strength: float,
    jobs: int | None,
    prevalences: Sequence[float],
) -> NDArray[np.float64]:
    """(prevalences, tasks) calibration scores of linear lenses fitted on all samples."""
    scores = np.empty((len(prevalences), len(tasks)))

    def score(chosen: list[int]) -> None:
        here = [tasks[i] for i in chosen]
        rows, targets = [t.training.rows for t in here], [t.training.targets for t in here]
        trainer = LinearTrainer(features.Z, rows, targets)
        fitted = trainer.fit(range(len(here)), [len(task) for task in here], [strength] * len(here))
        scores[:, chosen] = calibration_scores(features, [fitted], here, prevalences)
        for task in here:
            task.forget()

    chunks = chunks_by_size([len(task) for task in tasks], features.row_bytes)
    for _ in in_parallel(score, chunks, jobs):
        pass
    return scores


def calibration_scores(
    features: Features,
    fits: Sequence[Scores],
    tasks: Sequence[TaskRows],
    prevalences: Sequence[float] = (CHOICE_PREVALENCE,),
    pool: Executor | None = None,
) -> NDArray[np.float64]:
    """(prevalences, tasks) average precision on the calibration split; `fits` hold the lenses of
    `tasks`, in order."""
    judged = [*zip(tasks, features.logits(fits, CALIBRATION, pool), strict=True)]
    return np.array(
        [[t.score(CALIBRATION, logits, p) for t, logits in judged] for p in prevalences]
    )


def best_for_each(scores: NDArray[np.float64], tasks: Sequence[TaskRows]) -> list[int]:
    """Which row of `scores` (candidates, tasks) is best for each task.

    A task's own scores are drawn towards the mean over tasks, the more so the fewer unnamed
    calibration texts it has. A task without any has no vote and takes what the mean says, as do
    tasks whose scores are equal. Where nobody has a vote, or the means are equal, too, it is the
    middle one of the best: at the first model layers a lens reads words, names among them.
    """
    votes = np.array([task.n_texts(CALIBRATION, "unnamed") for task in tasks])
    votes[np.isnan(scores).any(axis=0)] = 0
    known = np.where(votes > 0, np.nan_to_num(scores), 0.0)
    mean = known.sum(axis=1, keepdims=True) / max(1, (votes > 0).sum())
    drawn = ((votes * known + _PRIOR * mean) / (votes + _PRIOR)).round(9)
    return [_best(column, mean[:, 0].round(9)) for column in drawn.T]


def _best(own: NDArray[np.float64], mean: NDArray[np.float64]) -> int:
    best = np.flatnonzero(own == own.max())
    best = best[mean[best] == mean[best].max()]
    return int(best[(len(best) - 1) // 2])


def ranges(numbers: Sequence[int]) -> str:
    """Numbers for people, ascending: 0-29 rather than thirty of them."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
