"""Labelled text becomes a pack: the same from every format, with the splits it came with, whatever
is in it."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lenscache.concepts.importers.labelled import LabelledColumns, import_labelled
from lenscache.concepts.importers.report import Imported
from lenscache.concepts.importers.tables import TableFormat
from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import SPLITS, plan_samples
from lenscache.concepts.prompts import EXAMPLE
from lenscache.errors import PackError
from lenscache.extract import ExtractSettings, extract
from lenstrain.data.dataset import open_dataset
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.pack import LensPack
from tests.models import tiny_model

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
Rows = Sequence[dict[str, Any]]


def write_rows(file: Path, rows: Rows) -> Path:
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    elif file.suffix in (".jsonl", ".ndjson"):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(
                handle, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return file


def imported(folder: Path, rows: Rows, suffix: str = ".jsonl", **columns: Any) -> Imported:
    return import_labelled(write_rows(folder / f"rows{suffix}", rows), LabelledColumns(**columns))


def labelled(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in pairs]


def classes(pack: ConceptPack) -> dict[str, tuple[str, ...]]:
    return {concept.id: concept.examples for concept in pack.concepts}


ANIMALS = labelled(("It purrs.", "cat"), ("It barks,\nloudly.", "dog"), ('It says "meow".', "cat"))


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*FORMATS, ".CSV"])
def test_every_format_gives_the_same_pack(tmp_path: Path, suffix: str) -> None:
    pack = imported(tmp_path, ANIMALS, suffix).pack
    assert classes(pack) == {
        "cat": ("It purrs.", 'It says "meow".'),
        "dog": ("It barks,\nloudly.",),
    }
    assert pack.digest == imported(tmp_path, ANIMALS, ".jsonl").pack.digest
    assert (pack.name, pack.levels, pack.prompts) == ("rows", (0,), "examples")


def test_import_is_deterministic_and_the_pack_survives_its_file(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {i}", "label": f"c{i % 7}", "split": ("train", "test")[i % 2]}
        for i in range(60)
    ]
    one, other = (imported(tmp_path, rows, ".csv", split="split") for _ in range(2))
    assert one == other
    one.pack.save(tmp_path / "pack.json")
    loaded = ConceptPack.load(tmp_path / "pack.json")
    assert (loaded, loaded.digest) == (one.pack, one.pack.digest)
    assert plan_samples(loaded).digest == plan_samples(one.pack).digest


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path, suffix: str) -> None:
    file = write_rows(tmp_path / f"rows{suffix}", ANIMALS)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(import_labelled(file).pack) == 2


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("true", "false"), [("1", "0"), ("true", "False"), ("Yes", "no"), ("1.0", "0.0")]
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_binary_set_is_one_concept_with_negatives_of_its_own(
    tmp_path: Path, true: str, false: str, suffix: str
) -> None:
    (concept,) = imported(
        tmp_path, labelled(("good", true), ("bad", false)), suffix, concept="praise"
    ).pack.concepts
    assert (concept.id, concept.examples, concept.negatives) == ("praise", ("good",), ("bad",))


@pytest.mark.parametrize(("true", "false"), [(1, 0), (True, False), (1.0, 0.0)])
def test_numbers_and_booleans_are_binary_labels_named_after_their_column(
    tmp_path: Path, true: Any, false: Any
) -> None:
    for suffix in (".jsonl", ".parquet"):
        (concept,) = imported(
            tmp_path, labelled(("good", true), ("bad", false)), suffix
        ).pack.concepts
        assert (concept.id, concept.examples, concept.negatives) == ("label", ("good",), ("bad",))


def test_one_class_beside_true_and_false_makes_the_set_multi_class(tmp_path: Path) -> None:
    pack = imported(tmp_path, labelled(("a", "yes"), ("b", "no"), ("c", "maybe"))).pack
    assert list(classes(pack)) == ["yes", "no", "maybe"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_list_gives_a_row_several_classes(tmp_path: Path, suffix: str) -> None:
    pack = imported(tmp_path, labelled(("a", ["x", "y", None, " "]), ("b", ["y"])), suffix).pack
    assert classes(pack) == {"x": ("a",), "y": ("a", "b")}


def test_a_separator_gives_a_row_several_classes(tmp_path: Path) -> None:
    pack = imported(tmp_path, labelled(("a", "x | y|"), ("b", "y")), ".csv", separator="|").pack
    assert classes(pack) == {"x": ("a",), "y": ("a", "b")}


def test_without_a_separator_a_label_is_one_class(tmp_path: Path) -> None:
    assert list(
        classes(
            imported(
                tmp_path,
                labelled(
                    ("a", "x|y"),
                ),
            ).pack
        )
    ) == ["x|y"]


def test_columns_are_named_by_the_caller(tmp_path: Path) -> None:
    rows = [{"review": "fine", "stars": "5", "text": "other", "label": "other"}]
    assert classes(imported(tmp_path, rows, text="review", label="stars").pack) == {"5": ("fine",)}


# --- rows that do not serve ---------------------------------------------------------------------


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = labelled(
        ("", "x"),
        (None, "x"),
        (7, "x"),
        ("\ud800", "x"),
        ("a", None),
        ("b", " "),
        ("c", []),
        ("d", "x"),
    )
    result = imported(tmp_path, [*rows, {"other": 1}, {"text": "e", "label": float("nan")}])
    assert classes(result.pack) == {"x": ("d",)}
    assert result.report.to_dict() == {
        "read": {"rows": 10, "texts": 1, "concepts": 1},
        "repaired": {},
        "left_out": {"row without text": 5, "row without label": 4},
        "classes": {"x": 1},
    }


def test_rows_of_a_csv_with_other_than_all_fields_are_left_out_with_their_lines(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text(
        "label,text,id\nx,a,1\n\nx,a text in\ntwo lines,2\nx,b,3,more\nx,c,4,,\n"
    )
    result = import_labelled(tmp_path / "rows.csv")
    assert classes(result.pack) == {"x": ("a", "c")}
    assert result.report.read["rows"] == 5
    assert result.report.left_out == {
        "row with fewer fields than columns": ["line 4 (2 of 3 fields)", "line 5 (2 of 3 fields)"],
        "row with more fields than columns": ["line 6 (4 of 3 fields)"],
    }
    (tmp_path / "rows.csv").write_text("text,label\nx\n")
    with pytest.raises(PackError, match="1 x row with fewer fields than columns: line 2"):
        import_labelled(tmp_path / "rows.csv")


def test_objects_without_a_field_have_no_label_wherever_they_stand(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b", "label": "x"}]
    result = imported(tmp_path, rows)
    assert classes(result.pack) == {"x": ("b",)}
    assert result.report.left_out == {"row without label": ["row 1"]}


def test_a_text_that_occurs_twice_is_joined(tmp_path: Path) -> None:
    result = imported(tmp_path, labelled(("a", "x"), ("a", "y"), ("a", "x"), ("b", "y")))
    assert classes(result.pack) == {"x": ("a",), "y": ("a", "b")}
    assert result.report.repaired == {"text that occurs more than once, joined": ["row 2", "row 3"]}


def test_a_text_that_a_binary_set_calls_both_is_left_out_of_it_and_of_the_splits(
    tmp_path: Path,
) -> None:
    rows = [{**row, "split": "train"} for row in labelled(("a", 1), ("a", 0), ("b", 1), ("c", 0))]
    result = imported(tmp_path, rows, split="split")
    assert (result.pack["label"].examples, result.pack["label"].negatives) == (("b",), ("c",))
    assert result.report.left_out == {"text labelled both ways": ["a"]}
    assert result.pack.splits == {"train": ("b", "c")}


# --- splits -------------------------------------------------------------------------------------


def split_rows(*names: str, n: int = 90) -> list[dict[str, Any]]:
    return [
        {"text": f"text number {i}", "label": f"c{i % 3}", "split": names[i % len(names)]}
        for i in range(n)
    ]


def planned_splits(pack: ConceptPack) -> dict[str, str]:
    plan = plan_samples(pack)
    return {text: SPLITS[split] for text, split in zip(plan.texts, plan.split, strict=True)}


def test_given_splits_are_kept(tmp_path: Path) -> None:
    meant = {
        "train": "train",
        "Validation": "calibration",
        "test ": "test",
        "dev": "calibration",
        "TESTING": "test",
    }
    rows = split_rows(*meant)
    planned = planned_splits(imported(tmp_path, rows, split="split").pack)
    assert planned == {row["text"]: meant[row["split"]] for row in rows}


def test_calibration_is_drawn_from_training_texts_when_none_is_given(tmp_path: Path) -> None:
    rows = split_rows("train", "train", "test")
    planned = planned_splits(imported(tmp_path, rows, split="split").pack)
    assert {planned[row["text"]] for row in rows if row["split"] == "test"} == {"test"}
    drawn = [planned[row["text"]] for row in rows if row["split"] == "train"]
    assert set(drawn) == {"train", "calibration"}
    assert 5 <= drawn.count("calibration") <= 25  # a quarter of 60


def test_without_a_split_column_all_splits_are_drawn(tmp_path: Path) -> None:
    pack = imported(tmp_path, split_rows("test")).pack
    assert pack.splits == {}
    assert set(planned_splits(pack).values()) == set(SPLITS)


def test_a_text_in_two_splits_stays_in_the_held_out_one(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x", "split": name} for name in ("train", "test", "validation")]
    result = imported(
        tmp_path, [*rows, {"text": "b", "label": "x", "split": "train"}], split="split"
    )
    assert result.pack.splits == {"train": ("b",), "test": ("a",)}
    assert result.report.repaired["text given to two splits, kept in the held-out one"] == [
        "row 2",
        "row 3",
    ]


def test_a_training_text_that_differs_from_a_test_text_in_case_only_is_held_out(
    tmp_path: Path,
) -> None:
    rows = [
        {"text": text, "label": "x", "split": split}
        for text, split in (("Hi!", "test"), ("hi", "train"))
    ]
    assert planned_splits(imported(tmp_path, rows, split="split").pack) == {
        "Hi!": "test",
        "hi": "test",
    }


def test_splits_of_unknown_name_are_drawn_and_reported(tmp_path: Path) -> None:
    result = imported(tmp_path, split_rows("fold-3", "", n=30), split="split")
    assert result.pack.splits == {}
    assert result.report.to_dict()["repaired"] == {"split of unknown name, drawn": 30}
    assert result.report.repaired["split of unknown name, drawn"][0] == "row 1: fold-3"


# --- what texts and class names may hold --------------------------------------------------------

ODD_TEXTS = (
    "before\x00after",
    "🦜🏽‍♂️ 👩‍👩‍👧",
    "مرحبا بالعالم",
    "\u202eright to left\u202c",
    "x" * 200_000,
    " \t padded ",
    "a\r\nb",
)


@pytest.mark.parametrize("suffix", FORMATS)
def test_odd_texts_are_kept_as_they_are(tmp_path: Path, suffix: str) -> None:
    result = imported(tmp_path, labelled(*((text, "x") for text in ODD_TEXTS)), suffix)
    assert result.pack["x"].examples == ODD_TEXTS
    assert (result.report.left_out, result.report.repaired) == ({}, {})
    result.pack.save(tmp_path / "pack.json")
    assert ConceptPack.load(tmp_path / "pack.json")["x"].examples == ODD_TEXTS


ODD_CLASSES = (
    "../../escape",
    "/tmp/absolute",
    "a/b\\c",
    "n" * 300,
    "größe 🦜 اسم",
    "..",
    "c.d e",
    "nul\x00",
)


def test_odd_class_names_never_become_paths(tmp_path: Path) -> None:
    rows = labelled(
        *(
            (f"{number} of kind {kind}", name)
            for kind, name in enumerate(ODD_CLASSES)
            for number in range(8)
        )
    )
    pack = imported(tmp_path, rows).pack
    root = tmp_path / "deep" / "er"
    root.mkdir(parents=True)
    settings = ExtractSettings(mode="prompt", model_layers=(1,), batch_size=16)
    extract(root / "store.zarr", pack, tiny_model(), settings)
    dataset = open_dataset(root / "store.zarr")
    fit = FitSettings(max_iterations=1)
    make_lens_pack(fit_lenses(dataset, fit), dataset, fit).save(root / "lenses")
    assert {lens.concept for lens in LensPack.load(root / "lenses")} == set(ODD_CLASSES)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "deep"}
    assert {path.name for path in root.iterdir()} == {"store.zarr", "lenses"}
    written = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    assert not [path for path in written if re.search("escape|absolute|nnnn|größe|nul", path)]


# --- files that do not serve --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(PackError, match="has no column 'mood', its columns are 'text', 'label'"):
        imported(tmp_path, ANIMALS, suffix, label="mood")
    with pytest.raises(PackError, match="has no column 'fold'"):
        imported(tmp_path, ANIMALS, suffix, split="fold")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(PackError, match=rf"no file at .*nowhere\{suffix}"):
        import_labelled(tmp_path / f"nowhere{suffix}")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"rows{suffix}").mkdir()
    with pytest.raises(PackError, match="cannot be read"):
        import_labelled(tmp_path / f"rows{suffix}")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.csv.gz"])
def test_another_suffix_is_refused_with_those_that_serve(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        PackError, match=r"is not one of \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet"
    ):
        import_labelled(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\ncaf\xe9,x\n".encode("latin-1"), r"a\.csv cannot be read: .*utf-8"),
        ("a.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), r"a\.jsonl cannot be read: .*utf-8"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON"),
        ("a.jsonl", b'["a", "x"]\n', r"line 1 is list, expected an object"),
        ("a.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}", r"line 1 is not JSON"),
        ("a.parquet", b"PAR1 not quite", r"a\.parquet is not a Parquet file"),
        ("a.parquet", b"", r"a\.parquet is not a Parquet file"),
        ("a.csv", b"", r"a\.csv holds no row with a text in 'text' and a label in 'label'"),
        ("a.csv", b"text,label\n", r"a\.csv holds no row"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no row"),
        ("a.csv", b"text,label\na,0\nb,no\n", r"no row is labelled true in 'label'"),
    ],
)
def test_a_file_that_does_not_serve_says_why(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PackError, match=message):
        import_labelled(tmp_path / name)


# --- labels that may mean more than one thing ---------------------------------------------------


def test_minus_one_beside_0_and_1_says_that_there_is_no_label(tmp_path: Path) -> None:
    result = imported(tmp_path, labelled(("a", 1), ("b", 0), ("c", -1)))
    assert (result.pack["label"].examples, result.pack["label"].negatives) == (("a",), ("b",))
    assert result.report.left_out == {"row without label": ["row 3"]}


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        ((1, -1, 1), "threshold=0"),
        ((0.2, 0.7, 0.9), "threshold=0.5"),
        (("good", "Good", "bad"), "fold_case=True"),
        (("good", "NaN", "bad"), r"missing=\('NaN',\) if it says .* no label, or keep_na=True"),
        (("good", "None", "bad"), "keep_na=True"),
        (("food", "law", "food|law", "law|food"), r"separator='\|', or separator=''"),
        (("food", "sport", "food|law"), r"separator='\|'"),
        ((0.2, 0.7, 0.9, "unknown"), "threshold=0.5"),
        (("['x', 'y']", "['z']"), "lists that are written as text, such as .*as separator"),
        (("good", "none", "bad"), "missing="),
        (tuple(f"id {i}" for i in range(30)), "30 different labels in 30 rows: .* as_classes=True"),
        (tuple(range(30)) * 5, "30 different numbers from 0 to 29: .* threshold=15 "),
    ],
)
def test_labels_that_may_mean_something_else_are_refused_with_what_to_say(
    tmp_path: Path, labels: tuple[Any, ...], advice: str
) -> None:
    rows = labelled(*((f"text {number}", label) for number, label in enumerate(labels)))
    with pytest.raises(PackError, match=advice):
        imported(tmp_path, rows)


def test_what_was_asked_for_is_done(tmp_path: Path) -> None:
    scores = imported(tmp_path, labelled(("a", 0.2), ("b", 0.5)), threshold=0.5).pack["label"]
    assert (scores.examples, scores.negatives) == (("b",), ("a",))
    both = labelled(("a", "Good"), ("b", "good"), ("c", "bad"))
    assert classes(imported(tmp_path, both, fold_case=True).pack)["good"] == ("a", "b")
    absent = labelled(("a", "NaN"), ("b", "x"), ("c", "y"))
    left_out = imported(tmp_path, absent, missing=("NaN",)).report.left_out
    assert left_out == {"row without label": ["row 1"]}
    assert list(classes(imported(tmp_path, absent, keep_na=True).pack)) == ["NaN", "x", "y"]
    folded = imported(tmp_path, absent, missing=("NaN",), fold_case=True)
    assert list(classes(folded.pack)) == ["x", "y"]
    for names in (tuple(range(30)), (1.5, 2.5), ("['a']", "['b']")):
        rows = labelled(*((f"text {name}", name) for name in names))
        pack = imported(tmp_path, rows, as_classes=True).pack
        assert list(classes(pack)) == [str(name) for name in names]
    marks = labelled(("a", "x"), ("b", "y"), ("c", "x|y"), ("d", "y|x"))
    assert len(imported(tmp_path, marks, separator="").pack) == 4
    assert len(imported(tmp_path, marks, separator="|").pack) == 2


def test_a_label_that_is_no_score_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="has the label 'high', expected numbers with threshold"):
        imported(tmp_path, labelled(("a", 0.2), ("b", "high")), threshold=0.5)


@pytest.mark.parametrize("value", [{"id": 3, "name": "x"}, [{"name": "x"}], [["x"]]])
def test_labels_that_are_objects_or_lists_of_lists_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(
        PackError, match=r"column 'label' holds (dict|list), such as .*label\.FIELD"
    ):
        imported(tmp_path, labelled(("a", value)))
    if isinstance(value, dict):
        pack = imported(tmp_path, labelled(("a", value)), label="label.name").pack
        assert classes(pack) == {"x": ("a",)}


def test_labels_in_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="column 'label' holds bytes"):
        imported(tmp_path, labelled(("a", b"x")), ".parquet")


@pytest.mark.parametrize(
    "pair",
    [
        ("positive", "negative"),
        ("toxic", "not toxic"),
        ("a", "non-a"),
        ("entailment", "not_entailment"),
        ("Relevant", "irrelevant"),
    ],
)
def test_a_text_that_opposite_classes_claim_is_left_out(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    rows = labelled(("a", pair[0]), ("a", pair[1]), ("b", pair[0]), ("c", pair[1]))
    result = imported(tmp_path, rows)
    assert classes(result.pack) == {pair[0]: ("b",), pair[1]: ("c",)}
    assert result.report.left_out == {"text labelled both ways": ["a"]}


def test_texts_of_each_class_are_counted(tmp_path: Path) -> None:
    rows = labelled(*((f"text {i}", f"c{i % 15}") for i in range(100)))
    report = imported(tmp_path, rows).report
    assert report.classes["c0"] == 7
    assert report.lines()[3] == "class: 7 texts: c0"
    assert report.lines()[-1] == "class: 3 more, none with more than 6 texts"


# --- how a table is written ---------------------------------------------------------------------


def read_text(folder: Path, name: str, text: str, **table: Any) -> Imported:
    (folder / name).write_bytes(text.encode("latin-1" if "latin" in str(table) else "utf-8"))
    return import_labelled(folder / name, table=TableFormat(**table))


def test_marks_of_a_tsv_that_does_not_read_as_csv_are_text(tmp_path: Path) -> None:
    text = 'text\tlabel\n"Storm" she wrote\twet\n"The sun\tdry\nfog\twet\n'
    pack = read_text(tmp_path, "rows.tsv", text).pack
    assert classes(pack) == {"wet": ('"Storm" she wrote', "fog"), "dry": ('"The sun',)}


@pytest.mark.parametrize("more", ["fog,dry\n", 'the "end",dry\n'])
def test_a_stray_mark_of_a_csv_is_refused_with_its_line(tmp_path: Path, more: str) -> None:
    text = 'text,label\nrain,wet\n"Storm,wet\n' + more
    with pytest.raises(PackError, match=r"rows\.csv line 3: a quotation mark opens a field"):
        read_text(tmp_path, "rows.csv", text)
    assert len(read_text(tmp_path, "rows.csv", text, quoting="none").pack) == 2


def test_rows_that_a_stray_mark_joined_are_found_by_their_labels(tmp_path: Path) -> None:
    text = 'text,label\nrain,wet\n"Storm,wet\nsun,dry\nhot",dry\n'
    with pytest.raises(PackError, match=r"row 2: a cell of column 'text' .* another row"):
        read_text(tmp_path, "rows.csv", text)
    assert len(read_text(tmp_path, "rows.csv", text, quoting="csv").pack) == 2


@pytest.mark.parametrize(
    ("head", "swallowing", "column"),
    [
        ("text,label,id", 'a,wet,1\n"b,dry,2\nc,wet,3\nd",dry,4\n', "text"),
        ("text,label,note", 'a,wet,1\nb,dry,2\nc,wet,"3\nd,dry,4"\n', "note"),
        ("text,label", 'a,wet\nb,"dry\nc,wet\nd,fog"\n', "label"),
    ],
)
def test_rows_are_missed_in_whichever_column_a_stray_mark_opens(
    tmp_path: Path, head: str, swallowing: str, column: str
) -> None:
    with pytest.raises(PackError, match=f"a cell of column '{column}' in quotation marks"):
        read_text(tmp_path, "rows.csv", f"{head}\n{swallowing}")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        column = pyarrow.array(["a"])
        table = pyarrow.Table.from_arrays([column] * 3, names=["text", "text", "label"])
        pyarrow.parquet.write_table(table, file)
    elif suffix == ".jsonl":
        file.write_text('{"text": "a", "text": "b", "label": "x"}\n')
    else:
        file.write_text("text,text,label\na,b,x\n".replace(",", "\t" if suffix == ".tsv" else ","))
    with pytest.raises(PackError, match=r"2 columns 'text'|'text' twice"):
        import_labelled(file)


def test_an_encoding_that_does_not_fit_is_told_with_byte_and_line(tmp_path: Path) -> None:
    text = "text,label\none,x\ncaf\xe9,y\n"
    (tmp_path / "rows.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(PackError, match=r"byte 20, line 3: .* encoding='latin-1'"):
        import_labelled(tmp_path / "rows.csv")
    pack = read_text(tmp_path, "rows.csv", text, encoding="latin-1").pack
    assert classes(pack)["y"] == ("café",)
    with pytest.raises(PackError, match="unknown encoding: latin-99: give an encoding such as"):
        import_labelled(tmp_path / "rows.csv", table=TableFormat(encoding="latin-99"))


def test_another_delimiter_can_be_given(tmp_path: Path) -> None:
    pack = read_text(tmp_path, "rows.csv", "text;label\na, b;x\nc;y\n", delimiter=";").pack
    assert classes(pack) == {"x": ("a, b",), "y": ("c",)}
    tabs = read_text(tmp_path, "rows.csv", "text\tlabel\na\tx\n", delimiter=r"\t").pack
    assert classes(tabs) == {"x": ("a",)}
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(PackError, match=r"delimiter .* cannot be used: give one character"):
            TableFormat(delimiter=delimiter)


def test_a_json_array_and_nested_fields_are_read(tmp_path: Path) -> None:
    rows = [{"data": {"text": "a"}, "label": "x"}, {"data": None, "label": "y"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    result = import_labelled(tmp_path / "rows.json", LabelledColumns(text="data.text"))
    assert classes(result.pack) == {"x": ("a",)}
    assert result.report.left_out == {"row without text": ["row 2"]}
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_labelled(tmp_path / "rows.json", LabelledColumns(text="data.text")) == result
    (tmp_path / "rows.json").write_text('{"text": "a"}')
    with pytest.raises(PackError, match="is dict, expected an array of objects"):
        import_labelled(tmp_path / "rows.json")


def arrow_file(file: Path, table: Any) -> None:
    with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)


def test_a_saved_dataset_has_the_names_of_its_classes_and_its_splits(tmp_path: Path) -> None:
    """As `datasets.DatasetDict.save_to_disk` lays it out."""
    folder = tmp_path / "saved"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        table = pyarrow.table({"text": [f"{split} a", f"{split} b", "c"], "label": [0, 1, -1]})
        arrow_file(folder / split / "data-00000-of-00001.arrow", table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / split / "state.json").write_text(json.dumps(state))
        label = {"names": ["calm", "storm"], "_type": "ClassLabel"}
        info = {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": label}}
        (folder / split / "dataset_info.json").write_text(json.dumps(info))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    result = import_labelled(folder, LabelledColumns(split="split"))
    assert classes(result.pack) == {"calm": ("train a", "test a"), "storm": ("train b", "test b")}
    assert result.pack.splits == {"train": ("train a", "train b"), "test": ("test a", "test b")}
    assert result.report.left_out == {"row without label": ["row 3", "row 6"]}
    (folder / "train" / "state.json").write_text("{}")
    with pytest.raises(PackError, match="is not a saved dataset"):
        import_labelled(folder)
    (folder / "train" / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(PackError, match=r"saved cannot be read: .*gone\.arrow"):
        import_labelled(folder)


@pytest.mark.parametrize("kind", ["List", "Sequence", None])
def test_lists_of_classes_have_their_names_and_so_have_fields_of_objects(
    tmp_path: Path, kind: str | None
) -> None:
    of_class = {"names": ["calm", "storm"], "_type": "ClassLabel"}
    several: Any = {"feature": of_class, "_type": kind} if kind else [of_class]
    rows = [
        {"text": "a", "label": [0, 1], "meta": {"kind": 1}},
        {"text": "b", "label": [1], "meta": {"kind": -1}},
    ]
    features = {"label": several, "meta": {"kind": of_class}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(noted)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    pack = import_labelled(tmp_path / "rows.parquet").pack
    assert classes(pack) == {"calm": ("a",), "storm": ("a", "b")}
    nested = import_labelled(tmp_path / "rows.parquet", LabelledColumns(label="meta.kind")).pack
    assert classes(nested) == {"storm": ("a",)}


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_100000_rows_are_imported_in_memory_bounded_by_the_file(tmp_path: Path) -> None:
    text = (
        "has a text of about a hundred characters as a short review or a message would have it or "
        "so"
    )
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"row {i} {text},c{i % 5}\n" for i in range(100_000)))
    tracemalloc.start()
    pack = import_labelled(file).pack
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(concept.examples) for concept in pack.concepts) == 100_000
    assert peak < 8 * file.stat().st_size


# --- end to end ---------------------------------------------------------------------------------


def test_a_binary_set_gives_one_lens_whose_negatives_are_its_own(tmp_path: Path) -> None:
    rows = labelled(
        *((f"{'QZ' * 6} {i}", 1) for i in range(24)),
        *((f"the mat and the rain, {i}", 0) for i in range(24)),
    )
    pack = imported(tmp_path, rows, ".csv", concept="shouting").pack
    extract(tmp_path / "s.zarr", pack, tiny_model(), ExtractSettings(mode="prompt", batch_size=16))
    dataset = open_dataset(tmp_path / "s.zarr")
    assert set(dataset.kind) == {EXAMPLE}
    task = draw_task(dataset, "shouting", lambda n: 100)
    for positives, negatives in zip(task.positives, task.negatives, strict=True):
        assert {dataset.texts[row] for row in positives} <= set(pack["shouting"].examples)
        assert {dataset.texts[row] for row in negatives} <= set(pack["shouting"].negatives)
    assert sum(map(len, task.negatives)) == 24
    (lens,) = fit_lenses(dataset, FitSettings()).lenses
    assert lens.concept == "shouting"
    shouting = np.isin(dataset.texts, pack["shouting"].examples)
    logits = lens.weights.decision_function(dataset.vectors(lens.model_layers[0]))
    assert logits[shouting].min() > logits[~shouting].max()
