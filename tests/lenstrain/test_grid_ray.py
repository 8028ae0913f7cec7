"""Grids of fits on Ray: the packs of the local engine, bit for bit, also where workers are
killed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from lenscache.errors import StoreIncompleteError
from lenscache.store.store import open_store
from lenstrain.errors import SettingsError, WorkerError
from lenstrain.fit.train import train
from lenstrain.settings import FitProgress, FitSettings
from lenstrain.sweeps.grid import Grid, LocalEngine, fit_grid, fit_one
from lenstrain.sweeps.ray import RETRIES, RayEngine
from tests.lenstrain.conftest import make_planted_store, planted_pack
from tests.lenstrain.test_grid import contents

BASE = FitSettings(max_iterations=2)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    path = tmp_path_factory.mktemp("grid") / "store.zarr"
    make_planted_store(path, pack=planted_pack(n_examples=12), levels=[0])
    return Grid(
        str(path),
        BASE,
        families=("linear", "mean-difference"),
        targets=(0.5, 0.95),
        model_layers=((1,),),
    )


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """One combination that takes more than a second: nine concepts, and ten small iterations of
    each."""
    path = tmp_path_factory.mktemp("slow") / "store.zarr"
    make_planted_store(path, pack=planted_pack(n_examples=25), levels=[1])
    settings = FitSettings(initial_samples=2, first_increment=1, increment=1, min_iterations=10)
    return Grid(str(path), settings, families=("mlp",), targets=(0.95,), model_layers=((0, 1),))


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two workers on a Ray that serves all tests of this file: it takes seconds to start."""
    engine = RayEngine(workers=2, jobs=1)
    with engine.connected():
        yield engine


def workers_that_fit() -> list[int]:
    """Processes that run a task of ours now; Ray names them after what they run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(
                b"ray::lenstrain-fit"
            ):
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


class Killer:
    """Kills the worker of a fit that has begun, as often as asked; called with where the fits
    stand."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.killed: list[int] = []
        self.seen: set[int] = set()

    def __call__(self, running: Mapping[str, FitProgress]) -> None:
        if running:
            here = set(workers_that_fit())
            self.seen |= here
            for pid in sorted(here - set(self.killed))[: self.left]:
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)
                self.left -= 1


