from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, log_loss

from lenstrain.metrics.calibrators import (
    CalibrationRows,
    Calibrator,
    _folds,
    balanced,
    brier_score,
    expected_calibration_error,
    fit_calibrators,
    reliability,
    smooth_calibration_error,
)

Judged = tuple[NDArray[np.bool_], NDArray[np.float64]]
OF_EVERY_KIND = (
    Calibrator("sigmoid", (1.3, -0.1)),
    Calibrator("temperature", (0.7,)),
    Calibrator("isotonic", (-2.0, -1.0, 0.5, 3.0), (0.1, 0.2, 0.2, 0.9)),
)


@st.composite
def judgements(draw: st.DrawFn) -> Judged:
    """Labels of both classes and logits with many ties."""
    pairs = draw(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40))
    y, logits = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], np.float64) / 2
    assume(0 < y.sum() < len(y))
    return y, logits


def overlapping(n: int, *, shift: float = 1.5, share: float = 0.3, seed: int = 0) -> Judged:
    """Logits of N(0, 1) and N(shift, 1)."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < share
    return y, rng.normal(size=n) + shift * y


def with_log_odds(log_odds: NDArray[np.float64], seed: int = 0) -> NDArray[np.bool_]:
    """Labels that are true as often as these log odds say."""
    return np.asarray(
        np.random.default_rng(seed).random(len(log_odds)) < 1 / (1 + np.exp(-log_odds))
    )


def fit_calibrator(y: NDArray[np.bool_], logits: NDArray[np.float64]) -> Calibrator:
    """The sigmoid of one lens by itself."""
    low, unit = float(logits.min()), float(np.ptp(logits)) or 1.0
    rows = CalibrationRows(y, (logits - low) / unit, np.arange(len(y)))
    slope, intercept = fit_calibrators([rows]).lines[0].tolist()
    return Calibrator("sigmoid", (slope / unit, intercept - slope / unit * low))


# --- fitting ------------------------------------------------------------------------------------


@given(judgements())
def test_probabilities_are_rising_and_inside_0_and_1(judged: Judged) -> None:
    p = fit_calibrator(*judged)(np.linspace(-5, 5, 50))
    assert (np.diff(p) >= 0).all()
    assert ((p > 0) & (p < 1)).all()


@given(judgements(), st.sampled_from([1e-3, 10.0, 1e4]))
def test_units_of_the_logits_do_not_matter(judged: Judged, factor: float) -> None:
    y, logits = judged
    stretched = fit_calibrator(y, logits * factor)(logits * factor)
    np.testing.assert_allclose(stretched, fit_calibrator(y, logits)(logits), atol=1e-4)


@given(judgements())
def test_zero_of_the_logits_does_not_matter(judged: Judged) -> None:
    y, logits = judged
    moved = fit_calibrator(y, logits + 64)(logits + 64)
    np.testing.assert_allclose(moved, fit_calibrator(y, logits)(logits), atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_sigmoid_is_calibrated_at_even_prevalence(share: float) -> None:
    """Logits of N(0, 1) and N(1.5, 1): the true log odds at even prevalence are 1.5 x - 1.125."""
    slope, intercept = fit_calibrator(*overlapping(60_000, share=share)).x
    assert slope == pytest.approx(1.5, abs=0.05)
    assert intercept == pytest.approx(-1.125, abs=0.05)


def test_stretched_and_shifted_logits_are_brought_back() -> None:
    y, logits = overlapping(60_000, share=0.5)
    p = fit_calibrator(y, 10 * logits - 3)(10 * logits - 3)
    for low in np.arange(0.1, 0.9, 0.2):
        here = (p >= low) & (p < low + 0.2)
        assert y[here].mean() == pytest.approx(p[here].mean(), abs=0.03)


@pytest.mark.parametrize("n", [1, 4, 20])
def test_separable_rows_do_not_give_certainty(n: int) -> None:
    y = np.arange(2 * n) < n
    p = fit_calibrator(y, np.where(y, 6.0, -6.0))(np.array([6.0, -6.0]))
    np.testing.assert_allclose(p, [(n + 1) / (n + 2), 1 / (n + 2)], atol=1e-4)


def test_logits_that_run_the_wrong_way_give_a_flat_curve() -> None:
    y, logits = overlapping(500)
    p = fit_calibrator(y, 0.75 - logits)(np.array([-9.0, 0.0, 9.0]))
    assert np.ptp(p) == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(p, 0.5, atol=0.02)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(10),
        np.full(10, 4.0),
        1e6 + np.arange(10.0),
        -1e6 * np.arange(10.0),
        1e6 * np.arange(10.0) ** 2,
        1e-12 * np.arange(10.0),
    ],
    ids=["zero", "constant", "huge offset", "huge and wrong way", "huge", "tiny"],
)
@pytest.mark.parametrize("n_positive", [1, 5, 9])
def test_degenerate_logits_give_finite_probabilities_inside_0_and_1(
    logits: NDArray[np.float64], n_positive: int
) -> None:
    p = fit_calibrator(np.arange(10) >= 10 - n_positive, logits)(np.append(logits, [-1e9, 1e9]))
    assert ((p > 0) & (p < 1)).all()


def test_a_large_offset_does_not_blur_the_sigmoid() -> None:
    y, logits = overlapping(2000)
    moved = fit_calibrator(y, logits + 1e6)(logits + 1e6)
    np.testing.assert_allclose(moved, fit_calibrator(y, logits)(logits), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_parameters_fit_better(seed: int) -> None:
    y, logits = overlapping(45_000, share=0.001, seed=seed)
    n, m = y.sum(), (~y).sum()
    weight, target = np.where(y, 0.5 / n, 0.5 / m), np.where(y, (n + 1) / (n + 2), 1 / (m + 2))
    x = np.array(fit_calibrator(y, logits).x)

    def loss(at: NDArray[np.float64]) -> float:
        f = at[0] * logits + (at[1] if len(at) > 1 else 0.0)
        return float(weight @ (np.logaddexp(0, f) - target * f))

    for step in (*np.eye(len(x)), *-np.eye(len(x))):
        assert loss(x) < loss(x + 1e-5 * step)


def test_newton_stops_where_rounding_hides_the_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded losses once made it halve its steps in vain, a hundred times over, on a lens with
    many negatives."""
    calls: list[int] = []
    real = np.logaddexp

    def counted(a: float, b: NDArray[np.float64]) -> NDArray[np.float64]:
        calls.append(1)
        return np.asarray(real(a, b))

    monkeypatch.setattr(np, "logaddexp", counted)
    for seed in range(20):
        fit_calibrator(*overlapping(45_000, share=0.001, shift=3.0, seed=seed))
    assert len(calls) < 20 * 20


