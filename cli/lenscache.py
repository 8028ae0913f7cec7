"""The `lenscache` command: stage one, from a model and a concept pack to a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from . import console, options, reports
from .models import DeviceMapOption, Dtype, TensorParallel, follow, is_follower, load
from .pack import app as packs
from .plan import plan
from .preflight import preflight
from .runlog import RunLog

app = typer.Typer(
    help="Run a language model once over every prompt of a concept pack and keep its activations in a Zarr store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(packs, name="pack")


_MANY = "Many workers"


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


class StoreDtype(StrEnum):
    """Choices of --store-dtype."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    int8 = "int8"


class Engine(StrEnum):
    """Choices of --engine."""

    local = "local"
    ray = "ray"


class ExportFormat(StrEnum):
    """Choices of --to."""

    safetensors = "safetensors"
    npz = "npz"
    parquet = "parquet"


class Phase(StrEnum):
    """Choices of --phase."""

    prompt = "prompt"
    completion = "completion"


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
    templates: options.Templates = None,
    mode: Annotated[
        Mode, typer.Option(help="What to pool: the prompt, the completion, or both in one pass.")
    ] = Mode.combined,
    batch_size: options.BatchSize = "4",
    max_new_tokens: options.MaxNewTokens = 20,
    max_prompt_tokens: options.MaxPromptTokens = None,
    pooling: Annotated[Pooling, typer.Option(help="How positions become one vector.")] = Pooling.mean,
    pool_first_position: Annotated[
        bool, typer.Option("--pool-first-position", help="Pool the first position too, often an attention sink.")
    ] = False,
    dtype: Annotated[
        Dtype, typer.Option(help="Weights and arithmetic; auto: bfloat16 where the device has it.")
    ] = Dtype.auto,
    store_dtype: Annotated[
        StoreDtype, typer.Option(help="Type of the stored activations; int8 is lossy.")
    ] = StoreDtype.bfloat16,
    device: options.Device = "auto",
    device_map: DeviceMapOption = None,
    tensor_parallel: TensorParallel = False,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    samples: options.Samples = None,
    top_up: Annotated[
        Path | None,
        typer.Option(metavar="hungry.json", help="Add samples for the concepts of this file, as another round."),
    ] = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option(metavar="STORE", help="Copy rows that this store holds, as of an older pack; repeatable."),
    ] = None,
    block_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows written, and kept, as one unit. Default: about 256.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Only every N-th block, from the K-th on: N such runs, anywhere, make the whole."
        ),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="This process, or the workers of a Ray cluster.", rich_help_panel=_MANY)
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Models at a time. Default: one for every GPU of the cluster, or one.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Of a running Ray cluster. Default: one is started here.", rich_help_panel=_MANY
        ),
    ] = None,
    log_json: options.LogJson = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Extract activations into STORE, or continue where an earlier run stopped."""
    from lenscache.errors import PlanError
    from lenscache.extraction import Request
    from lenscache.prompts import select_concepts
    from lenscache.remote import check_place
    from lenscache.settings import ExtractSettings, Partition
    from lenscache.store import open_store
    from lenscache.topup import read_top_up

    if tensor_parallel and is_follower():
        follow(model, dtype)
        return
    if tensor_parallel and batch_size == "auto":
        raise typer.BadParameter("--batch-size auto tries until memory is full, which --tensor-parallel cannot: give N")
    if engine is Engine.ray and (tensor_parallel or device_map is not None):
        raise typer.BadParameter("Ray gives each worker one GPU: leave out --tensor-parallel and --device-map")
    if engine is Engine.ray:
        from lenscache.ray_cluster import require_ray

        require_ray()
    elif workers is not None or address is not None:
        raise typer.BadParameter("--workers and --address are for --engine ray: add it, or leave them out")

    concepts = options.load_pack(pack, templates)
    settings = ExtractSettings(
        mode=mode.value, max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens,
        model_layers=options.parse_model_layers(model_layers), pooling=pooling.value,
        pool_first_position=pool_first_position, store_dtype=store_dtype.value, seed=seed,
        batch_size=options.parse_batch_size(batch_size), block_rows=block_rows, samples=samples,
        partition=None if partition is None else Partition.parse(partition),
    )  # fmt: skip
    if top_up is not None and (layer or limit or reuse):
        raise PlanError("--top-up takes its concepts from the file: leave out --layer, --limit and --reuse")
    select_concepts(concepts, layer, limit)  # before the model is loaded
    check_place(store)
    for path in reuse or ():
        open_store(path)  # what is no store shows before the model is loaded
    request = Request(
        store, concepts, settings, None if layer is None else tuple(layer), limit, tuple(reuse or ()),
        None if top_up is None else read_top_up(top_up, samples),
    )  # fmt: skip
    new_model = partial(load, model, dtype, device, device_map, tensor_parallel=tensor_parallel)
    run = _local_run(request, new_model) if engine is Engine.local else _ray_run(
        request, model, dtype, device, workers, address
    )  # fmt: skip
    asked = {"pack": f"{concepts.name} ({concepts.digest})", "model": model, "settings": asdict(settings)}
    with (
        RunLog("extract", store, to_stderr=log_json, device=run.device, layers=layer, limit=limit, **asked) as log,
        console.Meter(log).running() as meter,
    ):
        report = run.start(partial(_show_progress, meter, time.monotonic()))
        log.result(report=asdict(report))
    if json:
        console.print_json(asdict(report))
    else:
        reports.print_report(open_store(store), report)


@app.command(epilog="Example: lenscache info store.zarr")
@console.reports_errors
def info(
    store: options.StorePath,
    partitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show how far each of N partitions is, too.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what STORE holds and how far it is."""
    from lenscache.labelsets import label_set_names
    from lenscache.partitions import partitions_done
    from lenscache.store import open_store

    opened = open_store(store)
    summary = {**opened.summary(), "label_sets": label_set_names(opened)}
    if partitions is not None:
        summary["partitions"] = partitions_done(opened, partitions)
    if json:
        console.print_json(summary)
    else:
        reports.print_summary(summary)


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


