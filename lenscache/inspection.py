"""What a store holds: norms, outlier dimensions, neighbours, main directions, phases compared.

    Store, or {model layer: X}
          --activation_norms, outlier_dimensions--> a line a phase and model layer
    Store --nearest_samples-----------> the samples that the model represents most alike
          --principal_components------> points of a concept and its siblings in the plane
          --phase_similarity----------> a line a model layer

`visible` shows a text on one line, with nothing hidden in it.

Lines are named tuples, so that `pandas.DataFrame(lines)` is a table with named columns; nothing
here needs pandas, matplotlib or torch. Only rows of complete blocks are read, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lenscache.drawing import visible as visible
from lenscache.errors import PlanError, StoreIncompleteError
from lenscache.store.round import Round
from lenscache.store.views.selection import Selection, select
from lenscache.terms import Phase

if TYPE_CHECKING:
    from lenscache.store.store import Store

Floats = NDArray[np.float64]
Source: TypeAlias = "Store | Mapping[int, NDArray[Any]]"
"""A store, or activations (n, hidden) by model layer."""

MAX_ROWS = 4096
"""Rows that summaries take at most, in blocks spread over the store; more hardly move a median."""


class NormSummary(NamedTuple):
    """L2 norms of pooled activations, in activation units."""

    phase: str
    """Empty for activations that were given as arrays."""
    model_layer: int
    n: int
    """Rows."""
    low: float
    """5th percentile over the rows."""
    median: float
    high: float
    """95th percentile."""


class OutlierDimension(NamedTuple):
    """A dimension of the residual stream that is far larger than the others."""

    phase: str
    model_layer: int
    dimension: int
    magnitude: float
    """Mean of its absolute value, in activation units."""
    ratio: float
    """That, in multiples of the median dimension's."""
    share: float
    """Its share of the mean squared norm, 0 to 1."""


class Neighbour(NamedTuple):
    """A sample near another one."""

    sample: str
    """Its name in the store, as in `Store.to_xarray`."""
    cosine: float
    """Of the two activations, each dimension standardised over the store."""
    shared: int
    """Concepts that both express."""
    concepts: tuple[str, ...]
    """Ids of what it expresses."""
    split: str
    text: str


class Projection(NamedTuple):
    """Samples in the plane of their two main directions."""

    points: Floats
    """(n, 2) in standard deviations of the standardised dimensions."""
    explained: tuple[float, float]
    """Share of the variance that each axis shows, 0 to 1."""
    concept: tuple[str, ...]
    """(n,) which of the concepts each sample expresses."""
    sample: tuple[str, ...]
    """(n,) names of the samples in the store."""


class PhaseSimilarity(NamedTuple):
    """Cosines of the standardised prompt and completion of the same sample, at one model layer."""

    model_layer: int
    n: int
    """Samples with both phases."""
    low: float
    """5th percentile over samples."""
    median: float
    high: float
    """95th percentile."""
    other: float
    """Median between the prompt of one sample and the completion of another."""


def activation_norms(source: Source, *, phases: Sequence[Phase] | None = None) -> list[NormSummary]:
    """How large activations are, a line for each phase and model layer.

    Parameters
    ----------
    source : a store, of which `MAX_ROWS` rows are read; or activations (n, hidden) by model layer.
    phases : of a store; None for all that it holds.

    Raises
    ------
    StoreIncompleteError
        If no block of the store is complete.
    StoreMismatchError
        If the store holds no such phase.
    """
    lines = []
    for phase, model_layer, X in _arrays(source, phases):
        low, median, high = np.percentile(np.linalg.norm(X, axis=1), (5, 50, 95)).tolist()
        lines.append(NormSummary(phase, model_layer, len(X), low, median, high))
    return lines


def outlier_dimensions(
    source: Source, *, top: int = 3, phases: Sequence[Phase] | None = None
) -> list[OutlierDimension]:
    """The largest dimensions of each phase and model layer, the largest first.

    Many models keep a few "massive activations" (Sun et al., 2024): dimensions tens of times larger
    than the others, which dominate norms and raw cosines and say little about the text.

    Parameters
    ----------
    top : dimensions of each phase and model layer.
    source, phases : as for `activation_norms`, which raises the same errors.
    """
    lines = []
    for phase, model_layer, X in _arrays(source, phases):
        magnitude, energy = np.abs(X).mean(axis=0), np.square(X).mean(axis=0)
        ratio = magnitude / max(float(np.median(magnitude)), np.finfo(np.float64).tiny)
        share = energy / max(float(energy.sum()), np.finfo(np.float64).tiny)
        for dimension in np.argsort(-magnitude, kind="stable")[:top].tolist():
            sizes = (float(values[dimension]) for values in (magnitude, ratio, share))
            lines.append(OutlierDimension(phase, model_layer, dimension, *sizes))
    return lines


