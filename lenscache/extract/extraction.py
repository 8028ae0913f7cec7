"""The loop of an extraction: blocks of planned rounds through one model into one store.

    Request --lay_out--> Extraction: rounds in the store, their rows, a runner
                         do(block):    --Runner--> results --writer thread--> Round.write_block
                         finish(round): some rows again, one by one

An `Extraction` is what one process with one model holds. `run` drives it from beginning to end; an
engine that has many of them (`ray_driver.py`) hands out blocks and finishes rounds in an order of
its own. The batches of a block depend on nothing outside it, so whoever extracts it, its bytes are
the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from lenscache.concepts.plan import plan_samples
from lenscache.extract.background import plan_own_round
from lenscache.extract.batch_size import runner_for_rounds
from lenscache.extract.identity import make_header
from lenscache.extract.partitions import Partition
from lenscache.extract.planned_rounds import PlannedRound, plan_rounds
from lenscache.extract.request import Request
from lenscache.extract.reuse import ReusableRows
from lenscache.extract.round import RoundExtraction, RoundShape
from lenscache.extract.rows import PlannedRows, last_rows, tokenize
from lenscache.extract.settings import ExtractReport, OnProgress
from lenscache.inference.trial import check_model_runs
from lenscache.model.loading import LoadedModel
from lenscache.store.disk import check_disk_space
from lenscache.store.header import StoreHeader
from lenscache.store.keys import sample_keys
from lenscache.store.layout import BACKGROUND, round_name
from lenscache.store.store import Store, create_store, open_store


class Extraction:
    """A request laid out in its store, and its model; close it, or use it as a context manager."""

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
        limit = header.max_prompt_tokens
        goes_on = header.mode != "prompt"
        tokenized = [
            tokenize(loaded, entry.plan.texts, limit, continued=goes_on) for entry in planned
        ]
        sizes = {round_name(p.level, p.index): len(p.plan) for p in planned}
        check_disk_space(path, header, sizes)
        store = create_store(path, header, request.pack)
        self.report = ExtractReport(levels=[p.level for p in planned if p.level != BACKGROUND])
        self.report.cut_prompts = sum(int((found.n_cut > 0).sum()) for found in tokenized)
        # All rounds are laid out first: a misfit must not show after hours of extracting another.
        rounds = [
            store.create_round(
                entry.level,
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
        plans = [entry.plan for entry in planned]
        rows = list(map(PlannedRows, plans, tokenized))
        self.runner = runner_for_rounds(loaded, header, settings, rounds, rows, on_progress)
        self._partition = settings.partition or Partition(1, 1)
        # Blocks are written while later ones run, in their order.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lenscache-write")
        self._rounds = [
            RoundExtraction(
                target,
                header,
                self.runner,
                its_rows,
                last_rows(plan),
                reusable,
                self.report,
                self._writer,
                on_progress,
            )
            for target, plan, its_rows in zip(rounds, plans, rows, strict=True)
        ]
        self.report.seconds_to_start = time.perf_counter() - start
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the blocks that are being written."""
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
        """Extract a block of round `number`, unless it is complete.

        Returns
        -------
        The blocks written since, as (round, block). This block itself is written while later ones
        run, and told then, or by `flush`.
        """
        others = (n for n in range(len(self._rounds)) if n != number)
        written = [entry for other in others for entry in self._flush(other)]
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


def lay_out(
    request: Request, loaded: LoadedModel, on_progress: OnProgress | None = None
) -> Extraction:
    """Plan the rounds, lay them out in the store unless they are there, and choose a batch size.

    Raises
    ------
    UnsupportedModelError
        If the model cannot run two rows together.
    StoreMismatchError, DiskSpaceError
        As `lenscache.extract.extract`.
    PlanError
        If a concept to top up was never extracted, or nothing is left to add.
    StoreIncompleteError
        If an earlier round of a level to top up is not finished.
    """
    header = make_header(loaded, request.pack, request.settings)
    check_model_runs(loaded, header.model_layers, header.mode)
    tell = on_progress or (lambda _: None)
    planned, exhausted = _planned(request, header)
    if request.top_up is None:
        its = request.pack, request.settings, loaded, request.path, tell
        # First: a fit that follows the extraction reads it from its beginning.
        if (own := plan_own_round(request.background, *its)) is not None:
            planned.insert(0, own)
    reusable = None
    if request.reuse:
        stores = [e if isinstance(e, Store) else open_store(e) for e in request.reuse]
        reusable = ReusableRows(stores, header)
    extraction = Extraction(request, loaded, header, planned, reusable, tell)
    extraction.report.exhausted_concepts = exhausted
    return extraction


def _planned(request: Request, header: StoreHeader) -> tuple[list[PlannedRound], list[str]]:
    if request.top_up is not None:
        store = open_store(request.path, mode="r+")
        store.header.check_equal(header)
        return plan_rounds(store, request.pack, request.top_up)
    pack, seed = request.pack, request.settings.seed
    asked: dict[str, Any] = {"limit": request.limit, "samples": request.settings.samples}
    return [
        PlannedRound(level, 0, plan_samples(pack, [level], seed=seed, **asked), asked)
        for level in (request.levels or pack.levels)
    ], []
