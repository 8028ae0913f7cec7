"""What the machine lacks is no damage: sound blocks stay, and one line says what was lacking."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr.storage._local as zarr_local
from lens_cli import console

from lenscache.errors import StoreAccessError, StoreDamagedError
from lenscache.extract.planned_rounds import TopUp
from lenscache.store.access import raise_unless_damage
from lenscache.store.labelsets import add_label_set, read_label_set
from lenscache.store.store import open_store
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from lenscache.store.views.export import export_store
from lenstrain.data.dataset import open_dataset
from tests.lenscache.conftest import PACK, SETTINGS, run_small, tree
from tests.lenscache.conftest import top_up as run_top_up

ROOT = Path(__file__).parents[2]
LACKING = {
    "files": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    "permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    "memory of the kernel": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "memory": MemoryError("cannot allocate 4096 bytes"),
    "threads": RuntimeError("can't start new thread"),
}


def label(store: Path) -> object:
    return add_label_set(open_store(store, mode="r+"), "one", PACK, overwrite=True)


def top_up(store: Path) -> object:
    return run_top_up(store, TopUp(("bird",), samples=3), SETTINGS)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "extract": ("activations/prompt/2/c/1/0", run_small),
    "extract, marks": ("complete/c/1", run_small),
    "extract, ids": ("samples/completion_ids/c/1/0", run_small),
    "extract, plan": ("samples/text/c/0", run_small),
    "extract, metadata": ("activations/prompt/2/zarr.json", run_small),
    "top-up": ("samples/text/c/0", top_up),
    "verify": ("activations/prompt/2/c/1/0", verify_store),
    "verify, marks": ("complete/c/1", verify_store),
    "verify --quick": ("prompt/2/c/1/0", lambda store: verify_store(store, quick=True)),
    "repair": ("activations/prompt/2/c/1/0", repair_store),
    "repair, columns": ("samples/completion/c/1", repair_store),
    "label": ("samples/key/c/0/0", label),
    "read labels": ("labels/concept/c/0", lambda store: read_label_set(open_store(store), "one")),
}


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("reader", READERS)
def test_what_the_machine_lacks_is_not_taken_for_damage(
    reader: str, lacking: str, store_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(store_copy)
    before = tree(store_copy)
    part, read = READERS[reader]
    error, failed = LACKING[lacking], list[str]()

    def refuses(path: Any) -> bool:
        failed.extend([str(path)] * str(path).endswith(part))
        return str(path).endswith(part)

    with monkeypatch.context() as patch:
        refuse_to_open(patch, refuses, error)
        with pytest.raises((StoreAccessError, OSError)) as caught:
            read(store_copy)
    assert failed
    assert not isinstance(caught.value, StoreDamagedError)
    assert str(error) in str(caught.value)
    assert tree(store_copy) == before


@pytest.mark.parametrize("lacking", LACKING)
def test_export_and_training_say_what_was_lacking(
    lacking: str, store_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, dataset = LACKING[lacking], open_dataset(store_copy)
    refuse_to_open(monkeypatch, lambda path: "activations/prompt/2/c/" in str(path), error)
    for read in (
        lambda: export_store(open_store(store_copy), tmp_path / "export", "npz"),
        lambda: dataset.vectors(2),
    ):
        with pytest.raises(StoreAccessError, match="says nothing about what it holds"):
            read()
    assert not (tmp_path / "export").exists()


def refuse_to_open(
    patch: pytest.MonkeyPatch, refuses: Callable[[Any], bool], error: Exception
) -> None:
    """Reading these files fails: by way of zarr's folder store, or opened directly."""
    get, opened = zarr_local._get, Path.open

    def failing_get(path: Path, *arguments: Any) -> Any:
        if refuses(path):
            raise error
        return get(path, *arguments)

    def failing_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "rb" and refuses(path):
            raise error
        return opened(path, mode, *arguments, **options)

    patch.setattr(zarr_local, "_get", failing_get)
    patch.setattr(Path, "open", failing_open)


@pytest.mark.parametrize("error", [LACKING["memory"], LACKING["threads"]], ids=str)
def test_command_that_runs_short_is_one_line_and_no_fault_of_the_program(error: Exception) -> None:
    assert console.one_line(error) == (
        f"this machine is short of memory or threads ({error}): free some and run it again"
    )


@pytest.mark.parametrize("limit", ["files", "memory"])
def test_repair_under_real_limits_unmarks_nothing(limit: str, store_copy: Path) -> None:
    """Processes that may open few files, or have little memory: at some limit, each step fails."""
    before = tree(store_copy)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(store_copy), limit],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    outcomes = json.loads(ran.stdout.splitlines()[-1])
    assert len([said for said in outcomes if said]) > 3, outcomes
    assert [said for said in outcomes if said and "unmarked" in said] == []
    assert tree(store_copy) == before


_LIMITED = """
import json, os, resource, sys
from lenscache.store.store import open_store
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store

def attempt():
    try:
        found = verify_store(sys.argv[1], jobs=2).findings
        if found or (report := repair_store(sys.argv[1], jobs=2)).unmarked:
            return f"unmarked: {found}"
    except (OSError, MemoryError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"

def in_child(kind, limit):
    read, write = os.pipe()
    if not os.fork():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(kind, (limit, limit))
        os.write(write, json.dumps(attempt()).encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read().decode()
    os.wait()
    return json.loads(text) if text else "killed"

if sys.argv[2] == "files":
    kind, used = resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd"))
    limits = [used + more for more in range(0, 12)]
else:
    kind = resource.RLIMIT_AS
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limits = [used + (more << 20) for more in (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)]
print(json.dumps([in_child(kind, limit) for limit in limits]))
"""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Stored and computed checksum do not match"),
        RuntimeError("error during blosc decompression: -1"),
        FileNotFoundError(errno.ENOENT, "gone"),
        OSError("Not a gzipped file"),
        StoreDamagedError("the object is gone"),
    ],
)
def test_what_a_codec_says_is_damage(error: Exception) -> None:
    raise_unless_damage(error, "samples/text")
