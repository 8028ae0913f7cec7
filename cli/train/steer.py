"""`lenstrain steer`: what a model writes with and without a concept pushed up or down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.text import Text
from typer import Option

from .. import console, options
from ..console import visible
from ..models import load_for
from .grades import old_rule

if TYPE_CHECKING:
    from lenstrain.live.steering import Steered
    from lenstrain.pack.lens import Direction, Lens

# Choices of --direction.
Kind = Literal["mean-difference", "weights"]
Positions = Literal["all", "prompt", "completion"]
AllowedGrade = Literal["C"]  # choices of --allow-grade


@console.reports_errors
def steer(
    folder: options.PackFolder,
    model: options.Model,
    concept: Annotated[list[str], Option(metavar="ID", help="Concept to steer along; repeatable.")],
    prompt: Annotated[str, Option(help="What the model continues.")],
    strength: Annotated[
        list[float] | None,
        Option(
            help="How far, in deviations of the activations; negative to go against it; repeatable."
        ),
    ] = None,
    ablate: Annotated[bool, Option("--ablate", help="Project the direction out instead.")] = False,
    direction: Annotated[
        Kind,
        Option(help="From all activations to the concept's, or along the weights of its lens."),
    ] = "mean-difference",
    at: Annotated[
        list[int] | None,
        Option(
            metavar="N",
            help="Model layers to change, of those that the lens reads; repeatable. Default: of "
            "several, the middle one; all to ablate.",
        ),
    ] = None,
    positions: Annotated[Positions, Option(help="Which positions to change.")] = "all",
    allow_grade: Annotated[
        AllowedGrade | None,
        Option(
            help="Steer along a lens of this grade, too, or one that is ungraded or whose grade is "
            "capped.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Tokens to write.")] = 40,
    temperature: Annotated[float, Option(min=0.01, help="Of the sampling.")] = 0.7,
    seed: options.Seed = 0,
    dtype: options.DtypeOption = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMapOption = None,
    adapter: options.Adapter = None,
    allow_other_model: options.AllowOtherModel = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Let a model write with and without concepts pushed up or down.

    Both texts are read with the lenses of the concepts.
    """
    from lenstrain.live.steering import directions_at, directions_of, find_lens
    from lenstrain.live.steering import steer as steer_with
    from lenstrain.pack.pack import LensPack

    pack = LensPack.load(folder)
    lenses = [find_lens(pack, name) for name in concept]
    found: list[Direction] = []
    for lens in lenses:
        its = directions_of(lens, direction, allow_grade_c=allow_grade is not None)
        # Pushes at several model layers add up. To ablate is to project out at each of them.
        found += its if ablate and at is None else directions_at(its, at)
    loaded, notes = load_for(
        pack, model, dtype, device, device_map, adapter, allow_other=allow_other_model
    )
    notes += [line] if (line := old_rule(pack)) is not None else []
    if len(found) < sum(len(lens.model_layers) for lens in lenses):
        where = ", ".join(str(i) for i in sorted({each.model_layer for each in found}))
        notes.append(f"steered at model layer {where}: --at chooses others that the lens reads")
    results = steer_with(
        pack,
        loaded,
        prompt,
        lenses,
        found,
        [0.0] if ablate else strength or [4.0],
        ablate=ablate,
        positions=positions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if json:
        console.print_json([_to_json(lenses, each, ablate) for each in results])
    else:
        _print(lenses, results, notes, ablate)


def _name(result: Steered, ablate: bool) -> str:
    how = result.strength
    return "not steered" if how is None else "ablated" if ablate else f"strength {how:+g}"


def _lines(text: str) -> str:
    """The whole text, its line ends kept and everything else that could move the cursor escaped."""
    return "\n".join(visible(line, len(line)) for line in text.split("\n"))


def _to_json(lenses: Sequence[Lens], result: Steered, ablate: bool) -> dict[str, Any]:
    from lenstrain.pack.folder import none_for_nan

    read = {
        lens.concept: {
            "grade": None if lens.grade is None else lens.grade.value,
            "status": lens.status,
            "reason": lens.reason,
            "probability": probability,
            "signal": signal,
        }
        for lens, (probability, signal) in zip(lenses, result.readings, strict=True)
    }
    found = {
        "name": _name(result, ablate),
        "strength": result.strength,
        "text": result.written.text,
        "perplexity": result.written.perplexity,
        "lenses": read,
    }
    return none_for_nan(found)  # type: ignore[no-any-return]


def _print(
    lenses: Sequence[Lens], results: Sequence[Steered], notes: Sequence[str], ablate: bool
) -> None:
    out = console.out()
    for result in results:
        written = result.written
        out.print(Text(_name(result, ablate), style="bold"), soft_wrap=True)
        out.print(
            Text.assemble((_lines(written.prompt), "dim"), _lines(written.text)), soft_wrap=True
        )
        parts = [f"perplexity {written.perplexity:.1f}"]
        for lens, (probability, signal) in zip(lenses, result.readings, strict=True):
            read = f"p = {probability:.2f}, {signal:+.1f} deviations"
            parts.append(f"{visible(lens.name)} ({lens.grade_shown}) {read}")
        out.print(Text("; ".join(parts), style="dim"), soft_wrap=True)
        out.print()
    console.say(
        "both texts are read by the model as it is, without steering: perplexity of what was "
        "written, and each lens's calibrated probability and distance from its noise floor",
        style="dim",
    )
    for note in notes:
        console.say(f"note: {note}", style="dim")
