"""What the report shows of a lens pack: plain values, in two parts.

The first is read when the page opens: the summary and a line for each concept. The second, what the
page of a concept shows, is several times as large and only read when somebody asks for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from lenstrain.compare.impact import impact
from lenstrain.data.dataset import LensDataset
from lenstrain.errors import SettingsError
from lenstrain.metrics.grade import FINDS_TOO_LITTLE, FIRES_EVERYWHERE, MIN_TEXTS, RULE
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.report.samples import HeldOutSamples, SampleLine, Texts, read_held_out
from lenstrain.report.tree import Tree, tree_of

UNGRADED = "U"
"""Stands for the grade of a lens that has none; the page writes it as a word."""

_DIGITS = 4  # of the figures shown: more than anybody reads, and half the file


@dataclass(frozen=True)
class ConceptLine:
    """One concept in a line: a row of the table, a field of the tree. Figures may be missing."""

    id: str
    name: str
    level: int
    """Level of abstraction."""
    grade: str = ""
    """A, B or C; U of a lens that is ungraded; empty for a concept without a lens."""
    status: str = ""
    reason: str = ""
    """Why it is ungraded or capped; empty otherwise."""
    capped: bool = False
    """Whether its grade is lower than that of its score."""
    model_layers: tuple[int, ...] = ()
    score: float | None = None
    """What the grade rests on."""
    low: float | None = None
    """Lower end of the score's 95 % interval."""
    high: float | None = None
    uncertain: bool = False
    """Whether the interval crosses a grade's boundary."""
    score_named: float | None = None
    """Score on samples that name the concept: name detection."""
    test_f1: float | None = None
    f1_named: float | None = None
    """Test F1 of samples that name the concept."""
    f1_unnamed: float | None = None
    control: float | None = None
    """Best score of what knows nothing of the concept."""
    unbeaten: bool = False
    """Whether the lens does no better than that."""
    lead: float | None = None
    """Lower end of the 95 % interval of its score minus that of the best control."""
    first: float | None = None
    """Share of its samples on which it leads the lenses of its level."""
    everywhere: bool = False
    """Whether it fires everywhere."""
    n_test: int | None = None
    """Distinct test texts that express the concept."""
    n_test_unnamed: int | None = None
    """Of those, texts that do not name it."""
    n_samples: int | None = None
    iterations: int | None = None
    graduated: bool = False
    hungry: bool = False
    attributes: tuple[str, ...] = ()
    """What the concept pack says of it, each as "name=value"."""

    @property
    def ungraded(self) -> bool:
        """Whether it has a lens without a grade."""
        return self.grade == UNGRADED


@dataclass(frozen=True)
class ConceptDetail:
    """What the page of a concept shows beside its line."""

    steps: list[list[float]]
    """Positive training samples, train F1, test F1, score; by iteration."""
    n_steps: int
    """Iterations until training ended; those after it are for the record."""
    reliability: list[list[float | None]]
    """Predicted, observed, rows, weight; of bins that hold anything."""
    controls: list[list[Any]]
    """Name, score, test F1."""
    figures: dict[str, Any]
    """Further metrics, as in the pack."""
    confusers: list[int]
    """Numbers of the concepts whose lenses outrank it."""
    refined_against: list[int]
    best: list[SampleLine]
    worst: list[SampleLine]
    false_alarms: list[SampleLine]


