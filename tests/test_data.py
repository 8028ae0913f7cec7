"""The concept packs that are shipped: what every one of them promises to the trainers that use
it."""

from __future__ import annotations

import itertools
import re
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.quality import CheckSettings, find_faults

FOLDER = Path(__file__).parents[1] / "data" / "packs"
PATHS = sorted(FOLDER.glob("*.json"))
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def pack(request: pytest.FixtureRequest) -> ConceptPack:
    return ConceptPack.load(request.param)


@pytest.fixture(scope="module")
def starter() -> ConceptPack:
    return ConceptPack.load(FOLDER / "starter.json")


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def near_duplicates(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of texts that are the same but for a few words."""
    words = [words_of(text) for text in texts]
    sets = [set(found) for found in words]
    pairs = []
    for i, j in itertools.combinations(range(len(texts)), 2):
        # with fewer words in common the ratio cannot be high
        if len(sets[i] & sets[j]) > 0.5 * min(len(sets[i]), len(sets[j])):
            matcher = SequenceMatcher(None, " ".join(words[i]), " ".join(words[j]), autojunk=False)
            if matcher.quick_ratio() > 0.85 and matcher.ratio() > 0.85:
                pairs.append((texts[i], texts[j]))
    return pairs


def test_there_are_packs() -> None:
    assert PATHS


def test_ids_are_slugs(pack: ConceptPack) -> None:
    assert [concept.id for concept in pack.concepts if not SLUG.fullmatch(concept.id)] == []


def test_every_parent_is_above_and_one_of_them_is_one_level_up(pack: ConceptPack) -> None:
    above = {
        c.id: [c.level - pack[parent].level for parent in c.parents]
        for c in pack.concepts
        if c.parents
    }
    assert {concept: steps for concept, steps in above.items() if min(steps) != 1} == {}


def test_only_level_0_has_no_parents(pack: ConceptPack) -> None:
    assert [
        concept.id for concept in pack.concepts if (concept.level == 0) == bool(concept.parents)
    ] == []


def test_confusable_concepts_exist_and_are_others(pack: ConceptPack) -> None:
    wrong = [
        (c.id, o)
        for c in pack.concepts
        for o in c.confusable_with
        if o not in pack.hierarchy or o == c.id
    ]
    assert wrong == []


def test_pack_says_where_it_is_from_and_under_which_licence(pack: ConceptPack) -> None:
    assert pack.license
    assert pack.origin


def test_no_name_or_alias_means_two_concepts(pack: ConceptPack) -> None:
    names = [
        name.casefold() for concept in pack.concepts for name in {concept.name, *concept.aliases}
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_starter_has_three_levels_and_enough_concepts(starter: ConceptPack) -> None:
    assert starter.levels == (0, 1, 2)
    assert len(starter) >= 45


def test_starter_defines_every_concept(starter: ConceptPack) -> None:
    assert [concept.id for concept in starter.concepts if not concept.definition.strip()] == []


def test_starter_has_enough_examples_and_contrasts(starter: ConceptPack) -> None:
    short = [c.id for c in starter.concepts if len(c.examples) < 12 or len(c.contrasts) < 3]
    assert short == []


def test_starter_examples_never_name_their_concept(starter: ConceptPack) -> None:
    named = [(c.id, text) for c in starter.concepts for text in c.examples if c.is_named_in(text)]
    assert named == []


def test_starter_contrasts_always_name_their_concept(starter: ConceptPack) -> None:
    unnamed = [
        (c.id, text) for c in starter.concepts for text in c.contrasts if not c.is_named_in(text)
    ]
    assert unnamed == []


def test_starter_has_no_text_twice_or_nearly(starter: ConceptPack) -> None:
    texts = [
        text for concept in starter.concepts for text in (*concept.examples, *concept.contrasts)
    ]
    assert near_duplicates(texts) == []


def test_near_duplicates_are_found() -> None:
    texts = [
        "The old man saw the bird on the roof.",
        "the old man saw a bird on the roof",
        "Nobody rang the bell.",
    ]
    assert near_duplicates(texts) == [(texts[0], texts[1])]


def test_foundation_pack_stands_up_to_every_check() -> None:
    """Six levels; at least 16 unnamed examples, 4 contrasts and 2 confusable concepts each;
    branches of like size."""
    pack = ConceptPack.load(Path(__file__).parents[1] / "data" / "packs" / "foundation.json")
    settings = CheckSettings(
        min_examples=16, min_contrasts=4, min_confusable=2, max_characters=300, max_branch_ratio=4
    )
    assert find_faults(pack, settings) == []
    assert pack.levels == (0, 1, 2, 3, 4, 5)
    assert len(pack) >= 240
