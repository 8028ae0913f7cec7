"""Steering: change the residual stream while a model runs, and see what it does.

    with steer(model, direction, model_layer=12, strength=4, deviation=lens_deviation):
        model.generate(...)

Adds a direction to the output of a transformer block, or projects it out (activation addition,
Turner et al. 2023; directional ablation, Arditi et al. 2024). Strengths are in standard deviations
of the activations along the direction: 4 means the same on every model layer and model. Sums are in
float32 and rounded once: float16 or bfloat16 would round small changes of large features away.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lenscache.errors import SteeringError
from lenscache.inference.hooks import check_not_compiled, residual_stream
from lenscache.model.caches import GivenCache
from lenscache.model.loading import LoadedModel, check_model_layers, find_blocks

Positions = Literal["all", "prompt", "completion"] | slice
"""What to change: every position, those of the first forward pass, those fed back after it, or a
slice of the real positions of each row, counted from 0 where its padding ends (`slice(1, None)`
spares the attention sink)."""


@dataclass(frozen=True)
class Intervention:
    """One change to the residual stream after one transformer block.

    Parameters
    ----------
    direction : (hidden,) of any length: only where it points counts.
    model_layer : the transformer block whose output is changed, counted from 0.
    strength : how far to go along the direction, in deviations; negative to go against it.
    deviation : standard deviation of the activations along the direction, in activation units.
    ablate : first set the projection on the direction to `level`, then add `strength`.
    level : projection that stands for "nothing of it", in activation units.
    positions : which positions to change.
    """

    direction: Any = field(repr=False)
    model_layer: int
    strength: float = 0.0
    deviation: float = 1.0
    ablate: bool = False
    level: float = 0.0
    positions: Positions = "all"

    def unit(self) -> torch.Tensor:
        """(hidden,) float32, of length 1.

        Raises
        ------
        SteeringError
            If the direction, strength, deviation or level cannot be used.
        """
        vector = torch.as_tensor(self.direction).detach().to(torch.float64)
        length = float(vector.norm()) if vector.ndim == 1 else float("nan")
        if vector.ndim != 1 or not 0 < length < float("inf"):
            raise SteeringError(
                f"a direction of shape {tuple(vector.shape)} and length {length:g} points nowhere: "
                "give one finite vector (hidden,) that is not zero"
            )
        numbers = torch.tensor([self.strength, self.deviation, self.level], dtype=torch.float64)
        if not bool(numbers.isfinite().all()) or self.deviation <= 0:
            raise SteeringError(
                f"strength {self.strength:g}, deviation {self.deviation:g} and level "
                f"{self.level:g}: expected finite numbers and a deviation above 0"
            )
        _check_positions(self.positions)
        return (vector / length).float()


@contextmanager
def steer(
    model: LoadedModel | nn.Module,
    direction: Any,
    model_layer: int,
    strength: float = 0.0,
    *,
    deviation: float = 1.0,
    ablate: bool = False,
    level: float = 0.0,
    positions: Positions = "all",
) -> Iterator[None]:
    """Steer `model` along one direction while the block runs; parameters as for `Intervention`.

    Can be nested: changes of one model layer are made in the order of the contexts. Afterwards, and
    after an exception, the model is what it was, bit for bit.

    Raises
    ------
    ModelLayerError
        If the model has no such transformer block.
    SteeringError
        If the direction does not fit the model, or it or a number is not finite.
    UnsupportedModelError
        If the model's transformer blocks put out several streams, or were compiled.
    ModelError
        While the model runs, if it generates without a cache and `positions` is a phase: prompt and
        completion cannot be told apart then. For a slice, if it keeps its state elsewhere.
    """
    change = Intervention(direction, model_layer, strength, deviation, ablate, level, positions)
    with steer_all(model, [change]):
        yield


@contextmanager
def steer_all(
    model: LoadedModel | nn.Module, interventions: Sequence[Intervention]
) -> Iterator[None]:
    """Steer along several directions at once, on one model layer or on several; as `steer`."""
    module: nn.Module = model.model if isinstance(model, LoadedModel) else model
    check_not_compiled(module)
    blocks = model.blocks if isinstance(model, LoadedModel) else find_blocks(module)
    hidden = int(module.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    changes = [_Change(intervention, len(blocks), hidden) for intervention in interventions]
    by_phase = any(change.positions in ("prompt", "completion") for change in changes)
    passes = _Passes(module, by_phase=by_phase)
    with ExitStack() as hooks:
        if any(change.positions != "all" for change in changes):
            handle = module.register_forward_pre_hook(passes.begin, with_kwargs=True)
            hooks.callback(handle.remove)
        for change in changes:
            hook = change.hook(passes)
            hooks.callback(blocks[change.model_layer].register_forward_hook(hook).remove)
        yield
        check_not_compiled(module)  # a change would stay in what was compiled


class _Passes:
    """What is known of the forward pass that runs: which real position each of its positions is."""

    def __init__(self, module: nn.Module, *, by_phase: bool) -> None:
        self.n_before = 0
        """Positions that the model has in its cache."""
        self._mask: torch.Tensor | None = None
        self._names = list(inspect.signature(module.forward).parameters)
        self._cache = GivenCache(may_grow=not by_phase)

    def begin(self, _module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        inputs = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        self.n_before, mask = self._cache.n_cached(inputs), inputs.get("attention_mask")
        # Only of a two-dimensional mask can the real positions be told.
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None

    def real_positions(self, n: int, device: torch.device) -> torch.Tensor:
        """(batch or 1, n): counted from 0 where a row's padding ends, -1 in the padding."""
        if self._mask is None:
            return torch.arange(self.n_before, self.n_before + n, device=device)[None]
        real = self._mask.to(device).long()
        return torch.where(real > 0, real.cumsum(dim=1) - 1, -1)[:, self.n_before :][:, :n]


