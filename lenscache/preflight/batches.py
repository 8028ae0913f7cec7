"""Check 2: does batch 4 fit, which is the largest that does, and what is the memory spent on?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lenscache.errors import ModelError
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.memory import (
    available_bytes,
    peak_resident_bytes,
    release,
    reset_peak,
    resident_bytes,
)
from lenscache.model.loading import LoadedModel
from lenscache.preflight.conclusion import MOST_TRIED
from lenscache.preflight.models import cached_bytes, load
from lenscache.preflight.results import Outcome, Request, Tell
from lenscache.preflight.texts import of_length

WANTED = 4
_PROMPT_TOKENS = 64
_NEW_TOKENS = {False: 20, True: 8}  # by whether it is to be quick
_SHARE = 0.8  # of free memory that an estimate counts on


def check(request: Request, tell: Tell) -> Outcome:
    """Run batches of prompts of 64 tokens and their completions, in the dtype that `auto` takes."""
    tell("loading", 0, 1)
    loaded, footprint = load(request.model, "auto", request.device)
    new_tokens = min(_NEW_TOKENS[request.quick], (loaded.max_positions or 1 << 30) // 2)
    probe = _Probe(loaded, footprint.weights, new_tokens)
    probe.run(1)  # what a device sets up once is no cost of a batch
    details = _on_card(probe, tell) if loaded.device.type == "cuda" else _on_host(probe, tell)
    details |= {"dtype": loaded.dtype, "device": str(loaded.device)}
    details |= {"prompt_tokens": probe.n_prompt, "new_tokens": new_tokens}
    details["weights"] = footprint.weights
    fits = {row["batch"]: row["fits"] for row in details["batches"]}
    largest, how = details["largest"], "about " if details["estimated"] else ""
    most = f"at least {largest}" if largest == MOST_TRIED else f"{how}{largest}"
    if not fits.get(WANTED, False):
        why = f"batch {WANTED} does not fit in {loaded.dtype}; the largest that does is {most}"
        return Outcome.failed(why, **details)
    peak = next(row["peak"] for row in details["batches"] if row["batch"] == WANTED)
    at_peak = "" if peak is None else f", {peak / 1e6:.0f} MB at its peak"
    why = f"batch {WANTED} fits in {loaded.dtype}{at_peak}; the largest that fits is {most}"
    return Outcome.passed(why, **details)


class _Probe:
    """Batches of equal rows: a prompt and a completion that is given, so that no row ends early."""

    def __init__(self, loaded: LoadedModel, weights: int, new_tokens: int) -> None:
        self.loaded, self.weights, self.new_tokens = loaded, weights, new_tokens
        self.n_prompt = max(min(_PROMPT_TOKENS, (loaded.max_positions or 1 << 30) - new_tokens), 1)
        ids = of_length(loaded, self.n_prompt + new_tokens)
        self.row = Row(ids[: self.n_prompt], completion_ids=tuple(ids[self.n_prompt :]))
        self.cache_per_row = self._cache(ids[: self.n_prompt + new_tokens - 1])

    def run(self, batch: int) -> bool:
        """Run one batch; false if it does not fit the card."""
        blocks = range(self.loaded.n_layers)
        runner = Runner(
            self.loaded, blocks, max_new_tokens=self.new_tokens, limits=BatchLimits(batch)
        )
        try:
            runner.run([self.row] * batch)
        except ModelError:
            return False
        return runner.out_of_memory == 0

    def describe(
        self,
        batch: int,
        *,
        fits: bool,
        peak: int | None,
        reserved: int | None = None,
        program: int = 0,
    ) -> dict[str, Any]:
        """One line of the table; bytes. `program` is what the process holds without any model."""
        cache = None if self.cache_per_row is None else self.cache_per_row * batch
        rest = None if peak is None else max(peak - program - self.weights - (cache or 0), 0)
        return {
            "batch": batch,
            "fits": fits,
            "peak": peak,
            "reserved": reserved,
            "weights": self.weights,
            "cache": cache,
            "rest": rest,
            "program": program,
        }

    @torch.inference_mode()
    def _cache(self, token_ids: list[int]) -> int | None:
        ids = torch.tensor([token_ids], device=self.loaded.device)
        output = self.loaded.model(input_ids=ids, use_cache=True)
        return cached_bytes(self.loaded.cache_of(output))


def _on_card(probe: _Probe, tell: Tell) -> dict[str, Any]:
    device = probe.loaded.device

    def measured(batch: int) -> dict[str, Any]:
        tell(f"batch {batch}", 0, 1)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        fits = probe.run(batch)
        peak = torch.cuda.max_memory_allocated(device) if fits else None
        reserved = torch.cuda.max_memory_reserved(device)
        return probe.describe(batch, fits=fits, peak=peak, reserved=reserved)

    rows = {batch: measured(batch) for batch in (1, WANTED)}

    def fits(batch: int) -> bool:
        if batch not in rows:
            rows[batch] = measured(batch)
        return bool(rows[batch]["fits"])

    largest = largest_that_fits(fits, most=MOST_TRIED)
    shown = [rows[batch] for batch in sorted({1, WANTED, largest} & set(rows))]
    free, total = torch.cuda.mem_get_info(device)
    found = {"batches": shown, "largest": largest, "estimated": False}
    return {**found, "free": free, "total": total}


def _on_host(probe: _Probe, tell: Tell) -> dict[str, Any]:
    """Measure small batches and extrapolate from what a row adds: the machine must not swap."""
    rows: list[dict[str, Any]] = []
    peaks: dict[int, int] = {}
    free = available_bytes()
    release()
    base = resident_bytes()
    program = max((base or 0) - probe.weights, 0)
    for batch in (1, WANTED, 2 * WANTED):
        grown = 0 if base is None else max(peaks.values(), default=base) - base
        if free is not None and grown * WANTED > _SHARE * free:
            rows.append(probe.describe(batch, fits=False, peak=None, program=program))
            continue
        tell(f"batch {batch}", 0, 1)
        release()
        reset_peak()
        probe.run(batch)
        peak = peak_resident_bytes()
        rows.append(probe.describe(batch, fits=True, peak=peak, program=program))
        if peak is not None:
            peaks[batch] = peak
    per_row = max(bytes_per_row(peaks), probe.cache_per_row or 0)
    known = per_row > 0 and free is not None
    fitting = max((row["batch"] for row in rows if row["fits"]), default=0)
    room = int(_SHARE * (free or 0) / per_row) if known else fitting
    largest = min(max(room, fitting), MOST_TRIED) if all(row["fits"] for row in rows) else fitting
    found = {"batches": rows, "largest": largest, "estimated": True, "free": free}
    return {**found, "per_row": per_row if known else None, "after_loading": base}


def bytes_per_row(peaks: dict[int, int]) -> float:
    """What each row of a batch adds to the peak, from peaks by batch size; 0 if that cannot be
    told.

    The steepest step counts: a small batch may run within what a larger one before it left behind.
    """
    sizes = sorted(peaks)
    steps = [(peaks[b] - peaks[a]) / (b - a) for a in sizes for b in sizes if a < b]
    return max([0.0, *steps])


def largest_that_fits(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest batch that fits, to an eighth of it, by doubling and bisection; 0 for none."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    if high > most:
        return low
    while high - low > max(low // 8, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
