"""Look at a store, label it, export it, verify it and repair it."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Exit, Option

from .. import console, options
from ..meter import Meter
from . import printing

# Choices of --to.
ExportFormat = Literal["safetensors", "npz", "parquet"]
# typer takes no list of literals.
Phase = StrEnum("Phase", {"prompt": "prompt", "completion": "completion"})


@console.reports_errors
def info(
    store: options.StorePath,
    partitions: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Show how far each of N partitions is, too."),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what STORE holds and how far it is."""
    from lenscache.extract.partitions import partitions_done
    from lenscache.store.labelsets import label_set_names
    from lenscache.store.store import open_store

    opened = open_store(store)
    summary = {**opened.summary(), "label_sets": label_set_names(opened)}
    if partitions is not None:
        summary["partitions"] = partitions_done(opened, partitions)
    if json:
        console.print_json(summary)
    else:
        printing.print_summary(summary)


@console.reports_errors
def label(
    store: options.StorePath,
    source: Annotated[
        Path, Argument(metavar="FILE", help="Labelled texts, as `pack import` reads.")
    ],
    name: Annotated[str, Option(help="Name of the label set, for `lenstrain fit --labels`.")],
    text: options.TextColumn = "text",
    label: options.LabelColumn = "label",
    split: options.SplitColumn = None,
    concept: options.BinaryConcept = None,
    separator: options.Separator = None,
    threshold: options.Threshold = None,
    fold_case: options.FoldCase = False,
    missing: options.Missing = None,
    keep_na: options.KeepNa = False,
    as_classes: options.AsClasses = False,
    encoding: options.Encoding = "utf-8-sig",
    delimiter: options.Delimiter = None,
    quoting: options.QuotingOption = "auto",
    overwrite: Annotated[bool, options.overwrite("a label set of this name")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Label texts that STORE already holds, without the model."""
    from lenscache.concepts.importers.labelled import LabelledColumns, import_labelled
    from lenscache.concepts.importers.tables import TableFormat
    from lenscache.store.labelsets import add_label_set
    from lenscache.store.store import open_store

    opened = open_store(store, mode="r+")
    meaning = separator, threshold, fold_case, tuple(missing or ()), keep_na, as_classes
    columns = LabelledColumns(text, label, split, concept, *meaning)
    imported = import_labelled(source, columns, TableFormat(encoding, delimiter, quoting))
    read = imported.report.lines()
    for line in [] if json else read:
        console.say(line)
    added = add_label_set(opened, name, imported.pack, overwrite=overwrite)
    for unknown in added.missing:
        imported.report.leave_out("text that the store does not hold", unknown)
    for lost in added.lost_concepts:
        imported.report.leave_out("concept without a text in the store", lost)
    kept = added.label_set
    n_samples, n_labels, n_concepts = len(kept.key), len(kept.labels.sample), len(kept.concepts)
    if json:
        counts = {"samples": n_samples, "labels": n_labels, "concepts": n_concepts}
        report = imported.report.to_dict()
        console.print_json({"name": name, "digest": kept.digest, **counts, **report})
        return
    for line in imported.report.lines()[len(read) :]:  # what the store lacks
        console.say(line)
    counted = f"{n_samples} samples, {n_labels} labels, {n_concepts} concepts"
    console.say(f"label set {name}: {counted} ({kept.digest})")
    console.say(f"next: lenstrain fit {store} --labels {name} --out lenses")


@console.reports_errors
def export(
    store: options.StorePath,
    to: Annotated[
        ExportFormat,
        Option(help="safetensors keeps bfloat16 bit for bit, the others hold float32."),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder to write.")],
    level: options.Levels = None,
    model_layers: options.ModelLayers = None,
    phase: Annotated[
        list[Phase] | None, Option(help="Phase to export; repeatable. Default: all.")
    ] = None,
    overwrite: Annotated[bool, options.overwrite("an earlier export in DIR")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write what is complete in STORE to files that need no Zarr, with a manifest."""
    from lenscache.store.store import open_store
    from lenscache.store.views.export import export_store

    with Meter().running() as meter:
        report = export_store(
            open_store(store),
            out,
            to,
            levels=level,
            model_layers=options.parse_model_layers(model_layers),
            phases=[each.value for each in phase] if phase else None,
            overwrite=overwrite,
            on_progress=lambda done, total: meter.update("export", done, total, "vectors"),
        )
    if json:
        console.print_json(asdict(report))
        return
    size = console.megabytes(report.size_bytes)
    line = f"{report.folder}: {report.rows} rows as {report.to}, {size} in {report.n_files} files"
    if report.rows_left_out:
        line += f"; {report.rows_left_out} rows that are not extracted yet are left out"
    console.say(line)


@partial(console.reports_errors, interrupted="nothing was changed")
def verify(
    store: options.StorePath,
    quick: Annotated[
        bool,
        Option("--quick", help="Only marks, and presence and size of objects; decode nothing."),
    ] = False,
    pack: Annotated[Path | None, Option(help="Compare with this concept pack, too.")] = None,
    level: options.OneLevel = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check every object, value and count of STORE; exit code 1 if anything is wrong.

    Also if there was nothing to check. Nothing is written.
    """
    from lenscache.concepts.pack import ConceptPack
    from lenscache.store.verify.verify import verify_store

    if quick and pack is not None:
        raise BadParameter(
            "--pack compares texts, which --quick does not read: leave one of them out"
        )
    concepts = None if pack is None else ConceptPack.load(pack)
    with Meter().running() as meter:
        report = verify_store(
            store,
            quick=quick,
            pack=concepts,
            level=level,
            jobs=jobs,
            on_checked=lambda done, total: meter.update("verify", done, total, "objects"),
        )
    if json:
        verdict = {"damaged": report.is_damaged, "clean": report.is_clean}
        console.print_json({**asdict(report), **verdict})
    else:
        printing.print_verified(report)
    if not report.is_clean:
        raise Exit(1)


@partial(
    console.reports_errors, interrupted="blocks unmarked so far stay so, the same command goes on"
)
def repair(
    store: options.StorePath,
    level: options.OneLevel = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Unmark exactly the damaged blocks of STORE, so that `extract` runs them again.

    Deletes nothing.
    """
    from lenscache.store.verify.repair import repair_store

    with Meter().running() as meter:
        report = repair_store(
            store,
            level=level,
            jobs=jobs,
            on_checked=lambda done, total: meter.update("verify", done, total, "objects"),
        )
    if json:
        console.print_json(asdict(report))
    else:
        printing.print_repaired(report)
    if report.left_to_user:
        raise Exit(1)
