"""One concept's lens, as it is shipped: its weights, its measurements and its direction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.errors import SettingsError
from lenstrain.families.checks import activation_rows
from lenstrain.families.linear import LinearWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.families.weights import Weights, n_inputs, norm_of
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade, Status
from lenstrain.pack.records import LensMetrics

if TYPE_CHECKING:
    from lenstrain.families.checks import Activations


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


_FLOAT32_STEP = 2.0**-23  # from 1 to the next number; logits are float32


class NoiseFloor(NamedTuple):
    """Logits of a lens on calibration samples that have nothing to do with its concept."""

    mean: float
    deviation: float

    @property
    def unit(self) -> float:
        """The deviation to divide by: no less than float32 rounds the logits."""
        return max(self.deviation, _FLOAT32_STEP * abs(self.mean), 1e-12)


class Direction(NamedTuple):
    """Which way a concept lies in the residual stream: what to steer along."""

    model_layer: int
    """Transformer block whose output it belongs to."""
    vector: NDArray[np.float32]
    """(hidden,) of length 1: from the mean of all training vectors to that of the concept's."""
    deviation: float
    """Standard deviation of pooled activations along it, in activation units."""


@dataclass(frozen=True)
class Lens:
    """One concept's lens, as shipped: a small classifier of raw pooled activations."""

    concept: str
    name: str
    """What people call the concept."""
    level: int
    """Level of abstraction of the concept."""
    model_layers: tuple[int, ...]
    """Transformer blocks whose outputs it reads, side by side; none if it reads text."""
    weights: Weights
    threshold: float
    """Logit from which on the concept counts as present."""
    calibrator: Calibrator
    noise: NoiseFloor
    """Its logits where nothing of the concept is: what to tell a signal from."""
    grade: Grade | None
    """How far it can be trusted on texts that do not name its concept; None if nobody knows."""
    metrics: LensMetrics
    """Everything measured: F1, score, average precision, AUROC, scores by phase, controls ..."""
    trajectory: tuple[Iteration, ...]
    beyond: tuple[Iteration, ...] = ()
    """Iterations after graduation, recorded for `lenstrain impact`."""
    directions: tuple[Direction, ...] = ()
    """What to steer along, one for each of its model layers; none if it reads text."""
    status: Status = "provisional"
    reason: str = ""
    """Why it is ungraded, or what holds its grade down whatever its score is; "" otherwise."""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """What the concept pack says of the concept beside its texts, such as its level of risk."""

    def __repr__(self) -> str:
        reads = ", ".join(map(str, self.model_layers)) or "what the model wrote"
        layers = f"model layer{'s' * (len(self.model_layers) > 1)} " if self.model_layers else ""
        grade = "ungraded" if self.grade is None else f"grade {self.grade.value}"
        capped = ", capped" if self.is_capped else f", {self.status}" if self.grade else ""
        score = f"score {self.metrics.score:.2f}"
        return f"Lens({self.concept!r}: {grade}{capped}, {score}, reads {layers}{reads})"

    def has_attributes(self, wanted: Mapping[str, Collection[str]]) -> bool:
        """Whether each attribute named in `wanted` has one of the texts given for it."""
        return all(set(texts) & set(self.attributes.get(k, ())) for k, texts in wanted.items())

    @property
    def is_capped(self) -> bool:
        """Whether something other than its score holds its grade down."""
        return self.grade is not None and bool(self.reason)

    @property
    def grade_shown(self) -> str:
        """Its grade for people; "-" where it has none."""
        return "-" if self.grade is None else self.grade.value

    def reaches(self, wanted: Grade, *, untrusted: bool = False) -> bool:
        """Whether its grade is at least as good as wanted.

        Parameters
        ----------
        untrusted : also if it is ungraded or capped, whatever is wanted.
        """
        if self.grade is None or self.is_capped:
            return untrusted
        return self.grade.reaches(wanted)

    @property
    def model_layer(self) -> int:
        """The transformer block it reads, of a lens that reads one.

        Raises
        ------
        TypeError
            If it reads several, or text.
        """
        if len(self.model_layers) != 1:
            read = ", ".join(map(str, self.model_layers)) or "none"
            raise TypeError(
                f"the lens of {self.concept} reads not one model layer ({read}): use model_layers, "
                "and their activations side by side"
            )
        return self.model_layers[0]

    @property
    def weight(self) -> NDArray[np.float32]:
        """(hidden,) of a linear lens, on raw activations.

        Raises
        ------
        TypeError
            If the lens is no linear one.
        """
        return self._linear.weight

    @property
    def bias(self) -> float:
        """Of a linear lens."""
        return self._linear.bias

    @property
    def _linear(self) -> LinearWeights:
        if not isinstance(self.weights, LinearWeights) or self.weights.norm is not None:
            raise TypeError(f"the lens of {self.concept} is not linear: use its decision_function")
        return self.weights

    def decision_function(self, X: Activations) -> NDArray[np.float32]:
        """(n,) logits of raw activations X (n, hidden).

        Those of several model layers lie side by side: (n, model layers * hidden).

        Raises
        ------
        SettingsError
            If X has another shape.
        """
        # A lens that reads text takes the counts of its words.
        rows: Any = activation_rows(X, n_inputs(self.weights)) if self.model_layers else X
        return np.asarray(self.weights.decision_function(rows), np.float32)

    def predict_proba(self, X: Activations, prevalence: float = 0.5) -> NDArray[np.float64]:
        """(n, 2) calibrated probabilities of absence and presence of raw activations X (n, hidden).

        Parameters
        ----------
        prevalence : share of texts that express the concept where the lens is used. By default
            half of them do: a probability above 0.5 then says that presence is what the text speaks
            for, not that it is the likelier of the two among texts that hardly ever express it.
        """
        present = self.calibrator(self.decision_function(X).astype(np.float64), prevalence)
        return np.stack([1 - present, present], axis=1)

    def predict(self, X: Activations) -> NDArray[np.bool_]:
        """(n,) whether the concept counts as present."""
        return self.decision_function(X) >= self.threshold

    def signal(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """How far logits, any shape, are above the noise floor, in its deviations."""
        return np.asarray((logits - self.noise.mean) / self.noise.unit, np.float64)


def shared_norm(lenses: Iterable[Lens], model_layer: int) -> Standardizer | None:
    """What lenses do to the activations of a model layer before they multiply; None for nothing.

    Raises
    ------
    SettingsError
        If some of them do something else: they are of several fits, and no product serves them all.
    """
    readers = [lens for lens in lenses if model_layer in lens.model_layers]
    # Lenses of a fit hold the same object, which is cut up once for each place in them.
    different: dict[tuple[int, int, int], Standardizer | None] = {}
    for lens in readers:
        place, n = lens.model_layers.index(model_layer), len(lens.model_layers)
        key = id(getattr(lens.weights, "norm", None)), place, n
        if key not in different:
            different[key] = norm_of(lens.weights, place, n)
    first, *others = different.values() or [None]
    for other in others:
        if (first is None) != (other is None) or not all(
            np.array_equal(one, two) for one, two in zip(first or (), other or (), strict=True)
        ):
            raise SettingsError(
                f"the lenses of model layer {model_layer} standardise activations in different "
                "ways: they are of several fits; fit them together, or keep a pack for each"
            )
    return first
