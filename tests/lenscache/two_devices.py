"""A model over two devices, on a machine that has none: run `python -m tests.lenscache.two_devices
ARCHITECTURE ...`.

torch is taught a kind of device of which there are two, "pretend:0" and "pretend:1". They compute
on the CPU and refuse what CUDA refuses: an operation on tensors of different devices, or of a
device and the host. accelerate spreads a model over them as it does over cards. Registering a kind
of device changes torch for good, hence a process of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import accelerate
import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lenscache.inference.runner import Runner
from lenscache.live.listening import read_text
from lenscache.live.steering import Intervention, Positions, steer_all
from lenscache.model.loading import LoadedModel, find_blocks
from lenscache.model.placement import input_device
from lenscache.terms import Phase
from tests.lenscache.test_runner import (
    HALF_OF_THE_VOCABULARY,
    UNEQUAL,
    assert_same_results,
    rows_of,
    with_eos,
)
from tests.models import SENTENCES, tiny_model

FIRST, SECOND = "pretend:0", "pretend:1"
BLOCKS = (0, 1, 2)

_MOVING = {"aten::to", "aten::_to_copy", "aten::copy_", "aten::_copy_from"}
_TAKING_INDICES = {"aten::index", "aten::index_put_"}


class _Pretended(torch.Tensor):
    """A tensor of a device that there is not, and where its values really are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> _Pretended:
        made: _Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        return made

    def __init__(self, held: torch.Tensor, device: torch.device) -> None:
        self.held = held

    def data_ptr(self) -> int:
        """By which accelerate tells shared weights."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(func, args, kwargs or {})


def _compute(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name: str = op._schema.name
    leaves, shape = tree_flatten((args, dict(kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    mixing = [
        tensor
        for number, tensor in enumerate(tensors)
        if tensor.device.type != "cpu" or (tensor.ndim and not (number and name in _TAKING_INDICES))
    ]
    places = {tensor.device for tensor in mixing}
    if len(places) > 1 and name not in _MOVING:
        raise RuntimeError(f"tensors of {sorted(map(str, places))} meet in {op}")
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    source = (
        tensors[1] if name == "aten::to" and len(tensors) > 1 else tensors[0] if tensors else None
    )
    device = asked[0] if asked else source.device if source is not None else torch.device("cpu")
    here = [
        leaf.held
        if isinstance(leaf, _Pretended)
        else torch.device("cpu")
        if isinstance(leaf, torch.device)
        else leaf
        for leaf in leaves
    ]
    plain_args, plain_kwargs = tree_unflatten(here, shape)
    found = op(*plain_args, **plain_kwargs)
    if op._schema.is_mutable and name.endswith("_"):
        return args[0]
    if device.type == "cpu":
        return found
    return tree_map(
        lambda leaf: _Pretended(leaf, device) if isinstance(leaf, torch.Tensor) else leaf, found
    )


def register() -> Any:
    """Teach torch the two devices, for as long as the result is kept."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    backend: Any = types.ModuleType("torch.pretend")
    backend.device_count, backend.is_available, backend.current_device = (
        lambda: 2,
        lambda: True,
        lambda: 0,
    )
    backend._is_in_bad_fork, backend.manual_seed_all = lambda: False, lambda _seed: None
    _setup_privateuseone_for_python_backend("pretend", backend_module=backend)
    library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    library.fallback(lambda op, *args, **kwargs: _compute(op, args, kwargs), "PrivateUse1")
    make = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        """Made here and moved: what torch does inside asks no dispatcher."""
        made: torch.Tensor = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    torch.tensor = tensor
    return library


def spread(whole: LoadedModel) -> LoadedModel:
    """A copy over both devices: the last block, and what comes after it, are on the second."""
    model: Any = copy.deepcopy(whole.model)
    blocks = find_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    base = path.rpartition(".")[0]
    places = {
        f"{base}.{name}": SECOND if "norm" in name or name == "ln_f" else FIRST
        for name, child in model.get_submodule(base).named_children()
        if child is not blocks
    }
    places |= {
        f"{path}.{number}": SECOND if number == len(blocks) - 1 else FIRST
        for number in range(len(blocks))
    }
    is_tied = model.config.tie_word_embeddings  # with the embeddings, which come first
    places |= {
        name: FIRST if is_tied else SECOND for name, _ in model.named_children() if name != base
    }
    model = accelerate.dispatch_model(
        model, places, skip_keys=model._skip_keys_device_placement, force_hooks=True
    )
    return dataclasses.replace(
        whole, model=model, blocks=list(find_blocks(model)), device=input_device(model)
    )


