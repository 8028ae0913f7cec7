"""What a store costs: its size, how fast it is read and written, and what a small read touches.

    python benchmarks/store.py [--store PATH] [--quick] [--json FILE]

Four comparisons, on a finished store (demo/store.zarr, as `make demo` leaves it, unless another is
named):

size    bytes of every activation array beside the same values as raw bfloat16 .npy, as float32 .npz
        and as float32 compressed .npz; must be at most 0.70 of raw bfloat16 in all
read    all rows of one array through `Round.read`, beside zarr alone, tensorstore on the same
        files, and `np.load` of the same values as raw bfloat16; the page cache is warm. Must be at
        least 500 MB/s of decoded values, which is judged on the generated stores below and not on
        the store itself, whose arrays may be small
touch   objects and bytes that are asked for by reads of 256 rows at random places, beside the
        chunks they lie in
write   the same rows as sixteen arrays through `Round.write_block`, which checks, encodes and marks

A small store says little about speed, so read and write are repeated on generated ones, of the
store's own hidden size and of 2560. Their rows are rows of the store: model layers below each
other, and side by side where the hidden size is larger. That compresses as the source does, since a
Blosc block is compressed by itself and finds no repeated rows.

The sides take turns inside one process; the table gives medians over turns with the lowest and the
highest. On a machine that does other work, compare the ratios. ZARR_ASYNC__CONCURRENCY and
ZARR_THREADING__MAX_WORKERS in the environment try other numbers of threads. --quick takes every
tenth model layer, smaller generated stores and fewer turns; only without it is the exit status 1
where a bound does not hold.

Predicted before the first run, with hidden-major chunks of 256 rows: size 0.70 of raw; `Round.read`
300 MB/s at hidden size 576 and 500 at 2560, a tenth of `np.load` and a third of tensorstore; no
object touched that is not needed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from zarr.storage import LocalStore, WrapperStore

from lenscache.concepts.plan import SamplePlan
from lenscache.errors import LenscacheError
from lenscache.store.round import Block, Round
from lenscache.store.store import Store, open_store
from lenscache.store.summary import stored_bytes
from lenscache.terms import Phase

MAX_SIZE = 0.70
MIN_READ_RATE = 500
"""MB/s of decoded values."""
ROWS_READ = 256
LARGE_HIDDEN = 2560
WRITTEN_LAYERS = 16
SEED = 0


@dataclass(frozen=True)
class Size:
    """Bytes of one array, four times."""

    phase: str
    model_layer: int
    stored: int
    raw: int
    """bfloat16 in .npy"""
    npz: int
    npz_compressed: int


@dataclass(frozen=True)
class Speed:
    """MB/s of decoded values, over turns."""

    what: str
    side: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Touch:
    """What reads of a few consecutive rows ask for, means over reads."""

    what: str
    objects: float
    needed_objects: float
    bytes_read: float
    needed_bytes: float
    """Bytes of the chunks that the rows lie in, without any index."""
    rows_bytes: float
    """Bytes of the rows, decoded."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="demo/store.zarr")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    try:
        store = open_store(arguments.store)
    except LenscacheError as error:
        raise SystemExit(f"{error}; `make demo` makes {arguments.store}") from None
    turns, megabytes = (3, 8) if arguments.quick else (15, 40)
    sizes = measure_sizes(store, store.header.model_layers[:: 10 if arguments.quick else 1])
    print_sizes(arguments.store, sizes)
    speeds: list[Speed] = []
    touches: list[Touch] = []
    with tempfile.TemporaryDirectory() as folder:
        longest = max(store.rounds(), key=lambda r: r.n_samples)
        model_layer = store.header.model_layers[len(store.header.model_layers) // 2]
        print_speed_head()
        speeds += measure_read("the store itself", store, longest, model_layer, Path(folder), turns)
        for hidden in dict.fromkeys((store.header.hidden, LARGE_HIDDEN)):
            values = gather_rows(store, hidden, megabytes)
            what = f"{len(values)} x {hidden}"
            path = Path(folder) / str(hidden)
            made = write_store(path / "read", store, [values])
            speeds += measure_read(what, made, made.rounds()[0], 0, path, turns)
            speeds.append(measure_write(what, path, store, values, max(2, turns // 3)))
            print_speed(speeds[-1])
            touches.append(measure_touch(what, path / "read", 5 if arguments.quick else 50))
    print_touches(touches)
    held = check(sizes, speeds)
    if arguments.json:
        figures = {
            name: [asdict(row) for row in rows]
            for name, rows in (("sizes", sizes), ("speeds", speeds), ("touches", touches))
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(not held and not arguments.quick)


# --- size ---------------------------------------------------------------------------------------


def measure_sizes(store: Store, model_layers: tuple[int, ...]) -> list[Size]:
    """Every array of these model layers; the rounds of a store count as one array."""
    sizes = []
    for phase in store.header.phases:
        for model_layer in model_layers:
            values = np.concatenate([r.read(phase, model_layer) for r in store.rounds()])
            stored = sum(stored_bytes(r, phase, model_layer) for r in store.rounds())
            full = values.astype(np.float32)
            sizes.append(
                Size(
                    phase,
                    model_layer,
                    stored,
                    file_bytes(np.save, values.view(np.uint16)),
                    file_bytes(save_npz, full),
                    file_bytes(save_npz_compressed, full),
                )
            )
    return sizes


def save_npz(file: io.BytesIO, values: np.ndarray) -> None:
    """`np.savez` of one array."""
    np.savez(file, activations=values)


def save_npz_compressed(file: io.BytesIO, values: np.ndarray) -> None:
    """`np.savez_compressed` of one array."""
    np.savez_compressed(file, activations=values)


def file_bytes(save: Callable[[io.BytesIO, np.ndarray], None], values: np.ndarray) -> int:
    """Size of the file that numpy would write."""
    file = io.BytesIO()
    save(file, values)
    return file.getbuffer().nbytes


def print_sizes(name: str, sizes: list[Size]) -> None:
    """Ratios over arrays, and of the sums."""
    print(f"{name}: {len(sizes)} activation arrays, {sum(s.stored for s in sizes) / 1e6:.1f} MB\n")
    print(f"{'size':34}  {'min':>6}  {'median':>6}  {'max':>6}  {'all':>6}")
    phases = [*dict.fromkeys(s.phase for s in sizes)]
    rows: list[tuple[str, str, list[Size]]] = [
        ("raw bfloat16 .npy", "raw", [s for s in sizes if s.phase == phase]) for phase in phases
    ]
    rows += [("raw bfloat16 .npy", "raw", sizes), ("float32 .npz", "npz", sizes)]
    rows += [("float32 compressed .npz", "npz_compressed", sizes)]
    for other, key, chosen in rows:
        label = chosen[0].phase if len({s.phase for s in chosen}) == 1 else "all"
        ratios = sorted(s.stored / getattr(s, key) for s in chosen)
        total = sum(s.stored for s in chosen) / sum(getattr(s, key) for s in chosen)
        print(
            f"{f'{label} / {other}':34}  {ratios[0]:6.3f}  {statistics.median(ratios):6.3f}  "
            f"{ratios[-1]:6.3f}  {total:6.3f}"
        )


# --- speed --------------------------------------------------------------------------------------


def measure_read(
    what: str, store: Store, round_: Round, model_layer: int, folder: Path, turns: int
) -> list[Speed]:
    """One whole array, through each reader in turn. All must return the same bits."""
    phase = store.header.phases[0]
    place = f"{round_.name}/activations/{phase}/{model_layer}"
    array = zarr.open_array(store.path, path=place, mode="r")
    other = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(Path(store.path) / place)}},
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}}),
    ).result()
    saved = folder / "values.npy"
    np.save(saved, round_.read(phase, model_layer).view(np.uint16))
    sides: dict[str, Callable[[], Any]] = {
        "Round.read": lambda: round_.read(phase, model_layer),
        "zarr": lambda: np.asarray(array[:]),
        "tensorstore": lambda: other.read().result(),
        "np.load": lambda: np.load(saved),
    }
    wanted = np.load(saved)
    for side, read in sides.items():
        if not np.array_equal(np.asarray(read()).view(np.uint16), wanted):
            raise SystemExit(f"{what}: {side} reads other values than were saved")
    rates = take_turns(sides, wanted.nbytes, turns)
    speeds = [Speed(what, side, *spread(values)) for side, values in rates.items()]
    for speed in speeds:
        print_speed(speed, speeds[0])
    return speeds


