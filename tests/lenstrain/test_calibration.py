from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import ranking, score_interval
from lenstrain.metrics.thresholds import Best, best_threshold, classify, threshold_for_fpr

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


def ranking_by_sorting(
    y: NDArray[np.bool_], logits: NDArray[np.float64], prevalence: float
) -> list[float]:
    """Score, average precision and AUROC from all rows sorted, a threshold at each distinct logit:
    the definition."""
    order = np.argsort(-logits, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(logits[order])), len(y) - 1)
    true = np.cumsum(y[order])[last_of_tie] / y.sum()
    false = np.cumsum(~y[order])[last_of_tie] / (~y).sum()
    gained = np.diff(true, prepend=0.0)
    auroc = float(np.trapezoid(np.append(0.0, true), np.append(0.0, false)))
    shares = (prevalence, y.mean())
    return [
        *(float((gained * (s * true / (s * true + (1 - s) * false))).sum()) for s in shares),
        auroc,
    ]


# --- ranking ------------------------------------------------------------------------------------


@given(judgements(), st.sampled_from([0.01, 0.1, 0.5]))
def test_score_is_sklearns_average_precision_at_the_prevalence(
    judged: Judged, prevalence: float
) -> None:
    y, logits = judged
    weight = np.where(y, prevalence / y.sum(), (1 - prevalence) / (~y).sum())
    expected = average_precision_score(y, logits, sample_weight=weight)
    assert ranking(y, logits, prevalence).score == pytest.approx(expected, rel=1e-9)


@given(judgements())
def test_raw_average_precision_and_auroc_are_sklearns(judged: Judged) -> None:
    found = ranking(*judged)
    assert found.average_precision == pytest.approx(average_precision_score(*judged), rel=1e-9)
    assert found.auroc == pytest.approx(roc_auc_score(*judged), rel=1e-9)


@given(judgements(), st.sampled_from([0.01, 0.1, 0.5]))
def test_ranking_is_that_of_all_rows_sorted(judged: Judged, prevalence: float) -> None:
    assert ranking(*judged, prevalence)[:3] == pytest.approx(
        ranking_by_sorting(*judged, prevalence), rel=1e-12, abs=0
    )


@pytest.mark.parametrize("n_positive", [1, 5, 200])
@pytest.mark.parametrize("decimals", [1, 12])
def test_ranking_of_few_among_very_many_is_that_of_all_rows_sorted(
    n_positive: int, decimals: int
) -> None:
    y = np.arange(20_000) < n_positive
    logits = np.round(np.random.default_rng(n_positive).normal(size=len(y)) + y, decimals)
    assert ranking(y, logits)[:3] == pytest.approx(
        ranking_by_sorting(y, logits, 0.01), rel=1e-12, abs=0
    )


def test_negatives_whose_logit_is_nan_rank_below_all_positives() -> None:
    y, logits = np.array([True, True, False, False, False]), np.array([3.0, 2.0, np.nan, 0.0, 2.5])
    assert ranking(y, logits)[:3] == pytest.approx(ranking_by_sorting(y, logits, 0.01), rel=1e-12)
    assert ranking(y, logits) == ranking(y, np.where(np.isnan(logits), -9.0, logits))


def test_positives_whose_logit_is_nan_rank_below_all_numbers() -> None:
    y, logits = np.array([True, True, False, False]), np.array([3.0, np.nan, np.nan, 0.0])
    assert ranking(y, logits) == ranking(y, np.where(np.isnan(logits), -9.0, logits))


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
    scores = [
        ranking(np.arange(2000) < n, rng.normal(size=2000)).score
        for n in (200, 500, 1000)
        for _ in range(20)
    ]
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


# --- grades -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "grade"),
    [
        (1.0, "A"),
        (0.5, "A"),
        (np.nextafter(0.5, 0), "B"),
        (0.2, "B"),
        (np.nextafter(0.2, 0), "C"),
        (0.0, "C"),
    ],
)
def test_grade_changes_exactly_at_its_boundary(score: float, grade: str) -> None:
    assert Grade.of(score) == grade


@pytest.mark.parametrize(("grade", "reached"), [(Grade.A, "ABC"), (Grade.B, "BC"), (Grade.C, "C")])
def test_grade_reaches_itself_and_what_is_below(grade: Grade, reached: str) -> None:
    assert [wanted for wanted in Grade if grade.reaches(wanted)] == list(reached)


# --- intervals of the score ---------------------------------------------------------------------


