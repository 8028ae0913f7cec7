"""Proof that batches change nothing: some rows of a round, run again together and one by one.

round, runner --check_batches--> largest relative error, recorded in the round: it is complete now
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import BatchMismatchError
from lenscache.extract.rows import PlannedRows
from lenscache.inference.runner import Runner
from lenscache.store.header import StoreHeader
from lenscache.store.quantization import as_stored
from lenscache.store.round import Round

VERIFIED_ROWS = 8
"""Rows of a round that are extracted again one by one at its end."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest relative error between a row in a batch and alone, by the dtype the model computes in."""

_ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 2.0**-6}
"""What storing may add: values that differ a little may be rounded apart."""


def check_batches(target: Round, header: StoreHeader, runner: Runner, rows: PlannedRows) -> float:
    """Run some rows again, together and one by one; record the largest error: the round is done.

    A row alone is made to follow the completion that it wrote in the batch: in low precision a
    batch may tip a sampled token, and what follows is then another text, which says nothing about
    the activations.

    Parameters
    ----------
    target : a round of which every block is written.
    rows : all rows of the round.

    Returns
    -------
    Largest relative error over rows, phases and model layers.

    Raises
    ------
    BatchMismatchError
        If it is above the tolerance; the round is not marked complete.
    """
    rng = np.random.default_rng([header.seed, target.level, target.index])
    n = min(VERIFIED_ROWS, len(rows))
    chosen = sorted(rng.choice(len(rows), size=n, replace=False).tolist())
    stored_texts = target.samples().completion
    errors = dict.fromkeys(header.model_layers, 0.0)
    other_completions = 0
    for row, together in zip(chosen, runner.run([rows[row] for row in chosen]), strict=True):
        followed = replace(rows[row], completion_ids=tuple(together.completion_ids))
        alone = runner.run([followed], replay=False)[0]
        same_text = runner.text_of(together) == stored_texts[row]
        other_completions += not same_text
        for phase in header.phases:
            for number, model_layer in enumerate(header.model_layers):
                vector = together.pooled[phase][number]
                found = [_relative_error(vector, alone.pooled[phase][number])]
                if phase == "prompt" or same_text:
                    stored = target.read(phase, model_layer, slice(row, row + 1))[0]
                    found.append(_relative_error(stored, as_stored(vector, header.store_dtype)))
                errors[model_layer] = max(errors[model_layer], *found)
    return _record(target, header, runner, chosen, errors, other_completions)


def _record(
    target: Round,
    header: StoreHeader,
    runner: Runner,
    chosen: Sequence[int],
    errors: Mapping[int, float],
    other_completions: int,
) -> float:
    worst = max(errors, key=lambda model_layer: errors[model_layer])
    tolerance = TOLERANCE[header.model_dtype] + _ROUNDING[header.store_dtype]
    tipped_allowed = len(chosen) if header.model_dtype != "float32" else 1
    if errors[worst] > tolerance or other_completions > tipped_allowed:
        raise BatchMismatchError(
            f"{target.name}: rows extracted one by one differ from the batched ones by "
            f"{errors[worst]:.2g} at model layer {worst} (allowed {tolerance:.2g}), "
            f"{other_completions} of {len(chosen)} in their completion: the round is not marked "
            "complete; this model does not batch, extract into another store with --batch-size 1"
        )
    verification = {
        "rows": len(chosen),
        "tolerance": tolerance,
        "other_completions": other_completions,
        "max_relative_error": {str(model_layer): error for model_layer, error in errors.items()},
    }
    target.update_attributes({"verification": verification, "batch_size": runner.batch_size})
    return errors[worst]


def _relative_error(stored: NDArray[Any], alone: NDArray[Any]) -> float:
    """Norm of the difference over the norm; 0 where both have no pooled position."""
    stored, alone = stored.astype(np.float64), alone.astype(np.float64)
    if np.isnan(stored).all() and np.isnan(alone).all():
        return 0.0
    error = float(np.linalg.norm(stored - alone) / np.linalg.norm(alone))
    return error if np.isfinite(error) else float("inf")
