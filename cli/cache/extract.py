"""`lenscache extract`: in this process, in several that share a model, or in workers of Ray."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import BadParameter, Option

from .. import console, options
from ..meter import Meter
from ..models import load
from ..options import Dtype, Engine, Mode
from ..runlog import RunLog
from . import printing

if TYPE_CHECKING:
    from lenscache.concepts.pack import ConceptPack
    from lenscache.concepts.plan import SamplePlan
    from lenscache.extract.extraction import Engine as ExtractEngine
    from lenscache.extract.request import Request
    from lenscache.extract.settings import ExtractProgress, ExtractSettings

Pooling = Literal["mean", "max", "last"]

_many = partial(Option, rich_help_panel="Many workers")


@partial(
    console.reports_errors,
    interrupted="complete blocks are kept, the same command goes on from there",
)
def extract(
    store: options.StorePath,
    pack: options.Pack,
    model: options.Model,
    level: options.Levels = None,
    model_layers: options.ModelLayers = None,
    templates: options.Templates = None,
    mode: Annotated[
        Mode, Option(help="What to pool: the prompt, the completion, or both in one pass.")
    ] = "combined",
    batch_size: options.BatchSize = "4",
    max_new_tokens: options.MaxNewTokens = 20,
    max_prompt_tokens: options.MaxPromptTokens = None,
    pooling: Annotated[Pooling, Option(help="How positions become one vector.")] = "mean",
    pool_first_position: Annotated[
        bool,
        Option(
            "--pool-first-position", help="Pool the first position too, often an attention sink."
        ),
    ] = False,
    dtype: options.DtypeOption = "auto",
    store_dtype: options.StoreDtypeOption = "bfloat16",
    device: options.Device = "auto",
    device_map: options.DeviceMapOption = None,
    adapter: options.Adapter = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    samples: options.Samples = None,
    top_up: Annotated[
        Path | None,
        Option(
            metavar="hungry.json",
            help="Add samples for the concepts of this file, as another round.",
        ),
    ] = None,
    reuse: Annotated[
        list[str] | None,
        Option(
            metavar="STORE",
            help="Copy rows that this store holds, as of an older pack; repeatable.",
        ),
    ] = None,
    background: options.Background = None,
    background_column: options.BackgroundColumn = "text",
    block_rows: Annotated[
        int | None, Option(min=1, help="Rows written, and kept, as one unit. Default: about 256.")
    ] = None,
    partition: Annotated[
        str | None,
        Option(
            metavar="K/N",
            help="Only every N-th block, from the K-th on: N such runs, anywhere, make the whole.",
        ),
    ] = None,
    engine: Annotated[
        Engine, _many(help="This process, or the workers of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        _many(
            min=1,
            metavar="N",
            help="Models at a time. Default: one for every GPU of the cluster, or one.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        _many(metavar="HOST:PORT", help="Of a running Ray cluster. Default: one is started here."),
    ] = None,
    log_json: options.LogJson = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Extract activations into STORE, or continue where an earlier run stopped."""
    from lenscache.extract.background import default_background
    from lenscache.extract.partitions import Partition
    from lenscache.extract.settings import ExtractSettings
    from lenscache.store.store import open_store

    if engine == "ray" and device_map is not None:
        raise BadParameter("Ray gives each worker one GPU: leave out --device-map")
    options.check_engine(engine, workers, address)
    concepts = options.load_pack(pack, templates)
    settings = ExtractSettings(
        mode=mode,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        model_layers=options.parse_model_layers(model_layers),
        pooling=pooling,
        pool_first_position=pool_first_position,
        store_dtype=store_dtype,
        seed=seed,
        batch_size=options.parse_batch_size(batch_size),
        block_rows=block_rows,
        samples=samples,
        partition=None if partition is None else Partition.parse(partition),
    )
    beside: int | tuple[str, ...] | None = None
    if background is not None:
        beside = options.parse_background(background, background_column)
    elif top_up is None:
        beside = default_background(store)
    request = _request(store, concepts, settings, level, limit, reuse or [], top_up, beside)
    said = _say_unnamed(request, quiet=log_json)
    runs: ExtractEngine
    if engine == "local":
        from lenscache.extract.extraction import LocalEngine

        loaded = load(model, dtype, device, device_map, adapter)
        runs, place = LocalEngine(loaded), loaded.placement
    else:
        runs = _ray_engine(model, dtype, device, adapter, workers, address)
        place = f"ray, {device}"
    asked = {"levels": level, "limit": limit, "pack": f"{concepts.name} ({concepts.digest})"}
    log = RunLog(
        "extract",
        store,
        to_stderr=log_json,
        device=place,
        **asked,
        model=model,
        adapter=adapter,
        settings=asdict(settings),
    )
    with log, Meter(log).running() as meter:
        if said:
            log.event("message", **said)
        report = runs.run(request, partial(_show_progress, meter, time.monotonic()))
        log.result(report=asdict(report))
    if json:
        console.print_json(asdict(report))
    else:
        printing.print_report(open_store(store), report)


