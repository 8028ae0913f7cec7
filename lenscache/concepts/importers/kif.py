"""Concepts of SUMO, or of another ontology in SUO-KIF: a ``.kif`` file, or a folder of such files.

    (subclass A B), (instance A B)               --> A below B
    (documentation A EnglishLanguage "text")     --> definition
    (termFormat EnglishLanguage A "name")        --> name, then aliases; else the words of the term

Files are read a line at a time. Only facts are used, no rules and nothing with variables. A form
whose parentheses or quotes do not close is left out and reported: a ``(`` in column 0 begins a new
form. Links in circles and parents that nothing else is said of are mended; only a source without a
concept is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lenscache.concepts.importers.links import (
    children_of,
    cut_cycles,
    depths_below,
    other_names,
    spoken,
    unknown_root,
)
from lenscache.concepts.importers.report import Imported, ImportReport, numbered_lines
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError

_PIECE = re.compile(r'\s+|;.*|[()"]|[^\s();"]+')
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_FORM_AFTER_OPEN_QUOTE = re.compile(
    r"\((?:subclass|instance|documentation|termFormat|format|domain|range|=>|<=>)\s"
)
_ENGLISH = "EnglishLanguage"
_OPEN_PARENTHESIS, _OPEN_QUOTE = "form with an open parenthesis", "form with an open quote"


def is_kif(path: Path) -> bool:
    """Whether a path is a KIF file or a folder of such files."""
    return bool(_files(path))


def import_kif(path: str | Path, *, roots: Sequence[str] | None = None) -> Imported:
    """Make a pack of a KIF file or a folder of them.

    Parameters
    ----------
    path : the file or folder.
    roots : terms to take, with all that is below them; None for everything.

    Raises
    ------
    PackError
        If there is no KIF file, one cannot be read, a root is unknown, or they hold no concept.
    """
    path, report = Path(path), ImportReport()
    files = _files(path)
    if not files:
        raise PackError(f"{path} is not a .kif file or a folder that holds one")
    facts = _read_facts(files, report)
    parents = _parents(facts, report)
    cut_cycles(parents, report)
    if not parents:
        raise PackError(f"{path} holds no concept: no subclass or documentation is stated in it")
    if roots is not None:
        parents = _below(roots, parents, path)
    levels = depths_below((term for term in parents if not parents[term]), children_of(parents))
    concepts = tuple(_concept(term, levels[term], parents[term], facts, report) for term in parents)
    report.read.update({"files": len(files), "concepts": len(concepts)})
    origin = f"KIF, {path.name}"
    pack = ConceptPack(name=path.stem, version="1", concepts=concepts, origin=origin)
    return Imported(pack, report)


def _files(path: Path) -> list[Path]:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.suffix.casefold() == ".kif" and file.is_file()]


@dataclass
class _Facts:
    """What the files state, in the order in which they do."""

    subclasses: dict[tuple[str, str], None] = field(default_factory=dict)
    instances: dict[tuple[str, str], None] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    names: dict[str, dict[str, None]] = field(default_factory=dict)


class _Token(NamedTuple):
    text: str
    is_string: bool = False
    is_nested: bool = False

    @property
    def is_term(self) -> bool:
        return not (self.is_string or self.is_nested or self.text.startswith(("?", "@")))


def _read_facts(files: Iterable[Path], report: ImportReport) -> _Facts:
    facts = _Facts()
    for file in files:
        for line, form in _forms(file, report):
            _note(form, facts, f"{file.name} line {line}", report)
    return facts


def _forms(file: Path, report: ImportReport) -> Iterator[tuple[int, list[_Token]]]:
    """The forms of a file and where they begin; what is nested in them is marked, not read."""
    form: list[_Token] = []
    string: list[str] | None = None  # parts of the string that is open
    start = depth = 0
    is_lost = False  # after a fault, until a form begins in column 0

    def leave_out_open() -> None:
        if depth:
            why = _OPEN_PARENTHESIS if string is None else _OPEN_QUOTE
            report.leave_out(why, f"{file.name} line {start}")

    for number, line in numbered_lines(file, report):
        if line.startswith("(") and (string is None or _FORM_AFTER_OPEN_QUOTE.match(line)):
            leave_out_open()
            depth, string, is_lost = 0, None, False
        at = 0
        while at < len(line) and not is_lost:
            match = (_PIECE if string is None else _IN_STRING).match(line, at)
            piece = match[0] if match else ""
            at += len(piece)
            if string is not None:
                string.append(piece)
                if line[at : at + 1] == '"':
                    if depth == 1:
                        form.append(_Token(_ESCAPED.sub(r"\1", "".join(string)), is_string=True))
                    string = None
                at += 1
            elif piece.isspace() or piece.startswith(";"):
                continue
            elif piece == "(":
                depth += 1
                if depth == 1:
                    form, start = [], number
                elif depth == 2:
                    form.append(_Token("", is_nested=True))
            elif depth == 0:
                place = f"{file.name} line {number}"
                report.leave_out("text or parenthesis outside of a form", place)
                is_lost = True
            elif piece == ")":
                depth -= 1
                if depth == 0:
                    yield start, form
            elif piece == '"':
                string = []
            elif depth == 1:
                form.append(_Token(piece))
    leave_out_open()


def _note(form: list[_Token], facts: _Facts, place: str, report: ImportReport) -> None:
    head, arguments = (form[0].text, form[1:]) if form else ("", [])
    if head in ("subclass", "instance"):
        if len(arguments) == 2 and all(token.is_term for token in arguments):
            links = facts.subclasses if head == "subclass" else facts.instances
            links[arguments[0].text, arguments[1].text] = None
        else:
            report.leave_out(f"{head} that does not link two terms", place)
    elif head == "documentation" and len(arguments) == 3:
        term, language, text = arguments
        said = " ".join(text.text.replace("&%", "").split())
        if not (term.is_term and text.is_string and said) or language.text != _ENGLISH:
            return
        if facts.definitions.setdefault(term.text, said) != said:
            report.leave_out("second documentation of a term", f"{term.text} in {place}")
    elif head == "termFormat" and len(arguments) == 3:
        language, term, text = arguments
        said = " ".join(text.text.split())
        if term.is_term and text.is_string and said and language.text == _ENGLISH:
            facts.names.setdefault(term.text, {})[said] = None


def _parents(facts: _Facts, report: ImportReport) -> dict[str, list[str]]:
    """Parents by term: of subclasses and their parents, documented terms, and instances."""
    parents: dict[str, list[str]] = {}
    for term, parent in facts.subclasses:
        parents.setdefault(term, []).append(parent)
    for term in facts.definitions:
        parents.setdefault(term, [])
    for _, parent in facts.subclasses:
        if parent not in parents:
            report.repair("concept that is only mentioned as a parent", parent)
            parents[parent] = []
    instances: dict[str, list[str]] = {}
    for term, parent in facts.instances:
        instances.setdefault(parent, []).append(term)
    known = list(parents)
    for parent in known:
        for term in instances.pop(parent, []):
            if term not in parents:
                parents[term] = []
                known.append(term)
            if parent not in parents[term]:
                parents[term].append(parent)
    for parent, terms in instances.items():
        for term in terms:
            report.leave_out("instance of what is not a concept", f"{term} of {parent}")
    return parents


def _below(roots: Iterable[str], parents: dict[str, list[str]], path: Path) -> dict[str, list[str]]:
    """The part of the hierarchy that the roots span, in the order of the whole."""
    for root in roots:
        if root not in parents:
            raise unknown_root(root, root, parents, str(path))
    taken = depths_below(roots, children_of(parents))
    if not taken:
        raise PackError("no roots given: name one or more terms, or none for all concepts")
    return {
        term: [p for p in above if p in taken] for term, above in parents.items() if term in taken
    }


def _concept(
    term: str, level: int, parents: list[str], facts: _Facts, report: ImportReport
) -> Concept:
    name, *others = facts.names.get(term) or [spoken(term) or term]
    if term not in facts.definitions:
        report.repair("concept without a definition", term)
    return Concept(
        id=term,
        name=name,
        level=level,
        definition=facts.definitions.get(term, ""),
        parents=tuple(parents),
        aliases=other_names(name, others),
    )
