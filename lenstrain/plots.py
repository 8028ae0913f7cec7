"""Plots of lens packs: each draws into the axes it is given, or into a new figure, and returns the
axes. What they show can be had as numbers from the lenses themselves or from
`lenstrain.inspection`.

Needs matplotlib: ``pip install 'lenscache[plots]'``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import LensDataset
from lenstrain.drawing import (
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
from lenstrain.errors import SettingsError
from lenstrain.inspection import (
    Metric,
    Tree,
    confusion,
    hierarchy_order,
    lens_similarity,
    recorded_by_model_layer,
    siblings_of,
)
from lenstrain.metrics.score import Grade
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
    """Train and test F1 of some concepts by training samples; of all concepts, the test F1 and its
    quartiles.

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
    require_matplotlib()
    lenses = list(pack) if concepts is None else _lenses(pack, concepts)
    target = pack.provenance.get("settings", {}).get("target_f1")
    if concepts is not None and len(lenses) > len(COLOURS):
        raise SettingsError(
            f"{len(lenses)} concepts are named, {len(COLOURS)} can be told apart: name fewer, or "
            "none"
        )
    ax, names = make_axes(ax), _names(pack)
    if concepts is None:
        _draw_all_curves(ax, lenses)
        title = (
            f"Test F1 of {len(lenses)} lenses: where the median still climbs, more samples would "
            "help"
        )
    else:
        for number, lens in enumerate(lenses):
            steps, colour = _steps(lens), COLOURS[number]
            x = [step.n_samples for step in steps]
            ax.plot(x, [step.train_f1 for step in steps], color=colour, ls=":", lw=1)
            ax.plot(
                x,
                [step.test_f1 for step in steps],
                color=colour,
                marker=MARKERS[number],
                ms=5,
                label=label(names[lens.concept]),
            )
        ax.plot([], [], color="0.3", ls=":", lw=1, label="train F1 of the same")
        title = (
            "F1 by training samples: a wide gap between dotted (train) and solid (test) is "
            "overfitting"
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
    """Heat map of concepts by model layer; a dot marks the model layer that a lens reads, grey is
    not measured.

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
    require_matplotlib()
    if isinstance(source, LensPack):
        pack, values = source, recorded_by_model_layer(source, metric)
    else:
        values = {concept: dict(found) for concept, found in source.items()}
    concepts = (
        list(values)
        if hierarchy is None
        else [c for c, _ in hierarchy_order(hierarchy, list(values))]
    )
    measured = sorted({model_layer for found in values.values() for model_layer in found})
    if not measured:
        raise SettingsError(
            "there is no value by model layer: these lenses read several model layers, or text"
        )
    table = np.array([[values[concept].get(i, math.nan) for i in measured] for concept in concepts])
    height = min(_TALLEST_INCHES, 1.8 + _ROW_INCHES * len(concepts))
    ax, names = (
        make_axes(ax, width=max(7.0, 3.6 + 0.2 * len(measured)), height=max(3.0, height)),
        _names(pack),
    )
    _heat_map(ax, table, "viridis", (0.0, 1.0), _METRICS[metric])
    read = [
        (measured.index(pack[c].model_layers[0]), row)
        for row, c in enumerate(concepts)
        if pack is not None
        and c in pack
        and len(pack[c].model_layers) == 1
        and pack[c].model_layers[0] in measured
    ]
    if read:
        ax.scatter(
            [x for x, _ in read],
            [y for _, y in read],
            s=14,
            color="white",
            edgecolors="black",
            linewidths=0.8,
        )
    thinned = name_ticks(ax, [names.get(concept, concept) for concept in concepts], "y")
    every = -(-len(measured) // 16)
    ax.set_xticks(range(0, len(measured), every), [str(i) for i in measured[::every]])
    alone = all(len(found) < 2 for found in values.values()) and len(measured) > 1
    remark = "; no other model layer was recorded" if alone else ""
    describe(
        ax,
        (
            "Where each concept can be read: bright is good; a dot is the model layer of the "
            f"lens{remark}"
        ),
        _MODEL_LAYER,
        f"concept{thinned}",
    )
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
    require_matplotlib()
    lenses = [source] if isinstance(source, Lens) else list(source)
    predicted, observed, weight = _pooled_reliability(lenses)
    ax = make_axes(ax, width=6.0, height=6.0)
    ax.plot([0, 1], [0, 1], color="0.5", ls="--", lw=1, label="perfect")
    if (
        len(lenses) > 1
    ):  # of one lens, most bins hold a sample or two: a line would make hills of them
        ax.plot(predicted, observed, color=COLOURS[0], lw=1)
    ax.scatter(
        predicted,
        observed,
        s=20 + 600 * weight,
        color=COLOURS[0],
        alpha=0.7,
        linewidths=0,
        label="bin of probability",
    )
    error = float(weight @ np.abs(predicted - observed))
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    legend = ax.legend(
        fontsize=8,
        loc="upper left",
        title=f"mean distance from the line: {error:.2f}",
        title_fontsize=8,
    )
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
    require_matplotlib()
    found = confusion(
        pack,
        dataset,
        siblings_of(pack, dataset, concepts) if isinstance(concepts, str) else concepts,
    )
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
    name_ticks(
        ax,
        [f"{visible(name, 26)} ({n})" for name, n in zip(shown, found.n_samples, strict=True)],
        "y",
    )
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
    """Cosine similarity of all pairs of lenses, in the order of the hierarchy, with lines between
    its branches.

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
    require_matplotlib()
    found = lens_similarity(pack, hierarchy, of=of)
    n, names = len(found.concepts), _names(pack)
    size = min(14.0, max(5.0, 2.5 + 0.13 * n))
    ax = make_axes(ax, width=size + 1.0, height=size)
    # The diagonal is 1 and says nothing: the scale is that of the others.
    apart = np.abs(found.cosine[~np.eye(n, dtype=np.bool_)])
    limit = float(np.clip(np.percentile(apart, 99), 0.05, 1.0))
    _heat_map(
        ax,
        found.cosine,
        "PuOr",
        (-limit, limit),
        "cosine (-1 to 1; colours end at the 99th percentile)",
        "both",
    )
    ends = np.cumsum([len(list(members)) for _, members in groupby(found.branches)])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", lw=0.8)
        ax.axvline(end - 0.5, color="black", lw=0.8)
    shown = [names[concept] for concept in found.concepts]
    thinned = [name_ticks(ax, shown, "x"), name_ticks(ax, shown, "y")]
    squares = "" if hierarchy is None else "; lines part the branches of the hierarchy"
    describe(
        ax,
        (
            f"Lenses beside each other ({of}): purple points the same way, orange the opposite "
            f"way{squares}"
        ),
        *(f"lens{each}" for each in thinned),
    )
    return ax


def plot_grades(pack: LensPack, *, ax: Axes | None = None) -> Axes:
    """The score of every lens with its 95 % interval, from the best down, by grade.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    scored = [lens for lens in pack if not math.isnan(lens.metrics["score"])]
    lenses, names = sorted(scored, key=lambda lens: -lens.metrics["score"]), _names(pack)
    named = len(lenses) <= _MOST_NAMED
    ax = make_axes(ax, height=max(3.0, 1.8 + _ROW_INCHES * len(lenses)) if named else 8.0)
    for number, grade in enumerate(Grade):
        own = [(row, lens) for row, lens in enumerate(lenses) if lens.grade is grade]
        y, x = [row for row, _ in own], [lens.metrics["score"] for _, lens in own]
        ends = [(lens.metrics["score_low"], lens.metrics["score_high"]) for _, lens in own]
        ax.hlines(
            y,
            [low for low, _ in ends],
            [high for _, high in ends],
            color=COLOURS[number],
            lw=1.2 if named else 0.5,
            alpha=0.6,
        )
        ax.plot(
            x,
            y,
            color=COLOURS[number],
            marker=MARKERS[number],
            ls="",
            ms=4.5 if named else 2.5,
            label=f"{grade.value}: {len(own)}",
        )
    for boundary in (0.2, 0.5):
        ax.axvline(boundary, color="0.3", ls="--", lw=1)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(len(lenses) - 0.5, -0.5)
    thinned = (
        name_ticks(ax, [names[lens.concept] for lens in lenses], "y")
        if named
        else " (rank by score)"
    )
    legend_beside(ax, "grade: lenses")
    describe(
        ax,
        "How far each lens can be trusted: a bar across a dashed line could have another grade",
        _METRICS["score"],
        f"lens{thinned}",
    )
    return ax


def _draw_all_curves(ax: Axes, lenses: Sequence[Lens]) -> None:
    x = sorted({step.n_samples for lens in lenses for step in _steps(lens)})
    held = np.full((len(lenses), len(x)), np.nan)
    for row, lens in enumerate(lenses):
        steps = _steps(lens)
        ax.plot(
            [s.n_samples for s in steps], [s.test_f1 for s in steps], color="0.6", lw=0.6, alpha=0.6
        )
        # A lens that has ended keeps its last F1: or the median would jump with who is left, not
        # with samples.
        at = np.searchsorted([s.n_samples for s in steps], x, side="right") - 1
        held[row] = np.where(at >= 0, np.array([s.test_f1 for s in steps])[at], np.nan)
    low, median, high = np.nanpercentile(held, (25, 50, 75), axis=0)
    ax.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="middle half")
    ax.plot(
        x, median, color=COLOURS[0], marker=MARKERS[0], label="median, each lens\nwith its last F1"
    )
    ax.plot([], [], color="0.6", lw=0.6, label="one lens")


def _steps(lens: Lens) -> list[Iteration]:
    return [*lens.trajectory, *lens.beyond]


def _pooled_reliability(lenses: Sequence[Lens]) -> tuple[NDArray[np.float64], ...]:
    """(bins,) predicted, observed and weight over all lenses, bins without rows left out."""
    noted: list[dict[str, Any]] = [
        lens.metrics["reliability"] for lens in lenses if lens.metrics.get("reliability")
    ]
    columns = {
        name: np.array([bins[name] for bins in noted], np.float64)  # None becomes NaN
        for name in ("predicted", "observed", "weight")
    }
    if not noted or not np.nansum(columns["weight"]):
        raise SettingsError(
            "no reliability was recorded: there was no test sample of one of the classes"
        )
    weight = np.nan_to_num(columns["weight"])
    total = weight.sum(axis=0)
    kept = total > 0
    means = [
        (weight * np.nan_to_num(columns[name])).sum(axis=0)[kept] / total[kept]
        for name in ("predicted", "observed")
    ]
    return means[0], means[1], total[kept] / total.sum()


def _lenses(pack: LensPack, concepts: Sequence[str]) -> list[Lens]:
    for concept in concepts:
        if concept not in pack:
            raise SettingsError(f"the pack has no lens for {concept!r:.80}: see `lenstrain show`")
    return [pack[concept] for concept in concepts]


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
    image = ax.imshow(
        table, cmap=shades, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
    )
    bar = ax.figure.colorbar(
        image, ax=ax, extend=extend, extendfrac=0.03, fraction=0.05, pad=0.02, aspect=30
    )
    bar.set_label(what, fontsize=8)
    bar.ax.tick_params(labelsize=8)
