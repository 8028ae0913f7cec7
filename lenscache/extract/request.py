"""The loop of an extraction, whoever drives it: blocks of planned rounds through one model into one
store.

    Request --lay_out--> Extraction: rounds in the store, their rows, a runner
                         do(block):    --Runner--> Block --writer thread--> Round.write_block
                         finish(round): some rows again, one by one

An `Extraction` is what one process with one model holds. `run` drives it from beginning to end; an
engine that has many of them (`ray_engine.py`) hands out blocks and finishes rounds in an order of
its own. The batches of a block depend on nothing outside it, so whoever extracts it, its bytes are
the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.errors import StoreDamagedError
from lenscache.extract.batch_check import check_batches
from lenscache.extract.batch_size import choose_batch
from lenscache.extract.planned_rounds import PlannedRound, TopUp, plan_rounds
from lenscache.extract.reuse import NO_COPIES, CopiedRows, ReusableRows
from lenscache.extract.rows import PlannedRows, last_rows, make_header, make_runner, tokenize
from lenscache.extract.settings import (
    ExtractProgress,
    ExtractReport,
    ExtractSettings,
    OnProgress,
    Partition,
)
from lenscache.inference.runner import RowResult, Runner
from lenscache.model.loading import LoadedModel, memory_held
from lenscache.store.disk import check_disk_space
from lenscache.store.header import Phase, StoreHeader
from lenscache.store.keys import sample_keys
from lenscache.store.round import Block, Round
from lenscache.store.store import Store, create_store, open_store

_BATCH_OF_NOTHING = 4  # where no row is left to run


class RoundShape(NamedTuple):
    """What an engine needs to know of a round."""

    name: str
    layer: int
    rows_of_blocks: tuple[int, ...]
    """Rows of each block."""
    last_rows: NDArray[np.intp]
    """For each concept, the last row that expresses it; ascending."""
    is_complete: bool


@dataclass(frozen=True)
class Request:
    """What to extract and where to: all that a process needs beside the model."""

    path: str | Path
    pack: ConceptPack
    settings: ExtractSettings
    layers: tuple[int, ...] | None = None
    limit: int | None = None
    reuse: tuple[Store | str, ...] = ()
    """Stores, or where they are, whose rows are copied where they are the same."""
    top_up: TopUp | None = None
    """More samples for some concepts, instead of `layers` and `limit`."""

    def lay_out(self, loaded: LoadedModel, on_progress: OnProgress | None = None) -> Extraction:
        """Plan the rounds and lay them out in the store, unless they are there; choose a batch size
        if asked to.

        Raises
        ------
        StoreMismatchError, StoreIncompleteError, PlanError, DiskSpaceError
            As `lenscache.extract.extract` and `extract_top_up`.
        """
        header = make_header(loaded, self.pack, self.settings)
        planned, exhausted = self._planned(header)
        reusable = None
        if self.reuse:
            stores = [
                entry if isinstance(entry, Store) else open_store(entry) for entry in self.reuse
            ]
            reusable = ReusableRows(stores, header)
        extraction = Extraction(
            self, loaded, header, planned, reusable, on_progress or (lambda _: None)
        )
        extraction.report.exhausted_concepts = exhausted
        return extraction

    def _planned(self, header: StoreHeader) -> tuple[list[PlannedRound], list[str]]:
        if self.top_up is not None:
            store = open_store(self.path, mode="r+")
            store.header.check_equal(header)
            return plan_rounds(store, self.pack, self.top_up)
        settings, asked = self.settings, {"limit": self.limit, "samples": self.settings.samples}
        return [
            PlannedRound(
                layer,
                0,
                plan_samples(
                    self.pack,
                    [layer],
                    seed=settings.seed,
                    limit=self.limit,
                    samples=settings.samples,
                ),
                asked,
            )
            for layer in (self.layers or self.pack.layers)
        ], []


class Extraction:
    """A request laid out in its store, with the model to carry it out. Close it, or use it as a
    context manager."""

    def __init__(
        self,
        request: Request,
        loaded: LoadedModel,
        header: StoreHeader,
        planned: Sequence[PlannedRound],
        reusable: ReusableRows | None,
        on_progress: OnProgress,
    ) -> None:
        start, path, settings = time.perf_counter(), request.path, request.settings
        tokenized = [
            tokenize(loaded, entry.plan.texts, header.max_prompt_tokens) for entry in planned
        ]
        check_disk_space(
            path, header, {f"layer_{p.layer}/round_{p.index}": len(p.plan) for p in planned}
        )
        store = create_store(path, header, request.pack)
        self.report = ExtractReport(layers=[entry.layer for entry in planned])
        self.report.cut_prompts = sum(int((found.n_cut > 0).sum()) for found in tokenized)
        # All rounds are laid out first: one that does not fit must not show after hours of
        # extracting another.
        rounds = [
            store.create_round(
                entry.layer,
                entry.index,
                entry.plan,
                keys=sample_keys(header, entry.plan),
                n_prompt_tokens=found.lengths,
                n_cut_tokens=found.n_cut,
                block_rows=settings.block_rows,
                request=entry.request,
            )
            for entry, found in zip(planned, tokenized, strict=True)
        ]
        rows = [
            PlannedRows(entry.plan, found) for entry, found in zip(planned, tokenized, strict=True)
        ]
        self.runner = _make_runner(loaded, header, settings, rounds, rows, on_progress)
        self._partition = settings.partition or Partition(1, 1)
        # One block is encoded and written while the next one runs; no more, so that memory stays
        # flat.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lenscache-write")
        self._rounds = [
            _RoundExtraction(
                target,
                header,
                self.runner,
                its_rows,
                last_rows(entry.plan),
                reusable,
                self.report,
                self._writer,
                on_progress,
            )
            for target, entry, its_rows in zip(rounds, planned, rows, strict=True)
        ]
        self.report.seconds_to_start = time.perf_counter() - start
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the block that is being written."""
        self._writer.shutdown()

    def run(self) -> ExtractReport:
        """Everything, or the partition that was asked for, in this process."""
        for its in self._rounds:
            its.run(self._partition)
        self.report.elapsed_s = time.perf_counter() - self._start
        self.report.batch_size = self.runner.batch_size
        return self.report

    @property
    def shapes(self) -> list[RoundShape]:
        """The rounds, in the order in which `do` and `finish` count them."""
        return [its.shape for its in self._rounds]

    def do(self, number: int, block: int) -> list[tuple[int, int]]:
        """Extract a block of round `number`, unless it is complete; the blocks that are written
        now, as (round, block).

        The block itself is written while the next one runs, and is told then, or by `flush`.
        """
        written = [
            entry
            for other in range(len(self._rounds))
            if other != number
            for entry in self._flush(other)
        ]
        return written + [(number, done) for done in self._rounds[number].do(block)]

    def flush(self) -> list[tuple[int, int]]:
        """Wait until all that was extracted is written; which blocks those are."""
        return [entry for number in range(len(self._rounds)) for entry in self._flush(number)]

    def _flush(self, number: int) -> list[tuple[int, int]]:
        return [(number, block) for block in self._rounds[number].flush()]

    def finish(self, number: int) -> None:
        """Verify a round of which every block is written, unless that was done.

        Raises
        ------
        BatchMismatchError
            If rows run one by one differ from those in batches.
        """
        self._rounds[number].finish()


