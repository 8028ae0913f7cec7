"""Stage one: plan -> model -> store, resumable.

    pack --plan_samples--> rows --Runner, a block at a time--> Block --writer thread--> Round.write_block

A block is the unit of loss: whatever happens, the blocks marked complete stay, and the same call continues after them.
For one device, dtype and batch size the result is the same, byte for byte, as that of an uninterrupted run, because
the batches of a block depend on nothing outside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.batching import choose_batch
from lenscache.concepts import ConceptPack
from lenscache.diskspace import check_disk_space
from lenscache.errors import BatchMismatchError, StoreDamagedError
from lenscache.header import Phase, StoreHeader
from lenscache.inputs import PlannedRows, last_rows, make_header, make_runner, tokenize
from lenscache.keys import sample_keys
from lenscache.model import LoadedModel, memory_held
from lenscache.prompts import plan_samples
from lenscache.quantization import as_stored
from lenscache.reuse import NO_COPIES, CopiedRows, ReusableRows
from lenscache.rounds import Block, Round
from lenscache.runner import RowResult, Runner
from lenscache.settings import ExtractProgress, ExtractReport, ExtractSettings, OnProgress, Partition
from lenscache.store import Store, create_store, open_store
from lenscache.topup import PlannedRound, TopUp, plan_rounds

__all__ = ["ExtractProgress", "ExtractReport", "ExtractSettings", "OnProgress", "extract", "extract_top_up"]

VERIFIED_ROWS = 8
"""Rows of a round that are extracted again one by one at its end."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest relative error between a row in a batch and the same row alone, by the dtype the model computes in."""

_BATCH_OF_NOTHING = 4  # where no row is left to run

_ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 2.0**-6}
"""What storing may add: values that differ a little may be rounded apart."""


