"""The MLP lens: a hidden-128-64-1 network with rectified linear units, for many concepts at once.

It sees what no direction can, such as a concept that is present on either side of a plane, at a
hundred times the numbers of a linear lens. All networks of a batch take their steps together, as
batched matrix products; no network reaches into another. The training is plain:

- weights start as He et al. 2015 (Delving Deep into Rectifiers, arXiv:1502.01852) have them, each
  concept's from a generator of its own; biases start at 0;
- the loss is binary cross-entropy with both classes weighted alike;
- AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) sees all rows at every step. Over 93 concepts
  on activations of SmolLM2-135M, 50 steps of 0.005 did no worse than 50 epochs of minibatches of 32
  with 0.001 (calibration AUROC 0.805 and 0.797), at a third of the time; steps of 0.0003 and 0.001
  were too small (0.745, 0.786).

Standardisation is folded into the first layer, so a lens works on raw activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.families.checks import first_targets
from lenstrain.families.standardizer import Standardizer

WIDTHS = (128, 64)
"""Units of the two hidden layers."""

EPOCHS = 50
_STEP = 5e-3
_WEIGHT_DECAY = 1e-2  # decoupled: 50 steps shrink a weight by 0.25 %
_SMALLEST_SPREAD = 1e-6  # of a standardised feature over a concept's rows; less is rounding
_BATCH_BYTES = 256 * 2**20

# w1, b1, w2, b2, w3, b3, each with the concepts of a batch as first axis
_Network = tuple[torch.Tensor, ...]


class MlpWeights(NamedTuple):
    """One network as shipped, on raw activations: 1.3 MB at hidden size 2,560."""

    w1: NDArray[np.float32]
    """(hidden, 128), 0 where a feature does not vary over the concept's rows."""
    b1: NDArray[np.float64]
    """(128,), float64: a feature far from 0 adds much here that the product takes away."""
    w2: NDArray[np.float32]
    """(128, 64)"""
    b2: NDArray[np.float32]
    w3: NDArray[np.float32]
    b3: NDArray[np.float32]
    """()"""

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(n,) logits of raw activations X (n, hidden)."""
        inner = np.maximum(X.astype(np.float64) @ self.w1.astype(np.float64) + self.b1, 0)
        inner = np.maximum(inner @ self.w2.astype(np.float64) + self.b2, 0)
        return np.asarray(inner @ self.w3.astype(np.float64) + self.b3)


class MlpFit(NamedTuple):
    """Networks of some concepts on standardised features, which `MlpTrainer.fit` gives."""

    networks: list[MlpWeights]
    converged: NDArray[np.bool_]
    """(concepts,) whether the loss stayed finite: a network stops after its epochs, not at an
    optimum."""
    training_logits: list[NDArray[np.float64]]
    """For each concept, the logits of the rows it was fitted on; none of some of the networks."""

    def decision_function(self, Z: torch.Tensor) -> NDArray[np.float64]:
        """(rows, concepts) logits of standardised rows Z (rows, features), in float32."""
        return np.stack([_logits(network, Z) for network in self.networks], axis=1)

    def some(self, numbers: Sequence[int]) -> MlpFit:
        """The networks of some of the concepts."""
        chosen = list(numbers)
        return MlpFit([self.networks[number] for number in chosen], self.converged[chosen], [])

    def ship(self, number: int, standardizer: Standardizer | None) -> MlpWeights:
        """The network of one concept on raw features; None where features were not standardised."""
        network = self.networks[number]
        if standardizer is None:
            return network
        w1 = (network.w1 / standardizer.scale[:, None]).astype(np.float32)
        # With the weight as rounded, so that a mean far from 0 drops out to full precision.
        return network._replace(w1=w1, b1=network.b1 - standardizer.mean @ w1.astype(np.float64))


def _logits(network: MlpWeights, Z: torch.Tensor) -> NDArray[np.float64]:
    w1, b1, w2, b2, w3, b3 = (
        torch.as_tensor(part, dtype=torch.float32, device=Z.device) for part in network
    )
    inner = torch.relu(torch.relu(Z @ w1 + b1) @ w2 + b2)
    return np.asarray((inner @ w3 + b3).double().cpu().numpy())


class MlpTrainer:
    """Fits some concepts, each on the first of its rows, as often as asked.

    Parameters
    ----------
    Z : (vectors, features) standardised features that all concepts share.
    rows : for each concept, the rows of Z to train on.
    targets : for each concept, whether each of those rows expresses it.
    seeds : number from which each concept's first weights are drawn, together with `seed`.
    epochs : steps to take; each sees all rows.
    """

    def __init__(
        self,
        Z: torch.Tensor,
        rows: Sequence[NDArray[np.intp]],
        targets: Sequence[NDArray[np.bool_]],
        seeds: Sequence[int],
        *,
        epochs: int = EPOCHS,
        seed: int = 0,
    ) -> None:
        self._Z, self._rows, self._targets, self._seeds = Z, rows, targets, seeds
        self._epochs, self._seed = epochs, seed

    def fit(
        self,
        which: Sequence[int],
        counts: Sequence[int],
        strengths: Sequence[float],  # noqa: ARG002  # this family has none
        targets: Sequence[NDArray[np.bool_]] | None = None,
    ) -> MlpFit:
        """As `lenstrain.families.contract.Trainer.fit`."""
        known = first_targets(self._targets, which, counts, targets)
        rows = [self._rows[i][:count] for i, count in zip(which, counts, strict=True)]
        generators = [np.random.default_rng([self._seed, self._seeds[i]]) for i in which]
        hidden = self._Z.shape[1]
        fitted = _fit(self._take, rows, known, generators, hidden, self._epochs)
        logits = [_logits(*each) for each in zip(fitted[0], map(self._take, rows), strict=True)]
        return MlpFit(*fitted, logits)

    def _take(self, rows: NDArray[np.intp]) -> torch.Tensor:
        """Rows of Z on its device: all of Z is never copied."""
        return self._Z[torch.from_numpy(rows)]


def _fit(
    take: Callable[[NDArray[np.intp]], torch.Tensor],
    rows: Sequence[NDArray[np.intp]],
    targets: Sequence[NDArray[np.bool_]],
    generators: Sequence[np.random.Generator],
    hidden: int,
    epochs: int,
) -> tuple[list[MlpWeights], NDArray[np.bool_]]:
    """One network for each entry of `rows`, where no feature varies one whose logit is 0; and
    (concepts,) whether its loss stayed finite.

    Besides the result, this needs about 0.3 GB, or what one concept needs if that is more.

    Parameters
    ----------
    take : gives standardised rows (n, hidden) on the device that trains.
    """
    networks, converged = [_zeros(hidden)] * len(rows), np.zeros(len(rows), np.bool_)
    for chosen in _batches([len(r) for r in rows], hidden):
        own = [rows[i] for i in chosen], [targets[i] for i in chosen]
        Z, y, importance = _gather(take, *own)
        spread = Z.amax(dim=1) - Z.amin(dim=1)  # padding repeats a row
        Z *= (spread > _SMALLEST_SPREAD).unsqueeze(1)
        varying = (spread > _SMALLEST_SPREAD).cpu().numpy()
        used = np.flatnonzero(varying.any(axis=0))
        network = _draw(varying[:, used], [generators[i] for i in chosen], Z.device)
        problem = Z[:, :, torch.from_numpy(used).to(Z.device)], y, importance
        converged[chosen] = _train(network, problem, epochs).cpu().numpy()
        w1, b1, w2, b2, w3, b3 = (part.detach().cpu().numpy() for part in network)
        for place, i in enumerate(chosen):
            if varying[place].any():
                first = np.zeros((hidden, WIDTHS[0]), np.float32)
                first[used] = w1[place]
                rest = w2[place], b2[place, 0], w3[place, :, 0], b3[place, 0, 0]
                networks[i] = MlpWeights(first, b1[place, 0].astype(np.float64), *rest)
    return networks, converged


def _zeros(hidden: int) -> MlpWeights:
    """A network whose logit is 0."""
    widths = (hidden, WIDTHS[0]), WIDTHS[:1], WIDTHS, WIDTHS[1:], WIDTHS[1:], ()
    w1, b1, *rest = (np.zeros(shape, np.float32) for shape in widths)
    return MlpWeights(w1, b1.astype(np.float64), *rest)


def _batches(lengths: Sequence[int], hidden: int) -> list[list[int]]:
    """Concepts of similar length together, few enough that their rows and networks fit memory."""
    batches: list[list[int]] = []
    width = 0
    for concept in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Rows twice (as gathered and as used), each layer's output and gradient; weights, gradients
        # and two moments.
        size = 4 * (width * (2 * hidden + 4 * sum(WIDTHS)) + 4 * hidden * WIDTHS[0])
        if not batches or size * (len(batches[-1]) + 1) > _BATCH_BYTES:
            batches.append([])
            width = lengths[concept]
        batches[-1].append(concept)
    return batches


def _gather(
    take: Callable[[NDArray[np.intp]], torch.Tensor],
    rows: Sequence[NDArray[np.intp]],
    targets: Sequence[NDArray[np.bool_]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised rows (batch, n, hidden), targets and row weights (batch, n).

    The weights of a concept sum to 1. Padding repeats its first row with weight 0.
    """
    width = max(len(r) for r in rows)
    y, importance = np.zeros((2, len(rows), width), np.float32)
    padded = np.empty((len(rows), width), np.intp)
    for i, (chosen, target) in enumerate(zip(rows, targets, strict=True)):
        n = len(chosen)
        padded[i, :n], padded[i, n:] = chosen, chosen[0]
        y[i, :n] = target
        importance[i, :n] = np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
    Z = torch.stack([take(chosen) for chosen in padded])
    return Z, torch.from_numpy(y).to(Z.device), torch.from_numpy(importance).to(Z.device)


