"""A Ray cluster: how to connect to it, and what its machines have.

Ray itself starts workers, restarts them and carries messages. Nothing here imports it before a
function is called. Callers in other packages name the errors that they want raised.
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


def require_ray(missing: type[Exception] = MissingPackageError) -> None:
    """Raise an error, unless Ray is installed: before a model or store is read, not after.

    Ray reads its environment when it is imported. It is told to report nothing to its makers,
    and not to print among our own lines what happens to its workers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise missing(
            "--engine ray needs Ray: run `pip install '.[ray]'` in a clone of lenscache"
        ) from None


@contextmanager
def connected(
    address: str | None,
    workers: int | None = None,
    *,
    verb: str = "extract",
    missing: type[Exception] = MissingPackageError,
    refused: type[Exception] = PlanError,
) -> Iterator[None]:
    """Be connected to Ray, without its dashboard. A connection that is there already is used, and
    left open.

    Parameters
    ----------
    address : of a running cluster, as for `ray.init`; None to start one on this machine.
    workers : fewest cores that Ray counts on for this machine, if the cluster is started here.
    verb : what the error recommends to do with ``--engine local``.
    missing : error to raise if Ray is not installed.
    refused : error to raise if no cluster answers at the address.
    """
    require_ray(missing)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _check_answers(address)
        ray.init(
            address or "local",
            num_cpus=None if address else max(os.cpu_count() or 1, workers or 1),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray cannot be started here"
        raise refused(
            f"{where} ({error}): start one with `ray start --head`, or {verb} with --engine local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise ConnectionError if nothing listens at a host and port: Ray would retry for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from error


def machines() -> list[dict[str, float]]:
    """The resources of each machine that is alive, such as CPU or GPU."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def resource(name: str) -> int:
    """How much of a resource all machines have together, such as CPU or GPU."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(name, 0))


def cores_of_a_worker(workers: int) -> int:
    """Cores that a worker on a CPU may claim: its share, and no more than one machine has."""
    largest = max(int(machine.get("CPU", 0)) for machine in machines())
    return max(1, min(resource("CPU") // workers, largest))


def threads_of_a_worker(cores: int) -> int:
    """Threads of a worker on a CPU: what OMP_NUM_THREADS says, as of any process, or one for each
    of its cores.

    More of them than cores claim no more: for a worker that claims more than any machine has, Ray
    waits for ever.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else cores
