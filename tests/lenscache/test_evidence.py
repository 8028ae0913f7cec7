"""How many concepts have enough unnamed texts: counted by hand, and as fitting counts them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.evidence import (
    MIN_TEXTS,
    Lack,
    UnnamedTexts,
    count_unnamed,
    examples_needed,
)
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SPLITS, plan_samples
from lenscache.extract import ExtractSettings, extract
from lenstrain.data.dataset import CALIBRATION, TEST, open_dataset
from lenstrain.metrics import grade
from tests.models import tiny_model

SUBJECTS = ("wind", "rain", "snow", "hail", "fog", "sun", "ice", "mist", "heat", "dew", "frost")
VERBS = ("came over", "left", "stayed on")
SENTENCES = tuple(f"The {subject} {verb} the hill." for subject in SUBJECTS for verb in VERBS)


def concept(name: str, n_examples: int, *others: str, **changes: Any) -> Concept:
    """A concept with so many examples of its own, and others."""
    own = tuple(f"{sentence[:-1]} of {name[::-1]}." for sentence in SENTENCES[:n_examples])
    return Concept(name, name, 0, "What it is.", examples=(*own, *others), **changes)


def counted(*concepts: Concept, **changes: Any) -> UnnamedTexts:
    pack = ConceptPack("evidence", "1", concepts, **changes)
    return count_unnamed(pack, plan_samples(pack))


def named(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{sentence[:-1]} and the {name}." for sentence in SENTENCES[:n])


def test_both_sides_ask_for_as_many_texts() -> None:
    assert MIN_TEXTS == grade.MIN_TEXTS


def test_a_concept_with_as_many_examples_as_are_needed_can_be_graded_and_with_one_less_not() -> (
    None
):
    needed = examples_needed()
    assert counted(concept("owl", needed)).ungraded == 0
    short = counted(concept("owl", needed - 1))
    assert short.ungraded == 1
    assert short.test_texts[MIN_TEXTS - 1] == Lack(1, ("owl",))


@pytest.mark.parametrize(
    ("n_examples", "n_test", "has_calibration"),
    [(1, 0, False), (2, 1, False), (4, 1, True), (7, 2, True), (11, 2, True)],
)
def test_concepts_are_counted_by_their_unnamed_test_texts(
    n_examples: int, n_test: int, has_calibration: bool
) -> None:
    found = counted(concept("owl", n_examples), concept("fox", 12))
    for n, lack in enumerate(found.test_texts):
        assert lack == (Lack(1, ("owl",)) if n == n_test else Lack(0, ()))
    assert found.no_text == Lack(0, ())
    assert found.no_calibration.concepts == (not has_calibration)
    assert (found.n_concepts, found.ungraded, found.to_write, found.to_sample) == (2, 1, 1, 0)


def test_a_concept_without_examples_has_no_unnamed_text_and_lacks_calibration_texts() -> None:
    found = counted(concept("owl", 0), concept("fox", 12))
    assert found.no_text == found.no_calibration == Lack(1, ("owl",))
    assert all(lack.concepts == 0 for lack in found.test_texts)


def test_an_example_with_the_name_is_none_and_one_with_an_alias_is_one() -> None:
    by_name = counted(concept("owl", 0, *named("Owls", 12)))
    assert by_name.no_text.concepts == 1
    by_alias = counted(concept("owl", 0, *named("hooter", 12), aliases=("hooter",)))
    assert by_alias.lines() == []


def test_a_text_that_names_one_of_its_two_concepts_counts_for_the_other() -> None:
    shared = named("owl", 12)
    found = counted(concept("owl", 0, *shared), concept("fox", 0, *shared))
    assert found.no_text == Lack(1, ("owl",))


def test_contrasts_and_given_negatives_are_no_evidence() -> None:
    found = counted(
        concept("owl", 0, contrasts=named("owl", 12), negatives=SENTENCES[:12]), concept("fox", 12)
    )
    assert found.no_text == Lack(1, ("owl",))


def test_in_labelled_texts_every_text_is_unnamed() -> None:
    assert counted(concept("owl", 0, *named("owl", 12)), prompts="examples").lines() == []


def test_only_the_concepts_that_the_plan_is_for_are_counted() -> None:
    below = Concept("barn owl", "barn owl", 1, parents=("owl",))
    pack = ConceptPack("two", "1", (concept("owl", 0), below))
    found = count_unnamed(pack, plan_samples(pack, [1]))
    assert (found.n_concepts, found.no_text.first) == (1, ("barn owl",))


def test_a_plan_of_few_prompts_asks_for_more_of_them_and_not_for_more_examples() -> None:
    pack = ConceptPack("two", "1", (concept("owl", 20), concept("fox", 3)))
    found = count_unnamed(pack, plan_samples(pack, samples=8))
    assert (found.ungraded, found.to_sample, found.to_write) == (2, 1, 1)
    advice = " ".join(found.lines())
    assert "What to do for 1: write at least 12 example sentences" in advice
    assert "What to do for 1: the pack has enough texts" in advice
    assert "--samples" in advice


def test_where_the_pack_gives_the_splits_they_are_what_to_change() -> None:
    texts = SENTENCES[:20]
    splits = {"train": texts[:16], "calibration": texts[16:18], "test": texts[18:]}
    found = counted(concept("owl", 0, *texts), prompts="examples", splits=splits)
    assert found.test_texts[2] == Lack(1, ("owl",))
    advice = " ".join(found.lines())
    assert "the pack gives the splits" in advice
    assert "write at least" not in advice


def test_all_is_well_says_nothing() -> None:
    found = counted(concept("owl", 12), concept("fox", 12))
    assert found.lines() == []
    assert (found.ungraded, found.to_write, found.to_sample) == (0, 0, 0)


def test_the_lines_say_how_many_what_status_and_what_to_do() -> None:
    found = counted(concept("owl", 0), concept("fox", 7), concept("elk", 12))
    assert found.lines() == [
        "2 of 3 concepts have too few unnamed texts for a grade: the status of their",
        'lenses is "ungraded" at best. A grade rests on test texts that do not name the',
        "concept, at least 3 of them.",
        "       1  no unnamed text: owl",
        "       1  2 unnamed test texts of 3: fox",
        "       1  no unnamed calibration text: owl",
        "          (no vote on the model layer; named texts choose their thresholds)",
        "What to do for 2: write at least 12 example sentences for each that do not name",
        "it (splits are 60/20/20: of 12, 3 are test texts).",
    ]


def test_what_few_texts_are_good_for_is_said_where_concepts_have_so_few() -> None:
    found = counted(
        *(concept(name, n) for n, name in enumerate(("owl", "fox", "elk", "bee", "ant")))
    )
    assert found.few == Lack(3, ("fox", "elk", "bee"))
    lines = found.lines()
    at = lines.index("       3  3 unnamed texts or fewer: fox, elk, bee")
    use = "of 1, 2, 3 the fit learns from 1, 1, 2; none judges: docs/grades.md"
    assert lines[at + 1] == f"          ({use})"
    assert max(map(len, lines)) <= 80
    assert "none judges" not in " ".join(counted(concept("owl", 4)).lines())
    assert found.lines(brief=True) == [*lines[:at], *lines[at + 2 :]]


@pytest.mark.parametrize(("n", "learned"), [(1, 1), (2, 1), (3, 2)])
def test_the_fit_learns_from_as_many_of_few_texts_as_is_said(n: int, learned: int) -> None:
    pack = ConceptPack("one", "1", (concept("owl", n),))
    plan = plan_samples(pack)
    unnamed = [split for text, split in zip(plan.texts, plan.split, strict=True) if "lwo" in text]
    assert len(unnamed) == n
    assert unnamed.count(SPLITS.index("train")) == learned


def test_a_lack_of_calibration_texts_alone_is_said_too() -> None:
    texts = SENTENCES[:12]
    splits = {"train": texts[:8], "test": texts[8:], "calibration": ("Another one.",)}
    found = counted(concept("owl", 0, *texts), prompts="examples", splits=splits)
    assert (found.ungraded, found.no_calibration) == (0, Lack(1, ("owl",)))
    assert found.lines()[0].startswith("All concepts have enough unnamed test texts")
    assert '"ungraded"' not in " ".join(found.lines())


def test_lines_fit_80_columns_whatever_the_names() -> None:
    long = counted(*(concept(f"{n} {'very ' * 20}long", 0) for n in "abcdefg"))
    short = counted(*(concept(f"a name of {n}", 0) for n in "abcdefg"))
    assert max(len(line) for found in (long, short) for line in found.lines()) <= 80
    line = next(line for line in short.lines() if "no unnamed text" in line)
    assert line.endswith("a name of a, a name of b, a name of c, ...")
    assert long.no_text.line("no unnamed text") == "       7  no unnamed text: ..."


def test_the_counts_are_plain_values() -> None:
    assert counted(concept("owl", 0), concept("fox", 7)).to_dict() == {
        "concepts": 2,
        "ungraded_at_best": 2,
        "no_text": {"concepts": 1, "first": ("owl",)},
        "test_texts": {
            "0": {"concepts": 0, "first": ()},
            "1": {"concepts": 0, "first": ()},
            "2": {"concepts": 1, "first": ("fox",)},
        },
        "no_calibration_text": {"concepts": 1, "first": ("owl",)},
        "to_write": 2,
        "to_sample": 0,
        "min_test_texts": 3,
        "examples_needed": 12,
    }


@pytest.mark.parametrize("prompts", ["all", "examples"])
def test_it_counts_as_fitting_does(tmp_path: Path, prompts: Any) -> None:
    """The counts of a plan are those of the store that is extracted by it."""
    concepts = (
        concept("owl", 0, *named("owl", 9)),
        concept("fox", 3, *named("fox", 9)),
        concept("elk", 8, *named("moose", 4), aliases=("moose",)),
        concept("bee", 5, *named("owl", 4)),
        concept("ant", 14),
    )
    pack = ConceptPack("five", "1", concepts, prompts=prompts)
    settings = ExtractSettings(mode="prompt", max_new_tokens=0, seed=3, samples=10)
    extract(tmp_path / "s", pack, tiny_model(), settings)
    dataset = open_dataset(tmp_path / "s", phase="prompt")
    n_texts = {}
    for each in concepts:
        rows = dataset.positives(each.id)
        rows = rows[dataset.unnamed(each.id, rows)]
        n_texts[each.id] = np.bincount(dataset.split[rows], minlength=len(SPLITS))
    found = count_unnamed(pack, plan_samples(pack, seed=3, samples=10))
    assert found.no_text.first == tuple(c for c, n in n_texts.items() if not n.sum())
    assert found.no_calibration.first == tuple(c for c, n in n_texts.items() if not n[CALIBRATION])
    for few, lack in enumerate(found.test_texts):
        assert lack.first == tuple(c for c, n in n_texts.items() if n.sum() and n[TEST] == few)
    assert found.ungraded  # or nothing was compared


def test_thousands_of_concepts_are_counted_in_seconds() -> None:
    concepts = tuple(concept(f"thing {i}", i % 3 * 6) for i in range(4000))
    pack = ConceptPack("large", "1", concepts)
    plan = plan_samples(pack)
    start = time.perf_counter()
    found = count_unnamed(pack, plan)
    assert time.perf_counter() - start < 5
    assert (found.no_text.concepts, len(found.no_text.first)) == (1334, 5)
    assert len(found.lines()) < 12
