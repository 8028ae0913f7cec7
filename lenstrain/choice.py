"""What is chosen on the calibration split before training: each concept's model layer and L2 strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.calibration import ranking
from lenstrain.dataset import CALIBRATION, TRAIN, LensDataset, Task
from lenstrain.errors import SettingsError
from lenstrain.layerdata import LayerData
from lenstrain.settings import FitSettings

STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse L2 strengths to choose from, the strongest penalty first."""

_MIDDLE_STRENGTH = 0.1  # for choosing the model layer, before the strength is chosen
# Average precision at 1 % hangs on the few best negatives, and a calibration split is small: at one half it chose
# lenses with a better test F1 (0.808 against 0.795 over 75 concepts, benchmarks/choice.py) and no worse a score at 1 %.
_CHOICE_PREVALENCE = 0.5
_PRIOR = 12  # calibration samples that the mean over concepts is worth; 4 to 36 chose about equally well


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
    weight of `_PRIOR` samples. Equal layers go to the lower one.

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
    strengths = [settings.C or _MIDDLE_STRENGTH] * len(tasks)
    scores = np.empty((len(candidates), len(tasks)))
    for number, model_layer in enumerate(candidates):
        on_progress(FitProgress("choosing model layers", number, len(candidates)))
        scores[number] = _calibration_scores(LayerData(dataset, model_layer, settings), tasks, settings, strengths)
    on_progress(FitProgress("choosing model layers", len(candidates), len(candidates)))
    return [candidates[number] for number in _best(scores, tasks)]


def choose_strengths(layer: LayerData, tasks: Sequence[Task], settings: FitSettings) -> list[float]:
    """The L2 strength of each task on its model layer: the best of `STRENGTHS` on the calibration split.

    With a dozen samples the strengths hardly differ; with hundreds of labelled texts a weak one costs 0.02-0.05 of
    AUROC (`benchmarks/labelled.py`), so it is chosen as the model layer is. Equal ones go to the stronger penalty.
    """
    if settings.C is not None:
        return [settings.C] * len(tasks)
    scores = np.stack([
        _calibration_scores(layer, tasks, settings, [strength] * len(tasks)) for strength in STRENGTHS
    ])  # fmt: skip
    return [STRENGTHS[number] for number in _best(scores, tasks)]


def _calibration_scores(
    layer: LayerData, tasks: Sequence[Task], settings: FitSettings, strengths: Sequence[float]
) -> list[float]:
    """Average precision of each task on the calibration split, with all training samples."""
    most = [settings.n_samples(settings.max_iterations, len(task.positives[TRAIN])) for task in tasks]
    logits = layer.logits(layer.fit(tasks, most, strengths), CALIBRATION)
    return [
        ranking(*layer.judged(task, CALIBRATION, logits[:, i]), _CHOICE_PREVALENCE).score
        for i, task in enumerate(tasks)
    ]


def _best(scores: NDArray[np.float64], tasks: Sequence[Task]) -> list[int]:
    """Which row of `scores` (candidates, tasks) is best for each task; of equal ones the first."""
    seen = np.array([len(task.positives[CALIBRATION]) for task in tasks])
    drawn = (seen * scores + _PRIOR * scores.mean(axis=1, keepdims=True)) / (seen + _PRIOR)
    return [int(number) for number in drawn.round(9).argmax(axis=0)]


def _ranges(numbers: Sequence[int]) -> str:
    """0-29 rather than thirty numbers."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
