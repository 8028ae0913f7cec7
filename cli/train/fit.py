"""Fit lenses: for one target, for several, for a grid of settings, or while extraction goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import BadParameter, Option

from .. import console, options
from ..meter import Meter
from ..options import Engine
from ..runlog import RunLog
from . import grades
from .grid import fit_combinations, tell_left_out

if TYPE_CHECKING:
    from lenstrain.data.dataset import LensDataset
    from lenstrain.fit.follow import FollowProgress
    from lenstrain.pack.pack import LensPack
    from lenstrain.settings import FitProgress
    from lenstrain.sweeps.grid import Engine as FitEngine
    from lenstrain.sweeps.grid import Grid

Phase = Literal["both", "prompt", "completion"]
Validation = Literal["advisory", "blocking", "falloff"]
MinGrade = Literal["A", "B"]
Threshold = Literal["auto", "f1", "accuracy", "fpr"]
# typer takes no list of literals.
Family = StrEnum(
    "Family",
    {
        "auto": "auto",
        "linear": "linear",
        "discriminant": "discriminant",
        "mlp": "mlp",
        "mean_difference": "mean-difference",
        "ensemble": "ensemble",
        "text": "text",
    },
)

_schedule = partial(Option, rich_help_panel="Schedule")
_text = partial(Option, rich_help_panel="Text lenses")
_where = partial(Option, rich_help_panel="Where to fit")

_PhaseOption = Annotated[Phase, Option(help="Vectors to train on.")]
_TextSamples = Annotated[int | None, _text(min=1, help="Default: as above.")]


@console.reports_errors
def fit(
    store: options.StorePath,
    out: Annotated[
        Path,
        Option(
            help="Folder to write the lens pack to; of several combinations, a folder of packs."
        ),
    ],
    f1: Annotated[
        list[float] | None,
        Option(
            min=0.0, max=1.0, help="Test F1 at which a lens graduates; repeatable. Default: 0.95."
        ),
    ] = None,
    family: Annotated[
        list[Family] | None,
        Option(
            help="What a lens is; repeatable. Default: auto, which is discriminant of a store with "
            "30 concepts or more, and linear elsewhere."
        ),
    ] = None,
    unit_norm: Annotated[
        bool,
        Option(
            "--unit-norm/--no-unit-norm",
            help="Discriminant lenses divide activations by their length, or are plainly linear.",
        ),
    ] = True,
    level: options.Levels = None,
    model_layers: Annotated[
        list[str] | None,
        Option(
            metavar="0,5,10-15",
            help="Transformer blocks to choose from, a concept at a time; repeatable. "
            "Default: all.",
        ),
    ] = None,
    n_model_layers: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="How many of them a lens reads; a fit holds so many in memory at a time. Default: "
            "6, spread evenly, of discriminant; 3 of ensemble; else 1, the best.",
        ),
    ] = None,
    phase: _PhaseOption = "both",
    concept: options.Concepts = None,
    labels: options.Labels = None,
    validation: Annotated[
        Validation,
        Option(help="Whether a low grade holds graduation back: never, always, or less and less."),
    ] = "advisory",
    min_grade: Annotated[MinGrade, Option(help="Grade that blocking validation asks for.")] = "B",
    threshold: Annotated[
        Threshold,
        Option(
            help="What thresholds are chosen for; fpr with --fpr. Default: accuracy for texts "
            "that are labelled in two classes, else f1."
        ),
    ] = "auto",
    fpr: options.Fpr = None,
    background_weight: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Share of texts of no concept in what discriminant lenses take for the mean "
            "negative. Default: 0.25, and 0.1 of concepts that all training texts name.",
        ),
    ] = None,
    refine: Annotated[
        bool,
        Option(
            "--refine", help="Fit lenses that others outrank once more, against those concepts."
        ),
    ] = False,
    refit: Annotated[
        bool | None,
        Option(
            "--refit/--no-refit",
            help="Fit once more, on the calibration split as well, when all is chosen. Default: "
            "for texts that are labelled in two classes.",
        ),
    ] = None,
    c: Annotated[
        float | None,
        Option("--C", help="Inverse L2 strength. Default: chosen for each concept."),
    ] = None,
    seed: options.Seed = 0,
    jobs: options.Jobs = None,
    device: Annotated[str, Option(help="Where to solve: cpu, cuda, cuda:1 ...")] = "cpu",
    initial_samples: Annotated[
        int,
        _schedule(min=1, help="Positive training samples to start with."),
    ] = 5,
    first_increment: Annotated[
        int,
        _schedule(min=1, help="Samples added at the second iteration."),
    ] = 5,
    increment: Annotated[int, _schedule(min=1, help="Samples added at later iterations.")] = 10,
    max_samples: Annotated[
        int,
        _schedule(min=1, help="Positive training samples at most."),
    ] = 200,
    min_iterations: Annotated[int, _schedule(min=1, help="Fits of one concept at least.")] = 1,
    max_iterations: Annotated[int, _schedule(min=1, help="Fits of one concept at most.")] = 50,
    min_test_samples: Annotated[
        int,
        _schedule(min=1, help="Positive test samples that graduation asks for."),
    ] = 1,
    max_overfit_gap: Annotated[
        float,
        _schedule(min=0.0, help="Largest train minus test F1 at graduation."),
    ] = 0.10,
    beyond: Annotated[
        bool,
        _schedule(
            "--beyond/--no-beyond",
            help="Go on after graduation for the record, as other validation modes would have: see "
            "lenstrain impact.",
        ),
    ] = True,
    text: Annotated[
        bool,
        _text("--text", help="Train lenses that read what the model wrote, too."),
    ] = False,
    text_f1: Annotated[
        float,
        _text(min=0.0, max=1.0, help="Test F1 at which they graduate."),
    ] = 0.80,
    text_initial_samples: _TextSamples = None,
    text_increment: _TextSamples = None,
    text_max_samples: _TextSamples = None,
    follow: Annotated[
        bool,
        Option(
            "--follow", help="Start while extract still runs, and end when the store is complete."
        ),
    ] = False,
    partial_store: Annotated[
        bool,
        Option(
            "--partial",
            help="Fit what is extracted by now, marked as provisional; again replaces it.",
        ),
    ] = False,
    patience: Annotated[
        float,
        Option(
            min=1, metavar="SECONDS", help="With --follow: how long to wait for the next block."
        ),
    ] = 900,
    engine: Annotated[Engine, _where(help="This process, or workers of a Ray cluster.")] = "local",
    workers: Annotated[
        int | None,
        _where(
            min=1,
            metavar="N",
            help="With ray: fits at a time. Default: one for every 8 cores, or for every GPU with "
            "--device cuda.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        _where(help="With ray: a running cluster, or auto. Default: one for this run, here."),
    ] = None,
    overwrite: Annotated[bool, options.overwrite("lens packs that are at --out")] = False,
    log_json: options.LogJson = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit a graded lens for every concept in STORE and write them to a lens pack.

    With several targets, families or sets of model layers: a pack for each combination, in a folder
    of its own, and a table. Packs that are there already and would be written again just so are
    kept.
    """
    from lenstrain.fit.follow import is_superseded
    from lenstrain.fit.train import text_settings
    from lenstrain.metrics.grade import Grade
    from lenstrain.settings import FitSettings
    from lenstrain.sweeps.grid import Grid

    options.check_engine(engine, workers, address)
    settings = FitSettings(
        max_overfit_gap=max_overfit_gap,
        initial_samples=initial_samples,
        first_increment=first_increment,
        increment=increment,
        max_samples=max_samples,
        min_iterations=min_iterations,
        max_iterations=max_iterations,
        min_test_samples=min_test_samples,
        validation=validation,
        min_grade=Grade(min_grade),
        C=c,
        background_weight=background_weight,
        unit_norm=unit_norm,
        n_model_layers=n_model_layers,
        threshold=threshold,
        refit=refit,
        fpr=fpr,
        beyond_graduation=beyond,
        phase=phase,
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
        families=tuple(each.value for each in family or [Family.auto]),
        targets=tuple(f1 or [0.95]),
        model_layers=tuple(options.parse_model_layers(each) for each in model_layers or ["all"]),
        levels=None if level is None else tuple(level),
        labels=labels,
        concepts=None if concept is None else tuple(concept),
        text=text_settings(settings, text_f1, **changed) if text else None,
        refine=refine,
        partial=partial_store,
    )
    if follow and partial_store:
        raise BadParameter("--follow waits for the whole store, --partial does not: pass one")
    alone = "--follow" if follow else "--partial" if partial_store else ""
    if alone and (engine == "ray" or not grid.is_single):
        raise BadParameter(
            f"{alone} fits one combination in this process: leave --engine and all others out"
        )
    if not grid.is_single:
        grid = grid.settled()  # folders are named by family
    new_engine = partial(_engine, engine, workers, address, jobs)
    if alone:  # takes the place of provisional lenses of the same store
        overwrite = overwrite or is_superseded(out, store)
    shown = {"overwrite": overwrite, "log_json": log_json, "json": json}
    if not grid.is_single:
        fit_combinations(grid, out, engine=new_engine, **shown, debug=debug)
    elif follow:
        _fit_single(grid, out, partial(_follow, patience_s=patience, jobs=jobs), **shown)
    else:
        _fit_single(grid, out, partial(_fit, engine=new_engine), **shown)


