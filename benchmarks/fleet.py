"""Many workers on one store, simulated: stragglers, failures, limits of driver and object store.

    block seconds, Fleet, Storage --events in order of time--> Outcome

"dynamic" hands out blocks one by one, as a Ray driver does, and again if a worker dies; "static"
gives worker k of n the blocks k, k + n, ... of every round, as `--partition` does, and a worker
that dies starts again with what is left. A worker writes a block while it runs the next one, as
extraction does, and loses both if it dies. One seed draws everything: how long each block takes,
and how slow each worker is.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import PlanError

Engine = Literal["dynamic", "static"]

_MOST_DEATHS = 20
"""Deaths a worker and block, on average, after which a run is taken to have no end."""


@dataclass(frozen=True)
class Fleet:
    """The workers, and what befalls them. The defaults are a world in which nothing does."""

    workers: int
    load_seconds: float = 0.0
    """From a worker's start to its first block: loading the model, laying out the store."""
    spread: float = 0.0
    """Sigma of the logarithm of how long blocks take."""
    slow_share: float = 0.0
    """Share of the workers that are slow throughout."""
    slow_factor: float = 1.0
    """How many times as long those take."""
    lifetime: float | None = None
    """Mean seconds until a worker dies; None where none does."""
    tasks_per_second: float | None = None
    """Blocks that a driver can hand out; None for any number. Partitions need no driver."""


@dataclass(frozen=True)
class Storage:
    """What writing a block takes. The defaults are a store that takes no time."""

    seconds_a_block: float = 0.0
    """Of one worker, one request after the other, where nothing is throttled."""
    puts_a_block: int = 0
    gets_a_block: int = 0
    gets_a_start: int = 0
    """Of a worker, before its first block."""
    puts_per_second: float | None = None
    gets_per_second: float | None = None


class Outcome(NamedTuple):
    """What became of a run."""

    makespan: float
    """Seconds from the start to the last block written."""
    efficiency: float
    """Seconds that the blocks take at full speed, over the seconds that all workers were there."""
    deaths: int
    blocks_redone: int
    tail: float
    """Seconds at the end in which at least one worker had nothing to do."""
    throttled: float
    """Seconds that writing was held up by the store's limits, a block on average."""
    written: NDArray[np.int64]
    """(blocks,) how often each was written."""


def simulate(
    block_seconds: NDArray[np.float64],
    fleet: Fleet,
    storage: Storage | None = None,
    *,
    engine: Engine = "dynamic",
    rounds: Sequence[int] | None = None,
    seed: int = 0,
) -> Outcome:
    """Run all blocks once.

    Parameters
    ----------
    block_seconds : (blocks,) what each takes at full speed.
    rounds : blocks of each round, in order; None for one round.

    Raises
    ------
    PlanError
        If workers die so fast that the run would not end.
    """
    seconds = np.asarray(block_seconds, float)
    return _Simulation(seconds, fleet, storage or Storage(), engine, rounds, seed).outcome()


