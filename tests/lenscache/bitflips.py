"""One flipped bit for every byte of every object of a tiny store: is it found, or does it harm?"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lenscache.errors import LenscacheError, StoreMismatchError
from lenscache.store.store import Store, open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import PACK, SETTINGS, run_small

LARGEST = 16_000
"""Bytes of the store."""


class Flip(NamedTuple):
    """One bit that was flipped, and what came of it."""

    place: str
    """Path of the object, byte and bit."""
    outcome: str
    """"found" by verify; "harmless", since everything reads as before; "refused", since the header
    is another one, by the run that goes on; "missed"."""


def make_store(path: Path) -> Store:
    """A complete store of less than 16 kB; its metadata are on one line each."""
    settings = replace(SETTINGS, mode="completion", model_layers=(2,), block_rows=16)
    run_small(path, settings=settings, limit=1)
    for file in path.rglob("zarr.json"):
        file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if size > LARGEST:
        raise RuntimeError(f"the store has {size} bytes, expected up to {LARGEST}")
    return open_store(path)


def flip_bits(path: Path, *, share: tuple[int, int] = (0, 1), step: int = 1) -> Iterator[Flip]:
    """Flip a drawn bit of every `step`-th byte of the store and look; each is put right again.

    Parameters
    ----------
    share : number and count, of several processes that have a store each.
    """
    store = open_store(path)
    header, before = store.header, _content(store)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    places = [(file, at) for file in files for at in range(file.stat().st_size)]
    for file, at in places[share[0] * step :: share[1] * step]:
        name, whole = file.relative_to(path).as_posix(), file.read_bytes()
        bit = random.Random(f"{name} {at}").randrange(8)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            yield Flip(f"{name}, byte {at}, bit {bit}", _look(path, header, before))
        finally:
            file.write_bytes(whole)


def _look(path: Path, header: object, before: str) -> str:
    try:
        if not verify_store(path, jobs=1, pack=PACK).is_clean:
            return "found"
        store = open_store(path)
        if _content(store) == before:
            return "harmless"
        store.header.check_equal(header)  # type: ignore[arg-type]
    except StoreMismatchError:
        return "refused"
    except LenscacheError:
        return "found"
    return "missed"


def _content(store: Store) -> str:
    """Digest of all that reading the store gives."""
    attributes = store.header.to_attributes()
    for part, key in (("model", "id"), ("pack", "version")):  # informative
        attributes[part].pop(key)
    hierarchy = store.hierarchy
    parents = {concept: hierarchy.parents(concept) for concept in hierarchy}
    seen = hashlib.sha256(repr((attributes, hierarchy.levels, parents)).encode())
    seen.update(repr(store.concept_names).encode())
    for target in store.all_rounds:
        fixed = (target.name, target.concepts, target.targets, target.block_rows)
        seen.update(repr((fixed, target.attributes["kinds"])).encode())
        columns = [*target.samples(), *target.labels(), target.complete_blocks()]
        ids = target.completion_ids()
        columns += [np.zeros(0) if ids is None else ids]
        columns += [
            target.read(phase, layer)
            for phase in store.header.phases
            for layer in store.header.model_layers
        ]
        for column in columns:
            is_text = column.dtype.kind in ("O", "T", "U")
            data = repr(column.tolist()).encode() if is_text else column.tobytes()
            seen.update(repr(column.shape).encode() + data)
    return seen.hexdigest()
