from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SPLITS, TEMPERATURE_RANGE, SamplePlan, plan_samples
from lenscache.concepts.prompts import (
    CONTRAST,
    EXAMPLE,
    KINDS,
    POSITIVE,
    concept_prompts,
    stable_hash,
)
from lenscache.errors import PlanError
from tests.packs import small_pack

TRAIN, CALIBRATION, TEST = range(len(SPLITS))
STARTER = Path(__file__).parents[2] / "data" / "packs" / "starter.json"


@pytest.fixture(scope="module")
def starter() -> ConceptPack:
    return ConceptPack.load(STARTER)


def labels_of(plan: SamplePlan, concept: str) -> list[tuple[str, int]]:
    """The labels of a concept, as (text, role), in the order of the plan."""
    chosen = plan.label_concept == plan.concepts.index(concept)
    rows, roles = plan.label_sample[chosen], plan.label_role[chosen]
    return [(plan.texts[row], int(role)) for row, role in zip(rows, roles, strict=True)]


def splits_of(plan: SamplePlan) -> dict[str, int]:
    return dict(zip(plan.texts, plan.split.tolist(), strict=True))


def pack_of(*concepts: Concept) -> ConceptPack:
    return ConceptPack("test", "1", concepts)


def examples_pack(*examples: str) -> ConceptPack:
    return pack_of(Concept("c", "c", 0, examples=examples))


def numbered(word: str, n: int) -> tuple[str, ...]:
    return tuple(f"{word} number {i}." for i in range(n))


# --- determinism --------------------------------------------------------------------------------


