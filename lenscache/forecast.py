"""What an extraction would cost on other devices: bytes, tokens and time, worked out and not run.

    pack, settings, outline of a model --outline_work--> Workload: prompt lengths, by round
        --forecast_run, with the figures of a Device--> Forecast

A prefill multiplies every weight with every position and is bound by FLOP/s; a decode step reads
every weight for one position a row and is bound by bandwidth. A GPU computes while Python launches
the next operation, so launching counts where it takes longer; on a CPU it is added. Waiting for an
object store, slow machines and deaths are left out: `docs/scaling.md` says what they cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_background, plan_samples
from lenscache.errors import PlanError
from lenscache.extract.background import WRITTEN_TOKENS
from lenscache.extract.batch_size import MOST_ON_A_CPU, PAYS
from lenscache.extract.identity import make_header
from lenscache.extract.rows import tokenize
from lenscache.extract.settings import ExtractSettings
from lenscache.memory import available_bytes
from lenscache.model.loading import LoadedModel
from lenscache.store.disk import estimate_bytes, estimate_stored_bytes
from lenscache.store.header import StoreHeader
from lenscache.store.layout import default_block_rows

_LETTERS_A_TOKEN = 4.0  # without a tokenizer: English has 4.4, and each prompt gets a token more
_CALLS_A_BLOCK, _CALLS_A_PASS = 280, 500  # of Python; measured 240 to 300 on a CPU
_RECORDED_SECONDS_A_BLOCK = 40e-6  # a dozen kernels or so of a CUDA graph, one after the other
_WEIGHT_PASSES_ON_A_CPU = 3  # for each product, BLAS reads weights, rearranges and reads them again
_ELEMENTWISE = 12, 5  # values a position beside matrix products, in hidden and in inner sizes
_SAMPLING_PASSES, _POOLING_PASSES = 12, 3  # reads and writes of each logit, each pooled value
_USABLE_MEMORY = 0.9

Floats = NDArray[np.float64]


class Efficiency(NamedTuple):
    """What share of a device's figures is reached."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Device:
    """A kind of device. No program reaches its figures: `efficiencies` says what is counted on."""

    name: str
    memory_bytes: float
    bandwidth: float
    """Bytes a second."""
    half_flops: float
    """FLOP/s of matrix products in bfloat16 and float16, without sparsity."""
    single_flops: float
    """The same in float32."""
    is_gpu: bool = True
    seconds_a_call: float = 2.5e-6
    """What it takes to ask for one small operation from Python."""
    load_bandwidth: float = 1.3e9
    """Bytes of weights a second, from a disk to the device and through the fingerprint."""
    efficiencies: tuple[Efficiency, Efficiency, Efficiency] = (
        Efficiency(0.5, 0.65),
        Efficiency(0.7, 0.85),
        Efficiency(0.25, 0.4),
    )
    """Expected, best and worst."""


_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # Data sheets of NVIDIA H100 SXM, H200 SXM, A100 80GB SXM and L40S (half of its sparse
        # figure), whitepaper of NVIDIA Ada (sums in float32).
        Device("h100", 80 * _GB, 3.35 * _TB, 989 * _TFLOPS, 67 * _TFLOPS),
        Device("h200", 141 * _GB, 4.8 * _TB, 989 * _TFLOPS, 67 * _TFLOPS),
        Device("a100", 80 * _GB, 2.04 * _TB, 312 * _TFLOPS, 19.5 * _TFLOPS),
        Device("l40s", 48 * _GB, 0.864 * _TB, 362 * _TFLOPS, 91.6 * _TFLOPS),
        Device("rtx4090", 24 * _GB, 1.01 * _TB, 165 * _TFLOPS, 82.6 * _TFLOPS),
        # One socket of Intel Xeon Platinum 8480+: eight channels of DDR5-4800, AMX, AVX-512.
        Device("cpu", 256 * _GB, 0.307 * _TB, 229 * _TFLOPS, 7.2 * _TFLOPS, is_gpu=False),
    )
}


def find_device(name: str) -> Device:
    """The device of this name.

    Raises
    ------
    PlanError
        If there are no figures of it.
    """
    if name not in DEVICES:
        raise PlanError(
            f"there are no figures of the device kind {name!r}: choose one of {', '.join(DEVICES)} "
            "or here"
        )
    return DEVICES[name]