def extract(
    path: str | Path,
    pack: ConceptPack,
    loaded: LoadedModel,
    settings: ExtractSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
    reuse: Sequence[Store] = (),
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract the activations of a pack's layers into the store at `path`, or continue doing so.

    Parameters
    ----------
    path : where the store is or shall be.
    layers : layers of abstraction; None for all of the pack.
    limit : the first `limit` concepts of each layer only.
    reuse : stores whose rows are copied where they are the same, as those of an earlier version of the pack are.
    on_progress : called after every batch.

    Raises
    ------
    StoreMismatchError
        If the store was written with another model, tokenizer, pack, dtype or setting.
    DiskSpaceError
        If the disk cannot hold what is still to be extracted; nothing was started.
    NonFiniteError, BatchMismatchError
        If the model produced what must not be stored. Complete blocks are kept.
    """
    settings = settings or ExtractSettings()
    header = make_header(loaded, pack, settings)
    request = {"limit": limit, "samples": settings.samples}
    planned = [
        PlannedRound(
            layer, 0, plan_samples(pack, [layer], seed=settings.seed, limit=limit, samples=settings.samples), request
        )
        for layer in (layers or pack.layers)
    ]
    rows = ReusableRows(reuse, header) if reuse else None
    return _extract_rounds(path, pack, loaded, settings, header, planned, rows, on_progress)


def extract_top_up(
    path: str | Path,
    pack: ConceptPack,
    loaded: LoadedModel,
    request: TopUp,
    settings: ExtractSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract more samples for some concepts, as a further round of their layer, or continue doing so.

    Prompts that were not extracted yet come first; after those, texts are sampled again with another seed and
    temperature.

    Raises
    ------
    PlanError
        If a concept was never extracted, or nothing is left to add.
    StoreIncompleteError
        If an earlier round of a layer is not finished.
    StoreMismatchError, DiskSpaceError, NonFiniteError, BatchMismatchError
        As `extract`.
    """
    settings = settings or ExtractSettings()
    header, store = make_header(loaded, pack, settings), open_store(path, mode="r+")
    store.header.check_equal(header)
    planned, exhausted = plan_rounds(store, pack, request)
    report = _extract_rounds(path, pack, loaded, settings, header, planned, None, on_progress)
    report.exhausted_concepts = exhausted
    return report


def _extract_rounds(
    path: str | Path,
    pack: ConceptPack,
    loaded: LoadedModel,
    settings: ExtractSettings,
    header: StoreHeader,
    planned: Sequence[PlannedRound],
    reusable: ReusableRows | None,
    on_progress: OnProgress | None,
) -> ExtractReport:
    tokenized = [tokenize(loaded, entry.plan.texts, header.max_prompt_tokens) for entry in planned]
    check_disk_space(path, header, {f"layer_{p.layer}/round_{p.index}": len(p.plan) for p in planned})
    store = create_store(path, header, pack)
    report = ExtractReport(layers=[entry.layer for entry in planned])
    report.cut_prompts = sum(int((found.n_cut > 0).sum()) for found in tokenized)
    start = time.perf_counter()
    # All rounds are laid out first: one that does not fit the store must not show after hours of extracting another.
    rounds = [
        store.create_round(
            entry.layer, entry.index, entry.plan,
            keys=sample_keys(header, entry.plan),
            n_prompt_tokens=found.lengths,
            n_cut_tokens=found.n_cut, block_rows=settings.block_rows, request=entry.request,
        )
        for entry, found in zip(planned, tokenized, strict=True)
    ]  # fmt: skip
    tell = on_progress or (lambda _: None)
    rows = [PlannedRows(entry.plan, found) for entry, found in zip(planned, tokenized, strict=True)]
    runner = _make_runner(loaded, header, settings, rounds, rows, tell)
    report.seconds_to_start = time.perf_counter() - start
    for target, entry, its_rows in zip(rounds, planned, rows, strict=True):
        extraction = _RoundExtraction(target, header, runner, its_rows, last_rows(entry.plan), reusable, report, tell)
        extraction.run(settings.partition or Partition(1, 1))
    report.elapsed_s = time.perf_counter() - start
    report.batch_size = runner.batch_size
    return report


def _make_runner(
    loaded: LoadedModel,
    header: StoreHeader,
    settings: ExtractSettings,
    rounds: Sequence[Round],
    rows: Sequence[PlannedRows],
    tell: OnProgress,
) -> Runner:
    """A runner of the batch size asked for, or of the one that an interrupted run found, or of one found now."""
    if settings.batch_size != "auto":
        return make_runner(loaded, header, settings.batch_size)
    unfinished = [number for number, target in enumerate(rounds) if not target.is_complete]
    # The same batches make the same bytes: what was chosen when a round was begun holds until it is done.
    known = [found for number in unfinished if (found := rounds[number].attributes.get("auto_batch"))]
    if known or not unfinished:
        rows_a_batch, tokens, *more = known[0] if known else (_BATCH_OF_NOTHING, None)
        return make_runner(loaded, header, rows_a_batch, batch_tokens=tokens, overhead=more[0] if more else None)
    most = max(rounds[number].block_rows for number in unfinished)
    choice = choose_batch(partial(make_runner, loaded, header), [rows[number] for number in unfinished], most=most)
    first = unfinished[0]
    tell(ExtractProgress(rounds[first].layer, 0, len(rows[first]), 0, str(choice)))
    for number in unfinished:
        rounds[number].update_attributes({"auto_batch": [choice.rows, choice.tokens, choice.overhead]})
    return make_runner(loaded, header, choice.rows, batch_tokens=choice.tokens, overhead=choice.overhead)


class _RoundExtraction:
    """The loop over the blocks of one round."""

    def __init__(
        self,
        target: Round,
        header: StoreHeader,
        runner: Runner,
        rows: PlannedRows,
        last_rows: NDArray[np.intp],
        reusable: ReusableRows | None,
        report: ExtractReport,
        on_progress: OnProgress,
    ) -> None:
        self.target, self.header, self.runner, self.rows, self.reusable = target, header, runner, rows, reusable
        self.last_rows = last_rows
        self.report, self.on_progress = report, on_progress
        self.rows_done = self.rows_run = 0
        self.rows_total = len(rows)

    def run(self, partition: Partition) -> None:
        blocks = partition.blocks(self.target.n_blocks)
        self.rows_total = sum(self.target.rows(block).stop - self.target.rows(block).start for block in blocks)
        self.report.rows += self.rows_total
        missing = self._find_missing_blocks(blocks)
        self._tell()
        # One block is encoded and written while the next one runs; no more, so that memory stays flat.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="lenscache-write") as writer:
            writing: Future[None] | None = None
            for block in missing:
                data = self._extract_block(block)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self.target.write_block, block, data)
            if writing is not None:
                writing.result()
        # Whoever writes the last block of a round finds all of them marked, and verifies it.
        if not self.target.complete_blocks().all():
            self.report.unfinished_rounds.append(self.target.name)
        elif not self.target.is_complete:
            self._verify()

    def _find_missing_blocks(self, blocks: Sequence[int]) -> list[int]:
        """Blocks to extract. Those found complete are read back first: this run did not write them."""
        missing, marks = [], self.target.complete_blocks()
        for block in blocks:
            rows, marked = self.target.rows(block), marks[block]
            try:
                if marked:
                    self.target.verify_block(block)
                    self.rows_done += rows.stop - rows.start
                    continue
            except StoreDamagedError as error:
                self._tell(f"damaged, extracting rows {rows.start}-{rows.stop - 1} again: {error}")
                self.target.unmark_block(block)
                self.report.repaired_blocks.append(f"{self.target.name} block {block}")
            missing.append(block)
        return missing

    def _extract_block(self, block: int) -> Block:
        rows = self.rows[self.target.rows(block)]
        copied = self._copy(block)
        tries = self.runner.out_of_memory
        missing = [row for number, row in enumerate(rows) if number not in copied.numbers]
        if not missing:
            return copied.block
        results = self.runner.run(missing, on_rows=self._advance)
        if self.runner.out_of_memory > tries:
            self._tell(f"out of memory: going on with batches of {self.runner.batch_size}")
        return copied.merge(self._to_block(results), len(rows)) if copied.numbers else self._to_block(results)

    def _copy(self, block: int) -> CopiedRows:
        """Rows of a block that another store holds; none where that store is damaged."""
        if self.reusable is None:
            return NO_COPIES
        rows = self.target.rows(block)
        try:
            copied = self.reusable.read([bytes(key) for key in self.target.samples(rows).key])
        except StoreDamagedError as error:
            self._tell(f"rows {rows.start}-{rows.stop - 1} are not copied but extracted: {error}")
            return NO_COPIES
        self.rows_done += len(copied.numbers)
        self.report.rows_reused += len(copied.numbers)
        self._tell()
        return copied

    def _to_block(self, results: Sequence[RowResult]) -> Block:
        activations: dict[tuple[Phase, int], NDArray[Any]] = {}
        for phase in self.header.phases:
            stacked = np.stack([result.pooled[phase] for result in results], axis=1)  # (model layer, row, hidden)
            activations.update({(phase, i): stacked[k] for k, i in enumerate(self.header.model_layers)})
        return Block(
            activations,
            completion=[_decode(self.runner.loaded, result.completion_ids) for result in results],
            n_completion_tokens=np.array([result.n_completion_tokens for result in results], np.int32),
        )

    def _verify(self) -> None:
        """Run some rows again, together and one by one; record the largest error, and that the round is done.

        A row alone is made to follow the completion that it wrote in the batch: in low precision a batch may tip a
        sampled token, and what follows is then another text, which says nothing about the activations.
        """
        n = len(self.rows)
        rng = np.random.default_rng([self.header.seed, self.target.layer, self.target.index])
        chosen = sorted(rng.choice(n, size=min(VERIFIED_ROWS, n), replace=False).tolist())
        stored_texts = self.target.samples().completion
        errors = dict.fromkeys(self.header.model_layers, 0.0)
        other_completions = 0
        for row, together in zip(chosen, self.runner.run([self.rows[row] for row in chosen]), strict=True):
            followed = replace(self.rows[row], completion_ids=tuple(together.completion_ids))
            alone = self.runner.run([followed], replay=False)[0]
            same_text = _decode(self.runner.loaded, together.completion_ids) == stored_texts[row]
            other_completions += not same_text
            for phase in self.header.phases:
                for number, model_layer in enumerate(self.header.model_layers):
                    vector = together.pooled[phase][number]
                    found = [_relative_error(vector, alone.pooled[phase][number])]
                    if phase == "prompt" or same_text:
                        stored = self.target.read(phase, model_layer, slice(row, row + 1))[0]
                        found.append(_relative_error(stored, as_stored(vector, self.header.store_dtype)))
                    errors[model_layer] = max(errors[model_layer], *found)
        self._record(chosen, errors, other_completions)

    def _record(self, chosen: Sequence[int], errors: Mapping[int, float], other_completions: int) -> None:
        worst = max(errors, key=lambda model_layer: errors[model_layer])
        self.report.max_relative_error = max(self.report.max_relative_error, errors[worst])
        tolerance = TOLERANCE[self.header.model_dtype] + _ROUNDING[self.header.store_dtype]
        tipped_allowed = len(chosen) if self.header.model_dtype != "float32" else 1
        if errors[worst] > tolerance or other_completions > tipped_allowed:
            raise BatchMismatchError(
                f"{self.target.name}: rows extracted one by one differ from the batched ones by {errors[worst]:.2g} at "
                f"model layer {worst} (allowed {tolerance:.2g}), {other_completions} of {len(chosen)} in their "
                "completion: the round is not marked complete; this model does not batch, extract into another "
                "store with --batch-size 1"
            )
        self.target.update_attributes({
            "verification": {
                "rows": len(chosen), "tolerance": tolerance, "other_completions": other_completions,
                "max_relative_error": {str(model_layer): error for model_layer, error in errors.items()},
            },
            "batch_size": self.runner.batch_size,
        })  # fmt: skip

    def _advance(self, n: int) -> None:
        self.rows_done += n
        self.rows_run += n
        self.report.rows_run += n
        self._tell()

    def _tell(self, message: str = "") -> None:
        done = int(np.searchsorted(self.last_rows, self.rows_done))
        self.on_progress(
            ExtractProgress(
                self.target.layer, self.rows_done, self.rows_total, self.rows_run, message, concepts_done=done,
                concepts_total=len(self.last_rows), tokens_run=self.runner.tokens_run,
                memory_bytes=memory_held(self.runner.loaded.device),
            )
        )  # fmt: skip


def _decode(loaded: LoadedModel, completion_ids: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(completion_ids, skip_special_tokens=True)) if completion_ids else ""


def _relative_error(stored: NDArray[Any], alone: NDArray[Any]) -> float:
    """Norm of the difference over the norm; 0 where both have no pooled position."""
    stored, alone = stored.astype(np.float64), alone.astype(np.float64)
    if np.isnan(stored).all() and np.isnan(alone).all():
        return 0.0
    error = float(np.linalg.norm(stored - alone) / np.linalg.norm(alone))
    return error if np.isfinite(error) else float("inf")
