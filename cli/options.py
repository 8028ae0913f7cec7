"""Options that several commands share."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from lenscache.concepts.pack import ConceptPack


class Mode(StrEnum):
    """Choices of --mode."""

    combined = "combined"
    prompt = "prompt"
    completion = "completion"


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


StorePath = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="The store: a folder, or a URL such as s3://bucket/prefix."
    ),
]
PackFile = Annotated[Path, typer.Argument(metavar="PACK", help="Concept pack, a JSON file.")]
PackFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a lens pack.")]
Pack = Annotated[Path, typer.Option(help="Concept pack, a JSON file.")]
Templates = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="More prompts for every concept: one template a line, such as: About {name}.",
    ),
]
Model = Annotated[str, typer.Option(help="Model folder, Hugging Face id, or smollm2-135m.")]
BatchSize = Annotated[
    str,
    typer.Option(metavar="N|auto", help="Prompts a forward pass; auto tries what fits and pays."),
]
MaxNewTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate a prompt, at most.")]
MaxPromptTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Cut longer prompts to N tokens. Default: what the model has positions for.",
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first N concepts of each level.")
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Only the first N prompts of each concept; a top-up adds more."
    ),
]
Levels = Annotated[
    list[int] | None,
    typer.Option(
        "--level",
        min=0,
        help="Level of abstraction in the concept hierarchy; repeatable. Default: all.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Keys everything that is drawn.")]
OneLevel = Annotated[
    int | None,
    typer.Option(
        "--level", min=0, metavar="N", help="Only this level of abstraction. Default: all."
    ),
]
Jobs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads. Default: one a core, 8 at most.")
]
Fpr = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help=(
            "Set each threshold to let through this share of unrelated samples. Default: the best "
            "F1."
        ),
    ),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="STORE",
        help="The store that the packs were fitted on: a folder or a URL.",
    ),
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json",
        help="Show progress as JSON lines on stderr; they are kept beside the result anyway.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def load_pack(path: Path, templates: Path | None) -> ConceptPack:
    """The pack at `path`, with the templates of a file beside its own."""
    from lenscache.concepts.pack import ConceptPack
    from lenscache.concepts.templates import read_templates

    pack = ConceptPack.load(path)
    if templates is None:
        return pack
    return replace(
        pack, templates=tuple(dict.fromkeys((*pack.templates, *read_templates(templates))))
    )


def parse_model_layers(text: str | None) -> tuple[int, ...] | None:
    """Numbers and ranges, such as "0,5,10-15"; None for "all"."""
    if text is None or text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(
                f"{part!r} is not a model layer: give numbers and ranges, such as 0,5,10-15, or all"
            )
        if dash and int(last) < int(first):
            raise typer.BadParameter(
                f"the range {part!r} runs backwards: give the smaller number first"
            )
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(dict.fromkeys(numbers))


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """A number of prompts, or "auto"."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no batch size: give a number from 1 on, or auto")
    return int(text)


ModelLayers = Annotated[
    str | None,
    typer.Option(metavar="0,5,10-15", help="Transformer blocks, counted from 0. Default: all."),
]

FitModelLayers = Annotated[
    str | None,
    typer.Option(
        metavar="0,5,10-15",
        help="Transformer blocks to choose from, a concept at a time. Default: all.",
    ),
]

Labels = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Label set to train on. Default: the labels of the pack."),
]
