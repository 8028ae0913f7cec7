"""Why rows in batches and alone differ, as far as running them again tells, and what to do.

    Comparison that fails --mismatch--> BatchMismatchError: what was found, the likely cause, advice

The row that differs most is run again in a batch, with and without a recorded step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lenscache.errors import BatchMismatchError
from lenscache.extract.comparison import Comparison, written_by
from lenscache.inference.runner import Row
from lenscache.store.round import Round

_LIKELY_ROUNDING = 5.0
"""Times the allowed error up to which low precision is likelier the cause than the batch."""

Cause = Literal["batch", "rounding", "recorded step", "not reproduced"]

_ADVICE: dict[Cause, str] = {
    "batch": "this model does not batch: extract into another store with --batch-size 1",
    "rounding": (
        "rounding of {dtype} is the likely cause: extract into another store with --dtype float32"
    ),
    "recorded step": (
        "the decode step that is recorded for full batches does something else than the model: "
        "extract into another store with --device cpu or --mode prompt, and please report this"
    ),
    "not reproduced": (
        "run again in a batch, the row is what it is alone, so what differs was computed otherwise "
        "(on another machine, with another version of a library, in other batches, or by a model "
        "that is not deterministic): extract all of it on one kind of machine into another store"
    ),
}


def mismatch(
    target: Round, compared: Comparison, rows: Sequence[Row], consequence: str
) -> BatchMismatchError:
    """The error to raise for a comparison that failed.

    Parameters
    ----------
    rows : of the block of the row that differs most, which may have shared its batch.
    consequence : what is not done now.
    """
    assert compared.worst is not None  # noqa: S101 - rows were compared
    worst = compared.worst
    advice = _ADVICE[_cause(compared, rows)].format(dtype=compared.header.model_dtype)
    return BatchMismatchError(
        f"{target.name}: rows extracted one by one differ from the batched ones by "
        f"{worst.error:.2g} at model layer {worst.model_layer} (allowed {worst.allowed:.2g}), "
        f"{compared.other_completions} of {compared.rows} in their tokens: {consequence}; {advice}"
    )


def _cause(compared: Comparison, rows: Sequence[Row]) -> Cause:
    """The likely cause: the row that differs most is run again, in batches as it may have been."""
    assert compared.worst is not None and compared.suspect is not None  # noqa: S101, PT018
    header, runner = compared.header, compared.runner
    row = replace(compared.suspect.row, completion_ids=None)
    batch, padded = _batches(row, rows, runner.limits.rows)

    def differs(batch: Sequence[Row], *, replay: bool) -> bool:
        again = Comparison(header, runner)
        again.add(written_by(header, 0, row, runner.run(batch, replay=replay)[0]), decode=False)
        return again.differs or again.other_completions > 0

    if differs(batch, replay=False) or differs(padded, replay=False):
        is_small = 1 < compared.worst.share <= _LIKELY_ROUNDING
        return "rounding" if header.model_dtype != "float32" and is_small else "batch"
    return "recorded step" if differs(batch, replay=True) else "not reproduced"


def _batches(row: Row, rows: Sequence[Row], batch_size: int) -> tuple[list[Row], list[Row]]:
    """A row with others that are no shorter, as in extraction; and with the most padding."""
    others = sorted(
        (r for r in rows if r.token_ids != row.token_ids), key=lambda r: len(r.token_ids)
    )
    first = sum(len(other.token_ids) < len(row.token_ids) for other in others)
    first = max(0, min(first, len(others) - batch_size + 1))
    return [row, *others[first : first + batch_size - 1]], [row, *others[::-1][: batch_size - 1]]
