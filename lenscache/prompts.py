"""From concepts to samples: which texts a round extracts, what they are labelled with, and in which split.

    ConceptPack --concept_prompts--> prompts of each concept, in a fixed order
                --plan_samples-----> SamplePlan: each text once, with every label it carries

The plan is deterministic. Whatever looks random is keyed by a stable hash of the seed and of what it belongs to: the
order of a concept's prompts by (seed, concept, text); the sampling seed and temperature of a row by (seed, text).
The digest of the pack is left out of these keys on purpose: editing one concept must not reshuffle the samples of
concepts that have nothing to do with it, and a text that was extracted before must get the completion it got then, or
nothing could be reused.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts import Concept, ConceptPack
from lenscache.errors import PlanError

KINDS = ("example", "definition", "relation", "contrast")
"""What a text is. Only an example does not name its concept."""
EXAMPLE = KINDS.index("example")

SPLITS = ("train", "calibration", "test")
SPLIT_FRACTIONS = (0.6, 0.2, 0.2)

POSITIVE, CONTRAST, NEGATIVE = 0, 1, 2
"""Roles of a label: expresses the concept; names it without expressing it; given as a negative by the data."""

TEMPERATURE_RANGE = (0.3, 0.9)
"""Sampling temperatures, spread evenly over the rows by hash so that they are independent of any label."""

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


@dataclass(frozen=True)
class Prompt:
    """One text of one concept."""

    text: str
    kind: int
    """Index into `KINDS`."""
    role: int


@dataclass(frozen=True)
class SamplePlan:
    """The rows of one round, n samples and m labels, in the order in which they are stored.

    The labels of a concept stand together, in its nested order: the first ten are part of the first thirty.
    """

    concepts: tuple[str, ...]
    """What `label_concept` points into. The first `n_targets` are the concepts the round was planned for; the others
    share a text with them."""
    n_targets: int
    texts: tuple[str, ...]
    kind: NDArray[np.uint8]
    """(n,) index into `KINDS`."""
    split: NDArray[np.uint8]
    """(n,) index into `SPLITS`."""
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
        columns: tuple[NDArray[Any], ...] = (
            self.kind, self.split, self.sampling_seed, self.temperature,
            self.label_sample, self.label_concept, self.label_role,
        )  # fmt: skip
        for column in columns:
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()[:16]


def concept_prompts(pack: ConceptPack, concept: Concept, *, seed: int = 0) -> list[Prompt]:
    """All prompts of one concept in nested order: any first n of them are a fair sample of the kinds.

    Examples express the concept without naming it; definitions and relations name it; contrasts name it and are about
    something else. A relation reads the same from both of its ends, so that child and parent share one text.
    """
    texts: dict[str, Prompt] = {}

    def add(role: int, kind: str, *new: str) -> None:
        for text in new:
            texts.setdefault(text, Prompt(text, KINDS.index(kind), role))

    add(POSITIVE, "example", *concept.examples)
    add(NEGATIVE, "example", *concept.negatives)
    if pack.prompts == "all":
        _add_named_prompts(pack, concept, seed, add)
    return _interleave(texts.values(), key=lambda prompt: stable_hash(seed, concept.id, prompt.text))


def _add_named_prompts(pack: ConceptPack, concept: Concept, seed: int, add: Callable[..., None]) -> None:
    name = concept.name
    if concept.definition:
        add(POSITIVE, "definition", f"{name[0].upper()}{name[1:]}: {concept.definition}")
    add(POSITIVE, "definition", f'What does "{name}" mean?')
    add(POSITIVE, "definition", f'Here is a short explanation of the concept "{name}", with an example.')
    add(POSITIVE, "relation", *(_kind_of(name, pack[parent].name) for parent in concept.parents))
    below = sorted(pack.hierarchy.children(concept.id), key=lambda child: stable_hash(seed, concept.id, child))
    add(POSITIVE, "relation", *(_kind_of(pack[child].name, name) for child in below[:_MAX_CHILD_PROMPTS]))
    aliases = concept.aliases[:_MAX_ALIAS_PROMPTS]
    add(POSITIVE, "relation", *(f'Another word for "{name}" is "{alias}".' for alias in aliases))
    add(CONTRAST, "contrast", *concept.contrasts)


def select_concepts(pack: ConceptPack, layers: Sequence[int] | None = None, limit: int | None = None) -> list[str]:
    """The ids of the concepts that a request names, layer by layer in pack order.

    Parameters
    ----------
    layers : layers of abstraction; None for all of the pack.
    limit : the first `limit` concepts of each layer; None for all.

    Raises
    ------
    PlanError
        If a layer has no concepts in the pack, or the limit is below 1.
    """
    wanted = pack.layers if layers is None else tuple(dict.fromkeys(layers))
    for layer in wanted:
        if layer not in pack.layers:
            raise PlanError(
                f"layer {layer} is not in pack {pack.name!r}, which has the layers {list(pack.layers)}; "
                "--layer selects layers of abstraction in the concept hierarchy, --model-layers transformer blocks"
            )
    if limit is not None and limit < 1:
        raise PlanError(f"limit is {limit}, expected 1 or more concepts")
    return [concept.id for layer in wanted for concept in pack.in_layer(layer)[:limit]]


def plan_samples(
    pack: ConceptPack,
    layers: Sequence[int] | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    fractions: Sequence[float] = SPLIT_FRACTIONS,
) -> SamplePlan:
    """Plan the samples of some layers of a pack.

    Splits are drawn by prompt, apart for examples, named prompts and contrasts of each concept, so that every split
    holds its share of each as early as the counts allow. Texts that differ in case, punctuation or spacing only go to
    the same split.

    Parameters
    ----------
    pack : the concepts.
    layers : layers of abstraction to plan for; None for all of the pack.
    seed : keys everything that looks random.
    limit : plan for the first `limit` concepts of each layer only; None for all.
    fractions : shares of train, calibration and test; they sum to 1.

    Raises
    ------
    PlanError
        If a layer has no concepts in the pack, or the fractions do not sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise PlanError(f"split fractions are {tuple(fractions)}, expected three shares that sum to 1")
    targets = select_concepts(pack, layers, limit)
    # Splits are assigned over the whole pack, whatever is extracted now: extracting another layer later must not
    # find a text that it shares with this one in another split.
    prompts = {concept.id: concept_prompts(pack, concept, seed=seed) for concept in pack.concepts}
    split_of = _assign_splits(prompts.values(), fractions, pack.splits)

    row_of: dict[str, int] = {}
    kinds: list[int] = []
    for target in targets:
        for prompt in prompts[target]:
            if prompt.text not in row_of:
                row_of[prompt.text] = len(row_of)
                kinds.append(prompt.kind)
    beside = [c for c in prompts if c not in set(targets) and any(p.text in row_of for p in prompts[c])]
    concepts = (*targets, *beside)
    labels = [
        (row_of[prompt.text], number, prompt.role)
        for number, concept in enumerate(concepts)
        for prompt in prompts[concept]
        if prompt.text in row_of
    ]
    label_sample, label_concept, label_role = zip(*labels, strict=True)
    low, high = TEMPERATURE_RANGE
    temperature = [low + (high - low) * stable_hash("temperature", seed, text) / 2**64 for text in row_of]
    return SamplePlan(
        concepts=concepts,
        n_targets=len(targets),
        texts=tuple(row_of),
        kind=np.array(kinds, np.uint8),
        split=np.array([split_of[_normalised(text)] for text in row_of], np.uint8),
        sampling_seed=np.array([stable_hash("sampling", seed, text) for text in row_of], np.uint64),
        temperature=np.array(temperature, np.float32),
        label_sample=np.array(label_sample, np.int32),
        label_concept=np.array(label_concept, np.int32),
        label_role=np.array(label_role, np.uint8),
    )