def _draw(
    varying: NDArray[np.bool_], generators: Sequence[np.random.Generator], device: torch.device
) -> _Network:
    """First weights, 0 for a feature that does not vary, drawn for the others as if it were absent.

    `varying` is (concepts, features).
    """
    first, second = WIDTHS
    w1 = np.zeros((*varying.shape, first), np.float32)
    w2 = np.empty((len(varying), first, second), np.float32)
    w3 = np.empty((len(varying), second, 1), np.float32)
    for i, generator in enumerate(generators):
        n, draw = int(varying[i].sum()), generator.standard_normal
        w1[i, varying[i]] = draw((n, first), np.float32) * np.sqrt(2 / max(n, 1))
        w2[i] = draw((first, second), np.float32) * np.sqrt(2 / first)
        w3[i] = draw((second, 1), np.float32) * np.sqrt(1 / second)
    layers = [(torch.from_numpy(w), torch.zeros(len(w), 1, w.shape[2])) for w in (w1, w2, w3)]
    return tuple(part.to(device).requires_grad_() for layer in layers for part in layer)


def _train(network: _Network, problem: Sequence[torch.Tensor], epochs: int) -> torch.Tensor:
    """Train in place on rows, targets and row weights.

    Returns
    -------
    (batch,) whether the loss of each concept is finite in the end.
    """
    optimizer = torch.optim.AdamW(network, lr=_STEP, weight_decay=_WEIGHT_DECAY, fused=True)
    with torch.enable_grad():
        for _ in range(epochs):
            optimizer.zero_grad()
            # A sum over concepts: the gradient of each is its own.
            torch.autograd.backward(_losses(network, *problem).sum())
            optimizer.step()
    with torch.no_grad():
        return _losses(network, *problem).isfinite()


def _losses(
    network: _Network, Z: torch.Tensor, y: torch.Tensor, importance: torch.Tensor
) -> torch.Tensor:
    """(batch,) balanced cross-entropy of each concept."""
    w1, b1, w2, b2, w3, b3 = network
    inner = torch.baddbmm(b1, Z, w1).relu()
    inner = torch.baddbmm(b2, inner, w2).relu()
    logits = torch.baddbmm(b3, inner, w3).squeeze(2)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    return (importance * loss).sum(dim=1)