def nearest_samples(
    store: Store, sample: str, model_layer: int, *, phase: Phase = "prompt", n: int = 5
) -> list[Neighbour]:
    """The samples whose activations are most like those of one sample, the nearest first.

    Every dimension is standardised over the store first: raw cosines are near 1 for all pairs,
    because a few outlier dimensions make up most of an activation. Rows with the same text are left
    out.

    Parameters
    ----------
    sample : name of a sample, such as "layer_1/round_0/17".

    Raises
    ------
    PlanError
        If the store holds no such sample, or it has no position in this phase.
    ModelLayerError, StoreMismatchError
        If the store holds no such model layer or phase.
    """
    selection = select(store, model_layers=[model_layer], phases=[phase])
    table = _Table(selection)
    if sample not in table.number:
        raise PlanError(
            f"sample {sample!r:.80} is not in the store: samples are named like layer_1/round_0/17"
        )
    mean, scale = _moments(X for _, X in _blocks(selection, phase, model_layer))
    own = table.number[sample]
    Z = next((X[0] - mean) / scale for _, X in _blocks(selection, phase, model_layer, [own]))
    if np.isnan(Z).any():
        raise PlanError(
            f"sample {sample} has no position in the phase {phase}: choose another phase"
        )
    blocks = _blocks(selection, phase, model_layer)
    cosines = np.concatenate([_cosines((X - mean) / scale, Z) for _, X in blocks])
    cosines[[i for i, text in enumerate(table.text) if text == table.text[own]]] = np.nan
    order = [i for i in np.argsort(-cosines, kind="stable").tolist() if not np.isnan(cosines[i])]
    wanted = set(table.concepts[own])
    return [
        Neighbour(
            table.sample[i],
            float(cosines[i]),
            len(wanted & set(table.concepts[i])),
            table.concepts[i],
            table.split[i],
            table.text[i],
        )
        for i in order[:n]
    ]


def principal_components(
    store: Store,
    concept: str,
    model_layer: int,
    *,
    phase: Phase = "prompt",
    against: Sequence[str] | None = None,
    kind: str | None = "example",
) -> Projection:
    """The samples of a concept and its siblings in the plane in which they differ most.

    Dimensions are standardised over these samples. The plane knows nothing of the labels: where
    groups lie apart in it, the model tells them apart by itself. A sample that expresses several of
    the concepts counts as the first, and a text that several rounds hold counts once.

    Parameters
    ----------
    against : ids of the concepts to compare with; None for the siblings.
    kind : kind of samples to take; None for all. Together with sentences about a concept, the
        prompts that templates made of its name span a plane that shows the templates.

    Raises
    ------
    PlanError
        If a concept is not in the store, has no siblings, or there are fewer than three samples.
    ModelLayerError, StoreMismatchError
        If the store holds no such model layer or phase.
    """
    for wanted in (concept, *(against or ())):
        if wanted not in store.hierarchy:
            raise PlanError(f"concept {wanted!r:.80} is not in the store: see `lenscache info`")
    siblings = sorted(store.hierarchy.siblings(concept))
    others = siblings if against is None else [c for c in against if c != concept]
    if not others:
        raise PlanError(
            f"{concept!r:.80} has no siblings: name the concepts to compare it with, against=[...]"
        )
    selection = select(store, model_layers=[model_layer], phases=[phase])
    table = _Table(selection)
    group = [next((c for c in (concept, *others) if c in found), "") for found in table.concepts]
    first = {text: i for i, text in reversed(list(enumerate(table.text)))}
    rows = [i for i in sorted(first.values()) if group[i] and kind in (None, table.kind[i])]
    blocks = (X for _, X in _blocks(selection, phase, model_layer, rows))
    X = np.concatenate([np.empty((0, store.header.hidden)), *blocks])
    present = ~np.isnan(X).any(axis=1)
    rows = [row for row, is_there in zip(rows, present, strict=True) if is_there]
    if len(rows) < 3:
        found = f"{len(rows)} samples of {concept!r:.80} and its siblings"
        raise PlanError(f"{found} are of kind {kind or 'any'}, a plane needs three")
    mean, scale = _moments([X[present]])
    U, size, _ = np.linalg.svd((X[present] - mean) / scale, full_matrices=False)
    explained = np.square(size) / np.square(size).sum()
    return Projection(
        U[:, :2] * size[:2],
        (float(explained[0]), float(explained[1])),
        tuple(group[row] for row in rows),
        tuple(table.sample[row] for row in rows),
    )


