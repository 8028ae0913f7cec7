"""What hooks on transformer blocks need: a block's output, and a model that calls its hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lenscache.errors import UnsupportedModelError


def residual_stream(output: Any) -> torch.Tensor:
    """(batch, position, hidden) of what a transformer block put out.

    Raises
    ------
    UnsupportedModelError
        If the output has another shape, as in Gemma 3n, whose blocks have several streams.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
        found = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        raise UnsupportedModelError(
            f"a transformer block puts out {found}, expected one residual stream of shape (batch, "
            "position, hidden): this kind of model is not supported"
        )
    return hidden


def check_not_compiled(model: nn.Module) -> None:
    """Refuse a model that torch has compiled: it does not call hooks that are registered later.

    Raises
    ------
    UnsupportedModelError
        If the model or a part of it was compiled.
    """
    for name, module in model.named_modules():
        # of module.compile(), of torch.compile(module), and of model.generate() with a static cache
        made = (module._compiled_call_impl, module._modules.get("_orig_mod"))
        if any(each is not None for each in made) or "_compiled_call" in vars(module):
            raise UnsupportedModelError(
                f"{name or type(module).__name__} was compiled by torch, which skips hooks that "
                "are registered afterwards: give the model as it was before torch.compile, or "
                "load it again"
            )
