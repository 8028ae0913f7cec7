from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SPLITS, SamplePlan, plan_samples
from lenscache.concepts.prompts import CONTRAST, KINDS, NEGATIVE, POSITIVE
from lenscache.errors import StoreIncompleteError
from lenscache.store.store import Store, create_store, open_store
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset, Rows, open_dataset
from lenstrain.data.tasks import HELD_OUT_NEGATIVES, Task, draw_task
from lenstrain.errors import SettingsError, TooFewSamplesError
from tests.lenstrain.conftest import (
    BRANCHES,
    HIDDEN,
    LEAVES,
    SIGNAL_LAYER,
    Planting,
    has_completion,
    make_planted_store,
    plant_round,
    planted_activations,
    planted_header,
    planted_pack,
)

CONCEPTS = (*BRANCHES, *(leaf for leaves in LEAVES for leaf in leaves))


def many(n_positives: int) -> int:
    """More negatives than there are."""
    return 10_000


def ten_times(n_positives: int) -> int:
    return 10 * n_positives


@cache
def _texts_by_label(path: str) -> dict[tuple[str, int], set[str]]:
    """What each concept is labelled with, read from the rounds themselves."""
    found: dict[tuple[str, int], set[str]] = {}
    for entry in open_store(path).rounds():
        texts, labels = entry.samples().text, entry.labels()
        for sample, number, role in zip(*labels, strict=True):
            found.setdefault((entry.concepts[number], int(role)), set()).add(str(texts[sample]))
    return found


def texts_of(dataset: LensDataset, concept: str, role: int = POSITIVE) -> set[str]:
    return _texts_by_label(dataset.store.path)[concept, role]


def text_set(dataset: LensDataset, rows: Rows) -> set[str]:
    return {dataset.texts[row] for row in rows}


def all_rows(parts: tuple[Rows, ...]) -> Rows:
    return np.concatenate(parts)


def crossing_texts(dataset: LensDataset, task: Task) -> set[str]:
    """Texts, case and punctuation aside, that a task has in more than one split."""

    def plain(split: int) -> set[str]:
        rows = np.concatenate([task.positives[split], task.negatives[split]])
        return {"".join(filter(str.isalnum, dataset.texts[row].casefold())) for row in rows}

    train, calibration, test = map(plain, (TRAIN, CALIBRATION, TEST))
    return (train & calibration) | (train & test) | (calibration & test)


# --- who is positive, who is negative -----------------------------------------------------------


@pytest.mark.parametrize("concept", CONCEPTS)
def test_positives_are_the_labelled_texts(planted: LensDataset, concept: str) -> None:
    task = draw_task(planted, concept, ten_times)
    assert text_set(planted, all_rows(task.positives)) == texts_of(planted, concept)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_own_positives_are_never_negatives(planted: LensDataset, concept: str) -> None:
    task = draw_task(planted, concept, many)
    assert texts_of(planted, concept).isdisjoint(text_set(planted, all_rows(task.negatives)))


@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize("role", [POSITIVE, CONTRAST])
def test_samples_of_ancestors_and_descendants_are_never_negatives(
    planted: LensDataset, concept: str, role: int
) -> None:
    negatives = text_set(planted, all_rows(draw_task(planted, concept, many).negatives))
    for relative in planted.hierarchy.family(concept) - {concept}:
        assert texts_of(planted, relative, role).isdisjoint(negatives), relative


def test_grandchildren_are_never_negatives(tmp_path: Path) -> None:
    owl = Concept(
        "owl",
        "owl",
        2,
        parents=("bird",),
        examples=tuple(f"Hoots at night {i}." for i in range(20)),
    )
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(changes=[owl])))
    negatives = text_set(dataset, all_rows(draw_task(dataset, "nature", many).negatives))
    assert texts_of(dataset, "owl")
    assert texts_of(dataset, "owl").isdisjoint(negatives)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_related_rows_are_all_labelled_rows_of_the_family_but_the_positives(
    planted: LensDataset, concept: str
) -> None:
    task = draw_task(planted, concept, ten_times)
    expected = set[str]()
    for relative in planted.hierarchy.family(concept) - {concept}:
        expected |= texts_of(planted, relative) | texts_of(planted, relative, CONTRAST)
    assert text_set(planted, task.related) == expected - texts_of(planted, concept)


