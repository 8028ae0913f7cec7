"""Fitting while extraction still runs: lenses appear as the samples of their concepts are complete.

    growing store --open_dataset(partial=True)--> complete concepts --train--> provisional lens pack
    complete store --open_dataset---------------> all concepts -------train--> the lens pack

A provisional lens knows only the negatives that are there so far. When the last round is complete,
every concept is fitted once more on all of it, so the lens pack is the same, bit for bit, as one
fitted afterwards. Waves of provisional fits grow by half each time: reading the store again for
every new concept would cost more than the fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lenstrain.data.dataset import LensDataset, extraction_state, header_of, open_dataset
from lenstrain.errors import LensPackError, StalledError, TooFewSamplesError
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.choice import settled
from lenstrain.fit.train import train
from lenstrain.pack.folder import check_output
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import Provenance
from lenstrain.settings import FitProgress, FitSettings


class FollowProgress(NamedTuple):
    """Where a store that is followed stands."""

    blocks_done: int
    blocks_total: int
    lenses: int
    """Provisional lenses so far."""
    fit: FitProgress | None = None
    """Where a fit stands, while one runs."""


@dataclass(frozen=True)
class FollowSettings:
    """How to wait. Times in seconds."""

    poll_s: float = 2.0
    """How long to wait before the store is looked at again."""
    patience_s: float = 900.0
    """How long to wait for the next complete block before giving up."""


def fit_following(
    path: str | Path,
    out: str | Path,
    settings: FitSettings | None = None,
    *,
    levels: Sequence[int] | None = None,
    concepts: Sequence[str] | None = None,
    labels: str | None = None,
    text: FitSettings | None = None,
    refine: bool = False,
    jobs: int | None = None,
    overwrite: bool = False,
    waiting: FollowSettings | None = None,
    on_progress: Callable[[FollowProgress], None] = lambda _: None,
) -> LensPack:
    """Fit the concepts of a store as they are extracted, and all of them when it is complete.

    Parameters
    ----------
    path : the store, which must be there.
    out : folder of the lens pack; provisional packs, marked so in their provenance, are written to
        it before.
    levels : levels of abstraction to wait for and fit; None for all that are laid out.
    concepts : ids to fit; None for all.
    text, refine, jobs : as for `train`; provisional lenses are not refined, nor have text lenses.

    Raises
    ------
    StalledError
        If no block was completed for `patience_s`: the provisional lenses are kept, and the same
        call goes on from there.
    SettingsError, TooFewSamplesError, LensPackExistsError
        As `fit_lenses` and `LensPack.save`.
    """
    settings, waiting, out = settings or FitSettings(), waiting or FollowSettings(), Path(out)
    overwrite = overwrite or is_superseded(out, path)
    check_output(out, overwrite=overwrite)
    opened = partial(
        open_dataset, path, levels=levels, phase=settings.phase, seed=settings.seed, labels=labels
    )
    provisional: dict[str, Lens] = {}
    blocks_then, heard = -1, time.monotonic()
    while True:
        state = extraction_state(path, levels)
        tell = _teller(on_progress, state.blocks_done, state.blocks_total, len(provisional))
        fit = partial(train, settings=settings, jobs=jobs, on_progress=tell)
        if state.complete:
            pack = fit(opened(), text=text, refine=refine, concepts=concepts)
            pack.save(out, overwrite=overwrite or bool(provisional))
            return pack
        if state.blocks_done > blocks_then:
            blocks_then, heard = state.blocks_done, time.monotonic()
            tell(None)
            dataset = opened(partial=True)
            family = settled(settings, dataset.n_concepts).family
            wanted = set(dataset.concepts if concepts is None else concepts)
            fresh = [c for c in dataset.concepts if c in wanted and c not in provisional]
            # Not for text lenses: a pack has one vocabulary, and that of each wave is another one.
            if family != "text" and fresh and len(fresh) >= len(provisional) / 2:
                # Lenses that share something are of one fit, or not in one pack.
                together = FAMILIES[family].share is not None
                before = {} if together else provisional
                fresh += [*provisional] if together else []
                pack = _fit_provisional(fit, dataset, fresh, before)
                if len(pack):
                    pack.save(out, overwrite=overwrite or bool(provisional))
                    provisional = {lens.concept: lens for lens in pack}
        elif time.monotonic() - heard > waiting.patience_s:
            kept = f", {len(provisional)} provisional lenses are in {out}" if provisional else ""
            raise StalledError(
                f"{path}: {state.blocks_done} of {state.blocks_total} blocks are complete and none "
                f"was added for {waiting.patience_s:.0f} s{kept}: is `lenscache extract` still "
                "running? Run both again, as they were, to go on"
            )
        time.sleep(waiting.poll_s)


def is_superseded(out: str | Path, store: str | Path) -> bool:
    """Whether `out` holds provisional lenses of this store, which later ones take the place of."""
    try:
        found = LensPack.load(out).provenance
    except LensPackError:
        return False
    recorded = {key: value for key, value in found.store.items() if key != "digest"}
    return bool(found.provisional) and recorded == header_of(store)


def _fit_provisional(
    fit: Callable[..., LensPack],
    dataset: LensDataset,
    fresh: Sequence[str],
    before: dict[str, Lens],
) -> LensPack:
    try:
        new = fit(dataset, concepts=fresh)
    except TooFewSamplesError:  # nothing to tell them from yet
        return LensPack([], Provenance(), {})
    lenses = [*before.values(), *new.lenses]
    # How good probabilities are was measured on the new lenses alone.
    provenance = replace(new.provenance, provisional=True, calibration=None)
    return LensPack(lenses, provenance, {})


def _teller(
    on_progress: Callable[[FollowProgress], None], done: int, total: int, lenses: int
) -> Callable[[FitProgress | None], None]:
    """Adds where the store stands to where a fit stands."""
    return lambda progress: on_progress(FollowProgress(done, total, lenses, progress))