def test_shape_of_the_input_is_kept() -> None:
    assert fit_calibrator(*overlapping(50))(np.zeros((3, 4))).shape == (3, 4)


# --- serialisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", OF_EVERY_KIND, ids=lambda its: its.kind)
def test_a_calibrator_survives_json_exactly(before: Calibrator) -> None:
    after = Calibrator.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after == before
    assert hash(after) == hash(before)


@given(judgements())
def test_a_fitted_calibrator_survives_json_exactly(judged: Judged) -> None:
    before = fit_calibrator(judged[0], judged[1] / 3)
    assert Calibrator.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"kind": "spline", "slope": 1.0},
        {"kind": "sigmoid", "slope": 1.0},
        {"kind": "sigmoid", "slope": "steep", "intercept": 0.0},
        {"kind": "sigmoid", "slope": -1.0, "intercept": 0.0},
        {"kind": "temperature", "slope": None},
        {"kind": "temperature", "slope": float("nan")},
        {"kind": "isotonic", "logits": [], "probabilities": []},
        {"kind": "isotonic", "logits": [0.0, 1.0], "probabilities": [0.5]},
        {"kind": "isotonic", "logits": [1.0, 0.0], "probabilities": [0.2, 0.5]},
        {"kind": "isotonic", "logits": [0.0, 1.0], "probabilities": [0.5, 0.2]},
        {"kind": "isotonic", "logits": [0.0, 1.0], "probabilities": [0.0, 0.2]},
    ],
)
def test_malformed_data_is_refused_and_named(data: Any) -> None:
    with pytest.raises(ValueError, match="calibrator") as caught:
        Calibrator.from_json(data)
    assert repr(data)[:40] in str(caught.value)


