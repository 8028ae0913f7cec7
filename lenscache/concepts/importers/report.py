"""What an importer did: what it read, what it repaired, what it left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import PackError

_SHOWN = 3
_MOST_CLASSES = 12
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is text that can be written again: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not _HALF_PAIR.search(value)


@dataclass
class ImportReport:
    """Counts by what happened, with a few of the places where it did."""

    read: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    """Texts of each class of a table."""
    repaired: dict[str, list[str]] = field(default_factory=dict)
    """Places by what was mended there."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Places by why they were left out."""

    def repair(self, what: str, place: str) -> None:
        """Note that something was mended."""
        self.repaired.setdefault(what, []).append(place)

    def leave_out(self, why: str, place: str) -> None:
        """Note that something was left out."""
        self.left_out.setdefault(why, []).append(place)

    def lines(self) -> list[str]:
        """The report for people, one line a kind."""
        lines = [f"read: {count} {what}" for what, count in self.read.items()]
        lines += self._class_lines()
        for title, kinds in (("repaired", self.repaired), ("left out", self.left_out)):
            for kind, places in kinds.items():
                shown = ", ".join(f"{_printable(place):.60}" for place in places[:_SHOWN])
                more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
                lines.append(f"{title}: {len(places)} x {kind}: {shown}{more}")
        return lines

    def _class_lines(self) -> list[str]:
        largest = sorted(self.classes.items(), key=lambda item: -item[1])
        shown, rest = largest[:_MOST_CLASSES], largest[_MOST_CLASSES:]
        lines = [f"class: {n} texts: {_printable(name):.60}" for name, n in shown]
        if rest:
            lines.append(f"class: {len(rest)} more, none with more than {rest[0][1]} texts")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with counts for places."""
        repaired = {kind: len(places) for kind, places in self.repaired.items()}
        left_out = {kind: len(places) for kind, places in self.left_out.items()}
        found = {"read": self.read, "repaired": repaired, "left_out": left_out}
        return found | ({"classes": self.classes} if self.classes else {})


def numbered_lines(
    file: Path, report: ImportReport, *, encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, str]]:
    """The lines of a file, numbered from 1; what is not UTF-8 is replaced and reported.

    Raises
    ------
    PackError
        If the file cannot be read.
    """
    try:
        with file.open(encoding=encoding, errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if "\ufffd" in line:
                    place = f"{file.name} line {number}"
                    report.repair("character that is not UTF-8, replaced", place)
                yield number, line
    except OSError as error:
        raise PackError(f"{file} cannot be read: {error}") from error


def _printable(place: str) -> str:
    """On one line, without the control characters of a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in place).split())


@dataclass(frozen=True)
class Imported:
    """A pack and how it came about."""

    pack: ConceptPack
    report: ImportReport
