"""Which way a concept lies: the direction to steer along.

The difference of means: from the mean of all training vectors to the mean of the concept's
(contrastive activation addition, Rimsky et al. 2024; Marks and Tegmark 2023). The weights of a lens
tell a concept apart best, but are another direction: they lean away from whatever else varies
(Haufe et al. 2014 on why weights are not patterns), and one deviation along them is a much shorter
step. It is not settled which of the two costs a model less fluency for the same effect:
`benchmarks/steering.py` has both, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    positives = [torch.from_numpy(t.training.rows[t.training.targets]) for t in tasks]
    means = torch.stack([features.standardised(rows).mean(dim=0) for rows in positives])
    scale = torch.from_numpy(standardizer.scale).to(Z)
    every = max(1, (training.stop - training.start) // _REFERENCE_ROWS)
    reference = features.standardised(slice(training.start, training.stop, every))
    found: list[list[Direction]] = [[] for _ in tasks]
    width = Z.shape[1] // len(model_layers)
    for number, model_layer in enumerate(model_layers):
        part = slice(number * width, (number + 1) * width)
        vectors = torch.nn.functional.normalize(means[:, part] * scale[part], dim=1)
        along = reference[:, part] @ (vectors * scale[part]).T
        deviations = along.double().std(dim=0, correction=0).cpu().numpy()
        for its, vector, deviation in zip(found, vectors.cpu().numpy(), deviations, strict=True):
            its.append(Direction(model_layer, vector, float(deviation)))
    return [tuple(each) for each in found]