def test_text_labelled_for_a_sibling_too_is_a_positive_and_no_negative(tmp_path: Path) -> None:
    shared = "Feathers and fins in one picture."
    pack = planted_pack()
    changes = [
        dataclasses.replace(pack[c], examples=(shared, *pack[c].examples)) for c in ("bird", "fish")
    ]
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(changes=changes)))
    for concept in ("bird", "fish"):
        task = draw_task(dataset, concept, many)
        assert shared in text_set(dataset, all_rows(task.positives))
        assert shared not in text_set(dataset, all_rows(task.negatives))


def test_unrelated_samples_are_all_available_as_negatives(planted: LensDataset) -> None:
    negatives = text_set(planted, all_rows(draw_task(planted, "bird", many).negatives))
    for other in set(CONCEPTS) - planted.hierarchy.family("bird"):
        assert texts_of(planted, other) - texts_of(planted, "nature") <= negatives, other


# --- shares and order ---------------------------------------------------------------------------


def leaf_of(dataset: LensDataset, row: int) -> str:
    """The concept a row belongs to; the most special one where there are two."""
    return next(c for c in reversed(CONCEPTS) if dataset.texts[row] in texts_of(dataset, c))


@pytest.mark.parametrize("concept", ["bird", "vote", "loom"])
def test_negatives_are_siblings_contrasts_and_other_branches(
    planted: LensDataset, concept: str
) -> None:
    negatives = draw_task(planted, concept, lambda n: 20).negatives[TRAIN]
    contrasts = text_set(planted, negatives) & texts_of(planted, concept, CONTRAST)
    rest = [leaf_of(planted, row) for row in negatives if planted.texts[row] not in contrasts]
    siblings = sum(other in planted.hierarchy.siblings(concept) for other in rest)
    assert len(contrasts) / 20 <= 0.2
    assert len(contrasts) >= 2
    assert 0.25 <= siblings / 20 <= 0.40


def test_samples_of_confusable_concepts_are_negatives_as_those_of_siblings_are(
    tmp_path: Path,
) -> None:
    bird = dataclasses.replace(planted_pack()["bird"], confusable_with=("loom",))
    sees = []
    for changes in ([], [bird]):
        path = tmp_path / str(len(changes))
        dataset = LensDataset(make_planted_store(path, pack=planted_pack(changes=changes)))
        negatives = draw_task(dataset, "bird", lambda n: 40).negatives[TRAIN]
        sees.append(len(text_set(dataset, negatives) & texts_of(dataset, "loom")))
    assert sees[1] >= sees[0] + 2


def test_other_branches_are_drawn_evenly(planted: LensDataset) -> None:
    negatives = draw_task(planted, "bird", lambda n: 40).negatives[TRAIN]
    branches = [planted.hierarchy.branches(leaf_of(planted, row)) for row in negatives[20:]]
    counts = [sum(b == {branch} for b in branches) for branch in ("society", "craft")]
    assert min(counts) > 0
    assert abs(counts[0] - counts[1]) <= 3


@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize("split", range(3))
def test_contrasts_are_at_most_a_fifth_of_any_prefix(
    planted: LensDataset, concept: str, split: int
) -> None:
    negatives = draw_task(planted, concept, lambda n: 40).negatives[split]
    own = texts_of(planted, concept, CONTRAST)
    counts = np.cumsum([planted.texts[row] in own for row in negatives])
    assert (counts <= np.ceil(0.2 * np.arange(1, len(counts) + 1))).all()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_negatives_are_nested(planted: LensDataset, concept: str) -> None:
    few, more = (draw_task(planted, concept, lambda _, n=n: n).negatives[TRAIN] for n in (15, 60))  # type: ignore[misc]
    assert len(few) == 15
    np.testing.assert_array_equal(few, more[:15])


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_row_is_drawn_twice(planted: LensDataset, concept: str) -> None:
    task = draw_task(planted, concept, many)
    rows = np.concatenate([all_rows(task.positives), all_rows(task.negatives)])
    assert len(np.unique(rows)) == len(rows)