def _make_runner(
    loaded: LoadedModel,
    header: StoreHeader,
    settings: ExtractSettings,
    rounds: Sequence[Round],
    rows: Sequence[PlannedRows],
    tell: OnProgress,
) -> Runner:
    """A runner of the batch size asked for, or of the one that an interrupted run found, or of one
    found now."""
    if settings.batch_size != "auto":
        return make_runner(loaded, header, settings.batch_size)
    unfinished = [number for number, target in enumerate(rounds) if not target.is_complete]
    # The same batches make the same bytes: what was chosen when a round was begun holds until it is
    # done.
    known = [
        found for number in unfinished if (found := rounds[number].attributes.get("auto_batch"))
    ]
    if known or not unfinished:
        rows_a_batch, tokens, *more = known[0] if known else (_BATCH_OF_NOTHING, None)
        return make_runner(
            loaded, header, rows_a_batch, batch_tokens=tokens, overhead=more[0] if more else None
        )
    most = max(rounds[number].block_rows for number in unfinished)
    choice = choose_batch(
        partial(make_runner, loaded, header), [rows[number] for number in unfinished], most=most
    )
    first = unfinished[0]
    tell(ExtractProgress(rounds[first].layer, 0, len(rows[first]), 0, str(choice)))
    for number in unfinished:
        rounds[number].update_attributes(
            {"auto_batch": [choice.rows, choice.tokens, choice.overhead]}
        )
    return make_runner(
        loaded, header, choice.rows, batch_tokens=choice.tokens, overhead=choice.overhead
    )


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
        writer: ThreadPoolExecutor,
        on_progress: OnProgress,
    ) -> None:
        self.target, self.header, self.runner, self.rows, self.reusable = (
            target,
            header,
            runner,
            rows,
            reusable,
        )
        self.last_rows = last_rows
        self.report, self.on_progress = report, on_progress
        self._writer = writer
        self._writing: tuple[int, Future[None]] | None = None
        self.rows_done = self.rows_run = 0
        self.rows_total = len(rows)

    @property
    def shape(self) -> RoundShape:
        """What an engine needs to know of it."""
        rows = [self.target.rows(block) for block in range(self.target.n_blocks)]
        sizes = tuple(each.stop - each.start for each in rows)
        return RoundShape(
            self.target.name, self.target.layer, sizes, self.last_rows, self.target.is_complete
        )

    def run(self, partition: Partition) -> None:
        """The blocks of a partition; and the end of the round, if nobody else has any left."""
        blocks = partition.blocks(self.target.n_blocks)
        self.rows_total = sum(
            self.target.rows(block).stop - self.target.rows(block).start for block in blocks
        )
        self.report.rows += self.rows_total
        marked = self.target.complete_blocks()
        missing = [block for block in blocks if not (marked[block] and self._reads_back(block))]
        self._tell()
        for block in missing:
            self._start_writing(block, self._extract_block(block))
        self.flush()
        # Whoever writes the last block of a round finds all of them marked, and verifies it.
        if not self.target.complete_blocks().all():
            self.report.unfinished_rounds.append(self.target.name)
        else:
            self.finish()

    def do(self, block: int) -> list[int]:
        """Extract a block unless it is complete; which blocks are written now."""
        if self.target.complete_blocks(slice(block, block + 1))[0] and self._reads_back(block):
            return [block]
        return self._start_writing(block, self._extract_block(block))

    def flush(self) -> list[int]:
        """Wait for the block that is being written; which it is."""
        if self._writing is None:
            return []
        block, writing = self._writing
        self._writing = None
        writing.result()
        return [block]

    def finish(self) -> None:
        """Verify, unless that was done."""
        if not self.target.is_complete:
            self._verify()

    def _start_writing(self, block: int, data: Block) -> list[int]:
        written = self.flush()
        self._writing = block, self._writer.submit(self.target.write_block, block, data)
        return written

    def _reads_back(self, block: int) -> bool:
        """Whether a block that is marked complete is so: this run did not write it. One that is
        damaged is unmarked."""
        rows = self.target.rows(block)
        try:
            self.target.verify_block(block)
        except StoreDamagedError as error:
            self._tell(f"damaged, extracting rows {rows.start}-{rows.stop - 1} again: {error}")
            self.target.unmark_block(block)
            self.report.repaired_blocks.append(f"{self.target.name} block {block}")
            return False
        self.rows_done += rows.stop - rows.start
        return True

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
        return (
            copied.merge(self._to_block(results), len(rows))
            if copied.numbers
            else self._to_block(results)
        )

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
            stacked = np.stack(
                [result.pooled[phase] for result in results], axis=1
            )  # (model layer, row, hidden)
            activations.update(
                {(phase, i): stacked[k] for k, i in enumerate(self.header.model_layers)}
            )
        return Block(
            activations,
            completion=[self.runner.text_of(result) for result in results],
            n_completion_tokens=np.array(
                [result.n_completion_tokens for result in results], np.int32
            ),
        )

    def _verify(self) -> None:
        error = check_batches(self.target, self.header, self.runner, self.rows)
        self.report.max_relative_error = max(self.report.max_relative_error, error)

    def _advance(self, n: int) -> None:
        self.rows_done += n
        self.rows_run += n
        self.report.rows_run += n
        self._tell()

    def _tell(self, message: str = "") -> None:
        done = int(np.searchsorted(self.last_rows, self.rows_done))
        self.on_progress(
            ExtractProgress(
                self.target.layer,
                self.rows_done,
                self.rows_total,
                self.rows_run,
                message,
                concepts_done=done,
                concepts_total=len(self.last_rows),
                tokens_run=self.runner.tokens_run,
                memory_bytes=memory_held(*self.runner.loaded.devices),
            )
        )
