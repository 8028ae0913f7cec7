"""The `lenstrain` command: stage two, from a store to graded lenses, with no model in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from . import console, options

app = typer.Typer(
    help="Train, calibrate and grade concept lenses from a lenscache store, with no model in memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


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


@app.command(epilog="Example: lenstrain fit store.zarr --f1 0.95 --out lenses-0.95")
@console.reports_errors
def fit(
    store: options.StorePath,
    out: Annotated[Path, typer.Option(help="Folder to write the lens pack to.")],
    f1: Annotated[float, typer.Option(min=0.0, max=1.0, help="Test F1 at which a lens graduates.")] = 0.95,
    layer: options.Layers = None,
    model_layers: options.FitModelLayers = None,
    phase: Annotated[Phase, typer.Option(help="Vectors to train on.")] = Phase.both,
    concept: Annotated[list[str] | None, typer.Option(help="Concept id; repeatable. Default: all extracted.")] = None,
    labels: options.Labels = None,
    validation: Annotated[
        Validation, typer.Option(help="Whether a low grade holds graduation back: never, always, or less and less.")
    ] = Validation.advisory,
    min_grade: Annotated[MinGrade, typer.Option(help="Grade that blocking validation asks for.")] = MinGrade.B,
    initial_samples: Annotated[int, typer.Option(min=1, help="Positive training samples to start with.")] = 5,
    first_increment: Annotated[int, typer.Option(min=1, help="Samples added at the second iteration.")] = 5,
    increment: Annotated[int, typer.Option(min=1, help="Samples added at later iterations.")] = 10,
    max_samples: Annotated[int, typer.Option(min=1, help="Positive training samples at most.")] = 200,
    max_iterations: Annotated[int, typer.Option(min=1, help="Fits of one concept at most.")] = 50,
    max_overfit_gap: Annotated[float, typer.Option(min=0.0, help="Largest train minus test F1 at graduation.")] = 0.10,
    c: Annotated[
        float | None, typer.Option("--C", help="Inverse L2 strength. Default: chosen for each concept.")
    ] = None,
    seed: options.Seed = 0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Start while extract still runs, and end when the store is complete.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="With --follow: how long to wait for the next block.")
    ] = 900,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a lens pack that is at --out.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit a graded lens for every concept in STORE and write them to a lens pack."""
    from lenstrain.adaptive import FitSettings, fit_lenses
    from lenstrain.calibration import Grade
    from lenstrain.dataset import open_dataset
    from lenstrain.follow import FollowSettings, fit_following
    from lenstrain.lenspack import check_output, make_lens_pack, none_for_nan

    settings = FitSettings(
        target_f1=f1, max_overfit_gap=max_overfit_gap, initial_samples=initial_samples, first_increment=first_increment,
        increment=increment, max_samples=max_samples, max_iterations=max_iterations, validation=validation.value,
        min_grade=Grade(min_grade.value), C=c, phase=phase.value,
        model_layers=options.parse_model_layers(model_layers), seed=seed,
    )  # fmt: skip
    check_output(out, overwrite=overwrite)
    start = time.perf_counter()
    with console.Meter().running() as meter:
        if follow:
            pack = fit_following(
                store, out, settings, layers=layer, concepts=concept, labels=labels, overwrite=overwrite,
                waiting=FollowSettings(patience_s=patience), on_progress=lambda p: _show_following(meter, p),
            )  # fmt: skip
        else:
            dataset = open_dataset(store, layers=layer, phase=phase.value, seed=seed, labels=labels)
            _tell_left_out(dataset)
            result = fit_lenses(
                dataset, settings, concepts=concept,
                on_progress=lambda p: meter.update(p.stage, p.done, p.total, p.unit),
            )  # fmt: skip
            pack = make_lens_pack(result, dataset, settings)
            pack.save(out, overwrite=overwrite)
    elapsed = time.perf_counter() - start
    if json:
        console.print_json(none_for_nan({"out": str(out), "elapsed_s": elapsed, **pack.summary()}))
        return
    for reason in pack.skipped.values():
        console.err().print(f"left out: {reason}", markup=False)
    console.out().print(f"{_summary_line(pack)}; {elapsed:.0f} s", markup=False, soft_wrap=True)
    console.out().print(f"written to {out}; next: lenstrain show {out}", markup=False, soft_wrap=True)


