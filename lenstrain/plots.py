"""Plots of lens packs: each draws into the axes given, or a new figure, and returns the axes.

The numbers that they show are in the lenses themselves, or come from `lenstrain.inspection`.
Needs matplotlib: ``pip install '.[plots]'`` in a clone of lenscache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenscache.drawing import (
    COLOURS,
    MARKERS,
    count_along,
    describe,
    label,
    legend_beside,
    make_axes,
    name_ticks,
    require_matplotlib,
    visible,
)
from lenstrain.data.dataset import LensDataset
from lenstrain.errors import MissingPackageError, SettingsError
from lenstrain.inspection import (
    Metric,
    Tree,
    confusion,
    hierarchy_order,
    known_lenses,
    lens_similarity,
    recorded_by_model_layer,
    siblings_of,
)
from lenstrain.metrics.grade import COLOURS as GRADE_COLOURS
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration, Lens
from lenstrain.pack.pack import LensPack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = {
    "score": "score (0 to 1, average precision at the reference prevalence)",
    "test_f1": "test F1 (0 to 1, both classes weighing alike)",
}
_MODEL_LAYER = "model layer (transformer block, 0-based)"
_ROW_INCHES = 0.155
_TALLEST_INCHES = 30.0
_MOST_NAMED = 60  # rows that can be named one by one in a figure that fits a screen


def plot_learning_curves(
    pack: LensPack, concepts: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Train and test F1 of some concepts by training samples; of all, the quartiles of the test F1.

    Iterations after graduation are in it, where the fit recorded any.

    Parameters
    ----------
    concepts : up to seven ids; None for all of the pack.

    Raises
    ------
    SettingsError
        If there is no lens for a concept, or more than seven are named.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    lenses = list(pack) if concepts is None else known_lenses(pack, concepts)
    target = pack.provenance.settings.get("target_f1")
    if concepts is not None and len(lenses) > len(COLOURS):
        raise SettingsError(
            f"{len(lenses)} concepts are named, {len(COLOURS)} can be told apart: "
            "name fewer, or none"
        )
    ax = make_axes(ax)
    if concepts is None:
        _draw_all_curves(ax, lenses)
        title = (
            f"Test F1 of {len(lenses)} lenses: where the median still climbs, "
            "more samples would help"
        )
    else:
        _draw_curves(ax, lenses, _names(pack))
        title = (
            "F1 by training samples: a wide gap between dotted (train) and solid (test) "
            "is overfitting"
        )
    if target is not None:
        ax.axhline(target, color="0.3", ls="--", lw=1, label=f"target {target:g}")
    ax.set_ylim(0, 1.03)
    count_along(ax)
    legend_beside(ax)
    describe(ax, title, "positive training samples (count)", "F1 (0 to 1)")
    return ax


def plot_by_model_layer(
    source: LensPack | Mapping[str, Mapping[int, float]],
    metric: Metric = "score",
    *,
    pack: LensPack | None = None,
    hierarchy: Tree | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of concepts by model layer; a dot marks what a lens reads, grey was not measured.

    Parameters
    ----------
    source : a pack, of which it shows what the fit recorded; or values by concept and model layer,
        such as `lenstrain.inspection.by_model_layer` makes.
    metric : what the values are.
    pack : where names and dots come from, if `source` is values.
    hierarchy : orders the concepts; None for the order of the source.

    Raises
    ------
    SettingsError
        If there is no value to show.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    if isinstance(source, LensPack):
        pack, values = source, recorded_by_model_layer(source, metric)
    else:
        values = {concept: dict(found) for concept, found in source.items()}
    concepts = list(values)
    if hierarchy is not None:
        concepts = [concept for concept, _ in hierarchy_order(hierarchy, concepts)]
    measured = sorted({model_layer for found in values.values() for model_layer in found})
    if not measured:
        raise SettingsError(
            "there is no value by model layer: these lenses read several model layers, or text"
        )
    table = np.array([[values[concept].get(i, math.nan) for i in measured] for concept in concepts])
    height = min(_TALLEST_INCHES, 1.8 + _ROW_INCHES * len(concepts))
    ax = make_axes(ax, width=max(7.0, 3.6 + 0.2 * len(measured)), height=max(3.0, height))
    names = _names(pack)
    _heat_map(ax, table, "viridis", (0.0, 1.0), _METRICS[metric])
    reads = {lens.concept: lens.model_layers for lens in pack or ()}
    place: dict[tuple[int, ...], int] = {
        (model_layer,): x for x, model_layer in enumerate(measured)
    }
    dots = [
        (place[reads[concept]], row)
        for row, concept in enumerate(concepts)
        if reads.get(concept) in place
    ]
    if dots:
        x, y = zip(*dots, strict=True)
        ax.scatter(x, y, s=14, color="white", edgecolors="black", linewidths=0.8)
    thinned = name_ticks(ax, [names.get(concept, concept) for concept in concepts], "y")
    every = -(-len(measured) // 16)
    ax.set_xticks(range(0, len(measured), every), [str(i) for i in measured[::every]])
    alone = all(len(found) < 2 for found in values.values()) and len(measured) > 1
    title = "Where each concept can be read: bright is good; a dot is the model layer of the lens"
    title += "; no other model layer was recorded" if alone else ""
    describe(ax, title, _MODEL_LAYER, f"concept{thinned}")
    return ax


def plot_reliability(source: Lens | Iterable[Lens], *, ax: Axes | None = None) -> Axes:
    """Reliability diagram of one lens, or of all lenses of a pack together, on test samples.

    Positives and negatives weigh alike, as they do in the probabilities. The area of a point is the
    weight of its bin.

    Raises
    ------
    SettingsError
        If nothing was recorded.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    lenses = [source] if isinstance(source, Lens) else list(source)
    predicted, observed, weight = _pooled_reliability(lenses)
    ax = make_axes(ax, width=6.0, height=6.0)
    ax.plot([0, 1], [0, 1], color="0.5", ls="--", lw=1, label="perfect")
    blue: dict[str, Any] = {"color": COLOURS[0]}
    if len(lenses) > 1:  # most bins of one lens hold a sample or two: a line would make hills
        ax.plot(predicted, observed, lw=1, **blue)
    points = {"s": 20 + 600 * weight, "alpha": 0.7, "linewidths": 0, **blue}
    ax.scatter(predicted, observed, label="bin of probability", **points)
    error = float(weight @ np.abs(predicted - observed))
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    distance = f"mean distance from the line: {error:.2f}"
    legend = ax.legend(fontsize=8, loc="upper left", title=distance, title_fontsize=8)
    legend.legend_handles[-1].set_sizes([40])  # type: ignore[union-attr]
    of = label(lenses[0].name) if len(lenses) == 1 else f"{len(lenses)} lenses together"
    describe(
        ax,
        f"Reliability of {of}: below the dashed line presence is overstated, above it understated",
        "predicted probability of presence (mean of a bin)",
        "observed share of positives (classes alike)",
    )
    return ax