# --- prevalence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrator", OF_EVERY_KIND, ids=lambda its: its.kind)
@pytest.mark.parametrize("prevalence", [0.001, 0.3, 0.9])
def test_prevalence_multiplies_the_odds(calibrator: Calibrator, prevalence: float) -> None:
    logits = np.linspace(-3, 3, 13)
    even, other = calibrator(logits), calibrator(logits, prevalence)
    ratio = (other / (1 - other)) / (even / (1 - even))
    np.testing.assert_allclose(ratio, prevalence / (1 - prevalence))
    np.testing.assert_array_equal(calibrator(logits, 0.5), even)


def test_probabilities_are_right_at_the_prevalence_of_the_rows() -> None:
    calibrator = fit_calibrator(*overlapping(200_000, share=0.03))
    y, logits = overlapping(200_000, share=0.03, seed=1)
    weight = np.full(len(y), 1 / len(y))

    def error(prevalence: float) -> float:
        return expected_calibration_error(y, calibrator(logits, prevalence), weight=weight)

    assert error(0.03) < 0.005 < 0.1 < error(0.5)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.2, float("nan")])
def test_a_prevalence_that_is_no_share_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="expected one above 0 and below 1"):
        Calibrator("sigmoid", (1.0, 0.0))(np.zeros(2), prevalence)


# --- concepts that share ------------------------------------------------------------------------


def concepts_with(
    n: int, n_positive: int, lines: NDArray[np.float64], *, seed: int = 0
) -> list[CalibrationRows]:
    """Concepts with so many positive texts and 100 negative ones, whose log odds at even prevalence
    are a line (n, 2) in their signals."""
    rng = np.random.default_rng(seed)
    found = []
    for slope, intercept in np.broadcast_to(lines, (n, 2)):
        y = np.arange(100 + n_positive) < n_positive
        # N(0, 1) and N(slope, 1) differ by log odds of slope x - slope^2 / 2.
        x = rng.normal(size=len(y)) + slope * y - (intercept + slope**2 / 2) / slope
        found.append(CalibrationRows(y, x, np.arange(len(y))))
    return found


def own_lines(concepts: list[CalibrationRows]) -> NDArray[np.float64]:
    return np.array([fit_calibrator(its.y, its.signals).x for its in concepts])


def mean_loss(concepts: list[CalibrationRows], lines: NDArray[np.float64]) -> float:
    """Log loss of concepts, each by its line."""
    return float(
        np.mean(
            [
                log_loss(
                    its.y,
                    Calibrator("sigmoid", (line[0], line[1]))(its.signals),
                    sample_weight=balanced(its.y),
                )
                for its, line in zip(concepts, lines, strict=True)
            ]
        )
    )


def test_concepts_with_few_texts_take_what_all_say() -> None:
    alike = np.array([[2.0, -2.0]])
    learned, judged = (concepts_with(60, 4, alike, seed=seed) for seed in (0, 1))
    found = fit_calibrators(learned)
    assert found.pull >= 30
    np.testing.assert_allclose(found.shared, alike[0], atol=0.25)
    assert mean_loss(judged, found.lines) < mean_loss(judged, own_lines(learned)) - 0.01


def test_concepts_with_many_texts_keep_their_own() -> None:
    rng = np.random.default_rng(0)
    lines = np.stack([rng.uniform(0.5, 4, 30), rng.uniform(-4, 2, 30)], axis=1)
    found = fit_calibrators(learned := concepts_with(30, 100, lines))
    assert found.pull <= 3
    np.testing.assert_allclose(found.lines, own_lines(learned), atol=0.4)


