"""How far rows in batches are from the same rows alone, and what that says of the tolerances.

    python benchmarks/batch_check.py [--model smollm2-135m] [--device auto] [--rows 48] [--batch 16]
                                     [--dtype bfloat16 float32] [--quick] [--json FILE]

Rows of mixed length run in batches, in combined mode with 20 new tokens, by dtype and pooling, and
then alone along the tokens that they wrote: read in one pass, and a quarter of them decoded step by
step. For each phase: largest and median relative error over rows, the largest of all model layers.
For tokens: how far the cumulative distribution would have to shift, and how many texts a row alone
writes that are not those of the batch.

PREDICTED (`lenscache.extract.tolerance` derives it), 30 blocks: in bfloat16 1.7 % for one position,
0.4 % for a mean over 19; token distances below 0.1; in float32 below 1e-5 and no other text.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from extract import texts
from numpy.typing import NDArray

from lenscache.extract.tolerance import TOKEN_DISTANCE, TOLERANCE, TOLERANCE_OF_ONE
from lenscache.inference.alone import Alone, decode_alone, read_alone
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, RowResult, Runner
from lenscache.model.loading import LoadedModel, load_model, silence
from lenscache.terms import Phase, Pooling

NEW_TOKENS = 20
PHASES: tuple[Phase, ...] = ("prompt", "completion")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, help="default 48, 8 with --quick")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    figures, n = [], arguments.rows or (8 if arguments.quick else 48)
    for dtype in arguments.dtype:
        loaded = load_model(arguments.model, dtype=dtype, device=arguments.device)
        for pooling in get_args(Pooling):
            figures.append(measure(loaded, pooling, n, arguments.batch))
            print("  ".join(f"{key} {shown(value)}" for key, value in figures[-1].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(loaded: LoadedModel, pooling: Pooling, n: int, batch_size: int) -> dict[str, Any]:
    """Errors, distances and differing texts of `n` rows."""
    rng = np.random.default_rng(0)
    rows = [
        Row(loaded.tokenizer(text)["input_ids"], seed, float(0.3 + 0.6 * rng.random()))
        for seed, text in enumerate(texts(n))
    ]
    blocks = range(loaded.n_layers)
    runner = Runner(
        loaded, blocks, max_new_tokens=NEW_TOKENS, limits=BatchLimits(batch_size), pooling=pooling
    )
    batched = runner.run(rows)
    followed = [
        replace(row, completion_ids=tuple(result.completion_ids))
        for row, result in zip(rows, batched, strict=True)
    ]
    read = [read_alone(runner, row) for row in followed]
    decoded = [decode_alone(runner, row) for row in followed[: n // 4]]
    distances = np.concatenate([alone.distances for alone in read])
    free = [runner.run([row], replay=False)[0] for row in rows[: n // 4]]
    others = [a.completion_ids != b.completion_ids for a, b in zip(free, batched, strict=False)]
    found: dict[str, Any] = {"dtype": loaded.dtype, "pooling": pooling}
    for phase in PHASES:
        for how, alone in (("read", read), ("decoded", decoded)):
            errors = relative_errors(batched, alone, phase)
            found[f"{phase} {how}"] = [float(errors.max()), float(np.median(errors))]
    dtype = loaded.dtype
    return found | {
        "allowed": TOLERANCE[dtype] if pooling == "mean" else TOLERANCE_OF_ONE[dtype],
        "token distance": [float(distances.max()), float((distances > 0.02).mean())],
        "allowed distance": TOKEN_DISTANCE[dtype],
        "other texts alone": sum(others) / len(others),
    }


def relative_errors(
    batched: list[RowResult], alone: list[Alone], phase: Phase
) -> NDArray[np.float64]:
    """(rows,) the largest of all model layers, of rows that have a position."""
    found = []
    for one, other in zip(batched, alone, strict=False):
        vectors, expected = one.pooled[phase].astype(float), other.pooled[phase].astype(float)
        if np.isfinite(vectors).all():
            norms = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
            found.append(norms.max())
    return np.array(found)


def shown(value: object) -> str:
    """A figure, or several, in three digits."""
    if isinstance(value, list):
        return " / ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
