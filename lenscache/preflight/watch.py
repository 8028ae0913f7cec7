"""Watch the residual stream while a model runs: how large it gets, and where it is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn

from lenscache.inference.hooks import residual_stream

FLOAT16_LIMIT = 65504.0
"""Largest finite float16."""


class ResidualWatch:
    """Context manager that records what the blocks put out.

    Parameters
    ----------
    blocks : all transformer blocks, in order. Inputs must not be padded: every position counts.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.largest = 0.0
        """Largest finite absolute value that any block put out."""
        self.first_broken: int | None = None
        """The first model layer with a NaN or an infinity, if any."""

    def __enter__(self) -> Self:
        for number, block in enumerate(self._blocks):
            self._handles.append(block.register_forward_hook(self._hook(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, number: int) -> Any:
        def look(_block: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = residual_stream(output).detach().float()
            largest = float(hidden.abs().nan_to_num(posinf=0.0).max())
            self.largest = max(self.largest, largest)
            if not bool(hidden.isfinite().all()):
                known = number if self.first_broken is None else self.first_broken
                self.first_broken = min(number, known)

        return look
