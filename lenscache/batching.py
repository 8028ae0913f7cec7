"""How many rows a forward pass takes: the most that fit and that pay, found by trying.

    rows --growing batches of the longest (GPU) or of middling (CPU) prompts--> rows a second --> batch size

On a GPU memory is the limit, so the longest prompts are tried, whole; on a CPU it is arithmetic, and a few tokens of
middling prompts tell. A batch twice as large must be faster by some margin, or it only takes memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lenscache.runner import Row, Runner

_SMALLEST = 4
_MOST_ON_A_CPU = 64
_TRIED_TOKENS_ON_A_CPU = 8
_PAYS = 1.05
"""What doubling the batch must gain in rows a second."""


class BatchChoice(NamedTuple):
    """What was tried, and what came of it."""

    rows: int
    tokens: int | None
    """Positions that a batch may have where memory is the limit; None where it is not."""
    tried: dict[int, float]
    """Rows a second by batch size."""

    def __str__(self) -> str:
        """One line for people."""
        tried = ", ".join(f"{size}: {rate:.1f}" for size, rate in self.tried.items())
        limit = "" if self.tokens is None else f", {self.tokens} positions at most"
        return f"batches of {self.rows}{limit} (rows/s by batch size: {tried})"


def choose_batch(new_runner: Callable[..., Runner], rows: Sequence[Row], *, most: int) -> BatchChoice:
    """Try batches of growing size.

    Parameters
    ----------
    new_runner : makes a runner as for `rows`; takes `batch_size`.
    rows : what is to be extracted.
    most : rows of a batch at most.

    Raises
    ------
    ModelError
        If not even one row fits the device's memory.
    """
    by_length = sorted(rows, key=lambda row: len(row.token_ids))
    on_gpu = new_runner(batch_size=1).loaded.device.type == "cuda"
    most = min(most, len(rows), len(rows) if on_gpu else _MOST_ON_A_CPU)
    tried: dict[int, float] = {}
    size, limit = min(_SMALLEST, most), None
    new_runner(batch_size=1).run(by_length[:1])  # what is slow the first time is not what is tried
    while True:
        runner = new_runner(batch_size=size) if on_gpu else _shortened(new_runner, size)
        chosen = by_length[-size:] if on_gpu else _middle(by_length, size)
        rate = _rate(runner, chosen)
        if runner.out_of_memory:
            size = max(tried, default=runner.batch_size)
            limit = size * (len(by_length[-1].token_ids) + runner.max_new_tokens)
            break
        tried[size] = rate
        if size == most or rate < _PAYS * max((r for s, r in tried.items() if s < size), default=0.0):
            break
        size = min(2 * size, most)
    best = max(tried, key=lambda s: tried[s], default=size)
    return BatchChoice(best, limit, tried)


def _shortened(new_runner: Callable[..., Runner], size: int) -> Runner:
    runner = new_runner(batch_size=size)
    runner.max_new_tokens = min(runner.max_new_tokens, _TRIED_TOKENS_ON_A_CPU)
    return runner


def _middle(by_length: Sequence[Row], size: int) -> Sequence[Row]:
    start = (len(by_length) - size) // 2
    return by_length[start : start + size]


def _rate(runner: Runner, rows: Sequence[Row]) -> float:
    """Rows a second."""
    _wait(runner)
    start = time.perf_counter()
    runner.run(rows)
    _wait(runner)
    return len(rows) / (time.perf_counter() - start)


def _wait(runner: Runner) -> None:
    if runner.loaded.device.type == "cuda":
        torch.cuda.synchronize(runner.loaded.device)
