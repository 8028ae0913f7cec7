"""The checks on a pack: each rule finds its fault, and nothing else does."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.quality import RULES, CheckSettings, Fault, find_faults

SMALL = CheckSettings(min_examples=3)

BIRD = Concept(
    id="bird",
    name="bird",
    level=1,
    definition="A feathered animal that lays eggs.",
    parents=("nature",),
    aliases=("fowl",),
    examples=(
        "It folded its wings and settled on the gutter.",
        "Two chicks waited in the nest with open beaks.",
        "Something was pecking at the crumbs under our table.",
    ),
    contrasts=("The bird on the logo had faded to grey.",),
    confusable_with=("fish",),
)
FISH = Concept(
    id="fish",
    name="fish",
    level=1,
    definition="An animal with fins that breathes water.",
    parents=("nature",),
    examples=(
        "Its gills moved slowly in the cold stream.",
        "A shoal turned all at once below the boat.",
        "He let the line sink and waited for a tug.",
    ),
    contrasts=("She liked to fish for compliments at dinner.",),
)
NATURE = Concept(
    id="nature",
    name="nature",
    level=0,
    definition="What was there before people.",
    examples=(
        "Moss had grown over the stones by the lake.",
        "The wind came down from the hills all night.",
        "Nobody had walked in that valley for years.",
    ),
    contrasts=("By nature he was a careful accountant.",),
)


def pack_of(*changed: Concept) -> ConceptPack:
    """The clean pack, with concepts replaced or added."""
    concepts = {concept.id: concept for concept in (NATURE, BIRD, FISH, *changed)}
    return ConceptPack("three", "1", tuple(concepts.values()))


def found_in(changed: Concept, settings: CheckSettings = SMALL) -> list[Fault]:
    return find_faults(pack_of(changed), settings)


def bird(**changes: Any) -> Concept:
    return dataclasses.replace(BIRD, **changes)


def test_a_clean_pack_has_no_findings() -> None:
    assert find_faults(pack_of(), SMALL) == []


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"examples": BIRD.examples[:2]}, "amount", "has 2 examples, at least 3"),
    ({"contrasts": ()}, "amount", "has 0 contrasts, at least 1"),
    ({"definition": ""}, "definition", "has no definition"),
    (
        {"examples": (*BIRD.examples, "Too short.")},
        "length",
        "a text of 10 characters, not 15 to 400",
    ),
    (
        {"contrasts": ("A bird" + " far away" * 60,)},
        "length",
        "a text of 546 characters, not 15 to 400",
    ),
    (
        {"examples": (*BIRD.examples, "Four birds sat along the wire.")},
        "naming",
        "named in its own example: 'Four",
    ),
    (
        {"examples": (*BIRD.examples, "We roasted the fowl on Sunday.")},
        "naming",
        "named in its own example: 'We",
    ),
    (
        {"contrasts": ("The logo had faded to a pale grey.",)},
        "contrast",
        "not named in its contrast: 'The logo",
    ),
    ({"level": 0}, "hierarchy", "the parent 'nature' on level 0, not above level 0"),
    ({"parents": ()}, "hierarchy", "is on level 1 and has no parent"),
    ({"confusable_with": ("bat",)}, "confusable", "names 'bat', which is not in the pack"),
    ({"confusable_with": ("bird",)}, "confusable", "names itself as confusable"),
]


@pytest.mark.parametrize(("changes", "rule", "message"), FAULTS)
def test_each_rule_finds_its_fault_and_no_other(
    changes: dict[str, Any], rule: str, message: str
) -> None:
    (finding,) = found_in(bird(**changes))
    assert (finding.rule, finding.concept) == (rule, "bird")
    assert message in finding.message


def test_every_rule_has_its_fault_here() -> None:
    assert {rule for _, rule, _ in FAULTS} | {"duplicate", "balance"} == set(RULES)


def test_a_finding_is_a_sentence_of_the_concept_or_of_the_pack() -> None:
    assert Fault("amount", "bird", "has no examples").sentence() == "bird has no examples"
    assert Fault("balance", "", "the branch is large").sentence() == "the branch is large"


def test_confusable_concepts_are_asked_for_only_by_setting() -> None:
    strict = dataclasses.replace(SMALL, min_confusable=1)
    assert [f.concept for f in find_faults(pack_of(), strict)] == ["nature", "fish"]


@pytest.mark.parametrize(
    "text",
    [
        BIRD.examples[0],
        "it folded its wings, and settled on the GUTTER",
        "It folded its wings and settled on the gutters.",
        "Slowly it folded its wings and settled on the gutter.",
    ],
)
def test_a_near_duplicate_is_found_within_a_concept_and_across_concepts(text: str) -> None:
    (within,) = found_in(bird(examples=(*BIRD.examples, text)))
    assert (within.rule, within.concept) == ("duplicate", "bird")
    assert "is nearly its own text" in within.message
    (across,) = found_in(dataclasses.replace(FISH, examples=(*FISH.examples, text)))
    assert (across.rule, across.concept) == ("duplicate", "fish")
    assert "is nearly a text of 'bird'" in across.message


def test_an_example_that_repeats_a_contrast_is_a_duplicate() -> None:
    (finding,) = found_in(dataclasses.replace(FISH, examples=(*FISH.examples, BIRD.contrasts[0])))
    assert (finding.rule, finding.concept) == ("duplicate", "fish")


def test_unrelated_texts_that_share_words_are_not_duplicates() -> None:
    sharing = (
        "It folded its wings and fell asleep beside us.",
        "All at once, below the boat, two chicks waited in the nest of a crane.",
    )
    assert found_in(bird(examples=(*BIRD.examples, *sharing))) == []


def test_texts_of_the_same_words_in_another_order_are_not_duplicates() -> None:
    turned = "The gutter settled on its wings and it folded."
    assert found_in(bird(examples=(*BIRD.examples, turned))) == []


def leaf(name: str, branch: str) -> Concept:
    return Concept(id=name, name=name, level=1, parents=(branch,))


@pytest.mark.parametrize(("ratio", "found"), [(None, 0), (2.0, 0), (1.9, 1)])
def test_branches_are_held_against_the_balance_ratio(ratio: float | None, found: int) -> None:
    craft = Concept(id="craft", name="craft", level=0)
    pack = pack_of(craft, leaf("boat", "craft"), leaf("tree", "nature"))  # 4 concepts and 2
    findings = [
        f for f in find_faults(pack, CheckSettings(max_branch_ratio=ratio)) if f.rule == "balance"
    ]
    assert len(findings) == found
    if found:
        assert findings[0].concept == ""
        assert (
            "the branch 'nature' has 4 concepts and 'craft' 2, more than 1.9 times"
            in findings[0].message
        )


def test_a_pack_of_one_branch_is_in_balance() -> None:
    assert find_faults(pack_of(), dataclasses.replace(SMALL, max_branch_ratio=1.0)) == []


@pytest.mark.slow
def test_2000_concepts_are_checked_in_seconds_and_the_one_copy_is_found() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(3, 10, 3000)]
    starts = ("one of the", "it was a", "she said that", "in the middle")

    def sentence() -> str:
        return f"{starts[rng.integers(4)]} {' '.join(words[i] for i in rng.integers(0, 3000, 9))}."

    concepts = [
        Concept(
            id=f"c{i}",
            name=f"c{i}",
            level=0,
            definition="x",
            examples=tuple(sentence() for _ in range(8)),
        )
        for i in range(2000)
    ]
    concepts[1999] = dataclasses.replace(
        concepts[1999], examples=(*concepts[1999].examples, concepts[3].examples[0])
    )
    start = time.perf_counter()
    found = find_faults(ConceptPack("large", "1", tuple(concepts)), CheckSettings(min_contrasts=0))
    assert [(f.rule, f.concept) for f in found] == [("duplicate", "c1999")]
    assert time.perf_counter() - start < 60
