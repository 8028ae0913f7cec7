"""Intervals that hold: how often they cover the true score, and what may never move them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lenstrain.metrics.score import (
    REFERENCE_PREVALENCE,
    Interval,
    rank_draws,
    rank_positives,
    rank_texts,
    ranking,
)

TIMES = 200
RESAMPLES = 400


@cache
def true_score(mean: float) -> float:
    """Of normal logits, deviation 1, at 0 for negatives and at `mean` for positives: endless
    samples, by numerical integration."""
    at = np.linspace(-9, 9 + mean, 200_001)

    def above(center: float) -> NDArray[np.float64]:
        density = np.exp(-((at - center) ** 2) / 2)
        return np.cumsum((density / density.sum())[::-1])[::-1]

    true, false = REFERENCE_PREVALENCE * above(mean), (1 - REFERENCE_PREVALENCE) * above(0.0)
    density = np.exp(-((at - mean) ** 2) / 2)
    return float((density / density.sum() * true / (true + false)).sum())


def interval(
    positives: NDArray[np.float64], negatives: NDArray[np.float64], seed: int = 0
) -> Interval:
    """Of logits that are a text each."""
    texts, n = np.arange(len(positives)), len(negatives)
    ranked = rank_positives(positives, texts, negatives, n, n)
    return ranked.interval(n_resamples=RESAMPLES, seed=seed)


def covered(mean: float, n_positive: int, n_negative: int, times: int = TIMES) -> list[bool]:
    """Whether the interval holds the true score, of fresh samples each time."""
    found, truth = [], true_score(mean)
    for seed in range(times):
        rng = np.random.default_rng([seed, n_positive, n_negative, int(10 * mean)])
        drawn = rng.normal(size=n_positive) + mean, rng.normal(size=n_negative)
        low, high = interval(*drawn, seed)
        found.append(low <= truth <= high)
    return found


# --- coverage -----------------------------------------------------------------------------------


def test_true_score_is_that_of_very_many_samples() -> None:
    y = np.arange(2_000_000) < 1_000_000
    logits = np.random.default_rng(0).normal(size=len(y)) + 2.0 * y
    assert true_score(2.0) == pytest.approx(ranking(y, logits).score, abs=0.005)
    assert 0 < true_score(2.0) < true_score(2.5) < 1


@pytest.mark.parametrize("mean", [2.0, 2.5])
@pytest.mark.parametrize(("n_positive", "n_negative"), [(5, 900), (12, 900), (20, 20), (1, 1000)])
def test_interval_holds_the_true_score_as_often_as_it_says(
    mean: float, n_positive: int, n_negative: int
) -> None:
    assert np.mean(covered(mean, n_positive, n_negative)) >= 0.94


def test_many_positives_are_held_as_well() -> None:
    assert np.mean(covered(2.0, 150, 150, times=100)) >= 0.94


@pytest.mark.parametrize(("n_positive", "n_negative"), [(5, 900), (20, 20)])
def test_interval_of_perfect_separation_holds_a_true_score_that_is_nearly_perfect(
    n_positive: int, n_negative: int
) -> None:
    """With means so far apart that nearly all samples are separated, and not quite all that could
    be drawn."""
    assert true_score(4.5) < 0.995
    assert np.mean(covered(4.5, n_positive, n_negative)) >= 0.94


def test_coverage_would_be_missed_by_an_interval_that_is_too_narrow() -> None:
    """The checks above can fail: the middle half of an interval does not cover as often."""
    inside, truth = [], true_score(2.0)
    for seed in range(TIMES):
        rng = np.random.default_rng(seed)
        low, high = interval(rng.normal(size=12) + 2.0, rng.normal(size=900), seed)
        inside.append(low + (high - low) / 4 <= truth <= high - (high - low) / 4)
    assert np.mean(inside) < 0.9


# --- what moves an interval, and what does not --------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 12])
def test_all_that_lead_are_never_lower_at_the_low_end_than_all_but_one(n: int) -> None:
    rng = np.random.default_rng(n)
    negatives = rng.normal(size=900)
    leading = np.linspace(8, 9, n)
    for place in (-9.0, 0.0, 2.5):
        missed = np.append(leading[1:], place)
        for seed in range(5):
            all_lead, all_but_one = (interval(x, negatives, seed) for x in (leading, missed))
            assert all_lead.low >= all_but_one.low
            assert all_lead.high >= all_but_one.high


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_raising_a_positive_never_lowers_an_end(data: st.DataObject) -> None:
    """Positives may tie with negatives; out of a tie of positives, which is one threshold, even the
    score may fall."""
    numbers = st.integers(-6, 9)
    positives = data.draw(st.lists(numbers, min_size=1, max_size=12, unique=True))
    negatives = data.draw(st.lists(numbers, min_size=1, max_size=30))
    chosen, seed = data.draw(st.integers(0, len(positives) - 1)), data.draw(st.integers(0, 3))
    free = sorted({*range(positives[chosen] + 1, 12)} - {*positives})
    raised = positives.copy()
    raised[chosen] = data.draw(st.sampled_from(free))
    before, after = (
        interval(np.array(x, float), np.array(negatives, float), seed) for x in (positives, raised)
    )
    assert after.low >= before.low - 1e-12
    assert after.high >= before.high - 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(2, 4))
def test_rows_of_one_text_count_once(seed: int, n_positive: int, times: int) -> None:
    """Every row of each text once more, as several completions that say the same."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_positive + 100) < n_positive
    logits, texts = rng.normal(size=len(y)) + 2 * y, rng.permutation(len(y))
    once = rank_texts(y, logits, texts)
    more = rank_texts(*(np.repeat(x, times) for x in (y, logits, texts)))
    assert (more.n_positive_texts, more.n_texts) == (once.n_positive_texts, once.n_texts)
    assert more.n_positive_texts == n_positive
    assert more.score() == pytest.approx(once.score(), abs=1e-9)
    found, expected = (each.interval(n_resamples=RESAMPLES) for each in (more, once))
    assert found == pytest.approx(expected, abs=1e-6)


