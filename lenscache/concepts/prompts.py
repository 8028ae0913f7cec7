"""The prompts of one concept, in a fixed order: the first ten are part of the first thirty.

Whatever looks random is keyed by `stable_hash`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.templates import parse_templates

KINDS = ("example", "definition", "relation", "contrast", "template")
"""What a text is. Only an example does not name its concept."""
EXAMPLE = KINDS.index("example")

POSITIVE, CONTRAST, NEGATIVE = 0, 1, 2
"""Roles of a label: expresses the concept; names it only; is a negative that the data gives."""

_MAX_CHILD_PROMPTS = 3
_MAX_ALIAS_PROMPTS = 2


def stable_hash(*parts: object) -> int:
    """64 bits that depend on `parts` alone: the same on every machine, in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def folded_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and variants of characters (NFKC)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char if char.isalnum() else " " for char in folded).split()


@dataclass(frozen=True)
class Prompt:
    """One text of one concept."""

    text: str
    kind: int
    """Index into `KINDS`."""
    role: int


def concept_prompts(pack: ConceptPack, concept: Concept, *, seed: int = 0) -> list[Prompt]:
    """All prompts of one concept in nested order: the first n are a fair sample of the kinds.

    Examples express the concept without naming it; definitions and relations name it; contrasts
    name it and are about something else. Child and parent share the text of their relation.
    """
    texts: dict[str, Prompt] = {}

    def add(role: int, kind: str, *new: str) -> None:
        for text in new:
            texts.setdefault(text, Prompt(text, KINDS.index(kind), role))

    add(POSITIVE, "example", *concept.examples)
    add(NEGATIVE, "example", *concept.negatives)
    if pack.prompts == "all":
        _add_named_prompts(pack, concept, seed, add)
    for template in parse_templates(pack.templates):
        role = CONTRAST if template.is_contrast else POSITIVE
        add(role, "template", *template.fill(_fields(pack, concept, seed)))
    return _interleave(sorted(texts.values(), key=lambda p: stable_hash(seed, concept.id, p.text)))


def _add_named_prompts(
    pack: ConceptPack, concept: Concept, seed: int, add: Callable[..., None]
) -> None:
    name, near = concept.name, _fields(pack, concept, seed)
    if concept.definition:
        add(POSITIVE, "definition", f"{name[0].upper()}{name[1:]}: {concept.definition}")
    explain = f'Here is a short explanation of the concept "{name}", with an example.'
    add(POSITIVE, "definition", f'What does "{name}" mean?', explain)
    add(POSITIVE, "relation", *(_kind_of(name, parent) for parent in near["parent"]))
    add(POSITIVE, "relation", *(_kind_of(child, name) for child in near["child"]))
    words = (f'Another word for "{name}" is "{alias}".' for alias in near["alias"])
    add(POSITIVE, "relation", *words)
    add(CONTRAST, "contrast", *concept.contrasts)


def _fields(pack: ConceptPack, concept: Concept, seed: int) -> dict[str, list[str]]:
    """What a prompt may say about a concept."""
    children = pack.hierarchy.children(concept.id)
    below = sorted(children, key=lambda child: stable_hash(seed, concept.id, child))
    return {
        "name": [concept.name],
        "definition": [concept.definition] if concept.definition else [],
        "parent": [pack[parent].name for parent in concept.parents],
        "child": [pack[child].name for child in below[:_MAX_CHILD_PROMPTS]],
        "alias": list(concept.aliases[:_MAX_ALIAS_PROMPTS]),
    }


def _kind_of(narrow: str, broad: str) -> str:
    return f'The idea of "{narrow}" falls under the broader idea of "{broad}".'


def _interleave(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Merge the groups of prompts so that every prefix has their proportions."""
    groups: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(group_of(prompt), []).append(prompt)
    place = [
        ((i + 0.5) / len(group), number, p)
        for number, group in groups.items()
        for i, p in enumerate(group)
    ]
    return [prompt for _, _, prompt in sorted(place, key=lambda entry: entry[:2])]


def group_of(prompt: Prompt) -> int:
    """The group that is spread over the splits: unnamed, named, contrast or given negative."""
    if prompt.role != POSITIVE:
        return 1 + prompt.role
    return 0 if prompt.kind == EXAMPLE else 1