def test_plan_is_the_same_in_every_process() -> None:
    code = (
        "from tests.packs import small_pack; from lenscache.concepts.plan import plan_samples; "
        "print(plan_samples(small_pack(), seed=3).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert digests == {plan_samples(small_pack(), seed=3).digest}


def test_stable_hash_is_pinned() -> None:
    """Stores on disk depend on it: a change of this value makes every store unusable."""
    assert stable_hash("temperature", 0, "A text.") == 13550896006987724678


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_stable_hash_tells_parts_apart_however_they_are_cut(a: list[str], b: list[str]) -> None:
    assert (stable_hash(*a) == stable_hash(*b)) == (a == b)


def test_seed_changes_order_and_sampling() -> None:
    a, b = plan_samples(small_pack(), seed=0), plan_samples(small_pack(), seed=1)
    assert set(a.texts) == set(b.texts)
    assert a.texts != b.texts
    assert set(a.sampling_seed.tolist()).isdisjoint(b.sampling_seed.tolist())


def test_digest_changes_with_every_column() -> None:
    plan = plan_samples(small_pack())
    changes: list[dict[str, Any]] = [
        {"texts": (*plan.texts[:-1], "other")},
        {"n_targets": plan.n_targets - 1},
    ]
    for name in (
        "kind",
        "split",
        "sampling_seed",
        "temperature",
        "label_sample",
        "label_concept",
        "label_role",
    ):
        column: NDArray[Any] = getattr(plan, name).copy()
        column[-1] += 1
        changes.append({name: column})
    digests = {dataclasses.replace(plan, **change).digest for change in changes}
    assert len(digests | {plan.digest}) == len(changes) + 1


def test_unrelated_concept_at_the_end_of_the_pack_changes_no_row() -> None:
    pack = small_pack()
    new = Concept("music", "music", 0, examples=numbered("Strings over the valley", 8))
    grown = ConceptPack("small", "1", (*pack.concepts, new))
    before, after = plan_samples(pack), plan_samples(grown)
    rows = {text: i for i, text in enumerate(after.texts)}
    moved = [rows[text] for text in before.texts]
    for name in ("split", "kind", "sampling_seed", "temperature"):
        np.testing.assert_array_equal(getattr(after, name)[moved], getattr(before, name))


def test_unrelated_concept_keeps_the_nested_order_of_the_others() -> None:
    pack = small_pack()
    grown = ConceptPack(
        "small",
        "1",
        (*pack.concepts, Concept("music", "music", 0, examples=numbered("Strings", 8))),
    )
    for concept in pack.concepts:
        assert labels_of(plan_samples(grown), concept.id) == labels_of(
            plan_samples(pack), concept.id
        )


def test_order_of_a_concepts_examples_does_not_matter() -> None:
    texts = numbered("Bells rang", 10)
    a, b = plan_samples(examples_pack(*texts)), plan_samples(examples_pack(*reversed(texts)))
    assert labels_of(a, "c") == labels_of(b, "c")
    assert splits_of(a) == splits_of(b)


# --- texts and labels ---------------------------------------------------------------------------


def test_each_text_is_one_row(starter: ConceptPack) -> None:
    texts = plan_samples(starter).texts
    assert len(texts) == len(set(texts))


def test_labels_point_at_the_texts_of_their_concept(starter: ConceptPack) -> None:
    plan = plan_samples(starter)
    for concept in starter.concepts:
        expected = {(p.text, p.role) for p in concept_prompts(starter, concept)}
        found = labels_of(plan, concept.id)
        assert {label for label in found if label in expected} == expected
        assert len(found) == len(expected)


def test_kinds_match_the_texts() -> None:
    pack = small_pack()
    plan = plan_samples(pack)
    examples = {text for concept in pack.concepts for text in concept.examples}
    contrasts = {text for concept in pack.concepts for text in concept.contrasts}
    for text, kind in zip(plan.texts, plan.kind, strict=True):
        assert (KINDS[kind] == "example") == (text in examples)
        assert (KINDS[kind] == "contrast") == (text in contrasts)


def test_text_of_two_concepts_is_one_row_with_two_labels() -> None:
    shared = "Ducks on the pond."
    pack = pack_of(
        Concept("bird", "bird", 0, examples=(shared, *numbered("Wings", 5))),
        Concept("water", "water", 0, examples=(*numbered("Waves", 5), shared)),
    )
    plan = plan_samples(pack)
    row = plan.texts.index(shared)
    assert plan.texts.count(shared) == 1
    assert [plan.concepts[c] for c in plan.label_concept[plan.label_sample == row]] == [
        "bird",
        "water",
    ]


def test_text_can_be_an_example_of_one_concept_and_a_contrast_of_another() -> None:
    shared = "The bank of the river was muddy."
    pack = pack_of(
        Concept("river", "river bed", 0, examples=(shared, *numbered("Flow", 5))),
        Concept("bank", "bank", 0, examples=numbered("Loans", 5), contrasts=(shared,)),
    )
    plan = plan_samples(pack)
    assert (shared, POSITIVE) in labels_of(plan, "river")
    assert (shared, CONTRAST) in labels_of(plan, "bank")


def test_parent_and_child_share_their_relation_prompt() -> None:
    plan = plan_samples(small_pack())
    relation = 'The idea of "bird" falls under the broader idea of "nature".'
    assert (relation, POSITIVE) in labels_of(plan, "bird")
    assert (relation, POSITIVE) in labels_of(plan, "nature")


def test_concepts_beside_the_level_keep_their_labels() -> None:
    plan = plan_samples(small_pack(), [1])
    assert plan.concepts[: plan.n_targets] == ("bird", "fish", "tree", "boat", "oven")
    assert set(plan.concepts[plan.n_targets :]) == {"nature", "craft"}
    assert labels_of(plan, "craft")


def test_contrasts_are_never_positives() -> None:
    pack = small_pack()
    for concept in pack.concepts:
        roles = dict(labels_of(plan_samples(pack), concept.id))
        assert all(roles[text] == CONTRAST for text in concept.contrasts)


def test_only_examples_leave_the_name_out(starter: ConceptPack) -> None:
    for concept in starter.concepts:
        for prompt in concept_prompts(starter, concept):
            assert concept.is_named_in(prompt.text) == (prompt.kind != EXAMPLE), prompt.text


def test_definition_is_left_out_where_the_pack_has_none() -> None:
    texts = [prompt.text for prompt in concept_prompts(examples_pack("One."), Concept("c", "c", 0))]
    assert not any(text.startswith("C: ") for text in texts)


# --- nested order -------------------------------------------------------------------------------


def test_any_five_first_positives_mix_examples_and_named_prompts(starter: ConceptPack) -> None:
    for concept in starter.concepts:
        kinds = [p.kind == EXAMPLE for p in concept_prompts(starter, concept) if p.role == POSITIVE]
        assert 0 < sum(kinds[:5]) < 5, concept.id


def test_every_prefix_has_the_proportions_of_the_whole(starter: ConceptPack) -> None:
    for concept in starter.concepts:
        is_example = np.array(
            [prompt.kind == EXAMPLE for prompt in concept_prompts(starter, concept)]
        )
        expected = is_example.mean() * np.arange(1, len(is_example) + 1)
        assert np.abs(np.cumsum(is_example) - expected).max() <= 1.5, concept.id


def test_labels_stand_in_the_nested_order_of_the_prompts() -> None:
    pack = small_pack()
    expected = [(prompt.text, prompt.role) for prompt in concept_prompts(pack, pack["bird"])]
    assert labels_of(plan_samples(pack), "bird") == expected


# --- splits -------------------------------------------------------------------------------------


def test_splits_have_their_shares(starter: ConceptPack) -> None:
    split = plan_samples(starter).split
    shares = np.bincount(split, minlength=3) / len(split)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.06)


