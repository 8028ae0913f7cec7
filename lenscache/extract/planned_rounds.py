"""Top-up: more samples, in a further round of a level, for concepts whose lenses asked for them.

    hungry.json of a lens pack --read_top_up--> TopUp
        --check_top_up--> what it adds, or why it adds nothing: before a model is loaded
        --plan_rounds--> one SamplePlan a level, for round k

Rounds are immutable, so more samples are another round. Which round a request belongs to is
recorded in it: the same request again goes on with that round, or finds it complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import PackPrompts, SamplePlan, plan_top_up, rows_to_add
from lenscache.concepts.prompts import concept_prompts
from lenscache.errors import PlanError, StoreIncompleteError
from lenscache.store.round import Round
from lenscache.store.store import Store

DEFAULT_SAMPLES = 20
"""Prompts added for each concept."""


@dataclass(frozen=True)
class TopUp:
    """A request for more samples."""

    concepts: tuple[str, ...]
    samples: int = DEFAULT_SAMPLES
    """Prompts to add for each concept."""
    origin: str = ""
    """What asked: the digest of the store that the lenses were fitted on. The same request about
    another state of the store is another request."""

    @property
    def digest(self) -> str:
        """Identity of the request; 16 hex digits."""
        content = json.dumps([sorted(self.concepts), self.samples, self.origin])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlannedRound:
    """A round to be extracted."""

    level: int
    index: int
    plan: SamplePlan
    request: Mapping[str, object]
    """What was asked for; attributes of the round that must be the same when it is continued."""


def read_top_up(path: str | Path, samples: int | None = None) -> TopUp:
    """Read the hungry.json of a lens pack: the concepts that used every sample there was.

    Raises
    ------
    PlanError
        If the file cannot be read or names no concept.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        concepts = tuple(data["concepts"])
        origin = str((data.get("store") or {}).get("digest", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{path} is not the hungry.json of a lens pack ({type(error).__name__}: {error}): "
            "give the file that `lenstrain fit` wrote beside the lenses"
        ) from None
    if not concepts or not all(isinstance(concept, str) for concept in concepts):
        raise PlanError(
            f"{path} names no concept that asks for more samples: there is nothing to top up"
        )
    return TopUp(concepts, DEFAULT_SAMPLES if samples is None else samples, origin)


@dataclass(frozen=True)
class TopUpOutlook:
    """What a request adds to a store: known without a model, and without the prompts of others."""

    levels: Mapping[int, Sequence[str]]
    """Concepts by level, those without anything left included."""
    exhausted: tuple[str, ...]
    """Concepts with nothing left to add."""
    new: int
    """Texts that are to be sampled for the first time, counted for each concept."""
    again: int
    """Texts that are to be sampled again."""

    def lines(self) -> list[str]:
        """For people: what further completions are not; empty where there are none."""
        if not self.again:
            return []
        return [
            f"{self.again} of the {self.new + self.again} samples to add are further completions "
            "of texts that are in the store. They are no further samples: grades, splits and "
            f"graduation count texts. {_MORE_TEXTS}"
        ]


_MORE_TEXTS = (
    "For more texts, add examples to the pack or prompts of your own (--templates), and extract "
    "into another store, with --reuse for what is in this one"
)


def check_top_up(store: Store, pack: ConceptPack, request: TopUp) -> TopUpOutlook:
    """Refuse a request that cannot be served, before any work.

    Raises
    ------
    StoreMismatchError
        If the store was extracted with another pack.
    PlanError
        If a concept is not in the pack or was never extracted, or nothing is left to add.
    StoreIncompleteError
        If an earlier round of a level is not finished.
    """
    given = replace(store.header, pack_name=pack.name, pack_digest=pack.digest)
    store.header.check_equal(given)
    if unknown := [concept for concept in request.concepts if concept not in pack.hierarchy]:
        raise PlanError(
            f"concept {unknown[0]!r} asks for more samples and is not in pack {pack.name!r}"
        )
    levels: dict[int, list[str]] = {}
    for concept in request.concepts:
        levels.setdefault(pack[concept].level, []).append(concept)
    exhausted: list[str] = []
    times: list[int] = []
    for level, concepts in sorted(levels.items()):
        _, before = _place(store, level, request)
        if strange := [c for c in concepts if not any(c in entry.targets for entry in before)]:
            raise PlanError(
                f"concept {strange[0]!r} was never extracted into {store.path}: extract its level "
                "first"
            )
        taken = _taken(before)
        for concept in concepts:
            prompts = concept_prompts(pack, pack[concept], seed=store.header.seed)
            added = rows_to_add(prompts, taken, **_how(store, request))
            times.extend(time for _, time in added)
            if not added:
                exhausted.append(concept)
    if len(exhausted) == len(request.concepts):
        raise PlanError(
            f"every prompt of the {len(exhausted)} concepts is in the store, and in prompt mode "
            f"sampling them again gives nothing new. {_MORE_TEXTS}"
        )
    again = sum(time > 0 for time in times)
    return TopUpOutlook(dict(sorted(levels.items())), tuple(exhausted), len(times) - again, again)


def plan_rounds(
    store: Store, pack: ConceptPack, request: TopUp
) -> tuple[list[PlannedRound], list[str]]:
    """The rounds that a request needs, one a level, and the concepts with nothing left to add.

    Raises
    ------
    StoreMismatchError, PlanError, StoreIncompleteError
        As `check_top_up`.
    """
    outlook = check_top_up(store, pack, request)
    prompts = PackPrompts(pack, store.header.seed)
    planned: list[PlannedRound] = []
    for level, concepts in outlook.levels.items():
        index, before = _place(store, level, request)
        plan = plan_top_up(prompts, concepts, _taken(before), **_how(store, request))
        if plan is not None:
            asked = {"samples": request.samples, "top_up": request.digest}
            planned.append(PlannedRound(level, index, plan, asked))
    return planned, list(outlook.exhausted)


class _How(TypedDict):
    samples: int
    resample: bool


def _how(store: Store, request: TopUp) -> _How:
    return {"samples": request.samples, "resample": store.header.mode != "prompt"}


def _place(store: Store, level: int, request: TopUp) -> tuple[int, list[Round]]:
    """The index of the round that serves the request, and the rounds before it.

    A request says what state of the store it is about, so one that was served before later ones is
    still served.
    """
    rounds = store.rounds(level)
    for place, entry in enumerate(rounds):
        if entry.attributes.get("top_up") == request.digest:
            return entry.index, rounds[:place]
    for entry in rounds:
        if not entry.is_complete:
            raise StoreIncompleteError(
                f"{store.path}: {entry.name} is not finished: run the `lenscache extract` that "
                "began it again, then top up"
            )
    return (rounds[-1].index + 1 if rounds else 0), rounds


def _taken(rounds: list[Round]) -> dict[str, int]:
    """How often each text was sampled."""
    taken: dict[str, int] = {}
    for entry in rounds:
        samples = entry.samples()
        for text, repeat in zip(samples.text, samples.repeat, strict=True):
            taken[str(text)] = max(taken.get(str(text), 0), int(repeat) + 1)
    return taken
