from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lenscache.concepts.importers.wordnet import import_wordnet, is_wordnet
from lenscache.errors import PackError

LICENCE = "  1 This software and database is being provided to you  \n  2 under a licence.  \n"
REAL = Path("/usr/share/wordnet")


@dataclass
class Synset:
    words: list[str]
    gloss: str
    above: list[str] = field(default_factory=list)
    """Keys of hypernyms; "i dog" for what the synset is an instance of."""


# In the order of the file, by a key of the test's own.
ANIMALS = {
    "entity": Synset(["entity"], "that which exists  "),
    "thing": Synset(["thing"], "a separate entity", ["entity"]),
    "animal": Synset(
        ["animal", "animate_being", "beast", "brute", "creature"],
        'a living being that moves; "the animal slept"; "creatures of the night"; '
        '"it ran away from us"  ',
        ["thing"],
    ),
    "person": Synset(["person"], "a human being", ["animal", "thing"]),
    "dog": Synset(
        ["dog", "Canis_familiaris"],
        'it barks (has four legs): "he chased the ball all day"',
        ["animal"],
    ),
    "frump": Synset(["frump", "dog"], "a dull person", ["person"]),
    "dog 2": Synset(["Dog", "cad"], "someone who is morally reprehensible", ["person"]),
    "laika": Synset(["Laika"], "the first one in orbit", ["i dog"]),
}


def data_lines(synsets: dict[str, Synset], offsets: dict[str, int]) -> list[str]:
    lines = []
    for key, synset in synsets.items():
        pointers = [
            f"{'@i' if above[:2] == 'i ' else '@'} {offsets[above.removeprefix('i ')]:08d} n 0000"
            for above in synset.above
        ]
        for other, below in synsets.items():
            pointers += [f"~ {offsets[other]:08d} n 0000" for above in below.above if above == key]
            pointers += [
                f"~i {offsets[other]:08d} n 0000" for above in below.above if above == f"i {key}"
            ]
        pointers.append("+ 00000042 v 0101")
        words = " ".join(f"{word} 0" for word in synset.words)
        head = (
            f"{offsets[key]:08d} 03 n {len(synset.words):02x} {words} {len(pointers):03d} "
            f"{' '.join(pointers)}"
        )
        lines.append(f"{head} | {synset.gloss}\n")
    return lines