def test_positives_stand_in_the_nested_order_of_the_plan(planted: LensDataset) -> None:
    plan = plan_samples(planted_pack(), [1])
    labels = (plan.label_concept == plan.concepts.index("bird")) & (plan.label_role == POSITIVE)
    ordered = [plan.texts[row] for row in plan.label_sample[labels] if plan.split[row] == TRAIN]
    positives = draw_task(planted, "bird", ten_times).positives[TRAIN]
    assert [planted.texts[row] for row in positives] == ordered


def test_negatives_differ_between_seeds_and_not_between_runs(planted_store: Store) -> None:
    drawn = [
        draw_task(LensDataset(planted_store, seed=seed), "bird", ten_times).negatives[TRAIN]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].tolist() != drawn[2].tolist()


@pytest.mark.parametrize("least", [1, 30, HELD_OUT_NEGATIVES])
def test_negatives_are_as_many_as_asked_for_and_in_held_out_splits_enough_to_cut_by(
    planted: LensDataset, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenstrain.data.tasks.HELD_OUT_NEGATIVES", least)
    task, every = draw_task(planted, "bird", lambda n: 2 * n), draw_task(planted, "bird", many)
    asked = [2 * len(rows) for rows in task.positives]
    there = [len(rows) for rows in every.negatives]
    assert [len(rows) for rows in task.negatives] == [
        asked[TRAIN],
        min(max(asked[CALIBRATION], least), there[CALIBRATION]),
        min(max(asked[TEST], least), there[TEST]),
    ]
    assert asked[TRAIN] < there[TRAIN]
    assert max(asked[CALIBRATION], asked[TEST]) < 30 < min(there[CALIBRATION], there[TEST])
    for some, all_of_them in zip(task.negatives, every.negatives, strict=True):
        np.testing.assert_array_equal(some, all_of_them[: len(some)])


def test_held_out_splits_draw_three_hundred_negatives() -> None:
    assert HELD_OUT_NEGATIVES == 300


# --- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_row_is_in_the_split_of_its_list(planted: LensDataset, concept: str) -> None:
    task = draw_task(planted, concept, many)
    for split in range(len(SPLITS)):
        rows = np.concatenate([task.positives[split], task.negatives[split]])
        assert (planted.split[rows] == split).all()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_text_of_a_task_crosses_a_split(planted: LensDataset, concept: str) -> None:
    assert crossing_texts(planted, draw_task(planted, concept, many)) == set()


def test_planted_leak_is_seen_by_the_check_above(fresh: LensDataset) -> None:
    test_row = int(np.flatnonzero(fresh.split == TEST)[0])
    train_row = int(draw_task(fresh, "bird", ten_times).positives[TRAIN][0])
    fresh.texts[test_row] = fresh.texts[train_row].upper()
    leaks = [crossing_texts(fresh, draw_task(fresh, concept, many)) for concept in CONCEPTS]
    assert any(leaks)


def test_split_is_the_one_in_the_store(planted: LensDataset) -> None:
    stored: dict[str, int] = {}
    for entry in planted.store.rounds():
        samples = entry.samples()
        stored |= dict(zip(map(str, samples.text), samples.split.tolist(), strict=True))
    assert dict(zip(planted.texts, planted.split.tolist(), strict=True)) == stored


def test_both_phases_of_a_sample_are_vectors_of_that_sample(planted: LensDataset) -> None:
    rows = draw_task(planted, "bird", ten_times).positives[TRAIN]
    vectors = planted.vectors_of(rows)
    assert planted.vector_sample[vectors].tolist() == np.repeat(rows, 2).tolist()
    assert planted.vector_phase[vectors].tolist() == [0, 1] * len(rows)


# --- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_layer", [0, 1])
def test_vectors_are_the_activations_of_their_own_text(
    planted: LensDataset, model_layer: int
) -> None:
    """Joined by key, never by position: every vector is compared with what was planted for its
    text."""
    X = planted.vectors(model_layer)
    expected: dict[tuple[str, int], Any] = {}
    for level in (1, 0):
        plan = plan_samples(planted_pack(), [level])
        for number, phase in enumerate(planted.phases):
            values = planted_activations(plan, Planting(), phase, model_layer)
            expected |= {(text, number): row for text, row in zip(plan.texts, values, strict=True)}
    for i in range(len(X)):
        text = planted.texts[planted.vector_sample[i]]
        np.testing.assert_allclose(
            X[i], expected[text, planted.vector_phase[i]], rtol=1e-5, atol=1e-5
        )


def test_rows_without_completion_have_no_completion_vector(tmp_path: Path) -> None:
    planting = Planting(without_completion=0.4)
    dataset = LensDataset(make_planted_store(tmp_path / "s", planting=planting, levels=[1]))
    generated = has_completion(plan_samples(planted_pack(), [1]), planting)
    with_completion = dataset.vector_sample[dataset.vector_phase == 1]
    assert 0 < generated.sum() < len(generated)
    np.testing.assert_array_equal(with_completion, np.flatnonzero(generated))
    assert np.isfinite(dataset.vectors(SIGNAL_LAYER)).all()


def test_vectors_of_a_sample_without_completion_are_its_prompt_alone(tmp_path: Path) -> None:
    dataset = LensDataset(
        make_planted_store(tmp_path / "s", planting=Planting(without_completion=0.4), levels=[1])
    )
    row = int(
        np.setdiff1d(
            np.arange(dataset.n_samples), dataset.vector_sample[dataset.vector_phase == 1]
        )[0]
    )
    vectors = dataset.vectors_of(np.array([row]))
    assert dataset.vector_phase[vectors].tolist() == [0]


def test_prompt_of_one_token_has_no_vector_if_the_first_position_is_left_out(
    tmp_path: Path,
) -> None:
    pack = planted_pack()
    bird = dataclasses.replace(pack["bird"], examples=("Wings!", *pack["bird"].examples))
    store = make_planted_store(
        tmp_path / "s", pack=planted_pack(changes=[bird]), levels=[1], pool_first_position=False
    )
    dataset = LensDataset(store, phase="prompt")
    assert set(range(dataset.n_samples)) - set(dataset.vector_sample.tolist()) == {
        dataset.texts.index("Wings!")
    }


def test_bfloat16_store_reads_as_float32(tmp_path: Path) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", levels=[1], store_dtype="bfloat16"))
    exact = planted_activations(
        plan_samples(planted_pack(), [1]), Planting(), "prompt", SIGNAL_LAYER
    )
    X = dataset.vectors(SIGNAL_LAYER)
    assert X.dtype == np.float32
    np.testing.assert_allclose(X[dataset.vector_phase == 0], exact, rtol=2**-8)


@pytest.mark.parametrize("phase", ["prompt", "completion"])
def test_one_phase_alone_is_one_vector_a_sample(planted_store: Store, phase: Any) -> None:
    dataset = LensDataset(planted_store, phase=phase)
    both = LensDataset(planted_store)
    assert dataset.phases == (phase,)
    assert len(dataset.vector_sample) == dataset.n_samples
    chosen = both.vector_phase == both.phases.index(phase)
    np.testing.assert_array_equal(dataset.vectors(1), both.vectors(1)[chosen])


def test_both_phases_of_a_prompt_store_are_its_prompts(tmp_path: Path) -> None:
    dataset = LensDataset(make_planted_store(tmp_path / "s", levels=[1], mode="prompt"))
    assert dataset.phases == ("prompt",)
    assert dataset.vectors(0).shape == (dataset.n_samples, HIDDEN)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_unnamed_samples_are_the_natural_examples(planted: LensDataset, concept: str) -> None:
    rows = planted.positives(concept)
    unnamed = planted.unnamed(concept, rows)
    assert unnamed.dtype == np.bool_
    assert text_set(planted, rows[unnamed]) == set(planted_pack()[concept].examples)
    assert text_set(planted, rows[~unnamed]) == texts_of(planted, concept) - set(
        planted_pack()[concept].examples
    )
    assert planted.unnamed(concept, rows[:0]).tolist() == []


def test_an_example_that_has_the_name_of_its_concept_names_that_concept_alone(
    tmp_path: Path,
) -> None:
    told = ("Two Birds sat there.", "The bird's nest fell.", "A birdcage stood there.")
    pack = planted_pack()
    changes = [
        dataclasses.replace(pack[c], examples=(*told, *pack[c].examples)) for c in ("bird", "vote")
    ]
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(changes=changes)))
    rows = np.array([dataset.texts.index(text) for text in told])
    assert dataset.unnamed("bird", rows).tolist() == [False, False, True]
    assert dataset.unnamed("vote", rows).tolist() == [True, True, True]


