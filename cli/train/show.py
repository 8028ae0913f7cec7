"""`lenstrain show`: the lenses of a pack, all of them or those that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text
from typer import BadParameter, Option

from .. import console, options
from ..console import visible
from . import grades

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack
    from lenstrain.pack.records import LensMetrics

# Choices of the options of these names.
# typer takes no list of literals.
GradeShown = StrEnum("GradeShown", {"A": "A", "B": "B", "C": "C", "ungraded": "ungraded"})
Status = StrEnum(
    "Status",
    {"ungraded": "ungraded", "provisional": "provisional", "certified": "certified"},
)
Sort = Literal["score", "grade", "name", "f1", "samples", "level"]

_MANY, _FEW = 40, 20  # of more lenses than many, few are shown
_LEAST_NAME, _MOST_NAME = 12, 32  # columns; at most where lines may be as long as they are
_REASON_WIDTH = 24  # less room than this beside the figures, and it gets a line of its own

_HEADERS = (
    *("\nlevel", "model\nlayer", "\ntests", "test\nF1", "\nscore", "\n95 %"),
    *("\nnames", "\ngrade", "best\ncontrol", "gradu-\nated"),
)
_AGREEMENT = "agree-\nment"
_NATURAL = ("natural\nscore", "fires\nthere")
_ALWAYS = len(_HEADERS) - 2  # columns; the others are left out where there is no room
_LEGEND = (
    "tests: distinct test texts (of these, without the concept's name); score: on those without, "
    "average precision at 1 % prevalence, with its 95 % interval; names: score on texts with the "
    "name, which is name detection; grade: of the score, - ungraded, ? the interval crosses a "
    "grade's boundary; control: the best score of what knows nothing of the concept, ! where the "
    "lens is no better"
)


@console.reports_errors
def show(
    folder: options.PackFolder,
    grade: Annotated[list[GradeShown] | None, Option(help="Of this grade; repeatable.")] = None,
    status: Annotated[list[Status] | None, Option(help="Of this status; repeatable.")] = None,
    level: options.Levels = None,
    concept: Annotated[
        list[str] | None, Option(metavar="ID", help="Id or name of a concept; repeatable.")
    ] = None,
    where: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=VALUE",
            help="With this attribute; repeatable: values of one name are alternatives.",
        ),
    ] = None,
    sort: Annotated[
        Sort | None,
        Option(help="Highest or best first, names from A to Z. Default: by level, then by score."),
    ] = None,
    limit: Annotated[
        int | None,
        Option(
            min=1, metavar="N", help=f"Only the first N. Default: all; {_FEW} of more than {_MANY}."
        ),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the lenses of a pack: what each detects, where, and how far it can be trusted."""
    from lenstrain.pack.pack import LensPack

    pack = LensPack.load(folder)
    wanted = _attributes_wanted(pack, where or [])
    chosen = [
        lens
        for lens in _called(pack, concept)
        if (not grade or (lens.grade or "ungraded") in grade)
        and (not status or lens.status in status)
        and (not level or lens.level in level)
        and lens.has_attributes(wanted)
    ]
    if sort is not None or not json:
        chosen = _sorted(chosen, sort or "level")
    if json:
        _print_json(pack, chosen, limit)
        return
    _print_head(folder, pack)
    shown = chosen[: limit or (_FEW if len(chosen) > _MANY else None)]
    if shown:
        _print_lenses(shown)
    else:
        console.say("no lens is as asked for")
    if len(shown) < len(chosen):
        grades.say(
            f"{len(shown)} of {len(chosen)} lenses are shown: --limit {len(chosen)} shows them "
            "all; --grade, --status, --level, --concept, --where and --sort choose others"
        )
    if len(chosen) < len(pack):
        console.say(f"{len(chosen)} of {len(pack)} lenses were asked for; of the whole pack:")
    grades.say(grades.summary_line(pack))
    grades.tell_standing(pack)
    if (found := pack.provenance.calibration) and found["brier"] is not None:
        error, smooth = found["expected_calibration_error"], found["smooth_calibration_error"]
        grades.say(
            f"probabilities: calibration error {error:.3f} ({smooth:.3f} without bins) and Brier "
            f"score {found['brier']:.3f}, on the test samples of all lenses of the fit"
        )
    if pack.text is not None:
        grades.say(f"text lenses: {grades.summary_line(pack.text)}")
        console.say(f"see them with: lenstrain show {folder / 'text'}")


