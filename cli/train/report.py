"""`lenstrain report`: a lens pack as one page to look at."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from .. import console, options

if TYPE_CHECKING:
    from lenstrain.report.data import Report

_LARGE_BYTES = 30e6  # what browsers and mail programs still take in their stride


@console.reports_errors
def report(
    folder: options.PackFolder,
    store: Annotated[
        str | None,
        Option(
            metavar="STORE",
            help="The store it was fitted on: adds the concept hierarchy and held-out samples.",
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        Option(metavar="DIR", help="Another pack to compare with; repeatable."),
    ] = None,
    out: Annotated[Path, Option(metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    show: Annotated[bool, Option("--open", help="Open it in a browser.")] = False,
    debug: options.Debug = False,
) -> None:
    """Write one HTML file that shows a pack.

    It shows which concepts, where in the model, and how far to trust each lens.
    """
    from lenstrain.compare.two_packs import open_for
    from lenstrain.pack.pack import LensPack
    from lenstrain.report import make_report, render_page, require_report_packages

    require_report_packages()
    pack = LensPack.load(folder)
    others = {label: LensPack.load(other) for label, other in _labels(beside or [], folder).items()}
    dataset = None if store is None else open_for(pack, store)
    found = make_report(pack, dataset, label=folder.resolve().name, beside=others)
    page = render_page(found).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    console.write_file(out, page)
    _tell(out, len(page), found)
    if show:
        webbrowser.open(out.resolve().as_uri())


def _labels(others: list[Path], first: Path) -> dict[str, Path]:
    """What to call each pack: the end of its path that tells them all apart."""
    paths = [path.resolve() for path in (first, *others)]
    for depth in range(1, 9):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    else:
        labels = [f"{number}: {path.name}" for number, path in enumerate(paths)]
    return dict(zip(labels[1:], others, strict=True))


def _tell(out: Path, size: int, found: Report) -> None:
    console.say(f"written to {out}: {len(found.details)} lenses, {console.megabytes(size)}")
    if size > _LARGE_BYTES:
        console.say("large for a browser: leave out --store or some of --beside")
    if not found.has_store:
        console.say("without --store STORE it has no hierarchy and no samples")
    if not found.model_layers:
        console.say(
            "the pack has no scores by model layer: fit it again over several model layers for "
            "the heat map"
        )
    console.say(f"next: open {out} in a browser; it needs no network")
