"""Labelled text: a table with a text column and a label column.

    rows --label--> one concept a class; in a binary set one concept with negatives of its own
         --split--> kept as given, where there is a split column

Labels are read as binary when all of them are 0/1, true/false or yes/no; else every distinct label
is a class. A list in JSON or Parquet, or a text with `separator`, gives a row several classes.
There is no hierarchy: each class is the negative of the others. Labels that may mean something else
(scores, several in one cell, spellings of one label, NaN) are refused until it is said what they
mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lenscache.concepts.importers.labels import (
    LabelledColumns,
    are_opposites,
    classes_of,
    is_binary,
    is_true,
    number_of,
    refuse_uncertain,
)
from lenscache.concepts.importers.report import Imported, ImportReport, is_text
from lenscache.concepts.importers.tables import Cells, Ragged, TableFormat, read_rows
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError, argument

__all__ = ["LabelledColumns", "import_labelled"]

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calibration", "validation", "valid", "val", "dev"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def import_labelled(
    path: str | Path, columns: LabelledColumns | None = None, table: TableFormat | None = None
) -> Imported:
    """Make a pack of a table of labelled texts.

    Rows without text or label, rows with other than all fields and texts that a set calls both are
    left out and counted. Equal texts are joined.

    Raises
    ------
    PackError
        If the file cannot be read, lacks a column, holds no usable row, or has labels that may mean
        more than one thing.
    """
    path, columns, table = Path(path), columns or LabelledColumns(), table or TableFormat()
    rows = Rows(str(path), path.stem, partial(read_rows, path, columns.named, table), path.name)
    delimiter = table.delimiter_of(path) if table.may_swallow(path) else None
    return import_rows(rows, columns, delimiter)


class Rows(NamedTuple):
    """Labelled rows, wherever they come from."""

    where: str
    """What messages call them."""
    name: str
    """Of the pack that is made of them."""
    read: Callable[[], Iterable[tuple[int, Cells | Ragged]]]
    """Begins anew at each call."""
    origin: str = ""


def import_rows(rows: Rows, columns: LabelledColumns, delimiter: str | None = None) -> Imported:
    """Make a pack of labelled rows; see `import_labelled`.

    Parameters
    ----------
    delimiter : between fields, where a stray quotation mark may have taken rows into a cell; None
        where none may.
    """
    where, report = rows.where, ImportReport()
    labels: dict[str, dict[str, None]] = {}
    splits: dict[str, str] = {}
    known, is_none = _survey(rows, columns)
    number = 0
    for number, row in rows.read():
        if isinstance(row, Ragged):
            report.leave_out(row.why, row.place)
            continue
        if delimiter is not None:
            _refuse_swallowed(f"{where} row {number}", row, columns, known, delimiter)
        text, found = row.get(columns.text), classes_of(row.get(columns.label), columns)
        if not is_text(text):
            report.leave_out("row without text", f"row {number}")
        elif not (found := [label for label in found if label not in is_none]):
            report.leave_out("row without label", f"row {number}")
        else:
            if text in labels:
                report.repair("text that occurs more than once, joined", f"row {number}")
            labels.setdefault(text, {}).update(dict.fromkeys(found))
            if columns.split is not None:
                _note_split(splits, text, row.get(columns.split), number, report)
    report.read["rows"] = number
    if not labels:
        counts = "".join(f", {len(at)} x {why}: {at[0]}" for why, at in report.left_out.items())
        raise PackError(
            f"{where} holds no row with a text in {columns.text!r} and a label in "
            f"{columns.label!r}{counts}"
        )
    concepts = _concepts(where, labels, columns, report)
    return Imported(_pack(rows, concepts, splits, report), report)


def _pack(
    rows: Rows, concepts: tuple[Concept, ...], splits: dict[str, str], report: ImportReport
) -> ConceptPack:
    used = {text for concept in concepts for text in (*concept.examples, *concept.negatives)}
    report.read.update({"texts": len(used), "concepts": len(concepts)})
    report.classes.update({concept.id: len(concept.examples) for concept in concepts})
    if negatives := sum(len(concept.negatives) for concept in concepts):
        report.classes[f"not {concepts[0].id}"] = negatives
    given: dict[str, tuple[str, ...]] = {}
    for name in ("train", "calibration", "test"):
        if texts := tuple(t for t, split in splits.items() if split == name and t in used):
            given[name] = texts
    return ConceptPack(
        rows.name, "1", concepts, origin=rows.origin, prompts="examples", splits=given
    )


def _survey(rows: Rows, columns: LabelledColumns) -> tuple[frozenset[str], frozenset[str]]:
    """All labels; and those that say that a row has none: as the caller names them, and -1 beside
    0 and 1.

    Raises
    ------
    PackError
        If the labels may mean more than one thing.
    """
    count: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number, row in rows.read():
        if not isinstance(row, Ragged) and is_text(row.get(columns.text)):
            for label in classes_of(row.get(columns.label), columns):
                count[label] += 1
                first.setdefault(label, number)
    found = {name.casefold() if columns.fold_case else name for name in columns.missing}
    numbers = {label: number_of(label) for label in count}
    whole = [value for value in numbers.values() if value is not None and value == int(value)]
    if len(whole) == len(count) and {-1.0, 0.0, 1.0} <= set(whole) and min(whole) == -1:
        found |= {label for label, value in numbers.items() if value == -1}
    left = {label: n for label, n in count.items() if label not in found}
    refuse_uncertain(rows.where, left, first, columns)
    return frozenset(count), frozenset(found)


def _refuse_swallowed(
    place: str, row: Cells, columns: LabelledColumns, known: frozenset[str], delimiter: str
) -> None:
    """Raise PackError if the lines of a cell look like rows: a stray quotation mark at the head of
    a field joins what follows up to the next one."""
    for name, cell in row.items():
        for line in (cell or "").splitlines() if "\n" in (cell or "") else ():
            fields = {field.strip() for field in line.split(delimiter)}
            if name == columns.label or (len(fields) > 1 and known & fields):
                raise PackError(
                    f"{place}: a cell of column {name!r} in quotation marks holds what looks like "
                    f"another row, {line!r:.60}: pass {argument('quoting', 'csv')} if it belongs "
                    f"there, or {argument('quoting', 'none')} if the mark before it is text"
                )


def _concepts(
    where: str,
    labels: dict[str, dict[str, None]],
    columns: LabelledColumns,
    report: ImportReport,
) -> tuple[Concept, ...]:
    classes = dict.fromkeys(label for found in labels.values() for label in found)
    if columns.threshold is None and not is_binary(classes):
        for text in [text for text, found in labels.items() if are_opposites(found)]:
            report.leave_out("text labelled both ways", text)
            del labels[text]
        texts_of = {label: tuple(t for t in labels if label in labels[t]) for label in classes}
        return tuple(Concept(label, label, level=0, examples=texts_of[label]) for label in classes)
    said = {t: {is_true(where, x, columns) for x in found} for t, found in labels.items()}
    for text in (text for text, values in said.items() if len(values) > 1):
        report.leave_out("text labelled both ways", text)
    true, false = (tuple(t for t in said if said[t] == {value}) for value in (True, False))
    if not true:
        raise PackError(
            f"no row is labelled true in {columns.label!r}: a concept needs texts that express it"
        )
    name = columns.concept or columns.label
    return (Concept(id=name, name=name, level=0, examples=true, negatives=false),)


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
