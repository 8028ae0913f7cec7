"""Layer files of HatCat: whatever is wrong in them, a usable pack and a report of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lenscache.concepts.importers.hatcat import import_hatcat, is_hatcat
from lenscache.concepts.importers.report import Imported
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.errors import PackError


def entry(name: Any, parents: Any = (), children: Any = (), **more: Any) -> dict[str, Any]:
    links = {"parent_concepts": parents, "child_concepts": children, "category_children": children}
    return {"sumo_term": name, "definition": "A thing of some kind.", **links, **more}


def imported(folder: Path, *levels: list[Any]) -> Imported:
    """Write layer files and read them; the result must load again as it is, and be of use."""
    for number, entries in enumerate(levels):
        (folder / f"layer{number}.json").write_text(
            json.dumps({"layer": number, "concepts": entries})
        )
    result = import_hatcat(folder)
    result.pack.save(folder / "pack.out")
    loaded = ConceptPack.load(folder / "pack.out")
    assert (loaded, loaded.digest) == (result.pack, result.pack.digest)
    assert set(plan_samples(loaded).concepts) == set(loaded.hierarchy)
    return result


def one(folder: Path, made: dict[str, Any]) -> tuple[Concept, Imported]:
    result = imported(folder, [made, entry("Other")])
    return result.pack.concepts[0], result


def hints(**found: Any) -> dict[str, Any]:
    return entry("Bird", training_hints=found)


def parents(result: Imported) -> dict[str, tuple[str, ...]]:
    return {concept.id: concept.parents for concept in result.pack.concepts}


def test_a_tidy_folder_is_read_whole_with_nothing_to_report(tmp_path: Path) -> None:
    bird = entry("WaterBird", ["Animal"], lemmas=["water_bird", "swimmer"], aliases=["Fowl"])
    bird["training_hints"] = {
        "positive_examples": ["It folded its wings."],
        "negative_examples": ["The cat slept."],
        "confusable_with": ["Animal"],
    }
    result = imported(tmp_path, [entry("Animal", children=["WaterBird"])], [bird])
    assert result.pack["WaterBird"] == Concept(
        id="WaterBird",
        name="water bird",
        level=1,
        definition="A thing of some kind.",
        parents=("Animal",),
        aliases=("Fowl", "swimmer"),
        examples=("It folded its wings.",),
        confusable_with=("Animal",),
        negatives=("The cat slept.",),
    )
    assert result.report.to_dict() == {
        "read": {"layer files": 2, "concepts": 2},
        "repaired": {},
        "left_out": {},
    }
    assert result.pack.name == tmp_path.name


@pytest.mark.parametrize(
    ("term", "spoken"),
    [
        ("CookingDevice", "cooking device"),
        ("DNA", "DNA"),
        ("DNASequence", "DNA sequence"),
        ("at_war", "at war"),
        ("Phase2Trial", "phase2 trial"),
        ("__", "__"),
        ("../Escape", "../escape"),
    ],
)
def test_terms_are_spoken(tmp_path: Path, term: str, spoken: str) -> None:
    concept, _ = one(tmp_path, entry(term))
    assert (concept.id, concept.name) == (term, spoken)


# --- links --------------------------------------------------------------------------------------


def test_parents_and_children_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    result = imported(
        tmp_path,
        [entry("Animal", children=["Bird", "Ghost"])],
        [entry("Bird", ["Animal", "SeaThing"])],
    )
    assert parents(result) == {"Animal": (), "Bird": ("Animal",)}
    assert result.report.left_out == {
        "parent that does not exist": ["SeaThing of Bird"],
        "child that does not exist": ["Ghost of Animal"],
    }


def test_links_from_either_end_count_and_those_from_both_ends_are_no_repair(tmp_path: Path) -> None:
    leaves = [entry("Bird", ["Animal"]), entry("Fish"), entry("Worm", ["Animal"])]
    result = imported(tmp_path, [entry("Animal", children=["Bird", "Fish"])], leaves)
    assert {above for name, above in parents(result).items() if name != "Animal"} == {("Animal",)}
    assert result.report.repaired == {"link given by the parent only": ["Fish below Animal"]}


def test_several_parents_are_kept(tmp_path: Path) -> None:
    result = imported(
        tmp_path,
        [entry("Animal"), entry("Pet", children=["Dog"])],
        [entry("Dog", ["Animal", "Pet"])],
    )
    assert parents(result)["Dog"] == ("Animal", "Pet")
    assert result.pack.hierarchy.branches("Dog") == {"Animal", "Pet"}


def test_a_concept_without_a_parent_below_level_0_is_a_root_and_reported(tmp_path: Path) -> None:
    result = imported(tmp_path, [entry("Animal")], [entry("Stray", ["Gone"])])
    assert result.pack["Stray"].level == 1
    assert result.report.repaired == {
        "concept below level 0 without a parent, kept as a root": ["Stray"]
    }


def test_a_concept_that_is_its_own_parent_loses_that_link(tmp_path: Path) -> None:
    result = imported(
        tmp_path, [entry("Animal")], [entry("Bird", ["Bird", "Animal"], children=["Bird"])]
    )
    assert parents(result)["Bird"] == ("Animal",)
    assert result.report.left_out == {"link that closes a cycle": ["Bird below Bird"]}


def test_a_cycle_is_cut_at_one_link(tmp_path: Path) -> None:
    circle = [entry("A", ["C", "Root"]), entry("B", ["A"]), entry("C", ["B"])]
    result = imported(tmp_path, [entry("Root")], circle)
    assert sum(map(len, parents(result).values())) == 3
    assert len(result.report.left_out["link that closes a cycle"]) == 1


def test_a_folder_that_is_one_cycle_still_gives_a_pack(tmp_path: Path) -> None:
    names = [f"N{i}" for i in range(50)]
    result = imported(
        tmp_path, [entry(name, [names[i - 1]], [names[i - 1]]) for i, name in enumerate(names)]
    )
    assert len(result.pack) == 50


def test_a_chain_longer_than_the_recursion_limit_is_walked(tmp_path: Path) -> None:
    chain = [entry(f"N{i}", [f"N{i + 1}"] if i < 1499 else ["N0"]) for i in range(1500)]
    assert len(imported(tmp_path, chain).report.left_out["link that closes a cycle"]) == 1


def test_of_two_entries_of_a_name_the_first_stays(tmp_path: Path) -> None:
    first, second = entry("Bird", definition="The first."), entry("Bird", definition="The second.")
    result = imported(tmp_path, [first, second], [entry("Bird")])
    assert result.pack["Bird"].definition == "The first."
    assert result.report.left_out == {
        "second entry of a name": ["Bird in layer0.json", "Bird in layer1.json"]
    }


# --- definitions and hints ----------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "", " \n", 7, ["A thing."], "&%", "\ud800"])
def test_a_missing_definition_is_empty_and_reported(tmp_path: Path, nothing: Any) -> None:
    concept, result = one(tmp_path, entry("Plant", definition=nothing))
    assert concept.definition == ""
    assert result.report.repaired == {"concept without a definition": ["Plant"]}


@pytest.mark.parametrize(
    "says_nothing", ["Grouping category for things.", "container node", "Umbrella concept of all"]
)
def test_a_grouping_definition_gives_way_to_the_other_one(
    tmp_path: Path, says_nothing: str
) -> None:
    concept, result = one(
        tmp_path, entry("Made", definition=says_nothing, sumo_definition="What people made.")
    )
    assert concept.definition == "What people made."
    assert result.report.left_out == {"definition that says nothing": [f"Made: {says_nothing}"]}


def test_marks_and_line_breaks_are_taken_out_of_a_definition(tmp_path: Path) -> None:
    concept, result = one(tmp_path, entry("Tool", definition=" An &%Artifact made\nto  serve. "))
    assert concept.definition == "An Artifact made to serve."
    assert result.report.repaired == {"definition with marks or line breaks": ["Tool"]}


def test_an_invented_synset_does_no_harm(tmp_path: Path) -> None:
    made = entry("Bird", synsets=["a_bird.n.01"], canonical_synset="no.such.99")
    assert one(tmp_path, made)[0] == one(tmp_path, entry("Bird"))[0]


def test_an_example_that_names_its_concept_is_left_out(tmp_path: Path) -> None:
    concept, result = one(
        tmp_path, hints(positive_examples=["A bird sang.", "It sang at dawn.", "It sang at dawn."])
    )
    assert concept.examples == ("It sang at dawn.",)
    assert result.report.left_out == {"example that names its concept": ["Bird: A bird sang."]}


def test_confusable_concepts_that_do_not_exist_are_reported_in_order(tmp_path: Path) -> None:
    concept, result = one(
        tmp_path, hints(confusable_with=["Other", "Bat", "Bird", "Aircraft", "Kite", "Bat"])
    )
    assert concept.confusable_with == ("Other",)
    missing = ["Bat of Bird", "Aircraft of Bird", "Kite of Bird"]
    assert result.report.left_out == {"confusable concept that does not exist": missing}


def test_aliases_that_are_the_name_or_nothing_are_dropped(tmp_path: Path) -> None:
    made = entry(
        "CookingDevice", aliases=["_", "Cooking_Device"], lemmas=["stove", "stove", "\ud800"]
    )
    assert one(tmp_path, made)[0].aliases == ("stove",)


# --- wrong types --------------------------------------------------------------------------------

WRONG: list[Any] = [
    None,
    0,
    1.5,
    True,
    "text",
    [None, 3, ["Other"], {"a": 1}, ""],
    {"Other": {"Other": []}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "key",
    [
        "parent_concepts",
        "child_concepts",
        "category_children",
        "aliases",
        "lemmas",
        "training_hints",
        "layer",
        "synsets",
        "definition",
        "safety_tags",
        "relationships",
    ],
)
def test_a_value_of_the_wrong_type_is_as_good_as_none(tmp_path: Path, key: str, wrong: Any) -> None:
    concept, _ = one(
        tmp_path, {**entry("Bird", sumo_definition="A thing of some kind."), key: wrong}
    )
    expected = "text" if (key, wrong) == ("definition", "text") else "A thing of some kind."
    assert concept == Concept(id="Bird", name="bird", level=0, definition=expected)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", ["positive_examples", "negative_examples", "confusable_with"])
def test_a_hint_of_the_wrong_type_is_as_good_as_none(tmp_path: Path, key: str, wrong: Any) -> None:
    assert one(tmp_path, hints(**{key: wrong}))[0] == one(tmp_path, entry("Bird"))[0]


def test_entries_that_are_not_objects_or_have_no_name_are_left_out(tmp_path: Path) -> None:
    bad = [
        None,
        3,
        "Bird",
        ["Bird"],
        {},
        entry(None),
        entry(7),
        entry(" "),
        entry(["Bird"]),
        entry("\ud800"),
    ]
    result = imported(tmp_path, [*bad, entry("Real")])
    assert [concept.id for concept in result.pack.concepts] == ["Real"]
    assert result.report.left_out["entry without a name"] == [
        f"layer0.json entry {i}" for i in range(10)
    ]


@pytest.mark.parametrize("content", ["null", "3", '{"concepts": {"a": 1}}', '{"concepts": null}'])
def test_a_file_without_a_list_is_left_out_and_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "layer1.json").write_text(content)
    result = imported(tmp_path, [entry("Real")])
    assert result.report.left_out == {"layer file without a list of concepts": ["layer1.json"]}


def test_a_bare_list_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "layer0.json").write_text(json.dumps([entry("Bare")]), encoding="utf-8-sig")
    assert import_hatcat(tmp_path).pack["Bare"].level == 0


def test_levels_come_by_number_and_other_files_are_not_read(tmp_path: Path) -> None:
    for name, term in (
        ("layer10", "Low"),
        ("layer2", "High"),
        ("layer", "No"),
        ("layer2_old", "No"),
        ("pack", "No"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps([entry(term)]))
    assert [(c.id, c.level) for c in import_hatcat(tmp_path).pack.concepts] == [
        ("High", 2),
        ("Low", 10),
    ]


# --- folders that do not serve ------------------------------------------------------------------


def test_a_folder_without_layer_files_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert not is_hatcat(folder)
        with pytest.raises(PackError, match=r"has no layer0\.json, layer1\.json"):
            import_hatcat(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000])
def test_a_file_that_is_not_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "layer3.json").write_bytes(content)
    assert is_hatcat(tmp_path)
    with pytest.raises(PackError, match=r"layer3\.json is not JSON"):
        import_hatcat(tmp_path)


@pytest.mark.parametrize("entries", [[], [None], [{"definition": "Nameless."}]])
def test_a_folder_without_a_usable_concept_is_an_error(tmp_path: Path, entries: list[Any]) -> None:
    with pytest.raises(PackError, match="holds no usable concept"):
        imported(tmp_path, entries)


# --- size ---------------------------------------------------------------------------------------


def untidy_levels() -> list[list[Any]]:
    """8,000 concepts on six levels: dangling names, second parents, cycles, gaps."""
    levels: list[list[Any]] = []
    above = [""]
    for level, n in enumerate((10, 90, 900, 2000, 3000, 2000)):
        names = [f"L{level}Concept{i}" for i in range(n)]
        made = [
            entry(
                name,
                [above[i % len(above)], above[i * 7 % len(above)], f"Ghost{i}"]
                + [names[i - 1]] * (i % 50 == 0),
                [names[i - 1]] * (i % 50 == 1),
                definition="" if i % 9 == 0 else f"The &%Thing\nnumber {i}.",
                training_hints={
                    "positive_examples": [f"Sight {i} of {level}."],
                    "confusable_with": ["Ghost", names[0]],
                },
            )
            for i, name in enumerate(names)
        ]
        levels.append([*made, None, made[0]])
        above = names
    return levels


@pytest.mark.slow
def test_8000_untidy_concepts_are_imported_in_seconds_and_alike_each_time(tmp_path: Path) -> None:
    start = time.perf_counter()
    one = imported(tmp_path, *untidy_levels())
    assert len(one.pack) == 8000
    assert time.perf_counter() - start < 60
    assert import_hatcat(tmp_path) == one
    assert len(one.report.lines()) < 15
    assert max(map(len, one.report.lines())) < 300


# --- a whole concept pack, written for these tests -----------------------------------------------

HARBOUR = Path(__file__).parent / "harbour-talk"
"""A concept pack in HatCat's schema, with every key that real ones use."""


