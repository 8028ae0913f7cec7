"""What validation modes cost: by hand, and against fits under each of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lenstrain.compare.impact import MODES, ModeCost, impact
from lenstrain.data.dataset import LensDataset
from lenstrain.errors import SettingsError
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import FitResult, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration, Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance
from lenstrain.settings import FitSettings, settings_to_json
from tests.lenstrain.conftest import Planting, make_planted_store, planted_pack

TARGET = 0.8
GOOD, BAD = 0.9, 0.5  # test F1 above and below the target
A, B, C = 0.6, 0.3, 0.1  # scores of these grades


def step(number: int, f1: float, score: float) -> Iteration:
    """The iteration of a lens that gets ten more samples each time."""
    return Iteration(10 * number, 100 * number, f1, f1, score, Grade.of(score).value, False)


def lens(concept: str, f1: Sequence[float], scores: Sequence[float]) -> Lens:
    """A lens with a known history; advisory graduation cuts it in what was needed and what came
    after."""
    steps = [
        step(number, *values) for number, values in enumerate(zip(f1, scores, strict=True), start=1)
    ]
    end = next((number for number, each in enumerate(f1, start=1) if each >= TARGET), len(steps))
    return Lens(
        concept=concept,
        name=concept,
        level=0,
        model_layers=(0,),
        weights=LinearWeights(np.zeros(2, np.float32), 0.0),
        threshold=0.0,
        calibrator=Calibrator.from_json({"kind": "sigmoid", "slope": 1.0, "intercept": 0.0}),
        noise=NoiseFloor(0.0, 1.0),
        grade=Grade.C,
        metrics=LensMetrics(),
        trajectory=tuple(steps[:end]),
        beyond=tuple(steps[end:]),
    )


def pack_of(
    *lenses: Lens, times: dict[str, dict[str, float]] | None = None, **settings: object
) -> LensPack:
    fitted = FitSettings(**{"target_f1": TARGET, **settings})  # type: ignore[arg-type]
    return LensPack(
        lenses,
        Provenance(settings=settings_to_json(fitted)),
        {},
        run={"iterations": times} if times else {},
    )


def costs(pack: LensPack) -> dict[str, ModeCost]:
    return {cost.mode: cost for cost in impact(pack)}


WAITS = lens("waits", [BAD, GOOD, GOOD, GOOD, GOOD], [C, C, C, C, B])
"""Reaches the target at iteration 2, grade B at 5, grade A never."""
AT_ONCE = lens("at once", [GOOD], [A])
NEVER = lens("never", [BAD, BAD, BAD], [A, A, A])
"""A good grade and never the target F1."""
TIMES = {str(number): {"fits": 4, "seconds": 4.0 * 2**number} for number in range(1, 10)}


def test_lens_that_waits_for_its_grade_costs_the_iterations_and_samples_in_between() -> None:
    blocked = costs(pack_of(WAITS))["blocking, grade B"]
    assert (blocked.graduated, blocked.forced_on, blocked.never_graduated) == (1, 1, 0)
    assert (blocked.extra_iterations, blocked.extra_samples, blocked.mean_extra_iterations) == (
        3,
        30,
        3.0,
    )
    assert blocked.mean_score_gain == pytest.approx(B - C)


def test_lens_that_never_gets_its_grade_trains_to_the_end_in_vain() -> None:
    blocked = costs(pack_of(WAITS))["blocking, grade A"]
    assert (blocked.graduated, blocked.forced_on, blocked.never_graduated) == (0, 1, 1)
    assert (blocked.extra_iterations, blocked.extra_samples) == (3, 30)


def test_lens_that_never_reaches_the_target_is_not_held_back_by_any_mode() -> None:
    for cost in impact(pack_of(NEVER)):
        assert (cost.graduated, cost.forced_on, cost.never_graduated, cost.extra_iterations) == (
            0,
            0,
            0,
            0,
        )
        assert math.isnan(cost.mean_extra_iterations)
        assert math.isnan(cost.mean_score_gain)


def test_totals_are_sums_and_means_over_the_lenses_held_back() -> None:
    other = lens("other", [GOOD, GOOD], [C, A])
    blocked = costs(pack_of(WAITS, AT_ONCE, NEVER, other))["blocking, grade B"]
    assert (blocked.graduated, blocked.forced_on, blocked.never_graduated) == (3, 2, 0)
    assert (blocked.extra_iterations, blocked.extra_samples, blocked.mean_extra_iterations) == (
        4,
        40,
        2.0,
    )
    assert blocked.mean_score_gain == pytest.approx(((B - C) + (A - C)) / 2)


def test_advisory_is_what_the_others_are_counted_from() -> None:
    free = impact(pack_of(WAITS, AT_ONCE, NEVER, times=TIMES))[0]
    assert free[:4] == ("advisory", 2, 0, 0)
    assert (free.extra_iterations, free.extra_samples, free.extra_seconds) == (0, 0, 0.0)
    assert math.isnan(free.mean_extra_iterations)


@pytest.mark.parametrize(("grade", "graduates_at"), [(A, 1), (B, 4), (C, 10)])
def test_falloff_asks_for_less_as_iterations_go_by(grade: float, graduates_at: int) -> None:
    falloff = costs(pack_of(lens("steady", [GOOD] * 12, [grade] * 12)))["falloff"]
    assert (falloff.graduated, falloff.extra_iterations) == (1, graduates_at - 1)
    assert falloff.forced_on == (graduates_at > 1)


def test_seconds_are_those_of_the_extra_iterations_by_their_mean_cost() -> None:
    found = costs(pack_of(WAITS, AT_ONCE, times=TIMES))
    assert found["blocking, grade B"].extra_seconds == 2**3 + 2**4 + 2**5
    assert found["advisory"].extra_seconds == 0


def test_seconds_are_unknown_where_the_pack_does_not_say_how_long_its_iterations_took() -> None:
    assert all(math.isnan(cost.extra_seconds) for cost in impact(pack_of(WAITS)))
    some = {number: spent for number, spent in TIMES.items() if number != "4"}
    assert math.isnan(costs(pack_of(WAITS, times=some))["blocking, grade B"].extra_seconds)


def test_overfit_iteration_counts_as_no_graduation() -> None:
    steps = tuple(each._replace(train_f1=1.0, test_f1=0.85) for each in WAITS.trajectory)
    overfit = dataclasses.replace(WAITS, trajectory=steps, beyond=())
    assert all(cost.graduated == 0 for cost in impact(pack_of(overfit)))
    assert costs(pack_of(overfit, max_overfit_gap=0.2))["advisory"].graduated == 1


def test_pack_without_a_record_beyond_graduation_is_refused() -> None:
    with pytest.raises(
        SettingsError,
        match=r"fitted without going on after graduation: fit it again without --no-bey",
    ):
        impact(pack_of(WAITS, beyond_graduation=False))


def test_pack_without_lenses_is_refused() -> None:
    with pytest.raises(SettingsError, match="no lenses"):
        impact(pack_of())


# --- against fits -------------------------------------------------------------------------------

SETTINGS = FitSettings(target_f1=TARGET, model_layers=(1,), C=0.1)


@pytest.fixture(scope="module")
def faint(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Directions so faint that grades come late, with samples for five iterations."""
    planting = Planting(strength=2.5, completion_strength=1.9)
    path = tmp_path_factory.mktemp("faint") / "s"
    return LensDataset(
        make_planted_store(path, pack=planted_pack(n_examples=40), planting=planting)
    )


