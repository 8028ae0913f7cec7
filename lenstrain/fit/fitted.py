"""What a fit keeps of a lens: its weights, its controls, its measures and its trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lenstrain.families.weights import Weights
from lenstrain.metrics.calibrators import Calibrator, Reliability
from lenstrain.metrics.score import Grade, Interval, Ranking
from lenstrain.pack.lens import Direction, Iteration, NoiseFloor


class Control(NamedTuple):
    """What something that knows nothing of the concept gets on the same samples."""

    score: float
    test_f1: float


class ProbabilityQuality(NamedTuple):
    """Calibrated probabilities on test samples, both classes alike in prevalence, and those of the
    bare logits ("before")."""

    brier: float
    brier_before: float
    expected_calibration_error: float
    expected_calibration_error_before: float
    reliability: Reliability
    held_out_log_loss: dict[str, float]
    """By kind of calibrator, cross-validated on the calibration split: the lowest was chosen."""


@dataclass
class FittedLens:
    """A lens and what is known about it."""

    concept: str
    model_layers: tuple[int, ...]
    """Transformer blocks that it reads; none for a lens that reads text."""
    weights: Weights
    C: float | None
    """Inverse L2 strength it was fitted with, where its family has one."""
    threshold: float
    """Logit from which on the concept counts as present."""
    calibrator: Calibrator
    """Calibrated probability; both classes alike in prevalence."""
    noise: NoiseFloor
    ranking: Ranking
    """Against all held-out samples."""
    score_interval: Interval
    """95 % confidence interval of the score."""
    calibration_score: float
    """Score on the calibration split: what may decide between two lenses."""
    unnamed_score: float
    """Score on held-out samples that do not name their concept."""
    phase_scores: dict[str, float]
    """Score on the vectors of each phase alone."""
    train_f1: float
    test_f1: float
    f1_unnamed: float
    """Test F1 of positives that do not name the concept, against the same negatives; NaN without
    any."""
    f1_named: float
    """Test F1 of those that do."""
    precision: float
    recall: float
    false_positive_rate: float
    """Share of all unrelated test samples at or above the threshold."""
    probability: ProbabilityQuality
    n_test: int
    """Positive test samples."""
    converged: bool
    score_by_model_layer: dict[int, float] = field(default_factory=dict)
    """Calibration score at each model layer that it was chosen from; empty if there was one."""
    graduated: bool = False
    hungry: bool = False
    """Every cached sample was used and the lens did not graduate."""
    controls: dict[str, Control] = field(default_factory=dict)
    trajectory: list[Iteration] = field(default_factory=list)
    refined: tuple[str, ...] = ()
    """Concepts whose samples it was fitted again with, because their lenses fired on its own."""
    beyond: list[Iteration] = field(default_factory=list)
    """Iterations after graduation, recorded to tell what other validation modes would have cost."""
    directions: tuple[Direction, ...] = ()
    """What to steer along, one for each model layer."""

    @property
    def grade(self) -> Grade:
        """How far it can be trusted."""
        return Grade.of(self.ranking.score)

    @property
    def unbeaten(self) -> list[str]:
        """Controls whose score the lens does not exceed."""
        score = self.ranking.score
        return [name for name, control in self.controls.items() if not score > control.score]

    @property
    def n_samples(self) -> int:
        """Positive training samples it was fitted on."""
        return self.trajectory[-1].n_samples
