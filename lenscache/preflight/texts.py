"""What the checks let a model read: concepts, everyday texts, and texts that are hard to handle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

import torch

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.model.loading import LoadedModel
from lenscache.model.tokens import token_ids
from lenscache.preflight.results import Request

NEUTRAL = (
    "The committee met on Tuesday to go through the list that had been sent round the week before, "
    "and after a short talk about the weather it turned to the first point.",
    "In the middle of the room stood a long table with six chairs, a lamp, and a box of paper that "
    "nobody had opened since it was delivered last month.",
    "When the train pulled out of the station she put her bag on the seat beside her, took out a "
    "newspaper, and began to read the page that listed the new times.",
    "To make the dough, mix the flour with a little salt, add warm water slowly, and leave it "
    "under a cloth until it has grown to about twice its size.",
)
"""Texts about nothing in particular, in the language that most models know best."""

HARD = {
    "unicode": "Ünïcödé, 你好，世界, שלום עולם, नमस्ते, 🙂 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467, a\u0301\u0323\u0302, \u200b\ufeff, 𝔣𝔯𝔞𝔨𝔱𝔲𝔯, "
    "\U0001f9ec",
    "repeated character": "a" * 300,
    "repeated word": "again " * 120,
    "whitespace": "x" + " \n\t" * 60 + "y",
    "numbers": " ".join(str(7**i) for i in range(40)),
    "code": "def f(x):\n    return {k: [v ** 2 for v in range(k)] for k in x if k % 2 == 0}\n" * 4,
    "one letter": "I",
    "markup": '<a href="https://example.org/?q=%20&r=1">x</a>{"k":[null,true,1e-308]}\\\\x00',
}
"""Texts by what is hard about them."""


def load_pack(request: Request) -> ConceptPack:
    """The pack that is asked for, or the built-in set.

    Raises
    ------
    PackError
        If it cannot be read.
    """
    if request.pack is not None:
        return ConceptPack.load(request.pack)
    file = resources.files("lenscache.preflight").joinpath("concepts.json")
    return ConceptPack.from_dict(json.loads(file.read_text(encoding="utf-8")))


def spread(pack: ConceptPack, n: int) -> ConceptPack:
    """At most `n` concepts of a pack's largest level, spread over branches, without a hierarchy.

    Concepts of one level are never above one another: each serves the others as a negative.
    """
    largest = max(pack.levels, key=lambda level: (len(pack.in_level(level)), level))
    by_branch: dict[frozenset[str], list[Concept]] = {}
    for concept in sorted(pack.in_level(largest), key=lambda concept: -len(concept.examples)):
        by_branch.setdefault(pack.hierarchy.branches(concept.id), []).append(concept)
    turns = itertools.zip_longest(*by_branch.values())
    in_turn = (concept for turn in turns for concept in turn if concept is not None)
    chosen = [replace(c, parents=(), confusable_with=()) for c in itertools.islice(in_turn, n)]
    return replace(pack, concepts=tuple(chosen))


def prompt_ids(
    loaded: LoadedModel, pack: ConceptPack, n: int, *, seed: int, new_tokens: int
) -> list[list[int]]:
    """Token ids of `n` prompts of a pack: short and long in turn, so any first few are typical."""
    texts = plan_samples(pack, seed=seed, samples=max(2, n // len(pack) + 1)).texts
    found = sorted((fit(loaded, text, new_tokens) for text in texts), key=len)
    steps = max(len(found) // 8, 1)
    mixed = [ids for start in range(steps) for ids in found[start::steps]]
    return list(itertools.islice(itertools.cycle(mixed), n))


def fit(loaded: LoadedModel, text: str, new_tokens: int) -> list[int]:
    """Token ids of a text, cut to what leaves room for a completion; never empty."""
    ids = token_ids(loaded, text, continued=new_tokens > 0)
    room = (loaded.max_positions or len(ids) + new_tokens) - new_tokens
    return ids[: max(room, 1)] or [0]


def of_length(loaded: LoadedModel, n: int) -> list[int]:
    """`n` token ids of everyday text, over and over if need be."""
    encoded = (token_ids(loaded, text) for text in NEUTRAL)
    usable = [token for ids in encoded for token in ids if token not in loaded.eos_ids] or [0]
    return list(itertools.islice(itertools.cycle(usable), n))


def as_batch(loaded: LoadedModel, texts: Sequence[str], most: int) -> torch.Tensor:
    """(texts, position) token ids, cut to the shortest text and to `most`: no padding."""
    found = [fit(loaded, text, 0) for text in texts]
    length = min(most, *map(len, found))
    return torch.tensor([ids[:length] for ids in found], device=loaded.device)