def test_a_pack_is_read_from_its_folder_its_hierarchy_or_one_layer_file() -> None:
    whole, below = import_hatcat(HARBOUR), import_hatcat(HARBOUR / "hierarchy")
    one = import_hatcat(HARBOUR / "hierarchy" / "layer1.json")
    assert whole == below
    assert len(whole.pack) == 7
    assert set(one.pack.hierarchy) == {c.id for c in whole.pack.in_level(1)}
    assert {pack.name for pack in (whole.pack, below.pack, one.pack)} == {"harbour-talk"}
    assert all(
        map(is_hatcat, (HARBOUR, HARBOUR / "hierarchy", HARBOUR / "hierarchy" / "layer1.json"))
    )
    assert not is_hatcat(HARBOUR / "pack.json")


def test_name_version_and_licence_come_from_pack_json() -> None:
    pack = import_hatcat(HARBOUR).pack
    assert (pack.name, pack.version, pack.license) == ("harbour-talk", "0.2.0", "Apache-2.0")
    assert pack.description.startswith("What is said and done")


def test_a_folder_above_packs_says_which_to_give(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "packs" / name / "hierarchy").mkdir(parents=True)
        (tmp_path / "packs" / name / "hierarchy" / "layer0.json").write_text("[]")
    assert is_hatcat(tmp_path / "packs")
    with pytest.raises(PackError, match=r"2 folders below it do: give one of them \(.*one, .*two"):
        import_hatcat(tmp_path / "packs")


