"""Lenses as torch tensors: logits on the device of the activations, a product a model layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.families.weights import n_inputs
from lenstrain.pack.lens import Lens, shared_norm

_CHUNK_BYTES = 256 * 2**20  # of the first hidden layer of many networks


class _Networks(NamedTuple):
    """MLP lenses of one model layer, as `lenstrain.families.mlp.MlpWeights`, concepts first."""

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor
    b2: torch.Tensor
    w3: torch.Tensor
    b3: torch.Tensor


class LensScorer:
    """Scores activations with many lenses at once, in float32: the sum of a product for each model
    layer.

    Parameters
    ----------
    lenses : what to score with; their order is that of the columns of scores.
    device : where to compute.
    """

    def __init__(self, lenses: Sequence[Lens], device: torch.device) -> None:
        self.device = device
        self.model_layers = tuple(sorted({layer for lens in lenses for layer in lens.model_layers}))
        self._weights = {layer: _weights(lenses, layer, device) for layer in self.model_layers}
        self._norms = {layer: _norm(lenses, layer, device) for layer in self.model_layers}
        place, n_products = _places(lenses, self.model_layers)
        self._is_ragged = bool((place == n_products).any())
        self._place = torch.from_numpy(place).to(device)
        biases = [
            lens.weights.bias if isinstance(lens.weights, LinearWeights) else 0.0 for lens in lenses
        ]
        self._biases = torch.tensor(biases, dtype=torch.float32, device=device)

    def product(self, model_layer: int, X: torch.Tensor) -> torch.Tensor:
        """(n, lenses that read this model layer) what raw activations X (n, hidden) in float32 add
        to their logits."""
        weights = self._weights[model_layer]
        if isinstance(weights, _Networks):
            return _forward(weights, X)
        if (norm := self._norms[model_layer]) is not None:
            X = norm.over_length(X)
        # As a vector where it is one: a product with a matrix of one row is several times slower.
        return (weights @ X[0])[None] if len(X) == 1 else X @ weights.T

    def combine(self, products: Sequence[torch.Tensor]) -> torch.Tensor:
        """(n, lenses) logits from the products of all model layers, in the order of `model_layers`.

        Gathered rather than added in place: so the sum of an ensemble has one order on a GPU, too.
        """
        ragged = [products[0].new_zeros(len(products[0]), 1)] * self._is_ragged
        side_by_side = torch.cat([*products, *ragged], dim=1)
        scores = side_by_side.index_select(1, self._place[0]).add_(self._biases)
        for place in self._place[1:]:
            scores += side_by_side.index_select(1, place)
        return scores


def hidden_size(lens: Lens) -> int:
    """Size of the activations that a lens reads."""
    return n_inputs(lens.weights) // len(lens.model_layers)


def _weights(
    lenses: Sequence[Lens], model_layer: int, device: torch.device
) -> torch.Tensor | _Networks:
    """Of the lenses that read a model layer: (lenses, hidden), or networks."""
    here = [lens for lens in lenses if model_layer in lens.model_layers]
    networks = [lens.weights for lens in here if isinstance(lens.weights, MlpWeights)]
    if networks:
        stacked = (np.stack(values) for values in zip(*networks, strict=True))
        return _Networks(*(torch.from_numpy(values).to(device) for values in stacked))
    rows = [
        np.split(lens.weights.weight, len(lens.model_layers))[lens.model_layers.index(model_layer)]
        for lens in here
        if isinstance(lens.weights, LinearWeights)
    ]
    return torch.from_numpy(np.array(rows, np.float32)).to(device)


def _norm(lenses: Sequence[Lens], model_layer: int, device: torch.device) -> Standardizer | None:
    """What they share that divide by the length of an activation, as tensors."""
    if (norm := shared_norm(lenses, model_layer)) is None:
        return None
    mean, scale = (torch.from_numpy(each).to(device) for each in norm[:2])
    return Standardizer(mean, scale, norm.n_unit)


def _places(lenses: Sequence[Lens], model_layers: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    """(most model layers of a lens, lenses) the columns of each lens's products, when all products
    stand side by side; and their number.

    A lens that reads fewer model layers gets the column past the last instead.
    """
    found: list[list[int]] = [[] for _ in lenses]
    column = 0
    for model_layer in model_layers:
        for number, lens in enumerate(lenses):
            if model_layer in lens.model_layers:
                found[number].append(column)
                column += 1
    place = np.full((max(map(len, found)), len(lenses)), column)
    for number, columns in enumerate(found):
        place[: len(columns), number] = columns
    return place, column


def _forward(networks: _Networks, X: torch.Tensor) -> torch.Tensor:
    """(n, networks) logits of X (n, hidden), in chunks of rows that fit the memory."""
    count, _, width = networks.w1.shape
    chunk = max(1, _CHUNK_BYTES // (8 * width * count))
    return torch.cat(
        [_forward_rows(networks, X[start : start + chunk]) for start in range(0, len(X), chunk)]
    )


def _forward_rows(networks: _Networks, X: torch.Tensor) -> Any:
    # A feature far from 0 adds a large number, and b1 subtracts it again: in the precision of b1.
    inner = torch.matmul(X, networks.w1).double() + networks.b1[:, None]
    inner = torch.relu(inner).float()  # (networks, n, 128)
    inner = torch.relu(torch.baddbmm(networks.b2[:, None], inner, networks.w2))  # (networks, n, 64)
    return (torch.bmm(inner, networks.w3[:, :, None])[:, :, 0] + networks.b3[:, None]).T
