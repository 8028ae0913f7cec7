"""What a model runs: the prompts of a plan as token ids, and the rows made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import SamplePlan
from lenscache.concepts.prompts import POSITIVE
from lenscache.errors import PlanError
from lenscache.inference.runner import Row
from lenscache.model.loading import LoadedModel
from lenscache.model.tokens import TokenCheck

_TOKENIZED_AT_ONCE = 1024  # a tokenizer's result takes many times the memory of the ids alone


class Tokenized(NamedTuple):
    """The prompts of a plan, joined in one array: lists of millions would fill the memory."""

    tokens: NDArray[np.int32]
    """Special tokens included; no prompt is longer than the limit."""
    starts: NDArray[np.int64]
    """(n + 1,) where each prompt begins in `tokens`, and the end of the last."""
    n_cut: NDArray[np.int32]
    """(n,) tokens cut off at the end of each."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(n,) tokens of each prompt."""
        return np.diff(self.starts).astype(np.int32)


def tokenize(
    loaded: LoadedModel, texts: Sequence[str], max_tokens: int = 0, *, continued: bool = False
) -> Tokenized:
    """Token ids of each text, cut to the first `max_tokens`; 0 for no limit.

    Raises
    ------
    PlanError
        If a text has no tokens.
    TokenError
        If the model has no embedding for a token, if texts begin twice, or if they are to be
        continued and end the sequence.
    """
    check = TokenCheck(loaded, continued=continued)
    parts: list[NDArray[np.int32]] = []
    n_cut, lengths = np.zeros((2, len(texts)), np.int32)
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        chosen = list(texts[start : start + _TOKENIZED_AT_ONCE])
        tokenized = loaded.tokenizer(chosen, verbose=False)["input_ids"]
        for number, ids in enumerate(tokenized, start=start):
            if not ids:
                what = f"the prompt {texts[number]!r:.60} has no tokens"
                raise PlanError(f"{what}: remove it from the pack")
            kept = ids[: max_tokens or None]
            check.look(texts[number], kept)
            parts.append(np.array(kept, np.int32))
            n_cut[number], lengths[number] = len(ids) - len(kept), len(kept)
    check.conclude()
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return Tokenized(tokens, np.concatenate([[0], lengths.astype(np.int64).cumsum()]), n_cut)


class PlannedRows(Sequence[Row]):
    """What the model is to run for a plan; rows are made as they are asked for."""

    def __init__(self, plan: SamplePlan, found: Tokenized) -> None:
        self._found, self._seeds, self._temperatures = found, plan.sampling_seed, plan.temperature
        self.lengths = found.lengths
        """(n,) tokens of each prompt."""

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...

    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        start, end = self._found.starts[number : number + 2]
        ids = self._found.tokens[start:end].tolist()
        return Row(ids, int(self._seeds[number]), float(self._temperatures[number]))


def last_rows(plan: SamplePlan) -> NDArray[np.intp]:
    """For each concept that a plan was made for, the last row that expresses it; ascending."""
    own = plan.label_role == POSITIVE
    last = np.full(len(plan.concepts), -1, np.intp)
    np.maximum.at(last, plan.label_concept[own], plan.label_sample[own])
    return np.sort(last[: plan.n_targets])