def test_a_hierarchy_without_layer_files_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "hierarchy").mkdir()
    (tmp_path / "hierarchy" / "layer_b_behaviour.json").write_text("{}")
    assert is_hatcat(tmp_path)
    with pytest.raises(PackError, match=r"give the folder of a pack.*hierarchy/, or one layerN"):
        import_hatcat(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", b"\xff".decode("latin-1")])
def test_a_pack_json_that_cannot_be_used_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "pack.json").write_text(content, encoding="latin-1")
    result = imported(tmp_path, [entry("Real")])
    assert result.pack.name == tmp_path.name
    assert list(result.report.left_out) == ["pack.json that is no JSON object"]


def test_aliases_that_are_terms_are_spoken_as_names_are(tmp_path: Path) -> None:
    assert import_hatcat(HARBOUR).pack["Deception"].aliases == (
        "misleading speech",
        "Trickery",
        "deceit",
    )
    made = entry("Bird", aliases=["WaterBird", "AIModel", "AI model", "Fowl", "sea_bird", "eBird"])
    aliases = one(tmp_path, made)[0].aliases
    assert aliases == ("water bird", "AI model", "Fowl", "sea bird", "eBird")


@pytest.mark.parametrize(
    "spelling",
    [
        "This is an example of WaterBird.",
        "this is an example of water bird",
        "This is an Example of a water bird!",
        'This is an example of "Water_Bird".',
        "Here is one example of the waterbirds.",
        "An example of: water-bird",
        "This text is an instance of WATERBIRD",
        "This is not an example of water bird.",
        "Examples of  swimmers.",
        "This is an example of Other.",
    ],
)
def test_texts_that_only_say_what_they_are_an_example_of_are_left_out(
    tmp_path: Path, spelling: str
) -> None:
    texts = {"positive_examples": [spelling], "negative_examples": [spelling]}
    made = entry("WaterBird", definition=spelling, lemmas=["swimmer"], training_hints=texts)
    concept, result = one(tmp_path, made)
    assert (concept.definition, concept.examples, concept.negatives) == ("", (), ())
    assert len(result.report.left_out["definition that says nothing"]) == 1
    assert len(result.report.left_out["example that only says what it is an example of"]) == 2


