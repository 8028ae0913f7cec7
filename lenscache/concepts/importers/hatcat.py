"""SUMO concepts in a concept pack of HatCat: ``pack.json``, and a layer file for each level.

    pack.json             --> name, version, licence
    hierarchy/layerN.json --> concepts on level N: names, links, definitions, examples
        relationships, safety_tags, simplex_mapping --> `hatcat_relations`

Such files are made by machines and untidy: parents and children that do not exist, several entries
of one name, links in circles, definitions that are missing or say nothing. All of it is mended or
left out, and reported; only a pack without a single usable concept is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.importers.hatcat_relations import read_attributes, read_relations, texts_of
from lenscache.concepts.importers.links import (
    cut_cycles,
    join_links,
    other_names,
    spoken,
    with_examples,
)
from lenscache.concepts.importers.report import Imported, ImportReport, is_text
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.errors import PackError

_FOLDER = "hierarchy"
_LAYER_FILE = re.compile(r"layer(\d+)\.json")
_SAYS_NOTHING = re.compile(r"(?i)^(grouping|container|umbrella)\s+(category|concept|node)\b")
_EXAMPLE_OF = re.compile(
    r"(?i)\W*(?:(?:this|that|it|here|the following)\s(?:(?:text|sentence)\s)?is\s)?(?:not\s)?"
    r"(?:(?:an?|one|another)\s)?(?:example|instance|illustration)s?\sof\b(?P<what>.+)"
)
_HINTS = ("positive_examples", "negative_examples", "confusable_with")


def is_hatcat(path: Path) -> bool:
    """Whether a path is a concept pack of HatCat, or a part of one: a folder or a layer file."""
    if path.is_file():
        return _LAYER_FILE.fullmatch(path.name) is not None
    return path.is_dir() and bool(
        _layer_files(path) or (path / _FOLDER).is_dir() or _folders_with_layers(path)
    )


def import_hatcat(path: str | Path) -> Imported:
    """Make a pack of a concept pack of HatCat.

    Parameters
    ----------
    path : the folder with its ``pack.json``, the folder of the layer files, or one layer file.

    Raises
    ------
    PackError
        If there are no layer files, one is not JSON, or they hold no usable concept.
    """
    path, report = Path(path), ImportReport()
    files = _layer_files(path) or _layer_files(path / _FOLDER)
    if not files:
        raise PackError(_what_to_give(path))
    entries = _read_entries(files, report)
    parents = _parents(entries, report)
    cut_cycles(parents, report)
    if not entries:
        raise PackError(f"{path} holds no usable concept")
    levels = {name: level for name, (level, _) in entries.items()}
    hierarchy = Hierarchy(levels, {name: tuple(above) for name, above in parents.items()})
    terms = frozenset(map(_folded, entries))
    concepts = tuple(
        _concept(name, entry, hierarchy, terms, report) for name, (_, entry) in entries.items()
    )
    report.read["concepts"] = len(concepts)
    about = _about(files[0][1].resolve().parent, report)
    return Imported(ConceptPack(concepts=concepts, origin="HatCat layer files", **about), report)


_Entries = dict[str, tuple[int, dict[str, Any]]]  # level and entry by name


def _layer_files(path: Path) -> list[tuple[int, Path]]:
    """Levels and files of a folder, or of a single file, general levels first."""
    files = path.glob("*.json") if path.is_dir() else [path] if path.is_file() else []
    named = ((_LAYER_FILE.fullmatch(file.name), file) for file in files)
    return sorted((int(match[1]), file) for match, file in named if match)


def _folders_with_layers(path: Path) -> list[str]:
    """What below a folder is a concept pack of HatCat."""
    below = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    return [e.name for e in below if _layer_files(e) or _layer_files(e / _FOLDER)]


def _what_to_give(path: Path) -> str:
    missing = f"{path} has no layer0.json, layer1.json ..."
    if found := _folders_with_layers(path):
        shown = ", ".join(str(path / name) for name in found[:5])
        return f"{missing}, and {len(found)} folders below it do: give one of them ({shown})"
    return (
        f"{missing}: give the folder of a pack, which holds {_FOLDER}/ and pack.json, "
        f"its {_FOLDER}/, or one layerN.json"
    )


def _about(folder: Path, report: ImportReport) -> dict[str, Any]:
    """Name, version, description and licence by the pack.json of layer files in `folder`."""
    home = folder.parent if folder.name == _FOLDER else folder
    about = {"name": home.name, "version": "1"}
    if not (file := home / "pack.json").exists():
        return about
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        report.leave_out("pack.json that is no JSON object", str(file))
        return about
    published = data.get("distribution")
    found = {
        "name": next((data[key] for key in ("pack_id", "name") if is_text(data.get(key))), None),
        "version": data.get("version"),
        "description": data.get("description"),
        "license": published.get("license") if isinstance(published, dict) else None,
    }
    return about | {key: value for key, value in found.items() if is_text(value)}


def _read_entries(files: Iterable[tuple[int, Path]], report: ImportReport) -> _Entries:
    entries: _Entries = {}
    for level, file in files:
        report.read["layer files"] = report.read.get("layer files", 0) + 1
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
    return entries


def _parents(entries: _Entries, report: ImportReport) -> dict[str, list[str]]:
    """Parents by name."""
    above = {name: texts_of(entry.get("parent_concepts")) for name, (_, entry) in entries.items()}
    below = {
        name: dict.fromkeys(
            texts_of(entry.get("child_concepts")) + texts_of(entry.get("category_children"))
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
    hierarchy: Hierarchy,
    terms: frozenset[str],
    report: ImportReport,
) -> Concept:
    hints = entry.get("training_hints")
    hints = hints if isinstance(hints, dict) else {}
    for key, value in hints.items():
        if value and key not in _HINTS:
            report.leave_out(f"training_hints.{key}, for which a pack has no place", name)
    words = spoken(name) or name
    others = [*texts_of(entry.get("aliases")), *texts_of(entry.get("lemmas"))]
    aliases = other_names(words, [said for other in others if (said := _said(other))])
    relations = read_relations(name, words, entry, hierarchy, report)
    confusable = dict.fromkeys(texts_of(hints.get("confusable_with")))
    confusable.pop(name, None)
    for other in confusable:
        if other not in hierarchy:
            report.leave_out("confusable concept that does not exist", f"{other} of {name}")
    known = terms.union(map(_folded, aliases))
    concept = Concept(
        id=name,
        name=words,
        level=hierarchy.levels[name],
        definition=_definition(name, entry, known, report),
        parents=hierarchy.parents(name),
        aliases=(*aliases, name),  # in an example, a term says as much as the words of it
        contrasts=relations.contrasts,
        confusable_with=tuple(other for other in confusable | relations.near if other in hierarchy),
        negatives=tuple(_sentences("negative_examples", hints, known, name, report)),
        attributes=read_attributes(name, entry, report),
    )
    examples = _sentences("positive_examples", hints, known, name, report)
    return replace(with_examples(concept, examples, report), aliases=aliases)


def _said(alias: str) -> str:
    """An alias in words: a term, such as WaterBird, as names are; others as they are written."""
    is_term = alias[:1].isupper() and alias.isalnum() and " " in spoken(alias)
    return spoken(alias) if is_term else alias.replace("_", " ").strip()


def _definition(
    name: str, entry: dict[str, Any], known: frozenset[str], report: ImportReport
) -> str:
    for key in ("definition", "sumo_definition"):
        raw = entry.get(key)
        text = " ".join(raw.replace("&%", "").split()) if is_text(raw) else ""
        if not text:
            continue
        if _SAYS_NOTHING.match(text) or _is_boilerplate(text, known):
            report.leave_out("definition that says nothing", f"{name}: {text}")
            continue
        if text != raw:
            report.repair("definition with marks or line breaks", name)
        return text
    report.repair("concept without a definition", name)
    return ""


def _sentences(
    key: str, hints: dict[str, Any], known: frozenset[str], name: str, report: ImportReport
) -> list[str]:
    """The texts of a training hint, each once, without those that say of themselves what they are
    examples of."""
    kept = []
    for text in dict.fromkeys(texts_of(hints.get(key))):
        if _is_boilerplate(text, known):
            report.leave_out("example that only says what it is an example of", f"{name}: {text}")
        else:
            kept.append(text)
    return kept


def _is_boilerplate(text: str, known: frozenset[str]) -> bool:
    """Whether a text is "This is an example of X." for a concept X in any spelling."""
    if (found := _EXAMPLE_OF.fullmatch(" ".join(text.split()))) is None:
        return False
    what = _folded(found["what"])
    singular = what.removesuffix("s"), what.removesuffix("es"), f"{what.removesuffix('ies')}y"
    return what in known or not known.isdisjoint(singular)


def _folded(name: str) -> str:
    """A name without case, article, spaces and punctuation: what its spellings share."""
    said = re.sub(r"(?i)^\W*(?:an?|the)\s", "", name)
    return re.sub(r"[\W_]", "", said).casefold()
