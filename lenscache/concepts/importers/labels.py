"""What the labels of a table mean, and which of them may mean more than one thing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lenscache.concepts.importers.report import is_text
from lenscache.errors import PackError, argument

_TRUE, _FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
_MISSING = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "none", "null"})  # in lower case
_SEPARATORS = ("|", ";", ",")
_MANY_CLASSES = (
    20  # of which it is asked whether they are classes, if they look like something else
)
_OPPOSITES = ({"positive", "negative"}, {"pos", "neg"}, {"true", "false"}, {"yes", "no"})
_LIST = re.compile(r"""[\[{].*['",\d].*[\]}]""", re.DOTALL)  # as lists become text
_NOT = ("not ", "non ", "no ", "non", "un", "in", "ir", "im", "dis")


@dataclass(frozen=True)
class LabelledColumns:
    """Which columns of the source hold what, and what their labels mean."""

    text: str = "text"
    label: str = "label"
    split: str | None = None
    """Column of given splits; None to draw them."""
    concept: str | None = None
    """Id of the concept of a binary set; None for the name of the label column."""
    separator: str | None = None
    """What separates the classes of one row, if a row may have several; "" to say that none has.
    None asks where labels look as if they had."""
    threshold: float | None = None
    """Labels are scores, and from this on they say that the concept is there."""
    fold_case: bool = False
    """Whether labels that differ in case only are one, in lower case."""
    missing: tuple[str, ...] = ()
    """Labels that say that a row has none."""
    keep_na: bool = False
    """Whether labels such as NA, None and null are classes like others."""
    as_classes: bool = False
    """Whether labels are classes though they are numbers, lists or nearly all different."""

    @property
    def named(self) -> list[str]:
        """Columns that the source must have."""
        return [name for name in (self.text, self.label, self.split) if name is not None]


def refuse_uncertain(
    source: str, count: dict[str, int], rows: dict[str, int], columns: LabelledColumns
) -> None:
    """Raise PackError, with what to say, if labels of a column may mean more than one thing."""
    where = f"{source}: column {columns.label!r} has"

    def place(label: str) -> str:
        return f"{label!r:.60} (row {rows[label]})"

    if not columns.keep_na and (absent := [x for x in count if x.casefold() in _MISSING]):
        raise PackError(
            f"{where} the label {place(absent[0])}: pass {argument('missing', (absent[0],))} if it "
            f"says that a row has no label, or {argument('keep_na')} if it is a class like others"
        )
    spellings: dict[str, list[str]] = {}
    for label in count:
        spellings.setdefault(label.casefold(), []).append(label)
    if not is_binary(count) and (same := [its for its in spellings.values() if len(its) > 1]):
        raise PackError(
            f"{where} labels that differ in case only, {place(same[0][0])} and "
            f"{place(same[0][1])}: pass {argument('fold_case')} to make them one, or rename one"
        )
    if columns.separator is None:
        for mark in _SEPARATORS:
            parts = {part.strip() for label in count for part in label.split(mark)} - {""}
            several = [label for label in count if mark in label]
            # Few parts make many labels, or a part is the whole label of other rows.
            if (len(several) > 1 and len(parts) <= len(count)) or any(
                part.strip() in count for label in several for part in label.split(mark)
            ):
                raise PackError(
                    f"{where} labels that look like several in one, such as {place(several[0])}: "
                    f"pass {argument('separator', mark)}, or {argument('separator', '')} if each "
                    "is one label"
                )
    if columns.threshold is None and not columns.as_classes and not is_binary(count):
        _refuse_unlike_classes(where, count)


def _refuse_unlike_classes(where: str, count: dict[str, int]) -> None:
    if written := [label for label in count if _LIST.fullmatch(label)]:
        raise PackError(
            f"{where} lists that are written as text, such as {written[0]!r:.60}: write them with "
            f"one mark between the labels and pass it as {argument('separator', None)}, or pass "
            f"{argument('as_classes')}"
        )
    values = [value for label in count if (value := number_of(label)) is not None]
    if 2 * len(values) >= len(count) and any(value != int(value) for value in values):
        raise PackError(
            f"{where} scores from {min(values):g} to {max(values):g}: pass "
            f"{argument('threshold', _middle(values))} to take those from there on for true, name "
            f"a column of classes, or pass {argument('as_classes')}"
        )
    if len(values) == len(count) and set(values) == {-1.0, 1.0}:
        raise PackError(
            f"{where} the labels -1 and 1: pass {argument('threshold', 0)} if 1 says that the "
            f"concept is there, or {argument('missing', ('-1',))} if -1 says that a row has no "
            "label"
        )
    if len(values) == len(count) > _MANY_CLASSES:
        raise PackError(
            f"{where} {len(count)} different numbers from {min(values):g} to {max(values):g}: pass "
            f"{argument('threshold', _middle(values))} if they are scores, or "
            f"{argument('as_classes')} if each is a class"
        )
    if len(count) > max(_MANY_CLASSES, sum(count.values()) / 2):
        raise PackError(
            f"{where} {len(count)} different labels in {sum(count.values())} rows: name a column "
            f"of classes, or pass {argument('as_classes')}"
        )


def is_binary(labels: Iterable[str]) -> bool:
    """Whether all labels say that something is so, or is not."""
    return {label.casefold() for label in labels} <= _TRUE | _FALSE


def is_true(source: str, label: str, columns: LabelledColumns) -> bool:
    """What a label of a binary set says, or a score beside its threshold.

    Raises
    ------
    PackError
        If a label is no score where there is a threshold.
    """
    if columns.threshold is None:
        return label.casefold() in _TRUE
    if (value := number_of(label)) is None:
        raise PackError(
            f"{source}: column {columns.label!r} has the label {label!r:.60}, expected numbers "
            f"with {argument('threshold', None)}"
        )
    return value >= columns.threshold


def are_opposites(labels: Iterable[str]) -> bool:
    """Whether some of the labels of a text deny each other."""
    found = {
        " ".join(label.casefold().replace("-", " ").replace("_", " ").split()) for label in labels
    }
    denied = {f"{word}{label}" for label in found for word in _NOT}
    return any(pair <= found for pair in _OPPOSITES) or bool(denied & found)


def number_of(label: str) -> float | None:
    """The finite number that a label is, if it is one."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _middle(values: list[float]) -> float:
    middle = 0.5 if min(values) >= 0 and max(values) <= 1 else sorted(values)[len(values) // 2]
    middle = float(f"{middle:g}")
    return int(middle) if middle.is_integer() else middle


def classes_of(label: Any, columns: LabelledColumns) -> list[str]:
    """The labels of one cell, without space around them; none for an empty one.

    Raises
    ------
    PackError
        If it holds something that has no name, such as an object.
    """
    cells = label if isinstance(label, list | tuple) else [label]
    # Not a number is how tables say that there is none.
    cells = [cell for cell in cells if cell is not None and cell == cell]
    if nameless := [cell for cell in cells if isinstance(cell, dict | list | tuple | bytes)]:
        raise PackError(
            f"column {columns.label!r} holds {type(nameless[0]).__name__}, such as "
            f"{nameless[0]!r:.60}, expected text or numbers: name a field of objects, as "
            f"{columns.label}.FIELD, or write the labels as text"
        )
    parts = [str(cell) for cell in cells]
    if columns.separator and cells and not isinstance(label, list | tuple):
        parts = parts[0].split(columns.separator)
    stripped = [part.strip() for part in parts if is_text(part)]
    return [part.casefold() for part in stripped] if columns.fold_case else stripped
