"""Extraction by many processes, on Ray.

    extract_with_ray --Request, load--> workers: actors, each with a model on a GPU of its own or its share of the cores
                     --(round, block)--> Extraction.do: model -> store, straight from the worker
                     <--blocks written, progress--

This process plans nothing, loads no model and sees no activation: it hands out blocks and notes which are written. A
worker that dies is begun again by Ray, and the blocks that it had not finished writing are handed out anew. That is all
there is to it, since blocks are disjoint, depend on nothing outside them, and are marked once they are whole; whoever
is handed a block that is complete reads it back and goes on.

On a CPU the order of sums, and with it the last bits, depends on the number of threads: bytes are those of one process
where all have as many (OMP_NUM_THREADS says how many).

Every machine of a cluster needs lenscache installed, with ``pip install 'lenscache[ray]'``, and must reach the store
and the model under the names given here.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lenscache.errors import LenscacheError, PlanError, WorkerError
from lenscache.extraction import Request, RoundShape
from lenscache.model import LoadedModel
from lenscache.ray_cluster import connected, cores_of_a_worker, resource, threads_of_a_worker
from lenscache.ray_worker import BlockName, Done, Worker, WorkerProgress
from lenscache.settings import ExtractProgress, ExtractReport, OnProgress
from lenscache.store import Store

MOST_DEATHS = 8
"""How often in a row a worker may die without a block to show for it."""

_POLL_S = 0.5
_ROOM_S = 60.0  # until a worker that has not begun is missed


def extract_with_ray(
    request: Request,
    load: Callable[[], LoadedModel],
    *,
    workers: int | None = None,
    address: str | None = None,
    use_gpu: bool | None = None,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract what is asked for with several workers, or continue doing so.

    A Ray that this process is connected to already is used as it is, and left running.

    Parameters
    ----------
    request : what to extract and where to; a path is one that every worker knows.
    load : called by every worker for its model. Ray pickles it.
    workers : how many; None for one for every GPU of the cluster, or one where there is none.
    address : of a running cluster, as for `ray.init`; None to start one on this machine for the time of the run.
    use_gpu : whether each worker gets a GPU of its own; None for wherever the cluster has some.
    on_progress : called about twice a second.

    Raises
    ------
    MissingPackageError
        If Ray is not installed.
    PlanError
        If the request names a partition, or no cluster answers at the address.
    WorkerError
        If a worker dies again and again without finishing a block.
    LenscacheError
        Whatever `lenscache.extract.extract` raises, from whichever worker. Complete blocks are kept.
    """
    if request.settings.partition is not None:
        raise PlanError("--partition divides a run by hand, --engine ray does it itself: leave one of them out")
    if "://" not in str(request.path):
        request = replace(request, path=str(Path(request.path).absolute()))  # workers start in other folders
    request = replace(request, reuse=tuple(_place(entry) for entry in request.reuse))
    start = time.perf_counter()
    with connected(address, workers):
        gpus = resource("GPU") if use_gpu is not False else 0
        if use_gpu and not gpus:
            raise PlanError("a GPU for each worker is asked for, the Ray cluster has none: pass --device cpu")
        n = workers or max(1, gpus)
        driver = _Driver(request, load, n, cores_of_a_worker(n), bool(gpus), on_progress or (lambda _: None))
        try:
            report = driver.run()
        finally:  # a cluster that is left running is not left extracting
            driver.stop()
    report.elapsed_s = time.perf_counter() - start
    return report


def _place(entry: Store | str) -> str:
    path = str(entry.path if isinstance(entry, Store) else entry)
    return path if "://" in path else str(Path(path).absolute())


@dataclass
class _Seat:
    """A worker as the driver sees it, through deaths and restarts."""

    actor: Any
    given: set[BlockName] = field(default_factory=set)
    """Blocks handed to it that are not known to be written."""
    deaths: int = 0
    """In a row, without a block written between them."""
    life: str = ""
    """Of its last answer about blocks."""
    has_begun: bool = False
    """Whether the cluster had room for it."""
    is_ready: bool = False
    """Whether it has its model, and the request laid out."""
    report: ExtractReport = field(default_factory=ExtractReport)
    progress: WorkerProgress = field(default_factory=lambda: WorkerProgress(0, 0, None, []))
    asked: Any = None
    """The answer to `progress` that is waited for."""


