"""Thresholds drawn towards the typical one of their level, and what is measured at them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy import nan
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.cut import PRIOR_TEXTS, Cut, Drawn, draw_thresholds
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.settle import settle
from lenstrain.metrics.thresholds import best_threshold, classify, threshold_for_fpr
from lenstrain.pack.lens import NoiseFloor
from lenstrain.settings import FitSettings

STEP = 0.01
"""Deviations: thresholds that were drawn lie on a grid of these."""


def some_cut(seed: int, own: float = 2.0, n_texts: int = 4, scale: float = 3.0) -> Cut:
    """The cut of a lens whose logits are normal; `own` is in deviations above its noise floor."""
    rng = np.random.default_rng(seed)
    noise = NoiseFloor(float(rng.normal()), scale)
    y = np.arange(120) < 20
    is_unnamed = y & (np.arange(120) % 2 == 0)
    logits = noise.mean + scale * (rng.normal(size=120) + 2.5 * y)
    unrelated = noise.mean + scale * rng.normal(size=400)
    drawn = Drawn(y, is_unnamed, logits)
    return Cut.make(noise.mean + scale * own, noise, drawn, unrelated, n_texts)


def deviations_of(cut: Cut) -> float:
    """Where a cut is, in deviations above the noise floor."""
    return (cut.threshold - cut.noise.mean) / cut.noise.deviation


# --- where a threshold goes ---------------------------------------------------------------------


def test_weight_of_its_own_threshold_is_that_of_its_texts() -> None:
    texts = [1, 2, PRIOR_TEXTS, 30, 1000]
    cuts = [some_cut(i, own=1.0 + i, n_texts=n) for i, n in enumerate(texts)]
    median = 3.0
    for cut, drawn in zip(cuts, draw_thresholds(cuts, [0] * 5), strict=True):
        weight = cut.n_texts / (cut.n_texts + PRIOR_TEXTS)
        goal = weight * cut.own + (1 - weight) * median
        assert deviations_of(drawn) == pytest.approx(goal, abs=STEP / 2 + 1e-9)
        assert abs(deviations_of(drawn) - median) < abs(cut.own - median) + STEP


def test_more_texts_never_draw_a_threshold_further_from_its_own() -> None:
    others = [some_cut(i, own=0.5) for i in range(6)]
    moves = []
    for n in (1, 2, 4, 8, 16, 64, 10_000):
        (*_, drawn) = draw_thresholds([*others, some_cut(9, own=4.0, n_texts=n)], [0] * 7)
        moves.append(4.0 - deviations_of(drawn))
    assert (np.diff(moves) < 0).all()
    assert moves[-1] < STEP


def test_drawn_twice_is_drawn_once() -> None:
    cuts = [some_cut(i, own=i / 2, n_texts=1 + i) for i in range(8)]
    levels = [0, 0, 0, 1, 1, 1, 1, 1]
    once = draw_thresholds(cuts, levels)
    twice = draw_thresholds(once, levels)
    assert [cut.threshold for cut in once] != [cut.threshold for cut in cuts]
    for a, b in zip(once, twice, strict=True):
        assert (a.threshold, a.own, a.n_texts) == (b.threshold, b.own, b.n_texts)
        np.testing.assert_equal(a.metrics, b.metrics)


def test_few_lenses_have_no_typical_threshold_and_keep_theirs() -> None:
    cuts = [some_cut(i, own=float(i)) for i in range(4)]
    assert all(a is b for a, b in zip(draw_thresholds(cuts, [0] * 4), cuts, strict=True))
    assert draw_thresholds([], []) == []


def test_each_level_has_its_own_typical_threshold() -> None:
    cuts = [some_cut(i, own=1.0) for i in range(5)] + [some_cut(i, own=3.0) for i in range(5)]
    drawn = draw_thresholds(cuts, [0] * 5 + [1] * 5)
    np.testing.assert_allclose([deviations_of(cut) for cut in drawn], [1.0] * 5 + [3.0] * 5)
    mixed = draw_thresholds(cuts, [0] * 10)
    assert all(1.0 < deviations_of(cut) < 3.0 for cut in mixed)


def test_a_level_of_few_lenses_goes_by_all_of_them() -> None:
    cuts = [some_cut(i, own=1.0) for i in range(7)] + [some_cut(7, own=4.0, n_texts=PRIOR_TEXTS)]
    drawn = draw_thresholds(cuts, [0] * 7 + [1])
    assert deviations_of(drawn[-1]) == pytest.approx(2.5, abs=STEP)


def test_one_wild_threshold_does_not_move_the_others() -> None:
    cuts = [some_cut(i, own=1.5) for i in range(6)]
    calm, wild = (draw_thresholds([*cuts, some_cut(6, own=x)], [0] * 7) for x in (1.5, 500.0))
    assert [c.threshold for c in calm[:6]] == [c.threshold for c in wild[:6]]


# --- what is measured there ---------------------------------------------------------------------


@pytest.mark.parametrize("deviations", [-9.0, -1.0, 0.0, 0.377, 2.0, 3.5, 60.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_metrics_at_a_moved_threshold_are_those_of_the_logits(
    deviations: float, scale: float
) -> None:
    rng = np.random.default_rng(0)
    noise, y = NoiseFloor(0.7, scale), np.arange(90) < 15
    is_unnamed, logits = y & (np.arange(90) < 6), 0.7 + scale * (rng.normal(size=90) + 2 * y)
    unrelated = 0.7 + scale * rng.normal(size=333)
    natural = 0.7 + scale * rng.normal(size=40)
    drawn = Drawn(y, is_unnamed, logits, natural)
    cut = Cut.make(0.7, noise, drawn, unrelated, 4).moved(deviations)
    assert deviations_of(cut) == pytest.approx(max(deviations, -5.0), abs=STEP / 2 + 1e-9)
    check(cut.metrics._asdict(), cut.threshold, y, is_unnamed, logits, unrelated, natural)


def check(
    found: dict[str, float],
    threshold: float,
    y: NDArray[np.bool_],
    is_unnamed: NDArray[np.bool_],
    logits: NDArray[np.float64],
    unrelated: NDArray[np.float64],
    natural: NDArray[np.float64],
) -> None:
    """All metrics at a threshold, from the raw logits."""
    f1, precision, recall, accuracy = classify(y, logits, threshold)
    without_named, without_unnamed = ~y | is_unnamed, ~is_unnamed
    expected = {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "accuracy": accuracy,
        "f1_unnamed": classify(y[without_named], logits[without_named], threshold).f1,
        "f1_named": classify(y[without_unnamed], logits[without_unnamed], threshold).f1,
        "false_positive_rate": float((unrelated >= threshold).mean()),
        "natural_false_positive_rate": float((natural >= threshold).mean())
        if len(natural)
        else nan,
    }
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)  # the grid is in float32


def test_without_named_or_unnamed_positives_their_f1_is_no_number() -> None:
    cut = some_cut(0)
    drawn = cut.drawn._replace(is_unnamed=np.zeros(120, np.bool_))
    metrics = dataclasses.replace(cut, drawn=drawn).moved(1.0).metrics
    assert np.isnan(metrics.f1_unnamed)
    assert metrics.f1_named == metrics.f1
    drawn = cut.drawn._replace(is_unnamed=cut.drawn.y)
    metrics = dataclasses.replace(cut, drawn=drawn).moved(1.0).metrics
    assert np.isnan(metrics.f1_named)
    assert metrics.f1_unnamed == metrics.f1


@pytest.mark.parametrize("deviation", [0.0, 1e-15, 1e-6])
def test_a_lens_without_noise_is_cut_all_the_same(deviation: float) -> None:
    """Its calibration logits are all alike: one test sample that is not is any number of deviations
    off."""
    y = np.array([True, True, False, False])
    drawn = Drawn(y, y, np.array([2.0, 1.0, 0.0, 0.0]))
    unrelated = np.array([0.0] * 97 + [0.5, 1.5, 3.0])
    cut = Cut.make(1.0, NoiseFloor(0.0, deviation), drawn, unrelated, 2)
    assert cut.metrics.false_positive_rate == 0.02
    assert len(cut.passing) < 10_000
    assert cut.moved(cut.own).threshold == pytest.approx(1.0, abs=1e-6)
    assert cut.moved(1.6 * cut.own).metrics.false_positive_rate == pytest.approx(0.01)
    assert cut.moved(4 * cut.own).metrics.false_positive_rate == 0.0


# --- in a fit -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings() -> FitSettings:
    return FitSettings(model_layers=(1,))


def logits_of(lens: FittedLens, dataset: LensDataset, split: int) -> NDArray[np.float64]:
    X = np.hstack([dataset.vectors(model_layer) for model_layer in lens.model_layers])
    logits = lens.weights.decision_function(X)
    return logits[dataset.split_order][dataset.split_slices[split]].astype(np.float64)


def rows_of(lens: FittedLens, dataset: LensDataset, settings: FitSettings) -> TaskRows:
    return TaskRows(dataset, draw_task(dataset, lens.concept, settings.n_negatives), settings)


def test_thresholds_of_a_fit_are_drawn_and_measured_where_they_are(
    planted: LensDataset, settings: FitSettings
) -> None:
    lenses, moved = fit_lenses(planted, settings).lenses, 0
    for lens in lenses:
        rows = rows_of(lens, planted, settings)
        assert lens.cut.n_texts == rows.n_texts(CALIBRATION)
        own = rows.drawn(CALIBRATION)
        alone = best_threshold(own.y, logits_of(lens, planted, CALIBRATION)[own.rows])
        before = lens.cut.noise.mean + lens.cut.own * lens.cut.noise.deviation
        assert before == pytest.approx(alone, abs=1e-3)
        moved += abs(lens.threshold - before) > 0.01 * lens.cut.noise.deviation
        drawn, judged = rows.drawn(TEST), rows.judged(TEST)
        logits = logits_of(lens, planted, TEST)
        is_unnamed = drawn.y & planted.unnamed(lens.concept, drawn.samples)
        np.testing.assert_array_equal(lens.cut.drawn.is_unnamed, is_unnamed)
        np.testing.assert_allclose(lens.cut.drawn.logits, logits[drawn.rows], rtol=1e-3, atol=1e-3)
        check(
            lens.cut.metrics._asdict(),
            lens.threshold,
            drawn.y,
            is_unnamed,
            lens.cut.drawn.logits,
            logits[judged.rows[~judged.y]],
            lens.cut.drawn.natural,
        )
    assert moved > len(lenses) / 2


def test_settling_once_more_changes_nothing(planted: LensDataset, settings: FitSettings) -> None:
    lenses = fit_lenses(planted, settings).lenses
    before = [(lens.threshold, lens.cut.metrics, lens.calibrator) for lens in lenses]
    settle(planted, lenses, settings)
    after = [(lens.threshold, lens.cut.metrics, lens.calibrator) for lens in lenses]
    np.testing.assert_equal(after, before)


def test_probabilities_of_all_lenses_together_are_measured_on_test_samples(
    planted: LensDataset, settings: FitSettings
) -> None:
    result = fit_lenses(planted, settings)
    found = result.calibration
    assert found is not None
    briers = [lens.probability.brier for lens in result.lenses]
    assert found.brier == pytest.approx(np.mean(briers))
    assert (
        0
        < found.expected_calibration_error
        < np.mean([lens.probability.expected_calibration_error for lens in result.lenses])
    )
    assert found.smooth_calibration_error == pytest.approx(
        found.expected_calibration_error, abs=0.05
    )


def test_thresholds_of_few_lenses_are_those_of_their_own_samples(
    planted: LensDataset, settings: FitSettings
) -> None:
    for lens in fit_lenses(planted, settings, concepts=["bird", "vote"]).lenses:
        own = rows_of(lens, planted, settings).drawn(CALIBRATION)
        alone = best_threshold(own.y, logits_of(lens, planted, CALIBRATION)[own.rows])
        assert lens.threshold == pytest.approx(alone, abs=1e-3)
        assert lens.trajectory[-1].test_f1 == lens.test_f1


def test_thresholds_for_a_false_positive_rate_are_not_drawn(
    planted: LensDataset, settings: FitSettings
) -> None:
    settings = dataclasses.replace(settings, fpr=0.05)
    for lens in fit_lenses(planted, settings).lenses:
        judged = rows_of(lens, planted, settings).judged(CALIBRATION)
        logits = logits_of(lens, planted, CALIBRATION)[judged.rows]
        alone = threshold_for_fpr(judged.y, logits, 0.05)
        assert lens.threshold == pytest.approx(alone, abs=1e-3)
        assert lens.trajectory[-1].test_f1 == lens.test_f1
