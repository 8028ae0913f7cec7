"""What is measured of a lens when its training has ended.

Thresholds, probabilities and the noise floor come from the calibration split; what the test split
says is reported and used for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, stable_seed
from lenstrain.data.features import Features
from lenstrain.data.rows import HeldOut, TaskRows
from lenstrain.families.weights import Weights
from lenstrain.fit.fitted import FittedLens, ProbabilityQuality
from lenstrain.metrics.calibrators import (
    Calibrator,
    brier_score,
    choose_calibrator,
    expected_calibration_error,
    reliability,
)
from lenstrain.metrics.score import Grade, ranking, score_interval
from lenstrain.metrics.thresholds import best_threshold, classify, threshold_for_fpr
from lenstrain.pack.lens import Iteration, NoiseFloor
from lenstrain.settings import FitSettings

Logits = Mapping[int, NDArray[np.float64]]
"""(rows of the split,) logits of one lens, by held-out split."""


def deciding(rows: TaskRows, settings: FitSettings) -> HeldOut:
    """The calibration rows that the decision threshold is chosen on."""
    return rows.drawn(CALIBRATION) if settings.fpr is None else rows.judged(CALIBRATION)


def decide(held: HeldOut, logits: NDArray[np.float64], settings: FitSettings) -> float:
    """The decision threshold, by the logits of the rows that `deciding` names."""
    if settings.fpr is None:
        return best_threshold(held.y, logits)
    return threshold_for_fpr(held.y, logits, settings.fpr)


def judge(
    rows: TaskRows,
    training_logits: NDArray[np.float64],
    threshold: float,
    test: NDArray[np.float64],
    settings: FitSettings,
    iteration: int,
) -> Iteration:
    """What one iteration is worth; cheap, and done after every one of them.

    Parameters
    ----------
    training_logits : (training rows of the iteration,)
    test : (rows of the test split,) logits.
    """
    training, drawn = rows.training, rows.drawn(TEST)
    train_f1 = classify(training.targets[: len(training_logits)], training_logits, threshold).f1
    test_f1 = classify(drawn.y, test[drawn.rows], threshold).f1
    score = rows.score(TEST, test, settings.prevalence)
    counts = training.n_positives[iteration - 1], training.n_negatives[iteration - 1]
    return Iteration(*counts, train_f1, test_f1, score, Grade.of(score), False)


def measure(
    rows: TaskRows,
    features: Features,
    weights: Weights,
    logits: Logits,
    step: Iteration,
    threshold: float,
    settings: FitSettings,
    *,
    model_layers: tuple[int, ...],
    C: float | None,
    converged: bool,
) -> FittedLens:
    """Everything else about a lens, once."""
    task, dataset, prevalence = rows.task, features.dataset, settings.prevalence
    test, calibration = logits[TEST], logits[CALIBRATION]
    drawn, judged = rows.drawn(TEST), rows.judged(TEST)
    of_test = classify(drawn.y, test[drawn.rows], threshold)
    seed = stable_seed("measure", settings.seed, task.concept)
    own, unrelated = rows.drawn(CALIBRATION), rows.judged(CALIBRATION)
    calibrator, losses = choose_calibrator(own.y, calibration[own.rows], own.samples, seed=seed)
    background = calibration[unrelated.rows[~unrelated.y]]
    in_test = dataset.split_slices[TEST]
    phase, unnamed = dataset.phases_by_split[in_test], dataset.unnamed

    def score_of(chosen: NDArray[np.bool_]) -> float:
        """Score on some of the judged rows; `chosen` (rows of the test split,)."""
        keep = chosen[judged.rows]
        return float(ranking(judged.y[keep], test[judged.rows[keep]], prevalence).score)

    def f1_of(named: bool) -> float:
        positives = task.positives[TEST]
        chosen = positives[unnamed[positives] != named]
        held = rows.drawn_from(TEST, chosen)
        return float(classify(held.y, test[held.rows], threshold).f1) if len(chosen) else np.nan

    return FittedLens(
        concept=task.concept,
        model_layers=model_layers,
        weights=weights,
        C=C,
        threshold=threshold,
        calibrator=calibrator,
        noise=NoiseFloor(float(background.mean()), float(background.std())),
        ranking=ranking(judged.y, test[judged.rows], prevalence),
        score_interval=score_interval(
            judged.y, test[judged.rows], prevalence, groups=judged.samples, seed=seed
        ),
        calibration_score=ranking(unrelated.y, calibration[unrelated.rows], prevalence).score,
        unnamed_score=score_of(unnamed[dataset.samples_by_split[in_test]]),
        phase_scores={name: score_of(phase == i) for i, name in enumerate(dataset.phases)},
        train_f1=step.train_f1,
        test_f1=step.test_f1,
        f1_unnamed=f1_of(False),
        f1_named=f1_of(True),
        precision=of_test.precision,
        recall=of_test.recall,
        false_positive_rate=float((test[judged.rows[~judged.y]] >= threshold).mean()),
        probability=_probability_quality(drawn, test, calibrator, losses),
        n_test=len(task.positives[TEST]),
        converged=converged,
    )


def _probability_quality(
    held: HeldOut, logits: NDArray[np.float64], calibrator: Calibrator, losses: dict[str, float]
) -> ProbabilityQuality:
    y, values = held.y, logits[held.rows]
    after, before = calibrator(values), 1 / (1 + np.exp(-np.clip(values, -500, 500)))
    return ProbabilityQuality(
        brier_score(y, after),
        brier_score(y, before),
        expected_calibration_error(y, after),
        expected_calibration_error(y, before),
        reliability(y, after),
        losses,
    )
