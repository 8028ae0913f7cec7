"""What the check of lenses leaves for the check of steering: directions, and lenses to read them
with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenscache.preflight.results import LENS_FILE


@dataclass(frozen=True)
class SteeringLenses:
    """Lenses to steer along and to read with; k concepts that have nothing to do with one another.

    The model is steered at one model layer and read at a deeper one: there a change has been
    through the model.
    """

    concepts: tuple[str, ...]
    steered_layer: int
    directions: NDArray[np.float32]
    """(k, hidden) at `steered_layer`."""
    deviations: NDArray[np.float64]
    """(k,) of the activations along each direction."""
    read_layer: int
    weights: NDArray[np.float32]
    """(k, hidden) at `read_layer`; none of them where there are no lenses, and directions are
    random."""
    biases: NDArray[np.float64]
    """(k,)"""
    noise: NDArray[np.float64]
    """(k,) deviation of each lens's logits where its concept is not: the unit of their changes."""

    def save(self, folder: str | Path) -> None:
        """Write them where the check of steering looks for them."""
        np.savez(
            Path(folder) / LENS_FILE,
            concepts=np.array(self.concepts),
            steered_layer=self.steered_layer,
            directions=self.directions,
            deviations=self.deviations,
            read_layer=self.read_layer,
            weights=self.weights,
            biases=self.biases,
            noise=self.noise,
        )

    @classmethod
    def load(cls, folder: str | Path) -> SteeringLenses | None:
        """Those of a folder; None if there are none."""
        file = Path(folder) / LENS_FILE
        if not folder or not file.exists():
            return None
        with np.load(file, allow_pickle=False) as held:
            return cls(
                tuple(map(str, held["concepts"])),
                int(held["steered_layer"]),
                held["directions"],
                held["deviations"],
                int(held["read_layer"]),
                held["weights"],
                held["biases"],
                held["noise"],
            )