def _fit_single(
    grid: Grid,
    out: Path,
    run: Callable[..., LensPack],
    *,
    overwrite: bool,
    log_json: bool,
    json: bool,
) -> None:
    """Fit a grid of one combination and show its pack. `run` does the fit."""
    from lenstrain.pack.folder import check_output, none_for_nan
    from lenstrain.settings import settings_to_json

    check_output(out, overwrite=overwrite)
    start = time.perf_counter()
    log = RunLog(
        "fit",
        out,
        to_stderr=log_json,
        store=grid.store,
        settings=settings_to_json(grid.cells[0].settings),
        concepts=grid.concepts,
    )
    with log, Meter(log).running() as meter:
        pack = run(grid, out, meter, overwrite=overwrite)
        log.result(**none_for_nan(pack.summary()))
    elapsed = time.perf_counter() - start
    if json:
        console.print_json(none_for_nan({"out": str(out), "elapsed_s": elapsed, **pack.summary()}))
        return
    for reason in pack.skipped.values():
        console.note(f"left out: {reason}")
    if (line := grades.provisional_line(pack)) is not None:
        grades.say(line)
    grades.say(f"{grades.summary_line(pack)}; {elapsed:.0f} s")
    grades.tell_standing(pack)
    console.say(f"written to {out}; next: lenstrain show {out}")


