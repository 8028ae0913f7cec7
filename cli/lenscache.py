"""The `lenscache` command: stage one, from a model and a concept pack to a store."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console, options
from .pack import app as packs

app = typer.Typer(
    help="Run a language model once over every prompt of a concept pack and keep its activations in a Zarr store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(packs, name="pack")


class Mode(StrEnum):
    """Choices of --mode."""

    combined = "combined"
    prompt = "prompt"
    completion = "completion"


class Pooling(StrEnum):
    """Choices of --pooling."""

    mean = "mean"
    max = "max"
    last = "last"


class Dtype(StrEnum):
    """Choices of --dtype."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class StoreDtype(StrEnum):
    """Choices of --store-dtype."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@app.callback()
def _app() -> None:
    """Keep the subcommands even when there is one."""


@app.command(
    epilog="Example: lenscache extract store.zarr --pack data/packs/starter.json --model smollm2-135m --layer 0"
)
@partial(console.reports_errors, interrupted="complete blocks are kept, the same command goes on from there")
def extract(
    store: options.StorePath,
    pack: options.Pack,
    model: options.Model,
    layer: options.Layers = None,
    model_layers: options.ModelLayers = None,
    mode: Annotated[
        Mode, typer.Option(help="What to pool: the prompt, the completion, or both in one pass.")
    ] = Mode.combined,
    batch_size: options.BatchSize = 4,
    max_new_tokens: options.MaxNewTokens = 20,
    pooling: Annotated[Pooling, typer.Option(help="How positions become one vector.")] = Pooling.mean,
    pool_first_position: Annotated[
        bool, typer.Option("--pool-first-position", help="Pool the first position too, often an attention sink.")
    ] = False,
    dtype: Annotated[
        Dtype, typer.Option(help="Weights and arithmetic; auto: bfloat16 where the device has it.")
    ] = Dtype.auto,
    store_dtype: Annotated[StoreDtype, typer.Option(help="Type of the stored activations.")] = StoreDtype.bfloat16,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    limit: options.Limit = None,
    block_rows: Annotated[int, typer.Option(min=1, help="Rows written, and kept, as one unit.")] = 256,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Extract activations into STORE, or continue where an earlier run stopped."""
    from lenscache.concepts import ConceptPack
    from lenscache.extract import ExtractSettings
    from lenscache.extract import extract as run_extract
    from lenscache.prompts import select_concepts
    from lenscache.store import open_store

    concepts = ConceptPack.load(pack)
    settings = ExtractSettings(
        mode=mode.value, max_new_tokens=max_new_tokens, model_layers=options.parse_model_layers(model_layers),
        pooling=pooling.value, pool_first_position=pool_first_position, store_dtype=store_dtype.value, seed=seed,
        batch_size=batch_size, block_rows=block_rows,
    )  # fmt: skip
    select_concepts(concepts, layer, limit)  # before the model is loaded
    loaded = _load(model, dtype, device)
    with console.Meter().running() as meter:
        report = run_extract(
            store, concepts, loaded, settings, layers=layer, limit=limit, on_progress=lambda p: _show_progress(meter, p)
        )
    if json:
        console.print_json(asdict(report))
    else:
        _print_report(open_store(store), report)