def slow_bootstrap(
    judged: Judged, groups: NDArray[np.intp], prevalence: float, n_resamples: int
) -> list[float]:
    """Ends of the interval from whole groups drawn row by row, each class by itself."""
    y, logits = judged
    rng, scores = np.random.default_rng(1), []
    for _ in range(n_resamples):
        rows = []
        for of_class in (y, ~y):
            names = np.unique(groups[of_class])
            rows += [
                np.flatnonzero(of_class & (groups == name))
                for name in rng.choice(names, len(names))
            ]
        drawn = np.concatenate(rows)
        scores.append(ranking(y[drawn], logits[drawn], prevalence).score)
    return [float(end) for end in np.quantile(scores, [0.025, 0.975])]


def in_pairs(
    n_positive: int, n_negative: int, *, shift: float, seed: int
) -> tuple[Judged, NDArray[np.intp]]:
    """Groups of two rows whose logits have much in common, as the two phases of a sample have."""
    rng = np.random.default_rng(seed)
    y, groups = (
        np.repeat(np.arange(n_positive + n_negative) < n_positive, 2),
        np.arange(n_positive + n_negative),
    )
    logits = np.repeat(rng.normal(size=len(groups)), 2) + 0.1 * rng.normal(size=len(y)) + shift * y
    return (y, logits), np.repeat(groups, 2)


@pytest.mark.parametrize(("seed", "prevalence"), [(0, 0.5), (1, 0.1), (2, 0.01)])
def test_interval_of_many_groups_is_about_that_of_a_bootstrap_of_them(
    seed: int, prevalence: float
) -> None:
    judged, groups = in_pairs(150, 1500, shift=1.5, seed=seed)
    fast = score_interval(*judged, prevalence, groups=groups, n_resamples=4000)
    assert fast == pytest.approx(slow_bootstrap(judged, groups, prevalence, 400), abs=0.04)


@pytest.mark.parametrize(("seed", "prevalence"), [(0, 0.5), (1, 0.1), (2, 0.01)])
def test_interval_of_few_groups_reaches_lower_than_a_bootstrap_of_them(
    seed: int, prevalence: float
) -> None:
    """A bootstrap cannot draw a worse group than those that were seen."""
    judged, groups = in_pairs(12, 60, shift=1.5, seed=seed)
    low, high = score_interval(*judged, prevalence, groups=groups, n_resamples=4000)
    drawn_low, drawn_high = slow_bootstrap(judged, groups, prevalence, 1000)
    assert low < 0.95 * drawn_low
    assert low < ranking(*judged, prevalence).score < high
    assert high == pytest.approx(drawn_high, abs=0.1)


def test_rows_of_one_group_count_as_one_sample() -> None:
    (y, logits), groups = in_pairs(12, 200, shift=1.5, seed=0)
    apart, together = (
        score_interval(y, logits, 0.1, groups=numbers) for numbers in (np.arange(len(y)), groups)
    )
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


def test_interval_contains_the_true_score_about_as_often_as_it_says() -> None:
    truth = ranking(*overlapping(1_000_000, shift=2.0, share=0.5)).score
    y, inside = np.arange(3030) < 30, []
    for seed in range(200):
        logits = np.random.default_rng(seed + 1).normal(size=len(y)) + 2.0 * y
        low, high = score_interval(y, logits, groups=np.arange(len(y)), n_resamples=300, seed=seed)
        inside.append(low <= truth <= high)
    assert 0.94 <= np.mean(inside) <= 0.995


def test_more_samples_make_the_interval_narrower() -> None:
    widths = []
    for n in (10, 40, 160):
        judged, groups = in_pairs(n, 10 * n, shift=2.0, seed=0)
        low, high = score_interval(*judged, groups=groups)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_higher_confidence_gives_an_interval_around_that_of_a_lower_one() -> None:
    judged, groups = in_pairs(20, 200, shift=1.5, seed=0)
    wide, narrow = (
        score_interval(*judged, groups=groups, confidence=share) for share in (0.99, 0.5)
    )
    assert wide.low < narrow.low <= ranking(*judged).score <= narrow.high < wide.high


def test_interval_depends_on_the_seed_alone() -> None:
    judged, groups = in_pairs(12, 100, shift=1.5, seed=0)
    np.random.seed(0)
    first = score_interval(*judged, groups=groups, seed=3)
    np.random.seed(1)
    assert score_interval(*judged, groups=groups, seed=3) == first
    assert score_interval(*judged, groups=groups, seed=4) != first


