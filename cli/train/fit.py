"""Fit lenses: for one target, for several, for a grid of settings, or while extraction goes on."""

from __future__ import annotations

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console, options
from ..meter import Meter
from ..options import Engine
from ..runlog import RunLog
from . import lenses
from .grid import fit_combinations, tell_left_out


class Phase(StrEnum):
    """Choices of --phase."""

    both = "both"
    prompt = "prompt"
    completion = "completion"


class Validation(StrEnum):
    """Choices of --validation."""

    advisory = "advisory"
    blocking = "blocking"
    falloff = "falloff"


class MinGrade(StrEnum):
    """Choices of --min-grade."""

    A = "A"
    B = "B"


class Family(StrEnum):
    """Choices of --family."""

    linear = "linear"
    mlp = "mlp"
    mean_difference = "mean-difference"
    ensemble = "ensemble"
    text = "text"


_SCHEDULE, _TEXT, _ENGINE = "Schedule", "Text lenses", "Where to fit"


@console.reports_errors
def fit(
    store: options.StorePath,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write the lens pack to; of several combinations, a folder of packs."
        ),
    ],
    f1: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0, max=1.0, help="Test F1 at which a lens graduates; repeatable. Default: 0.95."
        ),
    ] = None,
    family: Annotated[
        list[Family] | None, typer.Option(help="What a lens is; repeatable. Default: linear.")
    ] = None,
    level: options.Levels = None,
    model_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="0,5,10-15",
            help=(
                "Transformer blocks to choose from, a concept at a time; repeatable. Default: all."
            ),
        ),
    ] = None,
    phase: Annotated[Phase, typer.Option(help="Vectors to train on.")] = Phase.both,
    concept: Annotated[
        list[str] | None, typer.Option(help="Concept id; repeatable. Default: all extracted.")
    ] = None,
    labels: options.Labels = None,
    validation: Annotated[
        Validation,
        typer.Option(
            help="Whether a low grade holds graduation back: never, always, or less and less."
        ),
    ] = Validation.advisory,
    min_grade: Annotated[
        MinGrade, typer.Option(help="Grade that blocking validation asks for.")
    ] = MinGrade.B,
    fpr: options.Fpr = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Fit lenses that others outrank once more, against those concepts."
        ),
    ] = False,
    c: Annotated[
        float | None,
        typer.Option("--C", help="Inverse L2 strength. Default: chosen for each concept."),
    ] = None,
    seed: options.Seed = 0,
    jobs: options.Jobs = None,
    device: Annotated[str, typer.Option(help="Where to solve: cpu, cuda, cuda:1 ...")] = "cpu",
    initial_samples: Annotated[
        int,
        typer.Option(
            min=1, help="Positive training samples to start with.", rich_help_panel=_SCHEDULE
        ),
    ] = 5,
    first_increment: Annotated[
        int,
        typer.Option(
            min=1, help="Samples added at the second iteration.", rich_help_panel=_SCHEDULE
        ),
    ] = 5,
    increment: Annotated[
        int,
        typer.Option(min=1, help="Samples added at later iterations.", rich_help_panel=_SCHEDULE),
    ] = 10,
    max_samples: Annotated[
        int,
        typer.Option(min=1, help="Positive training samples at most.", rich_help_panel=_SCHEDULE),
    ] = 200,
    min_iterations: Annotated[
        int, typer.Option(min=1, help="Fits of one concept at least.", rich_help_panel=_SCHEDULE)
    ] = 1,
    max_iterations: Annotated[
        int, typer.Option(min=1, help="Fits of one concept at most.", rich_help_panel=_SCHEDULE)
    ] = 50,
    min_test_samples: Annotated[
        int,
        typer.Option(
            min=1, help="Positive test samples that graduation asks for.", rich_help_panel=_SCHEDULE
        ),
    ] = 1,
    max_overfit_gap: Annotated[
        float,
        typer.Option(
            min=0.0, help="Largest train minus test F1 at graduation.", rich_help_panel=_SCHEDULE
        ),
    ] = 0.10,
    beyond: Annotated[
        bool,
        typer.Option(
            "--beyond/--no-beyond",
            rich_help_panel=_SCHEDULE,
            help=(
                "Go on after graduation for the record, as other validation modes would have: see "
                "lenstrain impact."
            ),
        ),
    ] = True,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Train lenses that read what the model wrote, too.",
            rich_help_panel=_TEXT,
        ),
    ] = False,
    text_f1: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Test F1 at which they graduate.", rich_help_panel=_TEXT
        ),
    ] = 0.80,
    text_initial_samples: Annotated[
        int | None, typer.Option(min=1, help="Default: as above.", rich_help_panel=_TEXT)
    ] = None,
    text_increment: Annotated[
        int | None, typer.Option(min=1, help="Default: as above.", rich_help_panel=_TEXT)
    ] = None,
    text_max_samples: Annotated[
        int | None, typer.Option(min=1, help="Default: as above.", rich_help_panel=_TEXT)
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Start while extract still runs, and end when the store is complete."
        ),
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            min=1, metavar="SECONDS", help="With --follow: how long to wait for the next block."
        ),
    ] = 900,
    engine: Annotated[
        Engine,
        typer.Option(
            help="This process, or the workers of a Ray cluster.", rich_help_panel=_ENGINE
        ),
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=_ENGINE,
            help=(
                "With ray: fits at a time. Default: one for every 8 cores, or for every GPU with "
                "--device cuda."
            ),
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ENGINE,
            help="With ray: a running cluster, or auto. Default: one for this run, here.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace lens packs that are at --out.")
    ] = False,
    log_json: options.LogJson = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit a graded lens for every concept in STORE and write them to a lens pack.

    With several targets, families or sets of model layers: a pack for each combination, in a folder
    of its own, and a table. Packs that are there already and would be written again just so are
    kept.
    """
    from lenstrain.fit.follow import FollowSettings, fit_following
    from lenstrain.fit.train import text_settings
    from lenstrain.metrics.score import Grade
    from lenstrain.pack.folder import check_output, none_for_nan
    from lenstrain.settings import FitSettings, settings_to_json
    from lenstrain.sweeps.grid import Grid, fit_one

    if engine is Engine.ray:
        from lenstrain.sweeps.ray import require_ray

        require_ray()
    elif workers or address:
        raise typer.BadParameter(
            "--workers and --address are for --engine ray: add it, or leave them out"
        )
    settings = FitSettings(
        max_overfit_gap=max_overfit_gap,
        initial_samples=initial_samples,
        first_increment=first_increment,
        increment=increment,
        max_samples=max_samples,
        min_iterations=min_iterations,
        max_iterations=max_iterations,
        min_test_samples=min_test_samples,
        validation=validation.value,
        min_grade=Grade(min_grade.value),
        C=c,
        fpr=fpr,
        beyond_graduation=beyond,
        phase=phase.value,
        seed=seed,
        device=device,
    )
    schedule = {
        "initial_samples": text_initial_samples,
        "increment": text_increment,
        "max_samples": text_max_samples,
    }
    changed = {name: value for name, value in schedule.items() if value is not None}
    grid = Grid(
        store,
        settings,
        families=tuple(each.value for each in family or [Family.linear]),
        targets=tuple(f1 or [0.95]),
        model_layers=tuple(options.parse_model_layers(each) for each in model_layers or ["all"]),
        levels=None if level is None else tuple(level),
        labels=labels,
        concepts=None if concept is None else tuple(concept),
        text=text_settings(settings, text_f1, **changed) if text else None,
        refine=refine,
    )
    if follow and (engine is Engine.ray or not grid.is_single):
        raise typer.BadParameter(
            "--follow fits one combination in this process: leave --engine and all others out"
        )
    fits_on = partial(_engine, engine, workers, address, jobs)
    if not grid.is_single:
        fit_combinations(
            grid,
            out,
            engine=fits_on,
            overwrite=overwrite,
            log_json=log_json,
            json=json,
            debug=debug,
        )
        return
    check_output(out, overwrite=overwrite)
    start, its = time.perf_counter(), grid.cells[0].settings
    log = RunLog(
        "fit",
        out,
        to_stderr=log_json,
        store=store,
        settings=settings_to_json(its),
        concepts=concept,
    )
    with log, Meter(log).running() as meter:
        if follow:
            pack = fit_following(
                store,
                out,
                its,
                levels=level,
                concepts=concept,
                labels=labels,
                text=grid.text,
                refine=refine,
                jobs=jobs,
                overwrite=overwrite,
                waiting=FollowSettings(patience_s=patience),
                on_progress=lambda p: _show_following(meter, p),
            )
        else:
            dataset = grid.open()
            tell_left_out(dataset)
            pack = fit_one(
                grid,
                out,
                engine=fits_on(dataset),
                overwrite=overwrite,
                on_progress=partial(_show_progress, meter),
            )
        log.result(**none_for_nan(pack.summary()))
    elapsed = time.perf_counter() - start
    if json:
        console.print_json(none_for_nan({"out": str(out), "elapsed_s": elapsed, **pack.summary()}))
        return
    for reason in pack.skipped.values():
        console.err().print(f"left out: {reason}", markup=False)
    console.out().print(
        f"{lenses.summary_line(pack)}; {elapsed:.0f} s", markup=False, soft_wrap=True
    )
    lenses.print_warnings(pack)
    console.out().print(
        f"written to {out}; next: lenstrain show {out}", markup=False, soft_wrap=True
    )


@console.reports_errors
def sweep(
    store: options.StorePath,
    out: Annotated[
        Path, typer.Option(help="Folder to write the lens packs to, one folder a target.")
    ],
    f1: Annotated[
        list[float], typer.Option(min=0.0, max=1.0, help="Test F1 to graduate at; repeatable.")
    ],
    family: Annotated[Family, typer.Option(help="What a lens is.")] = Family.linear,
    level: options.Levels = None,
    model_layers: options.FitModelLayers = None,
    phase: Annotated[Phase, typer.Option(help="Vectors to train on.")] = Phase.both,
    concept: Annotated[
        list[str] | None, typer.Option(help="Concept id; repeatable. Default: all extracted.")
    ] = None,
    labels: options.Labels = None,
    validation: Annotated[Validation, typer.Option(help="As for fit.")] = Validation.advisory,
    fpr: options.Fpr = None,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Positive training samples at most.")
    ] = 200,
    seed: options.Seed = 0,
    jobs: options.Jobs = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace lens packs that are there.")
    ] = False,
    log_json: options.LogJson = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit lenses for several targets in one pass over STORE: a pack for each, and a table."""
    from lenstrain.data.dataset import open_dataset
    from lenstrain.fit.train import train_targets
    from lenstrain.pack.folder import check_output, none_for_nan
    from lenstrain.settings import FitSettings, settings_to_json

    targets = sorted(dict.fromkeys(f1))
    folders = [out / f"f1-{target:g}" for target in targets]
    for folder in folders:
        check_output(folder, overwrite=overwrite)
    settings = FitSettings(
        target_f1=targets[-1],
        validation=validation.value,
        max_samples=max_samples,
        phase=phase.value,
        fpr=fpr,
        family=family.value,
        model_layers=options.parse_model_layers(model_layers),
        seed=seed,
    )
    start = time.perf_counter()
    dataset = open_dataset(store, levels=level, phase=phase.value, seed=seed, labels=labels)
    tell_left_out(dataset)
    log = RunLog(
        "sweep",
        out,
        to_stderr=log_json,
        store=store,
        targets=targets,
        settings=settings_to_json(settings),
    )
    with log, Meter(log).running() as meter:
        packs = train_targets(
            dataset,
            settings,
            targets,
            concepts=concept,
            jobs=jobs,
            on_progress=partial(_show_progress, meter),
        )
        for folder, pack in zip(folders, packs, strict=True):
            pack.save(folder, overwrite=overwrite)
        log.result(
            packs={
                str(folder): none_for_nan(pack.summary())
                for folder, pack in zip(folders, packs, strict=True)
            }
        )
    elapsed = time.perf_counter() - start
    if json:
        rows = [
            {"target_f1": target, "out": str(folder), **pack.summary()}
            for target, folder, pack in zip(targets, folders, packs, strict=True)
        ]
        console.print_json(none_for_nan({"elapsed_s": elapsed, "packs": rows}))
        return
    console.out().print(_sweep_table(targets, packs))
    for reason in packs[0].skipped.values():
        console.err().print(f"left out: {reason}", markup=False)
    written = ", ".join(str(folder) for folder in folders)
    console.out().print(f"{elapsed:.0f} s; written to {written}", markup=False, soft_wrap=True)