@pytest.mark.parametrize(
    "text", ["This is an example of how not to land.", "The best example of patience is a heron."]
)
def test_texts_that_say_more_than_what_they_are_an_example_of_stay(
    tmp_path: Path, text: str
) -> None:
    concept, _ = one(tmp_path, entry("Bird", training_hints={"positive_examples": [text]}))
    assert concept.examples == (text,)


def test_an_example_with_the_term_of_its_concept_names_it(tmp_path: Path) -> None:
    text = "A WaterBird landed on the pond."
    made = entry("WaterBird", training_hints={"positive_examples": [text]})
    concept, result = one(tmp_path, made)
    assert concept.examples == ()
    assert result.report.left_out == {"example that names its concept": [f"WaterBird: {text}"]}


def test_antonyms_and_opposites_become_contrasts_whether_the_pack_has_them_or_not() -> None:
    concept = import_hatcat(HARBOUR).pack["Deception"]
    assert concept.contrasts == (
        'The opposite of "deception" is "plain speech".',
        'The opposite of "deception" is "candour".',
    )
    assert all(map(concept.is_named_in, concept.contrasts))


def test_related_concepts_of_the_pack_become_confusable() -> None:
    pack = import_hatcat(HARBOUR).pack
    assert pack["Deception"].confusable_with == ("Flattery", "PlainSpeech")
    assert pack["WaterVessel"].confusable_with == ("OarBlade",)
    assert pack["OarBlade"].confusable_with == ("WaterVessel",)


