"""Activations of a growing text, pooled over each phase so far, and over a window of the last
positions.

`lenscache.inference.capture` does this for a whole prompt or completion, here it is done pass by
pass. Kept of a text are one vector a phase and model layer, and the last positions of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Phase = Literal["prompt", "completion"]


class Trail:
    """Pools the positions of one text, pass by pass.

    Parameters
    ----------
    pooling : "mean", "max" or "last" over counted positions, as the store that the lenses were
        trained on.
    window : positions of the window; with "last" it is the position itself.
    """

    def __init__(self, pooling: str, window: int) -> None:
        self.pooling, self.window = pooling, 1 if pooling == "last" else window
        self._nothing = -torch.inf if pooling == "max" else 0.0
        # (model layer, batch, window - 1, hidden) before this pass
        self._tail: torch.Tensor | None = None
        self._values: dict[Phase, torch.Tensor] = {}  # (model layer, batch, hidden)
        self._counts: dict[Phase, torch.Tensor] = {}  # (batch,)

    def begin(self, phase: Phase, counted: torch.Tensor, n_scored: int) -> None:
        """A pass begins: `counted` (batch, position) positions are pooled, the last `n_scored` also
        in windows."""
        self._phase, self._counted, self._n_scored = phase, counted, n_scored
        if self._tail is None:
            self._before = counted.new_zeros(len(counted), self.window - 1)
        along = torch.cat([self._before, counted], dim=1)
        start = along.shape[1] - self.window + 1
        self._before = along[:, start:]
        counts = along[:, start - n_scored :].unfold(1, self.window, 1).sum(dim=2)
        self._shares = 1 / counts.clamp(min=1)[:, :, None]  # (batch, scored, 1)
        self._tails: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    def add(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """(model layer, batch, scored, hidden) windows of the next few model layers, in float32;
        `hidden` are their outputs (batch, position, hidden)."""
        x = torch.stack(list(hidden)).float()
        x.masked_fill_(~self._counted[:, :, None], self._nothing)
        self._sums.append(self._pool(x))
        along = torch.cat([self._tail_of(x), x], dim=2)
        start = along.shape[2] - self.window + 1
        self._tails.append(along[:, :, start:].clone())
        windows = along[:, :, start - self._n_scored :].unfold(2, self.window, 1)
        return windows.amax(dim=4) if self.pooling == "max" else windows.sum(dim=4) * self._shares

    def end(self) -> None:
        """All model layers were added."""
        self._tail, now = torch.cat(self._tails), torch.cat(self._sums)
        self._tails, self._sums = [], []
        before, count = self._values.get(self._phase), self._counted.sum(dim=1)
        if before is not None:
            count = count + self._counts[self._phase]
            if self.pooling == "mean":
                now = before + now
            elif self.pooling == "max":
                now = torch.maximum(before, now)
            else:
                now = torch.where(self._counted.any(dim=1)[:, None], now, before)
        self._values[self._phase], self._counts[self._phase] = now, count

    def pooled(self, phase: Phase) -> torch.Tensor | None:
        """(model layer, batch, hidden) over a phase so far, NaN in rows without a position; None if
        it has not begun."""
        if phase not in self._values:
            return None
        values, counts = self._values[phase], self._counts[phase][:, None]
        if self.pooling == "mean":
            values = values / counts
        return values.masked_fill(counts == 0, torch.nan)

    def _tail_of(self, x: torch.Tensor) -> torch.Tensor:
        """The window before this pass, of the model layers of `x`; nothing where a text begins."""
        if self._tail is None:
            return x.new_full((len(x), x.shape[1], self.window - 1, x.shape[3]), self._nothing)
        done = sum(map(len, self._sums)) - len(x)
        return self._tail[done : done + len(x)]

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        """(model layer, batch, hidden) of x (model layer, batch, position, hidden) of one pass."""
        if self.pooling == "mean":
            return x.sum(dim=2)
        if self.pooling == "max":
            return x.amax(dim=2)
        last = self._counted.shape[1] - 1 - self._counted.long().flip(1).argmax(dim=1)
        return x[:, torch.arange(x.shape[1], device=x.device), last]