def _engine(
    engine: Engine, workers: int | None, address: str | None, jobs: int | None, dataset: Any
) -> Any:
    if engine is Engine.ray:
        from lenstrain.sweeps.ray import RayEngine

        return RayEngine(workers, address, jobs)
    from lenstrain.sweeps.grid import LocalEngine

    return LocalEngine(dataset, jobs)


def _show_following(meter: Meter, progress: Any) -> None:
    if progress.fit is None:
        meter.update(
            f"following, {progress.lenses} lenses",
            progress.blocks_done,
            progress.blocks_total,
            "blocks",
        )
    else:
        _show_progress(meter, progress.fit)


def _show_progress(meter: Meter, progress: Any) -> None:
    counted = " ".join(f"{number} {grade}" for grade, number in progress.grades)
    note = f"{progress.graduated} graduated, {counted}" if counted else ""
    meter.update(
        progress.stage,
        progress.done,
        progress.total,
        progress.unit,
        note=note,
        graduated=progress.graduated,
        grades=dict(progress.grades),
    )


def _sweep_table(targets: list[float], packs: list[Any]) -> Any:
    table = console.make_table(
        "target F1",
        "lenses",
        "graduated",
        "A",
        "B",
        "C",
        "test F1",
        "score",
        "samples",
        "iterations",
        "hungry",
    )
    for target, pack in zip(targets, packs, strict=True):
        summary = pack.summary()
        table.add_row(
            f"{target:.2f}",
            str(summary["n_lenses"]),
            str(summary["graduated"]),
            *(str(summary["grades"][grade]) for grade in "ABC"),
            f"{summary['mean_test_f1']:.2f}",
            f"{summary['mean_score']:.2f}",
            f"{summary['mean_samples']:.1f}",
            f"{summary['mean_iterations']:.1f}",
            str(len(summary["hungry"])),
        )
    return table
