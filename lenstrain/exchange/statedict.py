"""The state dicts of HatCat's two kinds of classifier, and the weights of a lens.

Read in `src/hat/classifiers/classifier.py` (LinearProbe, MLPClassifier, load_classifier) and
`src/hat/monitoring/lens_types.py` (SimpleMLP) of HatCat:

    linear   linear.weight (1, hidden), linear.bias (1,)
    MLP      net.0.weight (128, hidden), net.3.weight (64, 128), net.6.weight (1, 64), and the bias
             of each; numbers 1, 2, 4, 5 of the sequence are ReLU and dropout. Older files lack the
             prefix ``net.``

Both give logits; what reads them applies the sigmoid. HatCat copies the tensors into float32
parameters, so other floating types are read there and here, and b1 is written as the float64 that
it is in a lens. An MLP may begin with a layer norm, whose weight then is net.0, followed by net.1,
net.4 and net.7: no lens on raw activations says the same, and such a file is refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lenstrain.errors import ForeignFormatError
from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import WIDTHS, MlpWeights
from lenstrain.families.weights import Weights

_LINEAR = {"linear.weight": "(1, hidden)", "linear.bias": "(1,)"}
_MLP = {
    "net.0.weight": f"({WIDTHS[0]}, hidden)",
    "net.0.bias": f"({WIDTHS[0]},)",
    "net.3.weight": f"({WIDTHS[1]}, {WIDTHS[0]})",
    "net.3.bias": f"({WIDTHS[1]},)",
    "net.6.weight": f"(1, {WIDTHS[1]})",
    "net.6.bias": "(1,)",
}
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,80})")
_DAMAGE = (
    *(RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, OSError),
    pickle.UnpicklingError,
)


def to_state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of one lens, each with a storage of its own."""
    if isinstance(weights, LinearWeights):
        arrays: dict[str, Any] = {
            "linear.weight": weights.weight[None],
            "linear.bias": np.array([weights.bias], np.float32),
        }
    else:
        w1, b1, w2, b2, w3, b3 = weights
        arrays = {
            "net.0.weight": w1.T,
            "net.0.bias": b1,
            "net.3.weight": w2.T,
            "net.3.bias": b2,
            "net.6.weight": w3[None],
            "net.6.bias": np.reshape(b3, 1),
        }
    # Copies, in the order that torch itself writes: arrays may be read-only, tensors never are.
    return {name: torch.from_numpy(np.array(values, order="C")) for name, values in arrays.items()}


def load_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name; nothing in the file is executed.

    Raises
    ------
    ForeignFormatError
        If the file holds anything else than tensors by name, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, on types refused below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        # Not torch's own message, which goes on to recommend weights_only=False.
        wanted = _GLOBAL.search(str(error))
        why = f"it asks for {wanted[1]}" if wanted else type(error).__name__
        raise ForeignFormatError(
            f"{file} is refused: it is damaged, or a pickle of more than tensors, which could run "
            f"code ({why})"
        ) from None
    if not isinstance(found, Mapping) or not all(
        _is_plain(name, value) for name, value in found.items()
    ):
        raise ForeignFormatError(
            f"{file} holds {_kind(found)}, expected a state dict: dense tensors by name"
        )
    return dict(found)


def from_state_dict(state: Mapping[str, torch.Tensor], file: Path) -> Weights:
    """The weights of a lens.

    Raises
    ------
    ForeignFormatError
        If a tensor is missing or one too many, or its shape, type or values are not those of a
        classifier.
    """
    if "0.weight" in state:
        state = {f"net.{name}": tensor for name, tensor in state.items()}
    if "net.0.weight" in state and state["net.0.weight"].ndim == 1:
        raise ForeignFormatError(
            f"{file} has a layer norm on its input (net.0.weight {_shape(state['net.0.weight'])}), "
            f"expected {_MLP['net.0.weight']}: lenses read raw activations"
        )
    expected = _MLP if any(name.startswith("net.") for name in state) else _LINEAR
    if state.keys() != expected.keys():
        raise ForeignFormatError(
            f"{file} has the tensors {', '.join(sorted(state))[:200] or 'none'}; expected "
            f"{' and '.join(_LINEAR)}, or {', '.join(_MLP)}"
        )
    first = state["net.0.weight" if expected is _MLP else "linear.weight"]
    hidden = first.shape[-1] if first.ndim else 0
    for name, shape in expected.items():
        wanted = shape.replace("hidden", str(hidden))
        if _shape(state[name]) != wanted or not hidden:
            raise ForeignFormatError(
                f"{file}: {name} has shape {_shape(state[name])}, expected {shape}"
            )
    if expected is _LINEAR:
        weight, bias = (_array(state, name, file) for name in _LINEAR)
        return LinearWeights(weight[0], float(bias[0]))
    b1 = _array(state, "net.0.bias", file, torch.float64)
    w1, w2, b2, w3, b3 = (_array(state, name, file) for name in _MLP if name != "net.0.bias")
    return MlpWeights(np.ascontiguousarray(w1.T), b1, np.ascontiguousarray(w2.T), b2, w3[0], b3[0])


def n_inputs(weights: Weights) -> int:
    """Features that a lens reads."""
    return len(weights.weight) if isinstance(weights, LinearWeights) else len(weights.w1)


def _array(
    state: Mapping[str, torch.Tensor], name: str, file: Path, dtype: torch.dtype = torch.float32
) -> NDArray[Any]:
    values = np.asarray(state[name].to(dtype).numpy())
    if not np.isfinite(values).all():
        raise ForeignFormatError(
            f"{file}: {name} has values that are not finite in {dtype}, expected numbers alone"
        )
    return values


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
    )


def _kind(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    wrong = next(f"{name!r:.40}" for name, value in found.items() if not _is_plain(name, value))
    return f"something else under {wrong}"


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