def take_turns(
    sides: dict[str, Callable[[], Any]], n_bytes: int, turns: int
) -> dict[str, list[float]]:
    """MB/s of each side, turn by turn."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, work in sides.items():
            start = time.perf_counter()
            work()
            rates[side].append(n_bytes / 1e6 / (time.perf_counter() - start))
    return rates


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)


def gather_rows(store: Store, hidden: int, megabytes: int) -> np.ndarray:
    """(rows, hidden) from the store's own rows: model layers side by side, and below each other."""
    n_rows = math.ceil(megabytes * 1e6 / 2 / hidden)
    across = math.ceil(hidden / store.header.hidden)
    phase = store.header.phases[0]
    found: list[np.ndarray] = []
    for start in count(0, across):
        chosen = [
            store.header.model_layers[(start + i) % len(store.header.model_layers)]
            for i in range(across)
        ]
        wide = np.concatenate(
            [all_rows(store, phase, model_layer) for model_layer in chosen], axis=1
        )
        found.append(wide[:, :hidden])
        if sum(map(len, found)) >= n_rows:
            break
    return np.concatenate(found)[:n_rows]


def all_rows(store: Store, phase: Phase, model_layer: int) -> np.ndarray:
    """Rows of all rounds that have a position in the phase."""
    values = np.concatenate([r.read(phase, model_layer) for r in store.rounds()])
    return values[~np.isnan(values[:, 0])]


