"""What lenses are shipped as."""

from __future__ import annotations

from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights
from lenstrain.families.standardizer import Standardizer

Weights = LinearWeights | MlpWeights
"""A lens as it is shipped: all have `decision_function` on raw activations."""


def n_inputs(weights: Weights) -> int:
    """Raw features that a lens reads, of all its model layers together."""
    return len(weights.weight if isinstance(weights, LinearWeights) else weights.w1)


def norm_of(weights: Weights, place: int = 0, n: int = 1) -> Standardizer | None:
    """What a lens that reads `n` model layers does to activations of one of them first, before its
    weights are plainly linear; None for nothing."""
    if not isinstance(weights, LinearWeights) or weights.norm is None:
        return None
    return weights.norm.part(place, n)
