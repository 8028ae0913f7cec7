"""`lenstrain export` and `lenstrain import`: lens packs in the formats of other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import console, options
from ..console import visible


class Target(StrEnum):
    """Choices of --to."""

    hatcat = "hatcat"
    gguf = "gguf"
    safetensors = "safetensors"


class Source(StrEnum):
    """Choices of --from."""

    hatcat = "hatcat"


class MinGrade(StrEnum):
    """Choices of --min-grade."""

    A = "A"
    B = "B"
    C = "C"


class Kind(StrEnum):
    """Choices of --direction."""

    weights = "weights"
    mean_difference = "mean-difference"


_WHAT = {Target.hatcat: "classifiers", Target.gguf: "control vectors", Target.safetensors: "lenses"}


@console.reports_errors
def export_pack(
    folder: options.PackFolder,
    to: Annotated[
        Target,
        typer.Option(
            help=(
                "hatcat: state dicts; gguf: control vectors for llama.cpp and repeng; "
                "safetensors: ours."
            )
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Concept to export; repeatable. Default: all."),
    ] = None,
    min_grade: Annotated[
        MinGrade, typer.Option(help="Leave out lenses below this grade.")
    ] = MinGrade.C,
    direction: Annotated[
        Kind,
        typer.Option(
            help=(
                "What control vectors lie along: the difference of means, or the weights of a lens."
            )
        ),
    ] = Kind.mean_difference,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export that is there.")
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write lenses for other programs, or some of them as a pack of their own."""
    from lenstrain.exchange.export import export_pack as write_pack
    from lenstrain.metrics.score import Grade

    written = write_pack(
        folder,
        out,
        to.value,
        concepts=concept,
        min_grade=Grade(min_grade.value),
        kind=direction.value,
        overwrite=overwrite,
    )
    if json:
        console.print_json({"out": str(out), "to": to.value, **written._asdict()})
        return
    for reason in written.left_out.values():
        console.err().print(f"left out: {visible(reason, len(reason))}", markup=False)
    line = f"{len(written.files)} {_WHAT[to]} written to {out}; {len(written.left_out)} left out"
    console.out().print(line, markup=False, soft_wrap=True)


@console.reports_errors
def import_pack(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of layer0, layer1 ... with classifiers.")
    ],
    source: Annotated[Source, typer.Option("--from", help="Which program wrote it.")],
    out: Annotated[Path, typer.Option(help="Folder to write the lens pack to.")],
    model_layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Transformer block, counted from 0, that the classifiers were trained on.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a lens pack that is there.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Read classifiers of another program as a lens pack; nothing in them is executed."""
    from lenstrain.exchange.export import import_hatcat

    pack = import_hatcat(folder, out, model_layer=model_layer, overwrite=overwrite)
    unknown = sorted(
        {what.replace("_", " ") for lens in pack for what in lens.metrics.get("unknown", ())}
    )
    if unknown:
        what = f"not known, and stood in for: {', '.join(unknown)}"
        console.out().print(f"{what}; grade C until they are judged", markup=False, soft_wrap=True)
    line = f"{len(pack)} {pack.family} lenses written to {out}; next: lenstrain show {out}"
    console.out().print(line, markup=False, soft_wrap=True)
