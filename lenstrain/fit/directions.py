"""Which way a concept lies: the direction to steer along.

The difference of means: from the mean of all training vectors to the mean of the concept's
(contrastive activation addition, Rimsky et al. 2024; Marks and Tegmark 2023). What tells a concept
apart best, the weights of a lens, is another direction, which leans away from whatever else varies
(Haufe et al. 2014 on why weights are not patterns), and a deviation along it is a far shorter way.
Which of the two costs a model less fluency for the same effect is not settled:
`benchmarks/steering.py` has both, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lenstrain.data.dataset import TRAIN
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.pack.lens import Direction

_REFERENCE_ROWS = 4096  # a deviation from so many rows is within 2 % of that from all


def steering_directions(
    features: Features, tasks: Sequence[TaskRows], model_layers: Sequence[int]
) -> list[tuple[Direction, ...]]:
    """For each task a direction on each model layer, from training vectors alone.

    Features are the activations of `model_layers` side by side. A task whose mean does not differ
    from that of all vectors has a direction of zeros.
    """
    Z, standardizer = features.Z, features.standardizer
    if standardizer is None or not isinstance(Z, torch.Tensor):
        return [()] * len(tasks)
    training = features.dataset.split_slices[TRAIN]
    # Standardised, the mean of all training vectors is 0.
    means = torch.stack(
        [
            Z[torch.from_numpy(task.training.rows[task.training.targets])].mean(dim=0)
            for task in tasks
        ]
    )
    scale = torch.from_numpy(standardizer.scale).to(Z)
    every = max(1, (training.stop - training.start) // _REFERENCE_ROWS)
    reference = Z[training][::every]
    found: list[list[Direction]] = [[] for _ in tasks]
    for model_layer, columns in zip(
        model_layers, np.split(np.arange(Z.shape[1]), len(model_layers)), strict=True
    ):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        vectors = torch.nn.functional.normalize(means[:, part] * scale[part], dim=1)
        along = reference[:, part] @ (vectors * scale[part]).T
        deviations = along.double().std(dim=0, correction=0).cpu().numpy()
        for place, (vector, deviation) in enumerate(
            zip(vectors.cpu().numpy(), deviations, strict=True)
        ):
            found[place].append(Direction(model_layer, vector, float(deviation)))
    return [tuple(each) for each in found]
