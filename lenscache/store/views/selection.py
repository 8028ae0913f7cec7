"""What other tools get of a store: rows of complete blocks, columns in words and not in numbers.

    Store --select--> Selection: phases, model layers, a RoundSelection a round
        --> xarray_view, export

The marks are read before the columns, because a writer writes in the opposite order: a row that is
selected has its completion, even if it was extracted a moment ago.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import SPLITS
from lenscache.errors import StoreIncompleteError
from lenscache.store.header import show_value
from lenscache.store.round import Round, Samples
from lenscache.terms import Phase

if TYPE_CHECKING:
    from lenscache.store.store import Store

ROLES = ("positive", "contrast", "negative")
"""Names of the roles of a label, see `lenscache.concepts.plan`."""


class SampleLabel(NamedTuple):
    """One label of a sample."""

    row: int
    """Row of the sample in its round."""
    concept: str
    role: str
    """One of `ROLES`."""
    order: int
    """Place in the nested order of the concept's labels: the first 10 are among the first 30."""


@dataclass(frozen=True)
class RoundSelection:
    """The rows of a round whose blocks were complete when it was made."""

    source: Round
    blocks: tuple[int, ...]
    """The complete blocks, ascending."""
    samples: Samples
    """The columns of the selected rows, n each."""

    def __len__(self) -> int:
        return len(self.samples.text)

    @property
    def n_left_out(self) -> int:
        """Rows of the round that are not extracted yet."""
        return self.source.n_samples - len(self)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the round, ascending."""
        return _rows_of(self.source, self.blocks)

    def columns(self) -> dict[str, NDArray[Any]]:
        """What is known of each row, n values a column; texts are `object` arrays.

        `sample` names the row in the store (`layer_1/round_0/17`) and is unique; `key` (32 hex
        digits) says what was extracted, and is the same wherever the same text was extracted in the
        same way.
        """
        n, samples, kinds = len(self), self.samples, self.source.attributes["kinds"]
        named: dict[str, NDArray[Any]] = {
            "key": np.array([bytes(key).hex() for key in samples.key], dtype=object),
            "text": samples.text.astype(object),
            "completion": samples.completion.astype(object),
            "kind": np.array(kinds, dtype=object)[samples.kind],
            "split": np.array(SPLITS, dtype=object)[samples.split],
        }
        return {
            "sample": np.array([f"{self.source.name}/{row}" for row in self.rows], dtype=object),
            "level": np.full(n, self.source.level, np.int32),
            "round": np.full(n, self.source.index, np.int32),
            "row": self.rows,
            **{**samples._asdict(), **named},
        }

    def labels(self) -> Iterator[SampleLabel]:
        """The labels of the selected rows, in the order in which the store holds them."""
        selected = set(self.rows.tolist())
        counts: dict[int, int] = {}
        columns = (column.tolist() for column in self.source.labels())
        for row, concept, role in zip(*columns, strict=True):
            order = counts.get(concept, 0)
            counts[concept] = order + 1
            if row in selected:
                yield SampleLabel(row, self.source.concepts[concept], ROLES[role], order)


@dataclass(frozen=True)
class Selection:
    """Rows of some rounds, and which of their activations."""

    rounds: tuple[RoundSelection, ...]
    phases: tuple[Phase, ...]
    model_layers: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.rounds))

    @property
    def n_vectors(self) -> int:
        """Activations selected: one for each row, phase and model layer."""
        return len(self) * len(self.phases) * len(self.model_layers)

    @property
    def n_left_out(self) -> int:
        """Rows of these rounds that are not extracted yet."""
        return sum(part.n_left_out for part in self.rounds)


def select(
    store: Store,
    levels: Sequence[int] | None = None,
    *,
    model_layers: Sequence[int] | None = None,
    phases: Sequence[Phase] | None = None,
) -> Selection:
    """Select what is complete of a store.

    Parameters
    ----------
    levels : levels of abstraction; None for all that the store holds.
    model_layers : transformer blocks, in the order wanted; None for all that are stored.
    phases : phases, in the order wanted; None for all that are stored.

    Raises
    ------
    StoreIncompleteError
        If a level has no round yet.
    ModelLayerError, StoreMismatchError
        If the store holds no such model layer or phase.
    """
    header, found = store.header, store.levels()
    for level in levels or ():
        if level not in found:
            raise StoreIncompleteError(
                f"level {level} is not in the store, which holds {show_value(tuple(found))}: "
                f"run `lenscache extract {store.path} --level {level}` first"
            )
    for model_layer in model_layers or ():
        header.check_model_layer(model_layer)
    for phase in phases or ():
        header.check_phase(phase)
    chosen = found if levels is None else sorted(set(levels))
    return Selection(
        tuple(_select_round(entry) for level in chosen for entry in store.rounds(level)),
        tuple(dict.fromkeys(header.phases if phases is None else phases)),
        tuple(dict.fromkeys(header.model_layers if model_layers is None else model_layers)),
    )


def _select_round(entry: Round) -> RoundSelection:
    blocks = tuple(np.flatnonzero(entry.complete_blocks()).tolist())  # first: see the top
    rows = _rows_of(entry, blocks)
    return RoundSelection(entry, blocks, Samples._make(column[rows] for column in entry.samples()))


def _rows_of(entry: Round, blocks: Sequence[int]) -> NDArray[np.int64]:
    places = [np.arange(entry.n_samples, dtype=np.int64)[entry.rows(block)] for block in blocks]
    return np.concatenate([np.empty(0, np.int64), *places])
