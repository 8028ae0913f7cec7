"""The recorded steps of a runner: one for every shape of batch, as many as memory allows."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from lenscache.errors import UnsupportedModelError
from lenscache.inference.capture import Capture
from lenscache.inference.decoding import Replayed
from lenscache.model.loading import LoadedModel

_LENGTH_STEP = 64  # positions that lengths are rounded up to, so that batches share a recorded step
_SHARE = 0.25  # of a device's memory, for the caches of all recorded steps


class Recordings:
    """What decodes full batches in fixed tensors, until the model turns out not to allow it.

    Parameters
    ----------
    loaded : the model.
    is_on : whether steps are to be recorded at all.
    """

    def __init__(self, loaded: LoadedModel, *, is_on: bool) -> None:
        self._loaded, self.is_on = loaded, is_on
        self.why_not = ""
        """Why steps are called one by one although they were to be recorded."""
        self._is_told = False
        self.by_shape: dict[tuple[Any, ...], Replayed] = {}
        """The one that was used last is the last."""

    def find(self, n_rows: int, length: int, capture: Capture) -> Replayed | None:
        """What decodes batches of a shape, new or used before; None if nothing may.

        Parameters
        ----------
        length : most positions of a row, of prompt and completion together.
        capture : pools the completions, if it is new.
        """
        if not self.is_on or not self._may_record():
            return None
        shape = n_rows, -(-length // _LENGTH_STEP) * _LENGTH_STEP
        # A recorded step repeats what hooks, such as steering, did when it was recorded.
        key = (*shape, tuple(tuple(block._forward_hooks) for block in self._loaded.blocks))
        found = self.by_shape.pop(key, None)
        try:
            found = found or Replayed(self._loaded, capture, *shape)
        except UnsupportedModelError as error:
            self.stop(str(error))
            return None
        self.by_shape[key] = found
        return found

    def stop(self, why: str) -> None:
        """Record no more, and free what was recorded."""
        self.is_on, self.why_not = False, why
        self.by_shape.clear()

    def told_once(self) -> str:
        """`why_not` for whoever asks first, "" afterwards."""
        why, self._is_told = "" if self._is_told else self.why_not, bool(self.why_not)
        return why

    def bound(self) -> None:
        """Give up those that were used longest ago, where all together hold too much memory."""
        while len(self.by_shape) > 1 and self._nbytes > self.most_bytes:
            self.by_shape.pop(next(iter(self.by_shape)))

    def _may_record(self) -> bool:
        """Whether the only hooks, which a recorded step repeats, are those of whole blocks."""
        blocks = set(self._loaded.blocks)
        return not any(
            module._forward_pre_hooks or (module not in blocks and _has_hooks(module))
            for module in self._loaded.model.modules()
        )

    @property
    def _nbytes(self) -> int:
        return sum(each.nbytes for each in self.by_shape.values())

    @cached_property
    def most_bytes(self) -> float:
        """What the keys and values of all of them may hold."""
        device = self._loaded.device
        if device.type != "cuda":
            return float("inf")
        return _SHARE * torch.cuda.get_device_properties(device).total_memory


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks but those that transformers leaves once hidden states were asked
    for: they do nothing until it is asked again."""
    homes = (str(getattr(hook, "__module__", "")) for hook in module._forward_hooks.values())
    return any(not home.startswith("transformers.") for home in homes)
