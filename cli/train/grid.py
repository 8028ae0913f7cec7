"""`lenstrain fit` for several combinations of family, model layers and target F1."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from typer import Exit

from .. import console
from ..meter import Meter
from ..runlog import RunLog
from . import grades

if TYPE_CHECKING:
    from lenstrain.data.dataset import LensDataset
    from lenstrain.sweeps.grid import Engine, Grid, GridProgress, GridResult


def fit_combinations(
    grid: Grid,
    out: Path,
    *,
    engine: Callable[[LensDataset], Engine],
    overwrite: bool,
    log_json: bool,
    json: bool,
    debug: bool,
) -> None:
    """Fit a grid and show what came of it; exit code 1 if any of it failed.

    Parameters
    ----------
    engine : gives the engine for the store of the grid, once that is open.
    """
    from lenstrain.pack.folder import none_for_nan
    from lenstrain.settings import settings_to_json
    from lenstrain.sweeps.grid import fit_grid

    asked = {"store": grid.store, "settings": settings_to_json(grid.settings)}
    asked |= {
        name: getattr(grid, name) for name in ("families", "targets", "model_layers", "concepts")
    }
    log = RunLog("fit", out, to_stderr=log_json, **asked)
    start = time.perf_counter()
    try:
        with log, Meter(log).running() as meter:
            dataset = grid.open()
            tell_left_out(dataset)
            grades.tell_evidence(dataset, grid.concepts, meter.say)
            result = fit_grid(
                grid,
                out,
                dataset=dataset,
                engine=engine(dataset),
                overwrite=overwrite,
                on_progress=lambda progress: _show_progress(meter, progress),
            )
            rows = none_for_nan(_rows(result))
            failed = {name: console.one_line(error) for name, error in result.failures.items()}
            log.result(packs=rows, failed=failed, best=result.best)
    except KeyboardInterrupt:
        console.note(
            f"interrupted: packs that were finished are kept in {out}, "
            "run the same again for the others"
        )
        raise Exit(130) from None
    elapsed = time.perf_counter() - start
    if json:
        found = {"elapsed_s": elapsed, "best": result.best, "packs": rows, "failed": failed}
        console.print_json(found)
    else:
        _show(result, out, elapsed)
    for reason in dict.fromkeys(failed.values()):
        names = ", ".join(name for name, each in failed.items() if each == reason)
        console.err().print(f"[bold red]error:[/] {names}: {escape(reason)}")
    if debug and result.failures:
        raise next(iter(result.failures.values()))
    if failed:
        raise Exit(1)


def tell_left_out(dataset: LensDataset) -> None:
    """Name the rounds that a fit does not read because they are not finished."""
    for name in dataset.rounds_left_out:
        console.note(
            f"left out: {name} is not finished, run the `lenscache extract --top-up` that "
            "began it again"
        )


def _show_progress(meter: Meter, progress: GridProgress) -> None:
    running = [
        f"{label}: {each.stage} {each.done} of {each.total}"
        for label, each in progress.running.items()
    ]
    meter.update(
        "fitting combinations",
        progress.done,
        progress.total,
        "packs",
        note="; ".join(running),
        running=running,
    )


def _rows(result: GridResult) -> list[dict[str, Any]]:
    calibration = result.calibration_scores()
    return [
        {
            "name": pack.name,
            "out": str(pack.folder),
            "family": pack.settings.family,
            "target_f1": pack.settings.target_f1,
            "model_layers": pack.settings.model_layers,
            "kept": pack.kept,
            "elapsed_s": pack.elapsed_s,
            "calibration_score": calibration[pack.name],
            **pack.summary,
        }
        for pack in result.packs
    ]


def _show(result: GridResult, out: Path, elapsed: float) -> None:
    best, calibration = result.best, result.calibration_scores()
    columns = "lenses, graduated, A, B, C, ungraded, calibration, test F1, score, samples, seconds"
    table = console.make_table("combination", *columns.split(", "))
    table.columns[0].overflow = "fold"  # two combinations may differ in the last letter
    for pack in result.packs:
        summary = pack.summary
        cells = [*(str(summary[name]) for name in ("n_lenses", "graduated"))]
        cells += [str(summary["grades"][grade]) for grade in ("A", "B", "C", "ungraded")]
        f1, score = (grades.figure(summary[f"mean_{name}"]) for name in ("test_f1", "score"))
        samples = grades.figure(summary["mean_samples"], 1)
        chosen_by = f"{grades.figure(calibration[pack.name], 3)}{'*' if pack.name == best else ' '}"
        seconds = f"{pack.elapsed_s:.0f}{'=' if pack.kept else ' '}"
        table.add_row(pack.name, *cells, chosen_by, f1, score, samples, seconds)
    if result.packs:
        console.out().print(table)
        console.say(
            "calibration: mean score on the calibration split, * the highest. Choose by it alone: "
            "other figures are of the test split, and promise too much of a pack that was chosen "
            "by them. Text lenses are judged on other vectors and not compared. seconds: of the "
            "pass that fitted all targets of a family and its model layers; = was there already",
            style="dim",
        )
    kept, failed = sum(pack.kept for pack in result.packs), len(result.failures)
    line = f"{len(result.packs)} packs in {out}, {kept} of them kept as they were; {elapsed:.0f} s"
    console.say(f"{line}; {failed} failed" if failed else line)
    for reason in dict.fromkeys(
        reason for pack in result.packs for reason in pack.summary["skipped"].values()
    ):
        console.note(f"left out: {reason}")
