"""Do lenses keep what they are worth when activations are computed in another precision?

    store a (float32) --fit, model layers chosen--> lenses of a --> each judged on the test samples
    store b (bfloat16) --fit, same model layers---> lenses of b --> of both stores

Both stores hold the same prompts with the same splits, so each concept is compared with itself. The
model layer of a concept is chosen once, on the calibration split of a, and every lens is fitted
once on all training samples with one L2 strength: only the precision differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import TEST, LensDataset, stable_seed
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.errors import SettingsError
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.score import ranking
from lenstrain.metrics.thresholds import classify
from lenstrain.settings import FitSettings

ONE_FIT = FitSettings(
    initial_samples=200, max_samples=200, max_iterations=1, C=0.1, beyond_graduation=False
)
"""All training samples at once, one strength: no choice that could differ between the stores."""

_RESAMPLES = 2000


class Quality(NamedTuple):
    """What lenses are worth on test samples: means over concepts."""

    f1: float
    """At each lens's own threshold, both classes alike in prevalence."""
    score: float
    """Average precision against all unrelated samples at the reference prevalence."""


class Change(NamedTuple):
    """Mean difference over concepts, with a 95 % percentile bootstrap interval over concepts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Transfer:
    """Lenses of two stores, each judged on both. "a" and "b" name the stores."""

    concepts: tuple[str, ...]
    model_layers: tuple[int, ...]
    """The one that each concept is read at, in both stores."""
    measured: Mapping[tuple[str, str], NDArray[np.float64]]
    """By (store fitted on, store judged on): (concepts, 2), F1 and score."""
    skipped: Mapping[str, str]
    """Why a concept is left out."""
    seed: int = 0

    def quality(self, fitted: str, judged: str) -> Quality:
        """Of the lenses fitted on one store, on the samples of another."""
        f1, score = self.measured[fitted, judged].mean(axis=0)
        return Quality(float(f1), float(score))

    def change(self, fitted: str, judged: str) -> dict[str, Change]:
        """F1 and score of those lenses, less what lenses of a are worth on a; paired by concept."""
        difference = self.measured[fitted, judged] - self.measured["a", "a"]
        rng = np.random.default_rng(stable_seed("transfer", self.seed))
        n = len(difference)
        drawn = difference[rng.integers(n, size=(_RESAMPLES, n))].mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        return {
            name: Change(float(difference[:, i].mean()), float(low[i]), float(high[i]))
            for i, name in enumerate(("f1", "score"))
        }


def transfer(
    a: LensDataset, b: LensDataset, settings: FitSettings = ONE_FIT, *, jobs: int | None = None
) -> Transfer:
    """Fit lenses on both stores and judge each on both.

    Raises
    ------
    SettingsError
        If the stores do not hold the same samples in the same splits.
    TooFewSamplesError
        If no concept has enough samples.
    """
    check_same_samples(a, b)
    of_a = fit_lenses(a, settings, jobs=jobs)
    lenses = {
        "a": {lens.concept: lens for lens in of_a.lenses},
        "b": _fit_alike(b, of_a.lenses, settings, jobs),
    }
    concepts = [concept for concept in lenses["a"] if concept in lenses["b"]]
    found = {
        (fitted, judged): _judge([its[concept] for concept in concepts], dataset, settings)
        for fitted, its in lenses.items()
        for judged, dataset in (("a", a), ("b", b))
    }
    model_layers = tuple(lenses["a"][concept].model_layers[0] for concept in concepts)
    return Transfer(tuple(concepts), model_layers, found, of_a.skipped, settings.seed)


def check_same_samples(a: LensDataset, b: LensDataset) -> None:
    """Raise SettingsError unless two datasets hold the same samples and splits, in order."""
    if a.texts != b.texts or a.phases != b.phases or a.concepts != b.concepts or a.seed != b.seed:
        raise SettingsError(
            "the two stores hold other samples: extract both from one pack with the same settings"
        )
    if not np.array_equal(a.split, b.split) or not np.array_equal(a.vector_sample, b.vector_sample):
        raise SettingsError(
            "the two stores split their samples in another way: extract both with the same seed"
        )


def _fit_alike(
    dataset: LensDataset, lenses: Sequence[FittedLens], settings: FitSettings, jobs: int | None
) -> dict[str, FittedLens]:
    """Lenses at the model layers that others read."""
    found: dict[str, FittedLens] = {}
    for model_layers in sorted({lens.model_layers for lens in lenses}):
        here = [lens.concept for lens in lenses if lens.model_layers == model_layers]
        alike = replace(settings, model_layers=model_layers)
        fitted = fit_lenses(dataset, alike, concepts=here, jobs=jobs)
        found |= {lens.concept: lens for lens in fitted.lenses}
    return found


def _judge(
    lenses: Sequence[FittedLens], dataset: LensDataset, settings: FitSettings
) -> NDArray[np.float64]:
    """(lenses, 2) F1 and score on the test samples."""
    measured = np.empty((len(lenses), 2))
    for model_layers in {lens.model_layers for lens in lenses}:
        (model_layer,) = model_layers
        X = dataset.vectors(model_layer, dataset.split_place)[dataset.split_slices[TEST]]
        for number, lens in enumerate(lenses):
            if lens.model_layers == model_layers:
                logits = lens.weights.decision_function(X).astype(np.float64)
                task = draw_task(dataset, lens.concept, settings.n_negatives)
                rows = TaskRows(dataset, task, settings)
                drawn, judged = rows.drawn(TEST), rows.judged(TEST)
                f1 = classify(drawn.y, logits[drawn.rows], lens.threshold).f1
                rank = ranking(judged.y, logits[judged.rows], settings.prevalence)
                measured[number] = f1, rank.score
    return measured


def at_model_layer(settings: FitSettings, model_layer: int) -> FitSettings:
    """The same settings at one model layer."""
    return replace(settings, model_layers=(model_layer,))
