"""Why activations are encoded as they are: size and speed of Blosc-zstd by chunk, order, level,
shuffle and block size.

    python benchmarks/codecs.py [--store PATH] [--quick]

Encodes the rows of a finished store (demo/store.zarr, as `make demo` leaves it, unless another is
named) chunk by chunk in one thread, full chunks only, without files. One choice is changed at a
time; the first line is the reference. The last column is the size of rows that are not NaN, which
counts for a model that always writes something.

Nothing was predicted in writing. The reference was chosen on one store of one small model
(SmolLM2-135M) by trying about sixty combinations and keeping the small and fast ones, and is
measured on that same store, so differences of 0.005 should be checked on another model. There,
without NaN: chunks of 256 rows 0.008 larger than those of 227, which fill one Blosc block; level 3
0.005 larger and half as fast to encode; level 7 0.004 smaller and thirty times slower; row-major
order 0.009 larger, but 0.016 smaller where a twentieth of all rows is NaN. A likely reason, not
tested: zstd codes up to 128 KiB with one table, which a Blosc block of 256 KiB fills once with
either byte of the values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
from numcodecs.blosc import Blosc

from lenscache.errors import LenscacheError
from lenscache.store.store import Store, open_store

SHUFFLE = {"shuffle": 1, "bitshuffle": 2}


@dataclass(frozen=True)
class Choice:
    """One way to encode a chunk."""

    rows: int
    block: int = 2**18
    level: int = 1
    shuffle: str = "shuffle"
    order: str = "hidden-major"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="demo/store.zarr")
    parser.add_argument("--quick", action="store_true", help="two model layers instead of five")
    arguments = parser.parse_args()
    try:
        store = open_store(arguments.store)
    except LenscacheError as error:
        raise SystemExit(f"{error}; `make demo` makes {arguments.store}") from None
    model_layers = store.header.model_layers[
        :: -(-len(store.header.model_layers) // (2 if arguments.quick else 5))
    ]
    arrays = [
        read_all(store, phase, model_layer)
        for phase in store.header.phases
        for model_layer in model_layers
    ]
    present = [values[(values & 0x7FFF != 0x7FC0).any(axis=1)] for values in arrays]
    best = Choice(rows=2**18 // (2 * store.header.hidden))
    choices = [
        best,
        *(replace(best, rows=rows) for rows in (128, 256, 512, 1024)),
        *(replace(best, block=2**power) for power in (16, 17, 19, 20)),
        *(replace(best, level=level) for level in (2, 3, 5, 7)),
        replace(best, shuffle="bitshuffle"),
        replace(best, order="row-major"),
        replace(best, rows=256, level=3),
        replace(best, rows=256, order="row-major"),
    ]
    print(
        f"{'rows':>5}  {'block':>8}  level  {'shuffle':10}  {'order':12}  size  encode  decode "
        "MB/s  without NaN"
    )
    for choice in choices:
        size, encode, decode = measure(choice, arrays)
        print(
            f"{choice.rows:5}  {choice.block:8}  {choice.level:5}  {choice.shuffle:10}  "
            f"{choice.order:12}  {size:.3f}  "
            f"{encode:6.0f}  {decode:6.0f}       {measure(choice, present)[0]:.3f}",
            flush=True,
        )


def read_all(store: Store, phase: str, model_layer: int) -> np.ndarray:
    """(rows, hidden) of all rounds, as bits."""
    return np.concatenate([r.read(phase, model_layer) for r in store.rounds()]).view(np.uint16)


def measure(choice: Choice, arrays: list[np.ndarray]) -> tuple[float, float, float]:
    """Encoded size over raw size, and the median MB/s of encoding and decoding a chunk."""
    codec = Blosc("zstd", choice.level, SHUFFLE[choice.shuffle], blocksize=choice.block)
    stored, raw, encoding, decoding = 0, 0, [], []
    for values in arrays:
        for start in range(0, len(values) - choice.rows + 1, choice.rows):
            chunk = values[start : start + choice.rows]
            chunk = np.ascontiguousarray(chunk.T if choice.order == "hidden-major" else chunk)
            begin = time.perf_counter()
            encoded = codec.encode(chunk)
            middle = time.perf_counter()
            codec.decode(encoded, np.empty_like(chunk))
            encoding.append(chunk.nbytes / 1e6 / (middle - begin))
            decoding.append(chunk.nbytes / 1e6 / (time.perf_counter() - middle))
            stored, raw = stored + len(encoded), raw + chunk.nbytes
    if not raw:
        return float("nan"), float("nan"), float("nan")
    return stored / raw, statistics.median(encoding), statistics.median(decoding)


if __name__ == "__main__":
    main()
