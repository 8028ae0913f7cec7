from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from lenstrain.calibration import Grade, Sigmoid, best_threshold, classify, fit_sigmoid, ranking

Judged = tuple[NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def judgements(draw: st.DrawFn) -> Judged:
    """Labels of both classes and logits with many ties."""
    pairs = draw(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40))
    y, logits = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], np.float64) / 2
    assume(0 < y.sum() < len(y))
    return y, logits


def overlapping(n: int, *, shift: float = 1.5, share: float = 0.3, seed: int = 0) -> Judged:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < share
    return y, rng.normal(size=n) + shift * y


# --- ranking ---------------------------------------------------------------------------------------------------------


@given(judgements(), st.sampled_from([0.01, 0.1, 0.5]))
def test_score_is_sklearns_average_precision_at_the_prevalence(judged: Judged, prevalence: float) -> None:
    y, logits = judged
    weight = np.where(y, prevalence / y.sum(), (1 - prevalence) / (~y).sum())
    expected = average_precision_score(y, logits, sample_weight=weight)
    assert ranking(y, logits, prevalence).score == pytest.approx(expected, rel=1e-9)


@given(judgements())
def test_raw_average_precision_and_auroc_are_sklearns(judged: Judged) -> None:
    found = ranking(*judged)
    assert found.average_precision == pytest.approx(average_precision_score(*judged), rel=1e-9)
    assert found.auroc == pytest.approx(roc_auc_score(*judged), rel=1e-9)


@given(judgements(), st.integers(2, 6))
def test_score_does_not_depend_on_how_many_negatives_there_are(judged: Judged, times: int) -> None:
    y, logits = judged
    repeats = np.where(y, 1, times)
    more = ranking(np.repeat(y, repeats), np.repeat(logits, repeats))
    assert more.score == pytest.approx(ranking(y, logits).score, rel=1e-9)
    assert more.auroc == pytest.approx(ranking(y, logits).auroc, rel=1e-9)


@given(judgements())
def test_order_of_rows_never_decides_a_tie(judged: Judged) -> None:
    y, logits = judged
    assert ranking(y[::-1], logits[::-1]) == pytest.approx(ranking(y, logits), rel=1e-12)


@given(judgements())
def test_rank_metrics_depend_on_the_order_of_logits_alone(judged: Judged) -> None:
    y, logits = judged
    assert ranking(y, 3 * logits + np.exp(logits)) == pytest.approx(ranking(y, logits), rel=1e-12)


@pytest.mark.parametrize("n_positive", [1, 5, 50])
def test_lens_that_fires_on_everything_is_at_chance(n_positive: int) -> None:
    found = ranking(np.arange(100) < n_positive, np.full(100, 3.0))
    assert found.score == pytest.approx(0.01)
    assert found.auroc == pytest.approx(0.5)
    assert Grade.of(found.score) is Grade.C


def test_random_logits_are_near_chance_whatever_the_number_of_concepts() -> None:
    rng = np.random.default_rng(0)
    scores = [ranking(np.arange(2000) < n, rng.normal(size=2000)).score for n in (200, 500, 1000) for _ in range(20)]
    assert np.mean(scores) < 0.03


def test_perfect_ranking_scores_one() -> None:
    y, _ = overlapping(50)
    found = ranking(y, y.astype(float))
    assert found[:3] == (1.0, 1.0, 1.0)
    assert (found.n_positive, found.n_negative) == (int(y.sum()), int((~y).sum()))


def test_inverted_ranking_is_below_chance() -> None:
    y, _ = overlapping(50)
    found = ranking(y, -y.astype(float))
    assert found.auroc == 0.0
    assert found.score < 0.011


@pytest.mark.parametrize("y", [np.zeros(5, np.bool_), np.ones(5, np.bool_), np.zeros(0, np.bool_)])
def test_missing_class_gives_nan_and_the_lowest_grade(y: NDArray[np.bool_]) -> None:
    found = ranking(y, np.arange(len(y), dtype=float))
    assert np.isnan(found[:3]).all()
    assert Grade.of(found.score) is Grade.C


# --- grades ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "grade"),
    [(1.0, "A"), (0.5, "A"), (np.nextafter(0.5, 0), "B"), (0.2, "B"), (np.nextafter(0.2, 0), "C"), (0.0, "C")],
)
def test_grade_changes_exactly_at_its_boundary(score: float, grade: str) -> None:
    assert Grade.of(score) == grade


@pytest.mark.parametrize(("grade", "reached"), [(Grade.A, "ABC"), (Grade.B, "BC"), (Grade.C, "C")])
def test_grade_reaches_itself_and_what_is_below(grade: Grade, reached: str) -> None:
    assert [wanted for wanted in Grade if grade.reaches(wanted)] == list(reached)


# --- thresholds ------------------------------------------------------------------------------------------------------


@given(judgements(), st.integers(-4, 4))
def test_metrics_at_a_threshold_are_sklearns_with_classes_weighted_alike(judged: Judged, cut: int) -> None:
    y, logits = judged
    weight = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    predicted, found = logits >= cut / 2, classify(y, logits, cut / 2)
    for metric, value in ((f1_score, found.f1), (precision_score, found.precision), (recall_score, found.recall)):
        assert value == pytest.approx(metric(y, predicted, sample_weight=weight, zero_division=0), abs=1e-12)


