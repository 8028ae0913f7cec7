"""Faults that befall a store, by real means, for the tests and for benchmarks/faults.py.

Each is applied to the small extraction of conftest.py; `heal` then goes the way a user goes:
verify, repair, extract, verify, and compares with a run that nothing happened to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from zarr.storage import LocalStore

from lenscache.errors import StoreNotFoundError
from lenscache.extract import ExtractReport
from lenscache.store.round import Labels, Samples
from lenscache.store.verify.findings import Finding
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import ROUND, run_small, tree

ROOT = Path(__file__).parents[2]
BLOCK_ARRAYS = (
    "activations/prompt/0",
    "activations/prompt/2",
    "activations/completion/0",
    "activations/completion/2",
    "samples/completion",
    "samples/n_completion_tokens",
    "samples/completion_ids",
)
PLAN_ARRAYS = tuple(
    name
    for name in (
        *(f"samples/{name}" for name in Samples._fields),
        *(f"labels/{name}" for name in Labels._fields),
    )
    if name not in BLOCK_ARRAYS
)
HOW = ("lost", "truncated", "emptied", "flipped")


def object_file(store: Path, name: str, block: int) -> Path:
    """The file that holds one block of an array, or a whole column that the plan determines."""
    folder = store / ROUND / name / "c" / str(block)
    return folder / "0" if folder.is_dir() else folder


def damage(file: Path, how: str, rng: random.Random) -> str:
    """Damage a file at a random place; says what was done."""
    data = bytearray(file.read_bytes())
    if how == "lost":
        file.unlink()
        return "lost"
    if how == "emptied":  # what a power cut leaves of a file that was replaced but not synced
        file.write_bytes(b"")
        return "emptied"
    place = rng.randrange(1, len(data)) if how == "truncated" else rng.randrange(len(data))
    bit = rng.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data[:place] if how == "truncated" else data)
    return f"cut to {place} bytes" if how == "truncated" else f"bit {bit} of byte {place} flipped"


@contextlib.contextmanager
def failing_write(key: str | int, error: OSError) -> Iterator[None]:
    """The first write of an object with this key, or the object write of this number, fails with
    `error`."""
    count, original = itertools.count(), LocalStore.set

    async def fails(store: LocalStore, name: str, value: Any) -> None:
        if next(count) == key or (isinstance(key, str) and name.endswith(key)):
            raise error
        await original(store, name, value)

    with mock.patch.object(LocalStore, "set", fails):
        yield


@contextlib.contextmanager
def jumping_clock(seed: int = 0) -> Iterator[None]:
    """Every look at the wall clock gives another time, years back or ahead."""
    rng, real = random.Random(seed), time.time

    def jumped() -> float:
        return real() + rng.uniform(-1e8, 1e8)

    with mock.patch.object(time, "time", jumped):
        yield


def killed_runs(folder: Path, n: int, *, seed: int = 0) -> list[Path]:
    """Stores whose extraction was ended by SIGKILL, at moments spread over a run; `folder /
    "whole"` ran to its end.

    Each run is a process of its own, forked once torch is loaded.
    """
    _run_script(_KILLED_RUNS, folder, n, seed)
    return [folder / f"killed {i}" for i in range(n)]


def small_disks(folder: Path, kilobytes: list[int]) -> list[dict[str, Any]]:
    """Extractions onto file systems that are too small, resumed after they were made larger; then
    read-only ones.

    A tmpfs in a mount namespace of its own, gone when the process ends. One dictionary a size:
    `error`, what stopped the run (None if it fitted); `found`, what verify said then; `complete`,
    blocks complete then; `rows_run` after the disk grew; `read_only`, what verify, extract and
    repair did once it could not be written; `store`, a copy.

    Raises
    ------
    MountRefusedError
        If this system lets us mount nothing.
    """
    for prefix in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        probe = [*prefix, "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$1"', "probe", str(folder)]
        with contextlib.suppress(OSError):
            if subprocess.run(probe, capture_output=True).returncode == 0:
                _run_script(_SMALL_DISKS, folder, *kilobytes, prefix=prefix)
                return [json.loads((folder / f"{size}.json").read_text()) for size in kilobytes]
    raise MountRefusedError("neither unshare --user nor root may mount a tmpfs here")


class MountRefusedError(Exception):
    """The system lets us mount no file system."""


@dataclass
class Healed:
    """What came of a store after a fault."""

    found: list[Finding]
    """What verify said before anything was mended."""
    unmarked: list[str]
    """Blocks that repair unmarked."""
    report: ExtractReport
    """Of the extraction that followed."""
    right: bool
    """Clean, and byte for byte what an uninterrupted run leaves."""


def heal(store: Path, expected: dict[str, bytes], *, repair: bool = True) -> Healed:
    """Verify, repair unless told otherwise, extract again, verify; compare with an uninterrupted
    run."""
    try:
        found = verify_store(store, jobs=1).findings
        unmarked = repair_store(store, jobs=1).unmarked if repair and found else []
    except StoreNotFoundError:  # killed before there was one
        found, unmarked = [], []
    report = run_small(store)
    after = verify_store(store, jobs=1)
    clean = not after.findings and {state.state for state in after.rounds} == {"complete"}
    return Healed(found, unmarked, report, clean and tree(store) == expected)


def copy_store(store: Path, to: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(store, to))


def _run_script(script: str, *arguments: object, prefix: list[str] | None = None) -> None:
    command = [*(prefix or []), sys.executable, "-c", script, *map(str, arguments)]
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=env, timeout=280, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"the process that injects faults failed: {ran.stderr[-2000:]}")


_KILLED_RUNS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from tests.lenscache.conftest import run_small
from tests.models import tiny_model

def start(path):
    pid = os.fork()
    if not pid:
        try:
            run_small(path)
        finally:
            os._exit(0)
    return pid

torch.set_num_threads(1)
tiny_model()
folder, n, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
begin = time.perf_counter()
os.waitpid(start(folder / "whole"), 0)
duration = time.perf_counter() - begin
for i in range(n):
    pid = start(folder / f"killed {i}")
    time.sleep(duration * (i + rng.random()) / n)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""

_SMALL_DISKS = """
import json, shutil, subprocess, sys
from pathlib import Path
import torch
from lenscache.errors import LenscacheError
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import run_small

