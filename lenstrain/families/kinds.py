"""Every lens family by its name; a new family is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lenstrain.families.contract import Job, Trainer
from lenstrain.families.discriminant import DiscriminantTrainer, Within
from lenstrain.families.ensemble import EnsembleTrainer
from lenstrain.families.linear import LinearTrainer
from lenstrain.families.mean_difference import MeanDifferenceTrainer
from lenstrain.families.mlp import MlpTrainer


@dataclass(frozen=True)
class Family:
    """A kind of lens."""

    name: str
    trainer: Callable[[Job], Trainer]
    strengths: tuple[float, ...] = ()
    """Inverse L2 strengths to choose from, the strongest penalty first; empty if it has none."""
    n_model_layers: int = 1
    """How many model layers a lens reads; 0 if it reads text."""
    spread: bool = False
    """Whether those are spread evenly over the model, or fewer where there are fewer, instead of
    chosen for each concept."""
    bytes_per_feature: int = 0
    """Memory of a fit beyond its rows, for each feature."""
    share: Callable[..., Any] | None = None
    """What concepts share: made of all training rows once, as `Within.fit`, for `Job.shared`."""
    unit_norm: bool = False
    """Whether it reads standardised vectors of length 1, unless settings say otherwise."""


STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse L2 strengths to choose from on standardised activations."""

_ALL = (
    Family("linear", lambda job: LinearTrainer(*job[:3]), STRENGTHS),
    Family(
        "discriminant",
        DiscriminantTrainer,
        n_model_layers=6,
        spread=True,
        share=Within.fit,
        unit_norm=True,
    ),
    Family("mean-difference", lambda job: MeanDifferenceTrainer(*job[:3])),
    Family("mlp", lambda job: MlpTrainer(*job[:4]), bytes_per_feature=4 * 128 * 4),
    # The best model layer of each third, as the system that this one succeeds selects them.
    Family("ensemble", EnsembleTrainer, STRENGTHS, n_model_layers=3),
    # Rows of TF-IDF have length 1, standardised activations the square root of the hidden size.
    Family("text", lambda job: LinearTrainer(*job[:3]), (1.0, 10.0, 100.0), n_model_layers=0),
)
FAMILIES = {family.name: family for family in _ALL}