def test_in_a_store_of_examples_alone_all_samples_are_unnamed(tmp_path: Path) -> None:
    """Labelled texts: nobody wrote them around the name of the label."""
    pack = planted_pack()
    bird = dataclasses.replace(pack["bird"], examples=("A bird sat.", *pack["bird"].examples))
    pack = dataclasses.replace(planted_pack(changes=[bird]), prompts="examples")
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=pack))
    rows = dataset.positives("bird")
    assert "A bird sat." in text_set(dataset, rows)
    assert dataset.unnamed("bird", rows).all()


# --- several rounds -----------------------------------------------------------------------------


def test_text_of_two_rounds_is_one_sample(planted: LensDataset) -> None:
    rows = [text for entry in planted.store.rounds() for text in entry.samples().text]
    assert len(rows) > len(set(rows)) == planted.n_samples == len(set(planted.texts))


def test_label_of_another_round_keeps_a_text_out_of_the_negatives(tmp_path: Path) -> None:
    """A round that knows nothing of a label must not make the text a negative."""
    shared = "Feathers and fins in one picture."
    pack = planted_pack()
    changes = [
        dataclasses.replace(pack[c], examples=(shared, *pack[c].examples))
        for c in ("nature", "vote")
    ]
    pack = planted_pack(changes=changes)

    def forget_other_levels(plan: SamplePlan) -> SamplePlan:
        known = plan.label_concept < plan.n_targets
        return dataclasses.replace(
            plan,
            concepts=plan.concepts[: plan.n_targets],
            label_sample=plan.label_sample[known],
            label_concept=plan.label_concept[known],
            label_role=plan.label_role[known],
        )

    dataset = LensDataset(
        make_planted_store(tmp_path / "s", pack=pack, change_plan=forget_other_levels)
    )
    for concept in ("nature", "vote"):
        task = draw_task(dataset, concept, many)
        assert shared in text_set(dataset, all_rows(task.positives))
        assert shared not in text_set(dataset, all_rows(task.negatives))


