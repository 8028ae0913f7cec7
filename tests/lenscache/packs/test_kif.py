from __future__ import annotations

from pathlib import Path

import pytest

from lenscache.concepts.importers.kif import import_kif, is_kif
from lenscache.concepts.importers.report import Imported
from lenscache.errors import PackError

ANIMALS = """\
;; A few animals; not (subclass Commented Out)
(subclass Physical Entity)
(documentation Entity EnglishLanguage "The class of &%Entity things.")
(subclass Animal Physical) ; a comment (with a parenthesis
(documentation Animal EnglishLanguage "A living &%Physical thing
    that is called \\"animal\\"; and
(by the way) moves.")
(documentation Animal FrenchLanguage "Un animal.")
(termFormat EnglishLanguage Animal "living animal")
(termFormat EnglishLanguage Animal "creature")
(termFormat EnglishLanguage Animal "Living Animal")
(termFormat FrenchLanguage Animal "bête")
(subclass DomesticAnimal Animal)
(instance Laika DomesticAnimal)
(=> (instance ?X Animal)
    (exists (?Y) (subclass Hidden Animal)))
"""


def import_text(folder: Path, text: str, roots: list[str] | None = None) -> Imported:
    file = folder / "test.kif"
    file.write_text(text, encoding="utf-8")
    return import_kif(file, roots=roots)


def test_kif_files_and_their_folders_are_known(tmp_path: Path) -> None:
    assert not is_kif(tmp_path)
    file = tmp_path / "Merge.kif"
    file.touch()
    assert is_kif(file)
    assert is_kif(tmp_path)
    assert not is_kif(tmp_path / "missing.kif")


def test_subclasses_and_instances_make_the_hierarchy(tmp_path: Path) -> None:
    pack = import_text(tmp_path, ANIMALS).pack
    assert {c.id: (c.level, c.parents) for c in pack.concepts} == {
        "Entity": (0, ()),
        "Physical": (1, ("Entity",)),
        "Animal": (2, ("Physical",)),
        "DomesticAnimal": (3, ("Animal",)),
        "Laika": (4, ("DomesticAnimal",)),
    }


def test_a_definition_spans_lines_and_loses_marks_and_escapes(tmp_path: Path) -> None:
    pack = import_text(tmp_path, ANIMALS).pack
    assert (
        pack["Animal"].definition
        == 'A living Physical thing that is called "animal"; and (by the way) moves.'
    )


def test_names_are_english_formats_or_else_the_words_of_the_term(tmp_path: Path) -> None:
    pack = import_text(tmp_path, ANIMALS).pack
    assert (pack["Animal"].name, pack["Animal"].aliases) == ("living animal", ("creature",))
    assert (pack["DomesticAnimal"].name, pack["DomesticAnimal"].aliases) == ("domestic animal", ())


def test_roots_take_only_what_is_below_them(tmp_path: Path) -> None:
    pack = import_text(tmp_path, ANIMALS, ["Animal"]).pack
    assert {c.id: c.level for c in pack.concepts} == {"Animal": 0, "DomesticAnimal": 1, "Laika": 2}
    assert pack["Animal"].parents == ()


def test_a_root_below_another_keeps_its_place(tmp_path: Path) -> None:
    pack = import_text(tmp_path, ANIMALS, ["DomesticAnimal", "Animal"]).pack
    assert pack["DomesticAnimal"].parents == ("Animal",)
    assert pack["DomesticAnimal"].level == 1


def test_the_level_is_one_below_the_highest_parent(tmp_path: Path) -> None:
    pack = import_text(
        tmp_path, "(subclass B A)\n(subclass C B)\n(subclass D C)\n(subclass D A)\n"
    ).pack
    assert (pack["D"].level, pack["D"].parents) == (1, ("C", "A"))


def test_what_is_only_mentioned_as_a_parent_exists_and_is_reported(tmp_path: Path) -> None:
    imported = import_text(tmp_path, "(subclass Dog Animal)\n")
    assert imported.pack["Animal"].definition == ""
    assert imported.report.repaired["concept that is only mentioned as a parent"] == ["Animal"]
    assert imported.report.repaired["concept without a definition"] == ["Dog", "Animal"]


def test_an_instance_of_what_is_not_a_concept_is_left_out(tmp_path: Path) -> None:
    imported = import_text(
        tmp_path, "(instance Y X)\n(instance X Dog)\n(instance P Q)\n(subclass Dog Animal)\n"
    )
    assert imported.pack["Y"].parents == ("X",)
    assert imported.report.left_out == {"instance of what is not a concept": ["P of Q"]}


def test_cycles_are_cut_and_reported(tmp_path: Path) -> None:
    imported = import_text(
        tmp_path, "(subclass A B)\n(subclass B C)\n(subclass C A)\n(subclass D D)\n"
    )
    assert {c.id: c.parents for c in imported.pack.concepts} == {
        "A": ("B",),
        "B": ("C",),
        "C": (),
        "D": (),
    }
    assert imported.report.left_out == {"link that closes a cycle": ["C below A", "D below D"]}


