"""The lenses of a pack beside each other: on samples of one concept, whose lens is strongest?

A lens is graded alone, against samples. A monitor runs thousands of them, and asks which concept a
text is about. So on each concept's held-out samples its own lens is ranked among all lenses of its
level of abstraction, by how far each is above its noise floor. Lenses that fire on everything are
named.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.compare.heldout import HeldOutLogits, held_out_logits
from lenstrain.data.dataset import TEST, LensDataset, Rows
from lenstrain.metrics.grade import FIRES_EVERYWHERE
from lenstrain.pack.pack import LensPack

_MOST_CONFUSERS = 5


class LensCheck(NamedTuple):
    """One lens beside the others of its level.

    Its ancestors and descendants are no rivals: they ought to be strong on the same samples.
    """

    median_rank: float
    """Of its own lens among those of the level, 1 is first; over the concept's held-out samples."""
    first: float
    """Share of those samples on which it is first."""
    n_rivals: int
    """Other lenses of the level."""
    above_siblings: float
    """Share on which it is above the lens of every sibling; NaN if it has none."""
    above_ancestors: float
    """Share on which it is above the lens of every ancestor, true there, too; NaN if none."""
    ancestors_fire: float
    """Share on which the lenses of all ancestors say that theirs is present; NaN if it has none."""
    confusers: list[str]
    """Concepts whose lens is most often above its own, the most frequent, then strongest, first."""
    firing_rate: float
    """Share of all unrelated samples on which it says that its concept is present."""

    @property
    def fires_everywhere(self) -> bool:
        """Whether it says so nearly whatever it sees."""
        return self.firing_rate >= FIRES_EVERYWHERE


def check_pack(pack: LensPack, dataset: LensDataset, split: int = TEST) -> dict[str, LensCheck]:
    """Check every lens of a pack on a split, by concept, but those without a sample there.

    Raises
    ------
    SettingsError
        If these are not the samples that were held out from the pack.
    """
    held = held_out_logits(pack, dataset, split)
    columns = [lens.signal(held.logits[:, i]) for i, lens in enumerate(pack)]
    return _Checker(pack, dataset, held, np.stack(columns, axis=1).astype(np.float32)).run()


class _Checker:
    def __init__(
        self, pack: LensPack, dataset: LensDataset, held: HeldOutLogits, signal: NDArray[np.float32]
    ) -> None:
        self.pack, self.dataset, self.held, self.signal = pack, dataset, held, signal
        self.fires = held.logits >= np.array([lens.threshold for lens in pack], np.float32)
        self.number = {lens.concept: i for i, lens in enumerate(pack)}
        self.rows = {lens.concept: held.rows_of(dataset.positives(lens.concept)) for lens in pack}
        self.concepts_of: dict[int, list[int]] = {}
        for concept, rows in self.rows.items():
            for row in rows.tolist():
                self.concepts_of.setdefault(row, []).append(self.number[concept])

    def run(self) -> dict[str, LensCheck]:
        return {c: self._check(c, rows) for c, rows in self.rows.items() if len(rows)}

    def _check(self, concept: str, rows: Rows) -> LensCheck:
        hierarchy, own = self.dataset.hierarchy, self.number[concept]
        family = hierarchy.family(concept)
        lenses, level = self.pack.lenses, self.pack.lenses[own].level
        on_level = [i for i, lens in enumerate(lenses) if lens.level == level]
        rivals = np.array([i for i in on_level if lenses[i].concept not in family], np.intp)
        above = self.signal[rows][:, rivals] >= self.signal[rows, own][:, None]
        # A rival whose concept the sample expresses as well is right.
        for place, row in enumerate(rows.tolist()):
            above[place] &= ~np.isin(rivals, self.concepts_of[row])
        rank = 1 + above.sum(axis=1)
        unrelated = np.ones(len(self.held.samples), np.bool_)
        for relative in family:
            unrelated[self.held.rows_of(self.dataset.labelled(relative))] = False
        times, height = above.sum(axis=0), self.signal[rows][:, rivals].mean(axis=0)
        worst = [i for i in np.lexsort((-height, -times)) if times[i]][:_MOST_CONFUSERS]
        return LensCheck(
            median_rank=float(np.median(rank)),
            first=float((rank == 1).mean()),
            n_rivals=len(rivals),
            above_siblings=self._above(rows, own, hierarchy.siblings(concept)),
            above_ancestors=self._above(rows, own, hierarchy.ancestors(concept)),
            ancestors_fire=self._fire(rows, hierarchy.ancestors(concept)),
            confusers=[lenses[rivals[i]].concept for i in worst],
            firing_rate=float(self.fires[unrelated, own].mean()) if unrelated.any() else np.nan,
        )

    def _above(self, rows: Rows, own: int, others: frozenset[str]) -> float:
        numbers = [self.number[other] for other in others if other in self.number]
        above = self.signal[rows, own][:, None] > self.signal[rows][:, numbers]
        return float(above.all(axis=1).mean()) if numbers else np.nan

    def _fire(self, rows: Rows, others: frozenset[str]) -> float:
        numbers = [self.number[other] for other in others if other in self.number]
        return float(self.fires[rows][:, numbers].all(axis=1).mean()) if numbers else np.nan
