"""How the golden stores were made. They are not to be made again: that they still open is what they
are there for.

    python -m tests.golden.make FOLDER

Tiny stores of format version 1, every value of which follows from what stands here: one of bfloat16
with both phases and a label set, one of int8 with prompts alone, and one with the tokens of the
completions. The first two are older than `samples/completion_ids`, and made with a lenscache that
did not write it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.store.header import StoreHeader
from lenscache.store.keys import sample_keys
from lenscache.store.labelsets import add_label_set
from lenscache.store.round import Block
from lenscache.store.store import create_store
from lenscache.terms import Mode, Phase, StoreDtype

HIDDEN = 4
BLOCK_ROWS = 4
PACK = ConceptPack(
    "golden",
    "1",
    (
        Concept("nature", "nature", 0, definition="What nobody made."),
        Concept(
            "bird",
            "bird",
            1,
            parents=("nature",),
            definition="A creature with feathers.",
            examples=("It sang at dawn.", "Ein Vogel? 🐦"),
        ),
        Concept(
            "moss",
            "moss",
            1,
            parents=("nature",),
            aliases=("lichen",),
            examples=("Green on the north side.",),
            contrasts=("Moss & Sons, roofers.",),
        ),
    ),
)
LABELS = ConceptPack(
    "sounds",
    "1",
    (
        Concept(
            "sound",
            "a sound",
            0,
            examples=("It sang at dawn.",),
            negatives=("Green on the north side.",),
        ),
    ),
    origin="sounds.csv",
    prompts="examples",
)


def header(store_dtype: StoreDtype, mode: Mode) -> StoreHeader:
    """What the two stores are said to have been extracted with."""
    return StoreHeader(
        model_id="golden",
        model_fingerprint="0123456789abcdef",
        model_dtype="float32",
        n_layers=3,
        hidden=HIDDEN,
        tokenizer_fingerprint="fedcba9876543210",
        pack_name=PACK.name,
        pack_version=PACK.version,
        pack_digest=PACK.digest,
        model_layers=(1,),
        mode=mode,
        max_new_tokens=5 if mode == "combined" else 0,
        pooling="mean",
        pool_first_position=False,
        special_tokens=True,
        store_dtype=store_dtype,
        seed=7,
        max_prompt_tokens=100,
    )


def vectors(rows: slice, phase: Phase) -> NDArray[Any]:
    """Values that bfloat16 holds exactly: row + feature / 4, negative in the completion."""
    values = np.arange(rows.start, rows.stop)[:, None] + np.arange(HIDDEN) / 4
    return np.asarray(values if phase == "prompt" else -values, np.float32)


def token_ids(rows: slice) -> NDArray[np.int32]:
    """Row r wrote r % 3 tokens, 100 + r each; nobody knows which those of row 9 were."""
    ids = np.full((rows.stop - rows.start, 5), -1, np.int32)
    for row in range(rows.start, rows.stop):
        ids[row - rows.start, : row % 3] = 100 + row
        if row == 9:
            ids[row - rows.start] = -2
    return ids


def make(path: Path, store_dtype: StoreDtype, mode: Mode, *, with_ids: bool = False) -> None:
    """Write one store."""
    store = create_store(path, header(store_dtype, mode), PACK)
    plan = plan_samples(PACK, [1], seed=7)
    n_prompt_tokens = np.array([len(text.split()) + 1 for text in plan.texts], np.int32)
    target = store.create_round(
        1,
        0,
        plan,
        keys=sample_keys(store.header, plan),
        n_prompt_tokens=n_prompt_tokens,
        block_rows=BLOCK_ROWS,
    )
    for block in range(target.n_blocks):
        rows = target.rows(block)
        generated = np.arange(rows.start, rows.stop) % 3
        arrays: dict[tuple[Phase, int], NDArray[Any]] = {
            (phase, 1): vectors(rows, phase) for phase in store.header.phases
        }
        if mode == "combined":
            arrays["completion", 1][generated == 0] = np.nan
        texts = [f"and {n}" if n and mode == "combined" else "" for n in generated]
        counts = (generated if mode == "combined" else 0 * generated).astype(np.int32)
        ids = token_ids(rows) if with_ids else None
        target.write_block(block, Block(arrays, texts, counts, ids))
    target.update_attributes(
        {
            "verification": {
                "rows": 0,
                "tolerance": 1e-4,
                "other_completions": 0,
                "max_relative_error": {"1": 0.0},
            },
            "batch_size": 4,
        }
    )
    if mode == "combined":
        add_label_set(store, "sounds", LABELS)


if __name__ == "__main__":
    make(Path(sys.argv[1]) / "format-1.zarr", "bfloat16", "combined")
    make(Path(sys.argv[1]) / "format-1-int8.zarr", "int8", "prompt")
    make(Path(sys.argv[1]) / "format-1-ids.zarr", "float32", "combined", with_ids=True)
