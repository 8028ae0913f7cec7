"""What several targets in one pass cost beside a single fit: `lenstrain sweep` against `lenstrain fit`.

    python benchmarks/sweep.py [--store STORE] [--quick] [--json FILE]

Both sides in one process, in turns, on one dataset: a fit at the highest target, and a pass for four targets that ends
with a pack for each, checks included. Without --store, on a planted store (planted.py).

PREDICTED: 1.1; the iterations are the same, and three more packs have to be measured and checked.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from planted import Planting, plant

from lenstrain.dataset import LensDataset, open_dataset
from lenstrain.settings import FitSettings
from lenstrain.training import train_targets

TARGETS = [0.80, 0.85, 0.90, 0.95]
GOAL = 1.3


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a finished store; default: one planted for the purpose")
    parser.add_argument("--quick", action="store_true", help="75 concepts and 3 turns rather than 500 and 5")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store
        if store is None:
            store = Path(folder) / "s.zarr"
            plant(store, Planting.of_size(75 if arguments.quick else 500))
        dataset = open_dataset(store)
        ratios = []
        for turn in range(3 if arguments.quick else 5):
            single, sweep = seconds(dataset, TARGETS[-1:]), seconds(dataset, TARGETS)
            ratios.append(sweep / single)
            print(f"turn {turn + 1}: fit {single:.1f} s, sweep of {len(TARGETS)} targets {sweep:.1f} s", flush=True)
    median = float(np.median(ratios))
    verdict = "holds" if median <= GOAL else "DOES NOT HOLD"
    print(f"sweep / fit: {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), at most {GOAL}: {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"sweep_vs_fit": median, "spread": [min(ratios), max(ratios)]}, indent=1))


def seconds(dataset: LensDataset, targets: list[float]) -> float:
    """One pass for some targets."""
    start = time.perf_counter()
    train_targets(dataset, FitSettings(), targets)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
