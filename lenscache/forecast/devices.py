"""What devices can do, by their makers' figures or as measured here, for estimates of time.

Public figures, without sparsity: memory, bandwidth, and FLOP/s of matrix products by dtype.

    h100      NVIDIA H100 SXM data sheet: 80 GB, 3.35 TB/s, 989 TFLOP/s in bfloat16, 67 in float32
    h200      NVIDIA H200 SXM data sheet: 141 GB, 4.8 TB/s, the rest as H100
    a100      NVIDIA A100 80GB SXM data sheet: 80 GB, 2.04 TB/s, 312, 19.5
    l40s      NVIDIA L40S data sheet: 48 GB, 864 GB/s, 362 (half of the figure with sparsity), 91.6
    rtx4090   NVIDIA Ada architecture whitepaper: 24 GB, 1.01 TB/s, 165 (sums in float32), 82.6
    cpu       one socket of an Intel Xeon Platinum 8480+ (Intel ARK; optimisation manual): 256 GB,
              307 GB/s by eight channels of DDR5-4800, 229 by AMX and 7.2 by AVX-512 (56 cores at
              2.0 GHz)

No program reaches these figures: `Efficiency` says what share an estimate counts on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lenscache.errors import PlanError
from lenscache.model.memory import available_bytes


class Efficiency(NamedTuple):
    """What share of a device's figures is reached."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    name: str
    memory_bytes: float
    bandwidth: float
    """Bytes a second."""
    half_flops: float
    """FLOP/s of matrix products in bfloat16 and float16."""
    single_flops: float
    """The same in float32."""
    is_gpu: bool = True
    seconds_a_call: float = 2.5e-6
    """What it takes to ask for one small operation from Python."""
    efficiencies: tuple[Efficiency, Efficiency, Efficiency] = (
        Efficiency(0.5, 0.65),
        Efficiency(0.7, 0.85),
        Efficiency(0.25, 0.4),
    )
    """Expected, best and worst."""

    def flops(self, dtype: str) -> float:
        """FLOP/s of matrix products."""
        return self.single_flops if dtype == "float32" else self.half_flops


_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("h100", 80 * _GB, 3.35 * _TB, 989 * _TFLOPS, 67 * _TFLOPS),
        Device("h200", 141 * _GB, 4.8 * _TB, 989 * _TFLOPS, 67 * _TFLOPS),
        Device("a100", 80 * _GB, 2.04 * _TB, 312 * _TFLOPS, 19.5 * _TFLOPS),
        Device("l40s", 48 * _GB, 0.864 * _TB, 362 * _TFLOPS, 91.6 * _TFLOPS),
        Device("rtx4090", 24 * _GB, 1.01 * _TB, 165 * _TFLOPS, 82.6 * _TFLOPS),
        Device("cpu", 256 * _GB, 0.307 * _TB, 229 * _TFLOPS, 7.2 * _TFLOPS, is_gpu=False),
    )
}

_MEASURED = Efficiency(0.85, 0.85), Efficiency(1.0, 1.0), Efficiency(0.5, 0.5)
"""Of what was measured: a model has smaller products and shorter reads, which alternate."""
_MATRIX, _LONG_READ = {True: 8192, False: 1024}, {True: 2**30, False: 2**26}  # by "is a GPU"
_CALLS, _TURNS = 500, 5


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
    kind: torch.dtype = getattr(torch, dtype)
    matrix = torch.ones(_MATRIX[on_gpu], _MATRIX[on_gpu], dtype=kind, device=place)
    flops = 2 * float(_MATRIX[on_gpu]) ** 3 / _seconds(lambda: matrix @ matrix, place, clock)
    values = torch.ones(_LONG_READ[on_gpu], dtype=torch.int8, device=place).view(torch.int64)
    bandwidth = values.nbytes / _seconds(values.sum, place, clock)
    few = torch.ones(8, 8)

    def calls() -> None:
        for _ in range(_CALLS):
            few.add(few)

    of_launch = 2 if on_gpu else 1  # a launch is slower
    seconds_a_call = _seconds(calls, torch.device("cpu"), clock) / _CALLS * of_launch
    if on_gpu:
        memory = float(torch.cuda.get_device_properties(place).total_memory)
    else:
        memory = float(available_bytes() or DEVICES["cpu"].memory_bytes)
    return Device("here", memory, bandwidth, flops, flops, on_gpu, seconds_a_call, _MEASURED)


def _seconds(run: Callable[[], object], place: torch.device, clock: Callable[[], float]) -> float:
    found = []
    for _ in range(_TURNS + 1):
        start = clock()
        run()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        found.append(clock() - start)
    return statistics.median(found[1:])
