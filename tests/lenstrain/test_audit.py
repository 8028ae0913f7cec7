from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SamplePlan, plan_samples
from lenscache.concepts.prompts import KINDS, POSITIVE
from lenscache.store.labelsets import add_label_set
from lenstrain.audit.audit import AuditReport, Factor, audit_dataset
from lenstrain.audit.twins import find_twins, near_pairs, normalise
from lenstrain.data.dataset import TEST, TRAIN, LensDataset
from lenstrain.data.tasks import draw_task
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import Planting, make_planted_store, plant_round, planted_pack

SENTENCE = "A small grey bird with one white feather sang outside my kitchen window"
"""Twelve words, one of which the tests replace."""
PARAPHRASE = SENTENCE.replace("kitchen", "bedroom")


def rows_of(plan: SamplePlan, concept: str, split: int | None = None) -> list[int]:
    """Rows that express a concept."""
    if concept not in plan.concepts:
        return []
    wanted = (plan.label_concept == plan.concepts.index(concept)) & (plan.label_role == POSITIVE)
    rows = np.unique(plan.label_sample[wanted])
    return [int(row) for row in rows if split is None or plan.split[row] == split]


def with_texts(plan: SamplePlan, texts: dict[int, str]) -> SamplePlan:
    return replace(plan, texts=tuple(texts.get(row, text) for row, text in enumerate(plan.texts)))


def in_both_splits(
    here: str, there: str, concept: str = "bird"
) -> Callable[[SamplePlan], SamplePlan]:
    """Give a concept one text among its train positives and another among its test positives."""

    def change(plan: SamplePlan) -> SamplePlan:
        train, test = rows_of(plan, concept, TRAIN), rows_of(plan, concept, TEST)
        return with_texts(plan, {train[0]: here, test[0]: there}) if train and test else plan

    return change


def audited(
    path: Path, change_plan: Callable[[SamplePlan], SamplePlan] = lambda plan: plan
) -> AuditReport:
    return audit_dataset(
        LensDataset(make_planted_store(path / "store.zarr", change_plan=change_plan))
    )


def factor_of(report: AuditReport, name: str) -> Factor:
    return next(factor for factor in report.factors if factor.name == name)


def counts(report: AuditReport) -> dict[tuple[str, str], tuple[int, int]]:
    return {pair.splits: (pair.exact, pair.near) for pair in report.splits}


def test_a_clean_store_has_no_twins(planted: LensDataset) -> None:
    report = audit_dataset(planted)
    assert set(counts(report).values()) == {(0, 0)}
    assert (report.twins, report.findings, len(report.names)) == ((), [], 12)
    assert report.verdict.startswith("no findings")


def test_an_exact_twin_across_splits_is_found_and_named(tmp_path: Path) -> None:
    here, there = "The cat sat on the mat today.", "The CAT sat on the mat, today!"
    report = audited(tmp_path, in_both_splits(here, there))
    assert counts(report)["train", "test"] == (1, 0)
    assert [(twins.concept, twins.exact, twins.near) for twins in report.twins] == [("bird", 1, 0)]
    (pair,) = [pair for pair in report.splits if pair.exact]
    (twin,) = pair.examples
    assert (twin.text_a, twin.split_a, twin.text_b, twin.split_b, twin.similarity) == (
        here,
        "train",
        there,
        "test",
        1,
    )
    assert (
        f"bird: 1 of {report.twins[0].n_test} test positives has a twin among its train positives"
        in (report.findings[0])
    )


def test_a_sentence_with_one_word_replaced_is_a_near_twin(tmp_path: Path) -> None:
    report = audited(tmp_path, in_both_splits(SENTENCE, PARAPHRASE))
    assert [(pair.exact, pair.near) for pair in report.splits] == [(0, 0), (0, 1), (0, 0)]
    assert [(twins.concept, twins.exact, twins.near) for twins in report.twins] == [("bird", 0, 1)]
    (twin,) = report.splits[1].examples
    assert (twin.text_a, twin.split_a, twin.text_b, twin.split_b) == (
        SENTENCE,
        "train",
        PARAPHRASE,
        "test",
    )
    assert 0.75 <= twin.similarity < 1


