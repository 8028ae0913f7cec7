"""Tables of texts: CSV, TSV, JSON, JSON Lines, Parquet and saved Hugging Face datasets, row by row.

    file --read_rows--> number and cells of each row; Ragged for one with other than all fields

CSV and TSV are read by Python's own reader in its strict mode. pandas and pyarrow take what follows
a stray quotation mark into one cell and say nothing; this one refuses.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lenscache.errors import PackError, argument

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json")

Quoting = Literal["auto", "csv", "none"]
Cells = dict[str, Any]


class Ragged(NamedTuple):
    """A row of CSV or TSV that has more or fewer fields than the table has columns."""

    line: int
    n_fields: int
    n_columns: int

    @property
    def why(self) -> str:
        """What is wrong with it."""
        return (
            f"row with {'more' if self.n_fields > self.n_columns else 'fewer'} fields than columns"
        )

    @property
    def place(self) -> str:
        """Where it is."""
        return f"line {self.line} ({self.n_fields} of {self.n_columns} fields)"


@dataclass(frozen=True)
class TableFormat:
    """How a CSV, TSV or JSON file is written."""

    encoding: str = "utf-8-sig"
    """A byte order mark is passed over."""
    delimiter: str | None = None
    """Between the fields of CSV and TSV; None for what the suffix says."""
    quoting: Quoting = "auto"
    """csv: quotation marks may stand around a field, those inside are doubled. none: quotation
    marks are text. auto: csv; of TSV, none where it does not read as csv."""

    def __post_init__(self) -> None:
        if self.delimiter not in (None, r"\t") and not re.fullmatch(
            '[^"\r\n]', self.delimiter or ""
        ):
            raise PackError(f"delimiter {self.delimiter!r} cannot be used: give one character")

    def delimiter_of(self, path: Path) -> str:
        """Between the fields of a file."""
        by_suffix = "\t" if path.suffix.casefold() == ".tsv" else ","
        return "\t" if self.delimiter == r"\t" else self.delimiter or by_suffix

    def may_swallow(self, path: Path) -> bool:
        """Whether a stray quotation mark of the file may have taken rows into a cell."""
        return self.quoting == "auto" and path.suffix.casefold() in (".csv", ".tsv")


def read_rows(
    path: Path, wanted: Sequence[str], table: TableFormat | None = None
) -> Iterator[tuple[int, Cells | Ragged]]:
    """Rows of a table, numbered from 1; empty lines do not count.

    The name of a column of JSON or Parquet may lead into objects: `data.text`. The rows of a saved
    dataset with splits have a column `split`.

    Raises
    ------
    PackError
        If the file cannot be read, is no table, lacks a wanted column or has it twice.
    """
    suffix, its = path.suffix.casefold(), table or TableFormat()
    if path.is_dir() and _is_saved_dataset(path):
        rows: Iterator[Cells | Ragged] = _read_saved_dataset(path, wanted)
    elif suffix in (".csv", ".tsv"):
        rows = _read_csv(path, wanted, its)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        rows = _read_json(path, its)
    elif suffix == ".parquet":
        rows = _read_parquet(path, wanted)
    else:
        raise PackError(
            f"{path} is not one of {', '.join(SUFFIXES)}, nor a folder that a Hugging Face dataset "
            "was saved to"
        )
    columns: dict[str, None] = {}
    missing = list(wanted)  # objects of JSON may leave out what they do not have
    try:
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Ragged):
                columns = columns or dict.fromkeys(map(str, row))
                missing = [name for name in missing if not _has(row, name)]
                row |= {name: _lookup(row, name) for name in wanted}
            yield number, row
    except UnicodeDecodeError as error:
        raise PackError(
            f"{path} cannot be read: {_place_of(path, its.encoding)}{error.reason} in "
            f"{error.encoding}: say what it is written in, such as "
            f"{argument('encoding', 'latin-1')}"
        ) from error
    except LookupError as error:
        raise PackError(f"{error}: give an encoding such as utf-8, latin-1 or utf-16") from error
    except OSError as error:
        what = f"{path} cannot be read: {error}" if path.exists() else f"no file at {path}"
        raise PackError(what) from error
    if columns and missing:
        raise _no_column(str(path), missing[0], columns)


def check_columns(source: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise PackError if a wanted column is missing, or stands twice."""
    _refuse_twice(source, columns, wanted)
    for name in wanted:
        if name not in columns:
            raise _no_column(source, name, columns)


def _no_column(source: str, name: str, columns: Iterable[str]) -> PackError:
    there = ", ".join(map(repr, columns))
    return PackError(f"{source} has no column {name!r}, its columns are {there}")


def _has(row: Cells, name: str) -> bool:
    head, _, rest = name.partition(".")
    return name in row or bool(rest and isinstance(row.get(head), dict) and _has(row[head], rest))


def _lookup(row: Cells, name: str) -> Any:
    """The cell of a column, or what its dotted name leads to; None where there is nothing."""
    head, _, rest = name.partition(".")
    if name in row or not rest:
        return row.get(name)
    return _lookup(row[head], rest) if isinstance(row.get(head), dict) else None


def _refuse_twice(source: Path | str, columns: Iterable[str], wanted: Sequence[str]) -> None:
    names = list(columns)
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise PackError(
            f"{source} has {names.count(twice[0])} columns {twice[0]!r}: rename all but the one "
            "that is meant"
        )


def _place_of(path: Path, encoding: str) -> str:
    """Byte and line of the first character that is not of an encoding."""
    data = path.read_bytes()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return f"byte {error.start}, line {data[: error.start].count(10) + 1}: "
    return ""


# --- CSV and TSV --------------------------------------------------------------------------------