def measure_write(what: str, folder: Path, source: Store, values: np.ndarray, turns: int) -> Speed:
    """Write the rows as arrays of sixteen model layers, which share the cost of texts and marks as
    in a real store."""
    paths = (folder / f"written-{turn}" for turn in count())
    parts = np.split(values[: len(values) // WRITTEN_LAYERS * WRITTEN_LAYERS], WRITTEN_LAYERS)
    n_bytes = sum(part.nbytes for part in parts)
    rates = take_turns({"write": lambda: write_store(next(paths), source, parts)}, n_bytes, turns)
    return Speed(what, "Round.write_block", *spread(rates["write"]))


def write_store(path: Path, source: Store, values: Sequence[np.ndarray]) -> Store:
    """A store of one round and the phase `prompt`; `values` are (rows, hidden) by model layer."""
    n, hidden = values[0].shape
    model_layers = tuple(range(len(values)))
    header = replace(
        source.header,
        hidden=hidden,
        model_layers=model_layers,
        n_layers=len(model_layers),
        mode="prompt",
        max_new_tokens=0,
    )
    zarr.create_group(path, attributes=header.to_attributes())
    store = open_store(path, mode="r+")
    plan = SamplePlan(
        concepts=(),
        n_targets=0,
        texts=tuple(f"row {row}" for row in range(n)),
        kind=np.zeros(n, np.uint8),
        split=np.zeros(n, np.uint8),
        repeat=np.zeros(n, np.uint16),
        sampling_seed=np.zeros(n, np.uint64),
        temperature=np.zeros(n, np.float32),
        label_sample=np.zeros(0, np.int32),
        label_concept=np.zeros(0, np.int32),
        label_role=np.zeros(0, np.uint8),
    )
    tokens = np.full(n, 8, np.int32)
    round_ = store.create_round(
        0, 0, plan, keys=np.zeros((n, 16), np.uint8), n_prompt_tokens=tokens
    )
    for block in range(round_.n_blocks):
        rows = round_.rows(block)
        length = rows.stop - rows.start
        activations = {("prompt", m): values[m][rows] for m in model_layers}
        round_.write_block(block, Block(activations, [""] * length, np.zeros(length, np.int32)))
    return store


def print_speed_head() -> None:
    """Column names."""
    print(f"\n{'speed':18}  {'':17}  {'MB/s':>6}  {'spread':>12}  Round.read is")


def print_speed(speed: Speed, ours: Speed | None = None) -> None:
    """One line; `ours` is what its speed is compared with."""
    ratio = f"{ours.median / speed.median:.2f} of it" if ours not in (None, speed) else ""
    span = f"{speed.low:.0f} to {speed.high:.0f}"
    print(
        f"{speed.what:18}  {speed.side:17}  {speed.median:6.0f}  {span:>12}  {ratio}".rstrip(),
        flush=True,
    )


# --- touch --------------------------------------------------------------------------------------


class CountingStore(WrapperStore[Any]):
    """Counts the objects of activations that are asked for, and the bytes that come."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.reset()

    def reset(self) -> None:
        """Start again."""
        self.objects: set[str] = set()
        self.n_bytes = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """As the store below."""
        found = await super().get(key, prototype, byte_range)
        if "/activations/" in f"/{key}" and "/c/" in key:
            self.objects.add(key)
            self.n_bytes += len(found) if found is not None else 0
        return found


def measure_touch(what: str, path: Path, reads: int) -> Touch:
    """Reads of consecutive rows at random places of a store with one round and one model layer."""
    counting = CountingStore(LocalStore(path, read_only=True))
    round_ = Store(zarr.open_group(counting, mode="r"), str(path)).rounds()[0]
    array = zarr.open_array(path, path=f"{round_.name}/activations/prompt/0", mode="r")
    rng = np.random.default_rng(SEED)
    totals = np.zeros(5)
    for start in rng.integers(0, round_.n_samples - ROWS_READ, reads):
        counting.reset()
        rows = round_.read("prompt", 0, slice(int(start), int(start) + ROWS_READ))
        blocks, n_bytes = needed(path / array.path, array, range(start, start + ROWS_READ))
        totals += len(counting.objects), blocks, counting.n_bytes, n_bytes, rows.nbytes
    return Touch(what, *(totals / reads))


def needed(place: Path, array: Any, rows: range) -> tuple[int, int]:
    """Shards and bytes of the chunks that hold some rows, from the index at the end of each
    shard."""
    in_shard, chunk_rows = array.shards[0] // array.chunks[0], array.chunks[0]
    n_bytes, shards = 0, set()
    for chunk in range(rows.start // chunk_rows, (rows.stop - 1) // chunk_rows + 1):
        shard, at = divmod(chunk, in_shard)
        shards.add(shard)
        end = (place / "c" / str(shard) / "0").read_bytes()[-(16 * in_shard + 4) : -4]
        n_bytes += int(np.frombuffer(end, "<u8").reshape(-1, 2)[at, 1])
    return len(shards), n_bytes


def print_touches(touches: list[Touch]) -> None:
    """One line a store."""
    print(
        f"\n{f'reads of {ROWS_READ} rows':18}  objects  needed  kB read  kB needed  kB of the "
        "rows, decoded"
    )
    for t in touches:
        print(
            f"{t.what:18}  {t.objects:7.2f}  {t.needed_objects:6.2f}  {t.bytes_read / 1e3:7.0f}  "
            f"{t.needed_bytes / 1e3:9.0f}  {t.rows_bytes / 1e3:5.0f}"
        )


# --- what must hold -----------------------------------------------------------------------------


def check(sizes: list[Size], speeds: list[Speed]) -> bool:
    """Whether size and speed are within their bounds; speed counts on the generated stores."""
    size = sum(s.stored for s in sizes) / sum(s.raw for s in sizes)
    rate = min(s.median for s in speeds[4:] if s.side == "Round.read")
    print()
    for name, value, bound, holds in (
        ("size", f"{size:.3f} of raw bfloat16", f"at most {MAX_SIZE:.2f}", size <= MAX_SIZE),
        ("read", f"{rate:.0f} MB/s", f"at least {MIN_READ_RATE}", rate >= MIN_READ_RATE),
    ):
        print(f"{name}: {value}, {bound}: {'holds' if holds else 'DOES NOT HOLD'}")
    return size <= MAX_SIZE and rate >= MIN_READ_RATE


if __name__ == "__main__":
    main()
