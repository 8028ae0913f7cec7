"""Hooks and pooling: from (batch, position, hidden) and a mask to (batch, hidden), block by block.

A `Capture` listens to transformer blocks and pools each one's output, the residual stream after the
block (``resid_post``), as it comes: over one forward pass of many positions, or over many passes of
one position each. Nothing is kept per token or step. A mask from the caller says which positions
count, never a padding side.

    block --hook: copy one vector a row--> _Bank.stage --all blocks at once--> _Bank.pooled

At a decode step, pooling one block takes less time than launching it. So a hook only copies, and
the results of a pass are pooled for all blocks together before the next pass begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from lenscache.errors import UnsupportedModelError
from lenscache.inference.hooks import residual_stream
from lenscache.terms import Pooling


class _DeepestBlockReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass whose remaining blocks nobody listens to."""


_NOTHING: dict[Pooling, float] = {"mean": 0.0, "max": float("-inf"), "last": 0.0}
"""What is pooled before there is a position."""


class _Bank(NamedTuple):
    """Output of one device's blocks: (model layer, batch, hidden) in float32, else unused."""

    stage: torch.Tensor
    """Of the last pass, its rows first."""
    pooled: torch.Tensor
    """Of all passes before it."""


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

    def __init__(
        self, blocks: Sequence[nn.Module], model_layers: Sequence[int], *, pooling: Pooling = "mean"
    ) -> None:
        self._blocks, self.model_layers, self._pooling = blocks, tuple(model_layers), pooling
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._banks: dict[torch.device, _Bank] = {}
        self._places: dict[int, torch.device] = {}
        self._mask: torch.Tensor | None = None
        self._staged: torch.Tensor | None = None
        self._counts = torch.zeros(0)
        self._rows: torch.Tensor | None = None

    def __enter__(self) -> Self:
        for number, model_layer in enumerate(self.model_layers):
            hook = self._hook_for(number, model_layer)
            self._handles.append(self._blocks[model_layer].register_forward_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self, batch_size: int) -> None:
        """Begin a phase: forget what was pooled."""
        self._banks.clear()
        self._places.clear()
        self._counts = torch.zeros(batch_size)
        self._mask = self._staged = self._rows = None

    def restart(self) -> None:
        """Begin a phase in the tensors of the last one, whose addresses a CUDA graph knows."""
        for bank in self._banks.values():
            bank.pooled.fill_(_NOTHING[self._pooling])
        self._counts.zero_()
        self._staged = None

    def select(self, rows: torch.Tensor) -> None:
        """Say which rows of the batch that was started the next forward passes hold."""
        self._take_in()
        self._rows = rows

    def count(self, mask: torch.Tensor) -> None:
        """Say which positions (rows, position) of the next forward pass are pooled."""
        self._take_in()
        self._mask = mask
        self._staged = mask.any(dim=1)  # a copy: the caller may write the next mask into this one
        if self._counts.device != mask.device:
            self._counts = self._counts.to(mask.device)
        n = mask.sum(dim=1).to(self._counts.dtype)
        if self._rows is None:
            self._counts += n
        else:
            self._counts.index_add_(0, self._rows, n)

    def run_to_deepest(self, model: nn.Module, **inputs: Any) -> None:
        """Run `model` up to the deepest captured block, without later blocks and the head."""

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
        return not self._banks

    def pooled(self) -> torch.Tensor:
        """(model layer, batch, hidden) float32, as `model_layers`; NaN without a position."""
        self._take_in()
        device = self._counts.device
        banks = [self._banks[self._places[model_layer]] for model_layer in self.model_layers]
        stacked = torch.stack([bank.pooled[k].to(device) for k, bank in enumerate(banks)])
        if self._pooling == "mean":
            stacked = stacked.div_(self._counts[:, None])
        return stacked.masked_fill_((self._counts == 0)[:, None], float("nan"))

    def _hook_for(self, number: int, model_layer: int) -> Any:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            if self._mask is None:
                return
            hidden = residual_stream(output)
            if hidden.shape[1] != self._mask.shape[1]:
                raise UnsupportedModelError(
                    f"block {model_layer} runs for {hidden.shape[1]} of {self._mask.shape[1]} "
                    "positions, so the others cannot be pooled: this kind of model is not supported"
                )
            place = self._places.get(model_layer)
            if place is None:
                place = self._places[model_layer] = hidden.device
            bank = self._banks.get(place) or self._open_bank(hidden)
            bank.stage[number, : len(hidden)] = self._reduce(hidden, self._mask)

        return hook

    def _open_bank(self, hidden: torch.Tensor) -> _Bank:
        shape = len(self.model_layers), len(self._counts), hidden.shape[2]
        stage = torch.zeros(shape, device=hidden.device)
        bank = _Bank(stage, pooled=torch.full_like(stage, _NOTHING[self._pooling]))
        return self._banks.setdefault(hidden.device, bank)

    def _reduce(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) of one pass; anything in rows without a counted position."""
        if mask.shape[1] == 1:
            return hidden[:, 0]
        mask = mask.to(hidden.device)
        if self._pooling == "last":
            last = mask.shape[1] - 1 - mask.long().flip(1).argmax(dim=1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        counted = hidden.float().masked_fill(~mask.unsqueeze(2), _NOTHING[self._pooling])
        return counted.sum(dim=1) if self._pooling == "mean" else counted.amax(dim=1)

    @torch.inference_mode()  # tensors of a pass in inference mode may only be changed there
    def _take_in(self) -> None:
        """Add what the last pass brought, of all blocks at once, to what there was."""
        if self._staged is None:
            return
        for place, bank in self._banks.items():
            counted = self._staged.to(place)
            rows = None if self._rows is None else self._rows.to(place)
            new = bank.stage[:, : len(counted)]
            if self._pooling != "last":
                new.masked_fill_(~counted[:, None], _NOTHING[self._pooling])
            if self._pooling == "mean":
                bank.pooled.add_(new) if rows is None else bank.pooled.index_add_(1, rows, new)
                continue
            old = bank.pooled if rows is None else bank.pooled[:, rows]
            is_max = self._pooling == "max"
            new = torch.maximum(old, new) if is_max else torch.where(counted[:, None], new, old)
            bank.pooled.copy_(new) if rows is None else bank.pooled.index_copy_(1, rows, new)
        self._staged = None
