"""What is measured of a lens when its training has ended.

Thresholds, probabilities and the noise floor come from the calibration split; what the test split
says is reported and used for nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, stable_seed
from lenstrain.data.features import Features
from lenstrain.data.rows import HeldOut, TaskRows
from lenstrain.families.weights import Weights
from lenstrain.fit.cut import Cut, Drawn
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.calibrators import CalibrationRows
from lenstrain.metrics.grade import Grade, lack_of_texts
from lenstrain.metrics.score import ranking
from lenstrain.metrics.thresholds import Best, best_threshold, classify, threshold_for_fpr
from lenstrain.pack.lens import Iteration, NoiseFloor
from lenstrain.pack.records import LensMetrics
from lenstrain.settings import FitSettings


class Calibrated(NamedTuple):
    """What the calibration split says of a lens."""

    noise: NoiseFloor
    rows: CalibrationRows
    score: float
    """As `calibration_score`."""
    n_texts: int
    """Distinct texts that express the concept there."""

    @classmethod
    def of(cls, rows: TaskRows, logits: NDArray[np.float64], prevalence: float) -> Calibrated:
        """By the logits of one lens (rows of the calibration split,)."""
        own, unrelated = rows.drawn(CALIBRATION), rows.judged(CALIBRATION)
        negative = logits[unrelated.rows[~unrelated.y]]
        noise = NoiseFloor(float(negative.mean()), float(negative.std()))
        signals = (logits[own.rows] - noise.mean) / noise.unit
        text = rows.dataset.text_number[own.samples]
        score = calibration_score(rows, logits, prevalence)
        found = CalibrationRows(own.y, signals, text)
        return cls(noise, found, score, rows.n_texts(CALIBRATION))


def deciding(rows: TaskRows, settings: FitSettings) -> HeldOut:
    """The calibration rows that the decision threshold is chosen on."""
    return rows.drawn(CALIBRATION) if settings.fpr is None else rows.judged(CALIBRATION)


def decide(held: HeldOut, logits: NDArray[np.float64], settings: FitSettings) -> float:
    """The decision threshold, by the logits of the rows that `deciding` names."""
    if settings.fpr is None:
        best: Best = "accuracy" if settings.threshold == "accuracy" else "f1"
        return best_threshold(held.y, logits, best)
    return threshold_for_fpr(held.y, logits, settings.fpr)


def judge(
    rows: TaskRows,
    training_logits: NDArray[np.float64],
    threshold: float,
    drawn: NDArray[np.float64],
    sampled: NDArray[np.float64],
    settings: FitSettings,
    iteration: int,
) -> Iteration:
    """What one iteration is worth; cheap, and done after every one of them.

    The score is that among a sample of the test split where that is large, see
    `LensDataset.sampled_rows`; that of the lens which is kept is measured among all rows.

    Parameters
    ----------
    training_logits : (training rows of the iteration,)
    drawn : (its own rows of the test split,) logits, see `TaskRows.drawn`.
    sampled : (rows of `LensDataset.sampled_rows`,) logits.
    """
    training, own = rows.training, rows.drawn(TEST)
    train_f1 = classify(training.targets[: len(training_logits)], training_logits, threshold).f1
    test_f1 = classify(own.y, drawn, threshold).f1
    score = rows.ranked_in_sample(TEST, drawn[own.y], sampled).score(settings.prevalence)
    grade = "ungraded" if lack_of_texts(rows.n_graded) else Grade.of(score).value
    counts = training.n_positives[iteration - 1], training.n_negatives[iteration - 1]
    return Iteration(*counts, train_f1, test_f1, score, grade, False)


def measure(
    rows: TaskRows,
    features: Features,
    weights: Weights,
    calibrated: Calibrated,
    test: NDArray[np.float64],
    natural: NDArray[np.float64],
    step: Iteration,
    threshold: float,
    settings: FitSettings,
    *,
    model_layers: tuple[int, ...],
    C: float | None,
    converged: bool,
) -> FittedLens:
    """Everything else about a lens, once.

    Parameters
    ----------
    test : (rows of the test split,) logits.
    natural : its logits on texts of no concept.
    """
    task, dataset, prevalence = rows.task, features.dataset, settings.prevalence
    drawn, judged = rows.drawn(TEST), rows.judged(TEST)
    seed = stable_seed("measure", task.concept)  # other lenses, the same draws: they are paired
    in_test = dataset.split_slices[TEST]
    phase, graded = dataset.phases_by_split[in_test], rows.ranked(TEST, test)
    is_unnamed = dataset.unnamed(task.concept, drawn.samples)

    def score_of(chosen: NDArray[np.bool_]) -> float:
        """Score on some of the judged rows; `chosen` (rows of the test split,)."""
        keep = chosen[judged.rows]
        return float(ranking(judged.y[keep], test[judged.rows[keep]], prevalence).score)

    return FittedLens(
        concept=task.concept,
        model_layers=model_layers,
        weights=weights,
        calibration_rows=calibrated.rows,
        noise=calibrated.noise,
        graded=graded,
        score=graded.score(prevalence),
        score_interval=graded.interval(prevalence, seed=seed),
        ranking=ranking(judged.y, test[judged.rows], prevalence),
        cut=Cut.make(
            threshold,
            calibrated.noise,
            Drawn(drawn.y, drawn.y & is_unnamed, test[drawn.rows], natural),
            test[judged.rows[~judged.y]],
            calibrated.n_texts,
        ),
        calibration_score=calibrated.score,
        n_test_unnamed=rows.n_graded,
        metrics=LensMetrics(
            natural_score=rows.ranked_among_natural(test, natural).score(prevalence),
            train_f1=step.train_f1,
            score_named=rows.score(TEST, test, prevalence, "named"),
            score_by_phase={name: score_of(phase == i) for i, name in enumerate(dataset.phases)},
            n_test=rows.n_texts(TEST),
            C=C,
            converged=converged,
        ),
    )


def calibration_score(rows: TaskRows, logits: NDArray[np.float64], prevalence: float) -> float:
    """Score on the unnamed calibration samples; on all of them where there are none."""
    return rows.score(CALIBRATION, logits, prevalence, rows.counted(CALIBRATION))
