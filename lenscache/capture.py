"""Hooks and pooling: from (batch, position, hidden) and a mask to (batch, hidden), block by block.

A `Capture` listens to transformer blocks and pools each one's output, the residual stream after the block
(``resid_post``), as it comes: over one forward pass of many positions, or over many passes of one position each.
Nothing is kept a token or a step. Which positions count is a mask of the caller's, never a padding side.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lenscache.header import Pooling


class _DeepestBlockReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass whose remaining blocks nobody listens to."""


class Capture:
    """Context manager that pools the output of chosen blocks.

    Parameters
    ----------
    blocks : all transformer blocks of the model, in order.
    model_layers : the blocks to listen to.
    pooling : "mean", "max" or "last" over the counted positions.

    Examples
    --------
    >>> with Capture(blocks, [3, 7], pooling="mean") as capture:  # doctest: +SKIP
    ...     capture.start(batch_size=4)
    ...     capture.count(mask)  # (batch, position), True where a position is pooled
    ...     model(input_ids, attention_mask=attention_mask)
    ...     vectors = capture.pooled()  # (model layer, batch, hidden), float32
    """

    def __init__(self, blocks: Sequence[nn.Module], model_layers: Sequence[int], *, pooling: Pooling = "mean") -> None:
        self._blocks, self.model_layers, self._pooling = blocks, tuple(model_layers), pooling
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._sums: dict[int, torch.Tensor] = {}
        self._mask: torch.Tensor | None = None
        self._counts = torch.zeros(0)
        self._rows: torch.Tensor | None = None

    def __enter__(self) -> Self:
        for model_layer in self.model_layers:
            hook = self._hook_for(model_layer)
            self._handles.append(self._blocks[model_layer].register_forward_hook(hook))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self, batch_size: int) -> None:
        """Begin a phase: forget what was pooled."""
        self._sums.clear()
        self._counts = torch.zeros(batch_size)
        self._mask = self._rows = None

    def restart(self) -> None:
        """Begin a phase in the tensors of the last one, whose addresses a CUDA graph knows."""
        for pooled in self._sums.values():
            pooled.fill_(float("-inf") if self._pooling == "max" else 0.0)
        self._counts.zero_()

    def select(self, rows: torch.Tensor) -> None:
        """Say which rows of the batch the next forward passes hold: their numbers, as `start` counted them."""
        self._rows = rows

    def count(self, mask: torch.Tensor) -> None:
        """Say which positions (rows, position) of the next forward pass are pooled."""
        self._mask = mask
        if self._counts.device != mask.device:
            self._counts = self._counts.to(mask.device)
        n = mask.sum(dim=1).to(self._counts.dtype)
        if self._rows is None:
            self._counts += n
        else:
            self._counts.index_add_(0, self._rows, n)

    def run_to_deepest(self, model: nn.Module, **inputs: Any) -> None:
        """Run `model` up to the deepest captured block; the blocks above it and the head are not computed."""

        def stop(*_: object) -> None:
            raise _DeepestBlockReached

        handle = self._blocks[max(self.model_layers)].register_forward_hook(stop)
        try:
            model(**inputs)
        except _DeepestBlockReached:
            pass
        finally:
            handle.remove()

    @property
    def counts(self) -> torch.Tensor:
        """(batch,) positions pooled since `start`."""
        return self._counts

    @property
    def is_empty(self) -> bool:
        """Whether nothing was pooled since `start`."""
        return not self._sums

    def pooled(self) -> torch.Tensor:
        """(model layer, batch, hidden) in float32, in the order of `model_layers`; NaN for rows without a position."""
        device = self._counts.device
        stacked = torch.stack([self._sums[model_layer].to(device) for model_layer in self.model_layers])
        if self._pooling == "mean":
            stacked = stacked / self._counts[:, None]
        return stacked.masked_fill_((self._counts == 0)[:, None], float("nan"))

    def _hook_for(self, model_layer: int) -> Any:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            if self._mask is not None:
                hidden = output[0] if isinstance(output, tuple) else output  # (batch, position, hidden)
                self._pool(model_layer, hidden, self._mask.to(hidden.device))

        return hook

    def _pool(self, model_layer: int, hidden: torch.Tensor, mask: torch.Tensor) -> None:
        """Take in the positions of one pass, in place where there is something already."""
        counted, before = mask.unsqueeze(2), self._sums.get(model_layer)
        if self._pooling == "mean" and mask.shape[1] == 1:  # a decode step: thirty blocks of small operations add up
            new = torch.where(mask, hidden[:, 0].float(), 0.0)
        elif self._pooling == "mean":
            new = hidden.float().masked_fill(~counted, 0).sum(dim=1)
        elif self._pooling == "max":
            new = hidden.float().masked_fill(~counted, float("-inf")).amax(dim=1)
        else:
            last = mask.shape[1] - 1 - mask.long().flip(1).argmax(dim=1)
            new = hidden[torch.arange(len(hidden), device=hidden.device), last].float()
        if before is None and self._rows is None:
            self._sums[model_layer] = new
            return
        if before is None:
            nothing = float("-inf") if self._pooling == "max" else 0.0
            before = self._sums[model_layer] = new.new_full((len(self._counts), new.shape[1]), nothing)
        rows = None if self._rows is None else self._rows.to(before.device)
        if self._pooling != "mean":
            old = before if rows is None else before[rows]
            new = (
                torch.maximum(old, new) if self._pooling == "max" else torch.where(mask.any(1, keepdim=True), new, old)
            )
        if rows is None:
            before.copy_(new) if self._pooling != "mean" else before.add_(new)
        elif self._pooling == "mean":
            before.index_add_(0, rows, new)
        else:
            before.index_copy_(0, rows, new)
