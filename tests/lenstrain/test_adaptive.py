from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept
from lenscache.concepts.prompts import EXAMPLE, stable_hash
from lenscache.store.store import Store
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.errors import SettingsError, TooFewSamplesError
from lenstrain.families.kinds import FAMILIES, STRENGTHS
from lenstrain.families.linear import LinearFit, LinearTrainer, LinearWeights
from lenstrain.fit.adaptive import (
    FitProgress,
    FitResult,
    FitSettings,
    choose_model_layers,
    fit_lenses,
    fit_targets,
    settings_to_json,
)
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.thresholds import classify
from tests.lenstrain.conftest import (
    BRANCHES,
    LEAVES,
    SIGNAL_LAYER,
    Planting,
    direction_of,
    make_planted_store,
    planted_pack,
)
from tests.lenstrain.test_grade import is_capped

CONCEPTS = (*BRANCHES, *(leaf for leaves in LEAVES for leaf in leaves))
EAGER = FitSettings(initial_samples=200, model_layers=(SIGNAL_LAYER,), C=1.0)
"""All samples at once, on the model layer that has the signal: nothing is left to choose."""

Change = Callable[[NDArray[np.float32], NDArray[np.intp]], NDArray[np.float32]]


class ChangedDataset(LensDataset):
    """A dataset in which the activations of some splits are not those of the store."""

    def __init__(self, store: Store, change: Change, *splits: int) -> None:
        super().__init__(store)
        self.change, self.changed_splits = change, splits

    def vectors(
        self, model_layer: int, place: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        X = super().vectors(model_layer)
        for split in self.changed_splits:
            rows = np.flatnonzero(self.split[self.vector_sample] == split)
            X[rows] = self.change(X, rows)
        return X if place is None else X[np.argsort(place)]


def shuffle(X: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.asarray(X[np.random.default_rng(0).permutation(rows)])


def replace(X: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(0).normal(scale=50, size=X[rows].shape), np.float32)


def weights_of(result: FitResult) -> bytes:
    """Weights and biases, bit for bit."""
    return b"".join(
        weight_of(lens).tobytes() + np.float64(bias_of(lens)).tobytes() for lens in result.lenses
    )


def weight_of(lens: FittedLens) -> NDArray[np.float32]:
    assert isinstance(lens.weights, LinearWeights)
    return lens.weights.weight


def bias_of(lens: FittedLens) -> float:
    assert isinstance(lens.weights, LinearWeights)
    return lens.weights.bias


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def fitted(planted: LensDataset) -> FitResult:
    return fit_lenses(planted)


@pytest.fixture(scope="module")
def faint_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Directions so faint that no lens graduates."""
    planting = Planting(strength=2.0, completion_strength=1.5)
    return make_planted_store(tmp_path_factory.mktemp("faint") / "s", planting=planting)


@pytest.fixture(scope="module")
def faint(faint_store: Store) -> LensDataset:
    return LensDataset(faint_store)


# --- what is found ------------------------------------------------------------------------------


def test_planted_directions_are_recovered(tmp_path: Path) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(n_examples=60)))
    result = fit_lenses(dataset, dataclasses.replace(EAGER, C=0.01))
    cosines = {
        lens.concept: cosine(weight_of(lens), direction_of(lens.concept)) for lens in result.lenses
    }
    assert min(cosines.values()) >= 0.9, cosines
    strangers = [
        abs(cosine(weight_of(lens), direction_of(c)))
        for lens in result.lenses
        for c in CONCEPTS
        if c not in dataset.hierarchy.family(lens.concept)
    ]
    assert max(strangers) < 0.4


def test_clear_concepts_graduate_with_grade_A_whatever_their_level(fitted: FitResult) -> None:  # noqa: N802
    assert {lens.concept for lens in fitted.lenses} == set(CONCEPTS)
    assert {lens.trajectory[-1].grade for lens in fitted.lenses} == {"A"}
    assert {lens.verdict.status for lens in fitted.lenses} == {"provisional"}
    capped = [lens for lens in fitted.lenses if is_capped(lens.verdict)]
    assert {lens.verdict.grade for lens in fitted.lenses if lens not in capped} == {Grade.A}
    # Of twelve random directions one may come near a concept's.
    assert len(capped) <= 1
    for lens in capped:
        assert lens.controls["random direction"].score > 0.9
        assert lens.verdict.reason == "not ahead of the control 'random direction'"
    assert sum(lens.graduated for lens in fitted.lenses) >= 10
    assert all(lens.metrics.converged for lens in fitted.lenses)


def test_lenses_of_noise_never_grade_well(tmp_path: Path) -> None:
    names = [f"noise-{i}" for i in range(40)]
    changes = [
        Concept(
            name,
            name,
            1,
            parents=(BRANCHES[i % 3],),
            examples=tuple(f"Nothing {stable_hash(i, j)}." for j in range(20)),
        )
        for i, name in enumerate(names)
    ]
    store = make_planted_store(
        tmp_path / "s",
        pack=planted_pack(changes=changes),
        planting=Planting(flat=tuple(names)),
        levels=[1],
    )
    result = fit_lenses(
        LensDataset(store), dataclasses.replace(EAGER, initial_samples=10), concepts=names
    )
    assert len(result.lenses) == 40
    assert {lens.verdict.status for lens in result.lenses} == {"provisional"}  # all had a chance
    assert {lens.verdict.grade for lens in result.lenses} == {Grade.C}
    assert "A" not in {step.grade for lens in result.lenses for step in lens.trajectory}
    assert np.mean([lens.score for lens in result.lenses]) < 0.1
    assert np.mean([lens.ranking.score for lens in result.lenses]) < 0.1
    assert not any(lens.graduated for lens in result.lenses)


def test_model_layer_that_holds_the_directions_is_chosen(fitted: FitResult) -> None:
    assert {lens.model_layers for lens in fitted.lenses} == {(SIGNAL_LAYER,)}


def test_threshold_and_probability_separate_the_test_rows(
    planted: LensDataset, fitted: FitResult
) -> None:
    X = planted.vectors(SIGNAL_LAYER)
    for lens in fitted.lenses:
        task = draw_task(planted, lens.concept, FitSettings().n_negatives)
        positives, negatives = (
            X[planted.vectors_of(rows[TEST])] for rows in (task.positives, task.negatives)
        )
        assert (lens.weights.decision_function(positives) >= lens.threshold).mean() > 0.8
        assert lens.calibrator(lens.weights.decision_function(positives)).mean() > 0.7
        assert lens.calibrator(lens.weights.decision_function(negatives)).mean() < 0.3


def test_fit_is_deterministic(planted_store: Store, fitted: FitResult) -> None:
    assert weights_of(fit_lenses(LensDataset(planted_store))) == weights_of(fitted)


def test_lens_does_not_depend_on_which_others_are_fitted(planted: LensDataset) -> None:
    together = {lens.concept: lens for lens in fit_lenses(planted, EAGER).lenses}
    alone = fit_lenses(planted, EAGER, concepts=["bird"]).lenses[0]
    np.testing.assert_allclose(weight_of(alone), weight_of(together["bird"]), rtol=1e-4, atol=1e-6)
    assert alone.ranking == pytest.approx(together["bird"].ranking)


# --- nothing held out leaks ---------------------------------------------------------------------


@pytest.mark.parametrize("split", [CALIBRATION, TEST])
@pytest.mark.parametrize("change", [shuffle, replace])
def test_held_out_activations_never_reach_the_weights(
    planted_store: Store, planted: LensDataset, change: Change, split: int
) -> None:
    changed = fit_lenses(ChangedDataset(planted_store, change, split), EAGER)
    assert weights_of(changed) == weights_of(fit_lenses(planted, EAGER))


@pytest.mark.parametrize("change", [shuffle, replace])
def test_test_activations_reach_neither_threshold_nor_probabilities(
    planted_store: Store, planted: LensDataset, change: Change
) -> None:
    before, after = (
        fit_lenses(planted, EAGER),
        fit_lenses(ChangedDataset(planted_store, change, TEST), EAGER),
    )
    assert [(a.threshold, a.calibrator) for a in after.lenses] == [
        (b.threshold, b.calibrator) for b in before.lenses
    ]
    assert [a.test_f1 for a in after.lenses] != [b.test_f1 for b in before.lenses]


def test_training_activations_do_reach_the_weights(
    planted_store: Store, planted: LensDataset
) -> None:
    """The checks above would pass if nothing ever changed."""
    changed = fit_lenses(ChangedDataset(planted_store, shuffle, TRAIN), EAGER)
    assert weights_of(changed) != weights_of(fit_lenses(planted, EAGER))


def chosen_model_layers(dataset: LensDataset) -> list[int]:
    tasks = [
        TaskRows(dataset, draw_task(dataset, c, FitSettings().n_negatives), FitSettings())
        for c in CONCEPTS
    ]
    return [
        model_layer for ((model_layer,), _) in choose_model_layers(dataset, tasks, FitSettings())
    ]


@pytest.mark.parametrize("change", [shuffle, replace])
def test_model_layer_is_chosen_without_the_test_split(planted_store: Store, change: Change) -> None:
    assert chosen_model_layers(ChangedDataset(planted_store, change, TEST)) == [SIGNAL_LAYER] * len(
        CONCEPTS
    )


def test_model_layer_is_chosen_by_the_calibration_split(tmp_path: Path) -> None:
    """With calibration rows of no use there is nothing to choose by: of equal model layers the
    middle one is taken."""
    store = make_planted_store(tmp_path / "s", n_layers=5, model_layers=tuple(range(5)))
    flat = ChangedDataset(store, lambda X, rows: np.zeros_like(X[rows]), CALIBRATION)
    assert chosen_model_layers(flat) == [2] * len(CONCEPTS)
    assert chosen_model_layers(LensDataset(store)) == [SIGNAL_LAYER] * len(CONCEPTS)


# --- schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (FitSettings(), [5, 10, 20, 30, 40]),
        (FitSettings(initial_samples=3, first_increment=2, increment=4), [3, 5, 9, 13, 17]),
        (FitSettings(max_samples=22), [5, 10, 20, 22, 22]),
    ],
)
def test_samples_grow_by_the_increments(settings: FitSettings, expected: list[int]) -> None:
    assert [settings.n_samples(iteration, 1000) for iteration in range(1, 6)] == expected


def test_samples_end_with_what_is_available() -> None:
    assert [FitSettings().n_samples(iteration, 13) for iteration in range(1, 5)] == [5, 10, 13, 13]


@pytest.mark.parametrize(("n", "expected"), [(1, 10), (5, 50), (30, 300), (100, 300), (400, 400)])
def test_negatives_follow_the_positives_up_to_a_bound(n: int, expected: int) -> None:
    assert FitSettings().n_negatives(n) == expected


def test_trajectory_records_every_iteration(faint: LensDataset) -> None:
    result = fit_lenses(faint, FitSettings(model_layers=(1,)))
    for lens in result.lenses:
        available = len(draw_task(faint, lens.concept, FitSettings().n_negatives).positives[TRAIN])
        expected = [n for n in (5, 10, 20) if n < available] + [available]
        counts = [iteration.n_samples for iteration in lens.trajectory]
        assert counts == expected[: len(counts)]
        assert lens.graduated or counts == expected
        held = len(draw_task(faint, lens.concept, FitSettings().n_negatives).negatives[TRAIN])
        assert [iteration.n_negatives for iteration in lens.trajectory] == [
            min(10 * n, held) for n in counts
        ]
        assert [iteration.graduated for iteration in lens.trajectory[:-1]] == [False] * (
            len(counts) - 1
        )


def test_last_iteration_is_the_lens_that_is_kept(faint: LensDataset) -> None:
    for lens in fit_lenses(faint, FitSettings(model_layers=(1,))).lenses:
        last = lens.trajectory[-1]
        # Judged at the threshold of its own samples, before that is drawn towards others'.
        cut = lens.cut
        own = cut.noise.mean + cut.own * cut.noise.deviation
        assert last.test_f1 == classify(cut.drawn.y, cut.drawn.logits, own).f1
        assert last.train_f1 == lens.metrics.train_f1
        assert last.score == lens.score
        assert last.grade == Grade.of(lens.score)
        assert last.graduated == lens.graduated
        assert lens.n_samples == last.n_samples


def test_f1_is_reported_apart_for_samples_that_name_the_concept_and_for_those_that_do_not(
    tmp_path: Path,
) -> None:
    """What names the concept is lost from the activations: a lens that is blind there must not hide
    behind the rest."""
    store = make_planted_store(tmp_path / "s")

    def hide_named(X: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        named = dataset.kind[dataset.vector_sample[rows]] != EXAMPLE
        changed = X[rows].copy()
        changed[named] = X[rows].mean(axis=0)
        return changed

    dataset = ChangedDataset(store, hide_named, TEST)
    for lens in fit_lenses(dataset, EAGER).lenses:
        at = lens.cut.metrics
        assert at.f1_unnamed > 0.9
        assert at.f1_named < at.f1 < at.f1_unnamed


def test_f1_of_samples_that_there_are_none_of_is_not_a_number(tmp_path: Path) -> None:
    pack = dataclasses.replace(planted_pack(), prompts="examples")
    for lens in fit_lenses(
        LensDataset(make_planted_store(tmp_path / "s", pack=pack)), EAGER
    ).lenses:
        assert np.isnan(lens.cut.metrics.f1_named)
        assert lens.cut.metrics.f1_unnamed == lens.test_f1


def test_strength_is_chosen_on_the_calibration_split_and_kept_with_the_lens(tmp_path: Path) -> None:
    """Where calibration has noise for features others are chosen; a given one is taken as it is."""
    store = make_planted_store(
        tmp_path / "s", planting=Planting(strength=2.0, completion_strength=1.0)
    )
    settings = FitSettings(initial_samples=200, model_layers=(SIGNAL_LAYER,))
    chosen = {
        lens.concept: lens.metrics.C for lens in fit_lenses(LensDataset(store), settings).lenses
    }
    assert set(chosen.values()) <= set(STRENGTHS)
    shuffled = fit_lenses(ChangedDataset(store, shuffle, CALIBRATION), settings).lenses
    assert {lens.concept: lens.metrics.C for lens in shuffled} != chosen
    tested = fit_lenses(ChangedDataset(store, replace, TEST), settings).lenses
    assert {lens.concept: lens.metrics.C for lens in tested} == chosen
    given = fit_lenses(LensDataset(store), dataclasses.replace(settings, C=0.3)).lenses
    assert {lens.metrics.C for lens in given} == {0.3}


@pytest.mark.parametrize("validation", ["advisory", "blocking", "falloff"])
def test_several_targets_in_one_pass_give_what_a_fit_for_each_gives(
    validation: Any, faint: LensDataset
) -> None:
    settings, targets = FitSettings(validation=validation), [0.95, 0.6, 0.8]
    together = fit_targets(faint, settings, targets)
    for target, result in zip(targets, together, strict=True):
        alone = fit_lenses(faint, dataclasses.replace(settings, target_f1=target))
        for one, other in zip(result.lenses, alone.lenses, strict=True):
            # Concepts are solved in batches, and a batch of others adds up to other last bits.
            np.testing.assert_allclose(weight_of(one), weight_of(other), rtol=1e-4, atol=1e-6)
            assert (one.graduated, one.hungry, one.model_layers) == (
                other.graduated,
                other.hungry,
                other.model_layers,
            )
            for step, expected in zip(one.trajectory, other.trajectory, strict=True):
                assert step[:5] == pytest.approx(expected[:5])
                assert step[5:] == expected[5:]


def test_a_pass_over_several_targets_fits_no_more_than_the_highest_needs(
    faint: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: problems solved and vectors read."""
    counted: list[int] = []

    class Counted(LinearTrainer):
        def fit(self, which: Any, *args: Any, **options: Any) -> LinearFit:
            counted.append(len(which))
            return super().fit(which, *args, **options)

    family = dataclasses.replace(
        FAMILIES["linear"], trainer=lambda job: Counted(job.Z, job.rows, job.targets)
    )
    monkeypatch.setitem(FAMILIES, "linear", family)
    once = FitSettings(target_f1=0.95, beyond_graduation=False)
    fit_lenses(faint, once)
    single = sum(counted)
    counted.clear()
    fit_targets(faint, once, [0.6, 0.8, 0.9, 0.95])
    controls = 3 * len(CONCEPTS)  # shuffled labels of every lens that ends at another iteration
    assert single <= sum(counted) <= single + controls


def test_no_target_is_refused(faint: LensDataset) -> None:
    with pytest.raises(SettingsError, match="no target F1"):
        fit_targets(faint, FitSettings(), [])


def test_iterations_are_bounded(faint: LensDataset) -> None:
    result = fit_lenses(faint, FitSettings(model_layers=(1,), target_f1=1.0, max_iterations=2))
    assert max(len(lens.trajectory) for lens in result.lenses) == 2


def test_first_fit_of_a_trajectory_is_that_of_its_samples_alone(faint: LensDataset) -> None:
    """What was fitted at ten samples must not depend on how many there will be in the end."""
    short = fit_lenses(faint, FitSettings(model_layers=(1,), max_samples=10, target_f1=1.0, C=1.0))
    long = fit_lenses(faint, FitSettings(model_layers=(1,), target_f1=1.0, C=1.0))
    for a, b in zip(short.lenses, long.lenses, strict=True):
        assert a.trajectory[1][:5] == pytest.approx(b.trajectory[1][:5])


# --- graduation ---------------------------------------------------------------------------------


def check_graduation(result: FitResult, settings: FitSettings) -> None:
    """Every iteration graduated if and only if the rule says so."""
    for lens in result.lenses:
        for number, step in enumerate(lens.trajectory, start=1):
            expected = (
                step.test_f1 >= settings.target_f1
                and step.train_f1 - step.test_f1 <= settings.max_overfit_gap
                and Grade(step.grade).reaches(settings.required_grade(number))
            )
            assert step.graduated == expected


@pytest.mark.parametrize("validation", ["advisory", "blocking", "falloff"])
@pytest.mark.parametrize("target", [0.5, 0.7, 0.95])
def test_graduation_follows_the_rule(faint: LensDataset, validation: Any, target: float) -> None:
    settings = FitSettings(model_layers=(1,), target_f1=target, validation=validation)
    check_graduation(fit_lenses(faint, settings), settings)


def test_overfit_lens_does_not_graduate(faint: LensDataset) -> None:
    settings = FitSettings(model_layers=(1,), target_f1=0.4, max_overfit_gap=0.10)
    strict, lax = (
        fit_lenses(faint, settings),
        fit_lenses(faint, dataclasses.replace(settings, max_overfit_gap=1.0)),
    )
    first = [lens.trajectory[0] for lens in strict.lenses]
    overfit = [
        step for step in first if step.test_f1 >= 0.4 and step.train_f1 - step.test_f1 > 0.10
    ]
    assert overfit
    assert not any(step.graduated for step in overfit)
    assert all(lens.trajectory[0].graduated for lens in lax.lenses if lens.test_f1 >= 0.4)


def test_advisory_never_blocks(faint: LensDataset) -> None:
    settings = FitSettings(model_layers=(1,), target_f1=0.4, max_overfit_gap=1.0)
    result = fit_lenses(faint, settings)
    low = [lens for lens in result.lenses if Grade.of(lens.score) is Grade.C]
    assert any(lens.graduated for lens in low)
    assert {lens.verdict.grade for lens in low} == {Grade.C}


def test_blocking_holds_back_low_grades(faint: LensDataset) -> None:
    settings = FitSettings(
        model_layers=(1,),
        target_f1=0.4,
        max_overfit_gap=1.0,
        validation="blocking",
        min_grade=Grade.A,
    )
    blocked, free = (
        fit_lenses(faint, settings),
        fit_lenses(faint, dataclasses.replace(settings, validation="advisory")),
    )
    graduated = [lens for lens in blocked.lenses if lens.graduated]
    assert graduated
    assert all(Grade.of(lens.score) is Grade.A for lens in graduated)
    assert all(lens.verdict.grade is Grade.A or is_capped(lens.verdict) for lens in graduated)
    assert sum(len(lens.trajectory) for lens in blocked.lenses) > sum(
        len(lens.trajectory) for lens in free.lenses
    )


def test_falloff_relaxes_with_the_iterations() -> None:
    settings = FitSettings(validation="falloff")
    asked = [settings.required_grade(iteration) for iteration in range(1, 13)]
    assert "".join(asked) == "AAABBBBBBCCC"


def test_required_grade_of_the_other_modes_is_constant() -> None:
    assert {FitSettings().required_grade(i) for i in (1, 5, 50)} == {Grade.C}
    blocking = FitSettings(validation="blocking", min_grade=Grade.A)
    assert {blocking.required_grade(i) for i in (1, 5, 50)} == {Grade.A}


def test_lower_target_needs_no_more_samples(faint: LensDataset) -> None:
    needed = [
        [
            lens.n_samples
            for lens in fit_lenses(faint, FitSettings(model_layers=(1,), target_f1=target)).lenses
        ]
        for target in (0.5, 0.7, 0.9, 1.0)
    ]
    assert (np.diff(needed, axis=0) >= 0).all()
    assert needed[0] != needed[-1]


# --- hungry -------------------------------------------------------------------------------------


def test_concept_that_used_every_sample_without_graduating_is_hungry(faint: LensDataset) -> None:
    result = fit_lenses(faint, FitSettings(model_layers=(1,)))
    assert result.hungry
    for lens in result.lenses:
        assert lens.hungry == (not lens.graduated)


def test_graduated_lens_is_not_hungry(fitted: FitResult) -> None:
    assert not set(fitted.hungry) & {lens.concept for lens in fitted.lenses if lens.graduated}


@pytest.mark.parametrize("bound", [{"max_samples": 10}, {"max_iterations": 1}])
def test_lens_stopped_by_a_setting_is_not_hungry(faint: LensDataset, bound: dict[str, int]) -> None:
    settings = FitSettings(model_layers=(1,), target_f1=1.0, **bound)  # type: ignore[arg-type]
    assert fit_lenses(faint, settings).hungry == []


# --- what is reported ---------------------------------------------------------------------------


def test_each_phase_is_scored_on_its_own(planted: LensDataset, fitted: FitResult) -> None:
    assert {tuple(lens.metrics.score_by_phase) for lens in fitted.lenses} == {
        ("prompt", "completion")
    }
    only = fit_lenses(planted, EAGER)
    assert all(
        0 <= score <= 1 for lens in only.lenses for score in lens.metrics.score_by_phase.values()
    )


def test_phase_without_signal_scores_low(tmp_path: Path) -> None:
    pack, planting = planted_pack(n_examples=30), Planting(completion_strength=0.0)
    store = make_planted_store(tmp_path / "s", pack=pack, planting=planting)
    scores = np.array(
        [
            list(lens.metrics.score_by_phase.values())
            for lens in fit_lenses(LensDataset(store), EAGER).lenses
        ]
    )
    assert scores[:, 0].mean() > 0.7
    assert scores[:, 1].mean() < 0.2


def test_score_counts_all_test_rows_but_those_of_the_family(
    planted: LensDataset, fitted: FitResult
) -> None:
    is_test = planted.split[planted.vector_sample] == TEST
    for lens in fitted.lenses:
        related = draw_task(planted, lens.concept, FitSettings().n_negatives).related
        expected = (is_test & ~np.isin(planted.vector_sample, related)).sum()
        assert lens.ranking.n_positive + lens.ranking.n_negative == expected


def test_unnamed_score_is_that_of_the_examples_alone(
    planted: LensDataset, fitted: FitResult
) -> None:
    assert all(lens.score > 0.8 for lens in fitted.lenses)

    class Hidden(LensDataset):
        def unnamed(self, concept: str, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
            return np.zeros(len(rows), np.bool_)

    for lens in fit_lenses(Hidden(planted.store), EAGER).lenses:
        assert np.isnan([lens.score, *lens.score_interval, lens.lead]).all()
        assert (lens.verdict.grade, lens.verdict.status) == (None, "ungraded")
        assert lens.metrics["score_named"] == lens.ranking.score > 0.8
        assert (lens.n_test_unnamed, lens.metrics["n_test"] > 0) == (0, True)
        assert {step.grade for step in lens.trajectory} == {"ungraded"}


def test_prompt_phase_can_be_fitted_alone(planted_store: Store) -> None:
    result = fit_lenses(LensDataset(planted_store, phase="prompt"), EAGER)
    assert {tuple(lens.metrics.score_by_phase) for lens in result.lenses} == {("prompt",)}
    assert np.mean([lens.ranking.score for lens in result.lenses]) > 0.8


def test_rows_without_completion_are_no_obstacle(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "s", planting=Planting(without_completion=0.7))
    result = fit_lenses(LensDataset(store), EAGER)
    assert all(np.isfinite(weight_of(lens)).all() for lens in result.lenses)
    assert np.mean([lens.ranking.score for lens in result.lenses]) > 0.8


def test_progress_ends_with_every_concept(planted: LensDataset) -> None:
    told: list[FitProgress] = []
    fit_lenses(planted, on_progress=told.append)
    assert [step.done for step in told if step.stage == "choosing model layers"] == [0, 1, 2]
    done = [step.done for step in told if step.stage == "fitting"]
    assert done == sorted(set(done))
    assert done[-1] == len(CONCEPTS)
    assert told[-1].total == len(CONCEPTS)


# --- what cannot be fitted ----------------------------------------------------------------------


def test_concept_with_too_few_samples_is_skipped_and_the_others_go_on(fresh: LensDataset) -> None:
    rows = np.concatenate(draw_task(fresh, "loom", FitSettings().n_negatives).positives)
    fresh.split[rows] = TRAIN
    result = fit_lenses(fresh, EAGER)
    assert result.skipped == {
        "loom": "loom: 0 positive samples in the calibration split, at least 1 are needed: "
        "extract more of its prompts, or give the concept more examples"
    }
    assert [lens.concept for lens in result.lenses] == [c for c in fresh.concepts if c != "loom"]


def test_nothing_to_fit_is_an_error_with_the_first_reason(fresh: LensDataset) -> None:
    fresh.split[:] = TRAIN
    with pytest.raises(
        TooFewSamplesError,
        match="no concept has enough samples to fit a lens; the first: nature: 0",
    ):
        fit_lenses(fresh)


def test_unknown_concept_is_named(planted: LensDataset) -> None:
    with pytest.raises(
        SettingsError,
        match="concept 'dragon' was not extracted into the store: see `lenscache info`",
    ):
        fit_lenses(planted, concepts=["bird", "dragon"])


@pytest.mark.parametrize("model_layers", [(15,), (1, 15)])
def test_unknown_model_layer_is_never_replaced_by_another(
    planted: LensDataset, model_layers: tuple[int, ...]
) -> None:
    with pytest.raises(SettingsError, match="model layer 15 is not in the store, which has 0-1"):
        fit_lenses(planted, FitSettings(model_layers=model_layers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_f1": 0.0}, r"target F1 is 0\.0, expected above 0 and at most 1"),
        ({"target_f1": 95}, "target F1 is 95, expected above 0 and at most 1"),
        ({"initial_samples": 0}, "must be 1 or more"),
        ({"increment": 0}, "must be 1 or more"),
        ({"max_iterations": 0}, "must be 1 or more"),
        ({"max_samples": 3}, "max_samples 3 is below initial_samples 5"),
        ({"C": 0.0}, "C and negatives per positive must be above 0"),
        ({"prevalence": 1.0}, "prevalence between 0 and 1"),
        ({"validation": "strict"}, "validation is 'strict', expected advisory, blocking, falloff"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FitSettings(**change)


def test_settings_become_plain_values() -> None:
    values = settings_to_json(FitSettings(model_layers=(3, 4), min_grade=Grade.A))
    assert values["model_layers"] == [3, 4]
    assert values["min_grade"] == "A"
    assert settings_to_json(FitSettings())["model_layers"] is None


def test_a_fit_holds_the_vectors_of_one_model_layer_at_a_time(tmp_path: Path) -> None:
    """So a store may be many times larger than memory."""
    alive: set[int] = set()
    most = [0]

    class Counted(LensDataset):
        def vectors(
            self, model_layer: int, place: NDArray[np.intp] | None = None
        ) -> NDArray[np.float32]:
            X = super().vectors(model_layer, place)
            alive.add(model_layer)
            most[0] = max(most[0], len(alive))
            weakref.finalize(X, alive.discard, model_layer)
            return X

    store = make_planted_store(tmp_path / "s", n_layers=8, model_layers=tuple(range(8)))
    fit_lenses(Counted(store), FitSettings())
    assert most[0] <= 2
    assert not alive