@pytest.mark.parametrize("stretch", [-1, 10**12])
def test_interval_does_not_depend_on_what_the_groups_are_called(stretch: int) -> None:
    (y, logits), groups = in_pairs(12, 100, shift=1.5, seed=0)
    names = groups * stretch if stretch > 0 else groups - 1000
    assert score_interval(y, logits, groups=names) == score_interval(y, logits, groups=groups)


def test_interval_of_a_perfect_ranking_is_the_wider_the_fewer_samples_there_are() -> None:
    """That all lead says little of five positives, and of forty negatives."""

    def low_end(n_positive: int, n_negative: int) -> float:
        y = np.arange(n_positive + n_negative) < n_positive
        low, high = score_interval(y, y.astype(float), groups=np.arange(len(y)))
        assert high == 1.0
        return low

    of_positives = [low_end(n, 1000) for n in (1, 3, 5, 20)]
    assert (np.diff(of_positives) > 0).all()
    assert of_positives[0] < 0.05
    assert of_positives[-1] > 0.7
    of_negatives = [low_end(20, n) for n in (10, 40, 200, 1000, 5000)]
    assert (np.diff(of_negatives) > 0).all()
    assert of_negatives[0] < 0.1


def test_a_single_positive_group_leaves_nearly_everything_open() -> None:
    y, logits = np.arange(101) < 1, np.append(0.0, np.linspace(-9, 1, 100))
    low, high = score_interval(y, logits, groups=np.arange(101))
    assert 0 < low <= 0.01  # chance
    assert ranking(y, logits).score < 0.5
    assert high > 0.9


@pytest.mark.parametrize("y", [np.zeros(5, np.bool_), np.ones(5, np.bool_), np.zeros(0, np.bool_)])
def test_missing_class_gives_an_interval_of_nan(y: NDArray[np.bool_]) -> None:
    assert np.isnan(
        score_interval(y, np.arange(len(y), dtype=float), groups=np.arange(len(y)))
    ).all()


# --- thresholds ---------------------------------------------------------------------------------


@given(judgements(), st.integers(-4, 4))
def test_metrics_at_a_threshold_are_sklearns_with_classes_weighted_alike(
    judged: Judged, cut: int
) -> None:
    y, logits = judged
    weight = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    predicted, found = logits >= cut / 2, classify(y, logits, cut / 2)
    for metric, value in (
        (f1_score, found.f1),
        (precision_score, found.precision),
        (recall_score, found.recall),
    ):
        assert value == pytest.approx(
            metric(y, predicted, sample_weight=weight, zero_division=0), abs=1e-12
        )


def test_f1_is_sklearns_on_a_balanced_set() -> None:
    y, logits = overlapping(400)
    keep = np.sort(np.concatenate([np.flatnonzero(y), np.flatnonzero(~y)[: y.sum()]]))
    assert classify(y[keep], logits[keep], 0.7).f1 == pytest.approx(
        f1_score(y[keep], logits[keep] >= 0.7)
    )


@pytest.mark.parametrize("best", ["f1", "accuracy"])
@given(judgements())
def test_best_threshold_beats_every_other(best: Best, judged: Judged) -> None:
    y, logits = judged
    found = getattr(classify(y, logits, best_threshold(y, logits, best)), best)
    cuts = [*np.unique(logits), logits.max() + 1]
    every = [getattr(classify(y, logits, cut), best) for cut in cuts]
    assert found == pytest.approx(max(every), abs=1e-12)


@pytest.mark.parametrize("best", ["f1", "accuracy"])
@given(judgements())
def test_best_threshold_is_0_where_0_is_as_good(best: Best, judged: Judged) -> None:
    y, logits = judged
    threshold = best_threshold(y, logits, best)
    at_zero, at_best = (getattr(classify(y, logits, cut), best) for cut in (0.0, threshold))
    assert threshold == 0.0 or at_best > at_zero


def test_the_threshold_for_accuracy_of_overlapping_classes_is_higher_and_more_accurate() -> None:
    y, logits = overlapping(2000, shift=1.0, share=0.5)
    of_f1, of_accuracy = (best_threshold(y, logits, best) for best in ("f1", "accuracy"))
    assert of_accuracy > of_f1 + 0.2
    new, by_accuracy = overlapping(2000, shift=1.0, share=0.5, seed=1), []
    for threshold in (of_f1, of_accuracy):
        by_accuracy.append(classify(*new, threshold).accuracy)
        expected = balanced_accuracy_score(new[0], new[1] >= threshold)
        assert by_accuracy[-1] == pytest.approx(expected)
    assert by_accuracy[1] > by_accuracy[0] + 0.01