def _kind_of(narrow: str, broad: str) -> str:
    return f'The idea of "{narrow}" falls under the broader idea of "{broad}".'


def _interleave(prompts: Iterable[Prompt], key: Any) -> list[Prompt]:
    """Shuffle each group by `key`, then merge the groups so that every prefix has their proportions."""
    groups: dict[int, list[Prompt]] = {}
    for prompt in sorted(prompts, key=key):
        groups.setdefault(_group(prompt), []).append(prompt)
    place = [((i + 0.5) / len(group), number, p) for number, group in groups.items() for i, p in enumerate(group)]
    return [prompt for _, _, prompt in sorted(place, key=lambda entry: entry[:2])]


def _group(prompt: Prompt) -> int:
    """Prompts that must each be spread over the splits: unnamed, named, contrast, given negatives."""
    if prompt.role != POSITIVE:
        return 1 + prompt.role
    return 0 if prompt.kind == EXAMPLE else 1


def _assign_splits(
    concepts: Iterable[Sequence[Prompt]], fractions: Sequence[float], given: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Split of each normalised text: as given, else the one that lags furthest behind its share of the group.

    Where the source gives training and test texts but none for calibration, those are drawn from the training texts:
    a test set stays what it is.
    """
    split_of = {_normalised(text): SPLITS.index(name) for name in given for text in given[name]}
    if given and "calibration" not in given:
        training = [text for text, split in split_of.items() if split == 0]
        share = fractions[1] / (fractions[0] + fractions[1])
        split_of.update({text: 1 for text in training if stable_hash("calibration", text) < share * 2**64})
    for prompts in concepts:
        counts: dict[int, list[int]] = {}
        for prompt in prompts:
            taken = counts.setdefault(_group(prompt), [0] * len(SPLITS))
            text = _normalised(prompt.text)
            if text not in split_of:
                lag = [share * (sum(taken) + 1) - n for share, n in zip(fractions, taken, strict=True)]
                # On a tie, test comes first: a lens that cannot be judged is worth nothing.
                split_of[text] = max(range(len(SPLITS)), key=lambda split: (round(lag[split], 9), split))
            taken[split_of[text]] += 1
    return split_of


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(char if char.isalnum() else " " for char in folded).split()
    return " ".join(words) or text
