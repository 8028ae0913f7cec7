"""The lens families, behind one contract.

    Job (Z, rows, targets of some concepts) --Family.trainer--> Trainer
    Trainer --fit(which, counts, ...)--> Fitted --ship--> Weights

To add a family, write a `Trainer` and give it a line in `kinds.py`: adaptive training, calibration,
controls and lens packs know families through this module alone. `tests/lenstrain/contract.py` tests
what each of them promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lenstrain.families.standardizer import Matrix, Standardizer
from lenstrain.families.weights import Weights

Rows = NDArray[np.intp]
Targets = NDArray[np.bool_]


class Scores(Protocol):
    """Fitted lenses of some concepts."""

    def decision_function(self, Z: Matrix) -> NDArray[np.float64]:
        """(rows, concepts) logits of rows Z (rows, features)."""

    def some(self, numbers: Sequence[int]) -> Scores:
        """Those of some of the concepts, by their numbers here."""


class Fitted(Scores, Protocol):
    """Fitted lenses of some concepts, on standardised features."""

    @property
    def training_logits(self) -> list[NDArray[np.float64]]:
        """For each concept, the logits of the rows it was fitted on."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(concepts,)"""

    def ship(self, number: int, standardizer: Standardizer | None) -> Weights:
        """The lens of one concept, on raw features."""


class Trainer(Protocol):
    """Holds the rows of some concepts and fits each on the first of them, as often as asked."""

    def fit(
        self,
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],
        targets: Sequence[Targets] | None = None,
    ) -> Fitted:
        """Fit the concepts `which` on their first `counts` rows; `targets` replace their own."""


class PathTrainer(Trainer, Protocol):
    """Of a family that has strengths."""

    def path(self, strengths: Sequence[float]) -> Sequence[Fitted]:
        """For each strength, all concepts on all of their rows, well enough to choose one by."""


class Job(NamedTuple):
    """What a trainer is given."""

    Z: Matrix
    """(vectors, features) standardised."""
    rows: Sequence[Rows]
    targets: Sequence[Targets]
    seeds: Sequence[int]
    """One for each concept, for families that draw."""
    apart: Sequence[Rows] = ()
    """For each concept, the training rows of Z that are no negatives of it: those that express it,
    taken up or not, and its ancestors' and descendants'."""
    n_model_layers: int = 1
    """Whose features lie side by side in Z."""
    shared: Any = None
    """What `Family.share` made of all training rows, of a family that has it."""
    background: Any = None
    """(vectors, features) tensor: texts of no concept to learn from; None without any."""
    background_weights: Sequence[float] = ()
    """For each concept, the share that these have in its mean negative."""
