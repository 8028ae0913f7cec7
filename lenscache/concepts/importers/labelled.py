"""Labelled text: CSV, JSON Lines or Parquet with a text column and a label column.

    rows --label--> one concept a class; in a binary set one concept with negatives of its own
         --split--> kept as given, where there is a split column

Labels are read as binary when all of them are 0/1, true/false or yes/no; else every distinct label
is a class. A list in JSON Lines or Parquet, or a text with `separator`, gives a row several
classes. There is no hierarchy: each class is the negative of the others.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenscache.concepts.importers.report import Imported, ImportReport, is_text
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_TRUE, _FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calibration", "validation", "valid", "val", "dev"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class LabelledColumns:
    """Which columns of the source hold what."""

    text: str = "text"
    label: str = "label"
    split: str | None = None
    """Column of given splits; None to draw them."""
    concept: str | None = None
    """Id of the concept of a binary set; None for the name of the label column."""
    separator: str | None = None
    """What separates the classes of one row, if a row may have several."""

    @property
    def named(self) -> list[str]:
        """Columns that the source must have."""
        return [name for name in (self.text, self.label, self.split) if name is not None]


def import_labelled(path: str | Path, columns: LabelledColumns | None = None) -> Imported:
    """Make a pack of a labelled text file.

    Rows without text or label and texts that a binary set calls both are left out. Equal texts are
    joined.

    Raises
    ------
    PackError
        If the file cannot be read, lacks a column, or holds no usable row.
    """
    path, columns, report = Path(path), columns or LabelledColumns(), ImportReport()
    labels: dict[str, dict[str, None]] = {}
    splits: dict[str, str] = {}
    rows = 0
    for number, row in read_rows(path, columns.named):
        rows += 1
        text, found = row.get(columns.text), _classes(row.get(columns.label), columns.separator)
        if not is_text(text):
            report.leave_out("row without text", f"row {number}")
        elif not found:
            report.leave_out("row without label", f"row {number}")
        else:
            if text in labels:
                report.repair("text that occurs more than once, joined", f"row {number}")
            labels.setdefault(text, {}).update(dict.fromkeys(found))
            if columns.split is not None:
                _note_split(splits, text, row.get(columns.split), number, report)
    report.read["rows"] = rows
    if not labels:
        raise PackError(
            f"{path} holds no row with a text in {columns.text!r} and a label in {columns.label!r}"
        )
    concepts = _concepts(labels, columns, report)
    used = {text for concept in concepts for text in (*concept.examples, *concept.negatives)}
    report.read.update({"texts": len(used), "concepts": len(concepts)})
    given: dict[str, tuple[str, ...]] = {}
    for name in ("train", "calibration", "test"):
        if texts := tuple(t for t, split in splits.items() if split == name and t in used):
            given[name] = texts
    pack = ConceptPack(path.stem, "1", concepts, origin=path.name, prompts="examples", splits=given)
    return Imported(pack, report)


def _concepts(
    labels: dict[str, dict[str, None]], columns: LabelledColumns, report: ImportReport
) -> tuple[Concept, ...]:
    classes = dict.fromkeys(label for found in labels.values() for label in found)
    if not {label.casefold() for label in classes} <= _TRUE | _FALSE:
        texts_of = {label: tuple(t for t in labels if label in labels[t]) for label in classes}
        return tuple(Concept(label, label, level=0, examples=texts_of[label]) for label in classes)
    is_true = {t: {label.casefold() in _TRUE for label in found} for t, found in labels.items()}
    for text in (text for text, values in is_true.items() if len(values) > 1):
        report.leave_out("text labelled both ways", text)
    true, false = (tuple(t for t in is_true if is_true[t] == {value}) for value in (True, False))
    if not true:
        raise PackError(
            f"no row is labelled true in {columns.label!r}: a concept needs texts that express it"
        )
    name = columns.concept or columns.label
    return (Concept(id=name, name=name, level=0, examples=true, negatives=false),)


def _classes(label: Any, separator: str | None) -> list[str]:
    if isinstance(label, list | tuple):
        parts = [str(part) for part in label if part is not None]
    elif label is None or label != label:  # not a number is how tables say that there is none
        parts = []
    else:
        parts = str(label).split(separator) if separator else [str(label)]
    return [part.strip() for part in parts if is_text(part)]


def _note_split(
    splits: dict[str, str], text: str, value: Any, number: int, report: ImportReport
) -> None:
    split = _SPLITS.get(str(value).strip().casefold())
    if split is None:
        report.repair("split of unknown name, drawn", f"row {number}: {value}")
    elif splits.setdefault(text, split) != split:
        # In doubt for the held-out side: a test text must never be trained on.
        splits[text] = max(split, splits[text], key=("train", "calibration", "test").index)
        report.repair("text given to two splits, kept in the held-out one", f"row {number}")


def read_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table and their numbers from 1, one at a time.

    Raises
    ------
    PackError
        If the file cannot be read, is no table, or lacks a wanted column.
    """
    readers: tuple[Callable[[Path], Iterator[dict[str, Any]]], ...]
    readers = _read_csv, _read_csv, _read_jsonl, _read_jsonl, _read_parquet
    reader = dict(zip(SUFFIXES, readers, strict=True)).get(path.suffix.casefold())
    if reader is None:
        raise PackError(f"{path} is not one of {', '.join(SUFFIXES)}")
    try:
        for number, row in enumerate(reader(path), start=1):
            if number == 1 and (missing := [name for name in wanted if name not in row]):
                columns_there = ", ".join(map(str, row))
                raise PackError(
                    f"{path} has no column {missing[0]!r}, its columns are {columns_there}"
                )
            yield number, row
    except FileNotFoundError:
        raise PackError(f"no file at {path}") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PackError(f"{path} cannot be read: {error}") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # by default, 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix.casefold() == ".tsv" else ",")


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise PackError(
                    f"{path} line {number} is not JSON ({error}): expected one object a line"
                ) from None
            if not isinstance(row, dict):
                raise PackError(f"{path} line {number} is {type(row).__name__}, expected an object")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise PackError(
            "reading Parquet needs pyarrow: run `pip install '.[parquet]'` in a clone of lenscache"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise PackError(f"{path} is not a Parquet file: {error}") from error