def plot_confusion(
    pack: LensPack, dataset: LensDataset, concepts: str | Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Whose lens is the strongest on whose held-out samples.

    Parameters
    ----------
    dataset : what the pack was fitted on.
    concepts : ids; or one, for it and its siblings.

    Raises
    ------
    SettingsError
        If there is no lens for a concept, or the dataset is another one.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    if isinstance(concepts, str):
        concepts = siblings_of(pack, dataset, concepts)
    found = confusion(pack, dataset, concepts)
    n, names = len(found.concepts), _names(pack)
    shown = [names[concept] for concept in found.concepts]
    size = min(14.0, 3.6 + 0.42 * n)
    ax = make_axes(ax, width=size + 1.2, height=size)
    _heat_map(ax, 100 * found.share, "cividis", (0.0, 100.0), "share of the samples of the row (%)")
    if n <= 16:
        for (i, j), share in np.ndenumerate(found.share):
            if share > 0:
                ink = "black" if share > 0.5 else "white"
                ax.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=8, color=ink)
    thinned = name_ticks(ax, shown, "x")
    counts = zip(shown, found.n_samples, strict=True)
    name_ticks(ax, [f"{visible(name, 26)} ({count})" for name, count in counts], "y")
    describe(
        ax,
        "Who is mistaken for whom: all of a row on the diagonal is perfect",
        f"lens with the strongest signal{thinned}",
        f"concept of the held-out samples (count){thinned}",
    )
    return ax


