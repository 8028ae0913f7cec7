"""Held-out samples for the page of a concept: the best, the worst, and false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.compare.heldout import HeldOutLogits, held_out_logits
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack

N_SHOWN = 4
"""Samples of each kind that are shown for a concept."""

_TEXT_LENGTH = 1000  # characters, so that a page of thousands of concepts stays small
_MOST_CONCEPTS = 3  # of a false alarm that are named


class SampleLine(NamedTuple):
    """One held-out sample as one lens sees it."""

    text: int
    """Which of the texts that are shown."""
    probability: float
    """Calibrated, both classes alike in prevalence."""
    fires: bool
    """Whether the lens says that its concept is present."""
    unnamed: bool
    """Whether it is a natural example, which does not name its concept."""
    concepts: list[int]
    """Lenses whose concepts it does express, for a false alarm."""


class Texts:
    """The texts that are shown, each once."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []
        self._number: dict[tuple[str, str], int] = {}

    def add(self, prompt: str, completion: str) -> int:
        """The number of a text."""
        key = prompt, completion
        if key not in self._number:
            self._number[key] = len(self.shown)
            self.shown.append([_cut(prompt), _cut(completion)])
        return self._number[key]


class HeldOutSamples:
    """The test split of a store as the lenses of a pack see it."""

    def __init__(self, pack: LensPack, dataset: LensDataset, held: HeldOutLogits) -> None:
        self.dataset, self.held = dataset, held
        self._column = {lens.concept: i for i, lens in enumerate(pack)}
        self._concepts_of: dict[int, list[str]] = {}
        self._rows = {lens.concept: held.rows_of(dataset.positives(lens.concept)) for lens in pack}
        for concept, rows in self._rows.items():
            for row in rows.tolist():
                self._concepts_of.setdefault(row, []).append(concept)

    def of(
        self, lens: Lens, number: Mapping[str, int], texts: Texts
    ) -> tuple[list[SampleLine], list[SampleLine], list[SampleLine]]:
        """Its own samples that it ranks highest and lowest, and unrelated samples that it ranks
        highest."""
        logits, own = self.held.logits[:, self._column[lens.concept]], self._rows[lens.concept]
        unrelated = np.ones(len(self.held.samples), np.bool_)
        for relative in self.dataset.hierarchy.family(lens.concept):
            unrelated[self.held.rows_of(self.dataset.labelled(relative))] = False
        others = np.flatnonzero(unrelated)
        down = own[np.argsort(-logits[own], kind="stable")]
        n_best = min(N_SHOWN, (len(down) + 1) // 2)  # no sample is both a best and a worst one
        chosen = down[:n_best], down[n_best:][::-1][:N_SHOWN], _highest(others, logits[others])
        best, worst, alarms = (
            [self._line(lens, logits, row, number, texts) for row in rows] for rows in chosen
        )
        return best, worst, alarms

    def _line(
        self,
        lens: Lens,
        logits: NDArray[np.float32],
        row: int,
        number: Mapping[str, int],
        texts: Texts,
    ) -> SampleLine:
        sample = int(self.held.samples[row])
        logit = np.array([logits[row]], np.float64)
        concepts = [number[c] for c in self._concepts_of.get(int(row), ()) if c != lens.concept]
        return SampleLine(
            texts.add(self.dataset.texts[sample], self.dataset.completions[sample]),
            float(lens.calibrator(logit)[0]),
            bool(logits[row] >= lens.threshold),
            bool(self.dataset.unnamed(lens.concept, self.held.samples[row : row + 1])[0]),
            concepts[:_MOST_CONCEPTS],
        )


def read_held_out(pack: LensPack, dataset: LensDataset) -> HeldOutSamples:
    """Score the test split of a store with a pack.

    Raises
    ------
    SettingsError
        If the pack was not fitted on this store.
    """
    return HeldOutSamples(pack, dataset, held_out_logits(pack, dataset, TEST))


def _highest(rows: NDArray[np.intp], logits: NDArray[np.float32]) -> Sequence[int]:
    few = np.arange(len(rows))
    if len(rows) > N_SHOWN:
        few = np.argpartition(-logits, N_SHOWN)[:N_SHOWN]
    found = rows[few[np.lexsort((rows[few], -logits[few]))]]
    return [int(row) for row in found]


def _cut(text: str) -> str:
    more = len(text) - _TEXT_LENGTH
    return text if more <= 0 else f"{text[:_TEXT_LENGTH]}… ({more} characters more)"
