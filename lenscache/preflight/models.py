"""Loading models for checks: with what it takes in memory, and never into swap."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lenscache.errors import ModelError
from lenscache.memory import available_bytes, release, resident_bytes
from lenscache.model.loading import LoadedModel, load_model, silence

_ROOM = 1.2  # of the weights: loading needs a little more than what stays


@dataclass(frozen=True)
class Footprint:
    """What a loaded model takes; bytes."""

    dtype: str
    weights: int
    """Parameters and buffers, each counted once."""
    device: str
    parameter_dtypes: dict[str, int]
    """How many parameter tensors there are of each type."""


def load(name: str, dtype: str, device: str) -> tuple[LoadedModel, Footprint]:
    """Load a model and see what it takes.

    Raises
    ------
    ModelError
        As `load_model`.
    """
    silence()
    loaded = load_model(name, dtype=dtype, device=device)
    counts: dict[str, int] = {}
    for parameter in loaded.model.parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + 1
    return loaded, Footprint(loaded.dtype, _weight_bytes(loaded), str(loaded.device), counts)


def check_room(held: Footprint, dtype: str) -> None:
    """Raise ModelError if the same model in `dtype` would not fit the memory left on this machine.

    A card says so by itself; a machine without one would swap, or end the process.
    """
    width = {"float32": 4, "bfloat16": 2, "float16": 2}
    needed, free = held.weights * width[dtype] / width[held.dtype] * _ROOM, available_bytes()
    if held.device == "cpu" and free is not None and needed > free:
        raise ModelError(
            f"the model in {dtype} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def _weight_bytes(loaded: LoadedModel) -> int:
    """Bytes of parameters and buffers; tied ones are counted once."""
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def cached_bytes(cache: object) -> int | None:
    """Bytes of keys and values in a model's cache; None for a cache of another kind."""
    tensors = [
        tensor
        for layer in getattr(cache, "layers", ())
        for name in ("keys", "values")
        if isinstance(tensor := getattr(layer, name, None), torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in tensors) if tensors else None


def bytes_in_use(device: str) -> int | None:
    """What this process holds of a card, or of the machine; None if the system does not say."""
    release()
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else resident_bytes()