def _fit(
    grid: Grid,
    out: Path,
    meter: Meter,
    *,
    overwrite: bool,
    engine: Callable[[LensDataset], FitEngine],
) -> LensPack:
    from lenstrain.sweeps.grid import fit_one

    dataset = grid.open()
    tell_left_out(dataset)
    grades.tell_evidence(dataset, grid.concepts, meter.say)
    show = partial(_show_progress, meter)
    return fit_one(grid, out, engine=engine(dataset), overwrite=overwrite, on_progress=show)


def _follow(
    grid: Grid,
    out: Path,
    meter: Meter,
    *,
    overwrite: bool,
    patience_s: float,
    jobs: int | None,
) -> LensPack:
    from lenstrain.fit.follow import FollowSettings, fit_following

    return fit_following(
        grid.store,
        out,
        grid.cells[0].settings,
        levels=grid.levels,
        concepts=grid.concepts,
        labels=grid.labels,
        text=grid.text,
        refine=grid.refine,
        jobs=jobs,
        overwrite=overwrite,
        waiting=FollowSettings(patience_s=patience_s),
        on_progress=partial(_show_following, meter),
    )


def _engine(
    engine: Engine, workers: int | None, address: str | None, jobs: int | None, dataset: LensDataset
) -> FitEngine:
    if engine == "ray":
        from lenstrain.sweeps.ray import RayEngine

        return RayEngine(workers, address, jobs)
    from lenstrain.sweeps.grid import LocalEngine

    return LocalEngine(dataset, jobs)


def _show_following(meter: Meter, progress: FollowProgress) -> None:
    if progress.fit is not None:
        _show_progress(meter, progress.fit)
        return
    what = f"following, {progress.lenses} lenses"
    meter.update(what, progress.blocks_done, progress.blocks_total, "blocks")


def _show_progress(meter: Meter, progress: FitProgress) -> None:
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
