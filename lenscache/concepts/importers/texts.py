"""Texts without labels, for a background: a column of a table, or the lines of a text file."""

from __future__ import annotations

from pathlib import Path

from lenscache.concepts.importers.report import is_text
from lenscache.concepts.importers.tables import SUFFIXES, Ragged, read_rows
from lenscache.errors import PackError, PlanError


def read_texts(path: str | Path, column: str = "text") -> tuple[str, ...]:
    """The texts of a file: a column of a table; else one a line.

    Raises
    ------
    PackError
        If a table cannot be read, has no such column or a row with other than all fields.
    PlanError
        If another file cannot be read.
    """
    path = Path(path)
    if path.suffix.casefold() in SUFFIXES:
        texts = []
        for _, row in read_rows(path, [column]):
            if isinstance(row, Ragged):
                raise PackError(
                    f"{path} {row.place}: {row.why}: put quotation marks around texts that hold "
                    "the delimiter"
                )
            if is_text(text := row[column]):
                texts.append(text)
        return tuple(texts)
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"the background texts of {path} cannot be read ({error}): give a text file in UTF-8 "
            f"with one text a line, or one of {', '.join(SUFFIXES)}; or a number of texts, for the "
            "model to write them"
        ) from error
