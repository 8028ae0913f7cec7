"""The background: rows of texts that express no concept, given or written by the model itself.

    texts of a file, or beginning-of-sequence token --Runner--> texts --plan_background--> a round

Texts that were written once stay: a run that goes on reads them from the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import MIN_BACKGROUND, plan_background
from lenscache.concepts.prompts import stable_hash
from lenscache.errors import PlanError, StoreNotFoundError, UnsupportedModelError
from lenscache.extract.planned_rounds import PlannedRound
from lenscache.extract.settings import ExtractProgress, ExtractSettings, OnProgress
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel
from lenscache.store.layout import BACKGROUND
from lenscache.store.round import Round
from lenscache.store.store import open_store

DEFAULT_BACKGROUND = 200
"""Texts that the model writes unless asked otherwise (`benchmarks/RESULTS.md`)."""
WRITTEN_TOKENS = 32
"""Length of a text that the model writes, at most: about that of two sentences."""

_DRAWS = 4  # times as many texts as asked for, at most: a model may write the same ones


def plan_own_round(
    asked: int | Iterable[str] | None,
    pack: ConceptPack,
    settings: ExtractSettings,
    loaded: LoadedModel,
    path: str | Path,
    on_progress: OnProgress,
) -> PlannedRound | None:
    """Plan the background of a store; None if it is to have none.

    Parameters
    ----------
    asked : the texts, or how many the model writes; None for those that the store has, if any.
    path : of the store, which may hold texts that were given or written before.

    Raises
    ------
    PlanError
        If there are too few distinct texts, or the model has no beginning-of-sequence token.
    """
    texts: Iterable[str]
    request: object
    stored = _laid_out(path)
    known = None if stored is None else stored.attributes.get("background")
    if stored is not None and asked in (None, known):
        texts, request = map(str, stored.samples().text), known
    elif asked is None:
        return None
    elif isinstance(asked, int):
        texts, request = write_texts(loaded, asked, settings, on_progress), asked
    else:
        texts, request = asked, "given"
    plan = plan_background(pack, texts, seed=settings.seed)
    return PlannedRound(BACKGROUND, 0, plan, {"background": request})


def write_texts(
    loaded: LoadedModel, n: int, settings: ExtractSettings, on_progress: OnProgress
) -> list[str]:
    """Let the model write `n` distinct texts from its beginning-of-sequence token, each with a seed
    of its own, at temperature 1.

    Raises
    ------
    PlanError
        If it has no such token, too few are asked for, or it repeats itself.
    """
    start, size = first_token(loaded), 16 if settings.batch_size == "auto" else settings.batch_size
    runner = Runner(
        loaded, [0], mode="completion", max_new_tokens=WRITTEN_TOKENS, limits=BatchLimits(size)
    )
    if n < MIN_BACKGROUND:
        raise PlanError(f"{n} background texts are asked for, expected {MIN_BACKGROUND} or more")
    on_progress(ExtractProgress(BACKGROUND, 0, n, 0, f"writing {n} background texts"))
    texts: dict[str, None] = {}
    for begun in range(0, _DRAWS * n, n):
        numbers = range(begun, begun + n - len(texts))
        seeds = [stable_hash("background", settings.seed, number) for number in numbers]
        try:
            results = runner.run([Row([start], seed, 1.0) for seed in seeds])
        except UnsupportedModelError as error:
            raise PlanError(
                f"{loaded.id} cannot write background texts ({error}): give a file of texts, or 0 "
                "for none"
            ) from error
        written = (runner.text_of(result).strip() for result in results)
        texts.update(dict.fromkeys(text for text in written if text))
        if len(texts) == n:
            return list(texts)
    raise PlanError(
        f"{loaded.id} wrote {len(texts)} distinct background texts of {n}: give a file of texts, "
        "or 0 for none"
    )


def first_token(loaded: LoadedModel) -> int:
    """The beginning-of-sequence token of a model.

    Raises
    ------
    PlanError
        If it has none.
    """
    for holder in (loaded.tokenizer, loaded.model.config):
        if isinstance(found := getattr(holder, "bos_token_id", None), int):
            return found
    raise PlanError(
        f"{loaded.id} has no beginning-of-sequence token to write background texts from: give a "
        "file of texts, or 0 for none"
    )


def default_background(path: str | Path) -> int | None:
    """How many texts a run writes that was asked for nothing; None where the store has some."""
    return DEFAULT_BACKGROUND if _laid_out(path) is None else None


def _laid_out(path: str | Path) -> Round | None:
    try:
        return open_store(path).background
    except StoreNotFoundError:
        return None
