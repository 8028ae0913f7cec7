"""The linear lens: L2-regularised logistic regression on standardised features.

    Z, rows, targets of many concepts --LinearTrainer--> Gram matrices, once
                                      --.fit(counts, strengths)--> LinearFit, again and again

On raw features it is one vector and one number. Gram matrices serve every sample count, strength
and set of targets: what `lenstrain.families.logistic` solves is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.families.checks import check_both_classes, first_targets
from lenstrain.families.logistic import ROUGHLY, Solution, balanced_weights, solve
from lenstrain.families.standardizer import Matrix, Standardizer

DEFAULT_C = 1.0
"""Inverse L2 strength on standardised features; 1 to 10 was best for all poolings and models."""
_SMALL_PRODUCT = 2**21  # multiplications; OpenBLAS has another way for up to 10**6
_EVEN = 16  # columns: what its kernels take at a time


class LinearWeights(NamedTuple):
    """A linear lens as it is shipped."""

    weight: NDArray[np.float32]
    """(hidden,) on raw activations."""
    bias: float
    norm: Standardizer | None = None
    """Of a lens that divides activations by their standardised length: what they are less the mean
    and over that length is multiplied by the weights. All lenses of a model layer share it."""

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """(n,) logits of raw activations X (n, hidden)."""
        X = X.astype(np.float32)
        if self.norm is not None:
            X = self.norm.over_length(X)
        return np.asarray(X @ self.weight + np.float32(self.bias))


class LinearFit(NamedTuple):
    """Linear lenses of some concepts, on standardised features."""

    weight: NDArray[np.float64]
    """(concepts, features)"""
    intercept: NDArray[np.float64]
    """(concepts,)"""
    training_logits: list[NDArray[np.float64]]
    """For each concept, the logits of the rows it was fitted on."""
    converged: NDArray[np.bool_]
    """(concepts,) whether the optimality condition was met."""

    def decision_function(self, Z: Matrix, *, even: bool = False) -> NDArray[np.float64]:
        """(rows, concepts) logits of standardised rows Z (rows, features).

        With `even`, those of a concept on float32 rows on a CPU are the same bits whatever other
        concepts are here.
        """
        # Transposed, so that the logits of a concept lie side by side.
        if not isinstance(Z, torch.Tensor):
            product = (Z @ self.weight.T).T
        elif Z.device.type == "cpu":  # numpy's library is a third faster on some processors
            rows = Z.numpy()
            weight = _even(self.weight, rows) if even else self.weight.astype(rows.dtype)
            product = (weight @ rows.T)[: len(self.weight)].astype(np.float64)
        else:
            product = (torch.from_numpy(self.weight).to(Z) @ Z.T).double().cpu().numpy()
        return np.asarray(product + self.intercept[:, None]).T

    def some(self, numbers: Sequence[int]) -> LinearFit:
        """The lenses of some of the concepts."""
        chosen = list(numbers)
        weight, intercept, logits, converged = self
        some = [logits[number] for number in chosen] if logits else []
        return LinearFit(weight[chosen], intercept[chosen], some, converged[chosen])

    @classmethod
    def joined(cls, fits: Sequence[LinearFit]) -> LinearFit:
        """The lenses of all of them, in their order."""
        return cls(
            np.concatenate([fit.weight for fit in fits]),
            np.concatenate([fit.intercept for fit in fits]),
            [logits for fit in fits for logits in fit.training_logits],
            np.concatenate([fit.converged for fit in fits]),
        )

    def raw(self, standardizer: Standardizer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (concepts, features) and biases (concepts,) on raw features."""
        weight = self.weight / standardizer.scale
        return weight, self.intercept - weight @ standardizer.mean

    def ship(self, number: int, standardizer: Standardizer | None) -> LinearWeights:
        """The lens of one concept on raw features; None where features were not standardised."""
        weight, bias = self.weight[number], self.intercept[number]
        norm = None
        if standardizer is not None:
            weight = weight / standardizer.scale
            if standardizer.n_unit:
                norm = standardizer
            else:
                bias = bias - weight @ standardizer.mean
        return LinearWeights(weight.astype(np.float32), float(np.float32(bias)), norm)


