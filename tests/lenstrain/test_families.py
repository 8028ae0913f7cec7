"""Every family through the whole of adaptive training, on stores in which the directions are
known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept
from lenscache.concepts.prompts import stable_hash
from lenscache.store.store import Store
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.errors import LeakageError, SettingsError
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.adaptive import FitResult, FitSettings, fit_lenses, fit_targets
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.grade import Grade
from lenstrain.pack.tensors import pack_weights
from lenstrain.settings import FamilyName
from tests.lenstrain.conftest import BRANCHES, Planting, make_planted_store, planted_pack

SLOW = ("mlp", "ensemble")
ON_ACTIVATIONS = sorted(name for name, family in FAMILIES.items() if family.n_model_layers)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six model layers, the directions in one of them."""
    path = tmp_path_factory.mktemp("families") / "s"
    return make_planted_store(path, n_layers=6, model_layers=tuple(range(6)))


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture(scope="module", params=ON_ACTIVATIONS)
def fitted(request: pytest.FixtureRequest, dataset: LensDataset) -> tuple[str, FitResult]:
    return request.param, fit_lenses(dataset, FitSettings(family=request.param))


def everything(result: FitResult, family: str) -> bytes:
    """All that a pack keeps of a fit's lenses, bit for bit."""
    tensors = pack_weights([lens.weights for lens in result.lenses], family)
    rest = [dataclasses.replace(lens, weights=None) for lens in result.lenses]  # type: ignore[arg-type]
    return b"".join(tensor.tobytes() for tensor in tensors.values()) + repr(rest).encode()


def inputs_of(lens: FittedLens, dataset: LensDataset) -> NDArray[np.float32]:
    return np.hstack([dataset.vectors(model_layer) for model_layer in lens.model_layers])


def test_every_name_that_settings_take_is_a_family() -> None:
    assert set(get_args(FamilyName)) == {"auto", *FAMILIES}


def test_clear_concepts_get_good_lenses_of_every_family(fitted: tuple[str, FitResult]) -> None:
    family, result = fitted
    assert len(result.lenses) == 12
    assert np.mean([lens.test_f1 for lens in result.lenses]) > 0.85, family
    assert np.mean([lens.ranking.auroc for lens in result.lenses]) > 0.9, family


def test_a_lens_reads_as_many_model_layers_as_its_family_says(
    fitted: tuple[str, FitResult],
) -> None:
    family, result = fitted
    assert {len(lens.model_layers) for lens in result.lenses} == {FAMILIES[family].n_model_layers}


def test_shipped_weights_give_the_judged_logits_on_raw_activations(
    fitted: tuple[str, FitResult], dataset: LensDataset
) -> None:
    """What was graded is what is shipped: threshold and metrics hold for the weights in the
    pack."""
    family, result = fitted
    for lens in result.lenses[:4]:
        logits = lens.weights.decision_function(inputs_of(lens, dataset))
        rows = TaskRows(
            dataset, draw_task(dataset, lens.concept, FitSettings().n_negatives), FitSettings()
        )
        drawn = rows.drawn(TEST)
        values = logits[dataset.split_order][dataset.split_slices[TEST]][drawn.rows]
        recall = float((values[drawn.y] >= lens.threshold).mean())
        assert recall == pytest.approx(lens.cut.metrics.recall, abs=0.05), (family, lens.concept)


@pytest.mark.parametrize("family", ON_ACTIVATIONS)
def test_any_number_of_jobs_gives_the_same_lenses_bit_for_bit(
    family: str, store: Store, dataset: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenstrain.parallel._CHUNK_CONCEPTS", 3)
    settings = FitSettings(family=family, model_layers=(0, 1, 2), max_iterations=2)  # type: ignore[arg-type]
    one, two = (fit_lenses(LensDataset(store), settings, jobs=jobs) for jobs in (1, 3))
    assert everything(one, family) == everything(two, family)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ON_ACTIVATIONS],
)
def test_no_family_finds_a_concept_that_is_not_there(family: str, tmp_path: Path) -> None:
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
    noisy = make_planted_store(
        tmp_path / "s",
        pack=planted_pack(changes=changes),
        planting=Planting(flat=tuple(names)),
        levels=[1],
        n_layers=3,
        model_layers=(0, 1, 2),
    )
    result = fit_lenses(LensDataset(noisy), FitSettings(family=family), concepts=names)  # type: ignore[arg-type]
    assert {lens.verdict.status for lens in result.lenses} == {"provisional"}  # all had a chance
    assert Grade.A not in {lens.verdict.grade for lens in result.lenses}
    assert np.mean([lens.score for lens in result.lenses]) < 0.1
    assert np.mean([lens.ranking.score for lens in result.lenses]) < 0.1


