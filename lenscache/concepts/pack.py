"""Concept packs: the concepts a user wants lenses for, and the hierarchy between them.

    pack.json --ConceptPack.load--> ConceptPack --.hierarchy--> Hierarchy

A pack is read once, checked as a whole, and never changed. Its schema: ``data/README.md``.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.errors import PackError

PACK_FORMAT = 1


def naming(names: Sequence[str]) -> re.Pattern[str]:
    """What finds any of some names in a text: whole words, any case, plural or possessive."""
    forms = []
    for name in names:
        stem = re.escape(name)
        forms.append(rf"{stem}(?:s|es|'s|’s|s'|s’)?")
        if name.endswith("y"):
            forms.append(rf"{re.escape(name[:-1])}ies")
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Concept:
    """One concept and the texts that show a model what it is."""

    id: str
    """Identifier, unique in the pack. Never used as a path."""
    name: str
    """What people call it, singular."""
    level: int
    """Level of abstraction, 0 the most general."""
    definition: str = ""
    """One sentence; "" when the source has none."""
    parents: tuple[str, ...] = ()
    """Ids of the more general concepts it falls under; none on level 0."""
    aliases: tuple[str, ...] = ()
    """Other names for the same thing."""
    examples: tuple[str, ...] = ()
    """Natural sentences that express the concept without naming it."""
    contrasts: tuple[str, ...] = ()
    """Sentences that name the concept and are about something else."""
    confusable_with: tuple[str, ...] = ()
    """Ids of concepts that a reader could mistake for this one."""
    negatives: tuple[str, ...] = ()
    """Texts that the source names as not expressing the concept, as a binary labelled set does."""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """What else is known of it, texts by name: lenses are filtered by it, no prompt says it."""

    def is_named_in(self, text: str) -> bool:
        """Whether `text` has the name or an alias: whole words, any case, plural or possessive."""
        return self._naming.search(text) is not None

    @cached_property
    def _naming(self) -> re.Pattern[str]:
        return naming((self.name, *self.aliases))


@dataclass(frozen=True)
class ConceptPack:
    """A named, versioned set of concepts.

    Raises
    ------
    PackError
        If an id occurs twice, a parent is unknown, parents form a cycle, or a concept is malformed.
    """

    name: str
    version: str
    concepts: tuple[Concept, ...]
    description: str = ""
    license: str = ""
    origin: str = ""
    prompts: Literal["all", "examples"] = "all"
    """What becomes a prompt: all that is said of a concept, or only its texts (labelled sets)."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Texts by given split ("train", "calibration", "test"); other texts are assigned at random."""
    templates: tuple[str, ...] = ()
    """The user's own prompts, filled for every concept; see `lenscache.concepts.templates`."""
    _by_id: dict[str, Concept] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.concepts:
            raise PackError(f"pack {self.name!r} holds no concepts")
        by_id: dict[str, Concept] = {}
        for concept in self.concepts:
            if concept.id in by_id:
                raise PackError(
                    f"concept id {concept.id!r} occurs twice: ids must be unique in a pack"
                )
            by_id[concept.id] = concept
        object.__setattr__(self, "_by_id", by_id)
        _ = self.hierarchy  # a pack that contradicts itself must not come into being

    def __repr__(self) -> str:
        levels = ", ".join(map(str, self.levels))
        return f"ConceptPack({self.name!r}: {len(self)} concepts on levels {levels})"

    def __getitem__(self, concept: str) -> Concept:
        return self._by_id[concept]

    def __len__(self) -> int:
        return len(self.concepts)

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """Who is above, below and beside whom."""
        return Hierarchy(
            {concept.id: concept.level for concept in self.concepts},
            {concept.id: concept.parents for concept in self.concepts},
            {concept.id: concept.confusable_with for concept in self.concepts},
        )

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The levels of abstraction that have concepts, ascending."""
        return tuple(sorted({concept.level for concept in self.concepts}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, whatever the file's formatting; 16 hex digits."""
        entries: list[Any] = [_to_entry(concept) for concept in self.concepts]
        if self.prompts != "all" or self.splits:
            entries.append({"prompts": self.prompts, "splits": dict(self.splits)})
        if self.templates:
            entries.append({"templates": self.templates})
        content = json.dumps(entries, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def in_level(self, level: int) -> tuple[Concept, ...]:
        """The concepts of one level of abstraction, in pack order."""
        return tuple(concept for concept in self.concepts if concept.level == level)

    @classmethod
    def load(cls, path: str | Path) -> ConceptPack:
        """Read a pack from a JSON file.

        Raises
        ------
        PackError
            If the file is missing or not a valid pack; the message names file and concept.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = "give the path of a pack's JSON file"
            raise PackError(f"no concept pack at {path}: {hint}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"cannot read the concept pack {path}: {error}") from error
        except json.JSONDecodeError as error:
            raise PackError(
                f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}): "
                "a concept pack is one JSON object, see data/README.md"
            ) from error
        try:
            return cls.from_dict(data)
        except PackError as error:
            raise PackError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: object) -> ConceptPack:
        """Build a pack from its JSON form."""
        if not isinstance(data, dict):
            raise PackError(f"expected a JSON object with `concepts`, found {type(data).__name__}")
        version = data.get("format_version")
        if version != PACK_FORMAT:
            raise PackError(f"format_version is {version!r}, expected {PACK_FORMAT}")
        concepts = _require(data, "concepts", list, "the pack")
        return cls(
            name=_require(data, "name", str, "the pack"),
            version=_require(data, "version", str, "the pack"),
            concepts=tuple(_parse_concept(entry, number) for number, entry in enumerate(concepts)),
            prompts=_parse_choice(data.get("prompts", "all"), ("all", "examples"), "prompts"),
            splits=_parse_splits(data.get("splits", {})),
            templates=_parse_texts(data.get("templates", []), "templates", "the pack"),
            **{key: str(data.get(key, "")) for key in ("description", "license", "origin")},
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as `from_dict` reads it."""
        keys = ("name", "version", "description", "license", "origin")
        head: dict[str, Any] = {key: getattr(self, key) for key in keys}
        if self.prompts != "all":
            head["prompts"] = self.prompts
        if self.splits:
            head["splits"] = {name: list(texts) for name, texts in self.splits.items()}
        if self.templates:
            head["templates"] = list(self.templates)
        concepts = [_to_entry(concept) for concept in self.concepts]
        return {"format_version": PACK_FORMAT, **head, "concepts": concepts}

    def save(self, path: str | Path) -> None:
        """Write the pack as JSON: complete, or not at all."""
        path = Path(path)
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        scratch.write_text(f"{text}\n", encoding="utf-8")
        scratch.replace(path)


def _to_entry(concept: Concept) -> dict[str, Any]:
    """A concept as it stands in a file, where its level is called `layer`."""
    entry = {"layer" if key == "level" else key: value for key, value in asdict(concept).items()}
    for key in ("negatives", "attributes"):  # which most packs do not use
        if not entry[key]:
            del entry[key]
    return entry


_CONCEPT_FIELDS = frozenset(Concept.__dataclass_fields__) - {"level"} | {"layer"}


def _parse_concept(entry: object, number: int) -> Concept:
    if not isinstance(entry, dict):
        raise PackError(f"concept number {number} is {type(entry).__name__}, expected an object")
    given = entry.get("id")
    where = f"concept {given!r}" if isinstance(given, str) else f"concept number {number}"
    if unknown := sorted(set(entry) - _CONCEPT_FIELDS):
        raise PackError(
            f"{where} has the unknown field {unknown[0]!r}, expected {sorted(_CONCEPT_FIELDS)}"
        )
    level = _require(entry, "layer", int, where)
    if isinstance(level, bool) or level < 0:
        raise PackError(f"{where}: layer is {level!r}, expected 0 or more")
    for key in ("id", "name"):
        if not _require(entry, key, str, where).strip():
            raise PackError(f"{where}: {key} is empty")
    definition = entry.get("definition", "")
    if not isinstance(definition, str):
        raise PackError(f"{where}: definition is {type(definition).__name__}, expected text")
    lists = ("parents", "aliases", "examples", "contrasts", "confusable_with", "negatives")
    return Concept(
        id=entry["id"],
        name=entry["name"],
        level=level,
        definition=definition,
        attributes=_parse_attributes(entry.get("attributes", {}), where),
        **{key: _parse_texts(entry.get(key, []), key, where) for key in lists},
    )


def _parse_attributes(value: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not all(name.strip() and "=" not in name for name in value):
        raise PackError(f"{where}: attributes is {value!r:.60}, expected lists of texts by name")
    return {name: _parse_texts(texts, f"attributes.{name}", where) for name, texts in value.items()}


def _parse_choice(value: object, choices: tuple[str, ...], key: str) -> Any:
    if value not in choices:
        raise PackError(f"{key} is {value!r}, expected {' or '.join(choices)}")
    return value


def _parse_splits(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not set(value) <= {"train", "calibration", "test"}:
        raise PackError(f"splits is {value!r:.60}, expected texts by train, calibration and test")
    splits = {k: _parse_texts(texts, f"splits.{k}", "the pack") for k, texts in value.items()}
    if len({text for texts in splits.values() for text in texts}) < sum(map(len, splits.values())):
        raise PackError("splits gives one text to two splits: a text belongs to one")
    return splits


def _parse_texts(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise PackError(f"{where}: {key} is {value!r:.60}, expected a list of texts")
    if any(not text.strip() for text in value):
        raise PackError(f"{where}: {key} holds an empty text")
    return tuple(dict.fromkeys(value))


def _require(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in data:
        raise PackError(f"{where} lacks the field {key!r}")
    if not isinstance(data[key], kind):
        raise PackError(f"{where}: {key} is {type(data[key]).__name__}, expected {kind.__name__}")
    return data[key]
