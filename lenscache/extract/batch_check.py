"""Proof that batches change nothing: some rows of a round, as written, beside the same rows alone.

    first block of a run ---check_block---> nothing, or an error before the block is written
    round, all written ----check_batches--> largest relative error, recorded: it is complete now

What is compared is what ran: the vectors and tokens that the extraction's own batches left,
recorded decode steps included. A row alone follows the tokens that were written, see `comparison`:
in low precision another batch tips sampled tokens, and what follows is then another text, which
says nothing about the activations.

Rows whose tokens nobody recorded, in rounds of older versions and copied from them, are run again
in full batches; those batches are compared with the rows alone, and with what is stored where they
wrote the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lenscache.extract.comparison import Comparison, Written, differences, n_positions, written_by
from lenscache.extract.mismatch import mismatch
from lenscache.inference.runner import Row, RowResult, Runner
from lenscache.store.header import StoreHeader
from lenscache.store.round import Round
from lenscache.store.token_ids import ids_of_row

VERIFIED_ROWS = 8
"""Rows that are compared, of the first block of a run and at the end of a round."""


def check_block(
    target: Round,
    header: StoreHeader,
    runner: Runner,
    rows: Sequence[Row],
    results: Sequence[RowResult],
) -> None:
    """Compare some rows of a block that was just extracted with themselves alone.

    A model that does not batch is found out here, and not after hours, at the end of a round.

    Parameters
    ----------
    rows, results : what ran, and what came of it.

    Raises
    ------
    BatchMismatchError
        If they differ.
    """
    rng = np.random.default_rng([header.seed, *target.place])
    compared = Comparison(header, runner)
    for number in _draw(rng, np.arange(len(rows))):
        written = written_by(header, number, rows[number], results[number])
        counted = [p for p in header.phases if n_positions(header, written.row, p)]
        # else the store refuses them
        if all(np.isfinite(written.vectors[phase]).all() for phase in counted):
            compared.add(written, decode=compared.rows == 0)
    if compared.differs or compared.has_other_tokens:
        consequence = "the block is not written, the round is not marked complete"
        raise mismatch(target, compared, rows, consequence)


def check_batches(
    target: Round,
    header: StoreHeader,
    runner: Runner,
    rows: Sequence[Row],
    is_copied: NDArray[np.bool_] | None = None,
) -> float:
    """Compare some rows of a round with themselves alone and record it: the round is complete.

    They are not from the first block, which was checked before it was written, if there are others.

    Parameters
    ----------
    target : a round of which every block is written.
    rows : all rows of the round.
    is_copied : (rows,) which of them another store holds, and are compared only for want of others.

    Returns
    -------
    Largest relative error over rows, phases and model layers.

    Raises
    ------
    BatchMismatchError
        If rows differ; the round is not marked complete.
    """
    rng = np.random.default_rng([header.seed, *target.place])
    places = np.arange(target.block_rows if target.n_blocks > 1 else 0, len(rows))
    if is_copied is not None and not is_copied[places].all():
        places = places[~is_copied[places]]
    compared, other_texts = Comparison(header, runner), 0
    unknown: list[int] = []
    for number in _draw(rng, places):
        written = _read(target, header, rows[number], number)
        if written.row.completion_ids is None and header.mode != "prompt":
            unknown.append(number)
        else:
            compared.add(written, decode=compared.rows == 0)
    if unknown:
        other_texts = _compare_again(compared, target, rows, unknown)
    # Texts tell less than tokens: one may tip in float32, and most do in low precision.
    are_others = header.model_dtype == "float32" and other_texts > 1
    if compared.differs or compared.has_other_tokens or are_others:
        assert compared.suspect is not None  # noqa: S101 - for the type checker
        block = target.rows(compared.suspect.number // target.block_rows)
        raise mismatch(target, compared, rows[block], "the round is not marked complete")
    verification = {
        "rows": compared.rows,
        "tolerance": compared.tolerance,
        "other_completions": compared.other_completions + other_texts,
        "token_distance": compared.token_distance,
        "max_relative_error": {str(layer): error for layer, error in compared.errors.items()},
    }
    target.update_attributes({"verification": verification, "batch_size": runner.limits.rows})
    return max(compared.errors.values())


def _draw(rng: np.random.Generator, places: NDArray[np.intp]) -> list[int]:
    n = min(VERIFIED_ROWS, len(places))
    return sorted(rng.choice(places, size=n, replace=False).tolist())


def _read(target: Round, header: StoreHeader, row: Row, number: int) -> Written:
    """A row as it is stored; without tokens if they are unknown."""
    rows = slice(number, number + 1)
    if (ids := target.completion_ids(rows)) is not None:
        row = replace(row, completion_ids=ids_of_row(ids[0]))
    vectors = {
        phase: np.stack([target.read(phase, layer, rows)[0] for layer in header.model_layers])
        for phase in header.phases
    }
    return Written(number, row, vectors)


def _compare_again(
    compared: Comparison, target: Round, rows: Sequence[Row], numbers: Sequence[int]
) -> int:
    """Compare rows whose tokens are unknown by way of another run; how many wrote another text."""
    header, runner, other_texts = compared.header, compared.runner, 0
    # Full batches: only they run what was recorded.
    n_more = min(-len(numbers) % runner.limits.rows, len(rows) - len(numbers))
    more = [n for n in range(len(numbers) + n_more) if n not in set(numbers)][:n_more]
    results = runner.run([rows[number] for number in (*numbers, *more)])
    for number, result in zip(numbers, results, strict=False):
        again = written_by(header, number, rows[number], result)
        compared.add(again, decode=compared.rows == 0)
        stored = _read(target, header, rows[number], number)._replace(row=again.row)
        if "prompt" in header.phases:
            compared.take(stored, again.vectors, ["prompt"])
        if _is_same_completion(target, number, result, runner.text_of(result)) and all(
            each.share <= 1 for each in differences(header, stored, again.vectors, ["completion"])
        ):
            compared.take(stored, again.vectors, ["completion"])
        else:  # other tokens, even where they spell the same text
            other_texts += 1
    return other_texts


def _is_same_completion(target: Round, number: int, result: RowResult, text: str) -> bool:
    samples = target.samples(slice(number, number + 1))
    same_count = samples.n_completion_tokens[0] == result.n_completion_tokens
    return bool(same_count and samples.completion[0] == text)
