"""Stage one: plan -> model -> store, resumable.

    pack --plan_samples--> rows
        --Runner, a block at a time--> Block --writer thread--> Round.write_block

A block is the unit of loss: whatever happens, the blocks marked complete stay, and the same call
continues after them. For one device, dtype and batch size the result is the same, byte for byte, as
that of an uninterrupted run, because the batches of a block depend on nothing outside it. The loop
itself is in `extraction.py`; `RayEngine` of `ray_driver.py` runs it in many processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lenscache.concepts.pack import ConceptPack
from lenscache.extract.extraction import LocalEngine
from lenscache.extract.request import Request
from lenscache.extract.settings import ExtractReport, ExtractSettings, OnProgress
from lenscache.model.loading import LoadedModel
from lenscache.store.store import Store


def extract(
    path: str | Path,
    pack: ConceptPack,
    loaded: LoadedModel,
    settings: ExtractSettings | None = None,
    *,
    levels: Sequence[int] | None = None,
    limit: int | None = None,
    reuse: Sequence[Store] = (),
    background: int | Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract the activations of a pack's levels into the store at `path`, or continue doing so.

    Parameters
    ----------
    path : where the store is or shall be.
    levels : levels of abstraction; None for all of the pack.
    limit : the first `limit` concepts of each level only.
    reuse : stores whose rows are copied where they are the same, as with an earlier pack version.
    background : texts that express no concept, or how many of them the model writes by itself; None
        for none, or those that the store has. Fits learn from half of them what no concept is, and
        report how lenses do on the other half.
    on_progress : called after every batch.

    Raises
    ------
    StoreMismatchError
        If the store was written with another model, tokenizer, pack, dtype or setting.
    DiskSpaceError
        If the disk cannot hold what is still to be extracted; nothing was started.
    NonFiniteError, BatchMismatchError
        If the model produced what must not be stored. Complete blocks are kept.
    """
    settings, chosen = settings or ExtractSettings(), None if levels is None else tuple(levels)
    texts = background if background is None or isinstance(background, int) else tuple(background)
    request = Request(path, pack, settings, chosen, limit, tuple(reuse), background=texts)
    return LocalEngine(loaded).run(request, on_progress)