def attempt(call):
    try:
        return None, call()
    except (LenscacheError, OSError) as error:
        return f"{type(error).__name__}: {error}", None

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for size in map(int, sys.argv[2:]):
    disk = folder / f"{size} kB"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    store = disk / "s.zarr"
    error, _ = attempt(lambda: run_small(store))
    no_store, before = attempt(lambda: verify_store(store, jobs=1))
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    report = run_small(store)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    read_only = {}
    read_only["verify"], after = attempt(lambda: verify_store(store, jobs=1))
    read_only["extract"], again = attempt(lambda: run_small(store))
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    shard = store / "layer_1/round_0/activations/prompt/2/c/1/0"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    read_only["repair"], _ = attempt(lambda: repair_store(store, jobs=1))
    read_only["extract damaged"], _ = attempt(lambda: run_small(store))
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    shard.write_bytes(data)
    shutil.copytree(store, folder / f"{size}.zarr")
    (folder / f"{size}.json").write_text(json.dumps({
        "store": str(folder / f"{size}.zarr"), "error": error, "no_store": no_store,
        "rows_run": report.rows_run,
        "found": [finding.line() for finding in before.findings] if before else [],
        "complete": sum(state.complete_blocks for state in before.rounds) if before else 0,
        "clean": not after.findings, "rows_run_read_only": again.rows_run if again else None,
        "read_only": read_only,
    }))
    subprocess.run(["umount", disk], check=True)
"""
