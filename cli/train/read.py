"""`lenstrain read`: what a lens pack finds in a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Argument, BadParameter, Option

from .. import console, options
from ..console import visible
from ..models import load_for
from ..options import MinGrade
from .grades import COLOURS, old_rule

if TYPE_CHECKING:
    from lenstrain.live.naming_rule import Finding, Rule
    from lenstrain.live.reading import Reading, TokenReading
    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack

_ROWS = 80  # tokens of a text that is shown token by token
_PIECE_LENGTH = 48  # characters of a text that are shown in a row


@console.reports_errors
def read(
    pack: Annotated[Path, Argument(metavar="PACK", help="Folder of a lens pack.")],
    model: options.Model,
    file: Annotated[
        Path | None,
        Argument(metavar="[FILE]", help="Text to read; - or nothing for standard input."),
    ] = None,
    text: Annotated[str | None, Option(help="Text to read, instead of a file.")] = None,
    top: Annotated[
        int, Option(min=1, help="Lenses to name at a token, and of the whole text, at most.")
    ] = 3,
    window: Annotated[
        int,
        Option(min=1, help="Tokens that a token's score is pooled over, itself the last."),
    ] = 8,
    min_grade: Annotated[MinGrade, Option(help="Grade that a lens needs for being named.")] = "B",
    ungraded: options.Ungraded = False,
    min_signal: Annotated[
        float,
        Option(
            help="Deviations above its noise floor that a lens needs at a token; the whole text: 1 "
            "less."
        ),
    ] = 4.0,
    concept: Annotated[
        list[str] | None, Option(help="Concept id; repeatable. Default: all.")
    ] = None,
    html: Annotated[
        Path | None, Option(metavar="OUT", help="Write a page that shows every token, too.")
    ] = None,
    allow_other_model: options.AllowOtherModel = False,
    dtype: options.DtypeOption = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMapOption = None,
    adapter: options.Adapter = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Read a text with the model and say which lenses of PACK find their concept.

    They are named for each token and for the whole text.
    """
    from lenstrain.live.naming_rule import Rule, choose_lenses
    from lenstrain.live.page import legend, reading_page
    from lenstrain.live.read import read as read_with
    from lenstrain.metrics.grade import Grade
    from lenstrain.pack.pack import LensPack

    lenses = LensPack.load(pack)
    rule = Rule(Grade(min_grade), untrusted=ungraded, min_signal=min_signal)
    # Before the model is loaded: an unknown concept shows at once.
    chosen = choose_lenses(lenses, concept)
    content = _content(file, text)
    loaded, notes = load_for(
        lenses, model, dtype, device, device_map, adapter, allow_other=allow_other_model
    )
    notes += _about_grades(lenses, chosen, rule)
    reading = read_with(
        lenses, loaded, content, concepts=concept, rule=rule, window=window, top=top
    )
    if reading.n_cut:
        cut = f"cut: the last {reading.n_cut} tokens were not read"
        notes.append(f"{cut}, the model has no positions for them")
    if html is not None:
        title = f"{pack.name} on {loaded.id}"
        page = reading_page(reading, title=title, notes=tuple(notes))
        console.write_file(html, page.encode())
    if json:
        console.print_json({**reading.to_json(), "n_cut": reading.n_cut, "notes": notes})
        return
    _print_reading(reading)
    console.say(
        "after a lens: grade (- ungraded), probability, deviations above its noise floor",
        style="dim",
    )
    for line in (legend(reading), *(f"note: {note}" for note in notes)):
        console.say(visible(line, len(line)), style="dim")
    if html is not None:
        console.say(f"written to {html}")


def _about_grades(pack: LensPack, lenses: Sequence[Lens], rule: Rule) -> list[str]:
    """What to know of the grades before a reading is trusted."""
    notes = [line] if (line := old_rule(pack)) is not None else []
    untrusted = sum(lens.grade is None or lens.is_capped for lens in lenses)
    if untrusted and not rule.untrusted:
        notes.append(
            f"{untrusted} of {len(lenses)} lenses are ungraded or have a capped grade, "
            "and are not named: --ungraded names them, too"
        )
    return notes


def _content(file: Path | None, text: str | None) -> str:
    """The text to read."""
    if file is not None and text is not None:
        raise BadParameter("give a text or a file, not both")
    if text is not None:
        return text
    if file is None or str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadParameter(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error


def _print_reading(reading: Reading) -> None:
    out = console.out()
    by_token = len(reading.tokens) <= _ROWS
    table = console.make_table("tokens", "strongest lenses")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for piece, findings in _rows(reading.tokens, by_token):
        table.add_row(Text(_ends(piece)), _cell(findings))
    out.print(table)
    if not by_token:
        console.say(
            "a row is a stretch of tokens with the same strongest lens, figures are those of its "
            "strongest token (--html and --json have every token)",
            style="dim",
        )
    out.print()
    if not reading.whole:
        console.say("whole text: no lens is sure that its concept is there")
        return
    table = console.make_table("whole text", "grade", "probability", "deviations")
    for found in reading.whole:
        grade = found.grade_shown
        table.add_row(
            Text(visible(found.name)),
            Text(grade, style=COLOURS[grade]),
            f"{found.probability:.2f}",
            f"{found.signal:+.1f}",
        )
    out.print(table)


def _rows(tokens: Sequence[TokenReading], by_token: bool) -> list[tuple[str, Sequence[Finding]]]:
    """Pieces of text with the lenses found there: each named token by itself, or stretches.

    Tokens without a lens are always joined, and so are those of a lens unless `by_token`.
    """
    rows: list[tuple[str, Sequence[Finding]]] = []
    strongest = [(token.findings[0].concept if token.findings else "", token) for token in tokens]
    for concept, stretch in groupby(strongest, key=lambda pair: pair[0]):
        members = [token for _, token in stretch]
        if concept and by_token:
            rows.extend((token.text, token.findings) for token in members)
        else:
            peak = max(members, key=lambda t: t.findings[0].signal if t.findings else 0.0)
            rows.append(("".join(token.text for token in members), peak.findings))
    return rows


def _ends(piece: str) -> str:
    """How a piece of text begins and ends, on one line."""
    shown = visible(piece.strip() or piece, len(piece))
    if len(shown) <= _PIECE_LENGTH:
        return shown
    half = _PIECE_LENGTH // 2
    return f"{shown[: half - 3].rstrip()} ... {shown[-half + 3 :].lstrip()}"


def _cell(findings: Sequence[Finding]) -> Text:
    if not findings:
        return Text("-", style="dim")
    cell = Text()
    for number, found in enumerate(findings):
        grade = found.grade_shown
        cell.append("; " if number else "")
        style = COLOURS[grade] if number else f"bold {COLOURS[grade]}"
        cell.append(visible(found.name), style=style)
        cell.append(f" {grade} {found.probability:.2f} {found.signal:+.1f}")
    return cell
