"""Cells of a grid on the workers of a Ray cluster: the only module here that imports Ray.

    RayEngine.run --Grid, Cell--> task in a worker process: opens the store, fits --packs--> this process, which writes
                  <------- FitProgress, through a queue -------

A task whose worker dies is run again by Ray, elsewhere if need be. What travels are settings and
lenses: the store must be where every worker reaches it, and every machine of a cluster needs
lenscache installed, with ``pip install 'lenscache[ray]'``.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lenstrain.errors import MissingPackageError, SettingsError, WorkerError
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitProgress
from lenstrain.sweeps.grid import Cell, Grid, Outcome, Running, fit_cell

RETRIES = 3
"""How often a cell is begun again after its worker died."""

_POLL_S = 0.25
_CONNECT_S = 10.0
_MOST_THREADS = 8  # that a fit makes use of


def require_ray() -> None:
    """Raise MissingPackageError unless Ray is there: before a store is read, not after.

    Ray is told to keep to itself here, since it looks when it is imported: nothing is reported to
    its makers, and that a worker died is not printed among the results, but told by the error of
    the fit.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "--engine ray needs Ray: run `pip install 'lenscache[ray]'`"
        ) from None


@dataclass(frozen=True)
class RayEngine:
    """Fits on workers, as many cells at a time as there are of them.

    A Ray that this process is connected to already is used as it is, and left running.

    Parameters
    ----------
    workers : cells at a time; None for one for every 8 cores of a machine, or part of them, or
        for every GPU if the settings ask for one.
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
        if "://" not in grid.store:
            grid = replace(
                grid, store=str(Path(grid.store).absolute())
            )  # workers start in other folders
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
                        told = {
                            cell.label: running[cell.label]
                            for cell in tasks.values()
                            if cell.label in running
                        }
                        on_progress(told)
            finally:  # a cluster that is left running is not left fitting
                for reference in tasks:
                    ray.cancel(reference, force=True)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be connected to Ray, without its dashboard.

        Raises
        ------
        MissingPackageError
            If Ray is not installed.
        SettingsError
            If no cluster answers at the address.
        """
        require_ray()
        import ray

        if ray.is_initialized():
            yield
            return
        _check_answers(self.address)
        cores = (
            None
            if self.address
            else max(os.cpu_count() or 1, (self.workers or 1) * (self.jobs or 1))
        )
        try:
            ray.init(
                self.address or "local",
                num_cpus=cores,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(self.address, error) from error
        try:
            yield
        finally:
            ray.shutdown()

    def _share(self, gpus: int) -> tuple[int, int]:
        """Workers, and threads of each."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        held = [node["Resources"] for node in nodes if node["Alive"]]
        cores = [int(each.get("CPU", 0)) for each in held]
        usual = (
            [int(each.get("GPU", 0)) for each in held]
            if gpus
            else [-(-n // _MOST_THREADS) for n in cores]
        )
        if (
            gpus and not sum(usual) and self.address is None
        ):  # a cluster may grow, this machine does not
            raise SettingsError(
                "Ray finds no GPU on this machine: fit with --device cpu, or name a cluster with "
                "--address"
            )
        workers = self.workers or max(1, sum(usual))
        share = min(sum(cores) // workers, _MOST_THREADS)
        return workers, max(
            1, min(self.jobs or share, max(cores))
        )  # more than a machine has would never be found


def _check_answers(address: str | None) -> None:
    """Raise SettingsError if nobody listens at a host and port: Ray itself would go on asking for
    minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> SettingsError:
    where = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
    return SettingsError(
        f"{where} ({error}): start one with `ray start --head`, or fit with --engine local"
    )


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
            with suppress(RayError):  # a fit is not lost because nobody hears of it
                messages.put(
                    (cell.label, tuple(progress))
                )  # plain: the queue need not load what we are made of

    return fit_cell(grid.open(), grid, cell, jobs=threads, on_progress=tell)


def _received(messages: Any) -> dict[str, FitProgress]:
    """The latest of each cell."""
    from ray.exceptions import RayError

    with suppress(RayError):
        return {
            label: FitProgress(*plain)
            for label, plain in messages.get_nowait_batch(messages.qsize())
        }
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
