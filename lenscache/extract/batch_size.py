"""How many rows a forward pass takes: the most that fit and that pay, found by trying.

    rows --growing batches of the longest (GPU) or of middling (CPU) prompts--> rows a second
        --> BatchLimits

On a GPU memory is the limit, so the longest prompts are tried, whole; on a CPU it is arithmetic,
and a few tokens of middling prompts tell. A batch twice as large only takes memory unless it is
faster by some margin. The second run of a size is timed: the first one records steps and lays out
memory. Other load makes a run slower, never faster, so a size that comes out slower than a smaller
one is timed again, and the better timing counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.extract.rows import PlannedRows
from lenscache.extract.settings import ExtractProgress, ExtractSettings, OnProgress
from lenscache.inference.batches import DEFAULT_LIMITS, BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel
from lenscache.store.header import StoreHeader
from lenscache.store.round import Round

_SMALLEST = 4
MOST_ON_A_CPU = 64
"""Rows of a batch: beyond, arithmetic is the limit."""
_TRIED_TOKENS_ON_A_CPU = 4
PAYS = 1.05
"""What a larger batch must gain in rows a second."""
_FEWEST_FOR_A_LINE = 3
_MOST_IN_VAIN = 2  # sizes that may not pay, one after the other: one may be slow by chance


class BatchChoice(NamedTuple):
    """What was tried, and what came of it."""

    limits: BatchLimits
    """With a limit of positions where memory ran out, and an overhead where the sizes show one."""
    tried: dict[int, float]
    """Rows a second by batch size."""

    def __str__(self) -> str:
        """One line for people."""
        tried = ", ".join(f"{size}: {rate:.1f}" for size, rate in self.tried.items())
        rows, positions, _ = self.limits
        limit = "" if positions is None else f", {positions} positions at most"
        return f"batches of up to {rows}{limit} (rows/s by batch size: {tried})"


def choose_batch(
    new_runner: Callable[[BatchLimits], Runner], rows: Sequence[PlannedRows], *, most: int
) -> BatchChoice:
    """Try batches of growing size.

    Parameters
    ----------
    new_runner : makes a runner as for `rows`.
    rows : what is to be extracted, by round.
    most : rows of a batch at most.

    Raises
    ------
    ModelError
        If not even one row fits the device's memory.
    """
    single = new_runner(BatchLimits(1))
    on_gpu = single.loaded.device.type == "cuda"
    n = sum(map(len, rows))
    most = min(most, n, n if on_gpu else MOST_ON_A_CPU)
    by_length = _longest(rows, most) if on_gpu else _middling(rows, most)
    tried: dict[int, float] = {}
    positions: dict[int, int] = {}
    size, limit, in_vain = min(_SMALLEST, most), None, 0
    while in_vain < _MOST_IN_VAIN:
        runner = new_runner(BatchLimits(size))
        if not on_gpu:
            runner.max_new_tokens = min(runner.max_new_tokens, _TRIED_TOKENS_ON_A_CPU)
        fastest = max(tried.values(), default=0.0)
        rate = _second_rate(runner, by_length[-size:], fastest)
        if runner.out_of_memory:
            longest = len(by_length[-1].token_ids) + runner.max_new_tokens
            limit = max(tried, default=runner.limits.rows) * longest
            break
        in_vain = in_vain + 1 if rate < PAYS * fastest else 0
        tried[size] = rate
        positions[size] = size * (len(by_length[-1].token_ids) + runner.n_passes - 1)
        if size == most:
            break
        size = min(2 * size, most)
    n_passes, overhead = single.n_passes, None
    # Where steps are recorded (several passes on a GPU), full batches gain more than padding costs.
    if not (on_gpu and n_passes > 1):
        overhead = _overhead(positions, tried, runner.n_passes)
    if overhead is not None:
        overhead = float(round(overhead * n_passes))
    best = _best(tried, runner.limits.rows)
    return BatchChoice(BatchLimits(best, limit, overhead), tried)


def _overhead(positions: dict[int, int], rates: dict[int, float], passes: int) -> float | None:
    """Fixed cost of each of `passes` passes, in positions: from a line through the seconds."""
    if len(positions) < _FEWEST_FOR_A_LINE:
        return None
    x = np.array([positions[size] for size in rates], float)
    seconds = np.array([size / rate for size, rate in rates.items()])
    # Weighted by relative error, or the largest size would decide alone.
    slope, start = np.polyfit(x, seconds, 1, w=1 / seconds)
    return None if slope <= 0 else max(0.0, start / slope / passes)


def _best(tried: dict[int, float], otherwise: int) -> int:
    """The smallest batch that no larger one beats by a margin."""
    if not tried:
        return otherwise
    fastest = max(tried.values())
    return min(size for size, rate in tried.items() if rate * PAYS >= fastest)


def _longest(rows: Sequence[PlannedRows], n: int) -> list[Row]:
    return _at(rows, _places_by_length(rows)[-n:])


def _middling(rows: Sequence[PlannedRows], n: int) -> list[Row]:
    places = _places_by_length(rows)
    start = (len(places) - n) // 2
    return _at(rows, places[start : start + n])


def _places_by_length(rows: Sequence[PlannedRows]) -> NDArray[np.intp]:
    """Places of all rows, counted through all rounds, the shortest first."""
    return np.argsort(np.concatenate([each.lengths for each in rows]), kind="stable")


def _at(rows: Sequence[PlannedRows], places: NDArray[np.intp]) -> list[Row]:
    ends = np.cumsum([len(each) for each in rows])
    which = np.searchsorted(ends, places, side="right")
    first = ends - [len(each) for each in rows]
    return [rows[k][int(place - first[k])] for k, place in zip(which, places, strict=True)]


def _second_rate(runner: Runner, rows: Sequence[Row], of_smaller: float) -> float:
    """Rows a second of a batch; if less than `of_smaller`, the better of two timings."""
    runner.run(rows)
    if runner.out_of_memory:
        return 0.0
    rate = _rate(runner, rows)
    return rate if rate >= of_smaller else max(rate, _rate(runner, rows))


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


def make_runner(loaded: LoadedModel, header: StoreHeader, limits: BatchLimits) -> Runner:
    """A runner that does what a store's header says."""
    return Runner(
        loaded,
        header.model_layers,
        mode=header.mode,
        max_new_tokens=header.max_new_tokens,
        pooling=header.pooling,
        pool_first_position=header.pool_first_position,
        limits=limits,
    )