def _read_csv(path: Path, wanted: Sequence[str], table: TableFormat) -> Iterator[Cells | Ragged]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # by default, 131,072 characters
    is_plain = table.quoting == "none"
    if table.quoting == "auto" and path.suffix.casefold() == ".tsv":
        is_plain = not _reads_as_csv(path, table)
    with path.open(encoding=table.encoding, newline="") as file:
        reader = _reader(file, path, table, is_plain)
        opened = 1
        try:
            header: list[str] = next(reader, [])
            _refuse_twice(path, header, wanted)
            opened = reader.line_num + 1
            for row in reader:
                # Delimiters behind the last column, as some programs write them, hold nothing.
                if len(row) < len(header) or any(row[len(header) :]):
                    if row:
                        yield Ragged(opened, len(row), len(header))
                else:
                    yield dict(zip(header, row, strict=False))
                opened = reader.line_num + 1
        except csv.Error as error:
            raise PackError(
                f"{path} line {opened}: a quotation mark opens a field here, and in line "
                f"{reader.line_num} the field does not end as it should ({error}): put marks "
                "around the whole field and double those inside, or pass "
                f"{argument('quoting', 'none')} if marks are text"
            ) from error


def _reader(file: Any, path: Path, table: TableFormat, is_plain: bool) -> Any:
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if is_plain else {}
    return csv.reader(file, delimiter=table.delimiter_of(path), strict=True, **options)


def _reads_as_csv(path: Path, table: TableFormat) -> bool:
    """Whether quotation marks of a file stand around fields, and every row has all fields."""
    with path.open(encoding=table.encoding, newline="") as file:
        reader = _reader(file, path, table, is_plain=False)
        try:
            width = len(next(reader, []))
            return all(len(row) == width for row in reader if row)
        except csv.Error:
            return False


# --- JSON ---------------------------------------------------------------------------------------


def _read_json(path: Path, table: TableFormat) -> Iterator[Cells]:
    with path.open(encoding=table.encoding) as file:
        first, second = file.readline().strip(), file.readline().strip()
        file.seek(0)
        # Many a file of JSON Lines is called .json.
        if path.suffix.casefold() != ".json" or (first[:1] + first[-1:] == "{}" and second):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(_parse(line, f"{path} line {number}"), f"{path} line {number}")
            return
        found = _parse(file.read(), str(path))
    if not isinstance(found, list):
        raise PackError(f"{path} is {type(found).__name__}, expected an array of objects")
    for number, row in enumerate(found, start=1):
        yield _object(row, f"{path} row {number}")


def _parse(text: str, place: str) -> Any:
    def without_twice(pairs: list[tuple[str, Any]]) -> Cells:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise PackError(f"{place} has {twice!r} twice: keep the one that is meant")
        return found

    try:
        return json.loads(text, object_pairs_hook=without_twice)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{place} is not JSON ({error}): expected one object a line") from None


def _object(row: Any, place: str) -> Cells:
    if not isinstance(row, dict):
        raise PackError(f"{place} is {type(row).__name__}, expected an object")
    return row


# --- Parquet and saved datasets -----------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PackError(
            "reading Parquet and saved datasets needs pyarrow: run `pip install '.[parquet]'` in a "
            "clone of lenscache"
        ) from None
    return pyarrow


def _read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Cells]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names, wanted)
            noted = (file.schema_arrow.metadata or {}).get(b"huggingface")
            features = json.loads(noted)["info"]["features"] if noted else {}
            yield from _named(file.iter_batches(batch_size=4096), features)
    except pyarrow.ArrowInvalid as error:
        raise PackError(f"{path} is not a Parquet file: {error}") from error


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _read_saved_dataset(path: Path, wanted: Sequence[str]) -> Iterator[Cells]:
    """Rows of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    pyarrow = _pyarrow()
    whole = path / "dataset_dict.json"
    try:
        if whole.is_file():
            for split in json.loads(whole.read_text(encoding="utf-8"))["splits"]:
                for row in _read_saved_dataset(path / split, wanted):
                    yield {"split": split} | row
            return
        info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise PackError(
                f"{path} is a selection of rows of another dataset: save it after flatten_indices()"
            )
        for file in (path / entry["filename"] for entry in state["_data_files"]):
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
                _refuse_twice(path, stream.schema.names, wanted)
                yield from _named(stream, info.get("features") or {})
    except (KeyError, TypeError, ValueError, pyarrow.ArrowInvalid) as error:
        raise PackError(f"{path} is not a saved dataset: {error!r}") from error


def _named(batches: Iterable[Any], features: dict[str, Any]) -> Iterator[Cells]:
    """Rows of record batches, with the names of classes for their numbers; none for -1."""
    numbered = class_features(features)
    for batch in batches:
        for row in batch.to_pylist():
            yield with_class_names(row, numbered)


def class_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Of the features of a dataset, by column, those that hold numbers of classes."""
    return {name: each for name, each in features.items() if "ClassLabel" in json.dumps(each)}


def with_class_names(row: Cells, numbered: Mapping[str, Any]) -> Cells:
    """A row with the names of classes for their numbers; None for -1."""
    named = {name: _with_names(row[name], numbered[name]) for name in numbered if name in row}
    return row | named


def _with_names(value: Any, feature: Any) -> Any:
    """A value with the names of classes for their numbers, in lists and objects, too."""
    if isinstance(value, list):
        of_each = feature[0] if isinstance(feature, list) else feature.get("feature")
        return [_with_names(each, of_each) for each in value]
    if not isinstance(feature, dict):
        return value
    if isinstance(value, dict):
        return {name: _with_names(each, feature.get(name)) for name, each in value.items()}
    if isinstance(value, int) and feature.get("_type") == "ClassLabel":
        names = feature["names"]
        return names[value] if 0 <= value < len(names) else None
    return value
