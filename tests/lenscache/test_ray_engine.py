"""Extraction on Ray: the arrays of one process, bit for bit, also where workers are killed and S3
is down at times."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lenscache.cluster import connected, resource
from lenscache.errors import NonFiniteError, PlanError, StoreMismatchError, WorkerError
from lenscache.extract import ExtractProgress, ExtractReport, ExtractSettings, extract
from lenscache.extract.extraction import Engine, LocalEngine
from lenscache.extract.partitions import Partition
from lenscache.extract.planned_rounds import TopUp
from lenscache.extract.ray_driver import MOST_DEATHS, RayEngine, _Driver
from lenscache.extract.request import Request
from lenscache.model.loading import LoadedModel
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache import s3_server
from tests.lenscache.conftest import run_small
from tests.lenscache.faulty_s3 import FAULTS, faulty
from tests.models import tiny_model
from tests.packs import small_pack

SETTINGS = ExtractSettings(max_new_tokens=4, block_rows=4, store_dtype="float32")
PACK = small_pack()


def slow_model(seconds: float = 0.02) -> LoadedModel:
    """The tiny model with time to be killed in: every forward pass takes so much longer."""
    loaded = tiny_model()
    loaded.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return loaded


def model_that_overflows() -> LoadedModel:
    loaded = tiny_model()
    loaded.model.get_input_embeddings().weight.data.fill_(float("inf"))
    return loaded


def model_that_ends_its_process() -> LoadedModel:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads in every process: the order of sums depends on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ray_is_running() -> Iterator[None]:
    """One Ray for all tests of this file: it takes seconds to start."""
    with connected(None, workers=4):
        yield


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process, undisturbed."""
    path = tmp_path_factory.mktemp("expected") / "s.zarr"
    extract(path, PACK, tiny_model(), SETTINGS)
    return path


def with_ray(
    path: Path | str,
    load: Callable[[], LoadedModel] = tiny_model,
    *,
    workers: int = 2,
    on_progress: Callable[[ExtractProgress], None] | None = None,
    settings: ExtractSettings = SETTINGS,
    **changes: Any,
) -> ExtractReport:
    request = Request(path, PACK, settings, **changes)
    return RayEngine(load, workers).run(request, on_progress)


def arrays(path: Path) -> dict[str, bytes]:
    """Every chunk of every array; metadata knows when something happened."""
    files = (
        file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".partial"
    )
    return {
        str(file.relative_to(path)): file.read_bytes() for file in files if file.name != "zarr.json"
    }


def assert_whole(path: Path | str) -> None:
    assert not verify_store(path).is_damaged
    assert all(target.is_complete for target in open_store(path).rounds())