class _Driver:
    """Hands out blocks until all are written, and then the rounds to verify."""

    def __init__(
        self,
        request: Request,
        load: Callable[[], LoadedModel],
        workers: int,
        cores: int,
        on_gpu: bool,
        on_progress: OnProgress,
    ) -> None:
        import ray

        remote: Any = ray.remote
        threads = threads_of_a_worker(cores)
        # Who asks how far a worker is gets a thread of his own there.
        actor = remote(
            num_cpus=0 if on_gpu else min(cores, threads), num_gpus=int(on_gpu), max_restarts=-1,
            concurrency_groups={"watch": 1},
        )(Worker)  # fmt: skip
        self._seats = [_Seat(actor.remote(request, load, threads, on_gpu)) for _ in range(workers)]
        self._on_progress = on_progress
        self._waiting: deque[BlockName] = deque()
        self._tasks: dict[Any, tuple[_Seat, str, BlockName | int | None]] = {}
        self._shapes: list[RoundShape] = []
        self._written: set[BlockName] = set()
        self._finished: set[int] = set()
        self._ended: list[ExtractReport] = []  # of workers that died
        self._first = ExtractReport()
        self._begun = time.monotonic()
        self._has_told_of_room = False
        self._restarting: list[tuple[float, _Seat, str, BlockName | int | None]] = []  # when to ask whom what

    def run(self) -> ExtractReport:
        """Everything; what was done."""
        for seat in self._seats:
            self._ask(seat, "load")
        start = time.perf_counter()
        while not self._is_through:
            for seat, what, about, answer in self._answers():
                self._take(seat, what, about, answer)
            self._ask_those_who_restart()
            self._watch()
        self._first.seconds_to_start = min(self._first.seconds_to_start, time.perf_counter() - start)
        return self._report()

    def stop(self) -> None:
        """End the workers."""
        import ray

        for seat in self._seats:
            ray.kill(seat.actor, no_restart=True)

    @property
    def _is_through(self) -> bool:
        return bool(self._shapes) and len(self._finished) == len(self._shapes)

    # what is asked of workers, and what comes of it

    def _ask(self, seat: _Seat, what: str, *arguments: int, about: BlockName | int | None = None) -> None:
        reference = getattr(seat.actor, what).remote(*arguments)
        self._tasks[reference] = seat, what, about

    def _answers(self) -> Iterator[tuple[_Seat, str, BlockName | int | None, Any]]:
        """Answers that have come; of a worker that died, its death is taken care of here."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        if not self._tasks:  # all are being begun again
            time.sleep(_POLL_S)
            return
        done, _ = ray.wait(list(self._tasks), timeout=_POLL_S)
        for reference in done:
            seat, what, about = self._tasks.pop(reference)
            try:
                answer = ray.get(reference)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, LenscacheError) else error from None
            except RayActorError as error:
                # Whoever is asked while he is begun again says so at once: that is no other death.
                if not (isinstance(error, ActorUnavailableError) and "is restarting" in str(error)):
                    self._bury(seat, error)
                self._ask_again(seat, what, about)
                continue
            yield seat, what, about, answer

    def _bury(self, seat: _Seat, error: Exception) -> None:
        """A worker has died: Ray begins it again."""
        seat.deaths += 1
        if seat.deaths >= MOST_DEATHS:
            raise WorkerError(
                f"a worker died {seat.deaths} times in a row without finishing a block ({_reason(error)}): give "
                "each more memory, with fewer --workers or a smaller --batch-size, and run the same again"
            ) from error
        self._ended.append(seat.report)
        seat.report, seat.progress, seat.asked = ExtractReport(), WorkerProgress(0, 0, None, []), None
        self._tell(f"a worker died and is begun again ({seat.deaths} of {MOST_DEATHS} times in a row)")

    def _ask_again(self, seat: _Seat, what: str, about: BlockName | int | None) -> None:
        """Nothing that a worker had yet to write is written; it starts over in a moment."""
        self._hand_out_again(seat, set(seat.given))
        seat.is_ready = False
        if what != "finish":
            what, about = "lay_out" if self._shapes or what == "lay_out" else "load", None
        self._restarting.append((time.monotonic() + _POLL_S, seat, what, about))

    def _ask_those_who_restart(self) -> None:
        now = time.monotonic()
        due = [entry for entry in self._restarting if entry[0] <= now]
        self._restarting = [entry for entry in self._restarting if entry[0] > now]
        for _, seat, what, about in due:
            self._ask(seat, what, *([about] if isinstance(about, int) else []), about=about)

    def _hand_out_again(self, seat: _Seat, blocks: Collection[BlockName]) -> None:
        self._waiting.extendleft(sorted(blocks, reverse=True))
        seat.given.difference_update(blocks)

    def _take(self, seat: _Seat, what: str, about: BlockName | int | None, answer: Any) -> None:
        if what == "load":
            # The first lays out the store, and chooses a batch size that the others then find there.
            asked = [*self._tasks.values(), *(entry[1:] for entry in self._restarting)]
            if self._shapes or not any(what == "lay_out" for _, what, _ in asked):
                self._ask(seat, "lay_out")
            return
        if what == "lay_out":
            seat.is_ready = True
            if not self._shapes:
                self._begin(*answer)
            for other in self._idle():
                self._feed(other) if other.is_ready else self._ask(other, "lay_out")
            return
        done: Done = answer
        if done.life != seat.life:
            # Who dies between two questions is begun again without a word; what it had yet to write is lost.
            self._hand_out_again(seat, seat.given - {about})
            seat.life = done.life
        seat.report = done.report
        if isinstance(about, tuple):
            seat.given.add(about)
        self._note_written(seat, done.written)
        if what == "finish" and isinstance(about, int):
            self._finished.add(about)
        for other in self._idle():
            self._feed(other)

    def _begin(self, shapes: Sequence[RoundShape], report: ExtractReport) -> None:
        self._shapes, self._first = list(shapes), report
        self._waiting.extend((n, b) for n, shape in enumerate(shapes) for b in range(len(shape.rows_of_blocks)))

    def _idle(self) -> list[_Seat]:
        busy = [id(seat) for seat, _, _ in self._tasks.values()] + [id(seat) for _, seat, _, _ in self._restarting]
        return [seat for seat in self._seats if id(seat) not in busy]

    def _feed(self, seat: _Seat) -> None:
        """Something to do for a worker that is idle: a block, a round to verify, or to see its last block written."""
        if self._waiting:
            block = self._waiting.popleft()
            seat.given.add(block)
            self._ask(seat, "do", *block, about=block)
            return
        ready = [number for number in range(len(self._shapes)) if self._is_written(number)]
        asked = [*self._tasks.values(), *(entry[1:] for entry in self._restarting)]
        under_way = {about for _, what, about in asked if what == "finish"}
        if open_rounds := [n for n in ready if n not in self._finished and n not in under_way]:
            self._ask(seat, "finish", open_rounds[0], about=open_rounds[0])
        elif seat.given:
            self._ask(seat, "flush")

    def _note_written(self, seat: _Seat, written: Sequence[BlockName]) -> None:
        if written:
            seat.deaths = 0
        seat.given.difference_update(written)
        self._written.update(written)

    def _is_written(self, number: int) -> bool:
        return all((number, block) in self._written for block in range(len(self._shapes[number].rows_of_blocks)))

    # what is told

    def _watch(self) -> None:
        """Hear how far the workers are, and say so; one that does not answer holds nobody up."""
        import ray
        from ray.exceptions import RayError

        for seat in self._seats:
            if seat.asked is None:
                seat.asked = seat.actor.progress.options(concurrency_group="watch").remote()
            elif ray.wait([seat.asked], timeout=0)[0]:
                try:
                    seat.progress = ray.get(seat.asked)
                    seat.has_begun = True
                except RayError:
                    seat.progress = WorkerProgress(0, 0, None, [])
                seat.asked = None
                for message in seat.progress.messages:
                    self._tell(message)
        absent = sum(not seat.has_begun for seat in self._seats)
        if absent and not self._has_told_of_room and time.monotonic() - self._begun > _ROOM_S:
            self._has_told_of_room = True
            self._tell(f"{absent} of {len(self._seats)} workers wait for the Ray cluster to have room for them")
        if self._shapes:
            self._tell()

    def _tell(self, message: str = "") -> None:
        if not self._shapes:
            if message:
                self._on_progress(ExtractProgress(0, 0, 0, 0, message))
            return
        number = next((n for n in range(len(self._shapes)) if not self._is_written(n)), len(self._shapes) - 1)
        shape = self._shapes[number]
        done = sum(rows for block, rows in enumerate(shape.rows_of_blocks) if (number, block) in self._written)
        run = [max(seat.progress.rows_run, seat.report.rows_run) for seat in self._seats]
        # What workers have run of blocks that are not written counts as done, up to what there is.
        under_way = [max(0, seat.progress.rows_run - seat.report.rows_run) for seat in self._seats]
        done = min(done + sum(under_way), sum(shape.rows_of_blocks))
        memory = [seat.progress.memory_bytes for seat in self._seats if seat.progress.memory_bytes is not None]
        self._on_progress(
            ExtractProgress(
                shape.layer, done, sum(shape.rows_of_blocks), sum(run) + sum(each.rows_run for each in self._ended),
                message, concepts_done=int(np.searchsorted(shape.last_rows, done)),
                concepts_total=len(shape.last_rows), tokens_run=sum(seat.progress.tokens_run for seat in self._seats),
                memory_bytes=sum(memory) if memory else None,
            )
        )  # fmt: skip

    def _report(self) -> ExtractReport:
        """The whole run; rows count as often as they were run."""
        parts = [*self._ended, *(seat.report for seat in self._seats)]
        repaired = Counter(name for part in parts for name in part.repaired_blocks)
        return replace(
            self._first,
            rows=sum(sum(shape.rows_of_blocks) for shape in self._shapes),
            rows_run=sum(part.rows_run for part in parts),
            rows_reused=sum(part.rows_reused for part in parts),
            repaired_blocks=sorted(repaired),
            batch_size=min((part.batch_size for part in parts if part.batch_size), default=0),
            max_relative_error=max(part.max_relative_error for part in parts),
        )


def _reason(error: Exception) -> str:
    """One line of what Ray says of a death; of a worker that could not be begun, what it lacked."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "creation task" in lines[0] else lines[0]
