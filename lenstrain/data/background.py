"""The background of a store: vectors of texts that express no concept.

One half of the texts is for learning what no concept is, the other tells how often lenses fire
there ("natural" text). Which text is in which half was drawn as the store was laid out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import SPLITS
from lenscache.store.header import StoreHeader
from lenscache.store.round import Round, has_position
from lenscache.terms import Phase

_TEST = SPLITS.index("test")


class Background:
    """Vectors of a background round, those of the first phase first."""

    def __init__(self, source: Round, header: StoreHeader, phases: Sequence[Phase]) -> None:
        samples = source.samples()
        present = has_position(header, samples.n_prompt_tokens, samples.n_completion_tokens)
        self._source = source
        self._rows = {phase: np.flatnonzero(present[phase]) for phase in phases}
        held_out = samples.split == _TEST
        row = np.concatenate([self._rows[phase] for phase in phases])
        self.is_held_out: NDArray[np.bool_] = held_out[row]
        """(vectors,) whether each is for judging."""
        self.n_texts = int(held_out.sum())
        """Texts to judge by."""

    def vectors(self, model_layer: int) -> NDArray[np.float32]:
        """(vectors, hidden) raw activations of one model layer."""
        read = [self._source.read(phase, model_layer)[rows] for phase, rows in self._rows.items()]
        return np.concatenate(read).astype(np.float32)
