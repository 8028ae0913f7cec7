"""The ensemble lens: linear lenses of several model layers, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lenstrain.families.contract import Job
from lenstrain.families.linear import LinearFit, LinearTrainer


class EnsembleTrainer:
    """Linear lenses of several model layers side by side, and the mean of their logits.

    Each is fitted on its own columns. A mean of linear lenses is a linear lens on all of the
    columns.
    """

    def __init__(self, job: Job) -> None:
        if not isinstance(job.Z, torch.Tensor):
            raise TypeError("an ensemble reads activations")
        columns = job.Z.chunk(job.n_model_layers, dim=1)
        self._members = [LinearTrainer(Z.contiguous(), job.rows, job.targets) for Z in columns]

    def fit(self, *args: Any, **options: Any) -> LinearFit:
        """As `Trainer.fit`."""
        return _mean([member.fit(*args, **options) for member in self._members])

    def path(self, strengths: Sequence[float]) -> list[LinearFit]:
        """As `PathTrainer.path`."""
        paths = [member.path(strengths) for member in self._members]
        return [_mean(fits) for fits in zip(*paths, strict=True)]


def _mean(fits: Sequence[LinearFit]) -> LinearFit:
    weights, intercepts, logits, converged = zip(*fits, strict=True)
    return LinearFit(
        np.hstack(weights) / len(fits),
        np.mean(intercepts, axis=0),
        [np.mean(each, axis=0) for each in zip(*logits, strict=True)],
        np.all(converged, axis=0),
    )