def plot_similarity(
    pack: LensPack,
    hierarchy: Tree | None = None,
    *,
    of: Literal["weights", "directions"] = "weights",
    ax: Axes | None = None,
) -> Axes:
    """Cosines of all pairs of lenses in the order of the hierarchy, lines between its branches.

    Parameters
    ----------
    hierarchy, of : as for `lenstrain.inspection.lens_similarity`.

    Raises
    ------
    SettingsError
        If fewer than two lenses can be compared.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    found = lens_similarity(pack, hierarchy, of=of)
    n, names = len(found.concepts), _names(pack)
    size = min(14.0, max(5.0, 2.5 + 0.13 * n))
    ax = make_axes(ax, width=size + 1.0, height=size)
    # The diagonal is 1 and says nothing: the scale is that of the others.
    apart = np.abs(found.cosine[~np.eye(n, dtype=np.bool_)])
    limit = float(np.clip(np.percentile(apart, 99), 0.05, 1.0))
    what = "cosine (-1 to 1; colours end at the 99th percentile)"
    _heat_map(ax, found.cosine, "PuOr", (-limit, limit), what, "both")
    ends = np.cumsum([len(list(members)) for _, members in groupby(found.branches)])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", lw=0.8)
        ax.axvline(end - 0.5, color="black", lw=0.8)
    shown = [names[concept] for concept in found.concepts]
    thinned = [name_ticks(ax, shown, "x"), name_ticks(ax, shown, "y")]
    title = f"Lenses beside each other ({of}): purple points the same way, orange the opposite way"
    title += "" if hierarchy is None else "; lines part the branches of the hierarchy"
    describe(ax, title, *(f"lens{each}" for each in thinned))
    return ax


def plot_grades(pack: LensPack, *, ax: Axes | None = None) -> Axes:
    """The score of every graded lens with its 95 % interval, from the best down, by grade.

    Ungraded lenses are left out, and counted in the title. A lens whose grade is capped has the
    colour of its grade, wherever its score is.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib(MissingPackageError)
    graded = [
        lens for lens in pack if lens.grade is not None and not math.isnan(lens.metrics.score)
    ]
    lenses, names = sorted(graded, key=lambda lens: -lens.metrics.score), _names(pack)
    named = len(lenses) <= _MOST_NAMED
    ax = make_axes(ax, height=max(3.0, 1.8 + _ROW_INCHES * len(lenses)) if named else 8.0)
    for number, grade in enumerate(Grade):
        own = [(row, lens) for row, lens in enumerate(lenses) if lens.grade is grade]
        y, colour = [row for row, _ in own], GRADE_COLOURS[grade]
        x, low, high = (
            [getattr(lens.metrics, name) for _, lens in own]
            for name in ("score", "score_low", "score_high")
        )
        ax.hlines(y, low, high, color=colour, lw=1.2 if named else 0.5, alpha=0.6)
        size, name = 4.5 if named else 2.5, f"{grade.value}: {len(own)}"
        if capped := sum(lens.is_capped for _, lens in own):
            name += f" ({capped} capped)"
        ax.plot(x, y, color=colour, marker=MARKERS[number], ls="", ms=size, label=name)
    for boundary in (0.2, 0.5):
        ax.axvline(boundary, color="0.3", ls="--", lw=1)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(max(len(lenses), 1) - 0.5, -0.5)
    thinned = " (rank by score)"
    if named:
        thinned = name_ticks(ax, [names[lens.concept] for lens in lenses], "y")
    legend_beside(ax, "grade: lenses")
    title = "How far each lens can be trusted: a bar across a dashed line could have another grade"
    if left_out := len(pack) - len(lenses):
        title += f"; {left_out} of {len(pack)} have no grade and are left out"
    describe(ax, title, _METRICS["score"], f"lens{thinned}")
    return ax


