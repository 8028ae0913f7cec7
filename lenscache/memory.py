"""How much memory this process holds and the machine has left; None on systems that do not say."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int | None:
    """The resident set of this process."""
    return _field(_STATUS, "VmRSS")


def peak_resident_bytes() -> int | None:
    """The largest resident set since the process began, or since `reset_peak`."""
    return _field(_STATUS, "VmHWM")


def reset_peak() -> None:
    """Start to measure the peak anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release() -> None:
    """Give back what was freed, so that the resident set is what is in use."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int | None:
    """What the machine, or the container if that is less, can allocate without swapping."""
    machine, container = _field(_MEMINFO, "MemAvailable"), _left_in_container()
    known = [value for value in (machine, container) if value is not None]
    return min(known) if known else None


def _left_in_container() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text())
        # Cached files count as used, and are given up when memory is asked for.
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(int(limit) - used + cached, 0)
    except (OSError, ValueError, StopIteration):
        return None


def _field(file: Path, name: str) -> int | None:
    try:
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory is full: torch has several errors for that, not all of a type."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and (
        "CUDA error: out of memory" in told or "CUBLAS_STATUS_ALLOC_FAILED" in told
    )


def memory_held(*devices: torch.device) -> int | None:
    """Bytes held on all GPUs, or by this process if there is none; None if the system is silent."""
    cards = [device for device in devices if device.type == "cuda"]
    return sum(torch.cuda.memory_allocated(card) for card in cards) if cards else resident_bytes()