def _called(pack: LensPack, concepts: Sequence[str] | None) -> list[Lens]:
    """The lenses of concepts with these ids or names, in the order of the pack; all for None."""
    from lenstrain.live.steering import find_lens

    if concepts is None:
        return list(pack)
    found: set[str] = set()
    for wanted in concepts:
        same = [x for x in pack if wanted == x.concept or wanted.casefold() == x.name.casefold()]
        found.update(lens.concept for lens in same or [find_lens(pack, wanted)])
    return [lens for lens in pack if lens.concept in found]


def _attributes_wanted(pack: LensPack, where: Sequence[str]) -> dict[str, set[str]]:
    """Values by the name of an attribute; of NAME=VALUE, each with a name that the pack has."""
    known = {name for lens in pack for name in lens.attributes}
    wanted: dict[str, set[str]] = {}
    for given in where:
        name, equals, value = given.partition("=")
        if not equals or name not in known:
            names = ", ".join(map(visible, sorted(known))) or "none"
            raise BadParameter(
                f"--where {visible(given)} is not NAME=VALUE with the name of an attribute of this "
                f"pack, which has: {names}"
            )
        wanted.setdefault(name, set()).add(value)
    return wanted


def _sorted(lenses: Sequence[Lens], by: Sort) -> list[Lens]:
    def falling(lens: Lens, metric: str) -> float:
        value = lens.metrics.get(metric)
        return float("inf") if value is None or value != value else -value

    def key(lens: Lens) -> tuple[Any, ...]:
        score = falling(lens, "score")
        name = lens.name.casefold(), lens.concept
        if by == "name":
            return name
        if by == "grade":
            return lens.grade is None, lens.grade or "", score, *name
        if by == "level":
            return lens.level, score, *name
        metric = {"score": "score", "f1": "test_f1", "samples": "n_samples"}[by]
        return falling(lens, metric), score, *name

    return sorted(lenses, key=key)


def _print_json(pack: LensPack, chosen: Sequence[Lens], limit: int | None) -> None:
    from lenstrain.pack.folder import none_for_nan

    ungraded, capped = grades.without_grade(pack)
    found = {
        **pack.summary(),
        "uncertain": grades.count_uncertain(pack),
        "reasons": grades.count_reasons([*ungraded, *capped]),
        "chosen": len(chosen),
        "lenses": [_row(lens) for lens in chosen[:limit]],
    }
    console.print_json(none_for_nan(found))


def _row(lens: Lens) -> dict[str, Any]:
    return {
        **{name: getattr(lens, name) for name in ("concept", "name", "level")},
        "model_layers": list(lens.model_layers),
        "grade": None if lens.grade is None else lens.grade.value,
        "status": lens.status,
        "reason": lens.reason,
        "capped": lens.is_capped,
        "threshold": lens.threshold,
        "noise_floor": lens.noise._asdict(),
        "attributes": {name: list(texts) for name, texts in lens.attributes.items()},
        **lens.metrics.to_json(),
    }


def _print_head(folder: Path, pack: LensPack) -> None:
    if (line := grades.provisional_line(pack)) is not None:
        grades.say(line)
    settings = pack.provenance.settings
    console.say(
        f"{folder}: {pack.provenance.model['id']}, {pack.family} lenses, "
        f"target F1 {settings['target_f1']:g}, {settings['validation']} validation"
    )
    most = max((len(lens.model_layers) for lens in pack), default=0)
    if most > 1:
        read = ", ".join(map(str, pack.model_layers))
        console.say(
            f"a lens reads {most} model layers, and the pack {read}: each costs a product of "
            "activations and weights at serving"
        )
    if (line := grades.old_rule(pack)) is not None:
        console.say(line)


def _print_lenses(lenses: Sequence[Lens]) -> None:
    """A row a lens. Its reason stands beside the figures, or below where there is no room."""
    out = console.out()
    with_agreement = any(lens.metrics.agreement for lens in lenses)
    with_natural = any(lens.metrics.natural_score is not None for lens in lenses)
    headers = [*_HEADERS, *_NATURAL * with_natural, *[_AGREEMENT] * with_agreement]
    rows = [_cells(lens, with_agreement, with_natural) for lens in lenses]
    widths = _widths([headers, *rows])
    while out.is_terminal and _LEAST_NAME + _total(widths) > out.width and len(widths) > _ALWAYS:
        headers, widths, rows = headers[:-1], widths[:-1], [cells[:-1] for cells in rows]
    name, reason = _room(out, lenses, _total(widths))
    out.width = max(out.width, name + _total(widths) + reason + bool(reason))
    shown = headers
    headers, widths = ["\nconcept", *headers], [name, *widths]
    if reason:
        headers, widths = [*headers, "\nreason"], [*widths, reason]
    table = _new_table(headers, widths)
    for lens, cells in zip(lenses, rows, strict=True):
        why = visible(lens.reason, reason or out.width - 2)
        table.add_row(grades.cell(lens.name), *cells, *[Text(why)] * bool(reason))
        if why and not reason:
            out.print(table)
            out.print(Text(f"  {why}", style="dim"))
            table = _new_table(headers, widths)
            table.show_header = False
    if table.row_count:
        out.print(table)
    _print_legend(shown, with_agreement, with_natural)