@app.command(epilog="Example: lenstrain sweep store.zarr --f1 0.80 --f1 0.90 --f1 0.95 --out lenses")
@console.reports_errors
def sweep(
    store: options.StorePath,
    out: Annotated[Path, typer.Option(help="Folder to write the lens packs to, one folder a target.")],
    f1: Annotated[list[float], typer.Option(min=0.0, max=1.0, help="Test F1 to graduate at; repeatable.")],
    layer: options.Layers = None,
    model_layers: options.FitModelLayers = None,
    phase: Annotated[Phase, typer.Option(help="Vectors to train on.")] = Phase.both,
    concept: Annotated[list[str] | None, typer.Option(help="Concept id; repeatable. Default: all extracted.")] = None,
    labels: options.Labels = None,
    validation: Annotated[Validation, typer.Option(help="As for fit.")] = Validation.advisory,
    max_samples: Annotated[int, typer.Option(min=1, help="Positive training samples at most.")] = 200,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace lens packs that are there.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fit lenses for several targets in one pass over STORE: a pack for each, and a table."""
    from lenstrain.adaptive import FitSettings, fit_targets
    from lenstrain.dataset import open_dataset
    from lenstrain.lenspack import check_output, make_lens_pack, none_for_nan

    targets = sorted(dict.fromkeys(f1))
    folders = [out / f"f1-{target:.2f}".rstrip("0").rstrip(".") for target in targets]
    for folder in folders:
        check_output(folder, overwrite=overwrite)
    settings = FitSettings(
        target_f1=targets[-1], validation=validation.value, max_samples=max_samples, phase=phase.value,
        model_layers=options.parse_model_layers(model_layers), seed=seed,
    )  # fmt: skip
    start = time.perf_counter()
    dataset = open_dataset(store, layers=layer, phase=phase.value, seed=seed, labels=labels)
    _tell_left_out(dataset)
    with console.Meter().running() as meter:
        results = fit_targets(
            dataset, settings, targets, concepts=concept,
            on_progress=lambda p: meter.update(p.stage, p.done, p.total, p.unit),
        )  # fmt: skip
    packs = []
    for target, folder, result in zip(targets, folders, results, strict=True):
        packs.append(make_lens_pack(result, dataset, replace(settings, target_f1=target)))
        packs[-1].save(folder, overwrite=overwrite)
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


@app.command(epilog="Example: lenstrain show lenses-0.95")
@console.reports_errors
def show(folder: options.PackFolder, json: options.Json = False, debug: options.Debug = False) -> None:
    """Show the lenses of a pack: what each detects, where, and how far it can be trusted."""
    from lenstrain.lenspack import LensPack, none_for_nan

    pack = LensPack.load(folder)
    if json:
        console.print_json(none_for_nan({**pack.summary(), "lenses": [_row(lens) for lens in pack]}))
        return
    model, settings = pack.provenance["store"]["model"]["id"], pack.provenance["settings"]
    table = console.make_table(
        "concept", "layer", "model layer", "test F1", "unnamed", "score", "grade", "samples", "iterations", "graduated"
    )
    colours = {"A": "green", "B": "yellow", "C": "red"}
    for lens in sorted(pack, key=lambda lens: (lens.layer, -lens.metrics["score"])):
        metrics, grade = lens.metrics, lens.grade.value
        table.add_row(
            escape(lens.name), str(lens.layer), str(lens.model_layer), f"{metrics['test_f1']:.2f}",
            _share(metrics["test_f1_unnamed"]), f"{metrics['score']:.2f}", f"[{colours[grade]}]{grade}[/]",
            str(metrics["n_samples"]), str(metrics["iterations"]), "yes" if metrics["graduated"] else "no",
        )  # fmt: skip
    if pack.provenance.get("provisional"):
        console.out().print("provisional: extraction was still running, these lenses saw part of the store")
    target = f"target F1 {settings['target_f1']:g}, {settings['validation']} validation"
    console.out().print(f"{folder}: {model}, {target}", markup=False, soft_wrap=True)
    console.out().print(table)
    console.out().print(_summary_line(pack), markup=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    app()


def _tell_left_out(dataset: Any) -> None:
    for name in dataset.rounds_left_out:
        console.err().print(
            f"left out: {name} is not finished, run the `lenscache extract --top-up` that began it again", markup=False
        )


def _show_following(meter: console.Meter, progress: Any) -> None:
    if progress.fit is None:
        meter.update(f"following, {progress.lenses} lenses", progress.blocks_done, progress.blocks_total, "blocks")
    else:
        meter.update(progress.fit.stage, progress.fit.done, progress.fit.total, progress.fit.unit)


def _sweep_table(targets: list[float], packs: list[Any]) -> Any:
    table = console.make_table(
        "target F1", "lenses", "graduated", "A", "B", "C", "test F1", "score", "samples", "iterations", "hungry"
    )
    for target, pack in zip(targets, packs, strict=True):
        summary = pack.summary()
        table.add_row(
            f"{target:.2f}", str(summary["n_lenses"]), str(summary["graduated"]),
            *(str(summary["grades"][grade]) for grade in "ABC"), f"{summary['mean_test_f1']:.2f}",
            f"{summary['mean_score']:.2f}", f"{summary['mean_samples']:.1f}", f"{summary['mean_iterations']:.1f}",
            str(len(summary["hungry"])),
        )  # fmt: skip
    return table


def _summary_line(pack: Any) -> str:
    summary = pack.summary()
    grades = ", ".join(f"{count} {grade}" for grade, count in summary["grades"].items())
    line = f"{summary['n_lenses']} lenses: {grades}; {summary['graduated']} graduated"
    line += f"; mean test F1 {summary['mean_test_f1']:.2f}"
    if summary["mean_test_f1_named"] == summary["mean_test_f1_named"]:  # labelled texts name nothing
        named, unnamed = summary["mean_test_f1_named"], summary["mean_test_f1_unnamed"]
        line += f" ({unnamed:.2f} on unnamed samples, {named:.2f} on named)"
    line += f", mean score {summary['mean_score']:.2f}"
    line += f"; {summary['mean_samples']:.1f} samples and {summary['mean_iterations']:.1f} iterations on average"
    if pack.hungry:
        line += f"; {len(pack.hungry)} used every cached sample (hungry.json)"
    return f"{line}; {len(pack.skipped)} left out" if pack.skipped else line


def _share(value: float) -> str:
    return "" if value != value else f"{value:.2f}"


def _row(lens: Any) -> dict[str, Any]:
    return {
        "concept": lens.concept, "name": lens.name, "layer": lens.layer, "model_layer": lens.model_layer,
        "grade": lens.grade.value, "threshold": lens.threshold, **lens.metrics,
    }  # fmt: skip
