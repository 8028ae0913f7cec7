"""Loading a model for a command."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from . import console


class Dtype(StrEnum):
    """Choices of --dtype."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def load(model: str, dtype: Dtype, device: str) -> Any:
    """The model, with a line on stderr before and after."""
    from lenscache.model import load_model, silence

    silence()
    console.err().print(f"loading {model}", markup=False, soft_wrap=True)
    loaded = load_model(model, dtype=dtype.value, device=device)
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.err().print(f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.device}", markup=False, soft_wrap=True)
    return loaded


def load_for(pack: Any, model: str, dtype: Dtype, device: str) -> Any:
    """The model that the lenses of a pack were made for.

    Raises
    ------
    lenscache.errors.ModelError
        If it is another one.
    """
    from lenscache.errors import ModelError

    loaded, made_for = load(model, dtype, device), pack.provenance["store"]["model"]
    shape = (loaded.n_layers, loaded.hidden)
    if shape != (made_for["n_layers"], made_for["hidden"]):
        raise ModelError(
            f"the lenses were made for {made_for['id']} ({made_for['n_layers']} transformer blocks of size "
            f"{made_for['hidden']}), {model} has {shape[0]} of size {shape[1]}: name the model they were made for"
        )
    if loaded.dtype == made_for["dtype"] and loaded.fingerprint != made_for["fingerprint"]:
        raise ModelError(
            f"the lenses were made for another model than {model}, or for other weights of it: {made_for['id']}, "
            f"fingerprint {made_for['fingerprint']}, not {loaded.fingerprint}"
        )
    return loaded
