"""What a lens pack looks like as numbers: by model layer, among siblings, and lens beside lens.

    LensPack --recorded_by_model_layer--> what the fit noted of each model layer
    LensDataset --fit_by_model_layer----> F1 and score of a lens fitted on each model layer alone
    LensPack, LensDataset --confusion---> whose lens speaks up most on whose samples
    LensPack --lens_similarity----------> cosines of lenses, in the order of the hierarchy

Nothing here needs matplotlib; `lenstrain.plots` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lenstrain.compare.heldout import held_out_logits
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.errors import SettingsError
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings

Metric = Literal["score", "test_f1"]
ByModelLayer = dict[str, dict[int, float]]
"""A value for each concept and model layer; NaN where it could not be measured."""


class Tree(Protocol):
    """Who is above and below whom: `LensDataset.hierarchy`, or that of a store or concept pack."""

    def __iter__(self) -> Iterator[str]: ...

    def parents(self, concept: str) -> tuple[str, ...]:
        """The concepts directly above."""

    def children(self, concept: str) -> tuple[str, ...]:
        """The concepts directly below."""


class LayerFit(NamedTuple):
    """A lens fitted on one model layer with all training samples, judged on the test split."""

    concept: str
    model_layer: int
    test_f1: float
    score: float
    """On test texts that do not name the concept; NaN without any."""


class Confusion(NamedTuple):
    """Whose lens has the strongest signal on whose held-out samples."""

    concepts: tuple[str, ...]
    share: NDArray[np.float64]
    """(n, n) share of the samples of each concept (row) on which each lens (column) is the
    strongest; rows sum to 1, or are NaN where there is no sample."""
    n_samples: tuple[int, ...]
    """Samples of each row."""
    n_ambiguous: int
    """Samples that express several of the concepts, which are left out."""


class Similarity(NamedTuple):
    """Cosines of lenses."""

    concepts: tuple[str, ...]
    """In the order of the hierarchy: everything below a concept comes right after it."""
    cosine: NDArray[np.float64]
    """(n, n) from -1 to 1."""
    branches: tuple[str, ...]
    """(n,) the concept without a parent that each falls under: the first, if there are several."""


def recorded_by_model_layer(pack: LensPack, metric: Metric = "score") -> ByModelLayer:
    """What the fit noted of each model layer, or if nothing, the value at that of the lens.

    Lenses that read several model layers, or none, have no value of their own.
    """
    found: ByModelLayer = {}
    for lens in pack:
        noted: Mapping[str, float | None] = lens.metrics.get(f"{metric}_by_model_layer") or {}
        found[lens.concept] = {int(i): math.nan if v is None else v for i, v in noted.items()}
        if not noted and len(lens.model_layers) == 1:
            found[lens.concept] = {lens.model_layer: lens.metrics[metric]}
    return found


def fit_by_model_layer(
    dataset: LensDataset,
    settings: FitSettings | None = None,
    *,
    model_layers: Sequence[int] | None = None,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
    on_model_layer: Callable[[int], None] = lambda _: None,
) -> list[LayerFit]:
    """Fit every concept once on each model layer, with all of its training samples.

    For looking at: a fit chooses its model layer on the calibration split, and who chooses one by
    these figures chooses it on the test split.

    Parameters
    ----------
    settings : as for a fit, whose schedule is left out: there is one iteration, with up to
        `max_samples` samples.
    model_layers : transformer blocks; None for all that the store holds.
    concepts : which concepts; None for all. Those with too few samples are left out.
    on_model_layer : called before each model layer.

    Raises
    ------
    SettingsError, TooFewSamplesError
        As `lenstrain.fit_lenses`.
    """
    settings = settings or FitSettings()
    once = replace(
        settings,
        initial_samples=settings.max_samples,
        min_iterations=1,
        max_iterations=1,
        beyond_graduation=False,
    )
    lines = []
    for model_layer in dataset.model_layers if model_layers is None else model_layers:
        on_model_layer(model_layer)
        here = replace(once, model_layers=(model_layer,))
        for lens in fit_lenses(dataset, here, concepts=concepts, jobs=jobs).lenses:
            lines.append(LayerFit(lens.concept, model_layer, lens.test_f1, lens.score))
    return lines


def by_model_layer(fits: Sequence[LayerFit], metric: Metric = "test_f1") -> ByModelLayer:
    """The lines of `fit_by_model_layer` as `lenstrain.plots.plot_by_model_layer` takes them."""
    found: ByModelLayer = {}
    for line in fits:
        found.setdefault(line.concept, {})[line.model_layer] = getattr(line, metric)
    return found


def known_lenses(pack: LensPack, concepts: Sequence[str]) -> list[Lens]:
    """The lenses of some concepts; SettingsError if the pack has none for one of them."""
    for concept in concepts:
        if concept not in pack:
            raise SettingsError(f"the pack has no lens for {concept!r:.80}: see `lenstrain show`")
    return [pack[concept] for concept in concepts]


def siblings_of(pack: LensPack, dataset: LensDataset, concept: str) -> list[str]:
    """A concept and those of its siblings that have a lens, the concept first.

    Raises
    ------
    SettingsError
        If the pack has no lens for it, or none for a sibling.
    """
    known_lenses(pack, [concept])
    found = [other for other in sorted(dataset.hierarchy.siblings(concept)) if other in pack]
    if not found:
        raise SettingsError(
            f"no sibling of {concept!r:.80} has a lens: name the concepts to compare"
        )
    return [concept, *found]


def confusion(
    pack: LensPack, dataset: LensDataset, concepts: Sequence[str], *, split: int = TEST
) -> Confusion:
    """How often the lens of each of some concepts is the strongest on held-out samples of each.

    Lenses are compared by their signal, how far each is above its own noise floor. Equal ones go to
    the first.

    Raises
    ------
    SettingsError
        If the pack has no lens for a concept, or these samples were not held out from it.
    """
    concepts = list(dict.fromkeys(concepts))
    lenses = known_lenses(pack, concepts)
    held = held_out_logits(pack, dataset, split)
    number = {lens.concept: i for i, lens in enumerate(pack)}
    columns = [lens.signal(held.logits[:, number[lens.concept]]) for lens in lenses]
    signal = np.stack(columns, axis=1)
    rows = [held.rows_of(dataset.positives(concept)) for concept in concepts]
    times = np.bincount(np.concatenate(rows), minlength=len(held.samples))
    share = np.full((len(concepts), len(concepts)), np.nan)
    counts = []
    for i, own in enumerate(rows):
        own = own[times[own] == 1]
        counts.append(len(own))
        if len(own):
            share[i] = np.bincount(signal[own].argmax(axis=1), minlength=len(concepts)) / len(own)
    return Confusion(tuple(concepts), share, tuple(counts), int((times > 1).sum()))


def hierarchy_order(hierarchy: Tree, concepts: Sequence[str]) -> list[tuple[str, str]]:
    """Concepts so that everything below a concept comes right after it, each with its branch.

    A concept with several parents stands below the first of them; one that the hierarchy does not
    know comes last, as its own branch.
    """
    wanted, seen = set(concepts), dict[str, str]()
    # A stack, since real ontologies are too deep for recursion. Reversed: its last is taken first.
    waiting = [(root, root) for root in hierarchy if not hierarchy.parents(root)][::-1]
    while waiting:
        concept, branch = waiting.pop()
        if concept not in seen:
            seen[concept] = branch
            waiting.extend((child, branch) for child in reversed(hierarchy.children(concept)))
    known = [(concept, branch) for concept, branch in seen.items() if concept in wanted]
    return known + [(concept, concept) for concept in concepts if concept not in seen]


def lens_similarity(
    pack: LensPack,
    hierarchy: Tree | None = None,
    *,
    of: Literal["weights", "directions"] = "weights",
) -> Similarity:
    """Cosines of the lenses of a pack.

    All model layers write to one residual stream, so lenses of different model layers can be
    compared; the further apart they are, the nearer to 0 is the cosine. Lenses that read several
    are compared with those that read the same ones; of a pack with both, the larger group is shown.

    Parameters
    ----------
    hierarchy : who is above whom; None leaves lenses in the order of the pack.
    of : "weights", what tells a concept apart; or "directions", along which it is steered.

    Raises
    ------
    SettingsError
        If fewer than two lenses can be compared: weights are those of linear lenses.
    """
    groups: dict[tuple[int, ...], dict[str, NDArray[np.float64]]] = {(): {}}
    for lens in pack:
        if (vector := _vector(lens, of)) is not None:
            read = lens.model_layers if len(lens.model_layers) > 1 else ()
            groups.setdefault(read, {})[lens.concept] = vector
    vectors = max(groups.values(), key=len)
    if len(vectors) < 2:
        raise SettingsError(
            f"{len(vectors)} lenses of the pack are linear and can be compared with another one: "
            "two are needed"
        )
    order = [(c, "") for c in vectors]
    if hierarchy is not None:
        order = hierarchy_order(hierarchy, list(vectors))
    V = np.stack([vectors[concept] for concept, _ in order])
    V = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    ordered, branches = zip(*order, strict=True)
    return Similarity(ordered, np.asarray(V @ V.T), branches)


def _vector(lens: Lens, of: Literal["weights", "directions"]) -> NDArray[np.float64] | None:
    if not lens.model_layers:
        return None
    if of == "directions":
        found = [direction.vector for direction in lens.directions]
        return np.concatenate(found).astype(np.float64) if found else None
    weights = lens.weights
    return weights.weight.astype(np.float64) if isinstance(weights, LinearWeights) else None
