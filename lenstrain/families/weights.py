"""The lens families, behind one contract.

    Z, rows, targets of some concepts --Family.trainer--> Trainer --fit(which, counts, ...)--> Fitted --ship--> Weights

To add a family, write a `Trainer` and give it a line in `FAMILIES`: adaptive training, calibration,
controls and lens packs know families through this page alone. `tests/lenstrain/contract.py` holds
what each of them promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.data.features import Scores
from lenstrain.families.linear import LinearFit, LinearTrainer, LinearWeights, Matrix, Standardizer
from lenstrain.families.mean_difference import MeanDifferenceTrainer
from lenstrain.families.mlp import MlpTrainer, MlpWeights

Rows = NDArray[np.intp]
Targets = NDArray[np.bool_]
Weights = LinearWeights | MlpWeights
"""A lens as it is shipped: all have `decision_function` on raw activations."""


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


@dataclass(frozen=True)
class Family:
    """A kind of lens."""

    name: str
    trainer: Callable[[Job], Trainer]
    strengths: tuple[float, ...] = ()
    """Inverse L2 strengths to choose from, the strongest penalty first; empty if it has none."""
    n_model_layers: int = 1
    """How many model layers a lens reads; 0 if it reads text."""
    bytes_per_feature: int = 0
    """Memory of a fit beyond its rows, for each feature."""


class EnsembleTrainer:
    """Linear lenses of several model layers side by side, and the mean of their logits.

    Each is fitted on its own columns. A mean of linear lenses is a linear lens on all of the
    columns.
    """

    def __init__(self, job: Job, n_members: int) -> None:
        if not isinstance(job.Z, torch.Tensor):
            raise TypeError("an ensemble reads activations")
        columns = job.Z.chunk(n_members, dim=1)
        self._members = [LinearTrainer(Z.contiguous(), job.rows, job.targets) for Z in columns]

    def fit(self, *args: Any, **options: Any) -> LinearFit:
        """As `Trainer.fit`."""
        return _mean([member.fit(*args, **options) for member in self._members])

    def path(self, strengths: Sequence[float]) -> list[LinearFit]:
        """As `PathTrainer.path`."""
        return [
            _mean(fits)
            for fits in zip(*(member.path(strengths) for member in self._members), strict=True)
        ]


def _mean(fits: Sequence[LinearFit]) -> LinearFit:
    return LinearFit(
        np.hstack([fit.weight for fit in fits]) / len(fits),
        np.mean([fit.intercept for fit in fits], axis=0),
        [
            np.mean(logits, axis=0)
            for logits in zip(*(fit.training_logits for fit in fits), strict=True)
        ],
        np.all([fit.converged for fit in fits], axis=0),
    )


STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse L2 strengths to choose from on standardised activations."""

FAMILIES = {
    family.name: family
    for family in (
        Family("linear", lambda job: LinearTrainer(job.Z, job.rows, job.targets), STRENGTHS),
        Family("mean-difference", lambda job: MeanDifferenceTrainer(job.Z, job.rows, job.targets)),
        Family(
            "mlp",
            lambda job: MlpTrainer(job.Z, job.rows, job.targets, job.seeds),
            bytes_per_feature=4 * 128 * 4,
        ),
        # The best model layer of each third, as the system that this one succeeds selects them.
        Family("ensemble", lambda job: EnsembleTrainer(job, 3), STRENGTHS, n_model_layers=3),
        # Rows of TF-IDF have length 1, those of standardised activations the square root of the
        # hidden size.
        Family(
            "text",
            lambda job: LinearTrainer(job.Z, job.rows, job.targets),
            (1.0, 10.0, 100.0),
            n_model_layers=0,
        ),
    )
}
