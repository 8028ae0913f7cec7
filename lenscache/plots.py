"""Plots of a store: each takes a store (or arrays), draws into the axes it is given or into a new
figure, and returns the axes. What they show is computed in `lenscache.inspection` and can be had as
numbers there.

Needs matplotlib: ``pip install '.[plots]'`` in a clone of lenscache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lenscache.drawing import (
    COLOURS,
    MARKERS,
    count_along,
    describe,
    label,
    legend_beside,
    make_axes,
    require_matplotlib,
)
from lenscache.inspection import (
    NormSummary,
    OutlierDimension,
    PhaseSimilarity,
    Source,
    activation_norms,
    outlier_dimensions,
    phase_similarity,
    principal_components,
)
from lenscache.terms import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lenscache.store.store import Store

_MODEL_LAYER = "model layer (transformer block, 0-based)"
_ALL = 2**31


def plot_norms(
    source: Source, *, phases: Sequence[Phase] | None = None, ax: Axes | None = None
) -> Axes:
    """Median norm of activations by model layer, a line a phase, with the range of 90 % of rows.

    Parameters
    ----------
    source, phases : as for `lenscache.inspection.activation_norms`.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    lines = activation_norms(source, phases=phases)
    ax = make_axes(ax)
    for number, phase in enumerate(dict.fromkeys(line.phase for line in lines)):
        own = [line for line in lines if line.phase == phase]
        _draw_range(ax, own, number, f"{phase or 'median'}, 90 % of rows shaded")
    ax.set_yscale("log")
    count_along(ax)
    ax.legend(fontsize=8)
    describe(
        ax,
        "How large activations are, from block to block: "
        "look for steps, and for rows far from the rest",
        _MODEL_LAYER,
        "L2 norm of pooled activations\n(activation units, log scale)",
    )
    return ax


def plot_outlier_dimensions(
    source: Source, *, top: int = 4, phase: Phase | None = None, ax: Axes | None = None
) -> Axes:
    """Share of the squared norm that the largest dimensions hold, by model layer.

    Parameters
    ----------
    source : a store, or activations (n, hidden) by model layer.
    top : dimensions to draw, those with the largest share over all model layers; 6 at most.
    phase : of a store; None for the first that it holds.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    top = min(top, len(COLOURS) - 1)
    phases = None if phase is None else (phase,)
    # All of them, since what is largest at one model layer is not at another.
    lines = outlier_dimensions(source, top=_ALL, phases=phases)
    lines = [line for line in lines if line.phase == lines[0].phase]
    share = {(line.model_layer, line.dimension): line.share for line in lines}
    model_layers = sorted({line.model_layer for line in lines})
    ax = make_axes(ax)
    chosen = _largest(lines, top)
    for number, dimension in enumerate(chosen):
        y, style = [100 * share[i, dimension] for i in model_layers], _style(number)
        ax.plot(model_layers, y, label=f"dimension {dimension}", **style)
    rest = [100 * (1 - sum(share[i, dimension] for dimension in chosen)) for i in model_layers]
    name = f"the other {len(lines) // len(model_layers) - len(chosen)} together"
    ax.plot(model_layers, rest, color="0.45", ls="--", label=name)
    ax.set_ylim(0, 100)
    count_along(ax)
    legend_beside(ax)
    where = f" ({lines[0].phase})" if lines[0].phase else ""
    describe(
        ax,
        f"Outlier dimensions{where}: where a few lines outweigh the dashed one, "
        "norms and raw cosines say little",
        _MODEL_LAYER,
        "share of the squared norm (%)",
    )
    return ax


def plot_pca(
    store: Store,
    concept: str,
    model_layer: int,
    *,
    phase: Phase = "prompt",
    against: Sequence[str] | None = None,
    kind: str | None = "example",
    ax: Axes | None = None,
) -> Axes:
    """Samples of a concept and its siblings in the plane in which they differ most.

    Parameters
    ----------
    phase, against, kind : as for `lenscache.inspection.principal_components`; more than five others
        are one group.

    Raises
    ------
    PlanError
        As `lenscache.inspection.principal_components`.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    found = principal_components(
        store, concept, model_layer, phase=phase, against=against, kind=kind
    )
    names = store.concept_names
    others = [c for c in dict.fromkeys(found.concept) if c != concept]
    are_few = len(others) < len(COLOURS) - 1
    groups = {other: [other] for other in others} if are_few else {"": others}
    ax = make_axes(ax, width=8.5)
    for number, (other, members) in enumerate(groups.items(), start=1):
        x, y = found.points[np.isin(found.concept, members)].T
        name = f"{label(names[other]) if other else f'{len(members)} siblings'} ({len(x)})"
        colour = COLOURS[number] if other else "0.55"
        ax.scatter(
            x, y, s=22, color=colour, marker=MARKERS[number], alpha=0.85, linewidths=0, label=name
        )
    x, y = found.points[np.isin(found.concept, [concept])].T
    name = f"{label(names[concept])} ({len(x)})"
    edge: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6}
    ax.scatter(x, y, s=42, color=COLOURS[0], marker=MARKERS[0], label=name, **edge)
    legend_beside(ax, "samples of", is_reversed=True)
    describe(
        ax,
        f"{label(names[concept])} against {'its siblings' if against is None else 'others'}, "
        f"{phase}, model layer {model_layer}: "
        "points of one kind that lie apart are told apart by the model itself",
        *(
            f"principal component {i + 1}, {share:.0%} of the variance\n(standard deviations)"
            for i, share in enumerate(found.explained)
        ),
    )
    return ax


def plot_phases(store: Store, *, ax: Axes | None = None) -> Axes:
    """How alike the prompt and the completion of a sample are, by model layer.

    Raises
    ------
    StoreMismatchError
        If the store holds one phase only.
    MissingPackageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    lines = phase_similarity(store)
    ax, x = make_axes(ax), [line.model_layer for line in lines]
    _draw_range(ax, lines, 0, "a sample's own completion, 90 % of samples shaded")
    ax.plot(x, [s.other for s in lines], ls="--", label="another sample's", **_style(1))
    count_along(ax)
    ax.legend(fontsize=8)
    describe(
        ax,
        "Prompt against completion: the higher above the dashed line, "
        "the more of the prompt is still there while the model writes",
        _MODEL_LAYER,
        "cosine of standardised activations\n(median, -1 to 1)",
    )
    return ax


def _draw_range(
    ax: Axes, lines: Sequence[NormSummary | PhaseSimilarity], number: int, name: str
) -> None:
    """Medians by model layer, with the range from `low` to `high` shaded."""
    x, low, high = zip(*((line.model_layer, line.low, line.high) for line in lines), strict=True)
    ax.fill_between(x, low, high, color=COLOURS[number], alpha=0.2, lw=0)
    ax.plot(x, [line.median for line in lines], label=name, **_style(number))


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number], "marker": MARKERS[number], "ms": 4}


def _largest(lines: Sequence[OutlierDimension], top: int) -> list[int]:
    """The dimensions with the largest share, added up over model layers."""
    total: dict[int, float] = {}
    for line in lines:
        total[line.dimension] = total.get(line.dimension, 0.0) + line.share
    return sorted(total, key=lambda dimension: -total[dimension])[:top]
