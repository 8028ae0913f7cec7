"""The discriminant lens: linear discriminant analysis with one covariance for all concepts.

A concept has a dozen positives, the store thousands of vectors of other concepts, which tell how
activations vary within a concept (Fisher 1936; Friedman 1989, Regularized discriminant analysis).

    training rows, what each expresses --Within.fit--> covariance, inverted once a model layer
    Within + rows of some concepts --DiscriminantTrainer.fit(counts)--> LinearFit

With m+ the mean of a concept's positives, m- that of all training rows but its own, its ancestors'
and its descendants', S the within-class covariance and d the number of features that vary,

    w = (S + tr(S)/d I)^-1 (m+ - m-),    logit = w . (z - (m+ + m-) / 2) / sqrt(w . (m+ - m-))

which is in deviations of the logit within a class: so logits of several model layers can be
averaged. Where a store has texts of no concept, their mean is a share of m-. Less shrinkage than
that ranks a pack's own negatives better and natural text worse; so it is fixed
(`benchmarks/quality.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from lenstrain.families.checks import first_targets
from lenstrain.families.contract import Job, Rows
from lenstrain.families.linear import LinearFit, gram

_BLOCK_ROWS = 4096  # of a sum: the same on any number of cores, since other blocks round otherwise
_BLOCKS = 8  # in memory at a time
_CONSTANT = 1e-10  # of the largest variance: a feature that varies by rounding
_RIDGE = 1e-6  # of a row: concepts with the same rows would have no solution

Map = Callable[..., Iterable[Any]]


class Within(NamedTuple):
    """What all lenses of some model layers share, from training rows."""

    inverses: list[torch.Tensor]
    """For each model layer, (features, features) that of its covariance."""
    total: torch.Tensor
    """(features,) sum of all rows."""
    n_rows: int

    @classmethod
    def fit(cls, Z: torch.Tensor, classes: Any, n_parts: int, over: Map = map) -> Within:
        """Measure rows Z (rows, features), of `n_parts` model layers side by side.

        What varies within a concept is what is left of a row after the means of the concepts that
        it expresses, by least squares.

        Parameters
        ----------
        classes : sparse (rows, concepts), 1 where a row expresses a concept; rows without any do
            not count, and are zero in Z.
        over : `map`, or that of a pool: the result is the same, bit for bit.
        """
        width, starts = Z.shape[1] // n_parts, range(0, len(Z), _BLOCK_ROWS)

        def sums(start: int) -> list[torch.Tensor]:
            rows = slice(start, start + _BLOCK_ROWS)
            of_classes = classes[rows].T @ Z[rows].cpu().numpy()
            return [Z[rows].sum(dim=0), torch.from_numpy(of_classes)]

        total, of_classes = _sum_in_order(sums, starts, over)
        sizes = (classes.T @ classes).astype(np.float64) + _RIDGE * scipy.sparse.eye_array(
            classes.shape[1]
        )
        means = splu(sizes.tocsc()).solve(of_classes.numpy()).astype(np.float32)

        def squares(start: int) -> list[torch.Tensor]:
            rows = slice(start, start + _BLOCK_ROWS)
            rest = Z[rows] - torch.from_numpy(classes[rows] @ means).to(Z)
            columns = range(0, Z.shape[1], width)
            return [gram(rest[:, first : first + width].T) for first in columns]

        n_rows = int((np.diff(classes.indptr) > 0).sum())
        spread = _sum_in_order(squares, starts, over)
        return cls([_inverse(each / n_rows) for each in spread], total, n_rows)

    def mean_without(self, Z: torch.Tensor, rows: Rows) -> torch.Tensor:
        """(features,) the mean of all rows but some of Z, by number."""

        def own(start: int) -> list[torch.Tensor]:
            return [Z[torch.from_numpy(rows[start : start + _BLOCK_ROWS])].sum(dim=0)]

        found = _sum_in_order(own, range(0, len(rows), _BLOCK_ROWS), map)
        left = max(1, self.n_rows - len(rows))
        return (self.total - found[0] if found else self.total) / left

    def solve(self, difference: torch.Tensor) -> torch.Tensor:
        """(concepts, features) weights, the mean over model layers of those whose logits have
        deviation 1 within a class; zeros where the means of a concept (concepts, features) do not
        differ."""
        found, first = [], 0
        for inverse in self.inverses:
            d = difference[:, first : first + len(inverse)]
            weight = d @ inverse
            deviation = (weight * d).sum(dim=1, keepdim=True).sqrt()
            found.append(weight / (deviation + (deviation == 0)) / len(self.inverses))
            first += len(inverse)
        return torch.cat(found, dim=1)


class DiscriminantTrainer:
    """Fits some concepts, each on the first of its rows, as often as asked: by their means."""

    def __init__(self, job: Job) -> None:
        Z, within = job.Z, job.shared
        if not isinstance(within, Within):
            raise TypeError("a discriminant is fitted with what all concepts share")
        self._Z, self._within, self._rows, self._targets = Z, within, job.rows, job.targets
        rest = torch.stack([within.mean_without(Z, rows) for rows in job.apart])
        if job.background is not None:
            share = torch.tensor(job.background_weights, dtype=rest.dtype, device=rest.device)
            rest += share[:, None] * (job.background.to(rest).mean(dim=0) - rest)
        self._rest = rest

    def fit(
        self,
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],  # noqa: ARG002  # this family has none
        targets: Sequence[NDArray[np.bool_]] | None = None,
    ) -> LinearFit:
        """As `lenstrain.families.contract.Trainer.fit`."""
        known = first_targets(self._targets, which, counts, targets)
        rows = [self._rows[i][:count] for i, count in zip(which, counts, strict=True)]
        own = [
            self._take(some[y]).double().mean(dim=0) for some, y in zip(rows, known, strict=True)
        ]
        positive, negative = torch.stack(own), self._rest[list(which)]
        weight = self._within.solve(positive - negative)
        intercept = -(weight * (positive + negative)).sum(dim=1) / 2
        along = (self._take(some) @ w for some, w in zip(rows, weight.to(self._Z), strict=True))
        logits = [each.double() + b for each, b in zip(along, intercept, strict=True)]
        return LinearFit(
            weight.cpu().numpy(),
            intercept.cpu().numpy(),
            [each.cpu().numpy() for each in logits],
            np.ones(len(weight), np.bool_),
        )

    def _take(self, rows: Rows) -> torch.Tensor:
        """(rows, features) gathered each time: to keep them all takes longer, and memory."""
        return self._Z[torch.from_numpy(rows)]


def _sum_in_order(
    term: Callable[[int], list[torch.Tensor]], starts: Sequence[int], over: Map
) -> list[torch.Tensor]:
    """The sums of some terms in float64, added in their order, a few of them in memory."""
    sums: list[torch.Tensor] = []
    for first in range(0, len(starts), _BLOCKS):
        for parts in over(term, starts[first : first + _BLOCKS]):
            sums = sums or [torch.zeros_like(part, dtype=torch.float64) for part in parts]
            for own, part in zip(sums, parts, strict=True):
                own += part
    return sums


def _inverse(covariance: torch.Tensor) -> torch.Tensor:
    """Of a covariance (features, features) that is shrunk: its mean variance is added to each. So
    its condition is at most 1 + the number of features, and the inverse as good as a solution."""
    variances = covariance.diagonal()
    varying = variances > _CONSTANT * variances.max()
    mean = variances.sum() / max(1, int(varying.sum()))
    eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    factor = torch.linalg.cholesky(covariance + (mean if mean > 0 else 1.0) * eye)
    return torch.cholesky_inverse(factor)