@app.command(epilog="Example: lenscache plan --pack data/packs/starter.json --model smollm2-135m --batch-size 16")
@console.reports_errors
def plan(
    pack: options.Pack,
    model: options.Model,
    layer: options.Layers = None,
    model_layers: options.ModelLayers = None,
    mode: Annotated[Mode, typer.Option(help="As for extract.")] = Mode.combined,
    batch_size: options.BatchSize = 4,
    max_new_tokens: options.MaxNewTokens = 20,
    dtype: Annotated[Dtype, typer.Option(help="Weights and arithmetic, as for extract.")] = Dtype.auto,
    store_dtype: Annotated[StoreDtype, typer.Option(help="Type of the stored activations.")] = StoreDtype.bfloat16,
    device: options.Device = "auto",
    limit: options.Limit = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what an extraction would cost: prompts, tokens, bytes, and time from a few timed batches."""
    from lenscache.concepts import ConceptPack
    from lenscache.extract import ExtractSettings
    from lenscache.planning import estimate_run
    from lenscache.prompts import select_concepts

    concepts = ConceptPack.load(pack)
    settings = ExtractSettings(
        mode=mode.value, max_new_tokens=max_new_tokens, model_layers=options.parse_model_layers(model_layers),
        store_dtype=store_dtype.value, batch_size=batch_size,
    )  # fmt: skip
    select_concepts(concepts, layer, limit)  # before the model is loaded
    estimate = estimate_run(concepts, _load(model, dtype, device), settings, layers=layer, limit=limit)
    if json:
        console.print_json(asdict(estimate))
    else:
        _print_estimate(estimate)


@app.command(epilog="Example: lenscache info store.zarr")
@console.reports_errors
def info(store: options.StorePath, json: options.Json = False, debug: options.Debug = False) -> None:
    """Show what STORE holds and how far it is."""
    from lenscache.labelsets import label_set_names
    from lenscache.store import open_store

    opened = open_store(store)
    summary = {**opened.summary(), "label_sets": label_set_names(opened)}
    if json:
        console.print_json(summary)
    else:
        _print_summary(summary)


@app.command(epilog="Example: lenscache label store.zarr topics.csv --name topics --label topic")
@console.reports_errors
def label(
    store: options.StorePath,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled text: CSV, JSON Lines or Parquet.")],
    name: Annotated[str, typer.Option(help="Name of the label set, for `lenstrain fit --labels`.")],
    text: Annotated[str, typer.Option(help="Column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="Column of labels.")] = "label",
    split: Annotated[str | None, typer.Option(help="Column of splits. Default: they are drawn.")] = None,
    concept: Annotated[str | None, typer.Option(help="Id of a binary set's concept.")] = None,
    separator: Annotated[str | None, typer.Option(help="What stands between the labels of one row.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a label set of this name.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Label texts that STORE already holds, without the model."""
    from lenscache.labelsets import add_label_set
    from lenscache.packs.labelled import LabelledColumns, import_labelled
    from lenscache.store import open_store

    columns = LabelledColumns(text=text, label=label, split=split, concept=concept, separator=separator)
    opened = open_store(store, mode="r+")
    imported = import_labelled(source, columns)
    added = add_label_set(opened, name, imported.pack, overwrite=overwrite)
    for missing in added.missing:
        imported.report.leave_out("text that the store does not hold", missing)
    for lost in added.lost_concepts:
        imported.report.leave_out("concept without a text in the store", lost)
    kept = added.label_set
    if json:
        counts = {"samples": len(kept.key), "labels": len(kept.labels.sample), "concepts": len(kept.concepts)}
        console.print_json({"name": name, "digest": kept.digest, **counts, **imported.report.to_dict()})
        return
    for line in imported.report.lines():
        console.out().print(line, markup=False, soft_wrap=True)
    counted = f"{len(kept.key)} samples, {len(kept.labels.sample)} labels, {len(kept.concepts)} concepts"
    console.out().print(f"label set {name}: {counted} ({kept.digest})", markup=False, soft_wrap=True)
    console.out().print(f"next: lenstrain fit {store} --labels {name} --out lenses", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    app()


def _load(model: str, dtype: Dtype, device: str) -> Any:
    from lenscache.model import load_model, silence

    silence()
    console.err().print(f"loading {model}", markup=False, soft_wrap=True)
    loaded = load_model(model, dtype=dtype.value, device=device)
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.err().print(f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.device}", markup=False, soft_wrap=True)
    return loaded


def _print_estimate(estimate: Any) -> None:
    layers = f"layer{'s' if len(estimate.layers) > 1 else ''} {', '.join(map(str, estimate.layers))}"
    for line in (
        f"{estimate.concepts} concepts on {layers}: {estimate.prompts} prompts, "
        f"{estimate.prompt_tokens} prompt tokens, at most {estimate.new_tokens} new ones",
        f"{estimate.model_layers} model layers: about {console.megabytes(estimate.stored_bytes)} on disk, "
        f"{console.megabytes(estimate.bytes_per_model_layer)} each, of {console.megabytes(estimate.raw_bytes)} raw",
        f"about {console.clock(estimate.seconds)} on this device, at {estimate.prompts_per_second:.1f} prompts/s",
    ):
        console.out().print(line, markup=False, soft_wrap=True)


def _show_progress(meter: console.Meter, progress: Any) -> None:
    if progress.message:
        meter.say(progress.message)
    meter.update(f"layer {progress.layer}", progress.rows_done, progress.rows_total, "rows")


def _print_report(store: Any, report: Any) -> None:
    summary = store.summary()
    out = console.out()
    rate = f" in {report.elapsed_s:.0f} s, {report.rows_run / report.elapsed_s:.1f} rows/s" if report.rows_run else ""
    layers = f"layer{'s' if len(report.layers) > 1 else ''} {', '.join(map(str, report.layers))}"
    out.print(
        f"{store.path}: {report.rows} rows on {layers}; {report.rows_run} extracted now{rate}",
        markup=False,
        soft_wrap=True,
    )
    for block in report.repaired_blocks:
        out.print(f"repaired: {block}", markup=False, soft_wrap=True)
    out.print(_sizes(summary))
    if report.max_relative_error:
        error = f"{report.max_relative_error:.2%}"
        out.print(f"rows in batches of {report.batch_size} agree with the same rows one by one within {error}")
    out.print(f"next: lenstrain fit {store.path} --f1 0.95 --out lenses", markup=False, soft_wrap=True)


def _print_summary(summary: dict[str, Any]) -> None:
    out = console.out()
    model, settings = summary["model"], summary["settings"]
    out.print(f"{summary['path']}  format {summary['format_version']}, digest {summary['digest']}")
    shape = f"{model['n_layers']} transformer blocks of size {model['hidden']}"
    out.print(
        f"model {model['id']} ({model['fingerprint']}), {shape}, computed in {model['dtype']}",
        markup=False,
        soft_wrap=True,
    )
    out.print(
        f"pack {summary['pack']['name']} {summary['pack']['version']} ({summary['pack']['digest']})", markup=False
    )
    pooling = (
        f"{settings['pooling']} over positions {'with' if settings['pool_first_position'] else 'without'} the first"
    )
    tokens = f"{settings['mode']} mode, {settings['max_new_tokens']} new tokens"
    out.print(f"{tokens}, {pooling}, stored as {settings['store_dtype']}, seed {settings['seed']}")
    out.print(_sizes(summary))
    table = console.make_table("round", "concepts", "rows", "blocks", "state", "batch", "largest error")
    for entry in summary["rounds"]:
        error = entry["max_relative_error"]
        table.add_row(
            entry["name"], str(entry["concepts"]), str(entry["rows"]), f"{entry['complete_blocks']}/{entry['blocks']}",
            entry["state"], str(entry["batch_size"] or ""), "" if error is None else f"{error:.2%}",
        )  # fmt: skip
    out.print(table)
    if summary["label_sets"]:
        out.print(f"label sets: {', '.join(summary['label_sets'])}", markup=False, soft_wrap=True)


def _sizes(summary: dict[str, Any]) -> str:
    stored, raw = summary["stored_bytes"], summary["raw_bytes"]
    layers = len(summary["settings"]["model_layers"])
    return (
        f"{layers} model layers x {' and '.join(summary['phases'])}: {console.megabytes(stored)} stored, "
        f"{stored / max(raw, 1):.2f} of the {console.megabytes(raw)} they hold uncompressed"
    )
