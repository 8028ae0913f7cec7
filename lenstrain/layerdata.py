"""One model layer of a dataset: its vectors by split, and what the tasks make of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lenstrain.dataset import CALIBRATION, TEST, TRAIN, LensDataset, Rows, Task
from lenstrain.linear import LinearBatch, Standardizer, fit_linear_batch
from lenstrain.settings import FitSettings


class LayerData:
    """The vectors of one model layer, by split, and what the tasks make of them."""

    def __init__(self, dataset: LensDataset, model_layer: int, settings: FitSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self.X = dataset.vectors(model_layer)
        vector_split = dataset.split[dataset.vector_sample]
        self.vectors = [np.flatnonzero(vector_split == split) for split in (TRAIN, CALIBRATION, TEST)]
        self.samples = [dataset.vector_sample[vectors] for vectors in self.vectors]
        self.standardizer = Standardizer.fit(self.X[self.vectors[TRAIN]])

    def fit(self, tasks: Sequence[Task], n_samples: Sequence[int], strengths: Sequence[float]) -> LinearBatch:
        """Fit each task on its first `n_samples` positives and the negatives that go with them, with its own C."""
        rows, targets = zip(
            *(self.training_rows(task, n) for task, n in zip(tasks, n_samples, strict=True)), strict=True
        )
        return fit_linear_batch(self.X, rows, targets, C=strengths, balanced=True, standardizer=self.standardizer)

    def training_rows(self, task: Task, n: int) -> tuple[Rows, NDArray[np.bool_]]:
        """Vectors of the first n positives and their negatives, and which are which."""
        positives = self.dataset.vectors_of(task.positives[TRAIN][:n])
        negatives = self.dataset.vectors_of(task.negatives[TRAIN][: self.settings.n_negatives(n)])
        target = np.arange(len(positives) + len(negatives)) < len(positives)
        return np.concatenate([positives, negatives]), target

    def logits(self, fitted: LinearBatch, split: int) -> NDArray[np.float64]:
        """(vectors of the split, tasks)"""
        return fitted.decision_function(self.X[self.vectors[split]])

    def drawn(
        self, task: Task, split: int, logits: NDArray[np.float64], positives: Rows | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """y and logits of the task's own positives, or of some of them, and negatives in a split."""
        mark = np.zeros(self.dataset.n_samples, np.int8)
        mark[task.negatives[split]] = 1
        mark[task.positives[split] if positives is None else positives] = 2
        found = mark[self.samples[split]]
        return found[found > 0] == 2, logits[found > 0]

    def judged(
        self, task: Task, split: int, logits: NDArray[np.float64], only: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """y and logits of all samples in a split but those of the concept's ancestors and descendants.

        `only` (vectors of the split,) restricts the vectors further.
        """
        is_positive, is_related = np.zeros((2, self.dataset.n_samples), np.bool_)
        is_positive[task.positives[split]] = is_related[task.related] = True
        keep = ~is_related[self.samples[split]]
        if only is not None:
            keep &= only
        return is_positive[self.samples[split]][keep], logits[keep]
