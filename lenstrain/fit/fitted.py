"""What a fit keeps of a lens: its weights, its controls, its measures and its trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lenstrain.families.weights import Weights
from lenstrain.fit.cut import Cut
from lenstrain.metrics.calibrators import (
    CalibrationRows,
    Calibrator,
    Reliability,
    brier_score,
    expected_calibration_error,
    reliability,
)
from lenstrain.metrics.grade import Evidence, Verdict, judge_evidence
from lenstrain.metrics.score import Interval, Ranked, Ranking
from lenstrain.pack.lens import Direction, Iteration, NoiseFloor
from lenstrain.pack.records import LensMetrics

UNCALIBRATED = Calibrator("sigmoid", (1.0, 0.0))


class Control(NamedTuple):
    """What something that knows nothing of the concept gets on the same samples."""

    score: float


class ProbabilityQuality(NamedTuple):
    """Calibrated probabilities on test samples, both classes alike in prevalence, and those of the
    bare logits ("before")."""

    brier: float
    brier_before: float
    expected_calibration_error: float
    expected_calibration_error_before: float
    reliability: Reliability


@dataclass
class FittedLens:
    """A lens and what is known about it."""

    concept: str
    model_layers: tuple[int, ...]
    """Transformer blocks that it reads; none for a lens that reads text."""
    weights: Weights
    cut: Cut
    """Its decision threshold, and its metrics there."""
    calibration_rows: CalibrationRows
    """What its probabilities are fitted on, together with those of the other lenses."""
    noise: NoiseFloor
    graded: Ranked
    """Its unnamed test texts, ranked among all other test samples."""
    score: float
    """On these: what the grade rests on; NaN where there are none."""
    score_interval: Interval
    """95 % confidence interval of the score."""
    ranking: Ranking
    """On all test samples, named or not."""
    calibration_score: float
    """Score on the calibration split: what may decide between two lenses."""
    n_test_unnamed: int
    """Distinct positive test texts that do not name the concept."""
    metrics: LensMetrics
    """What is measured once; those that later steps change are filled in for the pack."""
    calibrator: Calibrator = UNCALIBRATED
    score_by_model_layer: dict[int, float] = field(default_factory=dict)
    """Calibration score at each model layer that it was chosen from; empty if there was one."""
    graduated: bool = False
    hungry: bool = False
    """Every cached sample was used and the lens did not graduate."""
    controls: dict[str, Control] = field(default_factory=dict)
    best_control: str = ""
    """The control with the best score on the calibration split."""
    rival: Ranked | None = None
    """What that control makes of the graded texts."""
    lead: float = np.nan
    """Lower end of the 95 % interval of its score minus that of this control; NaN before there are
    controls."""
    trajectory: list[Iteration] = field(default_factory=list)
    refined: tuple[str, ...] = ()
    """Concepts whose samples it was fitted again with, because their lenses fired on its own."""
    beyond: list[Iteration] = field(default_factory=list)
    """Iterations after graduation, recorded to tell what other validation modes would have cost."""
    directions: tuple[Direction, ...] = ()
    """What to steer along, one for each model layer."""

    @property
    def threshold(self) -> float:
        """Logit from which on the concept counts as present."""
        return self.cut.threshold

    @property
    def test_f1(self) -> float:
        """At its threshold, both classes alike in prevalence."""
        return self.cut.metrics.f1

    @property
    def probability(self) -> ProbabilityQuality:
        """How good its probabilities are."""
        y, logits = self.cut.drawn.y, self.cut.drawn.logits
        after, before = self.calibrator(logits), UNCALIBRATED(logits)
        return ProbabilityQuality(
            brier_score(y, after),
            brier_score(y, before),
            expected_calibration_error(y, after),
            expected_calibration_error(y, before),
            reliability(y, after),
        )

    @property
    def verdict(self) -> Verdict:
        """How far it can be trusted."""
        evidence = Evidence(
            score=self.score,
            interval=self.score_interval,
            n_unnamed=self.n_test_unnamed,
            control=self.best_control,
            lead=self.lead,
            false_positive_rate=self.cut.metrics.false_positive_rate,
            test_f1=self.test_f1,
        )
        return judge_evidence(evidence)

    @property
    def unbeaten(self) -> list[str]:
        """Controls whose score the lens does not exceed; none where there is no score."""
        return [name for name, control in self.controls.items() if control.score >= self.score]

    @property
    def n_samples(self) -> int:
        """Positive training samples it was fitted on."""
        return self.trajectory[-1].n_samples