def phase_similarity(store: Store) -> list[PhaseSimilarity]:
    """How alike the prompt and the completion of the same sample are, a line for each model layer.

    Each phase is standardised by itself, so that what all prompts, or all completions, have in
    common does not count.

    Raises
    ------
    StoreMismatchError
        If the store holds one phase only.
    StoreIncompleteError
        If there are fewer than two rows with both.
    """
    selection = select(store, phases=("prompt", "completion"))
    lines = []
    for model_layer in selection.model_layers:
        prompt, completion = (_sample(selection, phase, model_layer) for phase in selection.phases)
        both = ~(np.isnan(prompt).any(axis=1) | np.isnan(completion).any(axis=1))
        if both.sum() < 2:
            raise StoreIncompleteError(
                f"{store.path} holds {int(both.sum())} complete rows with both phases, not two"
            )
        a, b = (_standardised(X[both]) for X in (prompt, completion))
        low, median, high = np.percentile(_cosines(a, b), (5, 50, 95)).tolist()
        # Rows of one concept lie beside each other: half the store away is something else.
        other = float(np.median(_cosines(a, np.roll(b, len(b) // 2, axis=0))))
        lines.append(PhaseSimilarity(model_layer, int(both.sum()), low, median, high, other))
    return lines


class _Table:
    """What is known of the selected rows, in order."""

    def __init__(self, selection: Selection) -> None:
        columns = [part.columns() for part in selection.rounds]
        self.sample, self.text, self.split, self.kind = (
            [str(value) for part in columns for value in part[name]]
            for name in ("sample", "text", "split", "kind")
        )
        self.number = {name: i for i, name in enumerate(self.sample)}
        positive: dict[str, list[str]] = {}
        for part in selection.rounds:
            for found in part.labels():
                if found.role == "positive":
                    positive.setdefault(f"{part.source.name}/{found.row}", []).append(found.concept)
        self.concepts = [tuple(positive.get(name, ())) for name in self.sample]


def _blocks(
    selection: Selection, phase: Phase, model_layer: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, Floats]]:
    """The first row and the activations of each block.

    `rows`, ascending numbers in the selection, limits this to these rows and the blocks with any.
    """
    first = 0
    for source, block in _places(selection):
        span = source.rows(block)
        end = first + span.stop - span.start
        here = None if rows is None else [row - first for row in rows if first <= row < end]
        if here is None or here:
            X = source.read(phase, model_layer, span).astype(np.float64)
            yield first, X if here is None else X[here]
        first = end


def _places(selection: Selection) -> list[tuple[Round, int]]:
    return [(part.source, block) for part in selection.rounds for block in part.blocks]


def _sample(selection: Selection, phase: Phase, model_layer: int) -> Floats:
    """(n, hidden) of about `MAX_ROWS` rows, always the same; NaN if a row has no position."""
    places = _places(selection)
    sizes = [source.rows(block).stop - source.rows(block).start for source, block in places]
    every = max(1, -(-sum(sizes) // MAX_ROWS))
    blocks = [
        source.read(phase, model_layer, source.rows(block)).astype(np.float64)
        for source, block in places[::every]
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 0))


def _arrays(source: Source, phases: Sequence[Phase] | None) -> Iterator[tuple[str, int, Floats]]:
    """Phase, model layer and the activations that are there."""
    if isinstance(source, Mapping):
        for model_layer, given in sorted(source.items()):
            X = _present(np.asarray(given, np.float64), f"model layer {model_layer}")
            yield "", model_layer, X
        return
    selection = select(source, phases=phases)
    for phase in selection.phases:
        for model_layer in selection.model_layers:
            X = _present(_sample(selection, phase, model_layer), f"{source.path}, {phase}")
            yield phase, model_layer, X


def _present(X: Floats, where: str) -> Floats:
    X = X[~np.isnan(X).any(axis=1)]
    if not len(X):
        raise StoreIncompleteError(
            f"{where}: no row has an activation: run `lenscache extract` again to continue"
        )
    return X


def _moments(blocks: Any) -> tuple[Floats, Floats]:
    """(hidden,) mean and standard deviation over the rows without NaN; 1 where nothing varies."""
    n, total, squares = 0, np.zeros(1), np.zeros(1)
    for X in blocks:
        kept = X[~np.isnan(X).any(axis=1)]
        n, total = n + len(kept), total + kept.sum(axis=0)
        squares = squares + np.square(kept).sum(axis=0)
    mean = total / max(n, 1)
    scale = np.sqrt(np.maximum(squares / max(n, 1) - np.square(mean), 0))
    return mean, np.where(scale > 1e-6 * np.sqrt(squares / max(n, 1)), scale, 1.0)


def _standardised(X: Floats) -> Floats:
    mean, scale = _moments([X])
    return np.asarray((X - mean) / scale)


def _cosines(a: Floats, b: Floats) -> Floats:
    """(n,) of each row of a (n, hidden) with b, (hidden,) or row by row (n, hidden)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny))
