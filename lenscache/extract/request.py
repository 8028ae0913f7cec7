"""What an extraction is asked for: plain values that any process can be handed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lenscache.concepts.pack import ConceptPack
from lenscache.extract.planned_rounds import TopUp
from lenscache.extract.settings import ExtractSettings
from lenscache.store.store import Store


@dataclass(frozen=True)
class Request:
    """What to extract and where to: all that a process needs beside the model."""

    path: str | Path
    pack: ConceptPack
    settings: ExtractSettings
    levels: tuple[int, ...] | None = None
    limit: int | None = None
    reuse: tuple[Store | str, ...] = ()
    """Stores, or where they are, whose rows are copied where they are the same."""
    top_up: TopUp | None = None
    """More samples for some concepts, instead of `levels` and `limit`."""
    background: int | tuple[str, ...] | None = None
    """Texts that express no concept, or how many of them the model writes; None for those that the
    store has, if any."""
