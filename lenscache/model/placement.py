"""Models whose weights are not all on one device: device maps, and where a weight is found.

A map says which device computes each part of a model. Accelerate brings inputs there, and the
weights that no card holds, which wait in memory or in files.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lenscache.errors import MissingPackageError, ModelError, UnsupportedModelError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model over devices, as accelerate names them."""


def check_device_map(device_map: str | Mapping[str, Any]) -> None:
    """Whether a model can be spread like that.

    Raises
    ------
    ModelError
        If it is a word that is not one of `DEVICE_MAPS`.
    MissingPackageError
        If accelerate is not installed.
    """
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise ModelError(
            f"the device map is {device_map!r}, expected one of: {', '.join(DEVICE_MAPS)}"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise MissingPackageError(
            "spreading a model over devices needs accelerate: "
            "run `pip install '.[multi-gpu]'` in a clone of lenscache"
        )


@contextmanager
def offload_folder() -> Iterator[tuple[str, Callable[[Any], object]]]:
    """A folder for weights that fit nowhere else, and how to keep it while an object lives."""
    folder = tempfile.mkdtemp(prefix="lenscache-offload-")
    keepers: list[Any] = []

    def keep_for(owner: Any) -> None:
        keepers.append(weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True))

    try:
        yield folder, keep_for
    finally:
        if not keepers:
            shutil.rmtree(folder, ignore_errors=True)


def input_device(model: Any) -> torch.device:
    """Where a model takes its tokens, wherever the weights of its embeddings wait."""
    embeddings = model.get_input_embeddings()
    if not embeddings.weight.is_meta:
        return torch.device(embeddings.weight.device)
    return torch.device(embeddings._hf_hook.execution_device)


def whole_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model's state by name, offloaded ones read, lazily.

    Raises
    ------
    UnsupportedModelError
        If the values of a weight are nowhere to be found.
    """
    for name, tensor in sorted(model.state_dict().items()):
        yield name, _fetched(model, name) if tensor.is_meta else tensor


def _fetched(model: nn.Module, name: str) -> torch.Tensor:
    """A weight that is brought to its device only while it is used."""
    from accelerate.utils import align_module_device, has_offloaded_params

    path, _, own_name = name.rpartition(".")
    module = model.get_submodule(path)
    if not has_offloaded_params(module):
        raise UnsupportedModelError(
            f"the weight {name} was never loaded, so the model cannot be told from others"
        )
    with align_module_device(module, torch.device("cpu")):
        tensor: torch.Tensor = getattr(module, own_name)
    return tensor