def check_that_devices_do_not_mix() -> None:
    for other in ("cpu", SECOND):
        try:
            torch.zeros(3, device=FIRST) + torch.ones(3, device=other)
        except RuntimeError as error:
            assert "meet in aten.add" in str(error)  # noqa: PT017 - a script, which has no pytest
        else:
            raise AssertionError(f"{FIRST} and {other} were added")


def check_placement(whole: LoadedModel, parts: LoadedModel) -> None:
    assert parts.device == torch.device(FIRST)
    assert parts.devices == (torch.device(FIRST), torch.device(SECOND))
    assert not parts.is_whole
    assert parts.placement == f"{FIRST}, {SECOND}"
    assert parts.fingerprint == whole.fingerprint


def check_activations(whole: LoadedModel, parts: LoadedModel) -> None:
    """In all modes, with completions that end soon, so that rows leave the batch."""
    for mode in ("prompt", "combined", "completion"):
        for pooling in ("mean", "max", "last"):
            for ends in (whole.eos_ids, HALF_OF_THE_VOCABULARY):
                here, there = (
                    Runner(
                        with_eos(loaded, ends), BLOCKS, mode=mode, pooling=pooling, max_new_tokens=8
                    )
                    for loaded in (whole, parts)
                )
                assert_same_results(there.run(rows_of(UNEQUAL)), here.run(rows_of(UNEQUAL)))


def check_steering(whole: LoadedModel, parts: LoadedModel) -> None:
    """On both devices, along directions that come from the host."""
    direction = torch.randn(whole.hidden, generator=torch.Generator().manual_seed(1))
    positions: list[Positions] = ["all", "completion", slice(1, None)]
    for where in positions:
        changes = [
            Intervention(direction, block, 4.0, ablate=block == 1, positions=where)
            for block in BLOCKS
        ]
        found = []
        for loaded in (whole, parts):
            with steer_all(loaded, changes):
                found.append(Runner(loaded, BLOCKS, max_new_tokens=6).run(rows_of(UNEQUAL)))
        assert_same_results(*found)


def check_listening(whole: LoadedModel, parts: LoadedModel) -> None:
    heard = []
    for loaded in (whole, parts):
        listener = _Keeping()
        read_text(loaded, SENTENCES[1], listener)
        heard.append(listener.kept)
    for here, there, device in zip(*heard, (FIRST, FIRST, SECOND), strict=True):
        assert there.device == torch.device(device)
        torch.testing.assert_close(there.cpu(), here)


class _Keeping:
    """Keeps what it hears."""

    model_layers = BLOCKS

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def begin_pass(
        self, phase: Phase, *, real: torch.Tensor, first: torch.Tensor, is_new: bool
    ) -> None:
        assert (phase, is_new, bool(real.all()), int(first.sum())) == ("prompt", True, True, 1)

    def take(self, model_layer: int, hidden: torch.Tensor) -> None:
        self.kept.append(hidden)

    def end_pass(self) -> None:
        assert len(self.kept) == len(BLOCKS)


CHECKS: tuple[Callable[[LoadedModel, LoadedModel], None], ...] = (
    check_placement,
    check_activations,
    check_steering,
    check_listening,
)


def main(architectures: Sequence[str]) -> None:
    """Check these architectures, and say of each that it was."""
    torch.set_num_threads(1)
    kept = register()
    check_that_devices_do_not_mix()
    for architecture in architectures:
        whole = tiny_model(architecture)
        for check in CHECKS:
            check(whole, spread(whole))
        sys.stdout.write(f"{architecture}\n")
    del kept


if __name__ == "__main__":
    main(sys.argv[1:])