def test_two_hundred_concepts_without_signal_get_not_one_grade_A(tmp_path: Path) -> None:  # noqa: N802
    names = [f"noise-{i}" for i in range(200)]
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
    noisy = make_planted_store(
        tmp_path / "s",
        pack=planted_pack(changes=changes),
        planting=Planting(flat=tuple(names)),
        levels=[1],
    )
    result = fit_lenses(LensDataset(noisy), FitSettings(), concepts=names)
    grades = [lens.verdict.grade for lens in result.lenses]
    assert len(grades) == 200
    assert {lens.verdict.status for lens in result.lenses} == {"provisional"}  # all had a chance
    assert Grade.A not in grades
    assert grades.count(Grade.C) >= 198
    assert not any(lens.graduated and lens.verdict.grade is not Grade.C for lens in result.lenses)


def test_ensemble_reads_the_best_model_layer_of_each_third(dataset: LensDataset) -> None:
    result = fit_lenses(dataset, FitSettings(family="ensemble"))
    for lens in result.lenses:
        first, second, third = lens.model_layers
        assert first in (0, 1)
        assert second in (2, 3)
        assert third in (4, 5)
        assert first == 1  # where the directions are


def test_ensemble_of_too_few_model_layers_is_refused(dataset: LensDataset) -> None:
    with pytest.raises(
        SettingsError, match="ensemble lenses are to read 3 model layers, there are 2 to choose"
    ):
        fit_lenses(dataset, FitSettings(family="ensemble", model_layers=(0, 1)))


# --- schedule and thresholds --------------------------------------------------------------------


def test_no_lens_graduates_before_the_iterations_asked_for(dataset: LensDataset) -> None:
    settings = FitSettings(target_f1=0.5, max_overfit_gap=1.0, model_layers=(1,))
    early = fit_lenses(dataset, settings)
    late = fit_lenses(dataset, dataclasses.replace(settings, min_iterations=2))
    assert {len(lens.trajectory) for lens in early.lenses} == {1}
    assert {len(lens.trajectory) for lens in late.lenses} == {2}
    assert all(lens.graduated for lens in late.lenses)


def test_samples_that_run_out_before_the_iterations_asked_for_are_no_obstacle(
    dataset: LensDataset,
) -> None:
    settings = FitSettings(target_f1=0.5, max_overfit_gap=1.0, model_layers=(1,), min_iterations=40)
    assert all(lens.graduated for lens in fit_lenses(dataset, settings).lenses)


@pytest.mark.parametrize("fpr", [0.02, 0.2])
def test_threshold_lets_through_the_share_of_unrelated_calibration_samples_that_was_asked_for(
    dataset: LensDataset, fpr: float
) -> None:
    # noise: any threshold would be exceeded
    result = fit_lenses(dataset, FitSettings(model_layers=(0,), fpr=fpr))
    for lens in result.lenses:
        logits = lens.weights.decision_function(inputs_of(lens, dataset))
        rows = TaskRows(
            dataset, draw_task(dataset, lens.concept, FitSettings().n_negatives), FitSettings()
        )
        judged = rows.judged(CALIBRATION)
        values = logits[dataset.split_order][dataset.split_slices[CALIBRATION]][judged.rows]
        passed = float((values[~judged.y] >= lens.threshold).mean())
        assert fpr - 0.02 <= passed <= fpr + 0.005  # shipped in float32
    assert np.mean(
        [lens.cut.metrics.false_positive_rate for lens in result.lenses]
    ) == pytest.approx(fpr, abs=0.05)


def test_noise_floor_is_that_of_unrelated_calibration_samples(dataset: LensDataset) -> None:
    for lens in fit_lenses(dataset, FitSettings(model_layers=(1,))).lenses:
        logits = lens.weights.decision_function(inputs_of(lens, dataset))
        rows = TaskRows(
            dataset, draw_task(dataset, lens.concept, FitSettings().n_negatives), FitSettings()
        )
        judged = rows.judged(CALIBRATION)
        values = logits[dataset.split_order][dataset.split_slices[CALIBRATION]][
            judged.rows[~judged.y]
        ]
        assert lens.noise.mean == pytest.approx(float(values.mean()), rel=1e-3, abs=1e-3)
        assert lens.noise.deviation == pytest.approx(float(values.std()), rel=1e-3)