def _draw_curves(ax: Axes, lenses: Sequence[Lens], names: Mapping[str, str]) -> None:
    for lens, colour, marker in zip(lenses, COLOURS, MARKERS, strict=False):
        steps, name = _steps(lens), label(names[lens.concept])
        x = [step.n_samples for step in steps]
        ax.plot(x, [step.train_f1 for step in steps], color=colour, ls=":", lw=1)
        tested = [step.test_f1 for step in steps]
        ax.plot(x, tested, color=colour, marker=marker, ms=5, label=name)
    ax.plot([], [], color="0.3", ls=":", lw=1, label="train F1 of the same")


def _draw_all_curves(ax: Axes, lenses: Sequence[Lens]) -> None:
    x = sorted({step.n_samples for lens in lenses for step in _steps(lens)})
    held = np.full((len(lenses), len(x)), np.nan)
    for row, lens in enumerate(lenses):
        own, tested = zip(*((s.n_samples, s.test_f1) for s in _steps(lens)), strict=True)
        ax.plot(own, tested, color="0.6", lw=0.6, alpha=0.6)
        # A lens that has ended keeps its last F1, or the median would jump when a lens ends.
        at = np.searchsorted(own, x, side="right") - 1
        held[row] = np.where(at >= 0, np.array(tested)[at], np.nan)
    low, median, high = np.nanpercentile(held, (25, 50, 75), axis=0)
    ax.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="middle half")
    name = "median, each lens\nwith its last F1"
    ax.plot(x, median, color=COLOURS[0], marker=MARKERS[0], label=name)
    ax.plot([], [], color="0.6", lw=0.6, label="one lens")


def _steps(lens: Lens) -> list[Iteration]:
    return [*lens.trajectory, *lens.beyond]


def _pooled_reliability(lenses: Sequence[Lens]) -> tuple[NDArray[np.float64], ...]:
    """(bins,) predicted, observed and weight over all lenses, bins without rows left out."""
    noted = [bins for lens in lenses if (bins := lens.metrics.reliability)]
    # None becomes NaN, and NaN becomes 0.
    predicted, observed, weight = (
        np.nan_to_num(np.array([bins[name] for bins in noted], np.float64))
        for name in ("predicted", "observed", "weight")
    )
    if not weight.sum():
        raise SettingsError(
            "no reliability was recorded: there was no test sample of one of the classes"
        )
    total = weight.sum(axis=0)
    kept = total > 0
    means = [(weight * each).sum(axis=0)[kept] / total[kept] for each in (predicted, observed)]
    return means[0], means[1], total[kept] / total.sum()


def _names(pack: LensPack | None) -> dict[str, str]:
    """What to call each concept: its name, or where two have the same name, its id."""
    names = [lens.name for lens in pack or ()]
    return {
        lens.concept: lens.name if names.count(lens.name) == 1 else lens.concept
        for lens in pack or ()
    }


def _heat_map(
    ax: Axes,
    table: NDArray[np.float64],
    colours: str,
    limits: tuple[float, float],
    what: str,
    extend: str = "neither",
) -> None:
    import matplotlib as mpl

    shades = mpl.colormaps[colours].with_extremes(bad="0.85")
    low, high = limits
    image = ax.imshow(table, shades, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    shape: dict[str, Any] = {"extendfrac": 0.03, "fraction": 0.05, "pad": 0.02, "aspect": 30}
    bar = ax.figure.colorbar(image, ax=ax, extend=extend, **shape)
    bar.set_label(what, fontsize=8)
    bar.ax.tick_params(labelsize=8)
