"""The user's own prompt templates: a text file, one template a line, filled for every concept.

    # how our users talk about it
    Tell me about {name}.
    Is {alias} the same as {name}?
    contrast: My dog is called {name}.

A line that begins with "contrast:" names the concept without being about it. Empty lines and lines
that begin with "#" are skipped. A concept that lacks a field of a template gets no prompt from it;
one with several parents, children or aliases gets several.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lenscache.errors import PackError

FIELDS = ("name", "definition", "parent", "child", "alias")
"""What stands in braces in a template."""

_CONTRAST = "contrast:"
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELD_OR_TEXT = re.compile(r"\{[^{}]*\}|[^{]+|\{")


@dataclass(frozen=True)
class Template:
    """One template."""

    text: str
    is_contrast: bool
    """Whether what it gives names the concept without expressing it."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it asks for."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    def fill(self, values: Mapping[str, Sequence[str]]) -> list[str]:
        """One text for each combination of values; none if a field has no value."""
        parts = _FIELD_OR_TEXT.findall(self.text)
        choices = itertools.product(*(values[name] for name in self.fields))
        chosen = (dict(zip(self.fields, choice, strict=True)) for choice in choices)
        return ["".join(_fill_part(part, one) for part in parts) for one in chosen]


def _fill_part(part: str, chosen: Mapping[str, str]) -> str:
    field = _FIELD.fullmatch(part)
    return part if field is None else chosen[field[1]]


def parse_templates(lines: Sequence[str]) -> tuple[Template, ...]:
    """The templates of some lines.

    Raises
    ------
    PackError
        If a template has an unknown field, or none: it would say the same of every concept.
    """
    return _parse(tuple(lines))


@cache
def _parse(lines: tuple[str, ...]) -> tuple[Template, ...]:
    found = []
    for line in lines:
        is_contrast = line.casefold().startswith(_CONTRAST)
        template = Template(line[len(_CONTRAST) :].strip() if is_contrast else line, is_contrast)
        known, has = ", ".join(f"{{{name}}}" for name in FIELDS), f"the template {line!r:.80} has"
        if unknown := [name for name in template.fields if name not in FIELDS]:
            raise PackError(f"{has} the unknown field {{{unknown[0]}}}, expected {known}")
        if not template.fields:
            raise PackError(f"{has} no field, it would say the same of every concept: {known}")
        found.append(template)
    return tuple(found)


def read_templates(path: str | Path) -> tuple[str, ...]:
    """The lines of a template file, for `ConceptPack.templates`.

    Raises
    ------
    PackError
        If the file cannot be read, has no template, or one that cannot be used.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"cannot read the templates in {path}: {error}") from error
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines()))
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        hint = "give one a line, such as: Tell me about {name}."
        raise PackError(f"{path} holds no template: {hint}")
    try:
        parse_templates(templates)
    except PackError as error:
        raise PackError(f"{path}: {error}") from None
    return templates