def test_lens_with_too_few_test_samples_does_not_graduate_and_asks_for_more(
    dataset: LensDataset,
) -> None:
    settings = FitSettings(target_f1=0.5, max_overfit_gap=1.0, model_layers=(1,))
    n_test = {
        c: len(draw_task(dataset, c, settings.n_negatives).positives[TEST])
        for c in dataset.concepts
    }
    # above the median: some have as many, some do not
    least = sorted(n_test.values())[len(n_test) // 2] + 1
    result = fit_lenses(dataset, dataclasses.replace(settings, min_test_samples=least))
    assert all(lens.graduated for lens in fit_lenses(dataset, settings).lenses)
    assert {lens.concept for lens in result.lenses if lens.graduated} == {
        c for c, n in n_test.items() if n >= least
    }
    assert set(result.hungry) == {c for c, n in n_test.items() if n < least}


# --- beyond graduation --------------------------------------------------------------------------


def test_going_on_for_the_record_changes_no_lens(dataset: LensDataset) -> None:
    settings = FitSettings(target_f1=0.6, model_layers=(1,))
    recorded = fit_lenses(dataset, settings)
    plain = fit_lenses(dataset, dataclasses.replace(settings, beyond_graduation=False))
    assert {len(lens.beyond) for lens in plain.lenses} == {0}
    for one, other in zip(recorded.lenses, plain.lenses, strict=True):
        assert one.trajectory == other.trajectory
        assert one.ranking == other.ranking


def test_record_goes_on_until_the_strictest_mode_is_content(tmp_path: Path) -> None:
    faint = LensDataset(
        make_planted_store(tmp_path / "s", planting=Planting(strength=2.5, completion_strength=2.0))
    )
    result = fit_lenses(faint, FitSettings(target_f1=0.6, max_overfit_gap=1.0, model_layers=(1,)))
    assert any(lens.beyond for lens in result.lenses)
    for lens in result.lenses:
        if lens.graduated:
            steps = [*lens.trajectory, *lens.beyond]
            is_spent = steps[-1].n_samples == len(
                draw_task(faint, lens.concept, FitSettings().n_negatives).positives[TRAIN]
            )
            assert steps[-1].grade == "A" or is_spent
            assert all(step.grade != "A" or step.test_f1 < 0.6 for step in steps[:-1])


def test_several_targets_share_one_record(dataset: LensDataset) -> None:
    low, high = fit_targets(dataset, FitSettings(model_layers=(1,)), [0.5, 0.99])
    for a, b in zip(low.lenses, high.lenses, strict=True):
        steps = [
            [step._replace(graduated=False) for step in (*lens.trajectory, *lens.beyond)]
            for lens in (a, b)
        ]
        assert steps[0] == steps[1]


# --- what must never happen ---------------------------------------------------------------------


@pytest.mark.parametrize("split", [CALIBRATION, TEST])
def test_a_planted_leak_is_caught(
    dataset: LensDataset, split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose training samples include a held-out one: nothing is fitted."""

    def leaky(dataset: LensDataset, concept: str, n_negatives: Any) -> Task:
        task = draw_task(dataset, concept, n_negatives)
        train = np.concatenate([task.positives[split][:1], task.positives[TRAIN]])
        return dataclasses.replace(task, positives=(train, *task.positives[1:]))

    monkeypatch.setattr("lenstrain.fit.adaptive.draw_task", leaky)
    with pytest.raises(
        LeakageError, match=r"of .* rows to train on are held out for calibration or test"
    ):
        fit_lenses(dataset, FitSettings(model_layers=(1,)))


class Damaged(LensDataset):
    """Some activations of the signal's model layer are not numbers."""

    broken: tuple[str, ...] = ("bird",)
    value: float = np.nan

    def vectors(
        self, model_layer: int, place: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        X = super().vectors(model_layer, place)
        if model_layer == 1:
            for concept in self.broken:
                row = int(self.vectors_of(self.positives(concept)[:1])[0])
                X[row if place is None else place[row], 3] = self.value
        return X


@pytest.mark.parametrize("family", ["linear", "discriminant"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_a_line_for_their_concept_and_the_others_go_on(
    store: Store, value: float, family: FamilyName
) -> None:
    damaged = Damaged(store)
    damaged.value = value
    result = fit_lenses(damaged, FitSettings(family=family, model_layers=(1,)))
    told = (
        "bird: 1 of its samples have activations at model layer 1 that are NaN or infinite: run "
        "`lenscache verify`"
    )
    assert result.skipped["bird"].startswith(told)
    good = [lens for lens in result.lenses if lens.concept not in result.skipped]
    assert len(good) >= 9  # all but those whose definition or relations are that sample, too
    assert all(np.isfinite(lens.ranking.score) for lens in good)
    assert np.mean([lens.ranking.score for lens in good]) > 0.8


@pytest.mark.parametrize("family", ["linear", "discriminant"])
@pytest.mark.parametrize("kind", ["huge", "constant", "duplicates"])
def test_degenerate_activations_end_in_finite_lenses(
    store: Store, kind: str, family: FamilyName
) -> None:
    class Degenerate(LensDataset):
        def vectors(
            self, model_layer: int, place: NDArray[np.intp] | None = None
        ) -> NDArray[np.float32]:
            X = super().vectors(model_layer, place)
            if kind == "huge":
                X[:, 0] = X[:, 0] * 1e30
            elif kind == "constant":
                X[:] = 7.25
            else:
                X[:] = X[:1]
                X[::2] += 1.0
            return X

    result = fit_lenses(Degenerate(store), FitSettings(family=family, model_layers=(1,)))
    assert len(result.lenses) == 12
    for lens in result.lenses:
        assert np.isfinite(lens.threshold)
        assert np.isfinite(lens.ranking.score)
        if kind != "huge":
            assert lens.verdict.grade is Grade.C
