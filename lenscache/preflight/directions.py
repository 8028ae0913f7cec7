"""What the check of lenses leaves for the check of steering: directions and lenses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
    """(k, hidden) at `read_layer`; (0, hidden) without lenses, when directions are random."""
    biases: NDArray[np.float64]
    """(k,)"""
    noise: NDArray[np.float64]
    """(k,) deviation of each lens's logits where its concept is not: the unit of their changes."""

    def save(self, folder: str | Path) -> None:
        """Write them where the check of steering looks for them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(Path(folder) / LENS_FILE, **values)

    @classmethod
    def load(cls, folder: str | Path) -> SteeringLenses | None:
        """Those of a folder; None if there are none."""
        file = Path(folder) / LENS_FILE
        if not folder or not file.exists():
            return None
        with np.load(file, allow_pickle=False) as held:
            values: dict[str, Any] = {field.name: held[field.name] for field in fields(cls)}
        values["concepts"] = tuple(map(str, values["concepts"]))
        numbers = {key: int(values[key]) for key in ("steered_layer", "read_layer")}
        return cls(**{**values, **numbers})
