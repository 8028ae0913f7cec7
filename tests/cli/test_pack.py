from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from lenscache.concepts.pack import ConceptPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error

ROWS = "text,label,fold\n" + "".join(
    f"{word} is text {i},{i % 2},train\n" for i, word in enumerate("abcdefgh" * 5)
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A binary set of 40 rows, with one row that has no label."""
    file = tmp_path / "reviews.csv"
    file.write_text(f"{ROWS}no label,,train\n")
    return file


@pytest.fixture
def clean_pack(tmp_path: Path) -> Path:
    """A pack of its own without findings."""
    file = tmp_path / "clean.json"
    subjects = (
        "The wind",
        "An old man",
        "Nobody",
        "Rain at noon",
        "Her dog",
        "Our train",
        "My sister",
        "That bell",
        "The crowd",
        "One lamp",
        "Its engine",
        "A loose sail",
    )
    ends = (
        "rattled the gate",
        "left early",
        "knew a reason",
        "washed out the path",
        "kept howling",
        "stood still",
        "wrote a letter",
        "rang for hours",
        "pushed towards the doors",
        "flickered on and off",
        "coughed and died",
        "flapped against a mast",
    )
    concept = {
        "id": "unrest",
        "name": "unrest",
        "layer": 0,
        "definition": "When nothing is still.",
        "examples": [f"{subject} {end}." for subject, end in zip(subjects, ends, strict=True)],
        "contrasts": ["Unrest is the name of a band."],
    }
    file.write_text(
        json.dumps({"format_version": 1, "name": "clean", "version": "2", "concepts": [concept]})
    )
    return file


@pytest.mark.parametrize("command", ["import", "check", "show"])
def test_help_of_every_pack_command_ends_with_an_example(lenscache: Run, command: str) -> None:
    result = lenscache("pack", command, "--help")
    assert result.exit_code == 0
    assert f"Example: lenscache pack {command}" in " ".join(result.stdout.split())


# --- import -------------------------------------------------------------------------------------


def test_import_check_and_show_go_together(lenscache: Run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack.json"
    made = lenscache(
        "pack", "import", source, "--out", out, "--concept", "praise", "--split", "fold"
    )
    assert made.exit_code == 0, made.stderr
    assert made.stdout.splitlines() == [
        "read: 41 rows",
        "read: 40 texts",
        "read: 1 concepts",
        "class: 20 texts: praise",
        "class: 20 texts: not praise",
        "left out: 1 x row without label: row 41",
        f"written to {out}; next: lenscache pack check {out}",
    ]
    assert ConceptPack.load(out).splits.keys() == {"train"}
    assert "1 concepts, 20 examples" in lenscache("pack", "check", out).stdout
    shown = lenscache("pack", "show", out, "praise")
    assert shown.exit_code == 0, shown.stderr
    assert "b is text 1" in shown.stdout


def test_import_of_a_folder_of_layer_files(lenscache: Run, tmp_path: Path) -> None:
    folder = tmp_path / "layers"
    folder.mkdir()
    (folder / "layer0.json").write_text(
        json.dumps([{"sumo_term": "Animal", "child_concepts": ["Ghost"]}])
    )
    result = lenscache("pack", "import", folder, "--out", tmp_path / "pack.json")
    assert result.exit_code == 0, result.stderr
    assert "repaired: 1 x concept without a definition: Animal" in result.stdout
    assert "left out: 1 x child that does not exist: Ghost of Animal" in result.stdout
    assert ConceptPack.load(tmp_path / "pack.json")["Animal"].name == "animal"


def test_import_prints_its_report_as_json(lenscache: Run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack.json"
    facts = json.loads(lenscache("pack", "import", source, "--out", out, "--json").stdout)
    assert facts == {
        "out": str(out),
        "digest": ConceptPack.load(out).digest,
        "read": {"rows": 41, "texts": 40, "concepts": 1},
        "repaired": {},
        "left_out": {"row without label": 1},
        "classes": {"label": 20, "not label": 20},
    }


def test_import_leaves_an_existing_file_alone_unless_told_to_replace_it(
    lenscache: Run, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack.json"
    out.write_text("mine")
    assert_one_line_error(
        lenscache("pack", "import", source, "--out", out), "exists already", "--overwrite"
    )
    assert out.read_text() == "mine"
    assert lenscache("pack", "import", source, "--out", out, "--overwrite").exit_code == 0
    assert len(ConceptPack.load(out)) == 1


def test_an_import_that_fails_with_overwrite_keeps_the_old_pack(
    lenscache: Run, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack.json"
    out.write_text("mine")
    result = lenscache("pack", "import", source, "--out", out, "--overwrite", "--label", "mood")
    assert_one_line_error(result, "has no column 'mood'", "'text', 'label', 'fold'")
    assert out.read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pack.json", "reviews.csv"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.csv", ["no file at", "nowhere.csv"]),
        ("notes.txt", ["is not one of .csv"]),
        (".", ["is not one of"]),
    ],
)
def test_a_source_that_does_not_serve_is_one_line(
    lenscache: Run, tmp_path: Path, name: str, words: list[str]
) -> None:
    result = lenscache("pack", "import", tmp_path / name, "--out", tmp_path / "pack.json")
    assert_one_line_error(result, *words)
    assert list(tmp_path.iterdir()) == []


def test_import_into_a_folder_that_does_not_exist_is_one_line(
    lenscache: Run, source: Path, tmp_path: Path
) -> None:
    assert_one_line_error(
        lenscache("pack", "import", source, "--out", tmp_path / "no" / "pack.json"), "pack.json"
    )


# --- check --------------------------------------------------------------------------------------


def test_check_of_a_clean_pack_ends_with_0(lenscache: Run, clean_pack: Path) -> None:
    result = lenscache("pack", "check", clean_pack)
    assert result.exit_code == 0
    digest = ConceptPack.load(clean_pack).digest
    assert result.stdout == f"clean 2 ({digest}): 1 concepts, 12 examples; 0 findings\n"


def test_check_with_findings_ends_with_1_and_a_table_of_rules(
    lenscache: Run, clean_pack: Path
) -> None:
    result = lenscache("pack", "check", clean_pack, "--min-examples", 13, "--min-contrasts", 2)
    assert result.exit_code == 1
    assert [line.rstrip() for line in result.stdout.splitlines()[:-2]] == [
        "rule    findings  first few",
        "amount         2  unrest has 12 examples, at least 13 are needed",
        "                  unrest has 1 contrasts, at least 2 are needed",
    ]
    assert f"all of a rule: lenscache pack check {clean_pack} --rule amount\n" in result.stdout
    assert result.stdout.endswith("2 findings\n")
    assert result.stderr == ""


@pytest.fixture
def poor_pack(tmp_path: Path) -> Path:
    """Nine concepts without examples or contrasts, three without a definition."""
    file = tmp_path / "poor.json"
    concepts = [
        {"id": f"c{n}", "name": f"thing {n}", "layer": 0, "definition": "Some." if n % 3 else ""}
        for n in range(9)
    ]
    file.write_text(
        json.dumps({"format_version": 1, "name": "poor", "version": "1", "concepts": concepts})
    )
    return file


def test_check_shows_the_first_few_findings_of_each_rule(lenscache: Run, poor_pack: Path) -> None:
    result = lenscache("pack", "check", poor_pack)
    assert result.exit_code == 1
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[1:7] == [
        "amount            18  c0 has 0 examples, at least 8 are needed",
        "                      c0 has 0 contrasts, at least 1 are needed",
        "                      c1 has 0 examples, at least 8 are needed",
        "definition         3  c0 has no definition",
        "                      c3 has no definition",
        "                      c6 has no definition",
    ]
    assert "9 of 9 concepts have too few unnamed texts for a grade: the status of their" in lines
    assert "       9  no unnamed text: thing 0, thing 1, thing 2, thing 3, thing 4, ..." in lines
    assert lines[-1].endswith("9 concepts, 0 examples; 21 findings")


DEFINITIONS = [f"definition: c{n} has no definition" for n in (0, 3, 6)]
FIRST_AMOUNT = "amount: c0 has 0 examples, at least 8 are needed"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (["--rule", "definition"], DEFINITIONS),
        (["--rule", "definition", "--limit", 2], [*DEFINITIONS[:2], "definition: 1 more"]),
        (["--rule", "definition", "--limit", 3], DEFINITIONS),
        (["--rule", "amount", "--limit", 1], [FIRST_AMOUNT, "amount: 17 more"]),
        (
            ["--rule", "amount", "--rule", "definition", "--limit", 1],
            [FIRST_AMOUNT, DEFINITIONS[0], "amount: 17 more", "definition: 2 more"],
        ),
        (
            ["--limit", 1],
            [FIRST_AMOUNT, DEFINITIONS[0], "amount: 17 more", "definition: 2 more"],
        ),
        (["--rule", "naming"], []),
    ],
)
def test_check_prints_the_findings_of_a_rule_and_so_many_of_them(
    lenscache: Run, poor_pack: Path, asked: list[Any], shown: list[str]
) -> None:
    result = lenscache("pack", "check", poor_pack, *asked)
    assert result.exit_code == 1  # whatever is shown
    assert result.stdout.splitlines()[:-1] == shown
    assert result.stdout.endswith("21 findings\n")
    found = json.loads(lenscache("pack", "check", poor_pack, *asked, "--json").stdout)
    lines = [f"{f['rule']}: {f['concept']} {f['message']}" for f in found["findings"]]
    assert lines == [line for line in shown if not line.endswith(" more")]
    assert found["counts"] == {"amount": 18, "definition": 3}


def test_check_refuses_a_rule_that_there_is_not(lenscache: Run, poor_pack: Path) -> None:
    result = lenscache("pack", "check", poor_pack, "--rule", "name")
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert "'name' is no rule: give one of amount, definition, length, naming, contrast" in words


def test_check_of_thousands_of_poor_concepts_is_less_than_a_screen_within_seconds(
    lenscache: Run, tmp_path: Path
) -> None:
    concepts = [
        {
            "id": f"SomeRatherLongIdentifierOfConcept{n}",
            "name": f"some rather long name of concept {n}",
            "layer": min(n, 1),
            "parents": ["SomeRatherLongIdentifierOfConcept0"] if n % 2 else [],
            "definition": "Some." if n % 5 else "",
            "examples": [f"Concept {n} is named here, and it is named {n} times over."]
            * (n % 9 > 7),
            "contrasts": ["Nothing of the kind."] * (n % 7 > 5),
            "confusable_with": ["ghost"] * (n % 11 > 9),
        }
        for n in range(6000)
    ]
    file = tmp_path / "pack.json"
    file.write_text(
        json.dumps({"format_version": 1, "name": "large", "version": "1", "concepts": concepts})
    )
    start = time.perf_counter()
    result = lenscache("pack", "check", file)
    assert time.perf_counter() - start < 20
    assert result.exit_code == 1
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert len(lines) <= 24
    # The path in the line that says how to see more is as long as it is.
    assert max(len(line) for line in lines if str(file) not in line) <= 80
    assert int(lines[-1].split()[-2]) > 16000


def test_check_of_a_pack_that_makes_no_prompt_says_what_it_lacks(
    lenscache: Run, poor_pack: Path
) -> None:
    data = json.loads(poor_pack.read_text())
    poor_pack.write_text(json.dumps({**data, "prompts": "examples"}))
    result = lenscache("pack", "check", poor_pack, "--json")
    assert result.exit_code == 1, result.stderr
    found = json.loads(result.stdout)
    assert (found["counts"], found["unnamed_texts"]) == ({"amount": 9}, None)


@pytest.mark.parametrize(("least", "code"), [(12, 0), (13, 1)])
def test_check_prints_its_findings_as_json(
    lenscache: Run, clean_pack: Path, least: int, code: int
) -> None:
    result = lenscache("pack", "check", clean_pack, "--min-examples", least, "--json")
    assert result.exit_code == code
    facts = json.loads(result.stdout)
    assert facts["digest"] == ConceptPack.load(clean_pack).digest
    assert facts["counts"] == {"amount": 1} if code else not facts["counts"]
    assert [sorted(finding) for finding in facts["findings"]] == [
        ["concept", "message", "rule"]
    ] * code
    assert (facts["unnamed_texts"]["concepts"], facts["unnamed_texts"]["ungraded_at_best"]) == (
        1,
        0,
    )


def test_check_asks_no_definitions_or_contrasts_of_a_labelled_pack(
    lenscache: Run, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
    rows.write_text(
        "".join(json.dumps({"text": word, "label": word[0] < "e"}) + "\n" for word in words)
    )
    lenscache("pack", "import", rows, "--out", tmp_path / "pack.json")
    assert lenscache("pack", "check", tmp_path / "pack.json", "--min-examples", 4).exit_code == 0


# --- show ---------------------------------------------------------------------------------------


def test_show_prints_every_concept_below_its_parent_and_counts_a_layer(
    lenscache: Run, pack_file: Path
) -> None:
    result = lenscache("pack", "show", pack_file)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    pack = ConceptPack.load(pack_file)
    order = [name for line in lines for name in pack.hierarchy if f"─ {name} " in line]
    assert order == ["nature", "bird", "fish", "tree", "craft", "boat", "oven"]
    assert [line.split() for line in lines[-2:]] == [["0", "2", "24", "6"], ["1", "5", "60", "15"]]
    assert pack.digest in lines[0]


def test_show_has_a_concept_of_several_parents_once(
    lenscache: Run, tmp_path: Path, pack_file: Path
) -> None:
    pack = ConceptPack.load(pack_file)
    several = [
        dataclasses.replace(c, parents=("craft", "nature")) if c.id == "boat" else c
        for c in pack.concepts
    ]
    dataclasses.replace(pack, concepts=tuple(several)).save(tmp_path / "pack.json")
    assert lenscache("pack", "show", tmp_path / "pack.json").stdout.count("─ boat ") == 1


def test_show_of_one_concept_has_all_there_is_about_it(lenscache: Run, pack_file: Path) -> None:
    facts = json.loads(lenscache("pack", "show", pack_file, "bird", "--json").stdout)
    concept = ConceptPack.load(pack_file)["bird"]
    assert (facts["parents"], facts["siblings"]) == (["nature"], ["fish", "tree"])
    assert (tuple(facts["examples"]), tuple(facts["contrasts"])) == (
        concept.examples,
        concept.contrasts,
    )
    assert sum(int(line.split()[0]) for line in facts["samples"] if line.endswith("example")) == 12
    text = lenscache("pack", "show", pack_file, "bird").stdout
    for value in facts.values():
        for line in value if isinstance(value, list) else [value]:
            assert str(line) in text


def test_show_prints_the_whole_pack_as_json(lenscache: Run, pack_file: Path) -> None:
    data: Any = json.loads(lenscache("pack", "show", pack_file, "--json").stdout)
    assert ConceptPack.from_dict(data) == ConceptPack.load(pack_file)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_show_of_an_unknown_concept_is_one_line(
    lenscache: Run, pack_file: Path, options: list[str]
) -> None:
    assert_one_line_error(
        lenscache("pack", "show", pack_file, "ghost", *options), "'ghost' is not in pack 'small'"
    )


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_missing_pack_is_one_line(lenscache: Run, tmp_path: Path, command: str) -> None:
    assert_one_line_error(
        lenscache("pack", command, tmp_path / "none.json"), "no concept pack at", "none.json"
    )


@pytest.mark.parametrize("command", [["check"], ["show"], ["show", "[/]"]])
def test_names_that_look_like_markup_are_printed_as_they_are(
    lenscache: Run, tmp_path: Path, command: list[str]
) -> None:
    rows = tmp_path / "[red].jsonl"
    rows.write_text(json.dumps({"text": "a [bold]text[/nope]", "label": "[/]"}) + "\n")
    assert lenscache("pack", "import", rows, "--out", tmp_path / "pack.json").exit_code == 0
    result = lenscache("pack", command[0], tmp_path / "pack.json", *command[1:])
    assert "error" not in result.stderr
    assert "[/]" in result.stdout
    if command != ["show", "[/]"]:
        assert "[red]" in result.stdout  # the pack's name