def test_the_packs_are_those_of_the_local_engine(
    grid: Grid, engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = grid.open()
    fit_grid(grid, tmp_path / "local", dataset=dataset, engine=LocalEngine(dataset, jobs=1))
    monkeypatch.chdir(Path(grid.store).parent)  # workers are in another folder
    result = fit_grid(
        dataclasses.replace(grid, store="store.zarr"),
        tmp_path / "ray",
        dataset=dataset,
        engine=engine,
    )
    assert len(result.packs) == 4
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_grid_of_one_is_a_fit(grid: Grid, engine: RayEngine, tmp_path: Path) -> None:
    one = dataclasses.replace(grid, families=("linear",), targets=(0.95,))
    pack = fit_one(one, tmp_path / "ray", engine=engine)
    train(one.open(), one.cells[0].settings).save(tmp_path / "fit")
    assert contents(tmp_path / "ray") == contents(tmp_path / "fit")
    assert len(pack) == 3


def test_an_error_of_a_worker_is_that_very_error_and_the_others_are_written(
    grid: Grid, engine: RayEngine, tmp_path: Path
) -> None:
    some = dataclasses.replace(
        grid, families=("linear",), targets=(0.5,), model_layers=((1,), (9,))
    )
    result = fit_grid(some, tmp_path / "out", dataset=some.open(), engine=engine)
    assert [pack.name for pack in result.packs] == ["linear-f1-0.5-layers-1"]
    (error,) = result.failures.values()
    assert type(error) is SettingsError
    assert str(error) == "model layer 9 is not in the store, which has 0-1"


def test_an_error_of_the_store_is_that_very_error(engine: RayEngine, tmp_path: Path) -> None:
    """The store is opened where it is fitted: what a worker finds there reaches the user, too."""
    store = make_planted_store(tmp_path / "s", pack=planted_pack(n_examples=12), levels=[0])
    grid = Grid(store.path, BASE, families=("linear",), targets=(0.5,))
    open_store(store.path, mode="r+").rounds(0)[0].unmark_block(0)
    with pytest.raises(StoreIncompleteError, match="layer_0/round_0 is not finished"):
        fit_one(grid, tmp_path / "out", engine=engine)


def test_a_worker_that_lacks_code_is_one_line(
    grid: Grid, engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("class Ids(tuple): pass")
    monkeypatch.syspath_prepend(tmp_path)
    ids = importlib.import_module("only_here").Ids(("nature",))
    with pytest.raises(WorkerError) as error:
        fit_one(
            dataclasses.replace(grid, concepts=ids, targets=(0.5,), families=("linear",)),
            tmp_path / "out",
            engine=engine,
        )
    assert str(error.value) == (
        "a worker could not begin linear on 1 (ModuleNotFoundError: No module named 'only_here'): "
        "every machine of the cluster needs this lenscache"
    )


def test_a_fit_whose_worker_is_killed_is_begun_again_in_silence(
    slow: Grid, engine: RayEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killer = Killer(times=1)
    with closing(engine.run(slow, slow.cells, killer)) as found:
        ((_, packs),) = found
    assert len(killer.killed) == 1
    assert killer.seen > set(killer.killed), "no other worker took it up"
    assert capfd.readouterr() == ("", "")
    assert isinstance(packs, list), packs
    packs[0].save(tmp_path / "ray")
    train(slow.open(), slow.cells[0].settings).save(tmp_path / "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_fit_that_loses_every_worker_fails_and_says_so(
    grid: Grid, slow: Grid, engine: RayEngine, tmp_path: Path
) -> None:
    killer = Killer(times=RETRIES + 1)
    with closing(engine.run(slow, slow.cells, killer)) as found:
        ((_, error),) = found
    assert isinstance(error, WorkerError)
    assert "no worker finished mlp on 0-1 in 4 attempts" in str(error)
    assert len(killer.killed) == RETRIES + 1
    assert fit_grid(
        dataclasses.replace(grid, families=("linear",)),
        tmp_path / "out",
        dataset=grid.open(),
        engine=engine,
    ).packs  # the cluster is none the worse


def test_a_gpu_of_several_cannot_be_named(grid: Grid, engine: RayEngine, tmp_path: Path) -> None:
    settings = dataclasses.replace(BASE, device="cuda:1")
    with pytest.raises(SettingsError, match="cuda:1 was asked for: pass --device cuda"):
        fit_one(
            dataclasses.replace(grid, settings=settings, targets=(0.5,), families=("linear",)),
            tmp_path / "out",
            engine=engine,
        )


def left_of(mark: str) -> list[str]:
    """Processes that were started with a mark in their environment and still run, by their
    command."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return found


def marked(mark: str) -> dict[str, str]:
    name, _, value = mark.partition("=")
    return {**os.environ, name: value}


FIT = "import sys; from lens_cli.train.app import main; sys.argv[0] = 'lenstrain'; main()"


@pytest.mark.slow
def test_the_command_starts_its_own_ray_and_leaves_no_process(grid: Grid, tmp_path: Path) -> None:
    mark = f"LENSTRAIN_TEST={tmp_path}"
    options = [
        "--f1",
        "0.5",
        "--model-layers",
        "1",
        "--model-layers",
        "0-1",
        "--engine",
        "ray",
        "--workers",
        "2",
    ]
    command = [
        sys.executable,
        "-c",
        FIT,
        "fit",
        grid.store,
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, env=marked(mark))
    assert ran.returncode == 0, ran.stderr
    assert "2 packs in" in ran.stdout
    assert all(line.startswith("fitting combinations") for line in ran.stderr.splitlines()), (
        ran.stderr
    )
    assert left_of(mark) == []


@pytest.mark.slow
def test_ctrl_c_keeps_finished_packs_and_leaves_no_process(grid: Grid, tmp_path: Path) -> None:
    mark, out = f"LENSTRAIN_TEST={tmp_path}", tmp_path / "out"
    options = ["--family", "linear", "--family", "mlp", "--engine", "ray", "--workers", "1"]
    command = [sys.executable, "-c", FIT, "fit", grid.store, "--out", str(out), *options]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=marked(mark)
    )
    deadline = time.monotonic() + 120
    while not (out / "linear-f1-0.95").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(left_of(mark)) > 1  # Ray's, which are to go
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert f"interrupted: packs that were finished are kept in {out}" in said
    assert [path.name for path in out.iterdir()] == ["linear-f1-0.95"]
    assert left_of(mark) == []


@pytest.mark.slow
def test_an_address_where_nobody_answers_is_one_line(grid: Grid, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        FIT,
        "fit",
        grid.store,
        "--out",
        str(tmp_path / "out"),
        "--engine",
        "ray",
    ]
    ran = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: no Ray cluster answers at 127.0.0.1:1 (")
    assert line.endswith("start one with `ray start --head`, or fit with --engine local")
