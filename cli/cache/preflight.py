"""`lenscache preflight`: what a model does on this device, answered before hours are spent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Exit, Option

from .. import console, options
from ..meter import Meter

if TYPE_CHECKING:
    from lenscache.preflight.run import CheckProgress

_LENS_MODULE = "lens_cli.cache.preflight_lenses"


@partial(console.reports_errors, interrupted="no answer is kept")
def preflight(
    model: options.Model,
    pack: Annotated[
        Path | None,
        Option(help="Concept pack to take prompts from. Default: a built-in set of 24 concepts."),
    ] = None,
    checks: Annotated[
        str | None,
        Option(metavar="1,3", help="Only these checks, 1 to 5. Default: all of them."),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Fewer prompts, repeats and concepts.")] = False,
    device: options.Device = "auto",
    time_limit: Annotated[
        float, Option(min=1, metavar="SECONDS", help="Stop a check that takes longer.")
    ] = 900.0,
    keep: Annotated[
        Path | None,
        Option(metavar="DIR", help="Keep the stores that are written; they are removed otherwise."),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Does bf16 run, does batch 4 fit, how fast is it, are lenses as good, can we steer?

    Exit code 1 if one fails.
    """
    from lenscache.concepts.pack import ConceptPack
    from lenscache.preflight import Request, run_preflight

    numbers = parse_checks(checks)
    if pack is not None:
        ConceptPack.load(pack)  # its errors show now, and once
    request = Request(
        model, device, None if pack is None else str(pack.absolute()), quick=quick, seed=seed
    )
    with Meter().running() as meter:
        report = run_preflight(
            request,
            numbers=numbers,
            lens_module=_LENS_MODULE,
            time_limit_s=time_limit,
            keep=keep,
            on_progress=partial(_show_progress, meter),
        )
    if json:
        console.print_json(report.to_json())
    else:
        from .preflight_report import print_preflight

        print_preflight(report)
    if not report.passed:
        raise Exit(1)


def parse_checks(text: str | None) -> tuple[int, ...] | None:
    """Numbers of checks, such as "1,3"; None for all."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part in {"1", "2", "3", "4", "5"} for part in parts):
        raise BadParameter(f"{text!r} names no checks: give numbers from 1 to 5, such as 1,3")
    return tuple(sorted({int(part) for part in parts}))


def _show_progress(meter: Meter, progress: CheckProgress) -> None:
    what = f"check {progress.number} ({progress.name}): {progress.what}"
    if progress.total > 1:
        meter.update(what, progress.done, progress.total, "steps")
    else:
        meter.say(what)
