"""A CUDA graph in Python: the operations of a step, with their very tensors, run again in place.

As in a CUDA graph, what Python decided or computed as a number while the step was recorded stays,
and reading a value while a step is recorded is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lenscache.inference.recording import _READS, Step


class WhileRecordingError(RuntimeError):
    """What CUDA says where a stream is captured and the host wants a value."""


def _tensors(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


def _memory(*trees: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in _tensors(*trees)}


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any, bool]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        if schema.name in _READS or f"{schema.name}.{schema.overload_name}" in _READS:
            raise WhileRecordingError(f"{schema.name} while a step is recorded")
        written = [
            given
            for argument, given in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in _tensors(written):
            self._remember(tensor)
        output = func(*args, **kwargs)
        is_view = not written and bool(_memory(output) & _memory(args, kwargs))
        if not written and not is_view:
            self._own |= _memory(output)
        self.operations.append((func, args, kwargs, output, is_view))
        return output

    def _remember(self, tensor: torch.Tensor) -> None:
        """What was in memory that the step did not make: recording must not change it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own and storage._cdata not in self._before:
            whole = torch.as_strided(tensor, (storage.nbytes() // tensor.element_size(),), (1,), 0)
            self._before[storage._cdata] = whole, whole.clone()

    def undo(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, output, is_view in self.operations:
            if is_view:
                continue
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(output), _tensors(again), strict=True):
                if old is not new:
                    old.copy_(new)


def record(step: Step) -> Step:
    """As `lenscache.inference.recording` records a step on CUDA: it has not run afterwards."""
    tape = _Tape()
    with tape:
        step()
    tape.undo()
    return torch.inference_mode()(tape.replay)
