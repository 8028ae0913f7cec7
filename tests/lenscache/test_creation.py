"""Several writers that create a store, or a round of it, at the same moment: one has its way."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.plan import plan_samples
from lenscache.errors import StoreMismatchError
from lenscache.store.store import create_store, open_store
from tests.lenscache.s3_server import connect, environment, serving
from tests.lenstrain.conftest import planted_header, planted_pack

PACK = planted_pack(n_examples=4)
HEADER = planted_header(PACK)
WRITERS = 6
_BARRIER: list[Barrier] = []

Create = Callable[[str, int], None]


@pytest.fixture(scope="module")
def writers() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        WRITERS, context, initializer=_begin, initargs=(context.Barrier(WRITERS),)
    ) as pool:
        yield pool


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        connect(url).create_bucket(Bucket="lenses")
        yield "s3://lenses"


def _begin(barrier: Barrier) -> None:
    _BARRIER.append(barrier)


def all_at_once(
    writers: ProcessPoolExecutor, create: Create, paths: list[str], env: dict[str, str]
) -> list[list[bool]]:
    """For each path, whether each writer was let in."""
    runs = [writers.submit(_attempt, create, paths, me, env) for me in range(WRITERS)]
    return [list(found) for found in zip(*(run.result() for run in runs), strict=True)]


def _attempt(create: Create, paths: list[str], me: int, env: dict[str, str]) -> list[bool]:
    os.environ.update(env)
    let_in = []
    for path in paths:
        _BARRIER[0].wait(60)
        try:
            create(path, me)
        except StoreMismatchError:
            let_in.append(False)
        else:
            let_in.append(True)
    return let_in


def create_with_own_seed(path: str, me: int) -> None:
    create_store(path, dataclasses.replace(HEADER, seed=me), PACK)


def create_equal(path: str, me: int) -> None:
    create_store(path, HEADER, PACK)


def create_with_own_plan(path: str, me: int) -> None:
    plan = plan_samples(PACK, [1], samples=me + 2)
    keys, lengths = np.zeros((len(plan), 16), np.uint8), np.full(len(plan), 5, np.int32)
    request = {"samples": me + 2}
    store = create_store(path, HEADER, PACK)
    store.create_round(1, 0, plan, keys=keys, n_prompt_tokens=lengths, request=request)


def test_one_of_several_different_writers_creates_a_folder(
    writers: ProcessPoolExecutor, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{number}.zarr") for number in range(40)]
    let_in = all_at_once(writers, create_with_own_seed, paths, {})
    assert [sum(found) for found in let_in] == [1] * len(paths)
    assert [open_store(path).header.seed for path in paths] == [f.index(True) for f in let_in]


def test_equal_writers_share_a_folder(writers: ProcessPoolExecutor, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.zarr") for number in range(10)]
    assert all(map(all, all_at_once(writers, create_equal, paths, {})))


def test_one_of_several_different_writers_lays_out_a_round(
    writers: ProcessPoolExecutor, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{number}.zarr") for number in range(20)]
    let_in = all_at_once(writers, create_with_own_plan, paths, {})
    assert [sum(found) for found in let_in] == [1] * len(paths)
    for path, found in zip(paths, let_in, strict=True):
        (target,) = open_store(path).rounds()
        assert target.attributes["samples"] == found.index(True) + 2
        assert len(target.samples().text) == target.n_samples


@pytest.mark.parametrize("create", [create_with_own_seed, create_with_own_plan])
def test_one_of_several_different_writers_creates_a_store_in_a_bucket(
    create: Create, writers: ProcessPoolExecutor, bucket: str
) -> None:
    paths = [f"{bucket}/{create.__name__}/{number}.zarr" for number in range(4)]
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    let_in = all_at_once(writers, create, paths, env)
    assert [sum(found) for found in let_in] == [1] * len(paths)


def test_store_in_memory_is_created_once() -> None:
    create_store("memory://once/s.zarr", HEADER, PACK)
    with pytest.raises(StoreMismatchError, match="seed 0, this run asks for 1"):
        create_with_own_seed("memory://once/s.zarr", 1)


@pytest.mark.parametrize(
    ("attribute", "value"), [("n_samples", 7), ("concepts", ["bird"]), ("n_targets", 1)]
)
def test_round_of_which_anything_differs_is_refused(
    attribute: str, value: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "s.zarr")
    create_with_own_plan(path, 0)
    open_store(path, mode="r+").rounds()[0].update_attributes({attribute: value})
    with pytest.raises(StoreMismatchError, match=attribute.replace("_", " ")):
        create_with_own_plan(path, 0)