def test_shares_are_exact_for_a_group_of_a_hundred() -> None:
    plan = plan_samples(examples_pack(*numbered("Bells rang", 100)))
    counts = np.bincount(plan.split[plan.kind == EXAMPLE], minlength=3)
    assert counts.tolist() == [60, 20, 20]


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_few_examples_still_reach_the_test_split(n: int) -> None:
    plan = plan_samples(examples_pack(*numbered("Bells rang", n)))
    counts = np.bincount(plan.split[plan.kind == EXAMPLE], minlength=3)
    assert counts[TEST] >= 1
    assert counts[TRAIN] >= 1


def test_every_concept_of_the_starter_has_an_unnamed_example_in_every_split(
    starter: ConceptPack,
) -> None:
    split_of = splits_of(plan_samples(starter))
    for concept in starter.concepts:
        assert {split_of[text] for text in concept.examples} == {TRAIN, CALIBRATION, TEST}, (
            concept.id
        )


def test_every_concept_of_the_starter_has_a_contrast_to_train_on(starter: ConceptPack) -> None:
    split_of = splits_of(plan_samples(starter))
    for concept in starter.concepts:
        assert TRAIN in {split_of[text] for text in concept.contrasts}, concept.id


@pytest.mark.parametrize(
    "other",
    [
        "BELLS RANG, NUMBER 4",
        "bells  rang number 4!",
        "“Bells rang – number 4”",
        "Ｂells rang number 4.",
    ],
)
def test_texts_that_differ_in_case_and_punctuation_share_a_split(other: str) -> None:
    pack = pack_of(
        Concept("a", "a", 0, examples=numbered("Bells rang", 12)),
        Concept("b", "b", 0, examples=(*numbered("Horns blew", 7), other)),
    )
    split_of = splits_of(plan_samples(pack))
    assert split_of[other] == split_of["Bells rang number 4."]


def test_near_copies_of_every_text_never_cross_a_split() -> None:
    texts = numbered("Bells rang", 12)
    pack = examples_pack(*texts, *(text.upper() for text in texts))
    split_of = splits_of(plan_samples(pack))
    assert [text for text in texts if split_of[text] != split_of[text.upper()]] == []


def test_texts_without_a_letter_are_told_apart() -> None:
    split_of = splits_of(plan_samples(examples_pack("?!", "...", "—", "!!", "??", "~")))
    assert {TRAIN, TEST} <= {split_of[text] for text in ("?!", "...", "—", "!!", "??", "~")}


def test_split_does_not_depend_on_the_levels_planned(starter: ConceptPack) -> None:
    whole = splits_of(plan_samples(starter))
    for level in starter.levels:
        part = splits_of(plan_samples(starter, [level]))
        assert part == {text: whole[text] for text in part}


def test_text_shared_by_two_levels_is_in_the_same_split_of_both(starter: ConceptPack) -> None:
    parts = [splits_of(plan_samples(starter, [level])) for level in starter.levels]
    shared = [
        (a, b, text) for a, b in itertools.combinations(parts, 2) for text in a.keys() & b.keys()
    ]
    assert len(shared) > 20
    assert [text for a, b, text in shared if a[text] != b[text]] == []


def test_fractions_set_the_shares() -> None:
    plan = plan_samples(examples_pack(*numbered("Bells rang", 100)), fractions=(0.5, 0.1, 0.4))
    assert np.bincount(plan.split[plan.kind == EXAMPLE], minlength=3).tolist() == [50, 10, 40]


def test_fraction_of_zero_leaves_the_split_empty() -> None:
    plan = plan_samples(examples_pack(*numbered("Bells rang", 50)), fractions=(0.8, 0.0, 0.2))
    assert CALIBRATION not in plan.split


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.6, 0.2, 0.3), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match="expected three shares that sum to 1"):
        plan_samples(small_pack(), fractions=fractions)


# --- what is planned ----------------------------------------------------------------------------


def test_levels_select_the_concepts() -> None:
    assert plan_samples(small_pack(), [0]).n_targets == 2
    assert plan_samples(small_pack(), [1]).n_targets == 5
    assert plan_samples(small_pack()).n_targets == 7


def test_level_named_twice_is_planned_once() -> None:
    assert plan_samples(small_pack(), [1, 1]).digest == plan_samples(small_pack(), [1]).digest