def _request(
    store: str,
    concepts: ConceptPack,
    settings: ExtractSettings,
    levels: list[int] | None,
    limit: int | None,
    reuse: list[str],
    top_up: Path | None,
    background: int | tuple[str, ...] | None,
) -> Request:
    """What is asked for, checked as far as it can be before a model is loaded."""
    from lenscache.concepts.plan import select_concepts
    from lenscache.errors import PlanError
    from lenscache.extract.planned_rounds import read_top_up
    from lenscache.extract.request import Request
    from lenscache.store.remote import check_place
    from lenscache.store.store import open_store

    if top_up is not None and (levels or limit or reuse or background):
        raise PlanError(
            "--top-up takes its concepts from the file: leave out --level, --limit, --reuse and "
            "--background"
        )
    select_concepts(concepts, levels, limit)
    check_place(store)
    for path in reuse:
        open_store(path)
    added = None if top_up is None else read_top_up(top_up, settings.samples)
    chosen = None if levels is None else tuple(levels)
    return Request(store, concepts, settings, chosen, limit, tuple(reuse), added, background)


def _say_unnamed(request: Request, *, quiet: bool) -> dict[str, Any]:
    """Say which concepts have too few texts for a grade; of a top-up, with all it could ever add.

    A top-up that cannot be served is refused here, before a model is loaded.

    Returns
    -------
    The same for the log; empty where all is well.
    """
    from lenscache.concepts.evidence import count_unnamed
    from lenscache.concepts.plan import PackPrompts, plan_samples, plan_top_up
    from lenscache.extract.planned_rounds import check_top_up
    from lenscache.store.store import open_store

    pack, settings = request.pack, request.settings
    plan: SamplePlan | None
    lines: list[str] = []
    if request.top_up is None:
        seed, samples = settings.seed, settings.samples
        plan = plan_samples(pack, request.levels, seed=seed, limit=request.limit, samples=samples)
    else:
        added = request.top_up
        lines = check_top_up(open_store(request.path), pack, added).lines()
        prompts = PackPrompts(pack, settings.seed)
        plan = plan_top_up(prompts, added.concepts, {}, samples=sys.maxsize, resample=False)
    unnamed = None if plan is None else count_unnamed(pack, plan)
    if unnamed is not None and not unnamed.lines():
        unnamed = None
    facts: dict[str, Any] = {}
    if unnamed is not None:
        lines, facts = [*lines, *unnamed.lines()], unnamed.to_dict()
    if not quiet:
        for line in lines:
            console.note(console.visible(line, len(line)))
    return {"message": "\n".join(lines), **facts} if lines else {}


def _ray_engine(
    model: str,
    dtype: Dtype,
    device: str,
    adapter: str | None,
    workers: int | None,
    address: str | None,
) -> ExtractEngine:
    from lenscache.extract.ray_driver import RayEngine
    from lenscache.model.loading import load_model, silence

    if device.startswith("cuda:"):
        raise BadParameter(
            f"Ray gives each worker a GPU of its own, {device} was asked for: pass --device cuda"
        )
    silence()
    # The absolute path of a folder: workers start in other folders.
    place = _absolute(model)
    beside = None if adapter is None else _absolute(adapter)
    new_model = partial(load_model, place, dtype=dtype, device=device, adapter=beside)
    use_gpu = None if device == "auto" else device == "cuda"
    return RayEngine(new_model, workers, address, use_gpu)


def _absolute(name: str) -> str:
    """A name of the hub, or the absolute path of a folder."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _show_progress(meter: Meter, begun: float, progress: ExtractProgress) -> None:
    if progress.message:
        meter.say(progress.message)
    if not progress.rows_total:  # nothing is under way yet
        return
    pace = progress.tokens_run / max(time.monotonic() - begun, 1e-9)
    at = min(progress.concepts_done + 1, progress.concepts_total)
    facts = [f"concept {at} of {progress.concepts_total}"] if progress.concepts_total else []
    if progress.tokens_run:
        facts.append(f"{pace:.0f} tokens/s")
    if progress.memory_bytes is not None:
        facts.append(console.megabytes(progress.memory_bytes))
    meter.update(
        f"level {progress.level}" if progress.concepts_total else "background",
        progress.rows_done,
        progress.rows_total,
        "rows",
        note=", ".join(facts),
        concepts_done=progress.concepts_done,
        concepts_total=progress.concepts_total,
        tokens_per_s=round(pace, 1),
        memory_bytes=progress.memory_bytes,
    )
