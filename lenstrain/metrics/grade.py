"""What a grade says, and the one rule by which it is given.

    score on texts that do not name the concept, controls on the same texts,
    threshold, counts --Evidence--> judge_evidence --> Verdict: grade, status, reason

A lens that reads the name of its concept is perfect on every text that has it. So the grade is that
of the score on held-out texts that express the concept **without naming it**, ranked against all
other held-out samples. Without such texts there is nothing to grade; `docs/grades.md` shows why.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from lenstrain.metrics.score import Interval

RULE = 2
"""Number of the rule in this module. Rule 1, of packs fitted before version 0.3, graded the score
on all held-out samples, those that name the concept included."""

MIN_TEXTS = 3
"""Distinct unnamed test texts that a grade asks for: see `benchmarks/names.py`."""

FIRES_EVERYWHERE = 0.25
"""Share of unrelated test samples from which on a lens counts as firing everywhere."""

FINDS_TOO_LITTLE = 0.5
"""Test F1, at a prevalence of one half, below which a lens at its threshold is no grade A."""

Status = Literal["ungraded", "provisional", "certified"]
"""Ungraded: nothing could be shown. Provisional: a grade by one test split. Certified: a grade that
holds with looking repeatedly paid for."""


class Grade(StrEnum):
    """How far a lens can be trusted on texts that do not name its concept."""

    A = "A"
    """score >= 0.5"""
    B = "B"
    """score >= 0.2"""
    C = "C"
    """below"""

    @classmethod
    def of(cls, score: float) -> Grade:
        """The grade of a score."""
        return cls.A if score >= 0.5 else cls.B if score >= 0.2 else cls.C

    def reaches(self, wanted: Grade) -> bool:
        """Whether this grade is at least as good."""
        return self.value <= wanted.value


COLOURS = {Grade.A: "#0072b2", Grade.B: "#e69f00", Grade.C: "#d55e00", None: "#cc79a7"}
"""Of each grade and of none, on white, wherever lenses are drawn: Okabe and Ito's palette."""
INKS = {Grade.A: "#ffffff", Grade.B: "#000000", Grade.C: "#000000", None: "#000000"}
"""Of text on them."""


class Evidence(NamedTuple):
    """What is known of a lens when it is graded; all of it from the test split."""

    score: float
    """On unnamed texts against all others; NaN without any."""
    interval: Interval
    """95 % interval of the score."""
    n_unnamed: int
    """Distinct unnamed texts that express the concept."""
    control: str
    """The best control, chosen on the calibration split; "" if none was measured."""
    lead: float
    """Lower end of the 95 % interval of the score minus that of the control on the same texts; NaN
    without one."""
    false_positive_rate: float
    """Share of unrelated samples at or above the threshold."""
    test_f1: float
    """At the threshold, both classes alike in prevalence."""


class Verdict(NamedTuple):
    """A grade, and what it rests on."""

    grade: Grade | None
    """None where the status is "ungraded"."""
    status: Status
    reason: str
    """Why there is no grade, or what holds it down whatever the score is; "" otherwise."""
    is_uncertain: bool
    """Whether the interval of the score crosses the boundary of a grade."""


def judge_evidence(evidence: Evidence) -> Verdict:
    """The grade that the evidence carries.

    Ungraded without `MIN_TEXTS` distinct unnamed test texts. Otherwise the grade of the score, and

    - at most C if the lens is not ahead of its best control: the lower end of their paired
      difference is 0 or below;
    - at most C if the lens fires on `FIRES_EVERYWHERE` of unrelated samples or more;
    - at most B if its test F1 is below `FINDS_TOO_LITTLE`: what ranks well and is cut in the wrong
      place is not to be trusted.
    """
    if missing := lack_of_texts(evidence.n_unnamed):
        return Verdict(None, "ungraded", missing, False)
    if evidence.score != evidence.score:
        return Verdict(None, "ungraded", "no score: its logits are not numbers", False)
    grade, reasons = Grade.of(evidence.score), []
    if evidence.lead <= 0:
        grade = Grade.C
        reasons.append(f"not ahead of the control '{evidence.control}'")
    if evidence.false_positive_rate >= FIRES_EVERYWHERE:
        grade = Grade.C
        reasons.append(f"fires on {evidence.false_positive_rate:.0%} of unrelated samples")
    if evidence.test_f1 < FINDS_TOO_LITTLE and grade is Grade.A:
        grade = Grade.B
        reasons.append(f"test F1 is {evidence.test_f1:.2f} at its threshold")
    low, high = evidence.interval
    return Verdict(grade, "provisional", "; ".join(reasons), Grade.of(low) != Grade.of(high))


def lack_of_texts(n_unnamed: int) -> str:
    """Why so many distinct unnamed test texts carry no grade; "" if they do."""
    if n_unnamed == 0:
        return "no test text that expresses the concept without naming it"
    if n_unnamed < MIN_TEXTS:
        return f"too few test texts without the concept's name: {n_unnamed} of {MIN_TEXTS} needed"
    return ""