def worker_processes() -> list[int]:
    """Processes of the workers of the Ray that this process started; Ray names them after what they
    run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(
                b"ray::Worker"
            ):
                raylet = _parent(int(entry.name))
                if _parent(raylet) == os.getpid():  # another run on this machine has its own
                    found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return sorted(found)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Killer:
    """Kills a random worker, as often as asked; called with progress. Between two kills something
    gets done."""

    def __init__(self, times: int, seed: int = 0) -> None:
        self.left, self._random = times, random.Random(seed)
        self._done = -1
        self.died = 0

    def __call__(self, progress: ExtractProgress) -> None:
        self.died += "a worker died" in progress.message
        done = progress.level * 1000 + progress.rows_done
        if self.left and progress.rows_done and done > self._done and (here := worker_processes()):
            os.kill(self._random.choice(here), signal.SIGKILL)
            self.left -= 1
            self._done = done + 4  # a block more


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_workers_write_the_arrays_of_one_process(
    workers: int, expected: Path, tmp_path: Path
) -> None:
    seen: list[ExtractProgress] = []
    report = with_ray(tmp_path / "s.zarr", workers=workers, on_progress=seen.append)
    assert arrays(tmp_path / "s.zarr") == arrays(expected)
    assert_whole(tmp_path / "s.zarr")
    rows = sum(target.n_samples for target in open_store(expected).rounds())
    assert (report.rows, report.rows_run, report.batch_size) == (rows, rows, 4)
    assert seen[-1].rows_done == seen[-1].rows_total
    assert seen[-1].concepts_done == seen[-1].concepts_total > 0


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_partitions_by_hand_and_workers_finish_one_store(expected: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, partition=Partition(2, 4))
    extract(tmp_path / "s.zarr", PACK, tiny_model(), settings)
    report = with_ray(tmp_path / "s.zarr")
    assert 0 < report.rows_run < report.rows
    assert arrays(tmp_path / "s.zarr") == arrays(expected)


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.parametrize(
    "kills", [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_workers_killed_at_random_lose_nothing_and_duplicate_nothing(
    kills: int, expected: Path, tmp_path: Path
) -> None:
    killer = Killer(kills)
    # progress comes twice a second, and a worker is killed where it shows
    load = partial(slow_model, 0.02 * kills)
    report = with_ray(tmp_path / "s.zarr", load, on_progress=killer)
    assert killer.left == 0
    assert killer.died >= 1
    assert arrays(tmp_path / "s.zarr") == arrays(expected)
    assert_whole(tmp_path / "s.zarr")
    assert report.rows == sum(target.n_samples for target in open_store(expected).rounds())


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
@pytest.mark.parametrize("before", ["flush", "do", "finish"])
def test_a_worker_that_dies_between_two_questions_loses_nothing(
    before: str, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray begins it again without a word: nothing was under way. Its last block may not have been
    written."""
    ask, killed = _Driver._ask, list[int]()

    def kill_first(self: _Driver, seat: Any, what: str, *arguments: int) -> None:
        if what == before and (before != "do" or len(seat.given) > 1) and not killed:
            killed.extend(worker_processes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            time.sleep(2)  # Ray has noticed
        ask(self, seat, what, *arguments)

    monkeypatch.setattr(_Driver, "_ask", kill_first)
    with_ray(tmp_path / "s.zarr", workers=1)
    assert len(killed) == 1
    assert arrays(tmp_path / "s.zarr") == arrays(expected)
    assert_whole(tmp_path / "s.zarr")


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_ends_the_run_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(
        WorkerError, match=f"a worker died {MOST_DEATHS} times in a row without finishing a block"
    ):
        with_ray(tmp_path / "s.zarr", model_that_ends_its_process, workers=1)


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_more_threads_than_a_machine_has_cores_claim_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert with_ray(tmp_path / "s.zarr", workers=1).rows > 0
    assert_whole(tmp_path / "s.zarr")


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_a_worker_that_the_cluster_has_no_room_for_is_told_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # not before it was told to keep quiet

    monkeypatch.setattr("lenscache.extract.ray_driver._ROOM_S", 2.0)
    remote: Any = ray.remote(num_cpus=resource("CPU"))
    tenant = remote(_Tenant).remote()
    ray.get(tenant.is_here.remote())
    told: list[str] = []

    def make_room(progress: ExtractProgress) -> None:
        if progress.message:
            told.append(progress.message)
            ray.kill(tenant)

    with_ray(tmp_path / "s.zarr", workers=1, on_progress=make_room)
    assert told == ["1 of 1 workers wait for the Ray cluster to have room for them"]
    assert_whole(tmp_path / "s.zarr")


class _Tenant:
    """Another program's actor, which has all cores."""

    def is_here(self) -> bool:
        return True


@pytest.mark.usefixtures("ray_is_running")
def test_another_setting_is_refused_with_the_error_of_the_store(tmp_path: Path) -> None:
    extract(tmp_path / "s.zarr", PACK, tiny_model(), SETTINGS)
    other = dataclasses.replace(SETTINGS, pooling="max")
    with pytest.raises(
        StoreMismatchError, match="written with pooling mean, this run asks for max"
    ) as caught:
        with_ray(tmp_path / "s.zarr", settings=other, workers=1)
    assert caught.value.field == "pooling"


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_activations_that_are_no_numbers_are_that_very_error(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        with_ray(tmp_path / "s.zarr", model_that_overflows, workers=1)


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_top_up_and_reuse_are_those_of_one_process(expected: Path, tmp_path: Path) -> None:
    few = dataclasses.replace(SETTINGS, samples=3)
    extract(tmp_path / "local.zarr", PACK, tiny_model(), few)
    with_ray(tmp_path / "ray.zarr", settings=few)
    hungry = open_store(tmp_path / "local.zarr").rounds()[0].targets[:1]
    engines: dict[str, Engine] = {
        "local.zarr": LocalEngine(tiny_model()),
        "ray.zarr": RayEngine(tiny_model, workers=2),
    }
    for path, engine in engines.items():
        request = Request(tmp_path / path, PACK, few, top_up=TopUp(tuple(hungry), 2, "test"))
        engine.run(request)
    assert arrays(tmp_path / "ray.zarr") == arrays(tmp_path / "local.zarr")
    report = with_ray(tmp_path / "again.zarr", reuse=(str(expected),))
    assert (report.rows_run, report.rows_reused) == (0, report.rows)
    assert arrays(tmp_path / "again.zarr") == arrays(expected)


@pytest.mark.usefixtures("ray_is_running")
def test_workers_share_a_background_that_one_of_them_wrote(tmp_path: Path) -> None:
    extract(tmp_path / "local.zarr", PACK, tiny_model(), SETTINGS, background=12)
    report = with_ray(tmp_path / "ray.zarr", background=12)
    assert arrays(tmp_path / "ray.zarr") == arrays(tmp_path / "local.zarr")
    assert open_store(tmp_path / "ray.zarr").background is not None
    assert -1 not in report.levels
    assert_whole(tmp_path / "ray.zarr")


@pytest.mark.usefixtures("ray_is_running")
@pytest.mark.slow
def test_a_batch_size_found_by_one_worker_is_that_of_all(tmp_path: Path) -> None:
    report = with_ray(
        tmp_path / "s.zarr", settings=dataclasses.replace(SETTINGS, batch_size="auto"), workers=3
    )
    chosen = {
        tuple(target.attributes["auto_batch"])
        for target in open_store(tmp_path / "s.zarr").rounds()
    }
    assert len(chosen) == 1
    assert report.batch_size == next(iter(chosen))[0]


def test_a_partition_is_refused() -> None:
    settings = dataclasses.replace(SETTINGS, partition=Partition(1, 2))
    with pytest.raises(PlanError, match="leave one of them out"):
        with_ray("nowhere", settings=settings)


def test_an_address_where_nobody_listens_is_one_line() -> None:
    code = (
        "from lenscache.cluster import connected\n"
        "from lenscache.errors import PlanError\n"
        "try:\n"
        "    with connected('127.0.0.1:1'): pass\n"
        "except PlanError as error:\n"
        "    print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.startswith("no Ray cluster answers at 127.0.0.1:1")
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


_DRIVER = """
import sys
from tests.lenscache.test_ray_engine import slow_model, with_ray
report = with_ray(sys.argv[1], slow_model, workers=1)
print(report.rows)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_drivers_on_one_store_do_no_harm(expected: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, str(tmp_path / "s.zarr")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for driver in both:
        out, err = driver.communicate(timeout=500)
        assert (driver.returncode, err) == (0, "")
        assert int(out) == sum(target.n_samples for target in open_store(expected).rounds())
    assert arrays(tmp_path / "s.zarr") == arrays(expected)
    assert_whole(tmp_path / "s.zarr")


_LOST_MACHINE = """
import sys, ray
from ray.cluster_utils import Cluster
from tests.lenscache.test_ray_engine import slow_model, with_ray

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
ray.init(cluster.address, log_to_driver=False, logging_level="CRITICAL")
lost = []

def lose(progress):
    busy = ray.available_resources().get("CPU", 0) == 0
    if progress.rows_done > 8 and not lost and len(ray.nodes()) == 2 and busy:
        lost.append(progress.rows_done)
        cluster.remove_node(other, allow_graceful=False)

with_ray(sys.argv[1], slow_model, workers=2, on_progress=lose)
print(len(lost))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_worker_of_a_lost_machine_had_is_done_by_the_others(
    expected: Path, tmp_path: Path
) -> None:
    """The worker cannot be begun again, since no machine has room for it."""
    command = [sys.executable, "-W", "ignore", "-c", _LOST_MACHINE, str(tmp_path / "s.zarr")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert (ran.returncode, ran.stdout.split()[-1:]) == (0, ["1"]), ran.stderr
    assert arrays(tmp_path / "s.zarr") == arrays(expected)
    assert_whole(tmp_path / "s.zarr")


# --- S3 that errs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server.serving() as url:
        for name, value in s3_server.environment(url).items():
            patch.setenv(name, value)
        s3_server.connect(url).create_bucket(Bucket="stores")
        yield url


def in_bucket(endpoint: str, prefix: str) -> dict[str, bytes]:
    found = s3_server.objects(s3_server.connect(endpoint), "stores", prefix)
    return {name: data for name, data in found.items() if not name.endswith("zarr.json")}


def test_a_service_that_errs_and_slows_down_delays_a_run_and_does_not_break_it(
    endpoint: str, finished_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: share / 3 for name, share in FAULTS.items()}  # the client waits longer after each
    with faulty(endpoint, seed=1, faults=few) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        run_small("s3://stores/faulty")
        assert sum(server.befell.values()) > 3
        assert server.befell["SlowDown"]
    assert in_bucket(endpoint, "faulty") == arrays(finished_store)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_beside_a_service_that_errs_lose_nothing(
    endpoint: str, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(endpoint, seed=2) as server, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        code = _KILLED.format(times=3)
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=800, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert int(ran.stdout) >= 1
        assert server.befell["SlowDown"] > 5
    assert in_bucket(endpoint, "killed") == arrays(expected)
    assert_whole("s3://stores/killed")


_KILLED = """
from tests.lenscache.test_ray_engine import Killer, slow_model, with_ray
killer = Killer({times}, seed=1)
with_ray("s3://stores/killed", slow_model, on_progress=killer)
assert killer.left == 0
print(killer.died)
"""