class _Simulation:
    def __init__(
        self,
        block_seconds: NDArray[np.float64],
        fleet: Fleet,
        storage: Storage,
        engine: Engine,
        rounds: Sequence[int] | None,
        seed: int,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        n, workers = len(block_seconds), fleet.workers
        self._fleet, self._storage, self._engine = fleet, storage, engine
        self._ideal = float(block_seconds.sum())
        # The mean is one, whatever the spread.
        drawn = self._rng.lognormal(-(fleet.spread**2) / 2, fleet.spread, n)
        self._seconds = block_seconds * drawn
        self._speed = np.ones(workers)
        slow = self._rng.permutation(workers)[: round(fleet.slow_share * workers)]
        self._speed[slow] = fleet.slow_factor
        self._shares = _shares(n, workers, engine, rounds)
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = itertools.count()
        self._life = [0] * workers  # events of an earlier life are void
        self._running: list[int | None] = [None] * workers
        self._writing: list[tuple[int, float] | None] = [None] * workers  # block, until when
        self._idle: set[int] = set()
        self._driver_free = self._puts_free = self._gets_free = 0.0
        self._written = np.zeros(n, np.int64)
        self._deaths = self._redone = 0
        self._throttled = 0.0
        self._first_idle: float | None = None

    def outcome(self) -> Outcome:
        """Run to the end."""
        for worker in range(self._fleet.workers):
            self._begin(worker, 0.0)
        now, left = 0.0, len(self._written)
        while left:
            now, _, what, worker, life = heapq.heappop(self._events)
            if life != self._life[worker]:
                continue
            match what:
                case "free":
                    self._feed(worker, now)
                case "computed":
                    self._write(worker, now)
                case "written":
                    self._note_written(worker)
                    left -= 1
                case "dies":
                    self._worker_died(worker, now)
        first_idle = now if self._first_idle is None else self._first_idle
        n = max(1, len(self._written))
        return Outcome(
            makespan=now,
            efficiency=self._ideal / (self._fleet.workers * now) if now else 1.0,
            deaths=self._deaths,
            blocks_redone=self._redone,
            tail=now - first_idle,
            throttled=self._throttled / n,
            written=self._written,
        )

    def _at(self, when: float, what: str, worker: int) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, worker, self._life[worker]))

    def _begin(self, worker: int, now: float) -> None:
        """A process starts: it loads its model, and dies one day."""
        if self._fleet.lifetime is not None:
            self._at(now + float(self._rng.exponential(self._fleet.lifetime)), "dies", worker)
        ready = now + self._fleet.load_seconds
        if self._storage.gets_per_second and self._storage.gets_a_start:
            taken = self._storage.gets_a_start / self._storage.gets_per_second
            self._gets_free = max(self._gets_free, now) + taken
            ready = max(ready, self._gets_free)
        self._at(ready, "free", worker)

    def _feed(self, worker: int, now: float) -> None:
        """The next block, if there is one."""
        share = self._shares[worker]
        if not share:
            if self._first_idle is None:
                self._first_idle = now
            self._idle.add(worker)
            return
        start = now
        if self._engine == "dynamic" and self._fleet.tasks_per_second:
            start = max(self._driver_free, now) + 1 / self._fleet.tasks_per_second
            self._driver_free = start
        self._running[worker] = block = share.popleft()
        self._at(start + float(self._seconds[block] * self._speed[worker]), "computed", worker)

    def _write(self, worker: int, now: float) -> None:
        """A block is through the model: it is written once the one before it is."""
        before, block = self._writing[worker], self._running[worker]
        if before is not None or block is None:
            # "written" of the block before comes first; then this one is looked at again.
            self._at(before[1] if before else now, "computed", worker)
            return
        self._running[worker] = None
        storage, done = self._storage, now + self._storage.seconds_a_block
        free = done
        if storage.puts_per_second:
            taken = storage.puts_a_block / storage.puts_per_second
            self._puts_free = max(self._puts_free, now) + taken
            done = max(done, self._puts_free)
        if storage.gets_per_second:
            taken = storage.gets_a_block / storage.gets_per_second
            self._gets_free = max(self._gets_free, now) + taken
            done = max(done, self._gets_free)
        self._throttled += done - free
        self._writing[worker] = block, done
        self._at(done, "written", worker)
        self._at(now, "free", worker)

    def _note_written(self, worker: int) -> None:
        if (writing := self._writing[worker]) is not None:
            self._written[writing[0]] += 1
        self._writing[worker] = None

    def _worker_died(self, worker: int, now: float) -> None:
        """A worker dies with what it runs and what it writes; its process is begun again."""
        self._deaths += 1
        if self._deaths > _MOST_DEATHS * (self._fleet.workers + len(self._written)):
            raise PlanError(
                f"workers live {self._fleet.lifetime:.0f} s on average, too short for their blocks "
                "or their starts: the run would not end; take smaller blocks, fewer workers or "
                "machines that last"
            )
        writing = self._writing[worker]
        held = self._running[worker], writing[0] if writing else None
        lost = [block for block in held if block is not None]
        self._running[worker] = self._writing[worker] = None
        self._redone += len(lost)
        self._shares[worker].extendleft(lost)
        self._life[worker] += 1
        self._idle.discard(worker)
        if self._engine == "static" and not self._shares[worker]:
            return  # it was through
        self._begin(worker, now)
        if self._engine == "dynamic":
            for other in sorted(self._idle)[: len(lost)]:
                self._idle.remove(other)
                self._at(now, "free", other)


def _shares(n: int, workers: int, engine: Engine, rounds: Sequence[int] | None) -> list[deque[int]]:
    """The blocks that each worker takes from; with a driver, they all take from the same."""
    if engine == "dynamic":
        return [deque(range(n))] * workers
    shares: list[deque[int]] = [deque() for _ in range(workers)]
    first = 0
    for blocks in rounds or [n]:
        for number in range(blocks):
            shares[number % workers].append(first + number)
        first += blocks
    return shares
