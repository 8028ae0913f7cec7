"""Options that several commands share, and what reads them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

if TYPE_CHECKING:
    from lenscache.concepts.pack import ConceptPack

# Choices of the options of these names.
Mode = Literal["combined", "prompt", "completion"]
StoreDtype = Literal["bfloat16", "float16", "float32", "int8"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
Engine = Literal["local", "ray"]
MinGrade = Literal["A", "B", "C"]
Quoting = Literal["auto", "csv", "none"]

_count = partial(Option, min=1, metavar="N")

StorePath = Annotated[
    str, Argument(metavar="STORE", help="The store: a folder, or a URL such as s3://bucket/prefix.")
]
PackFile = Annotated[Path, Argument(metavar="PACK", help="Concept pack, a JSON file.")]
PackFolder = Annotated[Path, Argument(metavar="DIR", help="Folder of a lens pack.")]
# Of labelled tables.
TextColumn = Annotated[str, Option("--text", help="Tables: column of texts, such as data.text.")]
LabelColumn = Annotated[str, Option("--label", help="Tables: column of labels.")]
SplitColumn = Annotated[
    str | None, Option("--split", help="Tables: column of splits. Default: they are drawn.")
]
BinaryConcept = Annotated[
    str | None, Option("--concept", help="Tables: id of a binary set's concept.")
]
Separator = Annotated[
    str | None,
    Option(help="Tables: between the labels of one row; '' to say that there is one in each."),
]
Threshold = Annotated[
    float | None, Option(help="Tables: labels are scores, from this on the concept is there.")
]
FoldCase = Annotated[
    bool, Option("--fold-case", help="Tables: labels that differ in case only are one.")
]
Missing = Annotated[
    list[str] | None,
    Option(metavar="LABEL", help="Tables: a label that says that there is none; repeatable."),
]
KeepNa = Annotated[
    bool, Option("--keep-na", help="Tables: labels such as NA, None and null are classes.")
]
AsClasses = Annotated[
    bool,
    Option("--as-classes", help="Tables: labels are classes though numbers or nearly all differ."),
]
Encoding = Annotated[str, Option(help="Tables: what text files are written in.")]
Delimiter = Annotated[
    str | None, Option(help="CSV, TSV: between fields. Default: a comma or a tab, by the suffix.")
]
QuotingOption = Annotated[
    Quoting,
    Option(
        "--quoting",
        help="CSV, TSV: csv: marks stand around fields; none: marks are text; auto: none for TSV "
        "that does not read as csv.",
    ),
]
Pack = Annotated[Path, Option(help="Concept pack, a JSON file.")]
Templates = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="More prompts for every concept: one template a line, such as: About {name}.",
    ),
]
Model = Annotated[str, Option(help="Model folder, Hugging Face id, or smollm2-135m.")]
DtypeOption = Annotated[
    Dtype, Option(help="Weights and arithmetic; auto: bfloat16 where the device has it.")
]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]
DeviceMapOption = Annotated[
    DeviceMap | None,
    Option(
        show_default=False,
        help="Spread the blocks over all cards, what they do not hold over memory and disk (slow); "
        "needs accelerate.",
    ),
]
Adapter = Annotated[
    str | None,
    Option(metavar="PATH", help="LoRA or another adapter that peft saved: put it into the model."),
]
AllowOtherModel = Annotated[
    bool, Option("--allow-other-model", help="Go on with a model that the pack was not made for.")
]
StoreDtypeOption = Annotated[
    StoreDtype, Option(help="Type of the stored activations; int8 is lossy.")
]
BatchSize = Annotated[
    str, Option(metavar="N|auto", help="Prompts a forward pass; auto tries what fits and pays.")
]
MaxNewTokens = Annotated[int, Option(min=0, help="Tokens to generate a prompt, at most.")]
MaxPromptTokens = Annotated[
    int | None,
    _count(help="Cut longer prompts to N tokens. Default: what the model has positions for."),
]
ModelLayers = Annotated[
    str | None,
    Option(metavar="0,5,10-15", help="Transformer blocks, counted from 0. Default: all."),
]
Levels = Annotated[
    list[int] | None,
    Option(
        "--level",
        min=0,
        help="Level of abstraction in the concept hierarchy; repeatable. Default: all.",
    ),
]
OneLevel = Annotated[
    int | None,
    Option("--level", min=0, metavar="N", help="Only this level of abstraction. Default: all."),
]
Limit = Annotated[int | None, _count(help="Only the first N concepts of each level.")]
Samples = Annotated[
    int | None, _count(help="Only the first N prompts of each concept; a top-up adds more.")
]
Background = Annotated[
    str | None,
    Option(
        metavar="FILE|N",
        help="Texts that express no concept: of a file, one a line or a column of a table, or N "
        "that the model writes; 0 for none. Half teach lenses what no concept is, half judge them. "
        "Default: 200.",
    ),
]
BackgroundColumn = Annotated[
    str, Option(metavar="NAME", help="Column of the background texts, in a table.")
]
Labels = Annotated[
    str | None,
    Option(metavar="NAME", help="Label set to train on. Default: the labels of the pack."),
]
Concepts = Annotated[
    list[str] | None, Option(help="Concept id; repeatable. Default: all extracted.")
]
Ungraded = Annotated[
    bool, Option("--ungraded", help="Take lenses, too, that are ungraded or have a capped grade.")
]
Fpr = Annotated[
    float | None,
    Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Set each threshold to let through this share of unrelated samples.",
    ),
]
StoreOption = Annotated[
    str,
    Option(
        "--store",
        metavar="STORE",
        help="The store that the packs were fitted on: a folder or a URL.",
    ),
]
Seed = Annotated[int, Option(min=0, help="Keys everything that is drawn.")]
Jobs = Annotated[int | None, _count(help="Threads. Default: one a core, 8 at most.")]
LogJson = Annotated[
    bool,
    Option(
        "--log-json",
        help="Show progress as JSON lines on stderr; they are kept beside the result anyway.",
    ),
]
Json = Annotated[bool, Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]


def overwrite(what: str) -> Any:
    """The option --overwrite of a command that may replace `what`."""
    return Option("--overwrite", help=f"Replace {what}.")


def load_pack(path: Path, templates: Path | None) -> ConceptPack:
    """The pack at `path`, with the templates of a file added to its own."""
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
            raise BadParameter(
                f"{part!r} is not a model layer: give numbers and ranges, such as 0,5,10-15, or all"
            )
        if dash and int(last) < int(first):
            raise BadParameter(f"the range {part!r} runs backwards: give the smaller number first")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(dict.fromkeys(numbers))


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """A number of prompts, or "auto"."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise BadParameter(f"{text!r} is no batch size: give a number from 1 on, or auto")
    return int(text)


def parse_background(text: str, column: str) -> int | tuple[str, ...] | None:
    """How many background texts the model writes, None for none, or the texts of a file."""
    from lenscache.concepts.importers.texts import read_texts

    return (int(text) or None) if text.isdecimal() else read_texts(text, column)


def check_engine(engine: Engine, workers: int | None, address: str | None) -> None:
    """Refuse --engine ray where Ray is not installed, and options of Ray without --engine ray."""
    if engine == "ray":
        from lenscache.cluster import require_ray

        require_ray()
    elif workers is not None or address is not None:
        raise BadParameter(
            "--workers and --address are for --engine ray: add it, or leave them out"
        )
