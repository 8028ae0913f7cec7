"""Rows that another store holds already are copied, so that the model runs only for the rest.

A key is a digest of the text, its sampling, and everything that the activation depends on. Equal
keys are equal rows, whatever pack, level or round they were extracted for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import StoreMismatchError
from lenscache.store.header import StoreHeader, show_value
from lenscache.store.layout import NATIVE_DTYPES
from lenscache.store.round import Block, Round
from lenscache.store.store import Store
from lenscache.store.token_ids import unknown_rows


class CopiedRows(NamedTuple):
    """Rows of a block that another store holds."""

    numbers: frozenset[int]
    """Which rows of the block these are."""
    block: Block
    """Those rows alone, in order."""

    def merge(self, extracted: Block, n_rows: int) -> Block:
        """The whole block: these rows, and between them the others, which were extracted."""
        place = np.array([number in self.numbers for number in range(n_rows)])

        def join(copied: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            joined = np.empty((n_rows, *copied.shape[1:]), new.dtype)
            joined[place], joined[~place] = copied, new
            return joined

        activations = {
            where: join(values, extracted.activations[where])
            for where, values in self.block.activations.items()
        }
        ids = None
        if self.block.completion_ids is not None and extracted.completion_ids is not None:
            ids = join(self.block.completion_ids, extracted.completion_ids)
        texts = {True: iter(self.block.completion), False: iter(extracted.completion)}
        return Block(
            activations,
            completion=[next(texts[bool(copied)]) for copied in place],
            n_completion_tokens=join(self.block.n_completion_tokens, extracted.n_completion_tokens),
            completion_ids=ids,
        )


NO_COPIES = CopiedRows(frozenset(), Block({}, [], np.zeros(0, np.int32)))


class ReusableRows:
    """The rows of complete blocks of some stores, by key.

    Parameters
    ----------
    stores : where to look.
    header : of the store that is to be written.

    Raises
    ------
    StoreMismatchError
        If a store lacks a model layer that is wanted: its rows could never be used.
    """

    def __init__(self, stores: Sequence[Store], header: StoreHeader) -> None:
        self._header = header
        self._places: dict[bytes, tuple[str, Round, int]] = {}
        for store in stores:
            if missing := set(header.model_layers) - set(store.header.model_layers):
                held, lacking = show_value(store.header.model_layers), tuple(sorted(missing))
                found = f"{held}, without {show_value(lacking)}"
                raise StoreMismatchError("model layers", found, show_value(header.model_layers))
            for entry in store.all_rounds:
                keys = entry.samples().key
                for block in np.flatnonzero(entry.complete_blocks()):
                    rows = entry.rows(int(block))
                    for row in range(rows.start, rows.stop):
                        self._places.setdefault(bytes(keys[row]), (store.path, entry, row))

    def holds(self, key: bytes) -> bool:
        """Whether a row is there."""
        return key in self._places

    def read(self, keys: Sequence[bytes]) -> CopiedRows:
        """Those of some rows that are there; blocks are read whole, each once.

        Raises
        ------
        StoreDamagedError
            If a block does not read back.
        """
        numbers = [number for number, key in enumerate(keys) if key in self._places]
        if not numbers:
            return NO_COPIES
        header, n = self._header, len(numbers)
        # int8 activations read as float32.
        dtype = NATIVE_DTYPES["float32" if header.store_dtype == "int8" else header.store_dtype]
        activations = {
            (phase, model_layer): np.empty((n, header.hidden), dtype)
            for phase in header.phases
            for model_layer in header.model_layers
        }
        completion, counts = np.full(n, "", object), np.empty(n, np.int32)
        # A store of before token ids were kept has none; they are not guessed from the text.
        token_ids = unknown_rows(n, header.max_new_tokens)
        for entry, block, target, source in self._by_block([keys[number] for number in numbers]):
            entry.verify_block(block)
            rows = entry.rows(block)
            for place, values in activations.items():
                values[target] = entry.read(*place, rows)[source - rows.start]
            samples, first = entry.samples(rows), rows.start
            completion[target] = samples.completion[source - first]
            counts[target] = samples.n_completion_tokens[source - first]
            if (found := entry.completion_ids(rows)) is not None:
                token_ids[target] = found[source - first]
        block_of_rows = Block(activations, [str(text) for text in completion], counts, token_ids)
        return CopiedRows(frozenset(numbers), block_of_rows)

    def _by_block(
        self, keys: Sequence[bytes]
    ) -> Iterator[tuple[Round, int, NDArray[np.intp], NDArray[np.intp]]]:
        """(round, block, which of the keys, their rows in the round)"""
        found: dict[tuple[str, str, int], list[tuple[int, Round, int]]] = {}
        for number, key in enumerate(keys):
            path, entry, row = self._places[key]
            block_name = (path, entry.name, row // entry.block_rows)
            found.setdefault(block_name, []).append((number, entry, row))
        for (_, _, block), members in found.items():
            numbers, entries, rows = zip(*members, strict=True)
            yield entries[0], block, np.array(numbers, np.intp), np.array(rows, np.intp)
