"""SUMO concepts in the layer files of HatCat: a folder of ``layer0.json``, ``layer1.json`` ...

Such files are made by machines and untidy: parents and children that do not exist, several entries
of one name, links in circles, definitions that are missing or say nothing. All of it is mended or
left out, and reported; only a folder without a single usable concept is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lenscache.concepts.importers.links import cut_cycles, join_links, spoken, with_examples
from lenscache.concepts.importers.report import Imported, ImportReport, is_text
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError

_LAYER_FILE = re.compile(r"layer(\d+)\.json")
_SAYS_NOTHING = re.compile(r"(?i)^(grouping|container|umbrella)\s+(category|concept|node)\b")


def is_hatcat(path: Path) -> bool:
    """Whether a path is a folder of layer files."""
    return path.is_dir() and any(_LAYER_FILE.fullmatch(entry.name) for entry in path.iterdir())


def import_hatcat(folder: str | Path) -> Imported:
    """Make a pack of a folder of layer files.

    Raises
    ------
    PackError
        If the folder has no layer files, one is not JSON, or they hold no usable concept.
    """
    folder, report = Path(folder), ImportReport()
    entries = _read_entries(folder, report)
    parents = _parents(entries, report)
    cut_cycles(parents, report)
    concepts = tuple(
        _concept(name, entry, level, parents[name], entries, report)
        for name, (level, entry) in entries.items()
    )
    if not concepts:
        raise PackError(f"{folder} holds no usable concept")
    report.read["concepts"] = len(concepts)
    name, origin = folder.resolve().name, "HatCat layer files"
    return Imported(ConceptPack(name=name, version="1", concepts=concepts, origin=origin), report)


_Entries = dict[str, tuple[int, dict[str, Any]]]  # level and entry by name


def _read_entries(folder: Path, report: ImportReport) -> _Entries:
    named = ((_LAYER_FILE.fullmatch(file.name), file) for file in folder.glob("*.json"))
    files = [(int(match[1]), file) for match, file in named if match]
    if not files:
        hint = "give the folder of the layer files"
        raise PackError(f"{folder} has no layer0.json, layer1.json ...: {hint}")
    entries: _Entries = {}
    for level, file in sorted(files):
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise PackError(f"{file} is not JSON: {error}") from None
        listed = data.get("concepts", []) if isinstance(data, dict) else data
        if not isinstance(listed, list):
            report.leave_out("layer file without a list of concepts", file.name)
            continue
        for number, entry in enumerate(listed):
            name = entry.get("sumo_term") if isinstance(entry, dict) else None
            if not is_text(name):
                report.leave_out("entry without a name", f"{file.name} entry {number}")
            elif name in entries:
                report.leave_out("second entry of a name", f"{name} in {file.name}")
            else:
                entries[name] = level, entry
    report.read["layer files"] = len(files)
    return entries


def _parents(entries: _Entries, report: ImportReport) -> dict[str, list[str]]:
    """Parents by name."""
    above = {name: _texts(entry.get("parent_concepts")) for name, (_, entry) in entries.items()}
    below = {
        name: dict.fromkeys(
            _texts(entry.get("child_concepts")) + _texts(entry.get("category_children"))
        )
        for name, (_, entry) in entries.items()
    }
    parents = join_links(above, below, report)
    for name, found in parents.items():
        if not found and entries[name][0] > 0:
            report.repair("concept below level 0 without a parent, kept as a root", name)
    return parents


def _concept(
    name: str,
    entry: dict[str, Any],
    level: int,
    parents: list[str],
    entries: _Entries,
    report: ImportReport,
) -> Concept:
    hints = entry.get("training_hints")
    hints = hints if isinstance(hints, dict) else {}
    words = spoken(name) or name
    others = [*_texts(entry.get("aliases")), *_texts(entry.get("lemmas"))]
    aliases = dict.fromkeys(other.replace("_", " ").strip() for other in others)
    confusable = dict.fromkeys(_texts(hints.get("confusable_with")))
    confusable.pop(name, None)
    for other in confusable:
        if other not in entries:
            report.leave_out("confusable concept that does not exist", f"{other} of {name}")
    concept = Concept(
        id=name,
        name=words,
        level=level,
        definition=_definition(name, entry, report),
        parents=tuple(parents),
        aliases=tuple(a for a in aliases if a and a.casefold() != words.casefold()),
        confusable_with=tuple(other for other in confusable if other in entries),
        negatives=tuple(dict.fromkeys(_texts(hints.get("negative_examples")))),
    )
    return with_examples(concept, _texts(hints.get("positive_examples")), report)


def _definition(name: str, entry: dict[str, Any], report: ImportReport) -> str:
    for key in ("definition", "sumo_definition"):
        raw = entry.get(key)
        text = " ".join(raw.replace("&%", "").split()) if is_text(raw) else ""
        if not text:
            continue
        if _SAYS_NOTHING.match(text):
            report.leave_out("definition that says nothing", f"{name}: {text}")
            continue
        if text != raw:
            report.repair("definition with marks or line breaks", name)
        return text
    report.repair("concept without a definition", name)
    return ""


def _texts(value: Any) -> list[str]:
    """The texts of a list that may be missing or hold anything."""
    found: Iterable[Any] = value if isinstance(value, list) else []
    return [text for text in found if is_text(text)]