def test_levels_select_the_concepts_that_are_read(planted_store: Store) -> None:
    assert LensDataset(planted_store, levels=[0]).concepts == BRANCHES
    assert set(LensDataset(planted_store, levels=[1]).concepts) == set(CONCEPTS) - set(BRANCHES)
    assert set(LensDataset(planted_store).concepts) == set(CONCEPTS)


def test_later_round_adds_samples(tmp_path: Path) -> None:
    pack = planted_pack()
    store = make_planted_store(tmp_path / "s", levels=[1])
    before = draw_task(LensDataset(store), "bird", ten_times)
    more = dataclasses.replace(pack["bird"], examples=tuple(f"More wings {i}." for i in range(10)))
    plant_round(store, 1, 1, plan_samples(planted_pack(changes=[more]), [1], limit=1))
    after = draw_task(LensDataset(store), "bird", ten_times)
    assert len(all_rows(after.positives)) == len(all_rows(before.positives)) + 10


# --- explicit negatives -------------------------------------------------------------------------


def with_negatives(plan: SamplePlan, concept: str, rows: list[int]) -> SamplePlan:
    """The plan with labels of role 2 added."""
    number = plan.concepts.index(concept)
    return dataclasses.replace(
        plan,
        label_sample=np.append(plan.label_sample, np.array(rows, np.int32)),
        label_concept=np.append(plan.label_concept, np.full(len(rows), number, np.int32)),
        label_role=np.append(plan.label_role, np.full(len(rows), NEGATIVE, np.uint8)),
    )


