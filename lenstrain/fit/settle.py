"""What lenses of a fit settle together, when all of them are fitted.

FittedLens of every concept --settle--> thresholds drawn towards those of their levels,
                                        probabilities drawn towards what all signals say
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lenstrain.data.dataset import LensDataset, stable_seed
from lenstrain.fit.cut import draw_thresholds
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.calibrators import (
    Calibrator,
    balanced,
    expected_calibration_error,
    fit_calibrators,
    smooth_calibration_error,
)
from lenstrain.settings import FitSettings


class SharedCalibration(NamedTuple):
    """How the logits of a fit became probabilities, and how good these are on test samples."""

    slope: float
    """Of all concepts together, by deviations above the noise floor."""
    intercept: float
    pull: float | None
    """Calibration texts that these two are worth; None where they alone count."""
    brier: float
    """Mean over lenses."""
    expected_calibration_error: float
    """Of the samples of all lenses together, lenses and classes weighing alike."""
    smooth_calibration_error: float
    """The same without bins."""


def settle(
    dataset: LensDataset, lenses: Sequence[FittedLens], settings: FitSettings
) -> SharedCalibration:
    """Draw thresholds and probabilities of a fit's lenses towards what all of them have in common.

    Thresholds for a false positive rate stay: they are chosen on nearly all rows.
    """
    if settings.fpr is None:
        levels = [dataset.hierarchy.levels[lens.concept] for lens in lenses]
        cuts = draw_thresholds([lens.cut for lens in lenses], levels)
        for lens, cut in zip(lenses, cuts, strict=True):
            lens.cut = cut
    seed = stable_seed("calibrators", settings.seed, "")
    found = fit_calibrators([lens.calibration_rows for lens in lenses], seed=seed)
    for lens, (slope, intercept) in zip(lenses, found.lines.tolist(), strict=True):
        slope /= lens.noise.unit
        lens.calibrator = Calibrator("sigmoid", (slope, intercept - slope * lens.noise.mean))
    slope, intercept = found.shared.tolist()
    pull = found.pull if np.isfinite(found.pull) else None
    return SharedCalibration(slope, intercept, pull, *_quality(lenses))


def _quality(lenses: Sequence[FittedLens]) -> tuple[float, float, float]:
    """Brier score, expected and smooth calibration error on the test samples of all lenses; NaN
    where no lens has both classes."""
    judged = [lens for lens in lenses if 0 < lens.cut.drawn.y.sum() < len(lens.cut.drawn.y)]
    if not judged:
        return np.nan, np.nan, np.nan
    y = np.concatenate([lens.cut.drawn.y for lens in judged])
    p = np.concatenate([lens.calibrator(lens.cut.drawn.logits) for lens in judged])
    weight = np.concatenate([balanced(lens.cut.drawn.y) for lens in judged]) / len(judged)
    brier = float(weight @ (p - y) ** 2)
    return (
        brier,
        expected_calibration_error(y, p, weight=weight),
        smooth_calibration_error(y, p, weight),
    )