def test_the_two_classes_of_a_labelled_set_share_nothing() -> None:
    learned = concepts_with(2, 5, np.array([[2.0, -2.0], [1.0, 0.0]]))
    found = fit_calibrators(learned)
    assert found.pull == 0
    np.testing.assert_allclose(found.lines, own_lines(learned), atol=1e-6)


def test_a_lens_next_to_without_noise_does_not_move_the_others() -> None:
    learned = concepts_with(20, 6, np.array([[2.0, -2.0]]))
    y = learned[0].y
    strange = CalibrationRows(y, np.where(y, 1e9, 0.0), learned[0].texts)
    before, after = fit_calibrators(learned), fit_calibrators([*learned, strange])
    np.testing.assert_allclose(after.shared, before.shared, atol=0.5)
    assert np.isfinite(after.lines).all()


def test_the_seed_and_the_rows_alone_decide() -> None:
    learned = concepts_with(10, 4, np.array([[2.0, -2.0]]))
    one, two = fit_calibrators(learned, seed=3), fit_calibrators(learned, seed=3)
    assert one.pull == two.pull
    np.testing.assert_array_equal(one.lines, two.lines)


def test_concepts_of_one_text_are_calibrated_by_what_all_say() -> None:
    found = fit_calibrators(concepts_with(5, 1, np.array([[2.0, -2.0]])))
    assert found.pull == np.inf
    assert (found.lines == found.shared).all()


def test_thousands_of_concepts_choose_by_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = concepts_with(40, 4, np.array([[2.0, -2.0]]))
    monkeypatch.setattr("lenstrain.metrics.calibrators._CHOSEN_ON", 10)
    found = fit_calibrators(learned)
    assert len(found.lines) == 40
    assert found.pull == fit_calibrators(learned[::4]).pull


def test_rows_of_one_text_never_cross_folds_and_each_fold_has_its_share_of_both_classes() -> None:
    texts = np.repeat(np.arange(60), 2)
    y = texts < 12
    fold = _folds(y, texts, 5, seed=0)
    assert (fold[::2] == fold[1::2]).all()
    for number in range(5):
        assert 4 <= (y & (fold == number)).sum() <= 6
        assert 18 <= (~y & (fold == number)).sum() <= 20


def test_a_class_with_a_single_text_is_never_held_out() -> None:
    assert (_folds(np.arange(20) < 2, np.array([0, 0, *range(18)]) + 7, 5, 0) == -1).all()


# --- how good probabilities are -----------------------------------------------------------------


def probabilities(judged: Judged) -> Judged:
    return judged[0], 1 / (1 + np.exp(-judged[1]))


@given(judgements().map(probabilities))
def test_brier_score_is_sklearns_with_classes_weighted_alike(judged: Judged) -> None:
    y, p = judged
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    assert brier_score(y, p) == pytest.approx(brier_score_loss(y, p, sample_weight=weight))


@given(judgements().map(probabilities), st.integers(2, 5))
def test_how_many_negatives_there_are_does_not_matter(judged: Judged, times: int) -> None:
    y, p = judged
    more = np.repeat(np.arange(len(y)), np.where(y, 1, times))
    for measure in (brier_score, expected_calibration_error):
        assert measure(y[more], p[more]) == pytest.approx(measure(y, p))


@pytest.mark.parametrize("y", [np.ones(3, np.bool_), np.zeros(3, np.bool_), np.zeros(0, np.bool_)])
def test_measures_of_a_missing_class_are_nan(y: NDArray[np.bool_]) -> None:
    p = np.full(len(y), 0.3)
    assert np.isnan([brier_score(y, p), expected_calibration_error(y, p)]).all()


def test_calibration_error_of_a_planted_bias_is_the_bias() -> None:
    y = np.arange(1000) < 500
    # as many of either class in both bins: one half is true
    p = np.where(np.arange(1000) % 500 < 350, 0.55, 0.15)
    assert expected_calibration_error(y, p) == pytest.approx(0.7 * 0.05 + 0.3 * 0.35)


