"""What makes a concept pack good to train on, as checks with a line for each fault.

    ConceptPack --check_pack--> Findings, one for every rule that a text or a concept breaks

Reading a pack already refuses what contradicts itself (`lenscache.concepts.pack`); these checks are
about quality: a lens trained on examples that name the concept learns the name, and texts that
stand in two concepts teach neither.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from lenscache.concepts.pack import Concept, ConceptPack

_SHINGLE = 3  # words
_SHARED_RUNS = (
    0.25  # of the runs of three words in a text; texts with fewer in common are not near-duplicates
)
_NEAR = 0.8
"""Share of characters, in order, that near-duplicates have in common."""


@dataclass(frozen=True)
class CheckSettings:
    """How much a pack must hold. The defaults ask what a lens needs to be fitted, calibrated and
    judged."""

    min_examples: int = 8
    """Examples a concept; about a fifth of them is the test split."""
    min_contrasts: int = 1
    min_confusable: int = 0
    min_characters: int = 15
    max_characters: int = 400
    max_branch_ratio: float | None = None
    """Largest over smallest branch of level 0, counted in concepts; None for any."""


class Finding(NamedTuple):
    """One fault of a pack."""

    rule: str
    concept: str
    """Id of the concept; "" for the pack as a whole."""
    message: str


def check_pack(pack: ConceptPack, settings: CheckSettings | None = None) -> list[Finding]:
    """Hold a pack against every rule.

    Returns
    -------
    Findings in pack order; an empty list for a pack without fault.
    """
    settings = settings or CheckSettings()
    found: list[Finding] = []
    for concept in pack.concepts:
        found.extend(_check_amounts(concept, settings))
        found.extend(_check_naming(concept))
        found.extend(_check_place(pack, concept))
    found.extend(_check_duplicates(pack))
    found.extend(_check_balance(pack, settings))
    return found


def _check_amounts(concept: Concept, settings: CheckSettings) -> Iterator[Finding]:
    wanted = (
        ("examples", concept.examples, settings.min_examples),
        ("contrasts", concept.contrasts, settings.min_contrasts),
        ("confusable_with", concept.confusable_with, settings.min_confusable),
    )
    for name, texts, least in wanted:
        if len(texts) < least:
            yield Finding(
                "amount", concept.id, f"has {len(texts)} {name}, at least {least} are needed"
            )
    if not concept.definition:
        yield Finding("definition", concept.id, "has no definition")
    for text in (*concept.examples, *concept.contrasts):
        if not settings.min_characters <= len(text) <= settings.max_characters:
            bounds = f"{settings.min_characters} to {settings.max_characters}"
            yield Finding(
                "length",
                concept.id,
                f"has a text of {len(text)} characters, not {bounds}: {text!r:.60}",
            )


def _check_naming(concept: Concept) -> Iterator[Finding]:
    for text in concept.examples:
        if concept.is_named_in(text):
            yield Finding("naming", concept.id, f"is named in its own example: {text!r:.80}")
    for text in concept.contrasts:
        if not concept.is_named_in(text):
            yield Finding("contrast", concept.id, f"is not named in its contrast: {text!r:.80}")


def _check_place(pack: ConceptPack, concept: Concept) -> Iterator[Finding]:
    for parent in concept.parents:
        if pack[parent].level >= concept.level:
            where = f"level {pack[parent].level}, not above level {concept.level}"
            yield Finding("hierarchy", concept.id, f"has the parent {parent!r} on {where}")
    if concept.level > 0 and not concept.parents:
        yield Finding("hierarchy", concept.id, f"is on level {concept.level} and has no parent")
    for other in concept.confusable_with:
        if other not in pack.hierarchy:
            yield Finding(
                "confusable",
                concept.id,
                f"names {other!r}, which is not in the pack, as confusable",
            )
        elif other == concept.id:
            yield Finding("confusable", concept.id, "names itself as confusable")


def _check_duplicates(pack: ConceptPack) -> Iterator[Finding]:
    """Texts that are equal or nearly so, in one concept or two.

    Only texts that share enough runs of three words are compared: many texts begin alike, and
    comparing all of those takes minutes in a pack of 2,000 concepts.
    """
    texts = [
        (c.id, text, _words(text)) for c in pack.concepts for text in (*c.examples, *c.contrasts)
    ]
    seen: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, (concept, text, words) in enumerate(texts):
        runs = {tuple(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
        shared = Counter(earlier for run in runs for earlier in seen[run])
        for earlier in sorted(e for e, n in shared.items() if n >= _SHARED_RUNS * len(runs)):
            other, other_text, other_words = texts[earlier]
            if _alike(" ".join(words), " ".join(other_words)):
                where = "its own text" if other == concept else f"a text of {other!r}"
                yield Finding(
                    "duplicate", concept, f"{text!r:.70} is nearly {where}: {other_text!r:.70}"
                )
                break
        for run in runs:
            seen[run].append(number)


def _check_balance(pack: ConceptPack, settings: CheckSettings) -> Iterator[Finding]:
    hierarchy = pack.hierarchy
    sizes = Counter(
        branch for concept in pack.concepts for branch in hierarchy.branches(concept.id)
    )
    if settings.max_branch_ratio is None or len(sizes) < 2:
        return
    (large, most), (small, fewest) = sizes.most_common(1)[0], sizes.most_common()[-1]
    if most > settings.max_branch_ratio * fewest:
        ratio = (
            f"{most} concepts and {small!r} {fewest}, more than {settings.max_branch_ratio:g} "
            "times as many"
        )
        yield Finding("balance", "", f"the branch {large!r} has {ratio}")


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char if char.isalnum() else " " for char in folded).split()


def _alike(one: str, other: str) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return (
        matcher.real_quick_ratio() >= _NEAR
        and matcher.quick_ratio() >= _NEAR
        and matcher.ratio() >= _NEAR
    )
