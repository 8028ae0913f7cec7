"""What all plots share: axes to draw into, colours everybody can tell apart, names that do no harm.

matplotlib is an extra and slow to load, so it is imported when the first plot is drawn.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lenscache.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, invisible on white; grey is for what is left over."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each colour: no plot tells two things apart by colour alone."""

_JOINERS = "\u200c\u200d"  # invisible, but Persian and many emoji are not written without them
_TITLE_PT = 10.5
_SMALLEST_PT = 5.0
_LARGEST_PT = 9.0


def visible(text: str, width: int = 60) -> str:
    """A text as one line of at most `width` characters in which nothing is hidden.

    Control characters, line breaks and marks that turn the direction of writing are shown by
    number, [U+202E]: they could make a name look like another one, or a table fall apart.
    """
    shown = "".join(c if _is_plain(c) else f"[U+{ord(c):04X}]" for c in text[: width + 1])
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def label(text: str, width: int = 32) -> str:
    r"""A name for matplotlib: `visible`, and with dollar signs escaped.

    matplotlib reads text between dollar signs as a formula, and fails on others (``$\frac$``).
    """
    shown = visible(text, width).replace("$", r"\$")
    # A legend leaves out names that begin with an underscore.
    return f"\u2009{shown}" if shown.startswith("_") else shown


def require_matplotlib(error: type[ImportError] = MissingPackageError) -> None:
    """Raise `error` unless matplotlib is there: before a store is read, not after."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError:
        raise error(
            "plots need matplotlib: run `pip install '.[plots]'` in a clone of lenscache"
        ) from None


def make_axes(ax: Axes | None, *, width: float = 8.0, height: float = 4.5) -> Axes:
    """The axes given, or those of a new figure; sizes in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, made = plt.subplots(figsize=(width, height), layout="constrained")
    return made


def describe(ax: Axes, title: str, x: str, y: str) -> None:
    """Set the title and the names of the axes; concept names in them have been through `label`."""
    # As long as the axes are wide: a letter is a little over half as wide as it is high.
    letters = ax.get_window_extent().width / ax.figure.dpi * 72 / (0.58 * _TITLE_PT)
    wrapped = textwrap.fill(title, max(20, int(letters)), break_long_words=False)
    ax.set_title(wrapped, loc="left", fontsize=_TITLE_PT)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def legend_beside(ax: Axes, title: str = "", *, is_reversed: bool = False) -> None:
    """A legend to the right of the axes, where it hides nothing."""
    handles, texts = ax.get_legend_handles_labels()
    step = -1 if is_reversed else 1
    ax.legend(
        handles[::step],
        texts[::step],
        title=title,
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        fontsize=8,
        frameon=False,
    )


def count_along(ax: Axes) -> None:
    """Whole numbers along x: there is no model layer 2.5."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def name_ticks(ax: Axes, names: Sequence[str], which: Literal["x", "y"]) -> str:
    """Name the places 0, 1, ... of an axis, as small as need be and as many as can be read.

    Returns
    -------
    What to add to the label of the axis: which of them are named, if not all.
    """
    box, axis = ax.get_window_extent(), ax.xaxis if which == "x" else ax.yaxis
    room = (box.width if which == "x" else box.height) / ax.figure.dpi * 72 / max(len(names), 1)
    every = max(1, -int(-_SMALLEST_PT // room))
    axis.set_ticks(range(0, len(names), every), [label(name) for name in names[::every]])
    size = min(_LARGEST_PT, max(_SMALLEST_PT, 0.9 * room * every))
    ax.tick_params(axis=which, labelsize=size, labelrotation=90 if which == "x" else 0)
    return f" (one in {every} is named)" if every > 1 else ""


def _is_plain(character: str) -> bool:
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character in _JOINERS or unicodedata.category(character) not in hidden