def _even(weight: NDArray[np.float64], rows: NDArray[Any]) -> NDArray[Any]:
    """(more lenses, features) with zeros after the others, in the precision of the rows.

    How a product is computed, and so how it rounds, depends on its size: a single vector, a small
    product and the last columns of a large one are each treated in their own way. So it is made
    large, and even.
    """
    width = max(len(weight), _SMALL_PRODUCT // max(1, rows.size))
    even = np.zeros((-(-width // _EVEN) * _EVEN, weight.shape[1]), rows.dtype)
    even[: len(weight)] = weight
    return even


class LinearTrainer:
    """Fits some concepts, each on the first of its rows, as often as asked.

    Parameters
    ----------
    Z : (vectors, features) standardised features that all concepts share. Gram matrices are
        computed in its precision and on its device, the rest is float64.
    rows : for each concept, the rows of Z to train on.
    targets : for each concept, whether each of those rows expresses it.
    balanced : weigh the rows so that both classes count alike and the mean weight is 1, as
        scikit-learn's ``class_weight="balanced"``.
    """

    def __init__(
        self,
        Z: Matrix,
        rows: Sequence[NDArray[np.intp]],
        targets: Sequence[NDArray[np.bool_]],
        *,
        balanced: bool = True,
    ) -> None:
        self._balanced = balanced
        self._device = Z.device if isinstance(Z, torch.Tensor) else torch.device("cpu")
        self._parts: list[Matrix] = [
            Z[torch.from_numpy(r)] if isinstance(Z, torch.Tensor) else Z[r] for r in rows
        ]
        width = max(map(len, rows))
        self._gram = torch.zeros(len(rows), width, width, dtype=torch.float64, device=self._device)
        for number, part in enumerate(self._parts):
            self._gram[number, : part.shape[0], : part.shape[0]] = gram(part)
        self._targets = targets

    def fit(
        self,
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],
        targets: Sequence[NDArray[np.bool_]] | None = None,
    ) -> LinearFit:
        """Fit some of the concepts.

        Parameters
        ----------
        which : numbers of the concepts.
        counts : of how many of its first rows each of them is to learn.
        strengths : inverse L2 strength of each, as in scikit-learn: against the *sum* of the
            losses.
        targets : other targets for those rows, such as shuffled ones; None for the concepts' own.

        Raises
        ------
        TooFewSamplesError
            If a concept has rows of one class only.
        """
        known = first_targets(self._targets, which, counts, targets)
        problem = self._problem(which, counts, known)
        solution = solve(*problem, self._strengths(strengths))
        problems = zip(which, solution.dual.cpu().numpy(), counts, strict=True)
        weight = [_weights(self._parts[i], dual[None, :n])[0] for i, dual, n in problems]
        return _fit(np.stack(weight), solution, counts)

    def path(self, strengths: Sequence[float]) -> list[LinearFit]:
        """Fit all concepts on all of their rows, well enough to choose one of the strengths.

        Each starts where the one before it ended: the strongest penalty, the smallest, comes first.
        """
        counts = [len(target) for target in self._targets]
        check_both_classes(self._targets)
        problem = self._problem(range(len(counts)), counts, self._targets)
        solutions: list[Solution] = []
        for strength in strengths:
            C = self._strengths([strength] * len(counts))
            start = solutions[-1] if solutions else None
            solutions.append(solve(*problem, C, start=start, tolerance=ROUGHLY))
        duals = torch.stack([solution.dual for solution in solutions], dim=1).cpu().numpy()
        problems = zip(self._parts, duals, counts, strict=True)
        weight = np.stack([_weights(part, dual[:, :n]) for part, dual, n in problems], axis=1)
        return [_fit(*each, counts) for each in zip(weight, solutions, strict=True)]

    def _problem(
        self, which: Sequence[int], counts: Sequence[int], targets: Sequence[NDArray[np.bool_]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gram matrices, targets and weights of the first rows of some concepts, padded."""
        width = max(counts)
        y = np.zeros((len(which), width))
        for place, target in enumerate(targets):
            y[place, : len(target)] = target
        truth = torch.from_numpy(y).to(self._device)
        present = (np.arange(width) < np.array(counts)[:, None]).astype(np.float64)
        importance = torch.from_numpy(present).to(self._device)
        if self._balanced:
            importance = balanced_weights(truth, importance)
        first, last = which[0], which[-1] + 1
        neighbours = list(which) == list(range(first, last))  # whose matrices need no copy
        gram = self._gram[first:last] if neighbours else self._gram[list(which)]
        return gram[:, :width, :width], truth, importance

    def _strengths(self, strengths: Sequence[float]) -> torch.Tensor:
        return torch.tensor(list(strengths), dtype=torch.float64, device=self._device)


def _fit(weight: NDArray[np.float64], solution: Solution, counts: Sequence[int]) -> LinearFit:
    intercept, padded, converged = (part.cpu().numpy() for part in solution[1:])
    logits = [f[:n] for f, n in zip(padded, counts, strict=True)]
    return LinearFit(weight, intercept, logits, converged)


def gram(part: Matrix) -> torch.Tensor:
    """(n, n) products of all rows with all."""
    if not isinstance(part, torch.Tensor):
        return torch.from_numpy((part @ part.T).toarray())
    if part.device.type == "cpu":  # numpy sees that it is symmetric and computes one half
        return torch.from_numpy(part.numpy() @ part.numpy().T)
    return part @ part.T


def _weights(part: Matrix, duals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(problems, features) the rows, weighted by each problem's dual variables (problems, rows)."""
    if isinstance(part, torch.Tensor):
        rows = part[: duals.shape[1]]
        return np.asarray((torch.from_numpy(duals).to(rows) @ rows).double().cpu().numpy())
    return np.asarray((part[: duals.shape[1]].T @ duals.T).T)
