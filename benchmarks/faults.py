"""What becomes of stores, lens packs and files when something goes wrong.

    python benchmarks/faults.py [--part PART ...] [--tries N] [--kills N] [--every N] [--jobs N]
                                [--quick] [--json FILE]

Parts, all unless asked for: `faults`, on a small extraction; `calls`, every writing system call of
every command killed and failed once; `moments`, commands killed at random moments (--kills); and
`flips`, one bit of every byte of a store of less than 16 kB.

A random transformer of three blocks is extracted into a store of 20 rows in three blocks. Each try
applies one fault at a random, seeded place or moment and then goes the way a user goes: `verify`,
`repair`, `extract`, `verify`. Columns:

right at once   verify found nothing wrong: no half-written block counted as written
named           otherwise, verify named the damaged array, the rows and the file in one line
repaired        blocks that were extracted again because they were damaged, and in brackets those
                that were not
right           in the end the store was clean and byte for byte that of an uninterrupted run

Faults that stop a writer (kill, full disk, failing write) must be right at once; damage must be
named. --quick tries each three times.

For `calls` and `moments` (`kills.py`) each run is a forked process that has imported everything;
calls are hit by strace where it is installed and may attach, else by Python's audit hooks. Columns:

hit             runs that were stopped, or whose call failed; the others had ended before
half-written    what counted as written and was not whole
lost            runs after which the same command did not come to what an undisturbed one leaves
thrown away     sound blocks that were complete before the run and no longer are
"""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the faults are those of the tests
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import kills
import torch

from lenscache.errors import StoreWriteError
from tests.lenscache import bitflips, faults
from tests.lenscache.conftest import ROUND, run_small, tree

ROWS, BLOCK_ROWS = 20, 8
PARTS = ("calls", "moments", "flips", "faults")


@dataclass
class Tally:
    """What came of the tries of one fault."""

    fault: str
    tries: int = 0
    right_at_once: int = 0
    named: int = 0
    repaired: int = 0
    needless: int = 0
    """Blocks that were extracted again although nothing was wrong with them."""
    right: int = 0


@dataclass
class Bench:
    """Where everything is."""

    folder: Path
    finished: Path
    expected: dict[str, bytes]
    tries: int


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--every", type=int, default=1, help="of the calls, every Nth alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, report = arguments.part or PARTS, dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # First: what comes later starts threads, which a forked process does not have.
        if {"calls", "moments"} & set(parts):
            report |= hit_commands(folder, arguments, parts)
        if "flips" in parts:
            report["flips"] = flip_every_byte(folder, arguments)
        if "faults" in parts:
            report["faults"] = small_extraction(folder, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def hit_commands(
    folder: Path, arguments: argparse.Namespace, parts: Sequence[str]
) -> dict[str, Any]:
    """Commands whose calls are killed and failed, and that are killed at random moments."""
    traced, shop = kills.can_trace(), kills.Workshop(folder)
    shown, n_commands = dict[str, Any](), len(shop.commands)
    for part in ("calls", "moments"):
        if part not in parts:
            continue
        if part == "calls":
            chosen = kills.every_call(shop, traced=traced)
            chosen = chosen[:: 25 if arguments.quick else arguments.every]
            print(f"calls, by {'strace' if traced else 'audit hooks'}", flush=True)
        else:
            n = n_commands if arguments.quick else arguments.kills
            chosen = kills.random_moments(n, n_commands)
            print("kills at random moments", flush=True)
        start = time.perf_counter()
        found = kills.try_all(shop, chosen, traced=traced, jobs=arguments.jobs)
        elapsed_s = time.perf_counter() - start
        print(f"{'command':24} runs  hit  half-written  lost  thrown away")
        for label, each in [*found.items(), ("all", kills.summed(found))]:
            print(
                f"{label:24} {each.runs:4} {each.hit:4}  {each.half_written:12}  {each.lost:4}  "
                f"{each.thrown_away:11}"
            )
            for note in each.notes[:3]:
                print(f"    {note}")
        print(f"{elapsed_s:.0f} s", flush=True)
        shown[part] = {label: asdict(each) for label, each in found.items()}
    return shown


def flip_every_byte(folder: Path, arguments: argparse.Namespace) -> dict[str, int]:
    """One bit of every byte of a store: found by verify, or harmless."""
    step, jobs = 97 if arguments.quick else 1, arguments.jobs
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn) as pool:
        runs = [pool.submit(_flip_share, str(folder), n, jobs, step) for n in range(jobs)]
        flips = [flip for run in runs for flip in run.result()]
    counted = Counter(flip.outcome for flip in flips)
    print(f"{len(flips)} bits flipped: {dict(counted)}", flush=True)
    for flip in flips:
        if flip.outcome not in ("found", "harmless"):
            print(f"    {flip.outcome}: {flip.place}")
    return dict(counted)