@dataclass(frozen=True)
class Beside:
    """Another pack to compare with; lists are by concept, empty or null where it has no lens."""

    label: str
    about: dict[str, Any]
    summary: dict[str, Any]
    grade: list[str]
    status: list[str]
    reason: list[str]
    score: list[float | None]
    test_f1: list[float | None]
    n_samples: list[int | None]
    n_only_there: int
    """Concepts that only the other pack has a lens for."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    label: str
    about: dict[str, Any]
    summary: dict[str, Any]
    warnings: list[dict[str, Any]]
    """What to know before the lenses are trusted: n, text, and which rows of the table it means."""
    iterations: list[dict[str, float]]
    impact: list[dict[str, Any]]
    """What each validation mode would have cost; empty where it was not recorded."""
    model_layers: list[int]
    by_model_layer: list[list[int | None]]
    """(concepts, model layers) score in thousandths; no entries for a concept without."""
    concepts: list[ConceptLine]
    tree: Tree
    details: list[ConceptDetail]
    texts: list[list[str]]
    """Prompt and completion of each sample that is shown."""
    beside: list[Beside]
    has_store: bool

    def overview(self) -> dict[str, Any]:
        """What is read when the page opens."""
        names = [field.name for field in fields(ConceptLine)]
        shown: dict[str, Any] = {
            "label": self.label,
            "about": self.about,
            "grading": {
                "rule": RULE,
                "minTexts": MIN_TEXTS,
                "firesEverywhere": FIRES_EVERYWHERE,
                "findsTooLittle": FINDS_TOO_LITTLE,
            },
            "summary": self.summary,
            "warnings": self.warnings,
            "iterations": self.iterations,
            "impact": self.impact,
            "modelLayers": self.model_layers,
            "byModelLayer": self.by_model_layer,
            "columns": {name: [getattr(line, name) for line in self.concepts] for name in names},
            "tree": asdict(self.tree),
            "beside": [asdict(pack) for pack in self.beside],
            "hasStore": self.has_store,
            "nLenses": len(self.details),
        }
        return {key: plain(value) for key, value in shown.items()}

    def rest(self) -> dict[str, Any]:
        """What the pages of the concepts need."""
        details = [asdict(detail) for detail in self.details]
        return {"details": plain(details), "texts": plain(self.texts)}


def make_report(
    pack: LensPack,
    dataset: LensDataset | None = None,
    *,
    label: str = "this pack",
    beside: Mapping[str, LensPack] | None = None,
) -> Report:
    """What to show of a pack.

    Parameters
    ----------
    dataset : the store as the pack was fitted on it, for the hierarchy and the held-out samples.
    label : what the pack is called.
    beside : other packs to compare it with, by what they are called.

    Raises
    ------
    SettingsError
        If the pack is empty, or was not fitted on this store.
    """
    if not len(pack):
        raise SettingsError("this pack has no lenses: there is nothing to show")
    texts = Texts()
    held = None if dataset is None else read_held_out(pack, dataset)
    lines, tree = [_line(lens) for lens in pack], tree_of(pack, dataset)
    number = {line.id: i for i, line in enumerate(lines)}
    lines += [ConceptLine(extra.id, extra.name, extra.level) for extra in tree.without_lens]
    scored = [lens.metrics.score_by_model_layer or {} for lens in pack]
    model_layers = sorted({int(i) for scores in scored for i in scores})
    others = (beside or {}).items()
    return Report(
        label=label,
        about=_about(pack),
        summary=_summary(pack),
        warnings=_warnings(lines[: len(pack)]),
        iterations=_iterations(pack),
        impact=_impact(pack),
        model_layers=model_layers,
        by_model_layer=[_by_model_layer(lens, model_layers) for lens in pack],
        concepts=lines,
        tree=tree,
        details=[_detail(lens, number, held, texts) for lens in pack],
        texts=texts.shown,
        beside=[_beside(name, other, lines[: len(pack)]) for name, other in others],
        has_store=dataset is not None,
    )


def plain(value: Any) -> Any:
    """Values for JSON: short numbers, null for what is no number."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


def _figure(value: float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: float | None) -> int | None:
    figure = _figure(value)
    return None if figure is None else int(figure)


def _line(lens: Lens) -> ConceptLine:
    metrics, beside = lens.metrics, lens.metrics.beside_others or {}
    controls = [value for c in _controls(lens) if (value := c[1]) is not None]
    return ConceptLine(
        id=lens.concept,
        name=lens.name,
        level=lens.level,
        grade=UNGRADED if lens.grade is None else lens.grade.value,
        status=lens.status,
        reason=lens.reason,
        capped=lens.is_capped,
        model_layers=lens.model_layers,
        score=_figure(metrics.score),
        low=_figure(metrics.score_low),
        high=_figure(metrics.score_high),
        uncertain=metrics.grade_uncertain,
        score_named=_figure(metrics.score_named),
        test_f1=_figure(metrics.test_f1),
        f1_named=_figure(metrics.test_f1_named),
        f1_unnamed=_figure(metrics.test_f1_unnamed),
        control=max(controls, default=None),
        unbeaten=bool(metrics.unbeaten_controls),
        lead=_figure(metrics.lead_over_controls),
        first=_figure(beside.get("first")),
        everywhere=beside.get("fires_everywhere") is True,
        n_test=_count(metrics.n_test),
        n_test_unnamed=_count(metrics.n_test_unnamed),
        n_samples=_count(metrics.n_samples),
        iterations=_count(metrics.iterations),
        graduated=metrics.graduated,
        hungry=metrics.hungry,
        attributes=tuple(f"{k}={v}" for k, values in lens.attributes.items() for v in values),
    )


