"""The front door: texts to probabilities, and a lens pack as a table.

LensPack, model, texts --predict----> data frame of probabilities, a column a concept
LensPack               --pack_frame-> data frame of its lenses; --pack_html-> for notebooks
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from lenscache.drawing import visible
from lenstrain.errors import SettingsError
from lenstrain.live.naming_rule import choose_lenses
from lenstrain.live.read import check_loaded, read_whole
from lenstrain.metrics.grade import COLOURS, INKS

if TYPE_CHECKING:
    from lenscache.model.loading import LoadedModel
    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack

_SHOWN = 20  # lenses of a pack in a notebook
_METRICS = ("score", "score_low", "score_high", "score_named", "test_f1", "n_samples", "n_test")
_COLUMNS = ("name", "level", "model_layers", "grade", "status", "reason", "threshold")


def predict(
    pack: LensPack,
    model: str | LoadedModel,
    texts: Any,
    *,
    text: str = "text",
    concepts: Sequence[str] | None = None,
    prevalence: float = 0.5,
    allow_other_model: bool = False,
) -> pd.DataFrame:
    """Calibrated probabilities that texts express the concepts of a pack.

    The model reads each text by itself, once, and probabilities are those of the whole text in
    ``lenstrain read``.

    Parameters
    ----------
    model : a loaded model; or the path, id or built-in name of one, which is loaded at every call.
    texts : a list of texts; or a data frame or dataset, whose column `text` is read.
    concepts : whose lenses to use; None for all.
    prevalence : share of texts that express a concept where the lenses are used; see
        `lenstrain.pack.lens.Lens.predict_proba`.
    allow_other_model : go on with another model of the same shape; a warning says so.

    Returns
    -------
    (texts, concepts), named by concept id. Rows have the index of a series or data frame of pandas,
    else 0, 1 ... NaN where a text has no position that is pooled, such as a text of one token.

    Raises
    ------
    SettingsError
        If the lenses read text, a concept is unknown, or the model is another one.
    PackError
        If `texts` is a single text, or holds an empty one or something else.
    """
    from lenscache.concepts.importers.frames import texts_of
    from lenscache.model.loading import as_loaded

    found, lenses = texts_of(texts, text), choose_lenses(pack, concepts)
    if blank := [number for number, one in enumerate(found) if not one or not one.strip()]:
        raise SettingsError(f"text {blank[0]} is empty: leave it out, or fill it in")
    loaded = as_loaded(model)
    if note := check_loaded(pack, loaded, allow_other=allow_other_model):
        warnings.warn(note, stacklevel=3)
    logits, n_cut = read_whole(pack, loaded, found, concepts)
    if n_cut:
        warnings.warn(
            f"{n_cut} of {len(found)} texts are longer than the model reads, and were cut at their "
            "end",
            stacklevel=3,
        )
    index = texts.index if isinstance(texts, pd.Series | pd.DataFrame) else None
    columns = {x.concept: x.calibrator(logits[:, i], prevalence) for i, x in enumerate(lenses)}
    return pd.DataFrame(columns, index=index)


def pack_frame(pack: LensPack) -> pd.DataFrame:
    """The lenses of a pack as a table, one a row, by concept id.

    The scores are those of `lenstrain.pack.records.LensMetrics`; NaN where nothing was measured.
    """
    rows = [
        {
            "name": lens.name,
            "level": lens.level,
            "model_layers": lens.model_layers,
            "grade": None if lens.grade is None else lens.grade.value,
            "status": lens.status,
            "reason": lens.reason,
            "threshold": lens.threshold,
            **{name: lens.metrics.get(name) for name in _METRICS},
            "n_test_unnamed": lens.metrics.get("n_test_unnamed"),
            "graduated": lens.metrics.graduated,
        }
        for lens in pack
    ]
    index = pd.Index([lens.concept for lens in pack], name="concept")
    columns = [*_COLUMNS, *_METRICS, "n_test_unnamed", "graduated"]
    return pd.DataFrame(rows, index=index, columns=columns)


def pack_html(pack: LensPack) -> str:
    """A pack as a table of HTML: its first lenses, with their grades in the report's colours."""
    head = ("concept", "grade", "status", "score", "95 %", "test F1", "model layers", "reason")
    rows = "".join(_html_row(lens) for lens in list(pack)[:_SHOWN])
    more = f"<p>{len(pack) - _SHOWN} more: see to_frame()</p>" if len(pack) > _SHOWN else ""
    return (
        f"<p>{escape(visible(repr(pack), 200))}</p><table><thead><tr>"
        f"{''.join(f'<th>{each}</th>' for each in head)}</tr></thead>"
        f"<tbody>{rows}</tbody></table>{more}"
    )


def _html_row(lens: Lens) -> str:
    m, grade = lens.metrics, lens.grade_shown
    style = f"background: {COLOURS[lens.grade]}; color: {INKS[lens.grade]}; text-align: center"
    cells = [
        *(lens.status, f"{m.score:.2f}", f"{m.score_low:.2f}-{m.score_high:.2f}"),
        *(f"{m.test_f1:.2f}", ", ".join(map(str, lens.model_layers)), visible(lens.reason, 80)),
    ]
    return (
        f'<tr><td>{escape(visible(lens.name))}</td><td style="{style}">{grade}</td>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    )
