"""The one rule of grading: what evidence carries which grade, and why."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenstrain.metrics.grade import (
    FINDS_TOO_LITTLE,
    FIRES_EVERYWHERE,
    MIN_TEXTS,
    RULE,
    Evidence,
    Grade,
    Verdict,
    judge_evidence,
    lack_of_texts,
)
from lenstrain.metrics.score import Interval

GOOD = Evidence(
    score=0.9,
    interval=Interval(0.7, 1.0),
    n_unnamed=12,
    control="words of the prompt",
    lead=0.3,
    false_positive_rate=0.02,
    test_f1=0.9,
)
"""What a lens of grade A has."""


def is_capped(verdict: Verdict) -> bool:
    """Whether something other than the score holds the grade down."""
    return verdict.grade is not None and bool(verdict.reason)


def judged(**changes: Any) -> Verdict:
    return judge_evidence(GOOD._replace(**changes))


def rank(verdict: Verdict) -> int:
    """A above B above C above no grade."""
    return 0 if verdict.grade is None else "CBA".index(verdict.grade.value) + 1


# --- the grade of a score -----------------------------------------------------------------------


def test_good_evidence_is_a_grade_without_a_reason() -> None:
    assert judge_evidence(GOOD) == Verdict(Grade.A, "provisional", "", False)
    assert not is_capped(judge_evidence(GOOD))


def test_numbers_of_the_rule_are_those_of_the_documents() -> None:
    assert (RULE, MIN_TEXTS, FIRES_EVERYWHERE, FINDS_TOO_LITTLE) == (2, 3, 0.25, 0.5)


@pytest.mark.parametrize(
    ("score", "grade"),
    [
        (1.0, Grade.A),
        (0.5, Grade.A),
        (float(np.nextafter(0.5, 0)), Grade.B),
        (0.2, Grade.B),
        (float(np.nextafter(0.2, 0)), Grade.C),
        (0.0, Grade.C),
    ],
)
def test_grade_without_a_cap_is_that_of_the_score(score: float, grade: Grade) -> None:
    assert judged(score=score) == Verdict(grade, "provisional", "", False)


# --- no grade -----------------------------------------------------------------------------------


def test_without_texts_there_is_no_grade_whatever_the_score() -> None:
    for score in (0.0, 1.0, np.nan):
        assert judged(n_unnamed=0, score=score) == Verdict(
            None,
            "ungraded",
            "no test text that expresses the concept without naming it",
            False,
        )


@pytest.mark.parametrize("n", range(1, MIN_TEXTS))
def test_with_too_few_texts_there_is_no_grade(n: int) -> None:
    reason = f"too few test texts without the concept's name: {n} of {MIN_TEXTS} needed"
    found = judged(n_unnamed=n, interval=Interval(0.0, 1.0))
    assert found == Verdict(None, "ungraded", reason, False)
    assert not is_capped(found)


def test_texts_are_enough_from_the_minimum_on() -> None:
    assert judged(n_unnamed=MIN_TEXTS).grade is Grade.A
    assert [bool(lack_of_texts(n)) for n in range(MIN_TEXTS + 2)] == [True] * MIN_TEXTS + [
        False,
        False,
    ]


def test_a_score_that_is_no_number_is_no_grade() -> None:
    found = judged(score=np.nan, interval=Interval(np.nan, np.nan))
    reason = "no score: its logits are not numbers"
    assert found == Verdict(None, "ungraded", reason, False)


# --- caps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0.0, -1e-9, -0.5])
def test_a_lens_that_is_not_ahead_of_its_best_control_is_at_most_c(lead: float) -> None:
    found = judged(lead=lead)
    assert (found.grade, found.status) == (Grade.C, "provisional")
    assert found.reason == "not ahead of the control 'words of the prompt'"
    assert is_capped(found)


@pytest.mark.parametrize("lead", [1e-9, 0.5, np.nan])
def test_a_lens_that_is_ahead_or_has_no_control_is_not_capped(lead: float) -> None:
    assert judged(lead=lead).reason == ""


@pytest.mark.parametrize(
    ("rate", "capped"),
    [
        (FIRES_EVERYWHERE, True),
        (1.0, True),
        (float(np.nextafter(FIRES_EVERYWHERE, 0)), False),
        (0.0, False),
    ],
)
def test_a_lens_that_fires_everywhere_is_at_most_c(rate: float, capped: bool) -> None:
    found = judged(false_positive_rate=rate)
    assert found.grade is (Grade.C if capped else Grade.A)
    assert found.reason == (f"fires on {rate:.0%} of unrelated samples" if capped else "")


@pytest.mark.parametrize(
    ("f1", "grade", "reason"),
    [
        (FINDS_TOO_LITTLE, Grade.A, ""),
        (float(np.nextafter(FINDS_TOO_LITTLE, 0)), Grade.B, "test F1 is 0.50 at its threshold"),
        (0.0, Grade.B, "test F1 is 0.00 at its threshold"),
    ],
)
def test_a_lens_that_is_cut_in_the_wrong_place_is_at_most_b(
    f1: float, grade: Grade, reason: str
) -> None:
    found = judged(test_f1=f1)
    assert (found.grade, found.reason) == (grade, reason)


@pytest.mark.parametrize("score", [0.3, 0.1])
def test_a_low_f1_lowers_no_grade_below_a_and_is_no_reason_there(score: float) -> None:
    assert judged(score=score, test_f1=0.0) == judged(score=score)


def test_all_reasons_of_a_cap_are_told() -> None:
    found = judged(lead=0.0, false_positive_rate=0.49, test_f1=0.0)
    assert found.grade is Grade.C
    assert found.reason == (
        "not ahead of the control 'words of the prompt'; fires on 49% of unrelated samples"
    )


def test_rule_as_a_table() -> None:
    """Every combination of what counts, against the rule written once more."""
    texts, scores = (0, 2, 3, 40), (np.nan, 0.1, 0.2, 0.4, 0.5, 1.0)
    leads, rates, f1s = (np.nan, -0.1, 0.0, 0.1), (0.0, 0.24, 0.25, 1.0), (0.0, 0.49, 0.5, 1.0)
    for n, score, lead, rate, f1 in itertools.product(texts, scores, leads, rates, f1s):
        found = judged(n_unnamed=n, score=score, lead=lead, false_positive_rate=rate, test_f1=f1)
        if n < 3 or np.isnan(score):
            assert (found.grade, found.status, bool(found.reason)) == (None, "ungraded", True)
            continue
        by_score = "A" if score >= 0.5 else "B" if score >= 0.2 else "C"
        untold, missed = lead <= 0 or rate >= 0.25, by_score == "A" and f1 < 0.5
        expected = "C" if untold else "B" if missed else by_score
        assert (found.grade, found.status) == (expected, "provisional")
        assert bool(found.reason) == is_capped(found) == (untold or missed)


# --- uncertainty --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "low", "high", "uncertain"),
    [
        (0.6, 0.5, 0.9, False),
        (0.6, 0.49, 0.9, True),
        (0.3, 0.2, 0.49, False),
        (0.3, 0.2, 0.5, True),
        (0.1, 0.0, 0.19, False),
        (0.1, 0.0, 0.2, True),
        (0.6, 0.1, 0.9, True),
    ],
)
def test_grade_is_uncertain_exactly_if_its_interval_crosses_a_boundary(
    score: float, low: float, high: float, uncertain: bool
) -> None:
    assert judged(score=score, interval=Interval(low, high)).is_uncertain is uncertain


# --- more evidence against a lens never raises its grade ----------------------------------------

shares = st.floats(0, 1)
leads = st.floats(-1, 1) | st.just(np.nan)


@st.composite
def evidence(draw: st.DrawFn) -> Evidence:
    low, score, high = sorted(draw(st.tuples(shares, shares, shares)))
    return Evidence(
        score=draw(st.just(score) | st.just(np.nan)),
        interval=Interval(low, high),
        n_unnamed=draw(st.integers(0, 2 * MIN_TEXTS)),
        control="text length",
        lead=draw(leads),
        false_positive_rate=draw(shares),
        test_f1=draw(shares),
    )


@given(evidence(), st.data())
def test_less_in_favour_never_raises_a_grade(found: Evidence, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(("score", "lead", "test_f1")))
    value = getattr(found, field)
    lower = data.draw(st.floats(-1 if field == "lead" else 0, value) if value == value else leads)
    changes: dict[str, Any] = {field: lower}
    worse = found._replace(**changes)
    if value == value or field == "lead":  # no control, or a control: never better than none
        assert rank(judge_evidence(worse)) <= rank(judge_evidence(found))


@given(evidence(), st.data())
def test_more_false_alarms_never_raise_a_grade(found: Evidence, data: st.DataObject) -> None:
    worse = found._replace(false_positive_rate=data.draw(st.floats(found.false_positive_rate, 1)))
    assert rank(judge_evidence(worse)) <= rank(judge_evidence(found))


@given(evidence(), st.data())
def test_fewer_texts_never_raise_a_grade(found: Evidence, data: st.DataObject) -> None:
    worse = found._replace(n_unnamed=data.draw(st.integers(0, found.n_unnamed)))
    assert rank(judge_evidence(worse)) <= rank(judge_evidence(found))


@given(evidence())
def test_verdict_is_consistent_in_itself(found: Evidence) -> None:
    verdict = judge_evidence(found)
    assert (verdict.grade is None) == (verdict.status == "ungraded")
    assert verdict.grade is not None or verdict.reason
    if verdict.grade is not None:
        assert is_capped(verdict) or verdict.grade is Grade.of(found.score)
        assert Grade.of(found.score).reaches(verdict.grade)
