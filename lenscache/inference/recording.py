"""Record a decode step, so that it can be run again without Python: on CUDA, as a graph.

What Python decides while a step is recorded stays as it was. A step that reads a value on the host,
or has a shape that depends on values, must not be recorded: a capture that fails can leave CUDA's
stream and allocator unusable. So such a step is found beforehand, by `what_forbids_recording`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], None]
Recorder = Callable[[Step], Step]
"""Takes a step and returns what runs it again, in the same memory."""

_READS = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("_unique2", "unique_consecutive", "unique_dim", "bincount", "repeat_interleave.Tensor"),
        *("lift_fresh", "lift_fresh_copy"),  # a tensor made of a number on the host
    )
)


def recorder_for(device: torch.device) -> Recorder | None:
    """What records a step on a device; None where nothing does, and every step is called."""
    return _record_cuda if device.type == "cuda" else None


def _record_cuda(step: Step) -> Step:
    """Record a step as a CUDA graph, without running it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # A context of its own for the stream: that of torch.cuda.graph keeps it if the capture fails.
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        graph.capture_begin()
        try:
            step()
        finally:
            graph.capture_end()
    replay: Step = graph.replay
    return replay


def what_forbids_recording(step: Step) -> str:
    """Run a step; which of its operations cannot be recorded, "" if all can."""
    with _Watch() as watch:
        step()
    return ", ".join(sorted(watch.found))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects operations that read values, or move tensors between the host and a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        schema = func._schema
        full = f"{schema.name}.{schema.overload_name}".removesuffix(".")
        if {schema.name, full} & _READS or len(_devices(args, kwargs, output)) > 1:
            self.found.add(full)
        return output


def _devices(*trees: Any) -> set[str]:
    """Kinds of devices of all tensors that are more than a number."""
    tensors = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]
    return {each.device.type for each in tensors if each.ndim}
