"""`lenscache plan`: what an extraction would cost, timed on this device or computed for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Option

from .. import console, options
from ..models import load
from ..options import Dtype, Mode
from . import printing

if TYPE_CHECKING:
    from lenscache.extract.estimate import RunEstimate
    from lenscache.forecast import Device as ForecastDevice
    from lenscache.forecast import Forecast
    from lenscache.model.loading import LoadedModel


@console.reports_errors
def plan(
    pack: options.Pack,
    model: options.Model,
    level: options.Levels = None,
    model_layers: options.ModelLayers = None,
    templates: options.Templates = None,
    mode: Annotated[Mode, Option(help="As for extract.")] = "combined",
    batch_size: options.BatchSize = "4",
    max_new_tokens: options.MaxNewTokens = 20,
    max_prompt_tokens: options.MaxPromptTokens = None,
    dtype: Annotated[Dtype, Option(help="Weights and arithmetic, as for extract.")] = "auto",
    store_dtype: options.StoreDtypeOption = "bfloat16",
    device: options.Device = "auto",
    device_map: options.DeviceMapOption = None,
    limit: options.Limit = None,
    samples: options.Samples = None,
    background: options.Background = None,
    background_column: options.BackgroundColumn = "text",
    block_rows: Annotated[
        int | None,
        Option(min=1, help="Rows written as one unit, as for extract. Default: about 256."),
    ] = None,
    devices: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Estimate for so many devices, running nothing."),
    ] = None,
    device_kind: Annotated[
        str | None,
        Option(
            metavar="KIND",
            help="Of this kind: h100, h200, a100, l40s, rtx4090, cpu; here for this one, measured. "
            "A folder with config.json is model enough for all but here.",
        ),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what an extraction would cost: prompts, tokens, bytes and time.

    The time is that of a few timed batches, scaled up. With --devices or --device-kind, estimate
    for other machines: time and bytes. Concepts without texts for a grade are counted at the end.
    """
    from lenscache.concepts.evidence import count_unnamed
    from lenscache.concepts.plan import plan_samples, select_concepts
    from lenscache.extract.background import DEFAULT_BACKGROUND
    from lenscache.extract.settings import ExtractSettings

    if device_map is not None and (devices is not None or device_kind is not None):
        raise BadParameter(
            "--device-map is for what is timed here: leave out --devices and --device-kind"
        )
    concepts = options.load_pack(pack, templates)
    settings = ExtractSettings(
        mode=mode,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        model_layers=options.parse_model_layers(model_layers),
        store_dtype=store_dtype,
        batch_size=options.parse_batch_size(batch_size),
        samples=samples,
        block_rows=block_rows,
    )
    its = options.parse_background(background or str(DEFAULT_BACKGROUND), background_column)
    select_concepts(concepts, level, limit)  # before the model is loaded
    texts = plan_samples(concepts, level, seed=settings.seed, limit=limit, samples=samples)
    unnamed = count_unnamed(concepts, texts)
    estimate: RunEstimate | Forecast
    show: Callable[[], None]
    if devices is None and device_kind is None:
        from lenscache.extract.estimate import estimate_run

        loaded = load(model, dtype, device, device_map)
        timed = estimate_run(concepts, loaded, settings, levels=level, limit=limit, background=its)
        estimate, show = timed, partial(printing.print_estimate, timed)
    else:
        from lenscache.forecast import forecast_run, outline_work

        outline, kind = _outline(model, dtype, device, device_kind or "here")
        work = outline_work(concepts, outline, settings, levels=level, limit=limit, background=its)
        forecast = forecast_run(work, settings, kind, devices or 1)
        estimate, show = forecast, partial(printing.print_forecast, forecast)
    if json:
        console.print_json(asdict(estimate) | {"unnamed_texts": unnamed.to_dict()})
    else:
        show()
        printing.print_unnamed(unnamed)


def _outline(
    model: str, dtype: Dtype, device: str, kind: str
) -> tuple[LoadedModel, ForecastDevice]:
    """A model, loaded only if this device is meant, and the figures of the device."""
    from lenscache.forecast import find_device, measure_device
    from lenscache.model.loading import silence
    from lenscache.model.outline import outline_model

    if kind != "here":
        figures = find_device(kind)
        silence()
        return outline_model(model, dtype=dtype), figures
    loaded = load(model, dtype, device)
    return loaded, measure_device(loaded.device, loaded.dtype)
