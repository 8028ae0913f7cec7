"""What an extraction would cost on other machines: time, bytes, objects and requests; not run.

    pack, settings, outline of a model --outline_work--> Workload: prompt lengths, by round
        --forecast_run, by `roofline`, `footprint` and `fleet`--> FleetEstimate

If every device holds a copy of the model, blocks are handed out as `--engine ray` does. A model
that does not fit one device is spread over as few as hold it, which work one after the other, as
with `--device-map auto`; Ray gives each worker one device, so such copies divide the blocks with
`--partition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.errors import PlanError
from lenscache.extract.batch_check import VERIFIED_ROWS
from lenscache.extract.batch_size import MOST_ON_A_CPU, PAYS
from lenscache.extract.identity import make_header
from lenscache.extract.rows import tokenize
from lenscache.extract.settings import ExtractSettings
from lenscache.forecast.devices import Device, Efficiency
from lenscache.forecast.fleet import Fleet, Storage, simulate
from lenscache.forecast.footprint import (
    Engine,
    RoundSize,
    expected_objects,
    expected_requests,
    requests_of_block,
    requests_to_join,
)
from lenscache.forecast.roofline import (
    PARTS,
    Shape,
    Work,
    batch_seconds,
    devices_of_a_copy,
    rows_that_fit,
)
from lenscache.model.loading import LoadedModel
from lenscache.store.disk import COMPRESSED_SHARE, estimate_bytes
from lenscache.store.header import StoreHeader
from lenscache.store.layout import chunk_rows, default_block_rows

Place = Literal["s3", "disk"]
"""Where the store is."""

LETTERS_A_TOKEN = 4.0
"""Where there is no tokenizer: English has about 4.4, and every prompt gets one token more."""

# Amazon's "Best practices design patterns: optimizing Amazon S3 performance": 3,500 PUT and 5,500
# GET a second and prefix, 100 to 200 ms until the first byte, 85 MB/s a connection.
PUTS_PER_SECOND, GETS_PER_SECOND = 3500.0, 5500.0
_REQUEST_SECONDS: dict[Place, tuple[float, float, float]]
_REQUEST_SECONDS = {"s3": (0.1, 0.03, 0.2), "disk": (5e-4, 2e-4, 5e-3)}
"""Expected, best and worst, as all triples here."""
_STREAM_BYTES_PER_SECOND: dict[Place, float] = {"s3": 85e6, "disk": 1e9}
_ENCODED_BYTES_PER_SECOND = 250e6  # of one thread: Blosc with zstd, measured 200 to 340 MB/s

_START_SECONDS = 20.0, 10.0, 60.0  # Python, torch, CUDA; planning and tokenising
_READ_BYTES_PER_SECOND = 2e9, 6e9, 0.5e9  # weights, from a disk or a file server to the device
_HASHED_BYTES_PER_SECOND = 4e9, 12e9, 1e9  # the model's fingerprint, on the cores beside one device

_STRAGGLING = {"spread": 0.1, "slow_share": 0.03, "slow_factor": 2.0}
"""Of blocks, and of machines; see `lenscache.forecast.fleet`."""
_LIFETIME_SECONDS = 24 * 3600.0  # of a worker that may be taken away, on average
_WASTEFUL = 0.5
"""Efficiency below which fewer devices are advised."""


class Workload(NamedTuple):
    """What is to be extracted."""

    header: StoreHeader
    shape: Shape
    levels: tuple[int, ...]
    lengths: tuple[NDArray[np.int32], ...]
    """(rows,) tokens of each prompt, by round."""
    labels: tuple[int, ...]
    """By round."""
    concepts: int
    pack_concepts: int
    pack_links: int
    are_tokens_guessed: bool

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return sum(map(len, self.lengths))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(int(lengths.max(initial=1)) for lengths in self.lengths)


@dataclass(frozen=True)
class FleetEstimate:
    """The cost of one extraction on other devices: expected, in good and in bad circumstances."""

    levels: tuple[int, ...]
    concepts: int
    prompts: int
    prompt_tokens: int
    are_tokens_guessed: bool
    new_tokens: int
    model_layers: int
    device_kind: str
    devices: int
    devices_per_copy: int
    """Devices that one copy of the model is spread over."""
    copies: int
    """Of the model, that is workers."""
    engine: Engine
    """How they divide the blocks: partitions for one worker or copies over several devices."""
    batch_size: int
    blocks: int
    block_rows: int
    seconds: float
    """From start to last block, expected: some machines are slow, and now and then one dies."""
    seconds_low: float
    seconds_high: float
    seconds_with_partitions: float
    """Expected with `--partition k/n`, where each worker has its share from the start."""
    device_hours: float
    seconds_to_load: float
    """Of each worker, until its first block."""
    seconds_a_block: float
    """Through the model, on average."""
    seconds_to_write_a_block: float
    """Beside the next block; it counts where it is longer."""
    efficiency: float
    """Share of the devices' time in which they run blocks."""
    parts: dict[str, float] = field(default_factory=dict)
    """Share of the devices' time, by what it is spent on."""
    raw_bytes: int = 0
    stored_bytes: int = 0
    objects: int = 0
    puts: int = 0
    gets: int = 0
    """GET and HEAD."""
    gets_with_partitions: int = 0
    lists: int = 0
    cheaper: list[str] = field(default_factory=list)
    """What to change, and what it would come to."""


