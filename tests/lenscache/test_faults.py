"""Kills, full and read-only disks, failing writes, damaged and lost files, a clock that jumps.

After each of them either the store is right, or one line names array, rows and file and what to do;
the next extraction repairs exactly the damaged blocks, and the end is byte for byte that of an
uninterrupted run.
"""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest

from lenscache.errors import StoreDamagedError, StoreWriteError
from lenscache.extract import ExtractProgress
from lenscache.store.store import open_store
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache import faults
from tests.lenscache.conftest import ROUND, run_small, tree
from tests.lenscache.faults import BLOCK_ARRAYS, HOW, PLAN_ARRAYS, damage, heal, object_file


@pytest.fixture(scope="module")
def expected(finished_store: Path) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    return tree(finished_store)


def states_of_files(path: Path) -> dict[str, tuple[int, int]]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in files
    }


def relative(file: Path, store: Path) -> str:
    return file.relative_to(store).as_posix()


# --- writers that stop --------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_run_leaves_no_damage_and_resumes_to_the_same_bytes(
    kills: int, expected: dict[str, bytes], tmp_path: Path
) -> None:
    stores = faults.killed_runs(tmp_path, kills, seed=kills)
    assert tree(tmp_path / "whole") == expected
    for store in stores:
        healed = heal(store, expected)
        assert ([finding.line() for finding in healed.found], healed.right) == ([], True), store


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_full_and_read_only_disks_do_no_harm(
    many: bool, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Real ones: a small tmpfs fills up, grows, is then mounted read-only."""
    whole = 4 * len(expected)  # every file takes a page of 4 kB; a block has seven
    sizes = list(range(4, whole, 12)) if many else [100, whole - 44, whole - 20]
    try:
        disks = faults.small_disks(tmp_path, sizes)
    except faults.MountRefusedError as error:
        pytest.skip(str(error))
    for disk in disks:
        if disk["error"]:
            assert "cannot be written ([Errno 28] No space left on device" in disk["error"]
            assert "run the same `lenscache extract` again" in disk["error"]
        assert disk["found"] == []  # nothing half-written counts as written
        assert disk["rows_run"] == 20 - 8 * disk["complete"] if disk["complete"] < 3 else 0
        assert tree(Path(disk["store"])) == expected
        # Read-only: what needs no writing works, the rest is one line that says why.
        assert (disk["clean"], disk["rows_run_read_only"]) == (True, 0)
        assert disk["read_only"]["verify"] is disk["read_only"]["extract"] is None
        for refused in ("repair", "extract damaged"):
            assert disk["read_only"][refused].startswith(
                f"StoreWriteError: {ROUND}, its attributes, cannot be written"
            )
            assert "Read-only file system" in disk["read_only"][refused]
    assert {disk["error"] is None for disk in disks} | {disk["complete"] for disk in disks} >= {
        False,
        1,
        2,
    }


@pytest.mark.parametrize("name", [*BLOCK_ARRAYS, "complete"])
def test_write_error_in_any_array_of_a_block_leaves_the_block_unmarked(
    name: str, finished_store: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    code = random.Random(name).choice([errno.ENOSPC, errno.EDQUOT, errno.EIO])
    key = relative(object_file(finished_store, name, 1), finished_store)
    where = "complete, the mark of block 1," if name == "complete" else f"{name}, rows 8-15,"
    message = (
        rf"^{ROUND}/{where} cannot be written \(\[Errno {code}\]"
        ".*: make room .* `lenscache extract` again"
    )
    with (
        faults.failing_write(key, OSError(code, os.strerror(code))),
        pytest.raises(StoreWriteError, match=message),
    ):
        run_small(store)
    assert open_store(store).rounds()[0].complete_blocks().tolist() == [True, False, False]
    healed = heal(store, expected)
    assert (healed.found, healed.report.rows_run, healed.report.repaired_blocks) == ([], 12, [])
    assert healed.right


@pytest.mark.parametrize("number", sorted(random.Random(0).sample(range(80), 5)))
def test_write_error_at_any_moment_loses_nothing(
    number: int, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Also while the store is laid out."""
    store, error = tmp_path / "s.zarr", OSError(errno.ENOSPC, "No space left on device")
    with (
        faults.failing_write(number, error),
        pytest.raises(StoreWriteError, match=r"cannot be written .*No space left on device"),
    ):
        run_small(store)
    healed = heal(store, expected)
    assert (healed.found, healed.right) == ([], True)


def test_leftover_partial_files_are_noted_and_do_no_harm(
    store_copy: Path, expected: dict[str, bytes]
) -> None:
    for folder in [path for path in store_copy.rglob("*") if path.is_dir()]:
        (folder / "0.1234abcd.partial").write_bytes(b"half of somet")
    report = verify_store(store_copy)
    assert not report.is_damaged
    assert (
        f"{ROUND}/0.1234abcd.partial: left by a writer that was stopped; harmless" in report.notes
    )
    healed = heal(store_copy, expected)
    assert (healed.report.rows_run, healed.right) == (0, True)


@pytest.mark.parametrize("seed", range(2))
def test_clock_that_jumps_changes_nothing(
    seed: int, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    with faults.jumping_clock(seed):
        report = run_small(store)
        assert 0 < report.elapsed_s < 100
        rng = random.Random(seed)
        for file in store.rglob("*"):
            os.utime(file, (rng.uniform(0, 4e9),) * 2)
        checked = verify_store(store)
        assert not checked.is_damaged
        assert 0 < checked.elapsed_s < 100
        assert run_small(store).rows_run == 0
    assert tree(store) == expected


# --- damaged blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in BLOCK_ARRAYS
        for how in HOW
        if how in ("truncated", "flipped") or name == BLOCK_ARRAYS[0]
    ],
)
def test_damaged_block_is_named_and_repaired_exactly_and_alone(
    name: str, how: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    rng = random.Random(f"{name} {how}")
    block = rng.randrange(3)
    rows, file = (8 * block, min(8 * block + 7, 19)), object_file(store_copy, name, block)
    damage(file, how, rng)
    (finding,) = verify_store(store_copy).findings
    assert (finding.array, finding.rows, finding.path) == (
        f"{ROUND}/{name}",
        rows,
        relative(file, store_copy),
    )
    line = f"{ROUND}/{name}, rows {rows[0]}-{rows[1]} ({finding.path}): "
    assert finding.line().startswith(line)
    assert finding.line().endswith(
        "run the same `lenscache extract` again, which extracts these rows anew"
    )
    before = states_of_files(store_copy)
    healed = heal(store_copy, expected)
    assert healed.unmarked == [f"{ROUND} block {block}, rows {rows[0]}-{rows[1]}"]
    assert (healed.report.rows_run, healed.right) == (rows[1] - rows[0] + 1, True)
    changed = {
        name for name, state in states_of_files(store_copy).items() if state != before.get(name)
    }
    # The round's attributes change, too: its verification is taken back and made anew.
    assert all(f"/c/{block}" in name for name in changed - {f"{ROUND}/zarr.json"})


@pytest.mark.parametrize(
    ("name", "how"), list(zip(["activations/prompt/2", "samples/completion"] * 2, HOW, strict=True))
)
def test_extract_alone_finds_and_repairs_a_damaged_block(
    name: str, how: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    damage(object_file(store_copy, name, 1), how, random.Random(how))
    seen: list[ExtractProgress] = []
    report = run_small(store_copy, on_progress=seen.append)
    assert (report.rows_run, report.repaired_blocks) == (8, [f"{ROUND} block 1"])
    assert next(p.message for p in seen if p.message).startswith(
        "damaged, extracting rows 8-15 again: layer_1"
    )
    assert tree(store_copy) == expected


@pytest.mark.parametrize(("marked", "how"), [(True, "flipped"), *((False, how) for how in HOW)])
def test_every_object_of_every_block_may_be_damaged(
    how: str, marked: bool, store_copy: Path, expected: dict[str, bytes]
) -> None:
    """Also in the last block, which is not full, and in blocks that were never marked."""
    for block in range(3):
        for name in BLOCK_ARRAYS if marked else (*BLOCK_ARRAYS, "complete"):
            damage(object_file(store_copy, name, block), how, random.Random(how))
    healed = heal(store_copy, expected)
    assert (healed.report.rows_run, healed.right) == (20, True)


def test_repair_unmarks_the_damaged_blocks_and_no_others(
    store_copy: Path, expected: dict[str, bytes]
) -> None:
    for name, block in (
        ("activations/prompt/0", 0),
        ("samples/completion", 0),
        ("activations/completion/2", 2),
    ):
        damage(object_file(store_copy, name, block), "flipped", random.Random(name))
    report = repair_store(store_copy)
    assert report.unmarked == [f"{ROUND} block 0, rows 0-7", f"{ROUND} block 2, rows 16-19"]
    assert report.rows == 12
    target = open_store(store_copy).rounds()[0]
    assert target.complete_blocks().tolist() == [False, True, False]
    assert not verify_store(store_copy).is_damaged  # unfinished now
    assert repair_store(store_copy).unmarked == []
    assert run_small(store_copy).rows_run == 12
    assert tree(store_copy) == expected


@pytest.mark.parametrize("how", HOW)
def test_damaged_mark_of_a_finished_round_is_named_and_its_block_extracted_again(
    how: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    damage(object_file(store_copy, "complete", 1), how, random.Random(how))
    (finding,) = verify_store(store_copy).findings
    assert (finding.array, finding.rows, finding.block) == (f"{ROUND}/complete", (8, 15), 1)
    assert finding.path == f"{ROUND}/complete/c/1"
    assert finding.found.startswith(
        "the mark of these rows is missing" if how == "lost" else "the mark does not read"
    )
    healed = heal(store_copy, expected)
    assert (healed.report.rows_run, healed.right) == (8, True)


# --- what the plan determines, and metadata -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "lost") for name in PLAN_ARRAYS), *(("samples/text", how) for how in HOW[1:])],
)
def test_damaged_plan_column_is_named_and_written_again_without_extracting(
    name: str, how: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    file = object_file(store_copy, name, 0)
    damage(file, how, random.Random(f"{name} {how}"))
    report = repair_store(store_copy)
    assert (report.unmarked, report.left_to_user) == ([], [])
    assert [(f.array, f.path) for f in report.left_to_extract] == [
        (f"{ROUND}/{name}", relative(file, store_copy))
    ]
    assert report.left_to_extract[0].advice.endswith(
        "which writes it anew without extracting a row"
    )
    assert run_small(store_copy).rows_run == 0
    assert tree(store_copy) == expected
    assert not verify_store(store_copy).is_damaged


@pytest.mark.parametrize("how", ["lost", "flipped"])
def test_damaged_hierarchy_is_named_and_written_again(
    how: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    damage(store_copy / "hierarchy/name/c/0", how, random.Random(how))
    healed = heal(store_copy, expected)
    assert [finding.path for finding in healed.found] == ["hierarchy/name/c/0"]
    assert (healed.report.rows_run, healed.right) == (0, True)


METADATA = (
    "layer_1",
    ROUND,
    f"{ROUND}/complete",
    f"{ROUND}/samples",
    f"{ROUND}/samples/text",
    f"{ROUND}/activations/prompt/0",
    f"{ROUND}/samples/completion",
    "hierarchy/name",
)


@pytest.mark.parametrize("name", METADATA)
def test_lost_metadata_is_named_and_written_again_without_extracting(
    name: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    (store_copy / name / "zarr.json").unlink()
    healed = heal(store_copy, expected)
    assert [finding.path for finding in healed.found] == [f"{name}/zarr.json"]
    assert (healed.unmarked, healed.report.rows_run, healed.right) == ([], 0, True)


@pytest.mark.parametrize("name", METADATA[::2])
def test_metadata_that_does_not_parse_is_one_line_and_mended_by_removing_it(
    name: str, store_copy: Path, expected: dict[str, bytes]
) -> None:
    file = store_copy / name / "zarr.json"
    damage(file, "truncated", random.Random(name))
    (finding,) = repair_store(store_copy).left_to_user
    assert finding.path == f"{name}/zarr.json"
    assert finding.advice.startswith(
        f"remove {name}/zarr.json and run the same `lenscache extract` again"
    )
    with pytest.raises(
        StoreDamagedError, match=rf"the metadata of {name} .*zarr\.json and run `lenscache extract`"
    ):
        run_small(store_copy)
    file.unlink()
    healed = heal(store_copy, expected)
    assert (healed.report.rows_run, healed.right) == (0, True)


def test_metadata_of_the_store_itself_is_one_line(store_copy: Path) -> None:
    (store_copy / "zarr.json").write_text(json.dumps({"attributes": {}})[:9])
    with pytest.raises(Exception, match=r"the metadata of .*copy\.zarr is damaged"):
        verify_store(store_copy)
