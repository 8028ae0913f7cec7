"""The mean-difference lens: the direction from the mean of the negatives to that of the positives.

This is mass-mean probing (Marks and Tegmark 2023, The Geometry of Truth, arXiv:2310.06824); nothing
is searched for. The logit is that of the linear discriminant (Fisher 1936, The use of multiple
measurements in taxonomic problems) in the one dimension along that direction, with both classes
equally likely. For standardised rows z, with d = mean+ - mean- and m = (mean+ + mean-) / 2,

    t = (z - m) . d / |d|,    logit = t |d| / s^2,    s^2 = (var+(t) + var-(t)) / 2

Standardisation is folded in, so a lens is one vector and one number on raw activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.families.checks import first_targets
from lenstrain.families.linear import LinearFit

_SMALLEST_VARIANCE = 0.05
"""Of s^2, as a share of |d|^2: no class mean is farther out than a logit of 10, as odds 22,000 to
1. Otherwise two samples or duplicates, which do not vary within a class, would be infinitely
certain."""


class MeanDifferenceTrainer:
    """Fits some concepts, each on the first of its rows, as often as asked.

    Parameters
    ----------
    Z : (vectors, features) standardised features that all concepts share.
    rows : for each concept, the rows of Z to train on.
    targets : for each concept, whether each of those rows expresses it.
    """

    def __init__(
        self,
        Z: torch.Tensor,
        rows: Sequence[NDArray[np.intp]],
        targets: Sequence[NDArray[np.bool_]],
    ) -> None:
        self._parts = [Z[torch.from_numpy(chosen)].double().cpu().numpy() for chosen in rows]
        self._targets = targets

    def fit(
        self,
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],  # noqa: ARG002  # this family has none
        targets: Sequence[NDArray[np.bool_]] | None = None,
    ) -> LinearFit:
        """As `lenstrain.families.contract.Trainer.fit`."""
        known = first_targets(self._targets, which, counts, targets)
        parts = [self._parts[i][:count] for i, count in zip(which, counts, strict=True)]
        return _fit(zip(parts, known, strict=True))


def _fit(problems: Iterable[tuple[NDArray[np.float64], NDArray[np.bool_]]]) -> LinearFit:
    """One lens for each set of standardised rows and targets."""
    weight, intercept, logits = [], [], []
    for Z, target in problems:
        along, middle = _discriminant(Z, target)
        weight.append(along)
        intercept.append(-(along @ middle))
        logits.append(Z @ along + intercept[-1])
    return LinearFit(np.array(weight), np.array(intercept), logits, np.ones(len(weight), np.bool_))


def _discriminant(
    Z: NDArray[np.float64], target: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights d / s^2 on rows Z, and the point m where the logit is 0; both (hidden,)."""
    present, absent = Z[target].mean(axis=0), Z[~target].mean(axis=0)
    d, middle = present - absent, (present + absent) / 2
    length = float(np.linalg.norm(d))
    # Means of the same rows, added up in another order, differ by rounding.
    if length <= 1e-12 * max(1.0, float(np.abs(Z).max())) * np.sqrt(len(d)):
        return np.zeros_like(d), middle
    t = (Z - middle) @ d / length
    variance = (t[target].var() + t[~target].var()) / 2
    return d / max(variance, _SMALLEST_VARIANCE * length**2), middle