class _Change:
    """An intervention, checked against a model."""

    def __init__(self, intervention: Intervention, n_layers: int, hidden: int) -> None:
        self._unit, self._ask = intervention.unit(), intervention
        self.positions = intervention.positions
        (self.model_layer,) = check_model_layers([intervention.model_layer], n_layers, "the model")
        if len(self._unit) != hidden:
            raise SteeringError(
                f"the direction has {len(self._unit)} features, the model's residual stream "
                f"{hidden}: it belongs to another model"
            )

    def hook(self, passes: _Passes) -> Any:
        """A forward hook that makes the change."""

        def change(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = residual_stream(output)
            chosen = self._chosen(passes, hidden)
            if chosen is False:
                return None
            steered = self._steered(hidden)
            if isinstance(chosen, torch.Tensor):
                steered = torch.where(chosen.unsqueeze(2), steered, hidden)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return change

    def _steered(self, hidden: torch.Tensor) -> torch.Tensor:
        wide, ask = hidden.float(), self._ask
        unit = self._unit = self._unit.to(hidden.device)
        shift = ask.strength * ask.deviation
        along: Any = shift + ask.level - (wide @ unit).unsqueeze(-1) if ask.ablate else shift
        steered: torch.Tensor = wide + along * unit
        return steered.to(hidden.dtype)

    def _chosen(self, passes: _Passes, hidden: torch.Tensor) -> torch.Tensor | bool:
        """(batch or 1, position) what to change; a bool where all positions fare alike."""
        if self.positions == "all":
            return True
        if isinstance(self.positions, slice):
            return _within(self.positions, passes.real_positions(hidden.shape[1], hidden.device))
        return (passes.n_before == 0) == (self.positions == "prompt")


def _check_positions(wanted: Positions) -> None:
    if not isinstance(wanted, slice):
        if wanted not in ("all", "prompt", "completion"):
            kinds = "all, prompt, completion or a slice"
            raise SteeringError(f"positions is {wanted!r}: expected {kinds}")
        return
    step = 1 if wanted.step is None else wanted.step
    if min(wanted.start or 0, wanted.stop or 0) < 0 or step < 1:
        raise SteeringError(
            f"positions is {wanted}: expected a slice that counts forwards from 0, as a completion "
            "has no end yet"
        )


def _within(wanted: slice, real: torch.Tensor) -> torch.Tensor:
    start, stop, step = wanted.start or 0, wanted.stop, wanted.step or 1
    inside = (real >= start) & ((real - start) % step == 0)
    return inside if stop is None else inside & (real < stop)
