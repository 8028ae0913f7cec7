"""What several targets in one pass cost beside a single fit, and what a grid costs on Ray beside
this process.

    python benchmarks/sweep.py [--store STORE] [--ray] [--quick] [--json FILE]

Sweep: both sides in one process, in turns, on one dataset: a fit at the highest target, and a pass
for four targets that ends with a pack for each, checks included. Without --store, on a planted
store (planted.py).

With --ray (extra `ray`), then: a grid of two families, two sets of model layers and four targets,
which is four passes, by the local engine and by 1 and 2 Ray workers that share the same cores, in
turns. Ray is started, and its workers have loaded what they need, before the clock runs; opening
the store and writing the packs count on both sides.

PREDICTED, sweep: 1.1; the iterations are the same, and three more packs have to be measured and
checked.
PREDICTED, Ray: with 1 worker 1.05 of the local engine, as each pass opens the store anew and its
packs are copied; with 2 workers on 2 cores 0.8, as Python runs one thread at a time and two
processes do not wait for each other; with 2 on 1 core 1.1.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from planted import Planting, plant

from lenstrain.data.dataset import LensDataset, open_dataset
from lenstrain.fit.train import train_targets
from lenstrain.settings import FitSettings
from lenstrain.sweeps.grid import Engine, Grid, LocalEngine, fit_grid
from lenstrain.sweeps.ray import RayEngine

TARGETS = [0.80, 0.85, 0.90, 0.95]
GOAL = 1.3


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, help="a finished store; default: one planted for the purpose"
    )
    parser.add_argument("--ray", action="store_true", help="the grid on Ray, too")
    parser.add_argument(
        "--quick", action="store_true", help="75 concepts and 3 turns rather than 500 and 5"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    n_turns = 3 if arguments.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store
        if store is None:
            store = Path(folder) / "s.zarr"
            plant(store, Planting.of_size(75 if arguments.quick else 500))
        dataset = open_dataset(store)
        ratios = []
        for turn in range(n_turns):
            single, sweep = seconds(dataset, TARGETS[-1:]), seconds(dataset, TARGETS)
            ratios.append(sweep / single)
            print(
                (
                    f"turn {turn + 1}: fit {single:.1f} s, sweep of {len(TARGETS)} targets "
                    f"{sweep:.1f} s"
                ),
                flush=True,
            )
        on_ray = compare_engines(store, n_turns) if arguments.ray else {}
    median = float(np.median(ratios))
    verdict = "holds" if median <= GOAL else "DOES NOT HOLD"
    print(
        f"sweep / fit: {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), at most {GOAL}: "
        f"{verdict}"
    )
    for workers, found in on_ray.items():
        print(
            f"Ray, {workers} workers / local: {np.median(found):.2f} ({min(found):.2f} to "
            f"{max(found):.2f})"
        )
    if arguments.json:
        figures = {
            "sweep_vs_fit": median,
            "spread": [min(ratios), max(ratios)],
            "ray_vs_local": on_ray,
        }
        arguments.json.write_text(json.dumps(figures, indent=1))


def compare_engines(store: Path, n_turns: int) -> dict[int, list[float]]:
    """For 1 and 2 Ray workers, the time of a grid in that of the local engine, turn by turn."""
    # the two mean the same to a fit, but are two combinations of the grid
    sets = (None, tuple(open_dataset(store).model_layers))
    grid = Grid(
        str(store), FitSettings(), ("linear", "mean-difference"), tuple(TARGETS), model_layers=sets
    )
    ratios: dict[int, list[float]] = {1: [], 2: []}
    with RayEngine(workers=max(ratios)).connected():
        # the workers load what they need before the clock runs
        grid_seconds(replace(grid, families=("mean-difference",)), RayEngine(workers=max(ratios)))
        for turn in range(n_turns):
            local = grid_seconds(grid, LocalEngine(grid.open()))
            spent = {workers: grid_seconds(grid, RayEngine(workers=workers)) for workers in ratios}
            for workers, time_s in spent.items():
                ratios[workers].append(time_s / local)
            print(
                (
                    f"turn {turn + 1}: local {local:.1f} s, Ray {spent[1]:.1f} s, {spent[2]:.1f} s "
                    "with 2"
                ),
                flush=True,
            )
    return ratios


def grid_seconds(grid: Grid, engine: Engine) -> float:
    """A grid, written."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = fit_grid(grid, Path(folder), dataset=grid.open(), engine=engine)
        spent = time.perf_counter() - start
        if result.failures:
            raise next(iter(result.failures.values()))
        return spent


def seconds(dataset: LensDataset, targets: list[float]) -> float:
    """One pass for some targets."""
    start = time.perf_counter()
    train_targets(dataset, FitSettings(family="linear"), targets)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