@app.command(epilog="Example: lenscache export store.zarr --to safetensors --out activations --model-layers 10-20")
@console.reports_errors
def export(
    store: options.StorePath,
    to: Annotated[ExportFormat, typer.Option(help="safetensors keeps bfloat16 bit for bit, the others hold float32.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    layer: options.Layers = None,
    model_layers: options.ModelLayers = None,
    phase: Annotated[list[Phase] | None, typer.Option(help="Phase to export; repeatable. Default: all.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in DIR.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write what is complete in STORE to files that need no Zarr, with a manifest."""
    from lenscache.export import export_store
    from lenscache.store import open_store

    with console.Meter().running() as meter:
        report = export_store(
            open_store(store), out, to.value, layers=layer, model_layers=options.parse_model_layers(model_layers),
            phases=[choice.value for choice in phase] if phase else None, overwrite=overwrite,
            on_progress=lambda done, total: meter.update("export", done, total, "vectors"),
        )  # fmt: skip
    if json:
        console.print_json(asdict(report))
        return
    size = console.megabytes(report.size_bytes)
    left_out = f"; {report.rows_left_out} rows that are not extracted yet are left out" if report.rows_left_out else ""
    line = f"{report.folder}: {report.rows} rows as {report.to}, {size} in {report.n_files} files{left_out}"
    console.out().print(line, markup=False, soft_wrap=True)


@app.command(epilog="Example: lenscache verify store.zarr --pack data/packs/starter.json")
@partial(console.reports_errors, interrupted="nothing was changed")
def verify(
    store: options.StorePath,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only marks, and presence and size of objects; decode nothing.")
    ] = False,
    pack: Annotated[Path | None, typer.Option(help="Compare with this concept pack, too.")] = None,
    layer: options.OneLayer = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check every object, value and count of STORE; exit code 1 if anything is wrong. Nothing is written."""
    from lenscache.concepts import ConceptPack
    from lenscache.verify import verify_store

    if quick and pack is not None:
        raise typer.BadParameter("--pack compares texts, which --quick does not read: leave one of them out")
    concepts = None if pack is None else ConceptPack.load(pack)
    with console.Meter().running() as meter:
        report = verify_store(
            store, quick=quick, pack=concepts, layer=layer, jobs=jobs,
            on_checked=lambda done, total: meter.update("verify", done, total, "objects"),
        )  # fmt: skip
    if json:
        console.print_json({**asdict(report), "damaged": report.is_damaged})
    else:
        reports.print_verified(report)
    if report.is_damaged:
        raise typer.Exit(1)


@app.command(epilog="Example: lenscache repair store.zarr")
@partial(console.reports_errors, interrupted="blocks unmarked so far stay so, the same command goes on")
def repair(
    store: options.StorePath,
    layer: options.OneLayer = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Unmark exactly the damaged blocks of STORE, so that `extract` runs them again. Deletes nothing."""
    from lenscache.repair import repair_store

    with console.Meter().running() as meter:
        report = repair_store(
            store, layer=layer, jobs=jobs,
            on_checked=lambda done, total: meter.update("verify", done, total, "objects"),
        )  # fmt: skip
    if json:
        console.print_json(asdict(report))
    else:
        reports.print_repaired(report)
    if report.left_to_user:
        raise typer.Exit(1)


app.command(epilog="Example: lenscache preflight --model smollm2-135m --quick")(preflight)
app.command(
    epilog="Example: lenscache plan --pack data/packs/starter.json --model smollm2-135m --devices 16 --device-kind h100"
)(plan)


def main() -> None:
    """Entry point."""
    app()


class _Run(NamedTuple):
    """An engine, ready to begin."""

    device: str
    start: Callable[[Any], Any]
    """Takes what to call with progress, gives the report."""


def _local_run(request: Any, new_model: Callable[[], Any]) -> _Run:
    loaded = new_model()

    def start(on_progress: Any) -> Any:
        with (
            nullcontext() if loaded.team is None else loaded.team.leading(),
            request.lay_out(loaded, on_progress) as extraction,
        ):
            return extraction.run()

    return _Run(loaded.placement, start)


def _ray_run(request: Any, model: str, dtype: Dtype, device: str, workers: int | None, address: str | None) -> _Run:
    from lenscache.model import load_model, silence
    from lenscache.ray_engine import extract_with_ray

    if device.startswith("cuda:"):
        raise typer.BadParameter(f"Ray gives each worker a GPU of its own, {device} was asked for: pass --device cuda")
    silence()
    # A folder under its whole name: workers start in others.
    place = str(Path(model).absolute()) if Path(model).is_dir() else model
    return _Run(
        f"ray, {device}",
        lambda on_progress: extract_with_ray(
            request, partial(load_model, place, dtype=dtype.value, device=device), workers=workers, address=address,
            use_gpu=None if device == "auto" else device == "cuda", on_progress=on_progress,
        ),
    )  # fmt: skip


def _show_progress(meter: console.Meter, begun: float, progress: Any) -> None:
    if progress.message:
        meter.say(progress.message)
    if not progress.concepts_total:  # nothing is under way yet
        return
    pace = progress.tokens_run / max(time.monotonic() - begun, 1e-9)
    facts = [f"concept {min(progress.concepts_done + 1, progress.concepts_total)} of {progress.concepts_total}"]
    if progress.tokens_run:
        facts.append(f"{pace:.0f} tokens/s")
    if progress.memory_bytes is not None:
        facts.append(console.megabytes(progress.memory_bytes))
    meter.update(
        f"layer {progress.layer}", progress.rows_done, progress.rows_total, "rows", note=", ".join(facts),
        concepts_done=progress.concepts_done, concepts_total=progress.concepts_total, tokens_per_s=round(pace, 1),
        memory_bytes=progress.memory_bytes,
    )  # fmt: skip
