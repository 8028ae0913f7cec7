"""The cache of keys and values: what a model's forward pass calls it, and whether one was given.

The name differs between models and versions of transformers (`past_key_values`, `cache_params`,
`cache`), and a name that is not known is ignored without a word. So it is read from the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lenscache.errors import ModelError

_NAMES = ("cache", "past_key_values", "cache_params")  # where no annotation says what is a cache


def cache_argument(model: nn.Module) -> str | None:
    """The argument of a model's forward pass that takes its cache; None if there is none.

    The output of the pass holds the cache under the same name.
    """
    parameters = inspect.signature(model.forward).parameters
    annotated = (n for n, each in parameters.items() if "Cache" in str(each.annotation))
    return next(annotated, None) or next((name for name in _NAMES if name in parameters), None)


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
