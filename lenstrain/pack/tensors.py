"""The weights of lenses as named tensors, by family.

    linear, mean-difference  weight (lenses, hidden) and bias (lenses,), on raw activations
    ensemble, discriminant   the same, hidden being that of its model layers side by side
    discriminant             norm.model_layer (model layers,) int32, norm.mean and norm.scale (model
                             layers, hidden), unless it was fitted without unit norm: weights go
                             with (x - mean) / |(x - mean) / scale|, a model layer at a time
    mlp                      w1 (lenses, hidden, 128), b1 (lenses, 128), w2 (lenses, 128, 64),
                             b2 (lenses, 64), w3 (lenses, 64), b3 (lenses,)
    text                     weight as compressed sparse rows (weight.indptr, .indices, .data),
                             bias; idf (terms,)
    all but text             direction (lenses, hidden), float16: what to steer along, as
                             `lenstrain.pack.lens.Direction`

float32 but for b1 of the MLP, where a feature far from 0 needs more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.families.weights import Weights
from lenstrain.pack.lens import Lens, shared_norm

Tensors = Mapping[str, NDArray[Any]]


def pack_weights(weights: Sequence[Weights], family: str) -> dict[str, NDArray[Any]]:
    """Named tensors of some lenses of one family."""
    if family == "mlp":
        networks = [each for each in weights if isinstance(each, MlpWeights)]
        fields = MlpWeights._fields if networks else ()
        return {name: np.stack([getattr(each, name) for each in networks]) for name in fields}
    linear = [each for each in weights if isinstance(each, LinearWeights)]
    weight = np.array([each.weight for each in linear], np.float32)
    bias = np.array([each.bias for each in linear], np.float32)
    if family != "text":
        return {"weight": weight, "bias": bias}
    sparse = scipy.sparse.csr_array(weight.reshape(len(linear), -1))
    return {
        "weight.indptr": sparse.indptr.astype(np.int64),
        "weight.indices": sparse.indices.astype(np.int32),
        "weight.data": sparse.data,
        "bias": bias,
    }


def unpack_weights(tensors: Tensors, family: str, n_terms: int = 0) -> list[Weights]:
    """The lenses in named tensors; `n_terms` is the number of terms that text lenses know.

    Raises
    ------
    KeyError, ValueError
        If a tensor is missing or they do not fit together.
    """
    if family == "mlp":
        columns = [tensors[name] for name in MlpWeights._fields]
        return [MlpWeights(*row) for row in zip(*columns, strict=True)]
    if family == "text":
        parts = tensors["weight.data"], tensors["weight.indices"], tensors["weight.indptr"]
        sparse = scipy.sparse.csr_array(parts, shape=(len(tensors["bias"]), n_terms))
        sparse.check_format(full_check=True)  # else too large an index is written past the end
        weight = sparse.toarray()
    else:
        weight = tensors["weight"]
    rows = zip(weight, tensors["bias"], strict=True)
    return [LinearWeights(row, float(bias)) for row, bias in rows]


def pack_norms(lenses: Sequence[Lens]) -> dict[str, NDArray[Any]]:
    """What lenses share that divide activations by their length, once for each model layer."""
    model_layers = sorted({number for lens in lenses for number in lens.model_layers})
    norms = {number: shared_norm(lenses, number) for number in model_layers}
    found = {number: norm for number, norm in norms.items() if norm is not None}
    if not found:
        return {}
    return {
        "norm.model_layer": np.array([*found], np.int32),
        "norm.mean": np.array([norm.mean for norm in found.values()], np.float32),
        "norm.scale": np.array([norm.scale for norm in found.values()], np.float32),
    }


def with_norms(
    weights: Sequence[Weights], model_layers: Sequence[tuple[int, ...]], tensors: Tensors
) -> list[Weights]:
    """Weights with what they share, which lies in memory once for each choice of model layers.

    Raises
    ------
    KeyError, ValueError
        If a model layer or tensor is missing or they do not fit together.
    """
    if "norm.model_layer" not in tensors:
        return [*weights]
    place = {int(number): i for i, number in enumerate(tensors["norm.model_layer"])}
    mean, scale = tensors["norm.mean"], tensors["norm.scale"]
    shared = {
        chosen: Standardizer(
            np.concatenate([mean[place[number]] for number in chosen]),
            np.concatenate([scale[place[number]] for number in chosen]),
            len(chosen),
        )
        for chosen in {*model_layers}
    }
    return [
        each._replace(norm=shared[chosen]) if isinstance(each, LinearWeights) else each
        for each, chosen in zip(weights, model_layers, strict=True)
    ]


def pack_directions(lenses: Sequence[Lens]) -> dict[str, NDArray[Any]]:
    """Steering directions as a named tensor; none where no lens has any."""
    found = [lens.directions for lens in lenses if lens.directions]
    if not found or len(found) != len(lenses):
        return {}
    rows = [np.concatenate([each.vector for each in directions]) for directions in found]
    # Half precision turns unit vectors by a thousandth of their length, and halves their bytes.
    return {"direction": np.stack(rows).astype(np.float16)}


def unpack_directions(tensors: Tensors, n: int) -> NDArray[np.float32]:
    """(lenses, hidden) steering directions, model layers side by side; (lenses, 0) without any.

    Raises
    ------
    ValueError
        If there is not one for each lens.
    """
    found = np.asarray(tensors.get("direction", np.empty((n, 0))), np.float32)
    if len(found) != n:
        raise ValueError(f"{len(found)} directions and {n} lenses in safetensors")
    return found