def test_negatives_that_the_data_names_come_first(tmp_path: Path) -> None:
    plan = plan_samples(planted_pack(), [1])
    of_loom = plan.label_sample[
        (plan.label_concept == plan.concepts.index("loom")) & (plan.label_role == POSITIVE)
    ]
    rows = [int(row) for row in of_loom if plan.split[row] == TRAIN][:6]
    store = make_planted_store(
        tmp_path / "s", levels=[1], change_plan=lambda p: with_negatives(p, "bird", rows)
    )
    dataset = LensDataset(store)
    negatives = draw_task(dataset, "bird", lambda n: 10).negatives[TRAIN]
    assert {dataset.texts[row] for row in negatives[:6]} == {plan.texts[row] for row in rows}
    assert len(np.unique(negatives)) == 10


def test_given_negatives_alone_suffice_if_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_samples(planted_pack(), [1])
    of_loom = plan.label_sample[
        (plan.label_concept == plan.concepts.index("loom")) & (plan.label_role == POSITIVE)
    ]
    rows = [int(row) for row in of_loom]
    store = make_planted_store(
        tmp_path / "s", levels=[1], change_plan=lambda p: with_negatives(p, "bird", rows)
    )
    dataset, given = LensDataset(store), {plan.texts[row] for row in rows}
    negatives = draw_task(dataset, "bird", lambda n: 3).negatives
    assert text_set(dataset, negatives[TRAIN]) <= given
    assert len(negatives[TRAIN]) == 3
    # In a held-out split more are drawn than were given: those that were given come first.
    for split in (CALIBRATION, TEST):
        there = {plan.texts[row] for row in rows if plan.split[row] == split}
        assert 3 < len(there) < len(negatives[split])
        assert text_set(dataset, negatives[split][: len(there)]) == there
    monkeypatch.setattr("lenstrain.data.tasks.HELD_OUT_NEGATIVES", 3)
    negatives = draw_task(dataset, "bird", lambda n: 3).negatives
    assert text_set(dataset, all_rows(negatives)) <= given
    assert [len(part) for part in negatives] == [3, 3, 3]


def test_kind_indexes_the_kinds_of_the_store(planted: LensDataset) -> None:
    contrasts = {text for concept in planted_pack().concepts for text in concept.contrasts}
    assert text_set(planted, np.flatnonzero(planted.kind == KINDS.index("contrast"))) == contrasts


# --- what cannot be read ------------------------------------------------------------------------


def test_unfinished_round_says_how_far_it_is_and_how_to_go_on(tmp_path: Path) -> None:
    pack = planted_pack()
    store = create_store(tmp_path / "s", planted_header(pack), pack)
    plant_round(store, 1, 0, plan_samples(pack, [1]), n_blocks=2, verified=False)
    with pytest.raises(
        StoreIncompleteError,
        match=r"layer_1/round_0 is not finished, 2 of \d+ blocks .* `lenscache extract` again",
    ):
        LensDataset(store)


def test_round_that_was_not_verified_is_not_read(tmp_path: Path) -> None:
    pack = planted_pack()
    store = create_store(tmp_path / "s", planted_header(pack), pack)
    plant_round(store, 1, 0, plan_samples(pack, [1]), verified=False)
    with pytest.raises(StoreIncompleteError, match="extracted but not verified: run the same"):
        LensDataset(store)


def test_finished_level_is_read_while_another_is_not(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "s", levels=[0])
    plant_round(store, 1, 0, plan_samples(planted_pack(), [1]), n_blocks=1, verified=False)
    assert LensDataset(store, levels=[0]).concepts == BRANCHES
    with pytest.raises(StoreIncompleteError, match="or fit other levels with levels"):
        LensDataset(store, levels=[0, 1])