def write_wordnet(folder: Path, synsets: dict[str, Synset]) -> dict[str, int]:
    """Write the two files; offsets are the places of the lines in bytes, as in the real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets, at = {}, len(LICENCE)
    for key, line in zip(synsets, data_lines(synsets, dict.fromkeys(synsets, 0)), strict=True):
        offsets[key] = at
        at += len(line.encode())
    (folder / "data.noun").write_text(
        LICENCE + "".join(data_lines(synsets, offsets)), encoding="utf-8"
    )
    senses: dict[str, list[int]] = {}
    for key, synset in synsets.items():
        for word in synset.words:
            senses.setdefault(word.lower(), []).append(offsets[key])
    entries = (
        (
            f"{word} n {len(found)} 2 @ ~ {len(found)} 1 "
            f"{' '.join(f'{offset:08d}' for offset in found)}  \n"
        )
        for word, found in sorted(senses.items())
    )
    (folder / "index.noun").write_text(LICENCE + "".join(entries), encoding="utf-8")
    return offsets


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    write_wordnet(tmp_path / "wordnet", ANIMALS)
    return tmp_path / "wordnet"


def edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text(encoding="utf-8")
    assert change(before) != before
    file.write_text(change(before), encoding="utf-8")


def test_offsets_of_the_written_files_are_right(tmp_path: Path) -> None:
    offsets = write_wordnet(tmp_path, ANIMALS)
    data = (tmp_path / "data.noun").read_bytes()
    assert all(
        data[offset:].startswith(f"{offset:08d} 03 n".encode()) for offset in offsets.values()
    )


def test_the_folder_or_a_dict_folder_in_it_is_known(tmp_path: Path) -> None:
    assert not is_wordnet(tmp_path)
    write_wordnet(tmp_path / "wn" / "dict", ANIMALS)
    assert is_wordnet(tmp_path / "wn")
    assert is_wordnet(tmp_path / "wn" / "dict")
    assert (
        import_wordnet(tmp_path / "wn").pack.to_dict()["concepts"]
        == (import_wordnet(tmp_path / "wn" / "dict").pack.to_dict()["concepts"])
    )


def test_ids_levels_and_parents(animals: Path) -> None:
    imported = import_wordnet(animals)
    assert {c.id: (c.level, c.parents) for c in imported.pack.concepts} == {
        "entity.n.01": (0, ()),
        "thing.n.01": (1, ("entity.n.01",)),
        "animal.n.01": (2, ("thing.n.01",)),
        "person.n.01": (2, ("thing.n.01",)),
        "dog.n.01": (3, ("animal.n.01",)),
        "frump.n.01": (3, ("person.n.01",)),
        "dog.n.03": (3, ("person.n.01",)),
        "laika.n.01": (4, ("dog.n.01",)),
    }
    assert imported.report.read == {"synsets": 8, "concepts": 8}
    assert imported.report.repaired == {}


def test_a_hypernym_that_is_not_higher_up_is_reported(animals: Path) -> None:
    left_out = import_wordnet(animals).report.left_out
    assert left_out["hypernym that is not on a level above"] == ["animal.n.01 of person.n.01"]


def test_names_and_at_most_three_aliases(animals: Path) -> None:
    pack = import_wordnet(animals).pack
    assert (pack["animal.n.01"].name, pack["animal.n.01"].aliases) == (
        "animal",
        ("animate being", "beast", "brute"),
    )
    assert pack["dog.n.01"].aliases == ("Canis familiaris",)
    assert pack["laika.n.01"].name == "Laika"


def test_the_gloss_is_definition_and_examples(animals: Path) -> None:
    imported = import_wordnet(animals)
    assert imported.pack["animal.n.01"].definition == "a living being that moves"
    assert imported.pack["animal.n.01"].examples == ("it ran away from us",)
    assert imported.pack["dog.n.01"].definition == "it barks (has four legs)"
    assert imported.pack["dog.n.01"].examples == ("he chased the ball all day",)
    assert imported.report.left_out["example that names its concept"] == [
        "animal.n.01: the animal slept",
        "animal.n.01: creatures of the night",
    ]


def test_depth_limits_the_selection(animals: Path) -> None:
    assert [c.id for c in import_wordnet(animals, max_depth=1).pack.concepts] == [
        "entity.n.01",
        "thing.n.01",
    ]


def test_roots_are_on_level_0(animals: Path) -> None:
    pack = import_wordnet(animals, roots=["dog.n.01", "person.n.01"]).pack
    assert {c.id: (c.level, c.parents) for c in pack.concepts} == {
        "person.n.01": (0, ()),
        "dog.n.01": (0, ()),
        "frump.n.01": (1, ("person.n.01",)),
        "dog.n.03": (1, ("person.n.01",)),
        "laika.n.01": (1, ("dog.n.01",)),
    }


def test_a_link_given_from_above_only_is_enough(animals: Path) -> None:
    edit(
        animals / "data.noun",
        lambda text: text.replace("n 01 Laika 0 002 @i", "n 01 Laika 0 002 !"),
    )
    imported = import_wordnet(animals)
    assert imported.pack["laika.n.01"].parents == ("dog.n.01",)
    assert imported.report.repaired == {
        "link given by the hypernym only": ["laika.n.01 below dog.n.01"]
    }


def test_faulty_lines_are_left_out_and_reported(animals: Path) -> None:
    faults = (
        "rubbish\n00000007 03 n 02 one 0 000 | too few words\n00000008 03 n 01 one 0 003 @ "
        "00000001 n 0000 |\n"
    )
    faults += "00000009 03 n 01 orphan 0 002 @ 99999999 n 0000 ~ 99999998 n 0000 |\n" * 2
    edit(animals / "data.noun", lambda text: text + faults)
    edit(animals / "index.noun", lambda text: text + "word n\nword n 5 0 1 0 00000009\n")
    imported = import_wordnet(animals)
    assert len(imported.pack) == 8
    left_out = imported.report.left_out
    assert left_out["line that is not a synset"] == [f"data.noun line {n}" for n in (11, 12, 13)]
    assert left_out["second synset of an offset"] == ["data.noun line 15"]
    assert left_out["hypernym that does not exist"] == ["99999999 of orphan.n.00000009"]
    assert left_out["hyponym that does not exist"] == ["99999998 of orphan.n.00000009"]
    assert left_out["line that is not an index entry"] == [
        "index.noun line 16",
        "index.noun line 17",
    ]


def test_a_synset_that_the_index_lacks_is_named_by_its_offset(animals: Path) -> None:
    edit(animals / "index.noun", lambda text: text.replace("thing n", "think n"))
    imported = import_wordnet(animals)
    name = imported.report.repaired["synset that the index lacks, named by its offset"][0]
    assert imported.pack[name].name == "thing"


def test_a_gloss_without_a_definition_is_reported_and_unicode_kept(tmp_path: Path) -> None:
    synsets = {
        "entity": Synset(["entity"], '"quoted alone"'),
        "café": Synset(["café"], "a place for coffee – 珈琲", ["entity"]),
    }
    write_wordnet(tmp_path, synsets)
    imported = import_wordnet(tmp_path)
    assert imported.report.repaired == {"concept without a definition": ["entity.n.01"]}
    assert imported.pack["café.n.01"].definition == "a place for coffee – 珈琲"


def test_the_same_files_give_the_same_pack(animals: Path) -> None:
    first, second = import_wordnet(animals), import_wordnet(animals)
    assert first.pack.to_dict() == second.pack.to_dict()
    assert first.report == second.report


def test_eight_thousand_concepts_are_read(tmp_path: Path) -> None:
    offsets = {n: 1000 + n for n in range(8000)}
    lines = [f"{offsets[0]:08d} 03 n 01 entity 0 000 | all\n"]
    lines += [
        f"{offsets[n]:08d} 03 n 01 w{n} 0 001 @ {offsets[n // 7]:08d} n 0000 | kind {n}\n"
        for n in range(1, 8000)
    ]
    (tmp_path / "data.noun").write_text(LICENCE + "".join(lines))
    index = [
        f"{'entity' if n == 0 else f'w{n}'} n 1 0 1 0 {offset:08d}\n"
        for n, offset in offsets.items()
    ]
    (tmp_path / "index.noun").write_text(LICENCE + "".join(index))
    pack = import_wordnet(tmp_path, max_depth=9).pack
    assert len(pack) == 8000
    assert pack["w7999.n.01"].parents == ("w1142.n.01",)


@pytest.mark.parametrize(
    ("root", "close"), [("dog.n.02", "dog.n.01"), ("dog", "dog.n.01"), ("anmial.n.01", "animal")]
)
def test_an_unknown_root_names_close_ones(animals: Path, root: str, close: str) -> None:
    with pytest.raises(PackError, match=f"no concept '{root}' in .*did you mean .*{close}"):
        import_wordnet(animals, roots=[root])


@pytest.mark.parametrize("name", ["data.noun", "index.noun"])
def test_a_missing_file_is_named(animals: Path, name: str) -> None:
    (animals / name).unlink()
    with pytest.raises(PackError, match=f"no file at .*{name}"):
        import_wordnet(animals)


@pytest.mark.parametrize("limits", [{"roots": []}, {"max_depth": -1}])
def test_nothing_to_take_is_an_error(animals: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(PackError, match="nothing to take"):
        import_wordnet(animals, **limits)


def test_a_file_without_synsets_is_an_error(animals: Path) -> None:
    (animals / "data.noun").write_text(LICENCE)
    with pytest.raises(PackError, match="holds no synset"):
        import_wordnet(animals)


@pytest.mark.skipif(not REAL.exists(), reason="WordNet is not installed")
def test_the_real_wordnet_is_read() -> None:
    imported = import_wordnet(REAL)
    assert imported.report.read["synsets"] > 80_000
    assert len(imported.pack) > 1000
    assert imported.pack["entity.n.01"].level == 0
    assert imported.pack["physical_entity.n.01"].parents == ("entity.n.01",)
    assert all(c.definition for c in imported.pack.concepts)
