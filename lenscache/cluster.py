"""A Ray cluster: being connected to it, and what it has.

Ray itself starts workers, restarts them and carries messages; nothing here imports it before it is
asked for.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lenscache.errors import MissingPackageError, PlanError

_CONNECT_S = 10.0


def require_ray() -> None:
    """Raise MissingPackageError unless Ray is there: before a model is loaded, not after.

    Ray looks at its environment when it is imported. It is told to report nothing to its makers,
    and not to print what becomes of its workers among our own lines.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "--engine ray needs Ray: run `pip install 'lenscache[ray]'`"
        ) from None


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[None]:
    """Be connected to Ray, without its dashboard.

    Raises
    ------
    MissingPackageError
        If Ray is not installed.
    PlanError
        If no cluster answers at the address.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    _check_answers(address)
    cores = None if address else max(os.cpu_count() or 1, workers or 1)
    try:
        ray.init(
            address or "local",
            num_cpus=cores,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise PlanError if nobody listens at a host and port: Ray itself would go on asking for
    minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> PlanError:
    where = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
    return PlanError(
        f"{where} ({error}): start one with `ray start --head`, or extract with --engine local"
    )


def resource(name: str) -> int:
    """How much of a resource all machines have together, such as CPU or GPU."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(name, 0))


def cores_of_a_worker(workers: int) -> int:
    """Cores that a worker on a CPU may claim: its share, and no more than one machine has."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    largest = max(int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])
    return max(1, min(resource("CPU") // workers, largest))


def threads_of_a_worker(cores: int) -> int:
    """Threads of a worker on a CPU: what OMP_NUM_THREADS says, as of any process, or one for each
    of its cores.

    More of them than cores claim no more: for a worker that claims more than any machine has, Ray
    waits for ever.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else cores