def test_unknown_level_names_the_levels_and_the_other_option() -> None:
    with pytest.raises(
        PlanError,
        match=r"level 5 is not in pack .* \[0, 1\]; levels selects .* model_layers",
    ):
        plan_samples(small_pack(), [5])


def test_limit_keeps_the_first_concepts_of_each_level() -> None:
    plan = plan_samples(small_pack(), limit=1)
    assert plan.concepts[: plan.n_targets] == ("nature", "bird")


def test_limited_plan_is_part_of_the_whole_plan() -> None:
    whole, part = plan_samples(small_pack()), plan_samples(small_pack(), limit=1)
    assert splits_of(part).items() <= splits_of(whole).items()
    assert labels_of(part, "bird") == labels_of(whole, "bird")


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(PlanError, match="limit is 0, expected 1 or more concepts"):
        plan_samples(small_pack(), limit=0)


# --- sampling -----------------------------------------------------------------------------------


def test_temperatures_fill_their_range_evenly(starter: ConceptPack) -> None:
    temperature = plan_samples(starter).temperature
    low, high = TEMPERATURE_RANGE
    assert temperature.min() >= np.float32(low)
    assert temperature.max() <= np.float32(high)
    counts, _ = np.histogram(temperature, bins=4, range=TEMPERATURE_RANGE)
    assert counts.min() > 0.8 * len(temperature) / 4


def test_temperature_says_nothing_about_any_label_kind_or_row(starter: ConceptPack) -> None:
    plan = plan_samples(starter)
    positive = np.zeros((len(plan.concepts), len(plan)), np.bool_)
    positive[plan.label_concept, plan.label_sample] = plan.label_role == POSITIVE
    columns = [*positive, plan.kind == EXAMPLE, plan.split == TEST, np.arange(len(plan))]
    correlations = np.array([np.corrcoef(column, plan.temperature)[0, 1] for column in columns])
    assert np.abs(correlations).max() < 4 / np.sqrt(len(plan))


def test_sampling_seed_depends_on_the_text_alone(starter: ConceptPack) -> None:
    whole = plan_samples(starter)
    part = plan_samples(starter, [1])
    seeds = dict(zip(whole.texts, whole.sampling_seed.tolist(), strict=True))
    assert [seeds[text] for text in part.texts] == part.sampling_seed.tolist()
    assert len(set(seeds.values())) == len(whole)


def test_unicode_of_every_sort_can_be_planned() -> None:
    plan = plan_samples(examples_pack("naïve ☂", "ⅷ", "\ud800 lone", "日本語。", "a\u0301"))
    assert json.loads(json.dumps(plan.texts)) == list(plan.texts)
    assert len(plan.digest) == 16


# --- splits that the source gives ---------------------------------------------------------------


def labelled_pack(n: int = 10, name: str = "p") -> ConceptPack:
    """A binary set of `n` positives and negatives to train on, and as many to test."""
    texts = {
        (role, split): tuple(f"{name} {role} {split} {i}" for i in range(n))
        for role in ("yes", "no")
        for split in ("train", "test")
    }
    concept = Concept(
        "c",
        "c",
        0,
        examples=texts["yes", "train"] + texts["yes", "test"],
        negatives=texts["no", "train"] + texts["no", "test"],
    )
    splits = {split: texts["yes", split] + texts["no", split] for split in ("train", "test")}
    return ConceptPack("labelled", "1", (concept,), prompts="examples", splits=splits)


@pytest.mark.parametrize("n", [4, 10, 40])
@pytest.mark.parametrize("number", range(5))
def test_calibration_texts_are_a_quarter_of_the_given_training_texts_of_either_class(
    n: int, number: int
) -> None:
    plan = plan_samples(labelled_pack(n, str(number)))
    found = Counter(
        (text.split()[1], text.split()[2], SPLITS[s])
        for text, s in zip(plan.texts, plan.split, strict=True)
    )
    for role in ("yes", "no"):
        assert found[role, "test", "test"] == n
        assert found[role, "train", "calibration"] == n // 4 + (n % 4 > 1)
        assert found[role, "train", "train"] + found[role, "train", "calibration"] == n


def test_which_training_texts_calibrate_depends_on_the_seed() -> None:
    def chosen(seed: int) -> set[str]:
        plan = plan_samples(labelled_pack(40), seed=seed)
        return {
            text
            for text, split in zip(plan.texts, plan.split, strict=True)
            if SPLITS[split] == "calibration"
        }

    assert chosen(0) == chosen(0) != chosen(1)
