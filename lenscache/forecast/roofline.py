"""How long batches take, from the shape of a model and the figures of a device: nothing is run.

    blocks, head, cache --Shape--> bytes and operations of a pass
        --Device, Efficiency--> seconds of each batch, by part

A prefill multiplies every weight with every position and is bound by FLOP/s; a decode step reads
every weight for one position a row and is bound by bandwidth. A GPU computes while Python launches
the next operation, so launching counts only where it takes longer; on a CPU it is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import PlanError
from lenscache.forecast.devices import Device, Efficiency
from lenscache.model.loading import LoadedModel

PARTS = (
    "prefill",
    "decode: weights",
    "decode: arithmetic",
    "decode: cache",
    "head and sampling",
    "asking from Python",
)
"""Where the seconds of a batch go."""

# About ninety operations a block and three times as much Python; measured 240 to 300 on a CPU.
_CALLS_A_BLOCK = 280
_CALLS_A_PASS = 500  # embedding, masks, head, sampling
_RECORDED_SECONDS_A_BLOCK = 40e-6  # a dozen kernels or so of a recorded graph, one after the other
_LENGTH_STEP = 64  # positions that a cache of fixed size is rounded up to, as in the runner
_SAMPLING_PASSES = 12  # times that sampling reads or writes a float of each logit
_POOLING_PASSES = 3  # the same, of each value that is pooled
_ELEMENTWISE = 12, 5  # values a position beside matrix products, in hidden and in inner sizes
_USABLE_MEMORY = 0.9
_LOGIT_BYTES = 4 * 4
_WEIGHT_PASSES_ON_A_CPU = 3  # for each product, BLAS reads weights, rearranges and reads them again

Floats = NDArray[np.float64]


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
    total_weights: float
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
        weights = [(name, weight.numel()) for name, weight in named]
        block_weights = sum(n for _, n in weights) / model.n_layers
        in_experts = (n for name, n in weights if "experts" in name and "shared" not in name)
        experts = sum(in_experts) / model.n_layers
        n_experts = getattr(config, "num_local_experts", None)
        n_experts = n_experts or getattr(config, "num_experts", None) or 1
        share = min(1.0, (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts)
        return cls(
            n_layers=model.n_layers,
            hidden=model.hidden,
            inner=int(getattr(config, "intermediate_size", None) or 4 * model.hidden),
            vocab=int(config.vocab_size),
            itemsize=4 if model.dtype == "float32" else 2,
            block_weights=block_weights,
            active_weights=block_weights - experts * (1 - share),
            total_weights=sum(w.numel() for w in model.model.parameters()),
            heads_size=heads * size,
            cache_values=2 * key_heads * size,
            head_groups=max(1, heads // key_heads),
        )

    @property
    def weight_bytes(self) -> float:
        """Bytes that the model takes."""
        return self.total_weights * self.itemsize


class Work(NamedTuple):
    """What is done with every batch."""

    depth: int
    """Blocks that a pass goes through."""
    captured: int
    """Of those, blocks that are pooled."""
    new_tokens: int
    """0 where nothing is generated."""
    is_recorded: bool
    """Whether decode steps are replayed as a CUDA graph."""


def batch_seconds(
    shape: Shape,
    device: Device,
    efficiency: Efficiency,
    work: Work,
    dtype: str,
    sizes: Floats,
    widths: Floats,
) -> dict[str, Floats]:
    """Seconds of batches of so many rows, padded to so many positions, by part.

    Parameters
    ----------
    sizes, widths : (batches,)
    """
    flops = device.flops(dtype) * efficiency.flops
    bandwidth = device.bandwidth * efficiency.bandwidth
    depth, item = work.depth, shape.itemsize
    calls = device.seconds_a_call * (_CALLS_A_BLOCK * depth + _CALLS_A_PASS)
    zero = np.zeros(len(sizes))
    found = dict.fromkeys(PARTS, zero)

    # one pass over all positions of the prompts
    positions = sizes * widths
    attention = 4 * sizes * widths**2 * shape.heads_size * depth
    read = depth * _read_weights(shape, device, positions) * item / bandwidth
    products = np.maximum((2 * shape.active_weights * depth * positions + attention) / flops, read)
    values = depth * (_ELEMENTWISE[0] * shape.hidden + _ELEMENTWISE[1] * shape.inner) * item
    values += work.captured * _POOLING_PASSES * shape.hidden * 4
    busy = products + values * positions / bandwidth
    found["prefill"] = busy
    found["asking from Python"] = _waited(device, busy, calls)
    if not work.new_tokens:
        return found
    head = _head_seconds(shape, device, sizes, flops, bandwidth)

    # then as many passes over one position a row, save that the last token is never fed back
    steps = work.new_tokens - 1
    kept = widths + steps / 2
    if work.is_recorded:
        kept = -(-(widths + work.new_tokens) // _LENGTH_STEP) * _LENGTH_STEP
    read = depth * _read_weights(shape, device, sizes) * item / bandwidth
    arithmetic = 2 * shape.active_weights * depth * sizes / flops
    # Masked attention repeats keys for the query heads that share them; growing copies the cache.
    passes = (1 + 2 * shape.head_groups * (shape.head_groups > 1)) + (0 if work.is_recorded else 2)
    cache = depth * sizes * kept * shape.cache_values * item * passes / bandwidth
    cache = cache + work.captured * _POOLING_PASSES * sizes * shape.hidden * 4 / bandwidth
    is_read = read >= arithmetic
    found["decode: weights"] = steps * np.where(is_read, read, 0)
    found["decode: arithmetic"] = steps * np.where(is_read, 0, arithmetic)
    found["decode: cache"] = steps * cache
    found["head and sampling"] = (steps + 1) * head
    busy = np.maximum(read, arithmetic) + cache + head
    asked = depth * _RECORDED_SECONDS_A_BLOCK if work.is_recorded else calls
    found["asking from Python"] = found["asking from Python"] + steps * _waited(device, busy, asked)
    return found


def _read_weights(shape: Shape, device: Device, positions: Floats) -> Floats:
    """Weights of a block that so many positions read, with every expert that any position uses."""
    touched = np.minimum(shape.active_weights * np.maximum(positions, 1), shape.block_weights)
    return np.asarray(touched * (1 if device.is_gpu else _WEIGHT_PASSES_ON_A_CPU))


def _head_seconds(
    shape: Shape, device: Device, sizes: Floats, flops: float, bandwidth: float
) -> Floats:
    weights = shape.vocab * shape.hidden
    passes = 1 if device.is_gpu else _WEIGHT_PASSES_ON_A_CPU
    product = np.maximum(2 * weights * sizes / flops, weights * shape.itemsize * passes / bandwidth)
    return np.asarray(product + _SAMPLING_PASSES * 4 * sizes * shape.vocab / bandwidth)


def _waited(device: Device, busy: Floats, asked: float) -> Floats:
    return np.maximum(asked - busy, 0) if device.is_gpu else np.full(len(busy), asked)


def row_bytes(shape: Shape, work: Work, width: int) -> float:
    """Memory that one more row of a batch takes."""
    positions = width + work.new_tokens
    kept = positions * shape.cache_values * shape.itemsize if work.new_tokens else 0
    cache = kept * (shape.n_layers + 2 * shape.head_groups)  # with one block's repeated keys
    passing = width * (6 * shape.hidden + 3 * shape.inner) * shape.itemsize
    pooled = 2 * work.captured * shape.hidden * 4
    return float(cache + passing + pooled + _LOGIT_BYTES * shape.vocab * bool(work.new_tokens))


def devices_of_a_copy(shape: Shape, device: Device, work: Work, width: int) -> int:
    """Devices that hold one copy of the model and room for a row."""
    usable = device.memory_bytes * _USABLE_MEMORY
    return max(1, int(np.ceil((shape.weight_bytes + row_bytes(shape, work, width)) / usable)))


def rows_that_fit(shape: Shape, device: Device, work: Work, width: int, copies_over: int) -> int:
    """Rows of a batch for which a copy of the model over so many devices has room."""
    usable = device.memory_bytes * _USABLE_MEMORY * copies_over - shape.weight_bytes
    return max(1, int(usable // row_bytes(shape, work, width)))
