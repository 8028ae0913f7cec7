"""`lenstrain export` and `lenstrain import`: lens packs in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from .. import console, options
from ..console import visible
from ..options import MinGrade

# Choices of --to.
Target = Literal["hatcat", "gguf", "safetensors"]
Source = Literal["hatcat"]  # choices of --from
# Choices of --direction.
Kind = Literal["weights", "mean-difference"]
_WHAT = {"hatcat": "classifiers", "gguf": "control vectors", "safetensors": "lenses"}


@console.reports_errors
def export_pack(
    folder: options.PackFolder,
    to: Annotated[
        Target,
        Option(
            help="hatcat: state dicts; gguf: control vectors for llama.cpp and repeng; "
            "safetensors: ours."
        ),
    ],
    out: Annotated[Path, Option(help="Folder to write to.")],
    concept: Annotated[
        list[str] | None,
        Option(metavar="ID", help="Concept to export; repeatable. Default: all."),
    ] = None,
    min_grade: Annotated[MinGrade, Option(help="Leave out lenses below this grade.")] = "C",
    ungraded: options.Ungraded = False,
    direction: Annotated[
        Kind,
        Option(
            help="What control vectors lie along: the difference of means, or the weights of a "
            "lens."
        ),
    ] = "mean-difference",
    overwrite: Annotated[bool, options.overwrite("an earlier export that is there")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write lenses for other programs, or some of them as a pack of their own."""
    from lenstrain.exchange.export import export_pack as write_pack
    from lenstrain.metrics.grade import Grade

    written = write_pack(
        folder,
        out,
        to,
        concepts=concept,
        min_grade=Grade(min_grade),
        untrusted=ungraded,
        kind=direction,
        overwrite=overwrite,
    )
    if json:
        console.print_json({"out": str(out), "to": to, **written._asdict()})
        return
    for reason in written.left_out.values():
        console.note(f"left out: {visible(reason, len(reason))}")
    console.say(
        f"{len(written.files)} {_WHAT[to]} written to {out}; {len(written.left_out)} left out"
    )


@console.reports_errors
def import_pack(
    folder: Annotated[
        Path, Argument(metavar="DIR", help="Folder of layer0, layer1 ... with classifiers.")
    ],
    source: Annotated[Source, Option("--from", help="Which program wrote it.")],
    out: Annotated[Path, Option(help="Folder to write the lens pack to.")],
    model_layer: Annotated[
        int | None,
        Option(
            min=0,
            metavar="N",
            help="Transformer block, counted from 0, that the classifiers were trained on.",
        ),
    ] = None,
    overwrite: Annotated[bool, options.overwrite("a lens pack that is there")] = False,
    debug: options.Debug = False,
) -> None:
    """Read classifiers of another program as a lens pack; nothing in them is executed."""
    from lenstrain.exchange.export import import_hatcat

    pack = import_hatcat(folder, out, model_layer=model_layer, overwrite=overwrite)
    unknown = sorted(
        {what.replace("_", " ") for lens in pack for what in lens.metrics.unknown or ()}
    )
    if unknown:
        console.say(
            f"not known, and stood in for: {', '.join(unknown)}; ungraded until they are judged"
        )
    console.say(f"{len(pack)} {pack.family} lenses written to {out}; next: lenstrain show {out}")
