"""What makes a concept pack good to train on, as checks with a line for each fault.

    ConceptPack --find_faults--> Faults, one for every rule that a text or a concept breaks

`lenscache.concepts.pack` already refuses packs that contradict themselves. These checks are about
quality: examples that name the concept teach a lens the name, texts in two concepts teach neither.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.prompts import folded_words

RULES = (
    "amount",
    "definition",
    "length",
    "naming",
    "contrast",
    "hierarchy",
    "confusable",
    "duplicate",
    "balance",
)
"""What a finding can be about."""

_SHINGLE = 3  # words
_SHARED_RUNS = 0.25  # least share of a text's runs of three words that its near-duplicate has, too
_NEAR = 0.8
"""Share of characters, in order, that near-duplicates have in common."""


@dataclass(frozen=True)
class CheckSettings:
    """How much a pack must hold; by default, what fitting and calibrating a lens takes."""

    min_examples: int = 8
    """Examples a concept; about a fifth of them is the test split. A grade takes more: see
    `lenscache.concepts.evidence.examples_needed`."""
    min_contrasts: int = 1
    min_confusable: int = 0
    min_characters: int = 15
    max_characters: int = 400
    max_branch_ratio: float | None = None
    """Largest over smallest branch of level 0, counted in concepts; None for any."""


class Fault(NamedTuple):
    """One fault of a pack."""

    rule: str
    concept: str
    """Id of the concept; "" for the pack as a whole."""
    message: str

    def sentence(self) -> str:
        """What is wrong with what."""
        return f"{self.concept} {self.message}".strip()


def find_faults(pack: ConceptPack, settings: CheckSettings | None = None) -> list[Fault]:
    """Hold a pack against every rule.

    Returns
    -------
    Faults in pack order; an empty list for a pack without fault.
    """
    settings = settings or CheckSettings()
    found: list[Fault] = []
    for concept in pack.concepts:
        checks = (
            _check_amounts(concept, settings),
            _check_naming(concept),
            _check_place(pack, concept),
        )
        found.extend(
            Fault(rule, concept.id, message) for check in checks for rule, message in check
        )
    found.extend(_check_duplicates(pack))
    found.extend(_check_balance(pack, settings))
    return found


_Faults = Iterator[tuple[str, str]]  # rules and messages


def _check_amounts(concept: Concept, settings: CheckSettings) -> _Faults:
    wanted = (
        ("examples", concept.examples, settings.min_examples),
        ("contrasts", concept.contrasts, settings.min_contrasts),
        ("confusable_with", concept.confusable_with, settings.min_confusable),
    )
    for name, texts, least in wanted:
        if len(texts) < least:
            yield "amount", f"has {len(texts)} {name}, at least {least} are needed"
    if not concept.definition:
        yield "definition", "has no definition"
    for text in (*concept.examples, *concept.contrasts):
        if not settings.min_characters <= len(text) <= settings.max_characters:
            bounds = f"{settings.min_characters} to {settings.max_characters}"
            yield "length", f"has a text of {len(text)} characters, not {bounds}: {text!r:.60}"


def _check_naming(concept: Concept) -> _Faults:
    for text in concept.examples:
        if concept.is_named_in(text):
            yield "naming", f"is named in its own example: {text!r:.80}"
    for text in concept.contrasts:
        if not concept.is_named_in(text):
            yield "contrast", f"is not named in its contrast: {text!r:.80}"


def _check_place(pack: ConceptPack, concept: Concept) -> _Faults:
    for parent in concept.parents:
        if pack[parent].level >= concept.level:
            where = f"level {pack[parent].level}, not above level {concept.level}"
            yield "hierarchy", f"has the parent {parent!r} on {where}"
    if concept.level > 0 and not concept.parents:
        yield "hierarchy", f"is on level {concept.level} and has no parent"
    for other in concept.confusable_with:
        if other not in pack.hierarchy:
            yield "confusable", f"names {other!r}, which is not in the pack, as confusable"
        elif other == concept.id:
            yield "confusable", "names itself as confusable"


def _check_duplicates(pack: ConceptPack) -> Iterator[Fault]:
    """Texts that are equal or nearly so, in one concept or two.

    Only texts that share enough runs of three words are compared: many texts begin alike, and
    comparing all of those takes minutes in a pack of 2,000 concepts.
    """
    shown = ((c.id, text) for c in pack.concepts for text in (*c.examples, *c.contrasts))
    texts = [(concept, text, folded_words(text)) for concept, text in shown]
    seen: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, (concept, text, words) in enumerate(texts):
        runs = {tuple(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
        shared = Counter(earlier for run in runs for earlier in seen[run])
        for earlier in sorted(e for e, n in shared.items() if n >= _SHARED_RUNS * len(runs)):
            other, other_text, other_words = texts[earlier]
            if _alike(" ".join(words), " ".join(other_words)):
                where = "its own text" if other == concept else f"a text of {other!r}"
                message = f"{text!r:.70} is nearly {where}: {other_text!r:.70}"
                yield Fault("duplicate", concept, message)
                break
        for run in runs:
            seen[run].append(number)


def _check_balance(pack: ConceptPack, settings: CheckSettings) -> Iterator[Fault]:
    sizes = Counter(branch for c in pack.concepts for branch in pack.hierarchy.branches(c.id))
    if settings.max_branch_ratio is None or len(sizes) < 2:
        return
    (large, most), (small, fewest) = sizes.most_common(1)[0], sizes.most_common()[-1]
    if most > settings.max_branch_ratio * fewest:
        counts = f"{most} concepts and {small!r} {fewest}"
        ratio = f"more than {settings.max_branch_ratio:g} times as many"
        yield Fault("balance", "", f"the branch {large!r} has {counts}, {ratio}")


def _alike(one: str, other: str) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    ratios = matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio  # the cheapest first
    return all(ratio() >= _NEAR for ratio in ratios)