def outline_work(
    pack: ConceptPack,
    model: LoadedModel,
    settings: ExtractSettings,
    *,
    levels: Sequence[int] | None = None,
    limit: int | None = None,
) -> Workload:
    """Plan the rounds and count their tokens.

    Raises
    ------
    PlanError, ModelLayerError, PromptTooLongError
        As `lenscache.extract.extract` would.
    """
    header = make_header(model, pack, settings)
    chosen = tuple(levels or pack.levels)
    plans = [
        plan_samples(pack, [level], seed=settings.seed, limit=limit, samples=settings.samples)
        for level in chosen
    ]
    return Workload(
        header,
        Shape.of(model),
        chosen,
        tuple(_lengths(model, plan.texts, header) for plan in plans),
        tuple(len(plan.label_role) for plan in plans),
        sum(plan.n_targets for plan in plans),
        len(pack.concepts),
        sum(len(concept.parents) for concept in pack.concepts),
        model.tokenizer is None,
    )


def _lengths(model: LoadedModel, texts: Sequence[str], header: StoreHeader) -> NDArray[np.int32]:
    limit = header.max_prompt_tokens
    if model.tokenizer is not None:
        return tokenize(model, texts, limit, continued=header.mode != "prompt").lengths
    guessed = np.array([2 + len(text) // LETTERS_A_TOKEN for text in texts], np.int32)
    return np.minimum(guessed, limit) if limit else guessed


def forecast_run(
    work: Workload,
    settings: ExtractSettings,
    device: Device,
    devices: int = 1,
    *,
    place: Place = "s3",
) -> FleetEstimate:
    """Estimate what `extract` would cost on so many devices of a kind.

    Parameters
    ----------
    place : where the store is; a disk is one that all workers share.

    Raises
    ------
    PlanError
        If the model does not fit the memory of all the devices together.
    """
    estimate = _forecast(work, settings, device, devices, place)
    return replace(estimate, cheaper=_cheaper(work, settings, device, estimate, place))


def _forecast(
    work: Workload, settings: ExtractSettings, device: Device, devices: int, place: Place
) -> FleetEstimate:
    header, shape = work.header, work.shape
    block_rows = settings.block_rows or default_block_rows(header.hidden)
    sizes = zip(work.lengths, work.labels, strict=True)
    rounds = [RoundSize(len(lengths), labels, block_rows) for lengths, labels in sizes]
    spread_over = _spread_over(work, device, devices)
    copies = devices // spread_over
    engine: Engine = "ray" if spread_over == 1 < copies else "partitions"
    done = _work(header, shape, device, one_device=spread_over == 1)
    batch = _batch_size(work, settings, device, done, spread_over, block_rows)
    costs = [_Costs.of(work, device, each, done, batch, block_rows) for each in device.efficiencies]
    raw = estimate_bytes(header, work.prompts)
    stored = int(raw * (COMPRESSED_SHARE if header.store_dtype == "bfloat16" else 1.0))
    times = _simulated(work, rounds, costs, stored, copies, engine, place)
    total, block_seconds = copies * times.expected, costs[0].block_seconds
    return FleetEstimate(
        levels=work.levels,
        concepts=work.concepts,
        prompts=work.prompts,
        prompt_tokens=sum(int(lengths.sum()) for lengths in work.lengths),
        are_tokens_guessed=work.are_tokens_guessed,
        new_tokens=header.max_new_tokens * work.prompts,
        model_layers=len(header.model_layers),
        device_kind=device.name,
        devices=devices,
        devices_per_copy=spread_over,
        copies=copies,
        engine=engine,
        batch_size=batch,
        blocks=sum(each.blocks for each in rounds),
        block_rows=block_rows,
        seconds=times.expected,
        seconds_low=times.low,
        seconds_high=times.high,
        seconds_with_partitions=times.with_partitions,
        device_hours=devices * times.expected / 3600,
        seconds_to_load=times.loading,
        seconds_a_block=float(block_seconds.mean()),
        seconds_to_write_a_block=times.writing,
        efficiency=float(block_seconds.sum()) / total,
        parts=_parts(costs[0], total, copies * times.loading, times.writing),
        raw_bytes=raw,
        stored_bytes=stored,
        **_objects_and_requests(work, rounds, copies, engine),
    )


def _spread_over(work: Workload, device: Device, devices: int) -> int:
    """Devices that hold one copy of the model, if there are so many."""
    header, shape = work.header, work.shape
    done = _work(header, shape, device, one_device=True)
    needed = devices_of_a_copy(shape, device, done, work.longest)
    if needed > devices:
        raise PlanError(
            f"{header.model_id} takes {shape.weight_bytes / 1e9:.0f} GB in {header.model_dtype} "
            f"and room for a row, a {device.name} has {device.memory_bytes / 1e9:.0f}: give "
            f"--devices {needed} or more"
        )
    return needed


class _Times(NamedTuple):
    """Seconds, as simulated."""

    expected: float
    low: float
    high: float
    with_partitions: float
    loading: float
    """Of each worker, expected."""
    writing: float
    """Of a block, expected."""


def _simulated(
    work: Workload,
    rounds: Sequence[RoundSize],
    costs: Sequence[_Costs],
    stored: int,
    copies: int,
    engine: Engine,
    place: Place,
) -> _Times:
    """Simulate a run in expected, good and bad circumstances, and one with `--partition`."""
    expected, best, worst = costs
    waits, size = _REQUEST_SECONDS[place], work.shape.weight_bytes
    storages = [_storage(work, rounds, stored, wait, place, engine) for wait in waits]
    divided = _storage(work, rounds, stored, waits[0], place, "partitions")
    steps = zip(_START_SECONDS, _READ_BYTES_PER_SECOND, _HASHED_BYTES_PER_SECOND, strict=True)
    loads = [start + size / read + size / hashed for start, read, hashed in steps]
    fleet = Fleet(copies, loads[0], **_STRAGGLING, lifetime=_LIFETIME_SECONDS)
    blocks = [each.blocks for each in rounds]
    way: Any = {"engine": "dynamic" if engine == "ray" else "static", "rounds": blocks}
    usual = simulate(expected.block_seconds, fleet, storages[0], **way)
    shares = simulate(expected.block_seconds, fleet, divided, engine="static", rounds=blocks)
    low = simulate(best.block_seconds, Fleet(copies, loads[1]), storages[1], **way)
    high = simulate(worst.block_seconds, replace(fleet, load_seconds=loads[2]), storages[2], **way)
    return _Times(
        expected=usual.makespan + expected.verifying,
        low=low.makespan + best.verifying,
        high=high.makespan + worst.verifying,
        with_partitions=shares.makespan + expected.verifying,
        loading=loads[0],
        writing=storages[0].seconds_a_block,
    )


def _objects_and_requests(
    work: Workload, rounds: Sequence[RoundSize], workers: int, engine: Engine
) -> dict[str, Any]:
    """Counts of a whole run, by the names of `FleetEstimate`."""
    header, block_rows = work.header, rounds[0].block_rows
    pack: dict[str, Any] = {"concepts": work.pack_concepts, "links": work.pack_links}
    chunks = block_rows // chunk_rows(header.hidden, block_rows)
    run = {**pack, "workers": workers, "chunks_a_block": chunks}
    asked = expected_requests(header, rounds, engine=engine, **run)
    divided = expected_requests(header, rounds, **run)
    return {
        "objects": expected_objects(header, rounds, **pack),
        "puts": asked.put,
        "gets": asked.get + asked.head,
        "gets_with_partitions": divided.get + divided.head,
        "lists": asked.list,
    }


class _Costs(NamedTuple):
    """Seconds of all blocks at one efficiency."""

    block_seconds: NDArray[np.float64]
    """(blocks,), all rounds one after the other."""
    parts: dict[str, float]
    verifying: float
    """Seconds at the end of a round: some rows together, and one by one."""

    @classmethod
    def of(
        cls,
        work: Workload,
        device: Device,
        efficiency: Efficiency,
        done: Work,
        batch: int,
        block_rows: int,
    ) -> _Costs:
        sizes, widths, blocks = _batches(work.lengths, batch, block_rows)
        dtype = work.header.model_dtype
        parts = batch_seconds(work.shape, device, efficiency, done, dtype, sizes, widths)
        middling = np.full(1 + VERIFIED_ROWS, float(np.mean(widths)))
        again = np.array([VERIFIED_ROWS] + [1] * VERIFIED_ROWS, float)
        called = done._replace(is_recorded=False)
        verifying = batch_seconds(work.shape, device, efficiency, called, dtype, again, middling)
        return cls(
            np.bincount(blocks, sum(parts.values())).astype(float),
            {part: float(parts[part].sum()) for part in PARTS},
            float(sum(each.sum() for each in verifying.values())),
        )


def _batches(
    lengths: Sequence[NDArray[np.int32]], batch: int, block_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Rows, padded positions and block of every batch: full batches, by length in each block."""
    sizes, widths, blocks, first = [], [], [], 0
    for each in lengths:
        rows = np.arange(len(each))
        block = rows // block_rows
        ordered = each[np.lexsort((each, block))]  # of a block, the shortest first
        within = rows % block_rows
        starts = np.flatnonzero(within % batch == 0)
        sizes.append(np.diff(np.append(starts, len(each))))
        widths.append(np.maximum.reduceat(ordered, starts))
        blocks.append(first + block[starts])
        first += int(block[-1]) + 1
    rows_of, width_of = np.concatenate(sizes).astype(float), np.concatenate(widths).astype(float)
    return rows_of, width_of, np.concatenate(blocks)


def _work(header: StoreHeader, shape: Shape, device: Device, *, one_device: bool) -> Work:
    is_prompt = header.mode == "prompt"
    depth = max(header.model_layers) + 1 if is_prompt else shape.n_layers
    is_recorded = device.is_gpu and one_device
    return Work(depth, len(header.model_layers), header.max_new_tokens, is_recorded)


def _batch_size(
    work: Workload,
    settings: ExtractSettings,
    device: Device,
    done: Work,
    spread_over: int,
    block_rows: int,
) -> int:
    """Rows a forward pass: as asked for, or the smallest number that is about the fastest."""
    most = min(block_rows, rows_that_fit(work.shape, device, done, work.longest, spread_over))
    if settings.batch_size != "auto":
        return min(settings.batch_size, most)
    sizes = [4]
    while 2 * sizes[-1] <= min(most, block_rows if device.is_gpu else MOST_ON_A_CPU):
        sizes.append(2 * sizes[-1])
    tried = np.array(sizes, float)
    widths = np.full(len(sizes), float(np.median(np.concatenate(work.lengths))))
    efficiency, dtype = device.efficiencies[0], work.header.model_dtype
    parts = batch_seconds(work.shape, device, efficiency, done, dtype, tried, widths)
    rates = tried / sum(parts.values())
    good = (size for size, rate in zip(sizes, rates, strict=True) if rate * PAYS >= rates.max())
    return min(most, next(good))


def _storage(
    work: Workload,
    rounds: Sequence[RoundSize],
    stored: int,
    request_seconds: float,
    place: Place,
    engine: Engine,
) -> Storage:
    """Writing: one request after the other, as `Round.write_block` does."""
    blocks = sum(each.blocks for each in rounds)
    raw = estimate_bytes(work.header, work.prompts)
    block = requests_of_block(work.header, engine)
    encoding = raw / blocks / _ENCODED_BYTES_PER_SECOND
    seconds = (block.put + block.get) * request_seconds
    seconds += stored / blocks / _STREAM_BYTES_PER_SECOND[place] + encoding
    if place == "disk":
        return Storage(seconds)
    pack: dict[str, Any] = {"concepts": work.pack_concepts, "links": work.pack_links}
    join = requests_to_join(work.header, rounds, engine=engine, **pack)
    limits = PUTS_PER_SECOND, GETS_PER_SECOND
    return Storage(seconds, block.put, block.get, join.get + join.list, *limits)


def _parts(expected: _Costs, total: float, loading: float, writing: float) -> dict[str, float]:
    """Shares of the workers' time; the rest is waiting for others and blocks done again."""
    held_up = float(np.maximum(writing - expected.block_seconds, 0).sum())
    found = {**expected.parts, "loading": loading, "waiting for writes": held_up}
    shares = {name: seconds / total for name, seconds in found.items()}
    left = 1 - sum(shares.values())
    if left < 0:  # the simulation has fewer
        shares["waiting for writes"] = max(0.0, shares["waiting for writes"] + left)
    return {**shares, "idle: stragglers, deaths, the end": max(0.0, 1 - sum(shares.values()))}


def _cheaper(
    work: Workload, settings: ExtractSettings, device: Device, now: FleetEstimate, place: Place
) -> list[str]:
    """Changes that would help, each estimated anew."""
    header = work.header
    found: list[str] = []

    def consider(
        what: str, changed: Workload, its: ExtractSettings, devices: int = now.devices
    ) -> None:
        then = _forecast(changed, its, device, devices, place)
        if then.device_hours < now.device_hours / PAYS:
            hours, time = then.device_hours / now.device_hours, then.seconds / now.seconds
            found.append(f"{what}: {hours:.2f} of the device hours, in {time:.2f} of the time")

    if settings.batch_size != "auto":
        consider("--batch-size auto", work, replace(settings, batch_size="auto"))
    if now.efficiency < _WASTEFUL and now.copies > 1:
        fewer = now.devices_per_copy * max(1, round(now.copies * now.efficiency))
        consider(f"--devices {fewer}", work, settings, fewer)
    if now.seconds_to_write_a_block > now.seconds_a_block and len(header.model_layers) > 1:
        few = header.model_layers[:: max(2, len(header.model_layers) // 8)]
        fewer_stored = work._replace(header=replace(header, model_layers=few))
        consider(f"--model-layers, {len(few)} of them", fewer_stored, settings)
    if header.mode != "prompt":
        prompt = replace(header, mode="prompt", max_new_tokens=0)
        consider("--mode prompt", work._replace(header=prompt), replace(settings, mode="prompt"))
        if header.max_new_tokens >= 4:
            half = header.max_new_tokens // 2
            changed = work._replace(header=replace(header, max_new_tokens=half))
            consider(f"--max-new-tokens {half}", changed, replace(settings, max_new_tokens=half))
    return found