def measure_device(
    place: torch.device, dtype: str, *, clock: Callable[[], float] = time.perf_counter
) -> Device:
    """Measure bandwidth, FLOP/s and cost of a call of a device here, in a second or two.

    Parameters
    ----------
    clock : seconds; with one thread, a clock of CPU time leaves out what other processes take.
    """
    on_gpu = place.type == "cuda"
    side, read = (8192, 2**30) if on_gpu else (1024, 2**26)
    matrix = torch.ones(side, side, dtype=getattr(torch, dtype), device=place)
    values = torch.ones(read, dtype=torch.int8, device=place).view(torch.int64)
    few, calls = torch.ones(8, 8), 500

    def seconds(run: Callable[[], object]) -> float:
        found = []
        for _ in range(6):
            start = clock()
            run()
            if on_gpu:
                torch.cuda.synchronize(place)
            found.append(clock() - start)
        return statistics.median(found[1:])

    flops = 2 * float(side) ** 3 / seconds(lambda: matrix @ matrix)
    bandwidth = values.nbytes / seconds(values.sum)
    a_call = seconds(lambda: [few.add(few) for _ in range(calls)]) / calls
    if on_gpu:
        memory = float(torch.cuda.get_device_properties(place).total_memory)
    else:
        memory = float(available_bytes() or DEVICES["cpu"].memory_bytes)
    # A model has smaller products and shorter reads, which alternate; a launch is slower.
    reached = Efficiency(0.85, 0.85), Efficiency(1.0, 1.0), Efficiency(0.5, 0.5)
    a_call *= 2 if on_gpu else 1
    return Device("here", memory, bandwidth, flops, flops, on_gpu, a_call, efficiencies=reached)


