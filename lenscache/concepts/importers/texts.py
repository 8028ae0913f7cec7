"""Texts without labels, for a background: a column of a table, or the lines of a text file."""

from __future__ import annotations

from pathlib import Path

from lenscache.concepts.importers.report import is_text
from lenscache.concepts.importers.tables import SUFFIXES, read_rows
from lenscache.errors import PlanError


def read_texts(path: str | Path, column: str = "text") -> tuple[str, ...]:
    """The texts of a file: a column of CSV, JSON Lines or Parquet; else one a line.

    Raises
    ------
    PackError
        If a table cannot be read or has no such column.
    PlanError
        If another file cannot be read.
    """
    path = Path(path)
    if path.suffix.casefold() in SUFFIXES:
        cells = (row.get(column) for _, row in read_rows(path, [column]) if row is not None)
        return tuple(cell for cell in cells if is_text(cell))
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"the background texts of {path} cannot be read ({error}): give a text file in UTF-8 "
            f"with one text a line, or one of {', '.join(SUFFIXES)}; or a number of texts, for the "
            "model to write them"
        ) from error