def test_twins_of_different_concepts_are_counted_but_inflate_no_concept(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        train, test = rows_of(plan, "bird", TRAIN), rows_of(plan, "loom", TEST)
        return with_texts(plan, {train[0]: SENTENCE, test[0]: PARAPHRASE}) if train else plan

    report = audited(tmp_path, change)
    assert (counts(report)["train", "test"], report.twins) == ((0, 1), ())
    assert report.findings == ["1 pair of near twins lies across train and test"]
    assert "no concept's test positives have a twin" in report.verdict


def test_a_near_twin_in_the_same_split_is_no_finding(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        train = rows_of(plan, "bird", TRAIN)
        return with_texts(plan, {train[0]: SENTENCE, train[1]: PARAPHRASE}) if train else plan

    assert audited(tmp_path, change).findings == []


@pytest.mark.parametrize(
    "template",
    [
        "Tell me about {name}.",
        "Here is what everybody ought to know about the {name} before winter comes.",
    ],
)
def test_a_template_about_several_concepts_makes_no_twins(tmp_path: Path, template: str) -> None:
    pack = replace(planted_pack(), templates=(template,))
    dataset = LensDataset(make_planted_store(tmp_path / "store.zarr", pack=pack))
    filled = {
        template.format(name=name): name
        for name in (concept.name for concept in planted_pack().concepts)
    }
    splits = {dataset.split[row] for row, text in enumerate(dataset.texts) if text in filled}
    assert len(splits) > 1
    assert audit_dataset(dataset).findings == []


def test_texts_that_differ_in_a_name_alone_are_one_template_in_a_store_of_two_concepts() -> None:
    filled = [
        normalise(f"Here is what everybody ought to know about the {name} today")
        for name in ("loom", "oven")
    ]
    others = [normalise(f"Line {i} speaks of thing {i * 7} and place {i * 31}") for i in range(60)]
    assert len(near_pairs([*filled, *others]).first) == 1
    assert len(near_pairs([*filled, *others], ["loom", "oven"]).first) == 0


def test_texts_that_differ_in_numbers_are_a_template_if_short_and_copies_if_long() -> None:
    others = [normalise(f"Line {i} speaks of thing {i * 7} and place {i * 31}") for i in range(60)]
    long = " ".join(f"word{i}" for i in range(60))
    short = [
        "the oak in yard 3 has lost most of its leaves",
        "the oak in yard 4 has lost most of its leaves",
    ]
    assert len(near_pairs([*short, *others]).first) == 0
    assert len(near_pairs([short[0], short[1].replace("4", "four"), *others]).first) == 1
    assert len(near_pairs([f"{long} 3", f"{long} 4", *others]).first) == 1


def test_a_template_whose_slot_is_no_concept_is_known_by_how_many_texts_share_it() -> None:
    filled = [
        normalise(f"Please write me a long and funny story about the village of {i:x}x")
        for i in range(100)
    ]
    others = [
        normalise(f"Line a{i} speaks of thing b{i * 7} and place c{i * 31}") for i in range(400)
    ]
    assert len(near_pairs([*filled[:2], *others]).first) == 1
    assert len(near_pairs([*filled, *others]).first) == 0


def test_scripts_without_spaces_are_compared_by_character() -> None:
    here = normalise("昨日の午後、私は駅前の小さな喫茶店で友達と会った。")
    there = here.replace("友 達", "先 生")
    assert here != there
    pairs = near_pairs([here, "something else", there, *(f"line {i}" for i in range(50))])
    assert [*zip(pairs.first, pairs.second, strict=True)] == [(0, 2)]


def test_texts_without_a_letter_are_compared_as_they_are() -> None:
    assert normalise("?!") != normalise("!!") == "!!"
    assert len(near_pairs(["?!", "!!", "?"]).first) == 0


def test_a_text_sampled_again_in_its_split_is_no_twin_and_in_another_split_it_is(
    tmp_path: Path,
) -> None:
    pack = planted_pack()
    store = make_planted_store(tmp_path / "store.zarr", pack=pack, levels=[1])
    plan = plan_samples(pack, [1])
    plant_round(store, 1, 1, plan, sampling="again")
    dataset = LensDataset(store)
    assert dataset.n_samples == 2 * len(plan)
    assert [(pair.exact, pair.near) for pair in audit_dataset(dataset).splits] == [(0, 0)] * 3
    row = rows_of(plan, "bird", TRAIN)[0]
    dataset.split[len(plan) + row] = TEST
    report = audit_dataset(dataset)
    assert counts(report)["train", "test"] == (1, 0)
    assert "bird" in {twins.concept for twins in report.twins}


def test_the_twins_of_a_concept_are_counted_against_its_own_train_positives(
    planted: LensDataset,
) -> None:
    task = draw_task(planted, "bird", FitSettings().n_negatives)
    leaky = replace(task, positives=(task.positives[TEST], *task.positives[1:]))
    _, twins = find_twins(planted, [leaky, draw_task(planted, "fish", FitSettings().n_negatives)])
    n_test = len(task.positives[TEST])
    assert [(found.concept, found.exact, found.near, found.n_test) for found in twins] == [
        ("bird", n_test, 0, n_test)
    ]


@pytest.mark.parametrize(
    ("concept", "sign", "words"), [("bird", 1, "longer"), ("fish", -1, "shorter")]
)
def test_a_length_confound_is_flagged_with_its_sign(
    tmp_path: Path, concept: str, sign: int, words: str
) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        rows = rows_of(plan, concept)
        return with_texts(
            plan, {row: f"It {row}" + " and on" * (20 if sign > 0 else 0) for row in rows}
        )

    (found,) = factor_of(audited(tmp_path, change), "prompt length").flagged
    assert (found.concept, np.sign(found.r)) == (concept, sign)
    assert abs(found.r) > 0.3


def test_the_finding_of_a_confound_names_concept_factor_r_and_n(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        return with_texts(
            plan, {row: f"It {row}" + " and on" * 20 for row in rows_of(plan, "bird")}
        )

    report = audited(tmp_path, change)
    (found,) = factor_of(report, "prompt length").flagged
    line = (
        f"bird: its positives are longer than its negatives (prompt length, r = {found.r:+.2f}, n "
        f"= {found.n})"
    )
    assert line in report.findings
    assert "may be told by prompt length" in report.verdict


def test_a_completion_length_confound_is_flagged(fresh: LensDataset) -> None:
    positives = np.concatenate(draw_task(fresh, "bird", FitSettings().n_negatives).positives)
    fresh.n_completion_tokens[:] = 8
    fresh.n_completion_tokens[positives] = 3
    flagged = factor_of(audit_dataset(fresh), "completion length").flagged
    assert flagged[0].concept == "bird"
    assert flagged[0].r < -0.9


def test_a_temperature_confound_is_flagged(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        temperature = plan.temperature.copy()
        temperature[rows_of(plan, "bird")] += 0.5
        return replace(plan, temperature=temperature)

    flagged = factor_of(audited(tmp_path, change), "temperature").flagged
    assert flagged[0].concept == "bird"
    assert flagged[0].r > 0.3


def test_a_correlation_beyond_chance_but_small_is_not_flagged(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        temperature = plan.temperature.copy()
        temperature[rows_of(plan, "nature")] += 0.2
        return replace(plan, temperature=temperature)

    factor = factor_of(audited(tmp_path, change), "temperature")
    assert factor.worst is not None
    assert (factor.worst.concept, factor.flagged) == ("nature", ())
    assert factor.worst.p < 0.05 / 48
    assert 0.2 < factor.worst.r < 0.3


def test_a_kind_confound_is_flagged(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        kind = plan.kind.copy()
        kind[rows_of(plan, "bird")] = KINDS.index("template")
        return replace(plan, kind=kind)

    (found, *_) = factor_of(audited(tmp_path, change), "prompt kind").flagged
    assert (found.concept, found.r > 0.8) == ("bird", True)


def test_contrasts_which_are_negatives_by_design_are_no_kind_confound(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "store.zarr", pack=planted_pack(n_contrasts=60))
    kind = factor_of(audit_dataset(LensDataset(store)), "prompt kind")
    assert kind.mean_abs_r is not None
    assert kind.by_chance is not None
    assert kind.mean_abs_r < kind.by_chance


def labelled(
    path: Path, classes: dict[str, list[str]], planting: Planting | None = None
) -> LensDataset:
    """A store with a label set of its texts."""
    store = make_planted_store(path / "store.zarr", planting=planting)
    concepts = tuple(
        Concept(name, name, 0, "", examples=tuple(texts)) for name, texts in classes.items()
    )
    add_label_set(store, "ours", ConceptPack("ours", "1", concepts, prompts="examples"))
    return LensDataset(store, labels="ours")


def test_a_position_confound_of_labels_that_came_later_is_flagged(
    planted: LensDataset, tmp_path: Path
) -> None:
    half = planted.n_samples // 2
    dataset = labelled(tmp_path, {"early": planted.texts[:half], "late": planted.texts[half:]})
    position = factor_of(audit_dataset(dataset), "position")
    assert {found.concept: np.sign(found.r) for found in position.flagged} == {
        "early": -1,
        "late": 1,
    }


def test_position_is_by_design_where_the_store_was_laid_out_by_concept(
    planted: LensDataset,
) -> None:
    position = factor_of(audit_dataset(planted), "position")
    assert position.worst is not None
    assert abs(position.worst.r) > 0.3
    assert (position.by_design, position.flagged) == (True, ())


@pytest.mark.parametrize("n_positives", [8, 20])
def test_noise_is_not_flagged_and_comes_to_what_chance_gives(
    planted: LensDataset, tmp_path: Path, n_positives: int
) -> None:
    rng = random.Random(3)
    classes = {f"class {i}": rng.sample(planted.texts, n_positives) for i in range(70)}
    report = audit_dataset(labelled(tmp_path, classes, Planting(without_completion=0.4)))
    assert sum(factor.n_concepts for factor in report.factors) >= 200
    assert [found for factor in report.factors for found in factor.flagged] == []
    for name in ("position", "temperature"):
        factor = factor_of(report, name)
        assert factor.mean_abs_r == pytest.approx(factor.by_chance, rel=0.3)


def test_a_factor_that_does_not_vary_is_not_tested(planted: LensDataset) -> None:
    length = factor_of(audit_dataset(planted), "completion length")
    assert (length.n_concepts, length.mean_abs_r, length.by_chance, length.worst) == (
        0,
        None,
        None,
        None,
    )


def test_concepts_without_enough_samples_are_left_out_and_named(tmp_path: Path) -> None:
    def change(plan: SamplePlan) -> SamplePlan:
        split = plan.split.copy()
        split[rows_of(plan, "bird", TEST)] = TRAIN
        return replace(plan, split=split)

    report = audited(tmp_path, change)
    assert report.left_out == ("bird",)
    assert "bird" not in report.names


def test_the_report_is_plain_json_without_nan(tmp_path: Path) -> None:
    report = audited(tmp_path, in_both_splits(SENTENCE, PARAPHRASE))
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["findings"] == report.findings
    assert read["twins"][0]["concept"] == "bird"
    assert read["splits"][1]["examples"][0]["text_a"] == SENTENCE


def test_each_sample_has_its_completion_tokens_and_temperature_beside_its_text(
    tmp_path: Path,
) -> None:
    store = make_planted_store(tmp_path / "store.zarr", planting=Planting(without_completion=0.4))
    dataset = LensDataset(store)
    stored: dict[str, tuple[object, ...]] = {}
    for entry in store.rounds():
        s = entry.samples()
        columns = (s.text, s.completion, s.n_prompt_tokens, s.n_completion_tokens, s.temperature)
        stored |= {
            str(text): (str(completion), *rest)
            for text, completion, *rest in zip(*columns, strict=True)
        }
    ours = (
        dataset.completions,
        dataset.n_prompt_tokens,
        dataset.n_completion_tokens,
        dataset.temperature,
    )
    assert {text: row for text, *row in zip(dataset.texts, *ours, strict=True)} == {
        text: list(row) for text, row in stored.items()
    }
    assert len({row[0] for row in stored.values()}) == 2