def _flip_share(folder: str, number: int, count: int, step: int) -> list[bitflips.Flip]:
    torch.set_num_threads(1)
    store = Path(folder) / f"flips {number}.zarr"
    bitflips.make_store(store)
    return list(bitflips.flip_bits(store, share=(number, count), step=step))


def small_extraction(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every fault on a small extraction."""
    run_small(folder / "finished.zarr")
    finished = folder / "finished.zarr"
    bench = Bench(folder, finished, tree(finished), 3 if arguments.quick else arguments.tries)
    tallies = []
    print(f"{'fault':46} tries  right at once  named  repaired  right", flush=True)
    for fault in all_faults(bench):
        tallies.append(fault)
        repaired = f"{fault.repaired} ({fault.needless})"
        print(
            f"{fault.fault:46} {fault.tries:5}  {fault.right_at_once:13}  {fault.named:5}  "
            f"{repaired:>8}  {fault.right:5}",
            flush=True,
        )
    total = sum(tally.tries for tally in tallies)
    print(
        f"{total} faults: {sum(t.right for t in tallies)} ended right, "
        f"{sum(t.needless for t in tallies)} blocks extracted again needlessly"
    )
    return [asdict(tally) for tally in tallies]


def all_faults(bench: Bench) -> Iterator[Tally]:
    """Every fault, one after the other."""
    yield killed(bench)
    if (tally := small_disks(bench)) is not None:
        yield tally
    for name in (*faults.BLOCK_ARRAYS, "complete"):
        yield failing_write(bench, f"write error in {name}", name)
    yield failing_write(bench, "write error at a random moment", None)
    for how in faults.HOW:
        for name in (*faults.BLOCK_ARRAYS, "complete"):
            yield damaged(bench, how, name)
        yield damaged_plan(bench, how)
    yield lost_metadata(bench)
    yield unhurt(bench, "leftover .partial files", leave_partial_files)
    yield jumping_clock(bench)


def killed(bench: Bench) -> Tally:
    """SIGKILL at a random moment of an extraction."""
    tally, folder = Tally("SIGKILL"), bench.folder / "killed"
    folder.mkdir()
    for store in faults.killed_runs(folder, bench.tries, seed=bench.tries):
        count(tally, faults.heal(store, bench.expected), damaged_blocks=set())
    return tally


def small_disks(bench: Bench) -> Tally | None:
    """A real file system that fills up, at sizes spread over that of the store."""
    tally, folder = Tally("disk full, then larger, then read-only"), bench.folder / "disks"
    folder.mkdir()
    sizes = sorted({round(4 + 256 * i / bench.tries) for i in range(bench.tries)})
    try:
        disks = faults.small_disks(folder, sizes)
    except faults.MountRefusedError as error:
        print(f"{tally.fault:46} skipped: {error}")
        return None
    for disk in disks:
        tally.tries += 1
        tally.right_at_once += not disk["found"]
        tally.right += disk["clean"] and tree(Path(disk["store"])) == bench.expected
    return tally


def failing_write(bench: Bench, fault: str, name: str | None) -> Tally:
    """The write of one object fails: of a random block of one array, or any."""
    tally, rng = Tally(fault), random.Random(fault)
    for number in range(bench.tries):
        store = bench.folder / f"{fault} {number}".replace("/", " ")
        code = rng.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT])
        block = rng.randrange(3)
        key: str | int = rng.randrange(60)
        if name is not None:
            key = (
                faults.object_file(bench.finished, name, block)
                .relative_to(bench.finished)
                .as_posix()
            )
        try:
            with faults.failing_write(key, OSError(code, os.strerror(code))):
                run_small(store)
        except StoreWriteError:
            count(tally, faults.heal(store, bench.expected), damaged_blocks=set())
    return tally


def damaged(bench: Bench, how: str, name: str) -> Tally:
    """One object of a finished store is damaged."""
    tally, rng = Tally(f"{how}: {name}"), random.Random(f"{how} {name}")
    for number in range(bench.tries):
        store = faults.copy_store(
            bench.finished, bench.folder / f"{how} {name} {number}".replace("/", " ")
        )
        block = rng.randrange(3)
        file = faults.object_file(store, name, block)
        faults.damage(file, how, rng)
        healed = faults.heal(store, bench.expected)
        rows = (BLOCK_ROWS * block, min(BLOCK_ROWS * (block + 1), ROWS) - 1)
        place = (f"{ROUND}/{name}", rows, file.relative_to(store).as_posix())
        tally.named += [(f.array, f.rows, f.path) for f in healed.found] == [place]
        count(tally, healed, damaged_blocks={block})
    return tally


def damaged_plan(bench: Bench, how: str) -> Tally:
    """A column that the plan determines is damaged: it is written again, and no row is
    extracted."""
    tally, rng = Tally(f"{how}: a column of the plan"), random.Random(f"{how} plan")
    for number in range(bench.tries):
        store = faults.copy_store(bench.finished, bench.folder / f"{how} plan {number}")
        file = faults.object_file(store, rng.choice(faults.PLAN_ARRAYS), 0)
        faults.damage(file, how, rng)
        healed = faults.heal(store, bench.expected)
        tally.named += [f.path for f in healed.found] == [file.relative_to(store).as_posix()]
        count(tally, healed, damaged_blocks=set())
    return tally


def lost_metadata(bench: Bench) -> Tally:
    """A zarr.json below the root is lost."""
    tally, rng = Tally("lost: a zarr.json"), random.Random(0)
    files = sorted(f.relative_to(bench.finished) for f in bench.finished.rglob("*/zarr.json"))
    for number in range(bench.tries):
        store = faults.copy_store(bench.finished, bench.folder / f"metadata {number}")
        file = rng.choice([f for f in files if f.as_posix() != "hierarchy/zarr.json"])
        (store / file).unlink()
        healed = faults.heal(store, bench.expected)
        tally.named += [f.path for f in healed.found] == [file.as_posix()]
        count(tally, healed, damaged_blocks=set())
    return tally


def unhurt(bench: Bench, fault: str, do: Callable[[Path], None]) -> Tally:
    """Something happens to a finished store that must not matter."""
    tally = Tally(fault)
    for number in range(bench.tries):
        store = faults.copy_store(bench.finished, bench.folder / f"{fault} {number}")
        do(store)
        count(tally, faults.heal(store, bench.expected), damaged_blocks=set())
    return tally


def leave_partial_files(store: Path) -> None:
    """In every folder."""
    for folder in [path for path in store.rglob("*") if path.is_dir()]:
        (folder / "0.1234abcd.partial").write_bytes(b"half of somet")


def jumping_clock(bench: Bench) -> Tally:
    """The wall clock jumps by years during an extraction."""
    tally = Tally("clock that jumps")
    for number in range(bench.tries):
        store = bench.folder / f"clock {number}"
        with faults.jumping_clock(number):
            run_small(store)
            count(tally, faults.heal(store, bench.expected), damaged_blocks=set())
    return tally


def count(tally: Tally, healed: faults.Healed, *, damaged_blocks: set[int]) -> None:
    """Add one try."""
    repaired = {int(entry.split(" block ")[1].split(",")[0]) for entry in healed.unmarked}
    tally.tries += 1
    tally.right_at_once += not healed.found
    tally.repaired += len(repaired & damaged_blocks)
    tally.needless += len(repaired - damaged_blocks)
    tally.right += healed.right


if __name__ == "__main__":
    main()
