"""Check 3: how many prompts a second, one at a time and in batches, in float32 and in bfloat16?"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import ModelError, ModelNotFoundError
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.memory import available_bytes, peak_resident_bytes, resident_bytes
from lenscache.model.loading import LoadedModel
from lenscache.preflight.models import check_room, load
from lenscache.preflight.results import Outcome, Request, Tell
from lenscache.preflight.texts import load_pack, prompt_ids

_NEW_TOKENS = {False: 20, True: 5}  # by whether it is to be quick
_REPEATS = {False: 5, True: 3}
_BUDGET_S = {False: 75.0, True: 12.0}  # of the repeats; half as much to find the batch size
_SIZES = (8, 16, 32, 64, 128, 256)
_PROMPTS = 64
_WORTH = 1.05  # a larger batch must be so many times as fast


@dataclass
class Timing:
    """One way to run the model."""

    name: str
    batch: int
    runner: Runner
    """The same one in every repeat: what it sets up once is no cost of a prompt."""
    rates: list[float] = field(default_factory=list)
    """Prompts a second, one number a repeat."""

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return self.runner.loaded.dtype


def check(request: Request, tell: Tell) -> Outcome:
    """Time the ways to extract the same prompts, in turn, several times over."""
    tell("loading", 0, 1)
    models, missing = _load_models(request)
    first = next(iter(models.values()))
    new_tokens = min(_NEW_TOKENS[request.quick], (first.max_positions or 1 << 30) // 2)
    bench = _Bench(load_pack(request), request, new_tokens)
    timings = [
        Timing(f"{kind} {dtype}", batch, bench.runner(loaded, batch))
        for kind, batch in (("unbatched", 1), ("batch 4", 4))
        for dtype, loaded in models.items()
        if (kind, dtype) != ("unbatched", "bfloat16") or len(models) == 1
    ]
    paces = {}
    for number, timing in enumerate(timings):
        tell("warming up", number + 1, len(timings))
        bench.rate(timing.runner, timing.batch)
        paces[timing.name] = bench.rate(timing.runner, timing.batch)
    by_four = {timing.dtype: paces[timing.name] for timing in timings if timing.batch > 1}
    fastest = models[max(by_four, key=lambda dtype: by_four[dtype])]
    known = {t.batch: paces[t.name] for t in timings if t.dtype == fastest.dtype}
    batch, probed = bench.best_batch(fastest, known, _BUDGET_S[request.quick] / 2, tell)
    name = f"batch auto ({batch}) {fastest.dtype}"
    timings.append(Timing(name, batch, bench.runner(fastest, batch)))
    paces[name] = probed[batch]
    n = bench.affordable(list(paces.values()), _REPEATS[request.quick], _BUDGET_S[request.quick])
    repeats = _time_in_turn(bench, timings, n, request, tell)
    base = timings[0].rates
    lines = [summarise(t.name, t.dtype, t.batch, t.rates, base) for t in timings]
    details = {
        "device": str(first.device),
        "timings": lines,
        "best_batch": batch,
        "best_dtype": fastest.dtype,
        "batch_sizes": {str(size): rate for size, rate in probed.items()},
        "prompts": n,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "missing": missing,
    }
    ratios = ", ".join(f"{line['name']} {line['ratio']:.1f} x" for line in lines[1:])
    baseline = f"{lines[0]['name']} runs {lines[0]['median']:.2f} prompts/s"
    left_out = f"; {missing}" if missing else ""
    return Outcome.passed(f"{baseline}; {ratios}{left_out}", **details)


def _time_in_turn(
    bench: _Bench, timings: Sequence[Timing], n: int, request: Request, tell: Tell
) -> int:
    """Time all ways in every repeat, so that other load meets them all; the number of repeats."""
    repeats, start = _REPEATS[request.quick], time.perf_counter()
    if timings[0].runner.loaded.device.type == "cuda":
        bench.rate(timings[-1].runner, timings[-1].batch)  # records what the repeats replay
    for repeat in range(repeats):
        # A machine that has become slower gets fewer repeats, though never one alone.
        if repeat > 1 and time.perf_counter() - start > _BUDGET_S[request.quick]:
            return repeat
        for number, timing in enumerate(timings):
            tell("timing", repeat * len(timings) + number + 1, repeats * len(timings))
            timing.rates.append(bench.rate(timing.runner, n))
    return repeats


def summarise(
    name: str, dtype: str, batch: int, rates: Sequence[float], baseline: Sequence[float]
) -> dict[str, Any]:
    """Median and spread of one way to run; ratios are to the baseline of the same repeat."""
    ratios = [rate / base for rate, base in zip(rates, baseline, strict=True)]
    return {
        "name": name,
        "dtype": dtype,
        "batch": batch,
        "median": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


class _Bench:
    """Prompts to time."""

    def __init__(self, pack: ConceptPack, request: Request, new_tokens: int) -> None:
        self._pack, self._request, self._new_tokens = pack, request, new_tokens
        self._rows: list[Row] = []

    def runner(self, loaded: LoadedModel, batch: int) -> Runner:
        """What `lenscache extract` runs prompts with."""
        blocks, new_tokens = range(loaded.n_layers), self._new_tokens
        return Runner(loaded, blocks, max_new_tokens=new_tokens, limits=BatchLimits(batch))

    def rate(self, runner: Runner, n: int) -> float:
        """Prompts a second over about `n` prompts, in whole batches; 0 if a batch does not fit."""
        batch, loaded = runner.limits.rows, runner.loaded
        prompts = itertools.cycle(self._prompts(loaded))
        rows = list(itertools.islice(prompts, -(-n // batch) * batch))
        _synchronise(loaded)
        start = time.perf_counter()
        runner.run(rows)
        _synchronise(loaded)
        elapsed = time.perf_counter() - start
        return 0.0 if runner.out_of_memory else len(rows) / elapsed

    def best_batch(
        self, loaded: LoadedModel, known: Mapping[int, float], budget_s: float, tell: Tell
    ) -> tuple[int, dict[int, float]]:
        """The batch size with most prompts a second that fits memory, within the time to search.

        `known` has the rates of small batches; 0 for one that does not fit.
        """
        rates = {size: rate for size, rate in known.items() if rate > 0}
        if 4 not in rates:  # four rows do not fit, more will not
            return 1, {1: rates.get(1) or self.rate(self.runner(loaded, 1), 1)}
        start, before = time.perf_counter(), resident_bytes()
        for size in _SIZES:
            left = budget_s - (time.perf_counter() - start)
            grown = (peak_resident_bytes() or 0) - (before or 0)
            is_tight = loaded.device.type == "cpu" and 2 * grown > (available_bytes() or 2 * grown)
            if size / max(rates.values()) > left or is_tight:
                break
            tell(f"looking for the best batch size: {size}", 0, 1)
            runner = self.runner(loaded, size)
            if loaded.device.type == "cuda":  # the first run records what later ones replay
                self.rate(runner, size)
            rates[size] = self.rate(runner, size)
            if rates[size] < _WORTH * max(rate for other, rate in rates.items() if other < size):
                break
        return max(rates, key=lambda size: rates[size]), rates

    @staticmethod
    def affordable(paces: Sequence[float], repeats: int, budget_s: float) -> int:
        """How many prompts each way can run in each repeat."""
        seconds_a_prompt = sum(1 / pace for pace in paces if pace > 0)
        return max(min(int(budget_s / repeats / seconds_a_prompt), _PROMPTS), 4)

    def _prompts(self, loaded: LoadedModel) -> list[Row]:
        if not self._rows:
            n, seed = self._new_tokens, self._request.seed
            found = prompt_ids(loaded, self._pack, _PROMPTS, seed=seed, new_tokens=n)
            # A completion of full length is given, so that every way to run writes as much.
            follow = tuple(token for token in found[0] * n if token not in loaded.eos_ids)
            self._rows = [Row(ids, completion_ids=follow[:n]) for ids in found]
        return self._rows


def _load_models(request: Request) -> tuple[dict[str, LoadedModel], str]:
    """float32 and bfloat16, as far as both fit at once, and a line on what does not."""
    models: dict[str, LoadedModel] = {}
    narrow, footprint = load(request.model, "bfloat16", request.device)
    try:
        check_room(footprint, "float32")
        models["float32"], _ = load(request.model, "float32", request.device)
    except ModelNotFoundError:
        raise
    except ModelError as error:
        return {"bfloat16": narrow}, f"float32 is not timed: {error}"
    return models | {"bfloat16": narrow}, ""


def _synchronise(loaded: LoadedModel) -> None:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
