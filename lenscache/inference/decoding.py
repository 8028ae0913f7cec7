"""Prefill and decode of one batch: where keys and values are kept, and how a step is launched.

    Growing    the model's own cache, a position longer with every step; ended rows leave the batch
    Replayed   a cache of fixed size; on CUDA one step is recorded as a graph, hooks included, and
               replayed for every token of every batch of its shape: Python launches no kernel

Both take and give the same tensors. What cannot be recorded is left to `Growing`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lenscache.errors import UnsupportedModelError
from lenscache.inference.capture import Capture
from lenscache.inference.recording import Step, recorder_for, what_forbids_recording
from lenscache.model.caches import fixed_cache
from lenscache.model.loading import LoadedModel

_WARM_UP_STEPS = 3  # before a graph is recorded, kernels must have allocated their workspaces


class Decoding(Protocol):
    """One batch on its way through prefill and decode."""

    capture: Capture
    """Pools the completion."""
    can_drop_rows: bool
    """Whether rows that have ended may leave."""

    def prefill(
        self, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """(batch, vocab) logits after prompts (batch, position); begins the completion phase."""

    def step(self, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """(batch, vocab) logits after one more token a row, pooled where `counted` (batch,)."""

    def drop(self, kept: torch.Tensor) -> None:
        """Go on with the rows `kept` alone, numbers in the present batch."""


def model_inputs(
    loaded: LoadedModel, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> dict[str, Any]:
    """What the model's forward pass takes; if possible, logits of the last position only."""
    inputs: dict[str, Any] = {"input_ids": token_ids, "attention_mask": mask.long()}
    if loaded.accepts("position_ids"):  # models without it derive positions from the mask
        inputs["position_ids"] = positions
    # Asked for some logits, Gemma 4 runs blocks that share keys for those positions alone.
    has_skipping_blocks = getattr(loaded.model.config.get_text_config(), "num_kv_shared_layers", 0)
    if loaded.accepts("logits_to_keep") and not (has_skipping_blocks and token_ids.shape[1] > 1):
        inputs["logits_to_keep"] = 1
    return inputs


class Growing:
    """Decode with the model's own cache."""

    def __init__(self, loaded: LoadedModel, capture: Capture) -> None:
        self._loaded, self.capture = loaded, capture
        self.can_drop_rows = self._attends = True
        self._cache: Any = None
        self._mask = self._last = torch.zeros(0)
        self._rows: torch.Tensor | None = None

    def prefill(
        self, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """As `Decoding.prefill`."""
        inputs = model_inputs(self._loaded, token_ids, mask, positions)
        output = self._loaded.model(**inputs, use_cache=True)
        self._cache = self._loaded.cache_of(output)
        self._mask, self._last = mask, positions[:, -1:]
        self.can_drop_rows = hasattr(self._cache, "reorder_cache")
        # A state, unlike keys and values, has no positions that the mask of a step could hide.
        self._attends = not all(getattr(self._cache, "is_linear", [False]))
        self.capture.start(len(token_ids))
        return _last_logits(output)

    def step(self, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """As `Decoding.step`."""
        self.capture.count(counted.unsqueeze(1))
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._last = self._last + 1
        mask = self._mask if self._attends else self._mask[:, -1:]
        inputs = model_inputs(self._loaded, tokens.unsqueeze(1), mask, self._last)
        inputs[self._loaded.cache_argument] = self._cache
        output = self._loaded.model(**inputs, use_cache=True)
        self._cache = self._loaded.cache_of(output)
        return _last_logits(output)

    def drop(self, kept: torch.Tensor) -> None:
        """As `Decoding.drop`."""
        # Unlike batch_select_indices, layers of every kind have it: states of linear attention too.
        self._cache.reorder_cache(kept)
        self._mask, self._last = self._mask[kept], self._last[kept]
        self._rows = kept if self._rows is None else self._rows[kept]
        self.capture.select(self._rows)


class Replayed:
    """Decode in tensors of fixed shape and place, for all batches of a shape, one after the other.

    Where nothing records (on a CPU), every step is called.

    Parameters
    ----------
    batch_size, length : rows, and positions of prompt and completion together.

    Raises
    ------
    UnsupportedModelError
        If the model has no cache of fixed size; or later, if a step cannot be recorded.
    """

    def __init__(self, loaded: LoadedModel, capture: Capture, batch_size: int, length: int) -> None:
        self._loaded, self.capture, self.can_drop_rows = loaded, capture, False
        self._cache = fixed_cache(loaded.model.config, length)
        self._record = recorder_for(loaded.device)
        self.is_proven = False
        """Whether a batch was found to be the same as with a growing cache."""

        def zeros(columns: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(batch_size, columns, dtype=dtype, device=loaded.device)

        self._mask, self._counted = zeros(length, torch.bool), zeros(1, torch.bool)
        self._tokens, self._positions = zeros(1, torch.long), zeros(1, torch.long)
        self._width = self._steps = 0
        self._logits = torch.zeros(0)
        self._replay: Step | None = None

    @property
    def has_replayed(self) -> bool:
        """Whether a step did not run as it was called, but as it was recorded."""
        return self._record is None or self._steps > _WARM_UP_STEPS + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        layers = [layer for layer in self._cache.layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def prefill(
        self, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """As `Decoding.prefill`."""
        self._cache.reset()
        self._width = token_ids.shape[1]
        self._mask.zero_()
        self._mask[:, : self._width] = mask
        self._positions.copy_(positions[:, -1:])
        logits = self._run(token_ids, mask, positions)
        if self._steps:
            self.capture.restart()
        else:
            self.capture.start(len(token_ids))
        return logits

    def step(self, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """As `Decoding.step`."""
        self._tokens.copy_(tokens.unsqueeze(1))
        self._counted.copy_(counted.unsqueeze(1))
        self._mask[:, self._width] = True
        self._width += 1
        self._positions += 1
        self.capture.count(self._counted)
        self._steps += 1
        if self._record is not None and self._steps == _WARM_UP_STEPS:
            if found := what_forbids_recording(self._forward):
                raise UnsupportedModelError(f"a step cannot be recorded: {found}")
            return self._logits
        if self._record is not None and self._replay is None and self._steps > _WARM_UP_STEPS:
            self._replay = self._record(self._forward)
        (self._replay or self._forward)()
        return self._logits

    def drop(self, kept: torch.Tensor) -> None:
        """Never called: `can_drop_rows` is off, shapes are fixed."""
        raise NotImplementedError

    def _forward(self) -> None:
        self._logits = self._run(self._tokens, self._mask, self._positions)

    def _run(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = model_inputs(self._loaded, *inputs)
        given[self._loaded.cache_argument] = self._cache
        return _last_logits(self._loaded.model(**given, use_cache=True))


def _last_logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits[:, -1]
    return logits
