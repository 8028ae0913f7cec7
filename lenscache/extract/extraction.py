"""The loop of an extraction: blocks of planned rounds through one model into one store.

    Request --lay_out--> header, plans, room on the disk, store, rounds, runner: an Extraction
                         do(block):    --Runner--> results --writer thread--> Round.write_block
                         finish(round): some rows again, one by one

An `Extraction` is what one process with one model holds. `LocalEngine` runs it from beginning to
end; `RayEngine` (`ray_driver.py`) has many of them, hands out blocks and finishes rounds in an
order of its own. The batches of a block depend on nothing outside it, so whoever extracts it, its
bytes are the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

from lenscache.concepts.plan import plan_samples
from lenscache.extract.background import plan_own_round
from lenscache.extract.batch_size import runner_for_rounds
from lenscache.extract.identity import make_header
from lenscache.extract.partitions import Partition
from lenscache.extract.planned_rounds import PlannedRound, plan_rounds
from lenscache.extract.request import Request
from lenscache.extract.reuse import ReusableRows
from lenscache.extract.round import RoundExtraction, RoundShape
from lenscache.extract.rows import PlannedRows, Tokenized, last_rows, tokenize
from lenscache.extract.settings import ExtractReport, OnProgress
from lenscache.inference.runner import Runner
from lenscache.inference.trial import check_model_runs
from lenscache.model.loading import LoadedModel
from lenscache.store.disk import check_disk_space
from lenscache.store.header import StoreHeader
from lenscache.store.keys import sample_keys
from lenscache.store.layout import BACKGROUND, round_name
from lenscache.store.round import Round
from lenscache.store.store import Store, create_store, open_store


class Engine(Protocol):
    """Where a request is extracted."""

    def run(self, request: Request, on_progress: OnProgress | None = None) -> ExtractReport:
        """Extract what is asked for, or continue doing so.

        Raises
        ------
        LenscacheError
            As `lenscache.extract.extract` does. Complete blocks are kept.
        """


@dataclass(frozen=True)
class LocalEngine:
    """Extracts in this process."""

    loaded: LoadedModel

    def run(self, request: Request, on_progress: OnProgress | None = None) -> ExtractReport:
        """As `Engine.run`; of a request for a partition, its blocks. Tells after every batch."""
        with lay_out(request, self.loaded, on_progress) as extraction:
            return extraction.run()


class Extraction:
    """A request laid out in its store, and its model; close it, or use it as a context manager."""

    def __init__(
        self,
        runner: Runner,
        rounds: Sequence[RoundExtraction],
        report: ExtractReport,
        writer: ThreadPoolExecutor,
        partition: Partition,
        start: float,
    ) -> None:
        self.runner, self.report = runner, report
        self._rounds, self._writer, self._partition = rounds, writer, partition
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
        self.report.batch_size = self.runner.limits.rows
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
    tell, settings = on_progress or (lambda _: None), request.settings
    header = make_header(loaded, request.pack, settings)
    check_model_runs(loaded, header.model_layers, header.mode)
    planned, exhausted = _planned(request, header, loaded, tell)
    stores = [e if isinstance(e, Store) else open_store(e) for e in request.reuse]
    reusable = ReusableRows(stores, header) if stores else None
    start = time.perf_counter()
    limit, goes_on = header.max_prompt_tokens, header.mode != "prompt"
    tokenized = [tokenize(loaded, p.plan.texts, limit, continued=goes_on) for p in planned]
    rounds = _lay_out_rounds(request, header, planned, tokenized)
    rows = [PlannedRows(p.plan, found) for p, found in zip(planned, tokenized, strict=True)]
    runner = runner_for_rounds(loaded, header, settings, rounds, rows, tell)
    report = ExtractReport(
        levels=[p.level for p in planned if p.level != BACKGROUND],
        cut_prompts=sum(int((found.n_cut > 0).sum()) for found in tokenized),
        exhausted_concepts=exhausted,
    )
    # Blocks are written while later ones run, in their order.
    writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lenscache-write")
    extractions = [
        RoundExtraction(
            target, header, runner, its, last_rows(p.plan), reusable, report, writer, tell
        )
        for target, p, its in zip(rounds, planned, rows, strict=True)
    ]
    report.seconds_to_start = time.perf_counter() - start
    partition = settings.partition or Partition(1, 1)
    return Extraction(runner, extractions, report, writer, partition, start)


def _planned(
    request: Request, header: StoreHeader, loaded: LoadedModel, tell: OnProgress
) -> tuple[list[PlannedRound], list[str]]:
    """The rounds to extract, and the concepts of a top-up that have nothing left."""
    pack, settings = request.pack, request.settings
    if request.top_up is not None:
        store = open_store(request.path, mode="r+")
        store.header.check_equal(header)
        return plan_rounds(store, pack, request.top_up)
    asked: dict[str, Any] = {"limit": request.limit, "samples": settings.samples}
    planned = [
        PlannedRound(level, 0, plan_samples(pack, [level], seed=settings.seed, **asked), asked)
        for level in (request.levels or pack.levels)
    ]
    own = plan_own_round(request.background, pack, settings, loaded, request.path, tell)
    # First: a fit that follows the extraction reads it from its beginning.
    return ([] if own is None else [own]) + planned, []


def _lay_out_rounds(
    request: Request,
    header: StoreHeader,
    planned: Sequence[PlannedRound],
    tokenized: Sequence[Tokenized],
) -> list[Round]:
    """All rounds, before any runs: a misfit must not show after hours of extracting another."""
    sizes = {round_name(p.level, p.index): len(p.plan) for p in planned}
    check_disk_space(request.path, header, sizes)
    store = create_store(request.path, header, request.pack)
    return [
        store.create_round(
            p.level,
            p.index,
            p.plan,
            keys=sample_keys(header, p.plan),
            n_prompt_tokens=found.lengths,
            n_cut_tokens=found.n_cut,
            block_rows=request.settings.block_rows,
            request=p.request,
        )
        for p, found in zip(planned, tokenized, strict=True)
    ]
