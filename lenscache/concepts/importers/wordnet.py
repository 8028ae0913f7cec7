"""Nouns of WordNet 3.0, 3.1 or another database with ``data.noun`` and ``index.noun``.

    index.noun --order of senses--> ids as NLTK gives them (dog.n.01)
    data.noun  --synsets, down from the roots, `max_depth` links--> concepts, general ones first

A synset's words are its name and aliases, its gloss is the definition. Sentences quoted in the
gloss are examples, unless they name the concept: most of them do. Faulty lines are left out, and
reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lenscache.concepts.importers.links import (
    children_of,
    depths_below,
    join_links,
    other_names,
    unknown_root,
    with_examples,
)
from lenscache.concepts.importers.report import Imported, ImportReport, numbered_lines
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError

_ABOVE, _BELOW = frozenset({"@", "@i"}), frozenset({"~", "~i"})
_QUOTED = re.compile(r'"([^"]*)"')
_MAX_ALIASES = 3


def is_wordnet(path: Path) -> bool:
    """Whether a path is a folder of WordNet's database files, or has such a folder `dict`."""
    return (_database(path) / "data.noun").is_file()


def import_wordnet(
    folder: str | Path,
    *,
    roots: Sequence[str] = ("entity.n.01",),
    max_depth: int = 5,
) -> Imported:
    """Make a pack of the nouns below some synsets.

    Concepts are in order of level, and of their place in the file within a level.

    Parameters
    ----------
    folder : where data.noun and index.noun are, or a folder `dict` with them.
    roots : ids of the synsets on level 0.
    max_depth : the last level, counted in links from the nearest root.

    Raises
    ------
    PackError
        If a file is missing or cannot be read, a root is unknown, or nothing is to be taken.
    """
    folder, report = Path(folder), ImportReport()
    if not roots or max_depth < 0:
        raise PackError("nothing to take: give at least one root and a depth of 0 or more")
    database = _database(folder)
    synsets = _read_synsets(database / "data.noun", report)
    ids = _ids(synsets, database / "index.noun", report)
    offsets = {name: offset for offset, name in ids.items()}
    for root in roots:
        if root not in offsets:
            meant = root if ".n." in root else f"{root}.n.01"
            raise unknown_root(root, meant, offsets, str(folder))
    parents = _parents(synsets, ids, report)
    depths = depths_below((offsets[root] for root in roots), children_of(parents))
    taken = sorted((depth, offset) for offset, depth in depths.items() if depth <= max_depth)
    levels = {offset: depth for depth, offset in taken}
    concepts = tuple(
        _concept(synsets[offset], levels, parents[offset], ids, report) for offset in levels
    )
    report.read.update({"synsets": len(synsets), "concepts": len(concepts)})
    pack = ConceptPack(name=folder.name, version="1", concepts=concepts, origin="WordNet nouns")
    return Imported(pack, report)


def _database(folder: Path) -> Path:
    return folder if (folder / "data.noun").is_file() else folder / "dict"


@dataclass(frozen=True)
class _Synset:
    offset: str
    words: tuple[str, ...]
    above: tuple[str, ...]
    below: tuple[str, ...]
    gloss: str


def _lines(file: Path, report: ImportReport) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, without the licence that a file begins with."""
    if not file.exists():
        raise PackError(f"no file at {file}: give a folder with WordNet's data.noun and index.noun")
    for number, line in numbered_lines(file, report, encoding="utf-8"):
        if line.strip() and not line.startswith("  "):
            yield number, line


def _read_synsets(file: Path, report: ImportReport) -> dict[str, _Synset]:
    synsets: dict[str, _Synset] = {}
    for number, line in _lines(file, report):
        try:
            synset = _parse_synset(line)
        except (ValueError, IndexError):
            report.leave_out("line that is not a synset", f"{file.name} line {number}")
            continue
        if synset.offset in synsets:
            report.leave_out("second synset of an offset", f"{file.name} line {number}")
        else:
            synsets[synset.offset] = synset
    if not synsets:
        raise PackError(f"{file} holds no synset")
    return synsets


def _parse_synset(line: str) -> _Synset:
    """offset file type n_words (word id)... n_pointers (symbol offset type words)... | gloss."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    after_words = 4 + 2 * int(fields[3], 16)
    words = fields[4:after_words:2]
    pointers = fields[after_words + 1 : after_words + 1 + 4 * int(fields[after_words])]
    if not (fields[0].isdecimal() and words) or len(pointers) != 4 * int(fields[after_words]):
        raise ValueError(line)
    nouns = [pointers[at : at + 2] for at in range(0, len(pointers), 4) if pointers[at + 2] == "n"]
    above = tuple(offset for symbol, offset in nouns if symbol in _ABOVE)
    below = tuple(offset for symbol, offset in nouns if symbol in _BELOW)
    return _Synset(fields[0], tuple(words), above, below, gloss.strip())


def _ids(synsets: dict[str, _Synset], file: Path, report: ImportReport) -> dict[str, str]:
    """Ids by offset: the first word of a synset, and which of that word's senses it is."""
    senses: dict[str, list[str]] = {}
    for number, line in _lines(file, report):
        fields = line.split()
        try:
            n_senses = int(fields[2])
            if not 0 < n_senses <= len(fields) - 6:
                raise ValueError(line)
        except (ValueError, IndexError):
            report.leave_out("line that is not an index entry", f"{file.name} line {number}")
            continue
        senses[fields[0].lower()] = fields[-n_senses:]
    ids: dict[str, str] = {}
    for offset, synset in synsets.items():
        word = synset.words[0].lower()
        listed = senses.get(word, [])
        if offset in listed:
            ids[offset] = f"{word}.n.{listed.index(offset) + 1:02d}"
        else:
            report.repair("synset that the index lacks, named by its offset", f"{word}.n.{offset}")
            ids[offset] = f"{word}.n.{offset}"
    return ids


def _parents(
    synsets: dict[str, _Synset], ids: dict[str, str], report: ImportReport
) -> dict[str, list[str]]:
    """Parents by offset."""
    above = {offset: synset.above for offset, synset in synsets.items()}
    below = {offset: synset.below for offset, synset in synsets.items()}
    words = "hypernym", "hyponym"
    parents = join_links(above, below, report, words=words, show=ids.__getitem__)
    return {offset: sorted(found) for offset, found in parents.items()}


def _concept(
    synset: _Synset,
    levels: dict[str, int],
    parents: list[str],
    ids: dict[str, str],
    report: ImportReport,
) -> Concept:
    name, level = ids[synset.offset], levels[synset.offset]
    inside = [parent for parent in parents if parent in levels]
    for parent in inside:
        if levels[parent] >= level:
            report.leave_out("hypernym that is not on a level above", f"{ids[parent]} of {name}")
    first, *others = (word.replace("_", " ") for word in synset.words)
    definition = synset.gloss.partition('"')[0].strip(" ;:,")
    if not definition:
        report.repair("concept without a definition", name)
    concept = Concept(
        id=name,
        name=first,
        level=level,
        definition=definition,
        parents=tuple(ids[parent] for parent in inside if levels[parent] < level),
        aliases=other_names(first, others),
    )
    quoted = (text.strip() for text in _QUOTED.findall(synset.gloss))
    concept = with_examples(concept, filter(None, quoted), report)
    return replace(concept, aliases=concept.aliases[:_MAX_ALIASES])
