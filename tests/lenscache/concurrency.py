"""A writer and readers as processes of their own, and values by which a reader can tell a torn
block."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import plan_samples
from lenscache.errors import StoreIncompleteError, StoreNotFoundError
from lenscache.store.round import Block, Round
from lenscache.store.store import create_store, open_store
from tests.lenstrain.conftest import HIDDEN, planted_header, planted_pack

PACK = planted_pack(n_examples=40)
BLOCK_ROWS = 16


def expected(phase: str, model_layer: int, rows: slice, generation: int) -> NDArray[np.float32]:
    """What a block holds: another value in every row, feature, array and store."""
    start = (phase == "completion") * 0.5 + model_layer + 4 * generation
    return (
        np.arange(rows.start, rows.stop)[:, None] + np.arange(HIDDEN) / HIDDEN + 1000 * start
    ).astype(np.float32)


def store_path(folder: str, generation: int) -> Path:
    return Path(folder) / f"store-{generation}.zarr"


def write_stores(folder: str, seconds: float, pause: float) -> int:
    """Write one store after another, block by block, until the time is up; returns the blocks
    written."""
    end, blocks = time.monotonic() + seconds, 0
    generation = 0
    while time.monotonic() < end:
        plan = plan_samples(PACK, [1])
        store = create_store(store_path(folder, generation), planted_header(PACK), PACK)
        n = len(plan)
        target = store.create_round(
            1,
            0,
            plan,
            keys=np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8),
            n_prompt_tokens=np.full(n, 5, np.int32),
            block_rows=BLOCK_ROWS,
        )
        for block in np.random.default_rng(generation).permutation(target.n_blocks):
            rows = target.rows(int(block))
            arrays: dict[Any, Any] = {
                (phase, model_layer): expected(phase, model_layer, rows, generation)
                for phase in store.header.phases
                for model_layer in store.header.model_layers
            }
            texts = [f"{generation}:{row}" for row in range(rows.start, rows.stop)]
            target.write_block(int(block), Block(arrays, texts, np.full(len(texts), 3, np.int32)))
            blocks += 1
            if time.monotonic() > end:
                break
            time.sleep(pause)
        generation += 1
    return blocks


def read_stores(folder: str, seconds: float, seed: int) -> dict[str, int]:
    """Read what is there until the time is up. Counts blocks that were right, torn, and refused as
    they must be."""
    rng, end = np.random.default_rng(seed), time.monotonic() + seconds
    counts = {"right": 0, "torn": 0, "refused": 0, "grew": 0}
    opened: dict[int, Round] = {}
    seen: dict[int, int] = {}
    while time.monotonic() < end:
        there = [g for g in range(200) if store_path(folder, g).exists()]
        if not there:
            time.sleep(0.01)
            continue
        generation = there[-1] if rng.random() < 0.8 else int(rng.choice(there))
        if generation not in opened or rng.random() < 0.3:
            try:
                rounds = open_store(store_path(folder, generation)).rounds(1)
            except StoreNotFoundError:
                continue
            if not rounds:
                continue
            opened[generation] = rounds[0]
        _read_round(opened[generation], generation, rng, counts)
        done = int(opened[generation].complete_blocks().sum())
        counts["grew"] += done > seen.get(generation, done)
        seen[generation] = done
    return counts


def _read_round(
    target: Round, generation: int, rng: np.random.Generator, counts: dict[str, int]
) -> None:
    done = target.complete_blocks()
    for block in rng.permutation(target.n_blocks)[:6]:
        rows = target.rows(int(block))
        phase = ("prompt", "completion")[int(rng.integers(2))]
        model_layer = int(rng.integers(2))
        try:
            values = target.read(phase, model_layer, rows)  # type: ignore[arg-type]
        except StoreIncompleteError:
            if done[block]:
                counts["torn"] += 1  # a mark that was there must stay
            counts["refused"] += 1
            continue
        right = np.array_equal(values, expected(phase, model_layer, rows, generation))
        texts = target.samples(rows).completion
        right &= list(texts) == [f"{generation}:{row}" for row in range(rows.start, rows.stop)]
        counts["right" if right else "torn"] += 1


def run(folder: str, readers: int, seconds: float) -> dict[str, int]:
    """One writer and some readers for some time; what they counted, all together."""
    with ProcessPoolExecutor(readers + 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        writer = pool.submit(write_stores, folder, seconds, 0.01)
        reading = [pool.submit(read_stores, folder, seconds, seed) for seed in range(readers)]
        written, counts = writer.result(), [future.result() for future in reading]
    return {"written": written, **{key: sum(count[key] for count in counts) for key in counts[0]}}
