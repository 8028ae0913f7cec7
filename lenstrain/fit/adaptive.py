"""Adaptive training: give every concept as many samples as it needs, and no more.

    Task of each concept --choose_model_layers--> its model layers, by the calibration split
                         --iterations of fit and judge--> graduated, or out of samples
                         --measure, controls--> FittedLens

A concept starts with a few training samples and gets more until its lens graduates: test F1 at the
target, without overfitting. `lenstrain.fit.iterations` does that for all concepts of a model layer.

What each split is for: training rows fit the lens and give the feature statistics; calibration rows
choose the model layer, the decision threshold and the probabilities; test rows decide graduation
and fill the report, nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lenstrain.data.dataset import LensDataset
from lenstrain.data.features import Features, check_device
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.data.words import Vocabulary, word_features
from lenstrain.errors import SettingsError, ShortConceptError, TooFewSamplesError
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.choice import ModelLayerChoice, choose_model_layers, settled
from lenstrain.fit.controls import Controls
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.iterations import AdaptiveTraining, IterationTime
from lenstrain.fit.settle import SharedCalibration, settle
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration
from lenstrain.settings import FitProgress, FitSettings, OnProgress, settings_to_json

__all__ = [
    "FitProgress",
    "FitResult",
    "FitSettings",
    "FittedLens",
    "Iteration",
    "OnProgress",
    "choose_model_layers",
    "fit_lenses",
    "fit_targets",
    "settings_to_json",
]


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
    calibration: SharedCalibration | None = None
    """How good their probabilities are."""
    short: tuple[str, ...] = ()
    """Of the concepts without a lens, those that lack samples of their own."""

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
    jobs : threads; None for one a core, 8 at most. It changes no bit of the lenses.

    Raises
    ------
    SettingsError
        If a concept or model layer is not in the store.
    TooFewSamplesError
        If not one concept has enough samples.
    """
    settings = settings or FitSettings()
    target = [settings.target_f1]
    return fit_targets(
        dataset, settings, target, concepts=concepts, jobs=jobs, on_progress=on_progress
    )[0]


def fit_targets(
    dataset: LensDataset,
    settings: FitSettings,
    targets: Sequence[float],
    *,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[FitResult]:
    """Train for several target F1 in one pass: the result of `fit_lenses` for each, in order.

    The target only decides where training stops: the iterations of a concept are the same. So each
    is fitted and judged once, until the last target is reached.

    Raises
    ------
    SettingsError, TooFewSamplesError
        As `fit_lenses`.
    """
    tell = on_progress or (lambda _: None)
    settings = settled(settings, dataset.n_concepts, has_two_classes=dataset.has_two_classes)
    wanted = [replace(settings, target_f1=target) for target in targets]
    if not wanted:
        raise SettingsError("no target F1 to train for: name at least one")
    check_device(settings.device)
    drawn, skipped, short = _tasks(dataset, settings, concepts)
    tasks = [TaskRows(dataset, task, settings) for task in drawn]
    chosen = [ModelLayerChoice((), {})] * len(tasks)
    if tasks and FAMILIES[settings.family].n_model_layers:
        chosen = choose_model_layers(dataset, tasks, settings, jobs=jobs, on_progress=tell)
    through: list[list[FittedLens]] = []

    def on_through(found: list[list[FittedLens]]) -> None:
        through.extend(found)
        tell(_progress(through, len(tasks)))

    times: dict[int, IterationTime] = {}
    controls = Controls(dataset, settings)
    lenses: dict[str, list[FittedLens]] = {}
    vocabulary = None
    for model_layers in sorted({each.model_layers for each in chosen}):
        features, vocabulary = features_of(dataset, model_layers, settings)
        here = [t for t, its in zip(tasks, chosen, strict=True) if its.model_layers == model_layers]
        training = AdaptiveTraining(
            features, here, model_layers, wanted, controls, jobs, skipped, on_through=on_through
        )
        lenses |= {found[0].concept: found for found in training.run(times)}
        del features, training
    if not lenses:
        reason = next(iter(skipped.values()), "the store holds no concepts")
        raise TooFewSamplesError(
            f"no concept has enough samples to fit a lens; the first: {reason}"
        )
    in_order = []
    for task, its in zip(tasks, chosen, strict=True):
        found = lenses.get(task.task.concept, [])
        for lens in found:
            lens.score_by_model_layer = its.score_by_model_layer or lens.score_by_model_layer
        in_order += [found] if found else []
    times = dict(sorted(times.items()))
    fits = [[found[number] for found in in_order] for number in range(len(wanted))]
    return [
        FitResult(fit, dict(skipped), times, vocabulary, settle(dataset, fit, settings), short)
        for fit in fits
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
    """Fit tasks once that read the same model layers, with all of their rows; nothing is chosen.

    Parameters
    ----------
    strengths : inverse L2 strength of each concept.
    """
    settings = settled(settings, dataset.n_concepts, has_two_classes=dataset.has_two_classes)
    features, _ = features_of(dataset, model_layers, settings)
    controls = Controls(dataset, settings)
    once = [replace(settings, beyond_graduation=False)]
    training = AdaptiveTraining(features, tasks, model_layers, once, controls, jobs, {})
    known = [strengths[task.task.concept] for task in training.tasks]
    return [lens for (lens,) in training.run({}, [np.nan if C is None else C for C in known])]


def _progress(through: Sequence[Sequence[FittedLens]], total: int) -> FitProgress:
    first = [found[0] for found in through]
    counts = Counter(lens.verdict.grade for lens in first)
    grades = tuple((grade.value, counts[grade]) for grade in Grade)
    grades += (("ungraded", counts[None]),) if counts[None] else ()
    graduated = sum(lens.graduated for lens in first)
    return FitProgress("fitting", len(first), total, graduated, grades)


def features_of(
    dataset: LensDataset, model_layers: tuple[int, ...], settings: FitSettings
) -> tuple[Features, Vocabulary | None]:
    """Activations of some model layers, or without any the words of the completions."""
    if model_layers:
        unit_norm = FAMILIES[settings.family].unit_norm and settings.unit_norm
        features = Features.of_model_layers(
            dataset, model_layers, settings.device, unit_norm=unit_norm
        )
        return features, None
    return word_features(dataset, dataset.completions)


def _tasks(
    dataset: LensDataset,
    settings: FitSettings,
    concepts: Sequence[str] | None,
) -> tuple[list[Task], dict[str, str], tuple[str, ...]]:
    """What each concept is fitted on, why some are not, and which of these lack samples."""
    if concepts is not None and (unknown := [c for c in concepts if c not in dataset.concepts]):
        has_part = "" if dataset.extracted is None else ", or not with all of its samples yet"
        raise SettingsError(
            f"concept {unknown[0]!r} was not extracted into the store{has_part}: see `lenscache "
            "info`"
        )
    tasks, left_out = [], {}
    for concept in dataset.concepts if concepts is None else concepts:
        try:
            tasks.append(draw_task(dataset, concept, settings.n_negatives))
        except TooFewSamplesError as error:
            left_out[concept] = error
    skipped = {concept: str(why) for concept, why in left_out.items()}
    return tasks, skipped, tuple(c for c in skipped if isinstance(left_out[c], ShortConceptError))
