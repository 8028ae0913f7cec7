"""Labelled texts that Python holds: lists, data frames, Hugging Face datasets.

    texts, labels --import_texts--> Imported, as `import_labelled` makes of a file
    texts         --texts_of------> list of texts

None of their packages is imported: a data frame of pandas or polars and a dataset are known by
their methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lenscache.concepts.importers.labelled import LabelledColumns, Rows, import_rows
from lenscache.concepts.importers.report import Imported
from lenscache.concepts.importers.tables import (
    Cells,
    check_columns,
    class_features,
    with_class_names,
)
from lenscache.errors import PackError

_WHERE = "the texts"
_MISSING = ("NAType", "NaTType")  # of pandas, whose == has no truth value


def import_texts(
    texts: Any,
    labels: Any = None,
    *,
    negatives: Any = None,
    text: str = "text",
    name: str = "texts",
    **meaning: Any,
) -> Imported:
    """Make a pack of labelled texts, as `lenscache.concepts.importers.labelled` does of a file.

    Parameters
    ----------
    texts : a sequence of texts; or a data frame of pandas or polars, or a dataset or dictionary of
        datasets of Hugging Face, whose rows are read.
    labels : of a sequence, the label of each text; of a table, the name of their column, "label" if
        left out. A label is text, a number or a truth value, or a list of them.
    negatives : texts that do not express the concept; `texts` are then those that do.
    text : column of the texts of a table.
    name : of the pack.
    meaning : further fields of `LabelledColumns`, such as `split`, `concept` and `threshold`.

    Raises
    ------
    PackError
        As `import_labelled`; or if texts and labels do not belong together.
    """
    if negatives is not None:
        if labels is not None or is_table(texts) or is_table(negatives):
            raise PackError(
                "negatives are given beside labels or a table: expected two lists, the texts that "
                "express the concept and those that do not"
            )
        positive, negative = texts_of(texts), texts_of(negatives)
        texts, labels = [*positive, *negative], [1] * len(positive) + [0] * len(negative)
    column = "label" if labels is None else labels
    if not is_table(texts):
        return _import_lists(texts, labels, name, meaning)
    if not isinstance(column, str):
        raise PackError(
            f"labels is {type(labels).__name__}, expected the name of a column, as the texts are a "
            "table"
        )
    columns = LabelledColumns(text, column, **meaning)
    check_columns(_WHERE, _column_names(texts), columns.named)
    return import_rows(
        Rows(_WHERE, name, lambda: enumerate(_rows_of(texts, columns.named), start=1)), columns
    )


def _import_lists(texts: Any, labels: Any, name: str, meaning: dict[str, Any]) -> Imported:
    if labels is None:
        raise PackError(
            "texts are given without labels: pass labels=, one for each, or negatives=, the texts "
            "that do not express the concept"
        )
    if meaning.get("split") is not None:
        raise PackError("split names a column of a table, and the texts are none: leave it out")
    found, said = texts_of(texts), _values(labels, "labels")
    if len(found) != len(said):
        raise PackError(f"there are {len(found)} texts and {len(said)} labels: expected one each")
    cells = [{"text": one, "label": label} for one, label in zip(found, said, strict=True)]
    rows = Rows(_WHERE, name, lambda: enumerate(map(dict, cells), start=1))
    return import_rows(rows, LabelledColumns(**meaning))


def texts_of(texts: Any, text: str = "text") -> list[Any]:
    """The texts of a sequence, or of a column of a table; None where a cell is empty.

    Raises
    ------
    PackError
        If it is a single text, or holds something else than texts.
    """
    if is_table(texts):
        check_columns(_WHERE, _column_names(texts), [text])
        found = [row[text] for row in _rows_of(texts, [text])]
    else:
        found = _values(texts, "texts")
    for number, one in enumerate(found):
        if not isinstance(one, str | None):
            raise PackError(
                f"text {number} is {type(one).__name__}, expected text; two lists are given as "
                "texts and negatives="
            )
    return found


def is_table(texts: Any) -> bool:
    """Whether rows with named cells are given: a data frame, a dataset, several datasets."""
    is_frame = hasattr(texts, "columns") and hasattr(texts, "shape")
    return is_frame or isinstance(texts, Mapping) or hasattr(texts, "column_names")


def _column_names(table: Any) -> list[str]:
    if isinstance(table, Mapping):  # of datasets, by split
        first = next(iter(table.values()), None)
        if not hasattr(first, "column_names"):
            raise PackError(
                f"the texts are {type(table).__name__}, expected a list of texts, a data frame or "
                "a dataset"
            )
        return ["split", *_column_names(first)]
    if not hasattr(table, "__len__"):
        raise PackError(
            f"the texts are {type(table).__name__}, which is read once and these are read twice: "
            "load the dataset without streaming=True"
        )
    if hasattr(table, "column_names"):
        return list(table.column_names)
    return list(map(str, table.columns))


def _rows_of(table: Any, wanted: Sequence[str]) -> Iterator[Cells]:
    """Rows of a table with the wanted cells alone, as plain values."""
    if isinstance(table, Mapping):
        for split, part in table.items():
            check_columns(f"{_WHERE}, split {split!r}", ["split", *_column_names(part)], wanted)
            within = [name for name in wanted if name in part.column_names]
            yield from ({"split": str(split)} | row for row in _rows_of(part, within))
    elif hasattr(table, "column_names"):
        numbered = class_features(table.features.to_dict() if table.features else {})
        for row in table.select_columns(list(wanted)):
            yield with_class_names(row, numbered)
    else:
        cells = [_values(table[name], f"column {name!r}") for name in wanted]
        yield from (dict(zip(wanted, row, strict=True)) for row in zip(*cells, strict=True))


def _values(values: Any, what: str) -> list[Any]:
    """The values of a list, array or series, as plain ones; None where one is missing."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise PackError(f"{what} is {type(values).__name__}, expected a list")
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if type(value).__name__ in _MISSING:
        return None
    for to_list in ("tolist", "to_list"):  # of numpy, of polars
        if hasattr(value, to_list):
            value = getattr(value, to_list)()
    return None if value != value else value
