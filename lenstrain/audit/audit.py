"""How far a score on a store's held-out samples can be trusted.

    dataset --audit_dataset--> AuditReport: twins across splits, and what the labels go along with

A lens that has seen a test text in training, or can tell positives by the length of their prompts,
scores higher than it deserves. Whether a label goes along with a factor is measured over a
concept's positives and its own negatives, as training draws them, by Spearman's rank correlation
(lengths have long tails), or Cramer's V where the factor has no order. What is flagged is both
large and, after Bonferroni's correction for all tests of the report, beyond chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from lenstrain.audit.twins import ConceptTwins, SplitPair, find_twins
from lenstrain.data.dataset import LensDataset, Rows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.errors import TooFewSamplesError
from lenstrain.settings import FitSettings

LARGE = 0.3
"""Least |r| that is flagged: a factor that explains a tenth of a label's variance, roughly."""
SIGNIFICANCE = 0.05
"""Chance that a report on labels that depend on nothing flags anything."""

_NAME_LENGTH = 60  # characters; a name in the store may be of any length
_WORDS = {
    "prompt length": (
        "its positives are longer than its negatives",
        "its positives are shorter than its negatives",
    ),
    "completion length": (
        "more is generated for its positives",
        "less is generated for its positives",
    ),
    "position": (
        "its positives stand later in the store",
        "its positives stand earlier in the store",
    ),
    "temperature": ("its positives are sampled hotter", "its positives are sampled colder"),
    "prompt kind": ("its positives are of other kinds than its negatives",) * 2,
}


@dataclass(frozen=True)
class Correlation:
    """How far the label of one concept goes along with one factor."""

    concept: str
    factor: str
    r: float
    """Spearman's rank correlation with being positive; Cramer's V for the prompt kind."""
    n: int
    """Samples, positive and negative."""
    p: float
    """Two-sided p-value, not corrected."""
    by_chance: float
    """Mean |r| to expect of as many samples where label and factor are independent."""


@dataclass(frozen=True)
class Factor:
    """One factor over all concepts for which it varies."""

    name: str
    n_concepts: int
    mean_abs_r: float | None
    """None where the factor is the same for all samples of every concept."""
    by_chance: float | None
    worst: Correlation | None
    flagged: tuple[Correlation, ...]
    """Largest first."""
    by_design: bool
    """Whether the store was laid out so, which is why nothing is flagged."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found."""

    path: str
    n_samples: int
    names: dict[str, str]
    """What people call each concept that was audited, by id."""
    left_out: tuple[str, ...]
    """Concepts without enough samples for a lens."""
    splits: tuple[SplitPair, ...]
    twins: tuple[ConceptTwins, ...]
    """Concepts with a twin between their test and train positives, the largest share first."""
    factors: tuple[Factor, ...]

    @property
    def findings(self) -> list[str]:
        """One line each, what weighs most first."""
        lines = [self._twin_line(twins) for twins in self.twins]
        for pair in self.splits:
            for number, what in ((pair.exact, "exact"), (pair.near, "near")):
                if number:
                    one, many = f"pair of {what} twins lies", f"pairs of {what} twins lie"
                    lines.append(
                        f"{_counted(number, one, many)} across {' and '.join(pair.splits)}"
                    )
        flagged = [found for factor in self.factors for found in factor.flagged]
        return lines + [self._correlation_line(c) for c in sorted(flagged, key=lambda c: -abs(c.r))]

    def _twin_line(self, twins: ConceptTwins) -> str:
        n, of = twins.exact + twins.near, _counted(twins.n_test, "test positive", "test positives")
        return (
            f"{self.short_name(twins.concept)}: {n} of {of} {'has' if n == 1 else 'have'} a twin "
            f"among its train positives ({twins.exact} exact, {twins.near} near)"
        )

    def _correlation_line(self, found: Correlation) -> str:
        name, words = self.short_name(found.concept), _WORDS[found.factor][found.r < 0]
        measure = f"V = {found.r:.2f}" if found.factor == "prompt kind" else f"r = {found.r:+.2f}"
        return f"{name}: {words} ({found.factor}, {measure}, n = {found.n})"

    def short_name(self, concept: str) -> str:
        """What people call a concept, cut where it is very long."""
        name = self.names.get(concept, concept)
        return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."

    @property
    def verdict(self) -> str:
        """One sentence: what the findings mean for a score."""
        if not self.names:
            return "nothing can be said of any score: no concept has enough samples for a lens"
        twins = {found.concept for found in self.twins}
        by_factor = {f.name: {c.concept for c in f.flagged} for f in self.factors if f.flagged}
        confounded = set[str]().union(*by_factor.values())
        doubts = []
        if twins:
            doubts.append(f"{len(twins)} may score higher for texts seen in training")
        if confounded:
            names = sorted(by_factor, key=lambda name: -len(by_factor[name]))
            doubts.append(f"{len(confounded)} may be told by {_listed(names)}")
        if doubts:
            return f"of {_counted(len(self.names), 'concept', 'concepts')}, {', and '.join(doubts)}"
        if any(pair.exact or pair.near for pair in self.splits):
            return (
                "splits share texts, "
                "but no concept's test positives have a twin among its train positives"
            )
        return "no findings: neither twins nor the factors above raise a held-out score"

    def to_json(self) -> dict[str, Any]:
        """Plain values, without NaN."""
        return {**asdict(self), "findings": self.findings, "verdict": self.verdict}


