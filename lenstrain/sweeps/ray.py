"""Cells of a grid on the workers of a Ray cluster: the only module of lenstrain that imports Ray.

    RayEngine.run, here  --Grid, Cell-->                      task in a worker process: opens the
    (writes the packs)   <--packs; FitProgress by a queue--   store, fits

If the worker of a task dies, Ray runs the task again, if necessary on another machine. Only
settings and lenses are sent: every worker must be able to reach the store, and every machine of a
cluster needs lenscache installed, with ``pip install '.[ray]'`` in a clone of lenscache.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lenscache import cluster
from lenstrain.errors import MissingPackageError, SettingsError, WorkerError
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitProgress
from lenstrain.sweeps.grid import Cell, Grid, Outcome, Running, fit_cell

RETRIES = 3
"""How often a cell is begun again after its worker died."""

_POLL_S = 0.25
_MOST_THREADS = 8  # that a fit makes use of


def require_ray() -> None:
    """Raise MissingPackageError unless Ray is installed: before a store is read, not after."""
    cluster.require_ray(MissingPackageError)


@dataclass(frozen=True)
class RayEngine:
    """Fits on workers, one cell on each at a time.

    If this process is connected to Ray already, that connection is used and left open.

    Parameters
    ----------
    workers : cells at a time. None for one for every 8 cores of a machine, rounded up; or one for
        every GPU if the settings ask for a GPU.
    address : of a running cluster, as for `ray.init`; None to start one on this machine for the
        time of the run.
    jobs : threads of a worker; None for an even share of the cores.
    """

    workers: int | None = None
    address: str | None = None
    jobs: int | None = None

    def run(
        self, grid: Grid, cells: Sequence[Cell], on_progress: Running
    ) -> Generator[tuple[Cell, Outcome]]:
        """As `Engine.run`.

        Raises
        ------
        MissingPackageError
            If Ray is not installed.
        SettingsError
            If the settings name one GPU of several, or there is none; if no cluster answers at the
            address.
        """
        gpus = _gpus(grid)
        if not cells:
            return
        if "://" not in grid.store:  # workers start in other folders
            grid = replace(grid, store=str(Path(grid.store).absolute()))
        with self.connected():
            import ray
            from ray.util.queue import Queue

            workers, threads = self._share(gpus)
            task = ray.remote(_fit).options(
                num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, name="lenstrain-fit"
            )
            messages = Queue(actor_options={"num_cpus": 0})
            waiting, tasks, running = deque(cells), dict[Any, Cell](), dict[str, FitProgress]()

            def begin() -> None:
                while waiting and len(tasks) < workers:
                    cell = waiting.popleft()
                    tasks[task.remote(grid, cell, threads, messages)] = cell

            try:
                begin()
                while tasks:
                    done, _ = ray.wait(list(tasks), timeout=_POLL_S)
                    running |= _received(messages)
                    ended = [(tasks.pop(reference), reference) for reference in done]
                    begin()  # before what has ended is written: no worker waits for that
                    for cell, reference in ended:
                        yield cell, _outcome(reference, cell)
                    if tasks:
                        labels = [cell.label for cell in tasks.values()]
                        on_progress({label: running[label] for label in labels if label in running})
            finally:  # a cluster that is left running is not left fitting
                for reference in tasks:
                    ray.cancel(reference, force=True)

    def connected(self) -> AbstractContextManager[None]:
        """Be connected to Ray, without its dashboard.

        Raises
        ------
        MissingPackageError
            If Ray is not installed.
        SettingsError
            If no cluster answers at the address.
        """
        cores = (self.workers or 1) * (self.jobs or 1)
        return cluster.connected(
            self.address, cores, verb="fit", missing=MissingPackageError, refused=SettingsError
        )

    def _share(self, gpus: int) -> tuple[int, int]:
        """Workers, and threads of each."""
        held = cluster.machines()
        cores = [int(each.get("CPU", 0)) for each in held]
        usual = [-(-n // _MOST_THREADS) for n in cores]
        if gpus:
            usual = [int(each.get("GPU", 0)) for each in held]
        # A cluster may grow, this machine does not.
        if gpus and not sum(usual) and self.address is None:
            raise SettingsError(
                "Ray finds no GPU on this machine: fit with --device cpu, or name a cluster with "
                "--address"
            )
        workers = self.workers or max(1, sum(usual))
        share = min(sum(cores) // workers, _MOST_THREADS)
        # Ray waits for ever for a worker that asks for more cores than any machine has.
        return workers, max(1, min(self.jobs or share, max(cores)))


def _gpus(grid: Grid) -> int:
    device = grid.settings.device
    if device.startswith("cuda:"):
        raise SettingsError(
            f"Ray gives each worker a GPU of its own, {device} was asked for: pass --device cuda"
        )
    return int(device == "cuda")


def _fit(grid: Grid, cell: Cell, threads: int, messages: Any) -> list[LensPack]:
    """What a task runs, in a process of a worker."""
    from ray.exceptions import RayError

    told = 0.0

    def tell(progress: FitProgress) -> None:
        nonlocal told
        if time.monotonic() - told > _POLL_S or progress.done == progress.total:
            told = time.monotonic()
            # A plain tuple, so that the queue's process need not import lenstrain. A fit goes on
            # if its progress cannot be told.
            with suppress(RayError):
                messages.put((cell.label, tuple(progress)))

    return fit_cell(grid.open(), grid, cell, jobs=threads, on_progress=tell)


def _received(messages: Any) -> dict[str, FitProgress]:
    """The latest of each cell."""
    from ray.exceptions import RayError

    with suppress(RayError):
        batch = messages.get_nowait_batch(messages.qsize())
        return {label: FitProgress(*plain) for label, plain in batch}
    return {}


def _outcome(reference: Any, cell: Cell) -> Outcome:
    """The packs of a task that has ended, or the error that ended it: ours as it was raised."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        # A copy: arrays that Ray hands out lie in memory that goes when it is shut down.
        packs: list[LensPack] = copy.deepcopy(ray.get(reference))
    except RayTaskError as error:
        if isinstance(error.cause, RayError):  # it did not get as far as our code
            reason = str(error.cause).strip().splitlines()[-1]
            return WorkerError(
                f"a worker could not begin {cell.label} ({reason}): every machine of the cluster "
                "needs this lenscache"
            )
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return WorkerError(
            f"no worker finished {cell.label} in {RETRIES + 1} attempts ({type(error).__name__}): "
            "give each more memory, with fewer --workers, and run the same again"
        )
    return packs
