"""What a lens pack records in lenses.json beside weights: metrics of a lens, provenance of a pack.

lenses.json --from_json--> LensMetrics, Provenance --to_json--> lenses.json, the same keys
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from lenstrain.errors import UnknownNameError

_NULL = ("C", "labels")  # None has a meaning of its own: no L2 strength, no label set


@dataclass(frozen=True, kw_only=True)
class Record(Mapping[str, Any]):
    """One object of lenses.json, and a mapping of what stands in it.

    A field that is None was not recorded, and is not written. Keys that another version or another
    program wrote are kept in `others`, and written in their place.
    """

    others: dict[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Of the keys, as they were read."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The record of a JSON object."""
        known = {each.name for each in fields(cls)} - {"others", "order"}
        others = {key: value for key, value in data.items() if key not in known}
        own = {key: value for key, value in data.items() if key in known}
        return cls(**own, others=others, order=tuple(data))

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the record."""
        names = [each.name for each in fields(self) if each.name not in ("others", "order")]
        null = set(_NULL).intersection(self.order or _NULL)
        own = {name: getattr(self, name) for name in names}
        found = {name: v for name, v in own.items() if v is not None or name in null} | self.others
        return {key: found[key] for key in dict.fromkeys([*self.order, *found]) if key in found}

    def __getitem__(self, key: str) -> Any:
        """As `to_json` has it, without making all of it."""
        if key in self.others:
            return self.others[key]
        value = None if key in ("others", "order") else vars(self).get(key)
        is_null = value is None and key in _NULL and (not self.order or key in self.order)
        if value is None and not is_null:
            raise UnknownNameError("entry", key, self)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())


@dataclass(frozen=True, kw_only=True)
class LensMetrics(Record):
    """What was measured of a lens; NaN where it could not be. See `docs/grades.md` for scores."""

    natural_score: float | None = None
    """Score of its unnamed test texts among texts that express no concept."""
    natural_false_positive_rate: float | None = None
    test_f1: float = math.nan
    """At its threshold, both classes alike in prevalence; so are precision and recall."""
    test_f1_unnamed: float | None = None
    test_f1_named: float | None = None
    test_accuracy: float | None = None
    """None in packs of before it was measured."""
    train_f1: float = math.nan
    precision: float = math.nan
    recall: float = math.nan
    false_positive_rate: float = math.nan
    """Share of unrelated test samples at or above the threshold."""
    score: float = math.nan
    """On unnamed test texts: what the grade rests on; the next two are its 95 % interval."""
    score_low: float = math.nan
    score_high: float = math.nan
    grade_uncertain: bool = False
    """Whether this interval crosses the boundary of a grade."""
    score_named: float | None = None
    """On test texts that name the concept."""
    score_all: float | None = None
    """On all test samples; so are average precision and AUROC."""
    average_precision: float = math.nan
    auroc: float = math.nan
    calibration_score: float | None = None
    """On the calibration split: what may decide between two lenses."""
    score_by_phase: Mapping[str, float] = field(default_factory=dict)
    score_by_model_layer: Mapping[str, float] | None = None
    """Calibration scores at the model layers, as text, that it was chosen from."""
    controls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`score` of each control."""
    unbeaten_controls: Sequence[str] = ()
    best_control: str | None = None
    """By the calibration split."""
    lead_over_controls: float | None = None
    """Lower end of the 95 % interval of its score minus that of this control."""
    brier: float = math.nan
    """Of its probabilities on test samples; "before" are those of the bare logits."""
    brier_before: float = math.nan
    expected_calibration_error: float = math.nan
    expected_calibration_error_before: float = math.nan
    reliability: Mapping[str, Sequence[float]] | None = None
    """By bin: `predicted`, `observed`, `rows` and `weight`."""
    n_samples: float = math.nan
    """Positive training samples of the last iteration."""
    n_test: float | None = None
    """Distinct positive test texts."""
    n_test_unnamed: float | None = None
    n_judged: float = math.nan
    """Test samples that it was ranked on."""
    iterations: float = math.nan
    test_looks: float = math.nan
    graduated: bool = False
    refined_against: Sequence[str] = ()
    C: float | None = None
    """Inverse L2 strength; None in a family without one."""
    hungry: bool = False
    """Every cached sample was used and the lens did not graduate."""
    converged: float = math.nan
    beside_others: Mapping[str, Any] | None = None
    """`lenstrain.compare.rivals.LensCheck`: the lens beside the others of its pack."""
    agreement: Mapping[str, float] | None = None
    """With the lens that reads what the model wrote."""
    unknown: Sequence[str] | None = None
    """What of an imported lens was never measured."""


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Where the lenses of a pack come from; empty where nobody knows."""

    store: Mapping[str, Any] = field(default_factory=dict)
    """Its digest and its header."""
    labels: Mapping[str, str] | None = None
    """Name, digest and source of a label set."""
    background: Mapping[str, int] | None = None
    grading_rule: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`lenstrain.settings.settings_to_json` of the fit."""
    rounds: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    """Levels of abstraction whose concepts have lenses."""
    versions: Mapping[str, str] | None = None
    calibration: Mapping[str, float | None] | None = None
    """`lenstrain.fit.settle.SharedCalibration` of its probabilities."""
    refined: bool | None = None
    provisional: bool | None = None
    """Whether it was fitted on a part of a store, whose extraction was not finished."""
    extracted: Mapping[str, int] | None = None
    """`lenstrain.data.dataset.ExtractedPart`: how much of the store that part was."""
    imported: Mapping[str, Any] | None = None
    """From which program, and what is unknown for that reason."""

    @property
    def family(self) -> str:
        """The lens family that the pack was fitted with."""
        return str(self.settings.get("family", "linear"))

    @property
    def model(self) -> Mapping[str, Any]:
        """Id, fingerprint, dtype, n_layers and hidden of the model; empty if unknown."""
        model: Mapping[str, Any] = self.store.get("model", {})
        return model