def audit_dataset(dataset: LensDataset, settings: FitSettings | None = None) -> AuditReport:
    """Look for what makes held-out scores of lenses fitted on a dataset higher than they deserve.

    Parameters
    ----------
    settings : how many negatives go with the positives of a concept.
    """
    settings = settings or FitSettings()
    tasks, left_out = [], []
    for concept in dataset.concepts:
        try:
            tasks.append(draw_task(dataset, concept, settings.n_negatives))
        except TooFewSamplesError:
            left_out.append(concept)
    splits, twins = find_twins(dataset, tasks)
    names = dataset.concept_names
    return AuditReport(
        path=str(dataset.store.path),
        n_samples=dataset.n_samples,
        names={task.concept: names.get(task.concept, task.concept) for task in tasks},
        left_out=tuple(left_out),
        splits=tuple(splits),
        twins=tuple(sorted(twins, key=lambda found: -(found.exact + found.near) / found.n_test)),
        factors=tuple(_factors(dataset, tasks)),
    )


def _factors(dataset: LensDataset, tasks: Sequence[Task]) -> list[Factor]:
    ranked: dict[str, NDArray[Any]] = {
        "prompt length": dataset.n_prompt_tokens,
        "completion length": dataset.n_completion_tokens,
        "position": np.arange(dataset.n_samples),
        "temperature": dataset.temperature,
    }
    found = {
        name: [_rank_correlation(name, x, task) for task in tasks] for name, x in ranked.items()
    }
    # By design, a concept's contrasts are of a kind that no positive has: only samples that express
    # another concept count as negatives here.
    expressing = np.zeros(dataset.n_samples, np.bool_)
    for task in tasks:
        expressing[np.concatenate(task.positives)] = True
    found["prompt kind"] = [_kind_association(dataset.kind, expressing, task) for task in tasks]
    # A store is laid out concept by concept: the position says nothing, unless labels came later.
    by_design = {"position"} if dataset.label_set is None else set()
    measured = {name: [c for c in several if c] for name, several in found.items()}
    n_tests = sum(len(several) for name, several in measured.items() if name not in by_design)
    return [_summarise(name, c, n_tests, name in by_design) for name, c in measured.items()]


def _summarise(name: str, found: Sequence[Correlation], n_tests: int, by_design: bool) -> Factor:
    ordered = sorted(found, key=lambda c: -abs(c.r))
    flagged = [
        c for c in ordered if abs(c.r) >= LARGE and c.p * n_tests < SIGNIFICANCE and not by_design
    ]
    return Factor(
        name=name,
        n_concepts=len(found),
        mean_abs_r=float(np.mean([abs(c.r) for c in found])) if found else None,
        by_chance=float(np.mean([c.by_chance for c in found])) if found else None,
        worst=ordered[0] if ordered else None,
        flagged=tuple(flagged),
        by_design=by_design,
    )


def _rank_correlation(factor: str, values: NDArray[Any], task: Task) -> Correlation | None:
    """None where the factor is the same for all samples."""
    rows, positive = _labelled(task)
    if np.ptp(values[rows]) == 0:
        return None
    r, p = stats.spearmanr(values[rows], positive)
    return Correlation(task.concept, factor, float(r), len(rows), float(p), _chance(1, len(rows)))


def _kind_association(
    kind: NDArray[np.uint8], expressing: NDArray[np.bool_], task: Task
) -> Correlation | None:
    """Cramer's V between being positive and the prompt kind; None where there is one kind only."""
    rows, positive = _labelled(task)
    rows, positive = rows[expressing[rows]], positive[expressing[rows]]
    kinds, column = np.unique(kind[rows], return_inverse=True)
    if len(kinds) < 2 or positive.all():
        return None
    table = np.zeros((2, len(kinds)))
    np.add.at(table, (positive.astype(np.intp), column), 1)
    chi2, p, degrees, _ = stats.chi2_contingency(table, correction=False)
    n = len(rows)
    V, by_chance = math.sqrt(chi2 / n), _chance(degrees, n)
    return Correlation(task.concept, "prompt kind", V, n, float(p), by_chance)


def _labelled(task: Task) -> tuple[Rows, NDArray[np.bool_]]:
    """(n,) the rows of a task over all splits, and which of them are positive."""
    rows = np.concatenate([*task.positives, *task.negatives])
    return rows, np.arange(len(rows)) < sum(map(len, task.positives))


def _chance(degrees: int, n: int) -> float:
    """Mean |r| (one degree of freedom) or V (more) by chance: of a chi variable over sqrt(n)."""
    return float(math.sqrt(2 / n) * special.poch(degrees / 2, 0.5))


def _counted(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
