"""What an extraction would cost, before anything is spent: prompts, tokens, bytes and time.

pack + settings --plan_samples--> rows --tokenizer--> tokens --a few timed batches--> seconds
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_background, plan_samples
from lenscache.extract.background import write_texts
from lenscache.extract.batch_size import choose_batch, make_runner
from lenscache.extract.identity import make_header
from lenscache.extract.rows import PlannedRows, tokenize
from lenscache.extract.settings import ExtractSettings
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.inference.trial import check_model_runs
from lenscache.model.loading import LoadedModel
from lenscache.store.disk import estimate_bytes, estimate_stored_bytes

TIMED_BATCHES = 4
"""Batches that are run to measure the pace, after one that warms up."""


_BLOCK_ROWS = 256  # of a block, hence of a batch, about
_WRITTEN = 16  # background texts that the model writes, to time it


@dataclass(frozen=True)
class RunEstimate:
    """The cost of one extraction. Times are of this device, as measured now."""

    levels: tuple[int, ...]
    concepts: int
    prompts: int
    cut_prompts: int
    """Prompts that are longer than the model takes, and would be cut."""
    prompt_tokens: int
    new_tokens: int
    """Tokens to generate, at most: completions may end earlier."""
    model_layers: int
    raw_bytes: int
    """Activations as they are, before compression."""
    stored_bytes: int
    """What is expected on disk: 0.75 of raw for bfloat16, a little more than was measured."""
    bytes_per_model_layer: int
    """Of `stored_bytes`, all phases of one model layer."""
    seconds: float
    prompts_per_second: float
    batch_size: int
    """Rows a forward pass, as asked for or as found."""
    background: int = 0
    """Of the prompts, texts that express no concept."""


def estimate_run(
    pack: ConceptPack,
    loaded: LoadedModel,
    settings: ExtractSettings | None = None,
    *,
    levels: Sequence[int] | None = None,
    limit: int | None = None,
    background: int | Sequence[str] | None = None,
) -> RunEstimate:
    """Estimate what `extract` with the same arguments would cost, by running a few batches.

    Raises
    ------
    PlanError, ModelLayerError, PromptTooLongError
        As `extract` would.
    """
    settings = settings or ExtractSettings()
    header = make_header(loaded, pack, settings)
    check_model_runs(loaded, header.model_layers, header.mode)
    plans = [
        plan_samples(pack, [level], seed=settings.seed, limit=limit, samples=settings.samples)
        for level in (levels or pack.levels)
    ]
    seconds_to_write = 0.0
    if background is not None:
        texts, seconds_to_write = _background_texts(background, loaded, settings)
        plans.append(plan_background(pack, texts, seed=settings.seed))
    goes_on, cut_at = header.mode != "prompt", header.max_prompt_tokens
    tokenized = [tokenize(loaded, plan.texts, cut_at, continued=goes_on) for plan in plans]
    rows = [PlannedRows(plan, found) for plan, found in zip(plans, tokenized, strict=True)]
    n_rows = sum(map(len, rows))
    stored = estimate_stored_bytes(header, n_rows)
    if settings.batch_size == "auto":
        new_runner = partial(make_runner, loaded, header)
        limits = choose_batch(new_runner, rows, most=_BLOCK_ROWS).limits
    else:
        limits = BatchLimits(settings.batch_size)
    runner = make_runner(loaded, header, limits)
    seconds_a_row = _pace(runner, [row for each in rows for row in each])
    return RunEstimate(
        levels=tuple(levels or pack.levels),
        concepts=sum(plan.n_targets for plan in plans),
        prompts=n_rows,
        cut_prompts=sum(int((found.n_cut > 0).sum()) for found in tokenized),
        prompt_tokens=sum(int(each.lengths.sum()) for each in rows),
        new_tokens=header.max_new_tokens * n_rows,
        model_layers=len(header.model_layers),
        raw_bytes=estimate_bytes(header, n_rows),
        stored_bytes=stored,
        bytes_per_model_layer=stored // len(header.model_layers),
        seconds=seconds_a_row * n_rows + seconds_to_write,
        prompts_per_second=1 / seconds_a_row,
        batch_size=limits.rows,
        background=0 if background is None else len(plans[-1]),
    )


def _background_texts(
    asked: int | Sequence[str], loaded: LoadedModel, settings: ExtractSettings
) -> tuple[Sequence[str], float]:
    """The texts, or as many that are like those the model would write; and the seconds that it
    would take to write them."""
    if not isinstance(asked, int):
        return asked, 0.0
    few, begun = min(asked, _WRITTEN), time.perf_counter()
    written = write_texts(loaded, few, settings, lambda _: None)
    seconds = (time.perf_counter() - begun) * asked / few
    return [f"{written[number % few]} {number}" for number in range(asked)], seconds


def _pace(runner: Runner, rows: Sequence[Row]) -> float:
    """Seconds a row: batches from short to long prompts, as a block would run them."""
    by_length = sorted(rows, key=lambda row: len(row.token_ids))
    size = min(runner.limits.rows, len(rows))
    last = len(rows) - size
    starts = sorted({round(last * (i + 0.5) / TIMED_BATCHES) for i in range(TIMED_BATCHES)})
    runner.run(by_length[starts[0] : starts[0] + size])
    begun = time.perf_counter()
    for start in starts:
        runner.run(by_length[start : start + size])
    return (time.perf_counter() - begun) / (len(starts) * size)