def runner_for_rounds(
    loaded: LoadedModel,
    header: StoreHeader,
    settings: ExtractSettings,
    rounds: Sequence[Round],
    rows: Sequence[PlannedRows],
    tell: OnProgress,
) -> Runner:
    """A runner of the batch size asked for, found by an interrupted run, or found now."""
    new_runner = partial(make_runner, loaded, header)
    if settings.batch_size != "auto":
        return new_runner(BatchLimits(settings.batch_size))
    pairs = zip(rounds, rows, strict=True)
    unfinished = [(target, its) for target, its in pairs if not target.is_complete]
    # The same batches make the same bytes: the choice for a round holds until the round is done.
    known = [found for target, _ in unfinished if (found := target.attributes.get("auto_batch"))]
    if known or not unfinished:
        # Where no row is left to run, any limits do.
        return new_runner(BatchLimits(*known[0]) if known else DEFAULT_LIMITS)
    most = max(target.block_rows for target, _ in unfinished)
    choice = choose_batch(new_runner, [its for _, its in unfinished], most=most)
    first, its_rows = unfinished[0]
    tell(ExtractProgress(first.level, 0, len(its_rows), 0, str(choice)))
    rates = {str(size): rate for size, rate in choice.tried.items()}
    for target, _ in unfinished:
        target.update_attributes({"auto_batch": list(choice.limits), "auto_batch_rates": rates})
    return new_runner(choice.limits)