@pytest.fixture(scope="module")
def advisory(faint: LensDataset) -> FitResult:
    return fit_lenses(faint, SETTINGS)


@pytest.fixture(scope="module")
def foretold(
    faint: LensDataset, advisory: FitResult, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModeCost]:
    """From the pack as it is on disk."""
    folder: Path = tmp_path_factory.mktemp("impact") / "lenses"
    make_lens_pack(advisory, faint, SETTINGS).save(folder)
    return costs(LensPack.load(folder))


@pytest.mark.parametrize(("mode", "validation", "grade"), MODES[1:])
def test_fits_under_a_mode_end_where_impact_foretold(
    faint: LensDataset,
    advisory: FitResult,
    foretold: dict[str, ModeCost],
    mode: str,
    validation: str,
    grade: Grade,
) -> None:
    changes = {"validation": validation, "min_grade": grade, "beyond_graduation": False}
    actual = fit_lenses(faint, dataclasses.replace(SETTINGS, **changes))  # type: ignore[arg-type]
    pairs = list(zip(advisory.lenses, actual.lenses, strict=True))
    extra = [len(held.trajectory) - len(free.trajectory) for free, held in pairs]
    forced = [
        (free, held)
        for free, held in pairs
        if free.graduated and (not held.graduated or held.n_samples > free.n_samples)
    ]
    cost = foretold[mode]
    assert cost.graduated == sum(held.graduated for _, held in pairs)
    assert cost.forced_on == len(forced) > 0
    assert cost.never_graduated == sum(not held.graduated for _, held in forced)
    assert cost.extra_iterations == sum(extra) > 0
    assert cost.mean_extra_iterations == pytest.approx(sum(extra) / len(forced))
    assert cost.extra_samples == sum(held.n_samples - free.n_samples for free, held in pairs)
    gains = [held.score - free.score for free, held in forced]
    assert cost.mean_score_gain == pytest.approx(np.mean(gains), abs=1e-6)
    assert cost.extra_seconds > 0


def test_faint_store_has_lenses_of_every_kind(foretold: dict[str, ModeCost]) -> None:
    """Else the test above would say little."""
    assert 0 < foretold["blocking, grade B"].graduated < foretold["advisory"].graduated < 12
    assert foretold["falloff"].forced_on > foretold["blocking, grade B"].forced_on
    assert foretold["blocking, grade A"].never_graduated > 0


def test_pack_fitted_under_another_mode_tells_the_same(
    faint: LensDataset, foretold: dict[str, ModeCost]
) -> None:
    settings = dataclasses.replace(SETTINGS, validation="blocking")
    pack = make_lens_pack(fit_lenses(faint, settings), faint, settings)
    for mode, cost in costs(pack).items():
        assert cost._replace(extra_seconds=0.0) == pytest.approx(
            foretold[mode]._replace(extra_seconds=0.0), nan_ok=True
        )