def _print_legend(shown: Sequence[str], with_agreement: bool, with_natural: bool) -> None:
    legend = _LEGEND
    if _NATURAL[0] in shown:
        legend += "; natural: the score among texts that express no concept, and the share of them"
        legend += " that the lens fires on"
    if _AGREEMENT in shown:
        legend += "; agreement: with the lens that reads what the model wrote (kappa)"
    of_natural = ("natural score", "natural share") * with_natural
    names = "control", "graduated", *of_natural, *["agreement"] * with_agreement
    if missing := names[len(shown) - _ALWAYS :]:
        legend += f"; no room for: {', '.join(missing)} (--json has them)"
    grades.say(legend, style="dim")


def _widths(rows: Sequence[Sequence[Text | str]]) -> list[int]:
    columns = zip(*rows, strict=True)
    return [
        max(cell_len(line) for x in column for line in str(x).split("\n")) for column in columns
    ]


def _total(widths: Sequence[int]) -> int:
    """Of some columns with a space before each."""
    return sum(widths) + len(widths)


def _room(out: Console, lenses: Sequence[Lens], figures: int) -> tuple[int, int]:
    """Widths for names and for reasons beside `figures` columns; 0 for reasons below."""
    names = max(len("concept"), *(cell_len(visible(lens.name)) for lens in lenses))
    reasons = max(len(visible(lens.reason, 1000)) for lens in lenses)
    if not out.is_terminal:  # lines may be as long as they are
        return min(names, _MOST_NAME), reasons
    name = min(names, max(_LEAST_NAME, out.width - figures))
    left = out.width - figures - name - 1
    return name, min(reasons, left) if left >= min(reasons, _REASON_WIDTH) else 0


def _new_table(headers: Sequence[str], widths: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.header_style = "bold"
    for header, width in zip(headers, widths, strict=True):
        is_text = header in ("\nconcept", "\nreason")
        justify: Any = "left" if is_text else "right"
        table.add_column(header, justify=justify, width=width, overflow="fold")
    return table


def _cells(lens: Lens, with_agreement: bool, with_natural: bool) -> list[Text | str]:
    metrics = lens.metrics
    low, high = grades.figure(metrics.score_low), grades.figure(metrics.score_high)
    return [
        str(lens.level),
        _model_layers(lens),
        _tests(metrics),
        grades.figure(metrics.test_f1),
        grades.figure(metrics.score),
        "-" if low == high == "-" else f"{low}-{high}",
        grades.figure(metrics.score_named),
        _grade(lens),
        _best_control(metrics),
        f"at {metrics.iterations}" if metrics.graduated else "no",
        *[grades.figure(metrics.natural_score)] * with_natural,
        *[grades.figure(metrics.natural_false_positive_rate, 3)] * with_natural,
        *[grades.figure((metrics.agreement or {}).get("kappa"))] * with_agreement,
    ]


def _model_layers(lens: Lens) -> str:
    layers = lens.model_layers
    if len(layers) > 3:
        return f"{layers[0]}..{layers[-1]}"
    return "+".join(map(str, layers)) or "text"


def _tests(metrics: LensMetrics) -> str:
    total, unnamed = (grades.figure(n, 0) for n in (metrics.n_test, metrics.n_test_unnamed))
    return total if total == unnamed == "-" else f"{total} ({unnamed})"


def _grade(lens: Lens) -> Text:
    mark = "?" if lens.metrics.grade_uncertain else " "
    return Text.assemble((lens.grade_shown, grades.COLOURS[lens.grade_shown]), mark)


def _best_control(metrics: LensMetrics) -> str:
    known = [score for each in metrics.controls.values() if (score := each["score"]) == score]
    return f"{max(known):.2f}{'!' if metrics.unbeaten_controls else ' '}" if known else "- "
