"""What lenses are shipped as."""

from __future__ import annotations

from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights
from lenstrain.families.standardizer import Standardizer

Weights = LinearWeights | MlpWeights
"""A lens as it is shipped: all have `decision_function` on raw activations."""


def norm_of(weights: Weights, place: int = 0, n: int = 1) -> Standardizer | None:
    """What a lens that reads `n` model layers does to activations of one of them first, before its
    weights are plainly linear; None for nothing."""
    if not isinstance(weights, LinearWeights) or weights.norm is None:
        return None
    return weights.norm.part(place, n)
