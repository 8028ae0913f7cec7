"""What the model represents against what it writes: a concept's activation and text lens compared.

Both are asked about the same held-out samples. Reading the output would miss a concept that is
represented and not written; a concept that is written and not represented was found in words alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from lenstrain.compare.heldout import held_out_logits
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.pack.pack import LensPack


class Agreement(NamedTuple):
    """Two lenses of one concept, on held-out samples with a completion."""

    kappa: float
    """Cohen's kappa of their decisions, classes weighing alike: 1 agree, 0 as by chance."""
    correlation: float
    """Spearman's rank correlation of their logits over all these samples."""
    both: float
    """Share of the concept's samples on which both say that it is present."""
    represented_only: float
    """Share on which the activation lens alone does."""
    written_only: float
    """Share on which the text lens alone does."""
    neither: float
    n_positive: int
    n_negative: int


def agreements(
    activations: LensPack, text: LensPack, dataset: LensDataset, texts: LensDataset
) -> dict[str, Agreement]:
    """The agreement of two packs, by concept, where there are both lenses and samples.

    Parameters
    ----------
    dataset, texts : what each of the packs was trained on.
    """
    a, b = held_out_logits(activations, dataset, TEST), held_out_logits(text, texts, TEST)
    shared, rows_a, rows_b = np.intersect1d(a.samples, b.samples, return_indices=True)
    columns = {lens.concept: (i, lens.threshold) for i, lens in enumerate(text)}
    found = {}
    for i, lens in enumerate(activations):
        if lens.concept not in columns:
            continue
        j, threshold = columns[lens.concept]
        positives = dataset.positives(lens.concept)
        family = sorted(dataset.hierarchy.family(lens.concept))
        related = np.concatenate([dataset.labelled(c) for c in family])
        y = np.isin(shared, positives)
        keep = y | ~np.isin(shared, related)
        one, other = a.logits[rows_a[keep], i], b.logits[rows_b[keep], j]
        if y.any() and not y[keep].all():
            found[lens.concept] = _agreement(y[keep], one, other, lens.threshold, threshold)
    return found


def _agreement(
    y: NDArray[np.bool_],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    threshold_a: float,
    threshold_b: float,
) -> Agreement:
    says_a, says_b = a >= threshold_a, b >= threshold_b
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    observed = float(weight @ (says_a == says_b))
    p, q = float(weight @ says_a), float(weight @ says_b)
    chance = p * q + (1 - p) * (1 - q)
    is_flat = np.ptp(a) == 0 or np.ptp(b) == 0
    return Agreement(
        kappa=(observed - chance) / (1 - chance) if chance < 1 else np.nan,
        correlation=np.nan if is_flat else float(scipy.stats.spearmanr(a, b).statistic),
        both=float((says_a & says_b)[y].mean()),
        represented_only=float((says_a & ~says_b)[y].mean()),
        written_only=float((~says_a & says_b)[y].mean()),
        neither=float((~says_a & ~says_b)[y].mean()),
        n_positive=int(y.sum()),
        n_negative=int((~y).sum()),
    )