@pytest.mark.parametrize(
    ("fault", "kind", "line"),
    [
        ("(subclass Cat", "form with an open parenthesis", 2),
        ("(=> (and (P A)\n   (Q A)", "form with an open parenthesis", 2),
        (
            "(subclass Owl Bird))\n  (subclass Lost Bird)",
            "text or parenthesis outside of a form",
            2,
        ),
        ("astray (subclass Lost Bird)", "text or parenthesis outside of a form", 2),
        ('(documentation Cat EnglishLanguage "open)', "form with an open quote", 2),
    ],
)
def test_reading_goes_on_after_a_fault(tmp_path: Path, fault: str, kind: str, line: int) -> None:
    imported = import_text(
        tmp_path, f"(subclass Owl Bird)\n{fault}\n(subclass Bird Animal)\n(subclass Animal Thing)\n"
    )
    assert {c.id for c in imported.pack.concepts} == {"Owl", "Bird", "Animal", "Thing"}
    assert imported.report.left_out == {kind: [f"test.kif line {line}"]}


@pytest.mark.parametrize(
    "end", ["(subclass Cat Animal", '(documentation Cat EnglishLanguage "open', "((((", '(a "\\']
)
def test_a_file_that_breaks_off_is_read_up_to_there(tmp_path: Path, end: str) -> None:
    imported = import_text(tmp_path, f"(subclass Dog Animal)\n{end}")
    assert [c.id for c in imported.pack.concepts] == ["Dog", "Animal"]
    assert sum(map(len, imported.report.left_out.values())) == 1


def test_variables_and_functions_are_no_concepts(tmp_path: Path) -> None:
    text = """(subclass ?X Dog)
(instance @ROW Dog)
(subclass (KnobFn A) Dog)
(subclass "Cat" Dog)
(subclass Dog)
(subclass Dog Animal)
"""
    imported = import_text(tmp_path, text)
    assert [c.id for c in imported.pack.concepts] == ["Dog", "Animal"]
    assert {kind: len(places) for kind, places in imported.report.left_out.items()} == {
        "subclass that does not link two terms": 4,
        "instance that does not link two terms": 1,
    }


def test_the_first_of_two_documentations_is_kept(tmp_path: Path) -> None:
    text = '(documentation A EnglishLanguage "One.")\n(documentation A EnglishLanguage "Two.")\n'
    imported = import_text(tmp_path, text)
    assert imported.pack["A"].definition == "One."
    assert imported.report.left_out == {"second documentation of a term": ["A in test.kif line 2"]}


def test_unicode_is_kept_and_bad_bytes_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "test.kif"
    head = "\ufeff(subclass Größe Quantität)\n"
    text = '(documentation Größe EnglishLanguage "Wie groß, 大きさ.")\n'
    file.write_bytes((head + text).encode() + b"; caf\xe9\n")
    imported = import_kif(file)
    assert imported.pack["Größe"].definition == "Wie groß, 大きさ."
    assert imported.report.repaired["character that is not UTF-8, replaced"] == ["test.kif line 3"]


def test_the_files_of_a_folder_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.kif").write_text("(subclass Dog Animal)\n")
    (tmp_path / "b.KIF").write_text("(subclass Animal Thing)\n")
    (tmp_path / "notes.txt").write_text("(subclass Note Thing)\n")
    imported = import_kif(tmp_path)
    assert [c.id for c in imported.pack.concepts] == ["Dog", "Animal", "Thing"]
    assert imported.report.read == {"files": 2, "concepts": 3}


def test_the_same_file_gives_the_same_pack(tmp_path: Path) -> None:
    first, second = (import_text(tmp_path, ANIMALS) for _ in range(2))
    assert first.pack.to_dict() == second.pack.to_dict()
    assert first.report == second.report


def test_eight_thousand_concepts_and_long_chains_are_read(tmp_path: Path) -> None:
    tree = [
        f'(subclass T{n} T{n // 3})\n(documentation T{n} EnglishLanguage "T {n}.")\n'
        for n in range(1, 4000)
    ]
    chain = [f"(subclass C{n} C{n + 1})\n" for n in range(4000)]
    pack = import_text(tmp_path, "".join(tree + chain) + "(" * 20_000).pack
    assert len(pack) == 4000 + 4001
    assert pack["C0"].level == 4000


def test_an_unknown_root_names_close_ones(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"no concept 'Animals' in .*did you mean Animal"):
        import_text(tmp_path, ANIMALS, ["Animals"])
    with pytest.raises(PackError, match="no roots given"):
        import_text(tmp_path, ANIMALS, [])


def test_a_source_without_concepts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="holds no concept"):
        import_text(tmp_path, "; nothing\n(=> (P ?X) (Q ?X))\n")
    for path in (tmp_path / "missing.kif", tmp_path / "empty"):
        with pytest.raises(PackError, match=r"is not a \.kif file"):
            import_kif(path)