def test_calibration_lowers_the_error() -> None:
    y, logits = overlapping(20_000)
    before = 1 / (1 + np.exp(-5 * logits))
    after = fit_calibrator(y, 5 * logits)(5 * logits)
    assert expected_calibration_error(y, after) < 0.02 < 0.1 < expected_calibration_error(y, before)


def test_reliability_shows_mean_probability_and_share_of_positives_of_each_bin() -> None:
    y = np.array([False, False, True, True, False, True])
    found = reliability(y, np.array([0.1, 0.2, 0.2, 0.9, 0.8, 1.0]), n_bins=4)
    np.testing.assert_allclose(found.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.predicted, [0.5 / 3, np.nan, np.nan, 2.7 / 3])
    np.testing.assert_allclose(found.observed, [1 / 3, np.nan, np.nan, 2 / 3])
    np.testing.assert_allclose(found.rows, [3, 0, 0, 3])
    np.testing.assert_allclose(found.weight, [0.5, 0, 0, 0.5])


def test_reliability_weighs_classes_alike() -> None:
    y = np.arange(100) < 10
    np.testing.assert_allclose(reliability(y, np.full(100, 0.55)).observed[5], 0.5)


@given(judgements().map(probabilities), st.integers(1, 12))
def test_calibration_error_is_the_mean_gap_of_the_bins(judged: Judged, n_bins: int) -> None:
    found = reliability(*judged, n_bins)
    gaps = [
        w * abs(p - o)
        for w, p, o in zip(found.weight, found.predicted, found.observed, strict=True)
        if w
    ]
    assert expected_calibration_error(*judged, n_bins) == pytest.approx(sum(gaps))
    assert found.weight.sum() == pytest.approx(1)


def test_reliability_becomes_plain_values() -> None:
    plain = reliability(*probabilities(overlapping(50))).to_json()
    assert {name: len(values) for name, values in json.loads(json.dumps(plain)).items()} == {
        "edges": 11,
        "predicted": 10,
        "observed": 10,
        "rows": 10,
        "weight": 10,
    }


@pytest.mark.parametrize("level", [-3.3, 0.1, 4.0, 1e9])
@pytest.mark.parametrize("n_positive", [1, 7])
def test_logits_that_are_all_the_same_say_nothing(level: float, n_positive: int) -> None:
    """The deviation of a constant is not 0 but rounding, which must not be taken for signal."""
    y = np.arange(200) < n_positive
    sigmoid = fit_calibrator(y, np.full(200, level))
    p = sigmoid(np.array([level - 1, level, level + 1]))
    assert np.ptp(p) == 0
    assert 0.1 < p[0] < 0.9


@pytest.mark.parametrize("offset", [0.0, -1e3, 1e6, 1e9])
def test_sigmoid_does_not_depend_on_where_the_logits_lie(offset: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.random(2000) < 0.5
    logits = rng.normal(size=2000) + 1.5 * y
    expected = fit_calibrator(y, logits)(logits)
    np.testing.assert_allclose(
        fit_calibrator(y, logits + offset)(logits + offset), expected, atol=1e-4
    )


# --- without bins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "shift", "theirs"), [(5000, 0.0, 0.0143), (5000, 1.0, 0.1484), (500, 2.0, 0.2909)]
)
def test_smooth_calibration_error_is_that_of_relplot(n: int, shift: float, theirs: float) -> None:
    """Values of relplot 1.0.3, which knows no weights, for the same rows."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0, 2, n)
    y = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    p = 1 / (1 + np.exp(-(log_odds + shift)))
    assert smooth_calibration_error(y, p, np.full(n, 1 / n)) == pytest.approx(theirs, abs=1e-3)


def test_smooth_calibration_error_weighs_rows() -> None:
    y, p = np.array([True, False]), np.array([0.7, 0.7])
    assert smooth_calibration_error(y, p, np.array([0.7, 0.3])) < 0.01
    assert smooth_calibration_error(y, p, np.array([0.2, 0.8])) == pytest.approx(0.5, abs=0.02)
