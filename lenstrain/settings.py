"""How to train: what a fit may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from lenstrain.errors import SettingsError
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import REFERENCE_PREVALENCE

Validation = Literal["advisory", "blocking", "falloff"]
PhaseChoice = Literal["both", "prompt", "completion"]
Stage = Literal[
    "choosing model layers", "fitting", "fitting text lenses", "refining", "refitting", "checking"
]
ThresholdRule = Literal["auto", "f1", "accuracy", "fpr"]
FamilyName = Literal["auto", "linear", "mlp", "discriminant", "mean-difference", "ensemble", "text"]


class Step(Protocol):
    """What graduation looks at."""

    @property
    def train_f1(self) -> float: ...  # noqa: D102
    @property
    def test_f1(self) -> float: ...  # noqa: D102
    @property
    def grade(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class FitSettings:
    """How to train. Samples are rows of the store, which give a vector for each phase."""

    target_f1: float = 0.95
    """Test F1 at which a lens graduates."""
    max_overfit_gap: float = 0.10
    """Largest difference between train and test F1 at graduation."""
    initial_samples: int = 5
    """Positive training samples of the first iteration."""
    first_increment: int = 5
    """Positive training samples added at the second iteration."""
    increment: int = 10
    """Positive training samples added at every later iteration."""
    max_samples: int = 200
    """Positive training samples at most."""
    max_iterations: int = 50
    min_iterations: int = 1
    """Iterations before a lens may graduate, as far as there are samples for them."""
    min_test_samples: int = 1
    """Positive test samples that graduation asks for: F1 on one or two is luck. A concept with
    fewer asks for more samples."""
    negatives_per_positive: float = 10.0
    """Negatives cost nothing, and a lens that saw few fires at everything. Classes weigh alike."""
    max_negatives: int = 300
    """Negative training samples at most (never fewer than positives)."""
    validation: Validation = "advisory"
    """Whether the grade can hold back graduation: "advisory" never, "blocking" until it reaches
    `min_grade`, "falloff" asks A of iterations 1-3, B until 9, then C."""
    min_grade: Grade = Grade.B
    """Grade that "blocking" asks for."""
    C: float | None = None
    """Inverse L2 strength on standardised features; None to choose it from `STRENGTHS`."""
    family: FamilyName = "auto"
    """See `lenstrain.families.contract`. "text" reads what the model wrote, not its activations;
    "auto" is what `lenstrain.fit.choice.settled` says: "discriminant" or "linear"."""
    unit_norm: bool = True
    """Whether "discriminant" reads activations over their standardised length, which a plain linear
    lens cannot."""
    background_weight: float | None = None
    """Share that texts of no concept, where the store has any, have in the mean negative of
    "discriminant"; None for 0.25, and 0.1 of a concept whose training texts all name it."""
    threshold: ThresholdRule = "auto"
    """What decision thresholds are chosen for: the best F1 or accuracy on the concept's own
    calibration samples, both classes alike in prevalence, or a false positive rate. "auto" is "fpr"
    where `fpr` is given, "accuracy" for texts that are labelled in two classes, else "f1"."""
    fpr: float | None = None
    """Share of all unrelated calibration samples that the decision threshold may let through."""
    refit: bool | None = None
    """Whether lenses are fitted once more, on the calibration split as well, when nothing is left
    to choose (`lenstrain.fit.refit`); None for texts that are labelled in two classes alone."""
    beyond_graduation: bool = True
    """Whether to go on after graduation, for the record, as long as other modes would have."""
    phase: PhaseChoice = "both"
    model_layers: tuple[int, ...] | None = None
    """Transformer blocks to choose from; None for all that the store holds."""
    n_model_layers: int | None = None
    """Of these, how many a lens reads; None for as many as its family does."""
    prevalence: float = REFERENCE_PREVALENCE
    """Prevalence at which the calibration score is computed."""
    seed: int = 0
    device: str = "cpu"
    """Where to solve: "cpu", or a CUDA device."""

    def __post_init__(self) -> None:
        if not 0 < self.target_f1 <= 1:
            raise SettingsError(f"target F1 is {self.target_f1}, expected above 0 and at most 1")
        samples = self.initial_samples, self.first_increment, self.increment
        iterations = self.max_iterations, self.min_iterations
        if min(*samples, *iterations, self.min_test_samples) < 1:
            raise SettingsError(
                "initial samples, increments, iterations and test samples must be 1 or more"
            )
        if self.min_iterations > self.max_iterations:
            raise SettingsError(
                f"min_iterations {self.min_iterations} is above "
                f"max_iterations {self.max_iterations}"
            )
        if self.fpr is not None and not 0 < self.fpr < 1:
            raise SettingsError(f"the false-positive rate is {self.fpr}, expected between 0 and 1")
        if (self.threshold == "fpr" and self.fpr is None) or (
            self.threshold in ("f1", "accuracy") and self.fpr is not None
        ):
            raise SettingsError(
                f"threshold is {self.threshold!r} and fpr {self.fpr}: a threshold for a false "
                "positive rate takes both, any other none"
            )
        if self.max_samples < self.initial_samples:
            raise SettingsError(
                f"max_samples {self.max_samples} is below initial_samples {self.initial_samples}"
            )
        has_strength = self.C is None or self.C > 0
        if not (has_strength and self.negatives_per_positive > 0 and 0 < self.prevalence < 1):
            raise SettingsError(
                "C and negatives per positive must be above 0, prevalence between 0 and 1"
            )
        if self.background_weight is not None and not 0 <= self.background_weight < 1:
            raise SettingsError(
                f"background_weight is {self.background_weight}, expected 0 or more and below 1"
            )
        if self.family == "text" and (self.model_layers, self.n_model_layers) != (None, None):
            raise SettingsError(
                "text lenses read what the model wrote, not a model layer: leave model layers out"
            )
        if self.n_model_layers is not None and self.n_model_layers < 1:
            raise SettingsError(f"n_model_layers is {self.n_model_layers}, expected 1 or more")
        if self.model_layers == ():
            raise SettingsError(
                "no model layers to choose from: name at least one, or None for all that are stored"
            )
        for what, choices in (
            ("validation", get_args(Validation)),
            ("family", get_args(FamilyName)),
            ("threshold", get_args(ThresholdRule)),
        ):
            if (value := getattr(self, what)) not in choices:
                raise SettingsError(f"{what} is {value!r}, expected {', '.join(choices)}")

    def required_grade(self, iteration: int) -> Grade:
        """The grade that graduation asks for at an iteration, counted from 1."""
        if self.validation == "advisory":
            return Grade.C
        if self.validation == "blocking":
            return self.min_grade
        return Grade.A if iteration <= 3 else Grade.B if iteration <= 9 else Grade.C

    def graduates(
        self, step: Step, iteration: int, *, is_last: bool = False, n_test: float | None = None
    ) -> bool:
        """Whether a lens is done at an iteration, counted from 1: by F1, overfitting and grade.

        `is_last` says that there are no samples for another iteration: then there need not be as
        many as asked for. `n_test` is how many distinct positive test texts there are; None
        for enough.
        """
        return (
            (n_test is None or n_test >= self.min_test_samples)
            and (iteration >= self.min_iterations or is_last)
            and step.test_f1 >= self.target_f1
            and step.train_f1 - step.test_f1 <= self.max_overfit_gap
            and self._reaches(step.grade, self.required_grade(iteration))
        )

    @staticmethod
    def _reaches(grade: str, wanted: Grade) -> bool:
        """Whether the grade of an iteration is good enough; what is ungraded reaches C alone."""
        return wanted is Grade.C or (grade in (*Grade,) and Grade(grade).reaches(wanted))

    def n_samples(self, iteration: int, available: int) -> int:
        """Positive training samples of an iteration, counted from 1."""
        grown = self.initial_samples
        if iteration > 1:
            grown += self.first_increment + (iteration - 2) * self.increment
        return min(grown, self.max_samples, available)

    def n_negatives(self, n_positives: int) -> int:
        """Negative samples that go with some positives."""
        wanted = round(self.negatives_per_positive * n_positives)
        return max(n_positives, min(wanted, self.max_negatives))


def settings_to_json(settings: FitSettings) -> dict[str, Any]:
    """Plain values, for provenance."""
    values = asdict(settings)
    values["model_layers"] = None if settings.model_layers is None else list(settings.model_layers)
    return values


def settings_from_json(values: Mapping[str, Any]) -> FitSettings:
    """Settings as `settings_to_json` wrote them."""
    model_layers, min_grade = values["model_layers"], Grade(values["min_grade"])
    model_layers = None if model_layers is None else tuple(model_layers)
    return FitSettings(**{**values, "model_layers": model_layers, "min_grade": min_grade})


class FitProgress(NamedTuple):
    """Where a fit stands."""

    stage: Stage
    done: int
    total: int
    """Model layers, or concepts to fit."""
    graduated: int = 0
    """Of the lenses done so far, those that graduated; of several targets, at the first."""
    grades: tuple[tuple[str, int], ...] = ()
    """How many of the lenses done so far have each grade."""

    @property
    def unit(self) -> str:
        """What `done` and `total` count."""
        units = {"fitting": "concepts", "fitting text lenses": "concepts", "checking": "packs"}
        return units.get(self.stage, "model layers")


OnProgress = Callable[[FitProgress], None]
