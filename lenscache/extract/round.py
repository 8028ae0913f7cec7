"""The blocks of one round: extracted, written, verified.

do(block): rows --Runner--> results --writer thread--> Block --> Round.write_block
finish():  some rows again, one by one; of the first block that runs, before it is written

The next block runs meanwhile, so that a device does not stand idle while results become a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import StoreDamagedError
from lenscache.extract.batch_check import check_batches, check_block
from lenscache.extract.partitions import Partition
from lenscache.extract.reuse import NO_COPIES, CopiedRows, ReusableRows
from lenscache.extract.rows import PlannedRows
from lenscache.extract.settings import ExtractProgress, ExtractReport, OnProgress
from lenscache.inference.runner import RowResult, Runner
from lenscache.memory import memory_held
from lenscache.store.header import StoreHeader
from lenscache.store.round import Block, Round
from lenscache.store.token_ids import as_rows
from lenscache.terms import Phase

_MOST_IN_FLIGHT = 2  # blocks that are not written yet while another one runs: memory stays flat


class RoundShape(NamedTuple):
    """What an engine needs to know of a round."""

    name: str
    level: int
    rows_of_blocks: tuple[int, ...]
    """Rows of each block."""
    last_rows: NDArray[np.intp]
    """For each concept, the last row that expresses it; ascending."""
    is_complete: bool


class RoundExtraction:
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
        self.target, self.header, self.runner, self.rows = target, header, runner, rows
        self.reusable, self.last_rows = reusable, last_rows
        self.report, self.on_progress = report, on_progress
        self._writer = writer
        self._writing: deque[tuple[int, Future[None]]] = deque()
        # A round of one block is verified as soon as that is written.
        self._is_block_checked = target.n_blocks == 1
        self.rows_done = self.rows_run = 0
        self.rows_total = len(rows)

    @property
    def shape(self) -> RoundShape:
        """What an engine needs to know of it."""
        target = self.target
        sizes = tuple(map(self._n_rows, range(target.n_blocks)))
        return RoundShape(target.name, target.level, sizes, self.last_rows, target.is_complete)

    def _n_rows(self, block: int) -> int:
        rows = self.target.rows(block)
        return int(rows.stop - rows.start)

    def run(self, partition: Partition) -> None:
        """The blocks of a partition; and the end of the round, if nobody else has any left."""
        blocks = partition.blocks(self.target.n_blocks)
        self.rows_total = sum(map(self._n_rows, blocks))
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
        """Extract a block unless it is complete; which blocks have been written since."""
        if self.target.complete_blocks(slice(block, block + 1))[0] and self._reads_back(block):
            return [block]
        return self._start_writing(block, self._extract_block(block))

    def flush(self) -> list[int]:
        """Wait for the blocks that are being written; which these are."""
        return self._wait_until(0)

    def finish(self) -> None:
        """Verify, unless that was done."""
        if not self.target.is_complete:
            its = self.target, self.header, self.runner, self.rows, self._are_copies()
            error = check_batches(*its)
            self.report.max_relative_error = max(self.report.max_relative_error, error)

    def _start_writing(self, block: int, assemble: Callable[[], Block]) -> list[int]:
        written = self._wait_until(_MOST_IN_FLIGHT - 1)
        earlier = [writing for _, writing in self._writing]

        def write() -> None:
            for writing in earlier:
                writing.result()  # where one could not be written, the next ones are not tried
            self.target.write_block(block, assemble())

        self._writing.append((block, self._writer.submit(write)))
        return written

    def _wait_until(self, in_flight: int) -> list[int]:
        """Wait until so few blocks are in flight; which ones have been written since."""
        written = []
        while len(self._writing) > in_flight or (self._writing and self._writing[0][1].done()):
            block, writing = self._writing.popleft()
            writing.result()
            written.append(block)
        return written

    def _reads_back(self, block: int) -> bool:
        """Whether a block that another run marked complete is so; a damaged one is unmarked."""
        rows = self.target.rows(block)
        try:
            self.target.verify_block(block)
        except StoreDamagedError as error:
            self._tell(f"damaged, extracting rows {rows.start}-{rows.stop - 1} again: {error}")
            self.target.unmark_block(block)
            self.report.repaired_blocks.append(f"{self.target.name} block {block}")
            return False
        self.rows_done += self._n_rows(block)
        return True

    def _extract_block(self, block: int) -> Callable[[], Block]:
        """Run the rows of a block; what puts the block together, for the writer thread."""
        rows = self.rows[self.target.rows(block)]
        copied = self._copy(block)
        tries = self.runner.out_of_memory
        missing = [row for number, row in enumerate(rows) if number not in copied.numbers]
        if not missing:
            return lambda: copied.block
        results = self.runner.run(missing, on_rows=self._advance)
        if self.runner.out_of_memory > tries:
            self._tell(f"out of memory: going on with batches of {self.runner.limits.rows}")
        if why := self.runner.recordings.told_once():
            self._tell(f"decode steps are not recorded as a CUDA graph, which is slower: {why}")
        # Whoever runs blocks of a round checks the first before it is written: what is there was
        # checked, and a run that goes on needs to know nothing of the one before.
        if not self._is_block_checked:
            check_block(self.target, self.header, self.runner, missing, results)
            self._is_block_checked = True
        return partial(self._assemble, copied, results, len(rows))

    def _assemble(self, copied: CopiedRows, results: Sequence[RowResult], n_rows: int) -> Block:
        extracted = self._to_block(results)
        return copied.merge(extracted, n_rows) if copied.numbers else extracted

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

    def _are_copies(self) -> NDArray[np.bool_] | None:
        """(rows,) whether another store holds each row of the round; None if none is reused."""
        if self.reusable is None:
            return None
        keys = self.target.samples().key
        return np.array([self.reusable.holds(bytes(key)) for key in keys], np.bool_)

    def _to_block(self, results: Sequence[RowResult]) -> Block:
        activations: dict[tuple[Phase, int], NDArray[Any]] = {}
        for phase in self.header.phases:
            # (model layer, row, hidden)
            stacked = np.stack([result.pooled[phase] for result in results], axis=1)
            for model_layer, vectors in zip(self.header.model_layers, stacked, strict=True):
                activations[phase, model_layer] = vectors
        counts = np.array([result.n_completion_tokens for result in results], np.int32)
        texts = [self.runner.text_of(result) for result in results]
        ids = as_rows([r.completion_ids for r in results], self.header.max_new_tokens)
        return Block(activations, texts, counts, ids)

    def _advance(self, n: int) -> None:
        self.rows_done += n
        self.rows_run += n
        self.report.rows_run += n
        self._tell()

    def _tell(self, message: str = "") -> None:
        done = int(np.searchsorted(self.last_rows, self.rows_done))
        self.on_progress(
            ExtractProgress(
                self.target.level,
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