def test_safety_tags_and_simplex_mapping_become_attributes() -> None:
    pack = import_hatcat(HARBOUR).pack
    assert pack["Deception"].attributes == {
        "risk_level": ("high",),
        "impacts": ("deception", "consent"),
        "treaty_relevant": ("false",),
        "harness_relevant": ("true",),
        "simplex_status": ("mapped",),
        "simplex": ("DeceptionDetector",),
    }
    assert pack["PlainSpeech"].attributes["simplex_status"] == ("not_applicable",)
    assert pack["OarBlade"].attributes == {}


def test_what_cannot_be_used_is_counted_by_kind() -> None:
    report = import_hatcat(HARBOUR).report
    assert report.to_dict()["left_out"] == {
        "definition that says nothing": 1,
        "example that only says what it is an example of": 2,
        "related that is not in the pack": 1,
        "related that is above or below its concept": 1,
        "part_of that is above or below its concept": 1,
        "has_part that is not in the pack": 1,
        "relationships.opposite_rationale, for which a pack has no place": 1,
        "simplex_mapping.mapping_rationale, by which nothing can be filtered": 1,
        "simplex_mapping.unmapped_justification, by which nothing can be filtered": 1,
        "training_hints.disambiguation, for which a pack has no place": 1,
        "training_hints.key_features, for which a pack has no place": 1,
    }


def test_a_hatcat_pack_survives_being_saved(tmp_path: Path) -> None:
    pack = import_hatcat(HARBOUR).pack
    pack.save(tmp_path / "pack.json")
    loaded = ConceptPack.load(tmp_path / "pack.json")
    assert (loaded, loaded.digest) == (pack, pack.digest)