@dataclass(frozen=True)
class Shape:
    """A model in numbers."""

    n_layers: int
    hidden: int
    inner: int
    """Size of the feed-forward layers."""
    vocab: int
    itemsize: int
    """Bytes of a weight."""
    block_weights: float
    """Weights of one block, on average."""
    active_weights: float
    """Those that one position is multiplied with; fewer where there are experts."""
    weight_bytes: float
    """Of the whole model."""
    heads_size: int
    """Query heads x their size."""
    cache_values: int
    """Keys and values that a block keeps of a position."""
    head_groups: int
    """Query heads that share a key."""

    @classmethod
    def of(cls, model: LoadedModel) -> Shape:
        """The shape of a model, with or without its weights.

        Raises
        ------
        PlanError
            If its configuration does not say what attention keeps.
        """
        config: Any = model.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None)
        if not heads:
            raise PlanError(
                f"the configuration of {model.id} names no attention heads: estimate on the device "
                "itself"
            )
        size = getattr(config, "head_dim", None) or model.hidden // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        named = [entry for block in model.blocks for entry in block.named_parameters()]
        block_weights = sum(weight.numel() for _, weight in named) / model.n_layers
        experts = (w for name, w in named if "experts" in name and "shared" not in name)
        in_experts = sum(weight.numel() for weight in experts) / model.n_layers
        n_experts = getattr(config, "num_local_experts", None)
        n_experts = n_experts or getattr(config, "num_experts", None) or 1
        share = min(1.0, (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts)
        itemsize = 4 if model.dtype == "float32" else 2
        return cls(
            n_layers=model.n_layers,
            hidden=model.hidden,
            inner=int(getattr(config, "intermediate_size", None) or 4 * model.hidden),
            vocab=int(config.vocab_size),
            itemsize=itemsize,
            block_weights=block_weights,
            active_weights=block_weights - in_experts * (1 - share),
            weight_bytes=float(sum(w.numel() for w in model.model.parameters()) * itemsize),
            heads_size=heads * size,
            cache_values=2 * key_heads * size,
            head_groups=max(1, heads // key_heads),
        )


class Workload(NamedTuple):
    """What is to be extracted."""

    header: StoreHeader
    shape: Shape
    levels: tuple[int, ...]
    lengths: tuple[NDArray[np.int32], ...]
    """(rows,) tokens of each prompt, by round."""
    concepts: int
    are_tokens_guessed: bool

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return sum(map(len, self.lengths))

    @property
    def depth(self) -> int:
        """Blocks that a pass goes through."""
        layers = self.header.model_layers
        return max(layers) + 1 if self.header.mode == "prompt" else self.shape.n_layers

    def row_bytes(self) -> float:
        """Memory that the longest row of a batch takes."""
        shape, new = self.shape, self.header.max_new_tokens
        width = max(int(lengths.max(initial=1)) for lengths in self.lengths)
        kept = (width + new) * shape.cache_values * shape.itemsize if new else 0
        cache = kept * (shape.n_layers + 2 * shape.head_groups)  # with one block's repeated keys
        passing = width * (6 * shape.hidden + 3 * shape.inner) * shape.itemsize
        pooled = 2 * len(self.header.model_layers) * shape.hidden * 4
        return float(cache + passing + pooled + 16 * shape.vocab * bool(new))


@dataclass(frozen=True)
class Forecast:
    """The cost of one extraction on other devices."""

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
    """Of the model; each takes blocks of its own."""
    batch_size: int
    blocks: int
    block_rows: int
    seconds: float
    """From start to last block, expected."""
    seconds_low: float
    seconds_high: float
    device_hours: float
    seconds_to_load: float
    seconds_a_block: float
    raw_bytes: int
    stored_bytes: int


def outline_work(
    pack: ConceptPack,
    model: LoadedModel,
    settings: ExtractSettings,
    *,
    levels: Sequence[int] | None = None,
    limit: int | None = None,
    background: int | Sequence[str] | None = None,
) -> Workload:
    """Plan the rounds and count their tokens.

    Raises
    ------
    PlanError, ModelLayerError, PromptTooLongError
        As `lenscache.extract.extract` would.
    """
    header, chosen = make_header(model, pack, settings), tuple(levels or pack.levels)
    asked: dict[str, Any] = {"seed": settings.seed, "limit": limit, "samples": settings.samples}
    plans = [plan_samples(pack, [level], **asked) for level in chosen]
    lengths = [_lengths(model, plan.texts, header) for plan in plans]
    if isinstance(background, int):
        lengths.append(np.full(background, WRITTEN_TOKENS, np.int32))
    elif background is not None:
        texts = plan_background(pack, background, seed=settings.seed).texts
        lengths.append(_lengths(model, texts, header))
    concepts, is_guessed = sum(plan.n_targets for plan in plans), model.tokenizer is None
    return Workload(header, Shape.of(model), chosen, tuple(lengths), concepts, is_guessed)


def _lengths(model: LoadedModel, texts: Sequence[str], header: StoreHeader) -> NDArray[np.int32]:
    limit = header.max_prompt_tokens
    if model.tokenizer is not None:
        return tokenize(model, texts, limit, continued=header.mode != "prompt").lengths
    guessed = np.array([2 + len(text) // _LETTERS_A_TOKEN for text in texts], np.int32)
    return np.minimum(guessed, limit) if limit else guessed


def forecast_run(
    work: Workload, settings: ExtractSettings, device: Device, devices: int = 1
) -> Forecast:
    """Estimate what `extract` would cost on so many devices of a kind.

    Raises
    ------
    PlanError
        If the model does not fit the memory of all the devices together.
    """
    header, shape = work.header, work.shape
    usable = device.memory_bytes * _USABLE_MEMORY
    over = max(1, int(np.ceil((shape.weight_bytes + work.row_bytes()) / usable)))
    if over > devices:
        raise PlanError(
            f"{header.model_id} takes {shape.weight_bytes / 1e9:.0f} GB in {header.model_dtype} "
            f"and room for a row, a {device.name} has {device.memory_bytes / 1e9:.0f}: give "
            f"--devices {over} or more"
        )
    block_rows, copies = settings.block_rows or default_block_rows(header.hidden), devices // over
    most = min(block_rows, int((usable * over - shape.weight_bytes) // work.row_bytes()))
    batch = _batch_size(work, settings, device, max(1, most), is_recorded=over == 1)
    blocks = sum(-(-len(lengths) // block_rows) for lengths in work.lengths)
    sizes, widths = _batches(work.lengths, batch, block_rows)
    loading = 20.0 + shape.weight_bytes / device.load_bandwidth
    a_block = [
        float(batch_seconds(work, device, its, sizes, widths, is_recorded=over == 1).sum()) / blocks
        for its in device.efficiencies
    ]
    seconds = [loading + -(-blocks // copies) * each for each in a_block]
    return Forecast(
        levels=work.levels,
        concepts=work.concepts,
        prompts=work.prompts,
        prompt_tokens=sum(int(lengths.sum()) for lengths in work.lengths),
        are_tokens_guessed=work.are_tokens_guessed,
        new_tokens=header.max_new_tokens * work.prompts,
        model_layers=len(header.model_layers),
        device_kind=device.name,
        devices=devices,
        devices_per_copy=over,
        copies=copies,
        batch_size=batch,
        blocks=blocks,
        block_rows=block_rows,
        seconds=seconds[0],
        seconds_low=seconds[1],
        seconds_high=seconds[2],
        device_hours=devices * seconds[0] / 3600,
        seconds_to_load=loading,
        seconds_a_block=a_block[0],
        raw_bytes=estimate_bytes(header, work.prompts),
        stored_bytes=estimate_stored_bytes(header, work.prompts),
    )


def _batch_size(
    work: Workload, settings: ExtractSettings, device: Device, most: int, *, is_recorded: bool
) -> int:
    """Rows a forward pass: as asked for, or the smallest number that is about the fastest."""
    if settings.batch_size != "auto":
        return min(settings.batch_size, most)
    most = most if device.is_gpu else min(most, MOST_ON_A_CPU)
    sizes = np.array([4 * 2**power for power in range(20) if 4 * 2**power <= most] or [most], float)
    widths = np.full(len(sizes), float(np.median(np.concatenate(work.lengths))))
    how = device.efficiencies[0]
    rates = sizes / batch_seconds(work, device, how, sizes, widths, is_recorded=is_recorded)
    return int(sizes[np.argmax(rates * PAYS >= rates.max())])


def _batches(
    lengths: Sequence[NDArray[np.int32]], batch: int, block_rows: int
) -> tuple[Floats, Floats]:
    """Rows and padded positions of every batch: full batches, by length in each block."""
    sizes: list[int] = []
    widths: list[int] = []
    for each in lengths:
        for first in range(0, len(each), block_rows):
            block = np.sort(each[first : first + block_rows])
            parts = [block[start : start + batch] for start in range(0, len(block), batch)]
            sizes += [len(part) for part in parts]
            widths += [int(part[-1]) for part in parts]
    return np.array(sizes, float), np.array(widths, float)


def batch_seconds(
    work: Workload,
    device: Device,
    efficiency: Efficiency,
    sizes: Floats,
    widths: Floats,
    *,
    is_recorded: bool = True,
) -> Floats:
    """(batches,) seconds of batches of so many rows, padded to so many positions.

    Parameters
    ----------
    sizes, widths : (batches,)
    is_recorded : whether a GPU replays decode steps as a CUDA graph.
    """
    shape, depth, new = work.shape, work.depth, work.header.max_new_tokens
    captured, item = len(work.header.model_layers), work.shape.itemsize
    flops = efficiency.flops * (device.half_flops if item == 2 else device.single_flops)
    bandwidth = efficiency.bandwidth * device.bandwidth
    passes = 1 if device.is_gpu else _WEIGHT_PASSES_ON_A_CPU
    calls = device.seconds_a_call * (_CALLS_A_BLOCK * depth + _CALLS_A_PASS)

    def reading(positions: Floats) -> Floats:
        """Seconds to read the weights of all blocks, with every expert that any position uses."""
        touched = np.minimum(shape.active_weights * np.maximum(positions, 1), shape.block_weights)
        return np.asarray(depth * touched * passes * item / bandwidth)

    def with_calls(busy: Floats, asked: float) -> Floats:
        return np.maximum(busy, asked) if device.is_gpu else busy + asked

    positions = sizes * widths
    attention = 4 * positions * widths * shape.heads_size * depth
    products = (2 * shape.active_weights * depth * positions + attention) / flops
    values = depth * (_ELEMENTWISE[0] * shape.hidden + _ELEMENTWISE[1] * shape.inner) * item
    values += captured * _POOLING_PASSES * shape.hidden * 4
    busy = np.maximum(products, reading(positions)) + values * positions / bandwidth
    found = with_calls(busy, calls)
    if not new:
        return found
    head = shape.vocab * shape.hidden
    a_head = np.maximum(2 * head * sizes / flops, head * item * passes / bandwidth)
    a_head = a_head + _SAMPLING_PASSES * 4 * sizes * shape.vocab / bandwidth
    # Then one position a row and step; the last token is never fed back. Masked attention repeats
    # keys for the query heads that share them; a cache that grows is copied.
    recorded = is_recorded and device.is_gpu
    repeats = 1 + 2 * shape.head_groups * (shape.head_groups > 1) + (0 if recorded else 2)
    kept = widths + (new if recorded else (new - 1) / 2)
    cache = depth * sizes * kept * shape.cache_values * item * repeats / bandwidth
    cache = cache + captured * _POOLING_PASSES * sizes * shape.hidden * 4 / bandwidth
    arithmetic = 2 * shape.active_weights * depth * sizes / flops
    step = np.maximum(reading(sizes), arithmetic) + cache + a_head
    asked = depth * _RECORDED_SECONDS_A_BLOCK if recorded else calls
    return np.asarray(found + a_head + (new - 1) * with_calls(step, asked))
