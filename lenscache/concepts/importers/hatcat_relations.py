"""What HatCat says of a concept beside its place and its texts.

    relationships: antonyms, opposite      --> contrasts, which name the concept and its opposite
        these, related, part_of, has_part  --> confusable concepts: their samples are hard negatives
    safety_tags, simplex_mapping           --> attributes, by which lenses can be filtered

What cannot be used is counted by kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.importers.links import spoken
from lenscache.concepts.importers.report import ImportReport, is_text

_OPPOSITES = ("antonyms", "opposite")
_RELATED = (*_OPPOSITES, "related", "part_of", "has_part")
_SENSE = re.compile(r":\d+$")  # Helping:2 is Helping on layer 2
_ATTRIBUTES: dict[str, dict[str, str]] = {
    "safety_tags": {},
    "simplex_mapping": {"status": "simplex_status", "mapped_simplex": "simplex"},
}
"""The name of an attribute, where it is not that of its key."""
_PROSE = ("mapping_rationale", "unmapped_justification")


class Relations(NamedTuple):
    """What the relationships of a concept become."""

    contrasts: tuple[str, ...]
    near: dict[str, None]
    """Concepts that are related to it, none of them above or below it."""


def read_relations(
    name: str, words: str, entry: dict[str, Any], hierarchy: Hierarchy, report: ImportReport
) -> Relations:
    """The relationships of an entry; `words` are what the concept is called."""
    found = entry.get("relationships")
    found = found if isinstance(found, dict) else {}
    contrasts: dict[str, None] = {}
    near: dict[str, None] = {}
    for key, value in found.items():
        if key not in _RELATED:
            if value:
                report.leave_out(f"relationships.{key}, for which a pack has no place", name)
            continue
        listed = texts_of([value] if isinstance(value, str) else value)
        for other in dict.fromkeys(_SENSE.sub("", text.strip()) for text in listed):
            said = spoken(other)
            if key in _OPPOSITES and said and said.casefold() != words.casefold():
                contrasts[f'The opposite of "{words}" is "{said}".'] = None
            if other not in hierarchy:
                if key not in _OPPOSITES:
                    report.leave_out(f"{key} that is not in the pack", f"{other} of {name}")
            elif other in hierarchy.family(name):
                report.leave_out(f"{key} that is above or below its concept", f"{other} of {name}")
            else:
                near[other] = None
    return Relations(tuple(contrasts), near)


def read_attributes(
    name: str, entry: dict[str, Any], report: ImportReport
) -> dict[str, tuple[str, ...]]:
    """The attributes of an entry: texts by name; a truth value is "true" or "false"."""
    attributes: dict[str, tuple[str, ...]] = {}
    for group, names in _ATTRIBUTES.items():
        given = entry.get(group)
        found: dict[str, Any] = given if isinstance(given, dict) else {}
        for key, value in found.items():
            values = _values(value) if _is_name(key) else None
            if values:
                attributes[names.get(key, key)] = values
            elif value and values is None:
                report.leave_out(f"{group}.{key}, by which nothing can be filtered", name)
    return attributes


def _is_name(key: str) -> bool:
    return is_text(key) and "=" not in key and key not in _PROSE


def _values(value: Any) -> tuple[str, ...] | None:
    """The texts of a value; None if it is of no kind that can be told in a few words."""
    if isinstance(value, bool):
        return (str(value).lower(),)
    if isinstance(value, int | float):
        return (str(value),)
    if isinstance(value, str):
        return (value.strip(),) if is_text(value) else ()
    if isinstance(value, list) and all(map(is_text, value)):
        return tuple(dict.fromkeys(text.strip() for text in value))
    return None


def texts_of(value: Any) -> list[str]:
    """The texts of a list that may be missing or hold anything."""
    found: Iterable[Any] = value if isinstance(value, list) else []
    return [text for text in found if is_text(text)]