def test_best_threshold_lies_between_the_classes() -> None:
    y, logits = np.array([True, True, False, False]), np.array([5.0, 4.0, 2.0, 1.0])
    assert best_threshold(y, logits) == 3.0


def test_among_equal_thresholds_the_one_nearest_to_0_is_taken() -> None:
    y, logits = np.array([True, True, False, False]), np.array([3.0, 2.0, -1.0, -4.0])
    assert best_threshold(y, logits) == 0.0


def test_best_threshold_of_constant_logits_says_yes_to_all() -> None:
    y = np.array([True, False, False])
    assert classify(y, np.full(3, -2.0), best_threshold(y, np.full(3, -2.0))).recall == 1.0


# --- thresholds for a false positive rate -------------------------------------------------------

shares = st.one_of(st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]), st.floats(0, 1))


@given(judgements(), shares)
def test_threshold_lets_no_more_negatives_through_than_allowed(judged: Judged, fpr: float) -> None:
    y, logits = judged
    assert (logits[~y] >= threshold_for_fpr(y, logits, fpr)).mean() <= fpr


@given(judgements(), shares)
def test_no_lower_threshold_lets_more_through_and_is_still_allowed(
    judged: Judged, fpr: float
) -> None:
    y, logits = judged
    threshold = threshold_for_fpr(y, logits, fpr)
    for lower in logits[logits < threshold]:
        assert (logits[~y] >= lower).mean() > fpr


@given(st.integers(1, 300), st.integers(0, 300))
def test_a_share_that_is_a_whole_number_of_negatives_lets_them_all_through(n: int, k: int) -> None:
    assume(k <= n)
    logits = np.arange(n, dtype=float)
    assert (logits >= threshold_for_fpr(np.zeros(n, np.bool_), logits, k / n)).sum() == k


@pytest.mark.parametrize(
    ("fpr", "threshold"), [(0.0, 6.0), (0.25, 3.5), (0.5, 2.5), (0.75, 1.5), (1.0, 0.0)]
)
def test_threshold_is_midway_between_neighbouring_logits(fpr: float, threshold: float) -> None:
    y, logits = np.array([False] * 4 + [True]), np.array([1.0, 2.0, 3.0, 4.0, 8.0])
    assert threshold_for_fpr(y, logits, fpr) == threshold


def test_a_tie_that_would_exceed_the_share_is_kept_out_as_a_whole() -> None:
    y, logits = np.zeros(5, np.bool_), np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    assert threshold_for_fpr(y, logits, 0.6) == 2.5


def test_neighbouring_floats_have_room_for_no_middle() -> None:
    low = 1.0
    y, logits = np.array([False, True]), np.array([low, np.nextafter(low, 2)])
    assert threshold_for_fpr(y, logits, 0.0) == logits[1]


def test_threshold_above_the_highest_logit_is_just_out_of_its_reach() -> None:
    y, logits = np.array([False, True]), np.array([5.0, 1.0])
    assert 5.0 < threshold_for_fpr(y, logits, 0.0) < 5.01


def test_a_share_short_of_one_negative_by_rounding_is_not_exceeded() -> None:
    logits = np.arange(10.0)
    assert (logits >= threshold_for_fpr(np.zeros(10, np.bool_), logits, 0.3 - 1e-12)).sum() == 2


def test_negatives_whose_logit_is_nan_never_pass_but_count_in_the_share() -> None:
    y, logits = np.zeros(4, np.bool_), np.array([np.nan, np.nan, 1.0, 2.0])
    assert threshold_for_fpr(y, logits, 0.25) == 1.5
    assert threshold_for_fpr(y, logits, 0.5) == 0.0


def test_without_negatives_a_false_positive_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="no negatives"):
        threshold_for_fpr(np.ones(3, np.bool_), np.arange(3.0), 0.1)


@pytest.mark.parametrize("fpr", [-0.1, 1.5, np.nan])
def test_false_positive_rate_that_is_no_share_is_refused(fpr: float) -> None:
    with pytest.raises(ValueError, match=str(fpr)):
        threshold_for_fpr(np.zeros(3, np.bool_), np.arange(3.0), fpr)


def test_threshold_above_all_logits_stays_above_them_in_float32() -> None:
    """A lens whose logits are mostly one value: shipped in float32, that value must not reach the
    threshold."""
    y, logits = np.arange(100) < 5, np.full(100, -1.2345678901)
    threshold = threshold_for_fpr(y, logits, 0.01)
    assert not (logits.astype(np.float32) + np.float32(2e-4) >= threshold).any()
