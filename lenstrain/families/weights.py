"""What lenses are shipped as."""

from __future__ import annotations

from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights

Weights = LinearWeights | MlpWeights
"""A lens as it is shipped: all have `decision_function` on raw activations."""