_SHOWN_ELSEWHERE = {
    *("score", "score_low", "score_high", "grade_uncertain"),
    *("score_named", "best_control", "lead_over_controls", "n_test", "n_test_unnamed"),
    *("test_f1", "test_f1_named", "test_f1_unnamed", "controls", "reliability"),
    *("score_by_model_layer", "beside_others", "refined_against", "graduated", "hungry"),
    *("n_samples", "iterations", "confusers", "first", "fires_everywhere"),
}


def _detail(
    lens: Lens, number: Mapping[str, int], held: HeldOutSamples | None, texts: Texts
) -> ConceptDetail:
    metrics, beside = lens.metrics, lens.metrics.beside_others or {}
    steps = [
        [s.n_samples, s.train_f1, s.test_f1, s.score] for s in (*lens.trajectory, *lens.beyond)
    ]
    bins = metrics.reliability or {}
    columns = [bins.get(name, []) for name in ("predicted", "observed", "rows", "weight")]
    shown = ([], [], []) if held is None else held.of(lens, number, texts)
    figures = {k: v for k, v in {**metrics, **beside}.items() if k not in _SHOWN_ELSEWHERE}
    return ConceptDetail(
        steps=steps,
        n_steps=len(lens.trajectory),
        reliability=[list(b) for b in zip(*columns, strict=True) if b[2]],
        controls=_controls(lens),
        figures=figures | {"threshold": lens.threshold},
        confusers=[number[c] for c in beside.get("confusers", ()) if c in number],
        refined_against=[number[c] for c in metrics.refined_against if c in number],
        best=shown[0],
        worst=shown[1],
        false_alarms=shown[2],
    )


def _controls(lens: Lens) -> list[list[Any]]:
    return [
        [name, _figure(control.get("score"))] for name, control in lens.metrics.controls.items()
    ]


def _by_model_layer(lens: Lens, model_layers: Sequence[int]) -> list[int | None]:
    scores = lens.metrics.score_by_model_layer
    if not scores:
        return []
    found = [_figure(scores.get(str(i))) for i in model_layers]
    return [None if value is None else round(1000 * value) for value in found]


def _about(pack: LensPack) -> dict[str, Any]:
    return {
        "family": pack.family,
        "provenance": pack.provenance.to_json(),
        "provisional": bool(pack.provenance.provisional),
        "finished": pack.run.get("finished"),
        "elapsed_s": pack.run.get("elapsed_s"),
        "text": pack.text is not None,
    }


def _summary(pack: LensPack) -> dict[str, Any]:
    summary = pack.summary()
    return summary | {"hungry": len(summary["hungry"]), "skipped": len(summary["skipped"])}


def _warnings(lines: Sequence[ConceptLine]) -> list[dict[str, Any]]:
    texts = {
        "ungraded": "are ungraded: there was too little to grade them by",
        "capped": "have a capped grade: something speaks against them, whatever their score",
        "unbeaten": "do no better than a control",
        "everywhere": "fire everywhere",
        "uncertain": "have a grade that is uncertain: the 95 % interval of the score crosses a "
        "boundary",
        "hungry": "used every cached sample and did not graduate: `lenscache extract --top-up` "
        "adds more for them",
    }
    counts = {which: sum(getattr(line, which) for line in lines) for which in texts}
    return [{"which": w, "text": text, "n": counts[w]} for w, text in texts.items() if counts[w]]


def _iterations(pack: LensPack) -> list[dict[str, float]]:
    return [
        {"iteration": int(number), **spent}
        for number, spent in pack.run.get("iterations", {}).items()
    ]


def _impact(pack: LensPack) -> list[dict[str, Any]]:
    try:
        return [cost._asdict() for cost in impact(pack)]
    except (SettingsError, KeyError):  # fitted without the record, or by another program
        return []


def _beside(label: str, pack: LensPack, lines: Sequence[ConceptLine]) -> Beside:
    nothing = ConceptLine("", "", 0)
    there = [_line(pack[line.id]) if line.id in pack else nothing for line in lines]
    known = {line.id for line in lines}
    return Beside(
        label=label,
        about=_about(pack),
        summary=_summary(pack),
        grade=[line.grade for line in there],
        status=[line.status for line in there],
        reason=[line.reason for line in there],
        score=[line.score for line in there],
        test_f1=[line.test_f1 for line in there],
        n_samples=[line.n_samples for line in there],
        n_only_there=sum(lens.concept not in known for lens in pack),
    )
