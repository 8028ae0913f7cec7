"""How large a store is: bytes of its activations against raw bfloat16 and against float32 in
compressed .npz.

    python benchmarks/size.py [STORE] [--quick]

Reads a finished store (demo/store.zarr, as `make demo` leaves it, unless another is named) and
writes the same activations with numpy, in memory. --quick takes every tenth model layer.
"""

from __future__ import annotations

import argparse
import io
import statistics

import numpy as np

from lenscache.errors import LenscacheError
from lenscache.store.store import open_store
from lenscache.store.summary import stored_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", nargs="?", default="demo/store.zarr")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    try:
        store = open_store(arguments.store)
    except LenscacheError as error:
        raise SystemExit(f"{error}; `make demo` makes {arguments.store}") from None
    model_layers = store.header.model_layers[:: 10 if arguments.quick else 1]
    against_raw, against_npz, totals = [], [], np.zeros(3)
    for phase in store.header.phases:
        for model_layer in model_layers:
            values = np.concatenate([r.read(phase, model_layer) for r in store.rounds()])
            stored = sum(stored_bytes(r, phase, model_layer) for r in store.rounds())
            raw, npz = 2 * values.size, npz_bytes(values.astype(np.float32))
            totals += stored, raw, npz
            against_raw.append(stored / raw)
            against_npz.append(stored / npz)
    print(
        f"{arguments.store}: {len(against_raw)} activation arrays of {len(values)} rows x "
        f"{values.shape[1]}"
    )
    print(
        f"store {totals[0] / 1e6:.1f} MB, raw bfloat16 {totals[1] / 1e6:.1f} MB, float32 .npz "
        f"{totals[2] / 1e6:.1f} MB"
    )
    for name, ratios in (("raw bfloat16", against_raw), ("float32 .npz", against_npz)):
        low, *_, high = sorted(ratios)
        print(
            f"store / {name}: median {statistics.median(ratios):.3f}, {low:.3f} to {high:.3f} over "
            "arrays"
        )


def npz_bytes(values: np.ndarray) -> int:
    """Size of `np.savez_compressed`."""
    file = io.BytesIO()
    np.savez_compressed(file, activations=values)
    return file.getbuffer().nbytes


if __name__ == "__main__":
    main()
