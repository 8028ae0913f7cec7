"""From concepts to samples: the texts that a round extracts, with their labels and splits.

    ConceptPack --PackPrompts------> prompts of each concept in a fixed order, splits of texts
                --plan_samples-----> SamplePlan: each text once, with every label it carries
                --plan_top_up------> SamplePlan of a later round: other texts, or sampled again
    label-free texts --plan_background--> SamplePlan of rows that express no concept

The plan is deterministic. Whatever looks random is keyed by a stable hash: the order of a concept's
prompts by (seed, concept, text); the sampling seed and temperature of a row by (seed, text). These
keys leave out the pack's digest on purpose: editing one concept must not reshuffle the samples of
others, and a text that was extracted before must get the same completion, or it cannot be reused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.prompts import (
    EXAMPLE,
    Prompt,
    concept_prompts,
    folded_words,
    group_of,
    stable_hash,
)
from lenscache.errors import PlanError, argument

SPLITS = ("train", "calibration", "test")
SPLIT_FRACTIONS = (0.6, 0.2, 0.2)

TEMPERATURE_RANGE = (0.3, 0.9)
"""Sampling temperatures, spread evenly over the rows by hash: independent of any label."""

MIN_BACKGROUND = 10
"""Distinct texts that a background needs: half of them judge."""


@dataclass(frozen=True)
class SamplePlan:
    """The rows of one round, n samples and m labels, in the order in which they are stored.

    A concept's labels stand together, in nested order: the first ten are part of the first thirty.
    """

    concepts: tuple[str, ...]
    """The `n_targets` concepts that the round was planned for, then others that share a text."""
    n_targets: int
    texts: tuple[str, ...]
    kind: NDArray[np.uint8]
    """(n,) index into `KINDS`."""
    split: NDArray[np.uint8]
    """(n,) index into `SPLITS`."""
    repeat: NDArray[np.uint16]
    """(n,) how often the text was sampled before, in earlier rows of its level."""
    sampling_seed: NDArray[np.uint64]
    """(n,) what keys the completion of a row."""
    temperature: NDArray[np.float32]
    """(n,) sampling temperature of a row."""
    label_sample: NDArray[np.int32]
    """(m,) row of the sample."""
    label_concept: NDArray[np.int32]
    """(m,) index into `concepts`."""
    label_role: NDArray[np.uint8]
    """(m,) `POSITIVE`, `CONTRAST` or `NEGATIVE`."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the plan; 16 hex digits."""
        digest = hashlib.sha256(json.dumps([self.concepts, self.n_targets, self.texts]).encode())
        columns: list[NDArray[Any]] = [self.kind, self.split, self.sampling_seed, self.temperature]
        columns += [self.label_sample, self.label_concept, self.label_role]
        for column in columns:
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class PackPrompts:
    """The prompts of a whole pack: made once, whatever is planned with them."""

    pack: ConceptPack
    seed: int = 0
    fractions: Sequence[float] = SPLIT_FRACTIONS

    @cached_property
    def by_concept(self) -> dict[str, list[Prompt]]:
        """The prompts of each concept, in its nested order."""
        concepts = self.pack.concepts
        return {each.id: concept_prompts(self.pack, each, seed=self.seed) for each in concepts}

    @cached_property
    def split_of(self) -> dict[str, int]:
        """The split of each normalised text.

        Splits are assigned over the whole pack, whatever is extracted now: extracting another level
        later must not find a text that it shares with this one in another split.
        """
        return _assign_splits(self.by_concept.values(), self.fractions, self.pack.splits)


def select_concepts(
    pack: ConceptPack, levels: Sequence[int] | None = None, limit: int | None = None
) -> list[str]:
    """The ids of the concepts that a request names, level by level in pack order.

    Parameters
    ----------
    levels : levels of abstraction; None for all of the pack.
    limit : the first `limit` concepts of each level; None for all.

    Raises
    ------
    PlanError
        If a level has no concepts in the pack, or the limit is below 1.
    """
    wanted = pack.levels if levels is None else tuple(dict.fromkeys(levels))
    for level in wanted:
        if level not in pack.levels:
            raise PlanError(
                f"level {level} is not in pack {pack.name!r}, which has the levels "
                f"{list(pack.levels)}; {argument('levels', None, 'level')} selects levels of "
                f"abstraction in the concept hierarchy, {argument('model_layers', None)} "
                "transformer blocks"
            )
    if limit is not None and limit < 1:
        raise PlanError(f"limit is {limit}, expected 1 or more concepts")
    return [concept.id for level in wanted for concept in pack.in_level(level)[:limit]]


