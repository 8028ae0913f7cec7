"""How many concepts have enough texts that do not name them, said before anything is extracted.

    ConceptPack, SamplePlan --count_unnamed--> UnnamedTexts: counts, and lines for people

A lens can read the name of its concept. So its grade rests on test texts that express the concept
without naming it; where there are too few of them, its status is "ungraded", whatever it learned.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept, ConceptPack, naming
from lenscache.concepts.plan import SPLIT_FRACTIONS, SPLITS, SamplePlan, plan_samples
from lenscache.concepts.prompts import EXAMPLE, POSITIVE

MIN_TEXTS = 3
"""Distinct unnamed test texts that a grade asks for; the same as in `lenstrain.metrics.grade`."""

FEW_TEXTS = 3
"""So many unnamed texts in all, or fewer, are good to learn from and not to judge by."""

_FIRST = 5  # names that are kept
_WIDTH = 80  # columns of a line
_CALIBRATION, _TEST = SPLITS.index("calibration"), SPLITS.index("test")


class Lack(NamedTuple):
    """Concepts that lack something."""

    concepts: int
    """How many."""
    first: tuple[str, ...]
    """Names of the first few, in the order of the plan."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Lack:
        """All of these concepts."""
        names = list(names)
        return cls(len(names), tuple(names[:_FIRST]))

    def line(self, what: str) -> str:
        """How many, what they lack, and as many of the names as fit."""
        line, end = f"  {self.concepts:>6}  {what}: ", ", ..."
        for number, name in enumerate(self.first):
            comma = ", " if number else ""
            if len(line) + len(comma) + len(name) > _WIDTH - len(end):
                return f"{line}{end[2:] if number == 0 else end}"
            line += f"{comma}{name}"
        return line + end * (self.concepts > len(self.first))


class UnnamedTexts(NamedTuple):
    """How many concepts of a plan have too few texts that do not name them."""

    n_concepts: int
    """That the plan is for."""
    no_text: Lack
    """Without any unnamed text."""
    test_texts: tuple[Lack, ...]
    """By the number of distinct unnamed test texts, from 0 to `MIN_TEXTS` - 1; without those of
    `no_text`."""
    no_calibration: Lack
    """Without an unnamed calibration text; those of `no_text` included."""
    to_sample: int
    """Concepts that lack something here and have enough texts in the pack: the plan takes some."""
    to_write: int
    """All others that lack something."""
    has_given_splits: bool
    """Whether the pack says itself which texts are for testing."""
    few: Lack = Lack(0, ())
    """With 1 to `FEW_TEXTS` unnamed texts in all."""

    @property
    def ungraded(self) -> int:
        """Concepts whose lenses have the status "ungraded" at best."""
        return self.no_text.concepts + sum(lack.concepts for lack in self.test_texts)

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return {
            "concepts": self.n_concepts,
            "ungraded_at_best": self.ungraded,
            "no_text": self.no_text._asdict(),
            "test_texts": {str(n): lack._asdict() for n, lack in enumerate(self.test_texts)},
            "no_calibration_text": self.no_calibration._asdict(),
            "to_write": self.to_write,
            "to_sample": self.to_sample,
            "min_test_texts": MIN_TEXTS,
            "examples_needed": examples_needed(),
        }

    def lines(self, *, brief: bool = False) -> list[str]:
        """For people, at most 80 columns wide; none where all is well.

        If `brief`, what few texts are good for is left out.
        """
        if not self.to_write + self.to_sample:
            return []
        return [*self._found(), *([] if brief else self._about_few()), *self._advice()]

    def _found(self) -> Iterator[str]:
        if self.ungraded:
            yield from _wrapped(
                f"{self.ungraded} of {self.n_concepts} concepts have too few unnamed texts for a "
                'grade: the status of their lenses is "ungraded" at best. A grade rests on test '
                f"texts that do not name the concept, at least {MIN_TEXTS} of them."
            )
        else:
            yield "All concepts have enough unnamed test texts for a grade; what some lack:"
        if self.no_text.concepts:
            yield self.no_text.line("no unnamed text")
        for number, lack in enumerate(self.test_texts):
            if lack.concepts:
                of = f" of {MIN_TEXTS}" if number else ""
                yield lack.line(f"{number or 'no'} unnamed test text{'s' * (number > 1)}{of}")
        if self.no_calibration.concepts:
            yield self.no_calibration.line("no unnamed calibration text")
            yield "          (no vote on the model layer; named texts choose their thresholds)"

    def _about_few(self) -> Iterator[str]:
        if self.few.concepts and not self.has_given_splits:
            yield self.few.line(f"{FEW_TEXTS} unnamed texts or fewer")
            yield f"          ({use_of_few_texts()})"

    def _advice(self) -> Iterator[str]:
        shares = "/".join(f"{100 * share:.0f}" for share in SPLIT_FRACTIONS)
        needed = examples_needed()
        if self.to_write and self.has_given_splits:
            yield from _wrapped(
                f"What to do for {self.to_write}: the pack gives the splits. Give each concept at "
                f"least {MIN_TEXTS} test texts and 1 calibration text that do not name it."
            )
        elif self.to_write:
            yield from _wrapped(
                f"What to do for {self.to_write}: write at least {needed} example sentences for "
                f"each that do not name it (splits are {shares}: of {needed}, {MIN_TEXTS} are test "
                "texts)."
            )
        if self.to_sample:
            yield from _wrapped(
                f"What to do for {self.to_sample}: the pack has enough texts, and not all are "
                "extracted. Take more prompts of each concept (--samples)."
            )


