"""The cache of keys and values: what a model's forward pass calls it, whether one was given, and
one of fixed size.

The name differs between models and versions of transformers (`past_key_values`, `cache_params`,
`cache`), and a name that is not known is ignored without a word. So it is read from the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lenscache.errors import ModelError, UnsupportedModelError

_NAMES = ("cache", "past_key_values", "cache_params")  # where no annotation says what is a cache


def cache_argument(model: nn.Module) -> str | None:
    """The argument of a model's forward pass that takes its cache; None if there is none."""
    parameters = inspect.signature(model.forward).parameters
    annotated = (n for n, each in parameters.items() if "Cache" in str(each.annotation))
    return next(annotated, None) or next((name for name in _NAMES if name in parameters), None)


def returned_cache(output: Any, argument: str) -> Any:
    """The cache in the output of a model whose forward pass takes it as `argument`; None if there
    is none.

    A model that wraps another may return it under the other's name. Names that the output does not
    hold are not asked for: a deprecated one is answered with a warning.
    """
    held = getattr(output, "__dict__", {})
    return next((held[name] for name in (argument, *_NAMES) if held.get(name) is not None), None)


def short_rope_positions(config: Any) -> int | None:
    """Positions up to which a model with long RoPE turns keys by its short factors, if it has any.

    Beyond them, all keys of a batch are turned by other factors (LongRoPE, Ding et al. 2024).
    """
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [k for k in given.values() if isinstance(k, dict)]
    found = [
        kind.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in found if length), default=None)


def fixed_cache(config: Any, length: int) -> Any:
    """A cache of keys and values for `length` positions, which stays in its place in memory.

    Every position is kept, by layers with a sliding window too: which of them a token attends to
    is then a mask computed from tensors, while a window that moves is a number in Python, which a
    recorded step would not see change.

    Raises
    ------
    UnsupportedModelError
        If the model keeps something else than keys and values: states of linear attention,
        convolutions, or keys that layers share.
    """
    try:
        layers = transformers.StaticCache(config=config, max_cache_len=length).layers
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModelError(f"no cache of fixed size: {error}") from error
    kinds = {type(layer) for layer in layers} - {StaticLayer, StaticSlidingWindowLayer}
    if kinds or not layers:
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no layer"
        raise UnsupportedModelError(f"no cache of fixed size: the model keeps {names}")
    fixed = [StaticLayer(max_cache_len=length) for _ in layers]
    if not all(isinstance(getattr(each, "cumulative_length", 0), torch.Tensor) for each in fixed):
        # Elsewhere the length is a number in Python, which a recorded step would not see grow.
        raise UnsupportedModelError("no cache of fixed size: install a newer transformers")
    return transformers.Cache(layers=fixed)


class GivenCache:
    """Finds the cache among what successive forward passes of a model are given.

    By what it can do, not by its name: whoever calls the model may use a name that is deprecated.

    Parameters
    ----------
    may_grow : whether passes may repeat a text with a token more each: right where positions are
        counted, wrong where a text that goes on must be told from a new one.
    """

    def __init__(self, *, may_grow: bool = False) -> None:
        self._may_grow = may_grow
        self._tokens: torch.Tensor | None = None  # of the pass before, if it had no cache
        self._alone = 0  # passes of one token in a row that had none

    def n_cached(self, given: Mapping[str, Any]) -> int:
        """Positions in the cache that a pass is given; 0 without one.

        Raises
        ------
        ModelError
            If the passes generate, as far as can be seen, and yet none has a cache: prompt and
            completion cannot be told apart.
        """
        for value in given.values():
            if hasattr(value, "get_seq_length"):
                self._tokens, self._alone = None, 0
                return int(value.get_seq_length())
        self._check(given.get("input_ids"), asked=given.get("use_cache") is not False)
        return 0

    def _check(self, tokens: torch.Tensor | None, *, asked: bool) -> None:
        before, self._tokens = self._tokens, tokens
        if tokens is None:
            self._alone = 0
            return
        self._alone = self._alone + 1 if asked and tokens.shape[1] == 1 else 0
        if self._alone > 1:
            raise ModelError(
                "two forward passes of one token each, and neither was given a cache that can be "
                "read: if the model generates, it keeps its state elsewhere, and prompt and "
                "completion cannot be told apart; call it with use_cache=False if each token is a "
                "text"
            )
        if self._may_grow:
            return
        grown = (tokens.shape[0], tokens.shape[1] - 1)
        if before is not None and before.shape == grown and torch.equal(before, tokens[:, :-1]):
            raise ModelError(
                "a forward pass repeats the tokens of the one before and adds one, without a "
                "cache: prompt and completion cannot be told apart; generate with use_cache=True, "
                "or open the context anew for each text"
            )