def plan_samples(
    pack: ConceptPack,
    levels: Sequence[int] | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    samples: int | None = None,
    fractions: Sequence[float] = SPLIT_FRACTIONS,
) -> SamplePlan:
    """Plan the samples of some levels of a pack.

    Examples, named prompts and contrasts of each concept are split separately, so that every split
    holds its share of each as early as the counts allow. Texts that differ only in case,
    punctuation or spacing go to the same split.

    Parameters
    ----------
    pack : the concepts.
    levels : levels of abstraction to plan for; None for all of the pack.
    seed : keys everything that looks random.
    limit : plan for the first `limit` concepts of each level only; None for all.
    samples : the first `samples` prompts of each concept only; None for all.
    fractions : shares of train, calibration and test; they sum to 1.

    Raises
    ------
    PlanError
        If a level has no concepts in the pack, or the fractions do not sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise PlanError(
            f"split fractions are {tuple(fractions)}, expected three shares that sum to 1"
        )
    if samples is not None and samples < 1:
        raise PlanError(f"samples is {samples}, expected 1 or more prompts a concept")
    targets = select_concepts(pack, levels, limit)
    prompts = PackPrompts(pack, seed, fractions)
    taken = (prompts.by_concept[target][:samples] for target in targets)
    return _make_plan(prompts, targets, [(p.text, 0) for found in taken for p in found])


def plan_top_up(
    prompts: PackPrompts,
    concepts: Sequence[str],
    taken: Mapping[str, int],
    *,
    samples: int,
    resample: bool,
) -> SamplePlan | None:
    """Plan more samples for some concepts: prompts not extracted yet, then others sampled again.

    A text that is sampled again gets a new seed and temperature, and stays in its split: its
    completion is new, its prompt is not.

    Parameters
    ----------
    concepts : ids of the concepts that asked for more.
    taken : how often each text was sampled in the rounds before.
    samples : prompts to add for each concept.
    resample : whether texts may be sampled again: of use where completions are stored.

    Returns
    -------
    The plan, for the concepts that have anything left to add; None if none has.
    """
    rows = {
        concept: rows_to_add(prompts.by_concept[concept], taken, samples=samples, resample=resample)
        for concept in concepts
    }
    if not (served := [concept for concept in concepts if rows[concept]]):
        return None
    return _make_plan(prompts, served, [row for concept in served for row in rows[concept]])


def rows_to_add(
    prompts: Sequence[Prompt], taken: Mapping[str, int], *, samples: int, resample: bool
) -> list[tuple[str, int]]:
    """What a top-up adds for the concept of some prompts: texts, and how often each was sampled
    before. See `plan_top_up`."""
    least = min((taken.get(prompt.text, 0) for prompt in prompts), default=0)
    most = least + 1 + samples if resample else 1
    left = (
        (p.text, time)
        for time in range(least, most)
        for p in prompts
        if time >= taken.get(p.text, 0)
    )
    return list(itertools.islice(left, samples))


def plan_background(pack: ConceptPack, texts: Iterable[str], *, seed: int = 0) -> SamplePlan:
    """Plan rows that express no concept of a pack: half of them to learn from, in split "train",
    half to judge by, in split "test".

    Texts of the pack are left out, and those that differ from an earlier one in case, punctuation
    or spacing only.

    Raises
    ------
    PlanError
        If fewer than `MIN_BACKGROUND` texts are left.
    """
    prompts = PackPrompts(pack, seed).by_concept
    known = {_normalised(p.text) for found in prompts.values() for p in found}
    kept: list[str] = []
    given = list(texts)
    for text in given:
        if text.strip() and (folded := _normalised(text)) not in known:
            known.add(folded)
            kept.append(text)
    if len(kept) < MIN_BACKGROUND:
        raise PlanError(
            f"{len(kept)} of {len(given)} background texts are distinct and not the pack's, "
            f"expected {MIN_BACKGROUND} or more: give more texts"
        )
    split = np.full(len(kept), SPLITS.index("train"), np.uint8)
    drawn = sorted(range(len(kept)), key=lambda i: stable_hash("background", seed, kept[i]))
    split[drawn[1::2]] = SPLITS.index("test")
    seeds, temperatures = _sampling(seed, [(text, 0) for text in kept])
    return SamplePlan(
        concepts=(),
        n_targets=0,
        texts=tuple(kept),
        kind=np.full(len(kept), EXAMPLE, np.uint8),
        split=split,
        repeat=np.zeros(len(kept), np.uint16),
        sampling_seed=seeds,
        temperature=temperatures,
        label_sample=np.zeros(0, np.int32),
        label_concept=np.zeros(0, np.int32),
        label_role=np.zeros(0, np.uint8),
    )


def sampling_seed(seed: int, text: str, repeat: int) -> int:
    """What keys the completion of a text, each time that it is sampled."""
    return stable_hash("sampling", *_draw(seed, text, repeat))


def _draw(seed: int, text: str, repeat: int) -> tuple[object, ...]:
    return (seed, text, repeat) if repeat else (seed, text)


def _sampling(
    seed: int, places: Sequence[tuple[str, int]]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """(n,) sampling seeds and temperatures of some (text, time) rows."""
    low, high = TEMPERATURE_RANGE
    drawn = (stable_hash("temperature", *_draw(seed, *place)) / 2**64 for place in places)
    return (
        np.array([sampling_seed(seed, *place) for place in places], np.uint64),
        np.array([low + (high - low) * share for share in drawn], np.float32),
    )


def _make_plan(
    made: PackPrompts, targets: Sequence[str], rows: Iterable[tuple[str, int]]
) -> SamplePlan:
    """The plan of some (text, time) rows; `time` counts how often the text was sampled before."""
    prompts = made.by_concept
    row_of = {place: number for number, place in enumerate(dict.fromkeys(rows))}
    rows_of_text: dict[str, list[int]] = {}
    for (text, _), row in row_of.items():
        rows_of_text.setdefault(text, []).append(row)
    kind_of: dict[str, int] = {}
    for concept in (*targets, *prompts):  # the first concept with a text decides its kind
        for prompt in prompts[concept]:
            kind_of.setdefault(prompt.text, prompt.kind)
    known = set(targets)
    beside = (c for c in prompts if c not in known)
    sharing = (c for c in beside if any(p.text in rows_of_text for p in prompts[c]))
    concepts = (*targets, *sharing)
    labels = [
        (row, number, prompt.role)
        for number, concept in enumerate(concepts)
        for prompt in prompts[concept]
        for row in rows_of_text.get(prompt.text, ())
    ]
    label_sample, label_concept, label_role = zip(*labels, strict=True)
    seeds, temperatures = _sampling(made.seed, [*row_of])
    return SamplePlan(
        concepts=concepts,
        n_targets=len(targets),
        texts=tuple(text for text, _ in row_of),
        kind=np.array([kind_of[text] for text, _ in row_of], np.uint8),
        split=np.array([made.split_of[_normalised(text)] for text, _ in row_of], np.uint8),
        repeat=np.array([time for _, time in row_of], np.uint16),
        sampling_seed=seeds,
        temperature=temperatures,
        label_sample=np.array(label_sample, np.int32),
        label_concept=np.array(label_concept, np.int32),
        label_role=np.array(label_role, np.uint8),
    )


def _assign_splits(
    concepts: Iterable[Sequence[Prompt]],
    fractions: Sequence[float],
    given: Mapping[str, Sequence[str]],
) -> dict[str, int]:
    """Split of each normalised text: as given, else the one furthest behind its share of a group.

    Where the source gives training and test texts but none for calibration, the training texts are
    divided in the same way: a test set stays what it is.
    """
    split_of = {_normalised(text): SPLITS.index(name) for name in given for text in given[name]}
    allowed: dict[str, tuple[int, ...]] = {}
    if given and "calibration" not in given:
        allowed = {text: (0, 1) for text, split in split_of.items() if split == 0}
        split_of = {text: split for text, split in split_of.items() if split != 0}
    for prompts in concepts:
        counts: dict[int, list[int]] = {}
        for prompt in prompts:
            taken = counts.setdefault(group_of(prompt), [0] * len(SPLITS))
            text = _normalised(prompt.text)
            if text not in split_of:
                choice = allowed.get(text, range(len(SPLITS)))
                n = sum(taken[split] for split in choice) + 1
                whole = sum(fractions[split] for split in choice)
                lag = {split: fractions[split] / whole * n - taken[split] for split in choice}
                # On a tie, test comes first: a lens that cannot be judged is worth nothing.
                split_of[text] = max(choice, key=lambda split: (round(lag[split], 9), split))
            taken[split_of[text]] += 1
    return split_of


def _normalised(text: str) -> str:
    return " ".join(folded_words(text)) or text
