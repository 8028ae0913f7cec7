from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import LenscacheError, PackError
from tests.packs import small_pack


def make_hierarchy(links: dict[str, list[str]]) -> Hierarchy:
    """A hierarchy from the parents of each concept; levels do not matter to it."""
    return Hierarchy(
        dict.fromkeys(links, 0), {concept: tuple(above) for concept, above in links.items()}
    )


def make_data(*concepts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The JSON form of a pack, valid unless `concepts` or `changes` make it not so."""
    return {
        "format_version": 1,
        "name": "test",
        "version": "1",
        "concepts": list(concepts),
        **changes,
    }


def make_concept(concept: str = "bird", **changes: Any) -> dict[str, Any]:
    return {"id": concept, "name": concept, "layer": 0, **changes}


@pytest.fixture
def diamond() -> Hierarchy:
    """Two roots; `amphibious` falls under both; `car` and `boat` are its siblings on either
    side."""
    return make_hierarchy(
        {
            "land": [],
            "water": [],
            "car": ["land"],
            "boat": ["water"],
            "amphibious": ["land", "water"],
            "hovercraft": ["amphibious"],
        }
    )


# --- hierarchy ----------------------------------------------------------------------------------


def test_ancestors_reach_over_every_parent(diamond: Hierarchy) -> None:
    assert diamond.ancestors("hovercraft") == {"amphibious", "land", "water"}
    assert diamond.ancestors("land") == set()


def test_descendants_reach_over_every_child(diamond: Hierarchy) -> None:
    assert diamond.descendants("water") == {"boat", "amphibious", "hovercraft"}
    assert diamond.descendants("hovercraft") == set()


def test_parents_and_children_are_one_step_only(diamond: Hierarchy) -> None:
    assert diamond.parents("amphibious") == ("land", "water")
    assert diamond.children("land") == ("car", "amphibious")
    assert diamond.children("hovercraft") == ()


def test_siblings_share_any_parent(diamond: Hierarchy) -> None:
    assert diamond.siblings("amphibious") == {"car", "boat"}
    assert diamond.siblings("car") == {"amphibious"}


def test_siblings_of_a_root_are_the_other_roots(diamond: Hierarchy) -> None:
    assert diamond.siblings("land") == {"water"}


def test_sibling_that_is_also_a_descendant_is_no_sibling() -> None:
    hierarchy = make_hierarchy({"a": [], "b": ["a"], "c": ["a", "b"]})
    assert hierarchy.siblings("b") == set()


def test_branches_are_the_roots_above(diamond: Hierarchy) -> None:
    assert diamond.branches("hovercraft") == {"land", "water"}
    assert diamond.branches("car") == {"land"}
    assert diamond.branches("water") == {"water"}


def test_family_holds_the_concept_and_its_grandchildren(diamond: Hierarchy) -> None:
    assert diamond.family("land") == {"land", "car", "amphibious", "hovercraft"}


def test_hierarchy_is_a_collection_of_concepts(diamond: Hierarchy) -> None:
    assert len(diamond) == 6
    assert list(diamond)[:2] == ["land", "water"]
    assert "car" in diamond
    assert "plane" not in diamond


def test_cycle_is_shown_link_by_link() -> None:
    with pytest.raises(
        PackError, match="form a cycle: a -> c -> b -> a: remove one of these links"
    ):
        make_hierarchy({"root": [], "a": ["root", "c"], "b": ["a"], "c": ["b"]})


def test_concept_that_is_its_own_parent_is_a_cycle() -> None:
    with pytest.raises(PackError, match="form a cycle: a -> a"):
        make_hierarchy({"a": ["a"]})


def test_cycle_message_leaves_out_what_only_hangs_below_it() -> None:
    with pytest.raises(PackError, match="form a cycle: m -> z -> m:"):
        make_hierarchy({"z": ["m"], "m": ["z"], "a": ["m"]})


def test_unknown_parent_is_named_with_its_child() -> None:
    with pytest.raises(
        PackError, match="'a' names the parent 'b', which is not in the pack: add that concept"
    ):
        make_hierarchy({"a": ["b"]})


def test_chain_of_5000_levels_is_walked_without_recursion() -> None:
    hierarchy = make_hierarchy({str(i): [str(i - 1)] if i else [] for i in range(5000)})
    assert len(hierarchy.ancestors("4999")) == 4999
    assert hierarchy.branches("4999") == {"0"}


def test_chain_deeper_than_the_recursion_limit_is_walked_downwards() -> None:
    hierarchy = make_hierarchy({str(i): [str(i - 1)] if i else [] for i in range(1500)})
    assert len(hierarchy.descendants("0")) == 1499


def test_family_of_every_one_of_8000_concepts_is_computed_once() -> None:
    hierarchy = make_hierarchy({str(i): [str((i - 1) // 3)] if i else [] for i in range(8000)})
    n_links = sum(len(hierarchy.ancestors(c)) for c in hierarchy)
    assert n_links == sum(len(hierarchy.descendants(c)) for c in hierarchy)
    assert hierarchy.ancestors("7999") is hierarchy.ancestors("7999")


@st.composite
def hierarchies(draw: st.DrawFn) -> Hierarchy:
    """Any acyclic hierarchy of up to 20 concepts: each falls under some of those before it."""
    n = draw(st.integers(1, 20))
    links = {"c0": list[str]()}
    for i in range(1, n):
        above = draw(st.sets(st.integers(0, i - 1), max_size=3))
        links[f"c{i}"] = [f"c{parent}" for parent in sorted(above)]
    order = draw(st.permutations(list(links)))
    return make_hierarchy({concept: links[concept] for concept in order})


@given(hierarchies())
def test_ancestor_and_descendant_are_inverse(hierarchy: Hierarchy) -> None:
    for a in hierarchy:
        assert hierarchy.ancestors(a) == {b for b in hierarchy if a in hierarchy.descendants(b)}


@given(hierarchies())
def test_ancestors_are_parents_and_their_ancestors(hierarchy: Hierarchy) -> None:
    for concept in hierarchy:
        parents = hierarchy.parents(concept)
        expected = set(parents).union(*(hierarchy.ancestors(parent) for parent in parents))
        assert hierarchy.ancestors(concept) == expected


@given(hierarchies())
def test_siblings_are_symmetric(hierarchy: Hierarchy) -> None:
    for a in hierarchy:
        assert all(a in hierarchy.siblings(b) for b in hierarchy.siblings(a))


@given(hierarchies())
def test_family_is_disjoint_from_siblings(hierarchy: Hierarchy) -> None:
    for concept in hierarchy:
        assert concept in hierarchy.family(concept)
        assert hierarchy.family(concept).isdisjoint(hierarchy.siblings(concept))


@given(hierarchies())
def test_every_branch_is_a_root_of_the_family(hierarchy: Hierarchy) -> None:
    for concept in hierarchy:
        branches = hierarchy.branches(concept)
        assert branches
        assert branches <= hierarchy.family(concept)
        assert not any(hierarchy.parents(branch) for branch in branches)


# --- reading a pack -----------------------------------------------------------------------------


def test_pack_survives_a_round_trip_through_its_file(tmp_path: Path) -> None:
    pack = small_pack()
    path = tmp_path / "pack.json"
    path.write_text(json.dumps(pack.to_dict()), encoding="utf-8")
    assert ConceptPack.load(path) == pack


def test_pack_gives_concepts_by_id_and_by_level() -> None:
    pack = small_pack()
    assert pack.levels == (0, 1)
    assert [concept.id for concept in pack.in_level(0)] == ["nature", "craft"]
    assert pack["bird"].parents == ("nature",)
    assert len(pack) == 7


def test_concept_needs_only_id_name_and_level() -> None:
    pack = ConceptPack.from_dict(make_data(make_concept()))
    assert pack["bird"] == Concept("bird", "bird", 0)


def test_repeated_text_is_kept_once() -> None:
    pack = ConceptPack.from_dict(make_data(make_concept(examples=["Wings.", "Beak.", "Wings."])))
    assert pack["bird"].examples == ("Wings.", "Beak.")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"no concept pack at .*nowhere\.json: give the path"):
        ConceptPack.load(tmp_path / "nowhere.json")


def test_folder_instead_of_a_file_is_a_known_error(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="cannot read the concept pack"):
        ConceptPack.load(tmp_path)


def test_text_that_is_not_json_is_placed_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "pack.json"
    path.write_text('{\n  "name": oops}', encoding="utf-8")
    with pytest.raises(PackError, match=r"pack\.json is not JSON \(line 2, column 11"):
        ConceptPack.load(path)


def test_file_that_is_not_utf8_is_a_known_error(tmp_path: Path) -> None:
    path = tmp_path / "pack.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(PackError, match=r"cannot read the concept pack .*utf-8"):
        ConceptPack.load(path)


def test_error_inside_a_file_names_the_file_and_the_concept(tmp_path: Path) -> None:
    path = tmp_path / "pack.json"
    path.write_text(json.dumps(make_data(make_concept("owl", parents=["bird"]))), encoding="utf-8")
    with pytest.raises(PackError, match=r"pack\.json: concept 'owl' names the parent 'bird'"):
        ConceptPack.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": -1}, "concept 'bird': layer is -1, expected 0 or more"),
        ({"layer": "0"}, "concept 'bird': layer is str, expected int"),
        ({"layer": True}, "concept 'bird': layer is True, expected 0 or more"),
        ({"name": 3}, "concept 'bird': name is int, expected str"),
        ({"name": " "}, "concept 'bird': name is empty"),
        ({"id": ""}, "concept '': id is empty"),
        ({"id": 7}, "concept number 0: id is int, expected str"),
        ({"definition": None}, "concept 'bird': definition is NoneType, expected text"),
        ({"examples": "Wings."}, "concept 'bird': examples is 'Wings.', expected a list of texts"),
        ({"parents": [1]}, r"concept 'bird': parents is \[1\], expected a list of texts"),
        ({"contrasts": ["Fine.", " "]}, "concept 'bird': contrasts holds an empty text"),
        ({"attributes": []}, r"concept 'bird': attributes is \[\], expected lists of texts"),
        ({"attributes": {"a=b": ["c"]}}, "concept 'bird': attributes is .*, expected lists"),
        ({"attributes": {"risk": "high"}}, "concept 'bird': attributes.risk is 'high', expected a"),
        ({"exmaples": []}, "concept 'bird' has the unknown field 'exmaples', expected"),
    ],
)
def test_malformed_concept_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError, match=message):
        ConceptPack.from_dict(make_data(make_concept(**changes)))


@pytest.mark.parametrize("key", ["id", "name", "layer"])
def test_missing_field_of_a_concept_is_named(key: str) -> None:
    concept = make_concept()
    del concept[key]
    with pytest.raises(PackError, match=f"lacks the field '{key}'"):
        ConceptPack.from_dict(make_data(concept))


@pytest.mark.parametrize("key", ["name", "version", "concepts"])
def test_missing_field_of_the_pack_is_named(key: str) -> None:
    data = make_data(make_concept())
    del data[key]
    with pytest.raises(PackError, match=f"the pack lacks the field '{key}'"):
        ConceptPack.from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object with `concepts`, found list"),
        (make_data(format_version=2), "format_version is 2, expected 1"),
        (make_data(concepts={}), "the pack: concepts is dict, expected list"),
        (make_data(), "pack 'test' holds no concepts"),
        (make_data(concepts=["bird"]), "concept number 0 is str, expected an object"),
        (make_data(make_concept(), make_concept()), "concept id 'bird' occurs twice"),
        (
            make_data(make_concept("a", parents=["b"]), make_concept("b", parents=["a"])),
            "form a cycle: a -> b -> a",
        ),
    ],
)
def test_malformed_pack_is_refused(data: object, message: str) -> None:
    with pytest.raises(PackError, match=message):
        ConceptPack.from_dict(data)


def test_pack_error_is_caught_as_base_class_and_as_value_error() -> None:
    assert issubclass(PackError, LenscacheError)
    assert issubclass(PackError, ValueError)


# --- digest -------------------------------------------------------------------------------------


def test_digest_ignores_the_formatting_of_the_file(tmp_path: Path) -> None:
    data = small_pack().to_dict()
    data["concepts"] = [dict(sorted(entry.items(), reverse=True)) for entry in data["concepts"]]
    (tmp_path / "wide.json").write_text(
        json.dumps(data, indent=4, ensure_ascii=True), encoding="utf-8"
    )
    assert ConceptPack.load(tmp_path / "wide.json").digest == small_pack().digest


def test_digest_ignores_name_and_version() -> None:
    assert small_pack(name="other", version="2").digest == small_pack().digest


@pytest.mark.parametrize(
    "key", ["name", "definition", "aliases", "examples", "contrasts", "confusable_with"]
)
def test_digest_changes_with_the_content(key: str) -> None:
    pack = small_pack()
    first = pack.concepts[0]
    change: dict[str, Any] = {key: "new" if isinstance(getattr(first, key), str) else ("new",)}
    changed = dataclasses.replace(first, **change)
    assert ConceptPack("small", "1", (changed, *pack.concepts[1:])).digest != pack.digest


# --- naming -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "A fly.",
        "FLY!",
        "flies everywhere",
        "the fly's wing",
        "the fly’s wing",
        "A dragon-fly",
        "(house fly)",
    ],
)
def test_concept_is_named_in_any_form(text: str) -> None:
    assert Concept("fly", "fly", 0, aliases=("house fly",)).is_named_in(text)


@pytest.mark.parametrize("text", ["A flyer on the door.", "butterfly", "flying low", "flow", ""])
def test_part_of_a_longer_word_is_not_a_name(text: str) -> None:
    assert not Concept("fly", "fly", 0).is_named_in(text)


@pytest.mark.parametrize("text", ["two boxes", "the boxes' lids", "the girls’ box"])
def test_plural_and_possessive_name_the_concept(text: str) -> None:
    assert Concept("box", "box", 0).is_named_in(text)


def test_alias_names_the_concept() -> None:
    concept = Concept("vehicle", "vehicle", 0, aliases=("motor car",))
    assert concept.is_named_in("Two Motor Cars collided.")
    assert not concept.is_named_in("The motor of a car.")


def test_punctuation_in_a_name_is_taken_literally() -> None:
    concept = Concept("cpp", "C++ (language)", 0)
    assert concept.is_named_in("written in C++ (language), mostly")
    assert not concept.is_named_in("written in CCC language")