def test_f1_is_sklearns_on_a_balanced_set() -> None:
    y, logits = overlapping(400)
    keep = np.sort(np.concatenate([np.flatnonzero(y), np.flatnonzero(~y)[: y.sum()]]))
    assert classify(y[keep], logits[keep], 0.7).f1 == pytest.approx(f1_score(y[keep], logits[keep] >= 0.7))


@given(judgements())
def test_best_threshold_beats_every_other(judged: Judged) -> None:
    y, logits = judged
    best = classify(y, logits, best_threshold(y, logits)).f1
    cuts = [*np.unique(logits), logits.max() + 1]
    assert best == pytest.approx(max(classify(y, logits, cut).f1 for cut in cuts), abs=1e-12)


@given(judgements())
def test_best_threshold_is_0_where_0_is_as_good(judged: Judged) -> None:
    y, logits = judged
    threshold = best_threshold(y, logits)
    at_zero, at_best = classify(y, logits, 0.0).f1, classify(y, logits, threshold).f1
    assert threshold == 0.0 or at_best > at_zero


def test_best_threshold_lies_between_the_classes() -> None:
    y, logits = np.array([True, True, False, False]), np.array([5.0, 4.0, 2.0, 1.0])
    assert best_threshold(y, logits) == 3.0


def test_among_equal_thresholds_the_one_nearest_to_0_is_taken() -> None:
    y, logits = np.array([True, True, False, False]), np.array([3.0, 2.0, -1.0, -4.0])
    assert best_threshold(y, logits) == 0.0


def test_best_threshold_of_constant_logits_says_yes_to_all() -> None:
    y = np.array([True, False, False])
    assert classify(y, np.full(3, -2.0), best_threshold(y, np.full(3, -2.0))).recall == 1.0


# --- probabilities ---------------------------------------------------------------------------------------------------


@given(judgements())
def test_probabilities_are_monotone_and_inside_0_and_1(judged: Judged) -> None:
    y, logits = judged
    sigmoid = fit_sigmoid(y, logits)
    p = sigmoid(np.linspace(-5, 5, 50))
    assert sigmoid.slope >= 0
    assert (np.diff(p) >= 0).all()
    assert ((p > 0) & (p < 1)).all()


@given(judgements(), st.sampled_from([1e-3, 10.0, 1e4]))
def test_units_of_the_logits_do_not_matter(judged: Judged, factor: float) -> None:
    y, logits = judged
    np.testing.assert_allclose(
        fit_sigmoid(y, logits * factor)(logits * factor), fit_sigmoid(y, logits)(logits), atol=1e-4
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_probabilities_are_calibrated_at_even_prevalence(share: float) -> None:
    """Logits of N(0, 1) and N(1.5, 1): the true log odds at even prevalence are 1.5 x - 1.125."""
    sigmoid = fit_sigmoid(*overlapping(60_000, share=share))
    assert sigmoid.slope == pytest.approx(1.5, abs=0.05)
    assert sigmoid.intercept == pytest.approx(-1.125, abs=0.05)


def test_stretched_logits_are_brought_back() -> None:
    y, logits = overlapping(60_000, share=0.5)
    p = fit_sigmoid(y, 10 * logits - 3)(10 * logits - 3)
    for low in np.arange(0.1, 0.9, 0.2):
        here = (p >= low) & (p < low + 0.2)
        assert y[here].mean() == pytest.approx(p[here].mean(), abs=0.03)


def test_logits_that_run_the_wrong_way_give_a_flat_curve() -> None:
    y, logits = overlapping(500)
    sigmoid = fit_sigmoid(y, -logits)
    assert sigmoid.slope == 0.0
    np.testing.assert_allclose(sigmoid(np.array([-9.0, 0.0, 9.0])), 0.5, atol=0.01)


@pytest.mark.parametrize("n", [1, 4, 20])
def test_separable_calibration_rows_do_not_give_certainty(n: int) -> None:
    y = np.arange(2 * n) < n
    p = fit_sigmoid(y, np.where(y, 6.0, -6.0))(np.array([6.0, -6.0]))
    np.testing.assert_allclose(p, [(n + 1) / (n + 2), 1 / (n + 2)], atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e6, 1e12])
def test_extreme_logits_stay_finite(scale: float) -> None:
    y, logits = overlapping(100)
    sigmoid = fit_sigmoid(y, logits * scale)
    assert np.isfinite(sigmoid).all()
    assert np.isfinite(sigmoid(logits * scale * 1e3)).all()


def test_constant_logits_give_even_odds() -> None:
    p = fit_sigmoid(np.arange(10) < 3, np.full(10, 4.0))(np.array([4.0]))
    assert p[0] == pytest.approx(0.5, abs=0.06)


def test_sigmoid_keeps_the_shape_of_its_input() -> None:
    assert Sigmoid(1.0, 0.0)(np.zeros((3, 4))).shape == (3, 4)