def count_unnamed(pack: ConceptPack, plan: SamplePlan) -> UnnamedTexts:
    """Count the unnamed texts of the concepts that a plan is for.

    An unnamed text is an example without the concept's name, as fitting counts it. In a plan of
    examples alone, such as labelled texts, the name is a label that nobody wrote the texts around:
    there, all texts are unnamed.
    """
    is_labelled = bool((plan.kind == EXAMPLE).all())
    concepts = [pack[concept] for concept in plan.concepts[: plan.n_targets]]
    unnamed = [
        _unnamed(concept, texts, is_labelled=is_labelled)
        for concept, texts in zip(concepts, _examples(plan), strict=True)
    ]
    splits = [list(texts.values()) for texts in unnamed]
    n_test = [each.count(_TEST) if each else -1 for each in splits]
    has_calibration = [_CALIBRATION in each for each in splits]
    lacking = [
        number for number, n in enumerate(n_test) if n < MIN_TEXTS or not has_calibration[number]
    ]
    to_sample = 0
    for number in lacking:
        own = dict.fromkeys(concepts[number].examples, 0)
        n_in_pack = len(_unnamed(concepts[number], own, is_labelled=is_labelled))
        to_sample += n_in_pack >= max(examples_needed(), len(unnamed[number]) + 1)

    def where(chosen: Iterable[bool]) -> Lack:
        return Lack.of(c.name for c, is_one in zip(concepts, chosen, strict=True) if is_one)

    return UnnamedTexts(
        n_concepts=len(concepts),
        no_text=where(n < 0 for n in n_test),
        test_texts=tuple(where(n == few for n in n_test) for few in range(MIN_TEXTS)),
        no_calibration=where(not has for has in has_calibration),
        to_sample=to_sample,
        to_write=len(lacking) - to_sample,
        has_given_splits=bool(pack.splits),
        few=where(0 < len(each) <= FEW_TEXTS for each in splits),
    )


def use_of_few_texts() -> str:
    """What few unnamed texts are good for, as `benchmarks/few_texts.py` found; one line."""
    learned = np.cumsum(_splits_of_many() == SPLITS.index("train"))[:FEW_TEXTS].tolist()
    numbers, uses = (", ".join(map(str, each)) for each in (range(1, FEW_TEXTS + 1), learned))
    return f"of {numbers} the fit learns from {uses}; none judges: docs/grades.md"


@cache
def _splits_of_many() -> NDArray[np.uint8]:
    """Splits of many unnamed examples; those of the first n do not depend on what follows them."""
    many = tuple(map(str, range(10 * MIN_TEXTS * len(SPLITS))))
    concept = Concept("concept", "concept", 0, examples=many)
    return plan_samples(ConceptPack("pack", "1", (concept,), prompts="examples")).split


@cache
def examples_needed() -> int:
    """Unnamed examples that a concept takes for a grade.

    So many, and no fewer, put `MIN_TEXTS` of them into the test split and one into calibration.
    """
    split = _splits_of_many()
    enough = (np.cumsum(split == _TEST) >= MIN_TEXTS) & (np.cumsum(split == _CALIBRATION) >= 1)
    return int(np.argmax(enough)) + 1


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)


def _examples(plan: SamplePlan) -> list[dict[str, int]]:
    """The distinct examples that express each concept that the plan is for, with their splits."""
    texts: list[dict[str, int]] = [{} for _ in range(plan.n_targets)]
    chosen = (plan.label_role == POSITIVE) & (plan.kind[plan.label_sample] == EXAMPLE)
    chosen &= plan.label_concept < plan.n_targets
    labels = zip(
        plan.label_sample[chosen].tolist(), plan.label_concept[chosen].tolist(), strict=True
    )
    for row, concept in labels:
        texts[concept][plan.texts[row]] = int(plan.split[row])
    return texts


def _unnamed(concept: Concept, texts: dict[str, int], *, is_labelled: bool) -> dict[str, int]:
    """The texts without the concept's name."""
    if is_labelled or not texts:
        return texts
    pattern = naming([concept.name])
    return {text: split for text, split in texts.items() if not pattern.search(text)}