def test_rows_taken_for_texts_of_their_own_would_make_the_interval_narrower() -> None:
    """The check above can fail."""
    y = np.arange(105) < 5
    logits = np.random.default_rng(0).normal(size=105) + 2 * y
    y, logits = np.repeat(y, 4), np.repeat(logits, 4)
    together, apart = (
        rank_texts(y, logits, texts).interval() for texts in (np.arange(420) // 4, np.arange(420))
    )
    assert apart.high - apart.low < 0.9 * (together.high - together.low)


# --- the lead over a control --------------------------------------------------------------------


def test_a_lens_does_not_lead_over_itself() -> None:
    y = np.arange(910) < 10
    logits = np.random.default_rng(0).normal(size=910) + 2 * y
    ranked = rank_texts(y, logits, np.arange(910))
    assert ranked.lead_over(ranked) <= 0


def test_a_perfect_lens_leads_over_noise_and_noise_does_not_over_a_perfect_lens() -> None:
    y, rng = np.arange(910) < 10, np.random.default_rng(0)
    noise = rank_texts(y, rng.normal(size=910), np.arange(910))
    perfect = rank_texts(y, np.where(y, 9.0, 0.0), np.arange(910))
    assert perfect.lead_over(noise) > 0.5
    assert noise.lead_over(perfect) < -0.5


def test_two_lenses_of_equal_worth_rarely_seem_ahead_of_one_another() -> None:
    ahead, y = [], np.arange(1650) < 150
    for seed in range(TIMES):
        rng, texts = np.random.default_rng(seed), np.arange(len(y))
        one, other = (rank_texts(y, rng.normal(size=len(y)) + 2 * y, texts) for _ in range(2))
        ahead.append(one.lead_over(other, n_resamples=RESAMPLES) > 0)
    assert np.mean(ahead) <= 0.05


def test_without_a_class_there_is_no_lead() -> None:
    nothing = rank_texts(np.zeros(5, np.bool_), np.arange(5.0), np.arange(5))
    assert np.isnan(nothing.lead_over(nothing))
    assert np.isnan(nothing.interval()).all()


# --- several draws of what is compared with -----------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 6), st.booleans())
def test_draws_are_ranked_one_by_one_ties_included(seed: int, n: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    positives, negatives = rng.normal(size=(4, n)), rng.normal(size=(4, 30))
    if tied:
        positives, negatives = positives.round(), negatives.round()
    texts = np.arange(n)
    above = (negatives[:, None, :] >= positives[:, :, None]).sum(axis=2)
    found = rank_draws(positives, texts, above, 30, 30)
    alone = [
        rank_positives(own, texts, among, 30, 30).score()
        for own, among in zip(positives, negatives, strict=True)
    ]
    assert found.score() == pytest.approx(np.mean(alone))


def test_a_lead_over_draws_that_are_alike_is_that_over_one_of_them() -> None:
    rng = np.random.default_rng(0)
    texts, negatives = np.arange(5), rng.normal(size=900)
    own = rank_positives(rng.normal(size=5) + 3, texts, negatives, 900, 900)
    positives = rng.normal(size=5) + 1
    one = rank_positives(positives, texts, negatives, 900, 900)
    above = np.array([(negatives >= its).sum() for its in positives])
    many = rank_draws(np.tile(positives, (7, 1)), texts, np.tile(above, (7, 1)), 900, 900)
    assert own.lead_over(many) == pytest.approx(own.lead_over(one))


def test_a_lead_counts_negatives_of_a_sample_for_as_many_as_there_are() -> None:
    rng = np.random.default_rng(0)
    texts, negatives = np.arange(5), rng.normal(size=900)
    own = rank_positives(rng.normal(size=5) + 3, texts, negatives, 900, 900)
    positives = rng.normal(size=5) + 1
    every = rank_positives(positives, texts, negatives, 900, 900)
    third = every._replace(cuts=every.cuts._replace(above=every.cuts.above / 3), n_rows=300)
    assert own.lead_over(third) == pytest.approx(own.lead_over(every))