def test_store_without_a_round_asks_for_extraction(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", planted_header(planted_pack()), planted_pack())
    with pytest.raises(
        StoreIncompleteError, match="holds no samples yet: run `lenscache extract` again"
    ):
        LensDataset(store)


def test_unknown_level_names_those_of_the_store_and_the_other_option(planted_store: Store) -> None:
    with pytest.raises(
        SettingsError, match=r"level 15 is not in the store, .* \[0, 1\]; .* with model_layers"
    ):
        LensDataset(planted_store, levels=[15])


def test_unknown_phase_names_the_choices(planted_store: Store) -> None:
    with pytest.raises(
        SettingsError, match="phase is 'generation', expected one of both, prompt, completion"
    ):
        LensDataset(planted_store, phase="generation")  # type: ignore[arg-type]


def test_phase_that_was_not_extracted_says_how_to_get_it(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "s", levels=[1], mode="prompt")
    with pytest.raises(
        SettingsError, match=r"holds the phase prompt only, completion .* mode='combined'"
    ):
        LensDataset(store, phase="completion")


def test_split_without_a_positive_is_named(fresh: LensDataset) -> None:
    rows = all_rows(draw_task(fresh, "bird", ten_times).positives)
    fresh.split[rows] = TRAIN
    with pytest.raises(
        TooFewSamplesError, match="bird: 0 positive samples in the calibration split, at least 1"
    ):
        draw_task(fresh, "bird", ten_times)


def test_single_positive_in_training_is_too_few(fresh: LensDataset) -> None:
    rows = draw_task(fresh, "bird", ten_times).positives[TRAIN]
    fresh.split[rows[1:]] = TEST
    with pytest.raises(
        TooFewSamplesError,
        match="bird: 1 positive samples in the train split, at least 2 are needed",
    ):
        draw_task(fresh, "bird", ten_times)


def test_concept_alone_in_the_store_has_no_negatives(tmp_path: Path) -> None:
    alone = ConceptPack("alone", "1", (planted_pack(n_contrasts=0)["nature"],))
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=alone))
    with pytest.raises(
        TooFewSamplesError, match="nature: no negative sample in the train split: extract more"
    ):
        draw_task(dataset, "nature", ten_times)


def test_dataset_opens_by_path(planted_store: Store) -> None:
    assert open_dataset(planted_store.path, levels=[0]).concepts == BRANCHES


@pytest.mark.parametrize("split", [TRAIN, CALIBRATION, TEST])
def test_concept_whose_positives_of_a_split_have_no_vector_is_told_by_name(
    split: int, fresh: LensDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are counted as training will see them: a row that generated nothing is no completion
    sample."""
    rows = draw_task(fresh, "bird", ten_times).positives[split]
    fresh.n_completion_tokens[rows] = 0
    completions = LensDataset(fresh.store, phase="completion")
    monkeypatch.setattr(completions, "n_completion_tokens", fresh.n_completion_tokens)
    with pytest.raises(
        TooFewSamplesError, match=f"bird: 0 positive samples in the {SPLITS[split]} split"
    ):
        draw_task(completions, "bird", ten_times)
    assert len(draw_task(completions, "fish", ten_times).positives[split])


def test_negatives_all_have_a_vector(fresh: LensDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    used = draw_task(fresh, "bird", ten_times).negatives[TRAIN]
    fresh.n_completion_tokens[used[:5]] = 0
    completions = LensDataset(fresh.store, phase="completion")
    monkeypatch.setattr(completions, "n_completion_tokens", fresh.n_completion_tokens)
    assert not set(draw_task(completions, "bird", ten_times).negatives[TRAIN]) & set(used[:5])


def test_nested_order_does_not_depend_on_the_other_levels_of_the_store(tmp_path: Path) -> None:
    """A parent's round shares relation prompts with the child; they must not jump to the child's
    front."""
    pack = ConceptPack.load(Path(__file__).parents[2] / "data" / "packs" / "starter.json")
    store = make_planted_store(tmp_path / "s", pack=pack)
    for level in (1, 2):
        alone, together = LensDataset(store, levels=[level]), LensDataset(store)
        for concept in alone.concepts:
            orders = [
                [d.texts[row] for row in d.rows_with_role(concept, POSITIVE)]
                for d in (alone, together)
            ]
            assert orders[0] == orders[1][: len(orders[0])], concept
