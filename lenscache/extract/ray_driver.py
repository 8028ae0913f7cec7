"""Extraction by many processes, on Ray.

    RayEngine.run --Request, load---> workers: actors, each with a model on its own GPU or cores
                  --(round, block)--> Extraction.do: model -> store, straight from the worker
                  <--blocks written, progress--

This process plans nothing, loads no model and sees no activation: it hands out blocks and notes
which are written. A worker that dies is begun again by Ray, and the blocks that it had not finished
writing are handed out anew. That is all there is to it, since blocks are disjoint, depend on
nothing outside them, and are marked once they are whole; whoever is handed a block that is complete
reads it back and goes on.

On a CPU the order of sums, and with it the last bits, depends on the number of threads: bytes are
those of one process where all have as many (OMP_NUM_THREADS says how many).

Every machine of a cluster needs lenscache installed, with ``pip install '.[ray]'`` in a clone of
lenscache, and must reach the store and the model under the names given here.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lenscache.cluster import connected, cores_of_a_worker, resource, threads_of_a_worker
from lenscache.errors import PlanError, WorkerError
from lenscache.extract.ray_worker import BlockName, Done, Worker, WorkerProgress
from lenscache.extract.request import Request
from lenscache.extract.round import RoundShape
from lenscache.extract.settings import ExtractProgress, ExtractReport, OnProgress
from lenscache.model.loading import LoadedModel
from lenscache.store.store import Store

MOST_DEATHS = 8
"""How often in a row a worker may die without a block to show for it."""

_NO_PROGRESS = WorkerProgress(0, 0, None, [])
_POLL_S = 0.5
_ROOM_S = 60.0  # until a worker that has not begun is missed


@dataclass(frozen=True)
class RayEngine:
    """Extracts with several workers.

    A Ray that this process is connected to already is used as it is, and left running.

    Parameters
    ----------
    load : called by every worker for its model. Ray pickles it.
    workers : how many; None for one for every GPU of the cluster, or one where there is none.
    address : of a running cluster, as for `ray.init`; None to start one on this machine for the
        time of the run.
    use_gpu : whether each worker gets a GPU of its own; None for wherever the cluster has some.
    """

    load: Callable[[], LoadedModel]
    workers: int | None = None
    address: str | None = None
    use_gpu: bool | None = None

    def run(self, request: Request, on_progress: OnProgress | None = None) -> ExtractReport:
        """As `Engine.run`. The paths of the request are those that every worker knows. Tells about
        twice a second.

        Raises
        ------
        MissingPackageError
            If Ray is not installed.
        PlanError
            If the request names a partition, or no cluster answers at the address.
        WorkerError
            If a worker dies again and again without finishing a block.
        LenscacheError
            Whatever `lenscache.extract.extract` raises, from whichever worker. Complete blocks are
            kept.
        """
        if request.settings.partition is not None:
            raise PlanError(
                "--partition divides a run by hand, --engine ray does it itself: leave one of them "
                "out"
            )
        # Workers start in other folders.
        reuse = tuple(_place(e.path if isinstance(e, Store) else e) for e in request.reuse)
        request = replace(request, path=_place(request.path), reuse=reuse)
        start = time.perf_counter()
        with connected(self.address, self.workers):
            gpus = resource("GPU") if self.use_gpu is not False else 0
            if self.use_gpu and not gpus:
                raise PlanError(
                    "a GPU for each worker is asked for, the Ray cluster has none: pass --device "
                    "cpu"
                )
            n = self.workers or max(1, gpus)
            tell = on_progress or (lambda _: None)
            driver = _Driver(request, self.load, n, cores_of_a_worker(n), bool(gpus), tell)
            try:
                report = driver.run()
            finally:  # a cluster that is left running is not left extracting
                driver.stop()
        report.elapsed_s = time.perf_counter() - start
        return report


def _place(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).absolute())


@dataclass
class _WorkerState:
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
    has_model: bool = False
    is_ready: bool = False
    """Whether it has the request laid out, too."""
    asked_from: float = 0.0
    """When it may be asked again: not while it is being begun again."""
    is_busy: bool = False
    report: ExtractReport = field(default_factory=ExtractReport)
    progress: WorkerProgress = _NO_PROGRESS
    asked: Any = None
    """The answer to `progress` that is waited for."""


class _Task(NamedTuple):
    """Something a worker was asked."""

    worker: _WorkerState
    what: str
    arguments: tuple[int, ...]


class _Driver:
    """Hands out blocks until all are written, and then the rounds to verify.

    Whatever a worker is asked may be asked of any other: one that is gone for good holds nothing
    up.
    """

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
            num_cpus=0 if on_gpu else min(cores, threads),
            num_gpus=int(on_gpu),
            max_restarts=-1,
            concurrency_groups={"watch": 1},
        )(Worker)
        self._workers = [
            _WorkerState(actor.remote(request, load, threads, on_gpu)) for _ in range(workers)
        ]
        self._on_progress = on_progress
        self._tasks: dict[Any, _Task] = {}
        self._shapes: list[RoundShape] = []
        self._waiting: deque[BlockName] = deque()
        self._unwritten: list[set[int]] = []
        """Blocks of each round."""
        self._rows_written: list[int] = []
        """Of each round."""
        self._unverified: set[int] = set()
        """Rounds."""
        self._ended: list[ExtractReport] = []  # of workers that died
        self._first = ExtractReport()
        self._begun = time.monotonic()
        self._watched = 0.0
        self._has_told_of_room = False

    def run(self) -> ExtractReport:
        """Everything; what was done."""
        while self._unverified or not self._shapes:
            self._occupy()
            for task, answer in self._answers():
                self._take(task, answer)
            if time.monotonic() - self._watched > _POLL_S:
                self._watched = time.monotonic()
                self._watch()
        self._tell()
        return self._report()

    def stop(self) -> None:
        """End the workers."""
        import ray

        for worker in self._workers:
            ray.kill(worker.actor, no_restart=True)

    # what is asked of workers, and what comes of it

    def _ask(self, worker: _WorkerState, what: str, *arguments: int) -> None:
        worker.is_busy = True
        self._tasks[getattr(worker.actor, what).remote(*arguments)] = _Task(worker, what, arguments)

    def _occupy(self) -> None:
        """Ask those who have nothing to do."""
        now = time.monotonic()
        under_way = {(task.what, task.arguments) for task in self._tasks.values()}
        for worker in self._workers:
            if worker.is_busy or worker.asked_from > now:
                continue
            question: tuple[Any, ...] | None
            if not worker.has_model:
                question = ("load",)
            elif not worker.is_ready:
                # The first lays out the store, and chooses a batch size that the others find there.
                is_open = self._shapes or ("lay_out", ()) not in under_way
                question = ("lay_out",) if is_open else None
            else:
                question = self._next_for(worker, under_way)
            if question is not None:
                what, *arguments = question
                self._ask(worker, what, *arguments)
                under_way.add((what, tuple(arguments)))

    def _next_for(
        self, worker: _WorkerState, under_way: Collection[tuple[str, tuple[int, ...]]]
    ) -> tuple[Any, ...] | None:
        """A block, a round to verify, or to see its last block written."""
        if self._waiting:
            block = self._waiting.popleft()
            worker.given.add(block)
            return ("do", *block)
        for number in sorted(self._unverified):
            if not self._unwritten[number] and ("finish", (number,)) not in under_way:
                return ("finish", number)
        return ("flush",) if worker.given else None

    def _answers(self) -> Iterator[tuple[_Task, Any]]:
        """Answers that have come; of a worker that died, its death is taken care of here."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        if not self._tasks:  # all are being begun again
            time.sleep(_POLL_S)
            return
        ray.wait(list(self._tasks), timeout=_POLL_S)
        done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for reference in done:
            task = self._tasks.pop(reference)
            task.worker.is_busy = False
            try:
                answer = ray.get(reference)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except RayActorError as error:
                # Whoever is asked while he is begun again says so at once: that is no other death.
                if not (isinstance(error, ActorUnavailableError) and "is restarting" in str(error)):
                    self._worker_died(task.worker, error)
                self._hand_out_again(task.worker, set(task.worker.given))
                task.worker.has_model = task.worker.is_ready = False
                task.worker.asked_from = time.monotonic() + _POLL_S
                continue
            yield task, answer

    def _worker_died(self, worker: _WorkerState, error: Exception) -> None:
        """A worker has died: Ray begins it again."""
        worker.deaths += 1
        if worker.deaths >= MOST_DEATHS:
            raise WorkerError(
                f"a worker died {worker.deaths} times in a row without finishing a block "
                f"({_reason(error)}): give each more memory, with fewer --workers or a smaller "
                "--batch-size, and run the same again"
            ) from error
        self._ended.append(worker.report)
        worker.report, worker.progress, worker.asked = ExtractReport(), _NO_PROGRESS, None
        times = f"{worker.deaths} of {MOST_DEATHS} times in a row"
        self._tell(f"a worker died and is begun again ({times})")

    def _hand_out_again(self, worker: _WorkerState, blocks: Collection[BlockName]) -> None:
        self._waiting.extendleft(sorted(blocks, reverse=True))
        worker.given.difference_update(blocks)

    def _take(self, task: _Task, answer: Any) -> None:
        worker = task.worker
        worker.has_model = worker.has_begun = True
        if task.what == "load":
            return
        worker.is_ready = True
        if task.what == "lay_out":
            if not self._shapes:
                self._begin(*answer)
            return
        done: Done = answer
        if done.life != worker.life:
            # Who dies between two questions is begun again silently; unwritten blocks are lost.
            self._hand_out_again(worker, worker.given - {task.arguments})
            worker.life = done.life
        worker.report = done.report
        self._note_written(worker, done.written)
        if task.what == "finish":
            self._unverified.discard(task.arguments[0])

    def _begin(self, shapes: Sequence[RoundShape], report: ExtractReport) -> None:
        self._shapes = list(shapes)
        self._first = replace(report, seconds_to_start=time.monotonic() - self._begun)
        self._unwritten = [set(range(len(shape.rows_of_blocks))) for shape in shapes]
        self._rows_written = [0] * len(shapes)
        self._unverified = set(range(len(shapes)))
        self._waiting.extend(
            (n, b) for n, shape in enumerate(shapes) for b in range(len(shape.rows_of_blocks))
        )

    def _note_written(self, worker: _WorkerState, written: Sequence[BlockName]) -> None:
        if written:
            worker.deaths = 0
        worker.given.difference_update(written)
        for number, block in written:
            if block in self._unwritten[number]:
                self._unwritten[number].remove(block)
                self._rows_written[number] += self._shapes[number].rows_of_blocks[block]

    # what is told

    def _watch(self) -> None:
        """Hear how far the workers are, and say so; one that does not answer holds nobody up."""
        import ray
        from ray.exceptions import RayError

        answered: set[Any] = set()
        if references := [worker.asked for worker in self._workers if worker.asked is not None]:
            answered.update(ray.wait(references, num_returns=len(references), timeout=0)[0])
        for worker in self._workers:
            if worker.asked is None:
                worker.asked = worker.actor.progress.options(concurrency_group="watch").remote()
            elif worker.asked in answered:
                try:
                    worker.progress = ray.get(worker.asked)
                    worker.has_begun = True
                except RayError:
                    worker.progress = _NO_PROGRESS
                worker.asked = None
                for message in worker.progress.messages:
                    self._tell(message)
        absent = sum(not worker.has_begun for worker in self._workers)
        if absent and not self._has_told_of_room and time.monotonic() - self._begun > _ROOM_S:
            self._has_told_of_room = True
            missing = f"{absent} of {len(self._workers)} workers"
            self._tell(f"{missing} wait for the Ray cluster to have room for them")
        if self._shapes:
            self._tell()

    def _tell(self, message: str = "") -> None:
        if not self._shapes:
            if message:
                self._on_progress(ExtractProgress(0, 0, 0, 0, message))
            return
        number = next((n for n, left in enumerate(self._unwritten) if left), len(self._shapes) - 1)
        shape, total = self._shapes[number], sum(self._shapes[number].rows_of_blocks)
        run = [max(worker.progress.rows_run, worker.report.rows_run) for worker in self._workers]
        # What workers have run of blocks that are not written counts as done, up to what there is.
        under_way = [
            max(0, worker.progress.rows_run - worker.report.rows_run) for worker in self._workers
        ]
        done = min(self._rows_written[number] + sum(under_way), total)
        held = (worker.progress.memory_bytes for worker in self._workers)
        memory = [size for size in held if size is not None]
        self._on_progress(
            ExtractProgress(
                shape.level,
                done,
                total,
                sum(run) + sum(each.rows_run for each in self._ended),
                message,
                concepts_done=int(np.searchsorted(shape.last_rows, done)),
                concepts_total=len(shape.last_rows),
                tokens_run=sum(worker.progress.tokens_run for worker in self._workers),
                memory_bytes=sum(memory) if memory else None,
            )
        )

    def _report(self) -> ExtractReport:
        """The whole run; rows count as often as they were run."""
        parts = [*self._ended, *(worker.report for worker in self._workers)]
        return replace(
            self._first,
            rows=sum(sum(shape.rows_of_blocks) for shape in self._shapes),
            rows_run=sum(part.rows_run for part in parts),
            rows_reused=sum(part.rows_reused for part in parts),
            repaired_blocks=sorted({name for part in parts for name in part.repaired_blocks}),
            batch_size=min((part.batch_size for part in parts if part.batch_size), default=0),
            max_relative_error=max(part.max_relative_error for part in parts),
        )


def _reason(error: Exception) -> str:
    """One line of what Ray says of a death; of a worker that could not be begun, what it lacked."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "creation task" in lines[0] else lines[0]
