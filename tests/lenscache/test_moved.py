"""A store that is moved away or removed while it is used: the run ends, and makes no new folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenscache.errors import StoreAccessError, StoreMismatchError
from lenscache.extract import ExtractProgress
from lenscache.store.labelsets import add_label_set
from lenscache.store.store import open_store
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import PACK, run_small, tree
from tests.packs import small_pack


def rename(store: Path, aside: Path) -> None:
    store.rename(aside)


def remove(store: Path, aside: Path) -> None:
    store.rename(aside)
    shutil.rmtree(aside)


def replace_by_another(store: Path, aside: Path) -> None:
    store.rename(aside)
    run_small(store, pack=small_pack(n_examples=2))


MOVES = [rename, remove, replace_by_another]
Move = Callable[[Path, Path], None]


def once(rows: int, do: Callable[[], None]) -> Callable[[ExtractProgress], None]:
    done: list[int] = []

    def on_progress(progress: ExtractProgress) -> None:
        if progress.rows_run >= rows and not done:
            done.append(rows)
            do()

    return on_progress


@pytest.mark.parametrize("move", MOVES)
def test_run_ends_at_the_next_block_and_makes_no_new_folder(move: Move, tmp_path: Path) -> None:
    store, aside = tmp_path / "s.zarr", tmp_path / "aside.zarr"
    left: dict[str, Any] = {}

    def move_it() -> None:
        move(store, aside)
        left.update(tree(store))

    with pytest.raises(StoreAccessError, match=r"s\.zarr was moved away or removed while this ran"):
        run_small(store, on_progress=once(12, move_it))
    assert tree(store) == left
    assert store.exists() == (move is replace_by_another)
    if aside.exists():  # and goes on where it is now
        assert verify_store(aside).findings == []
        assert run_small(aside).rows_run > 0


@pytest.mark.parametrize("move", MOVES)
def test_what_is_not_found_in_a_store_that_was_moved_is_no_damage(
    move: Move, store_copy: Path, tmp_path: Path
) -> None:
    reader = open_store(store_copy)
    target, writer = reader.rounds()[0], open_store(store_copy, mode="r+")
    move(store_copy, tmp_path / "aside.zarr")
    left = tree(store_copy)
    for use in (
        lambda: target.read("prompt", 2),
        lambda: target.samples(),
        lambda: target.unmark_block(0),
        lambda: reader.rounds(7),
        lambda: add_label_set(writer, "one", PACK),
    ):
        with pytest.raises(StoreAccessError, match="was moved away or removed"):
            use()
    assert tree(store_copy) == left


def test_store_that_is_moved_during_a_check_is_not_called_damaged(
    store_copy: Path, tmp_path: Path
) -> None:
    def move(done: int, _total: int) -> None:
        if done == 5:
            store_copy.rename(tmp_path / "aside.zarr")

    with pytest.raises(StoreAccessError, match="was moved away or removed"):
        repair_store(store_copy, jobs=1, on_checked=move)
    assert not store_copy.exists()
    assert verify_store(tmp_path / "aside.zarr").is_clean


def test_header_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    header = store / "zarr.json"
    with pytest.raises(StoreAccessError, match=r"zarr\.json was removed while this ran"):
        run_small(store, on_progress=once(12, header.unlink))


def test_removed_objects_end_the_run_in_an_object_store() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with pytest.raises(StoreAccessError, match=r"zarr\.json was moved or removed while this ran"):
        run_small(
            "memory://moved/s.zarr",
            on_progress=once(12, lambda: memory.rm("/moved", recursive=True)),
        )
    assert not memory.exists("/moved/s.zarr/zarr.json")


def test_folder_without_links_creates_exclusively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuses)
    run_small(tmp_path / "s.zarr")
    assert verify_store(tmp_path / "s.zarr").is_clean
    with pytest.raises(StoreMismatchError, match="pack"):
        run_small(tmp_path / "s.zarr", pack=small_pack(n_examples=2))
