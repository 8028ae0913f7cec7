from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from lenstrain.metrics.calibrators import (
    Calibrator,
    Kind,
    _folds,
    brier_score,
    choose_calibrator,
    expected_calibration_error,
    fit_calibrator,
    log_loss,
    reliability,
)

Judged = tuple[NDArray[np.bool_], NDArray[np.float64]]
KINDS: tuple[Kind, ...] = ("sigmoid", "temperature", "isotonic")


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


# --- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(judgements())
def test_probabilities_are_rising_and_inside_0_and_1(kind: Kind, judged: Judged) -> None:
    p = fit_calibrator(kind, *judged)(np.linspace(-5, 5, 50))
    assert (np.diff(p) >= 0).all()
    assert ((p > 0) & (p < 1)).all()


@pytest.mark.parametrize("kind", KINDS)
@given(judgements(), st.sampled_from([1e-3, 10.0, 1e4]))
def test_units_of_the_logits_do_not_matter(kind: Kind, judged: Judged, factor: float) -> None:
    y, logits = judged
    stretched = fit_calibrator(kind, y, logits * factor)(logits * factor)
    np.testing.assert_allclose(stretched, fit_calibrator(kind, y, logits)(logits), atol=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
@given(judgements())
def test_zero_of_the_logits_matters_to_temperature_alone(kind: Kind, judged: Judged) -> None:
    y, logits = judged
    moved = fit_calibrator(kind, y, logits + 64)(logits + 64)
    np.testing.assert_allclose(moved, fit_calibrator(kind, y, logits)(logits), atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_sigmoid_is_calibrated_at_even_prevalence(share: float) -> None:
    """Logits of N(0, 1) and N(1.5, 1): the true log odds at even prevalence are 1.5 x - 1.125."""
    slope, intercept = fit_calibrator("sigmoid", *overlapping(60_000, share=share)).x
    assert slope == pytest.approx(1.5, abs=0.05)
    assert intercept == pytest.approx(-1.125, abs=0.05)


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
def test_stretched_and_shifted_logits_are_brought_back(kind: Kind) -> None:
    y, logits = overlapping(60_000, share=0.5)
    p = fit_calibrator(kind, y, 10 * logits - 3)(10 * logits - 3)
    for low in np.arange(0.1, 0.9, 0.2):
        here = (p >= low) & (p < low + 0.2)
        assert y[here].mean() == pytest.approx(p[here].mean(), abs=0.03)


def test_temperature_undoes_a_stretch() -> None:
    log_odds = np.random.default_rng(1).normal(0, 2, 60_000)
    (slope,) = fit_calibrator("temperature", with_log_odds(log_odds), 3 * log_odds).x
    assert slope == pytest.approx(1 / 3, rel=0.03)


@given(judgements())
def test_isotonic_is_sklearns_on_smoothed_targets_with_classes_weighted_alike(
    judged: Judged,
) -> None:
    y, logits = judged
    n, m = y.sum(), (~y).sum()
    weight, target = np.where(y, 0.5 / n, 0.5 / m), np.where(y, (n + 1) / (n + 2), 1 / (m + 2))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(logits, target, sample_weight=weight)
    at = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(
        fit_calibrator("isotonic", y, logits)(at), theirs.predict(at), atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 4, 20])
def test_separable_rows_do_not_give_certainty(kind: Kind, n: int) -> None:
    y = np.arange(2 * n) < n
    p = fit_calibrator(kind, y, np.where(y, 6.0, -6.0))(np.array([6.0, -6.0]))
    np.testing.assert_allclose(p, [(n + 1) / (n + 2), 1 / (n + 2)], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_run_the_wrong_way_give_a_flat_curve(kind: Kind) -> None:
    y, logits = overlapping(500)
    p = fit_calibrator(kind, y, 0.75 - logits)(np.array([-9.0, 0.0, 9.0]))
    assert np.ptp(p) == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(p, 0.5, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
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
    kind: Kind, logits: NDArray[np.float64], n_positive: int
) -> None:
    p = fit_calibrator(kind, np.arange(10) >= 10 - n_positive, logits)(
        np.append(logits, [-1e9, 1e9])
    )
    assert ((p > 0) & (p < 1)).all()


def test_a_large_offset_does_not_blur_the_sigmoid() -> None:
    y, logits = overlapping(2000)
    moved = fit_calibrator("sigmoid", y, logits + 1e6)(logits + 1e6)
    np.testing.assert_allclose(moved, fit_calibrator("sigmoid", y, logits)(logits), atol=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "temperature"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_parameters_fit_better(kind: Kind, seed: int) -> None:
    y, logits = overlapping(45_000, share=0.001, seed=seed)
    n, m = y.sum(), (~y).sum()
    weight, target = np.where(y, 0.5 / n, 0.5 / m), np.where(y, (n + 1) / (n + 2), 1 / (m + 2))
    x = np.array(fit_calibrator(kind, y, logits).x)

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
        fit_calibrator("sigmoid", *overlapping(45_000, share=0.001, shift=3.0, seed=seed))
    assert len(calls) < 20 * 20


@pytest.mark.parametrize("kind", KINDS)
def test_shape_of_the_input_is_kept(kind: Kind) -> None:
    assert fit_calibrator(kind, *overlapping(50))(np.zeros((3, 4))).shape == (3, 4)


# --- serialisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(judgements())
def test_a_calibrator_survives_json_exactly(kind: Kind, judged: Judged) -> None:
    before = fit_calibrator(kind, judged[0], judged[1] / 3)
    after = Calibrator.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after == before
    assert hash(after) == hash(before)


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


# --- choosing -----------------------------------------------------------------------------------


def test_temperature_is_no_worse_than_any_where_logits_are_only_stretched() -> None:
    log_odds = np.random.default_rng(0).normal(0, 2, 4000)
    _, losses = choose_calibrator(with_log_odds(log_odds), 3 * log_odds, np.arange(4000))
    assert losses["temperature"] <= min(losses.values()) + 1e-3


def test_sigmoid_wins_where_logits_are_shifted() -> None:
    y, logits = overlapping(4000, share=0.5)
    chosen, losses = choose_calibrator(y, logits + 5, np.arange(4000))
    assert chosen.kind == "sigmoid"
    assert losses["sigmoid"] < losses["temperature"] - 0.01


def test_isotonic_wins_where_the_truth_is_a_step() -> None:
    logits = np.random.default_rng(0).uniform(-3, 3, 10_000)
    y = with_log_odds(np.where(logits > 2, 3.0, np.where(logits > -2, 0.0, -3.0)))
    chosen, losses = choose_calibrator(y, logits, np.arange(len(y)))
    assert chosen.kind == "isotonic"
    assert losses["isotonic"] < losses["sigmoid"] - 0.01


def test_choice_is_refitted_on_all_rows() -> None:
    y, logits = overlapping(300)
    chosen, _ = choose_calibrator(y, logits, np.arange(300))
    assert chosen == fit_calibrator(chosen.kind, y, logits)


def test_rows_of_one_group_never_cross_folds_and_each_fold_has_its_share_of_both_classes() -> None:
    y, groups = np.tile(overlapping(60)[0], 2), np.tile(np.arange(60), 2)
    fold = _folds(y, groups, 4, seed=0)
    assert fold is not None
    assert set(fold.tolist()) == {0, 1, 2, 3}
    assert (fold[:60] == fold[60:]).all()
    for number in range(4):
        assert y[fold == number].mean() == pytest.approx(y.mean(), abs=0.1)


def test_a_memory_of_the_judged_rows_would_be_found_out() -> None:
    """Labels are noise, but both rows of a group bear the same one: isotonic remembers it if a
    group crosses folds."""
    rng = np.random.default_rng(0)
    y, logits = np.tile(rng.random(60) < 0.5, 2), np.tile(rng.normal(size=60), 2)
    _, honest = choose_calibrator(y, logits, np.tile(np.arange(60), 2))
    _, leaked = choose_calibrator(y, logits, np.arange(120))
    assert honest["isotonic"] > np.log(2) - 0.02
    assert leaked["isotonic"] < honest["isotonic"] - 0.05


def test_losses_are_those_of_predictions_for_rows_held_out() -> None:
    """Two samples a class, two folds: each half is judged by what the other half alone says."""
    y, logits = np.array([True, True, False, False]), np.array([1.0, 1.0, 0.0, 0.0])
    _, losses = choose_calibrator(y, logits, np.arange(4))
    assert losses["isotonic"] == pytest.approx(-np.log(2 / 3))


@pytest.mark.parametrize("y", [[True, True, False, False, False], [True, True, True, True, False]])
def test_too_few_groups_of_a_class_give_a_sigmoid_and_no_losses(y: list[bool]) -> None:
    labels, logits, groups = (
        np.array(y),
        np.array([3.0, 2.0, 1.0, 0.0, -1.0]),
        np.array([0, 0, 1, 2, 3]),
    )
    chosen, losses = choose_calibrator(labels, logits, groups)
    assert (chosen, losses) == (fit_calibrator("sigmoid", labels, logits), {})


def test_equal_losses_give_a_sigmoid() -> None:
    y = np.arange(40) < 20
    chosen, losses = choose_calibrator(y, np.zeros(40), np.arange(40))
    assert chosen.kind == "sigmoid"
    assert list(losses.values()) == pytest.approx([np.log(2)] * 3)


def test_a_group_with_rows_of_both_classes_stays_in_one_fold_of_the_positives() -> None:
    y, groups = np.array([False, True] * 6 + [False] * 12), np.repeat(np.arange(12), 2)
    _, losses = choose_calibrator(y, np.arange(24.0), groups)
    assert np.isfinite(list(losses.values())).all()


def test_choice_depends_on_the_seed_alone() -> None:
    y, logits = overlapping(100)
    first = choose_calibrator(y, logits, np.arange(100), seed=3)
    assert choose_calibrator(y, logits, np.arange(100), seed=3) == first
    assert choose_calibrator(y, logits, np.arange(100), seed=4)[1] != first[1]


# --- how good probabilities are -----------------------------------------------------------------


def probabilities(judged: Judged) -> Judged:
    return judged[0], 1 / (1 + np.exp(-judged[1]))


@given(judgements().map(probabilities))
def test_brier_score_and_log_loss_are_sklearns_with_classes_weighted_alike(judged: Judged) -> None:
    y, p = judged
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    assert brier_score(y, p) == pytest.approx(brier_score_loss(y, p, sample_weight=weight))
    assert log_loss(y, p) == pytest.approx(sklearn_log_loss(y, p, sample_weight=weight))


@given(judgements().map(probabilities), st.integers(2, 5))
def test_how_many_negatives_there_are_does_not_matter(judged: Judged, times: int) -> None:
    y, p = judged
    more = np.repeat(np.arange(len(y)), np.where(y, 1, times))
    for measure in (brier_score, log_loss, expected_calibration_error):
        assert measure(y[more], p[more]) == pytest.approx(measure(y, p))


def test_certainty_that_is_wrong_has_a_finite_loss() -> None:
    assert 20 < log_loss(np.array([True, False]), np.array([0.0, 1.0])) < 30


@pytest.mark.parametrize("y", [np.ones(3, np.bool_), np.zeros(3, np.bool_), np.zeros(0, np.bool_)])
def test_measures_of_a_missing_class_are_nan(y: NDArray[np.bool_]) -> None:
    p = np.full(len(y), 0.3)
    assert np.isnan([brier_score(y, p), log_loss(y, p), expected_calibration_error(y, p)]).all()


def test_calibration_error_of_a_planted_bias_is_the_bias() -> None:
    y = np.arange(1000) < 500
    # as many of either class in both bins: one half is true
    p = np.where(np.arange(1000) % 500 < 350, 0.55, 0.15)
    assert expected_calibration_error(y, p) == pytest.approx(0.7 * 0.05 + 0.3 * 0.35)


def test_calibration_lowers_the_error() -> None:
    y, logits = overlapping(20_000)
    before = 1 / (1 + np.exp(-5 * logits))
    after = fit_calibrator("sigmoid", y, 5 * logits)(5 * logits)
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
    sigmoid = fit_calibrator("sigmoid", y, np.full(200, level))
    p = sigmoid(np.array([level - 1, level, level + 1]))
    assert np.ptp(p) == 0
    assert 0.1 < p[0] < 0.9


@pytest.mark.parametrize("offset", [0.0, -1e3, 1e6, 1e9])
def test_sigmoid_does_not_depend_on_where_the_logits_lie(offset: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.random(2000) < 0.5
    logits = rng.normal(size=2000) + 1.5 * y
    expected = fit_calibrator("sigmoid", y, logits)(logits)
    np.testing.assert_allclose(
        fit_calibrator("sigmoid", y, logits + offset)(logits + offset), expected, atol=1e-4
    )
