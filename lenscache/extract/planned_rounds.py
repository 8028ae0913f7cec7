"""Top-up: more samples, in a further round of a level, for concepts whose lenses asked for them.

    hungry.json of a lens pack --read_top_up--> TopUp
        --plan_rounds--> one SamplePlan a level, for round k

Rounds are immutable, so more samples are another round. Which round a request belongs to is
recorded in it: the same request again goes on with that round, or finds it complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import SamplePlan, plan_top_up
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


def plan_rounds(
    store: Store, pack: ConceptPack, request: TopUp
) -> tuple[list[PlannedRound], list[str]]:
    """The rounds that a request needs, one a level, and the concepts with nothing left to add.

    Raises
    ------
    PlanError
        If a concept is not in the pack or was never extracted, or nothing is left to add.
    StoreIncompleteError
        If an earlier round of a level is not finished.
    """
    if unknown := [concept for concept in request.concepts if concept not in pack.hierarchy]:
        raise PlanError(
            f"concept {unknown[0]!r} asks for more samples and is not in pack {pack.name!r}"
        )
    by_level: dict[int, list[str]] = {}
    for concept in request.concepts:
        by_level.setdefault(pack[concept].level, []).append(concept)
    planned: list[PlannedRound] = []
    exhausted: list[str] = []
    for level, concepts in sorted(by_level.items()):
        index, before = _place(store, level, request)
        if strange := [c for c in concepts if not any(c in entry.targets for entry in before)]:
            raise PlanError(
                f"concept {strange[0]!r} was never extracted into {store.path}: extract its level "
                "first"
            )
        plan_more = partial(
            plan_top_up,
            pack,
            taken=_taken(before),
            samples=request.samples,
            seed=store.header.seed,
            resample=store.header.mode != "prompt",
        )
        plans = {concept: plan_more([concept]) for concept in concepts}
        exhausted.extend(concept for concept, plan in plans.items() if plan is None)
        served = [concept for concept, plan in plans.items() if plan is not None]
        if served and (plan := plan_more(served)) is not None:
            asked = {"samples": request.samples, "top_up": request.digest}
            planned.append(PlannedRound(level, index, plan, asked))
    if not planned:
        raise PlanError(
            f"every prompt of the {len(exhausted)} concepts is in the store, and in prompt mode "
            "sampling them again gives nothing new: "
            "add examples to the pack and extract with --reuse"
        )
    return planned, exhausted


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
