"""Where concepts stand: in the hierarchy of the store, or else only their level of abstraction."""

from __future__ import annotations

from dataclasses import dataclass

from lenstrain.data.dataset import LensDataset
from lenstrain.pack.pack import LensPack


@dataclass(frozen=True)
class WithoutLens:
    """A concept without a lens; shown because a concept below it has one, or a lens was to be
    fitted."""

    id: str
    name: str
    level: int


@dataclass(frozen=True)
class Tree:
    """Concepts by number: lenses in the order of the pack, then those without one."""

    parents: list[list[int]]
    """The concepts directly above each; empty lists throughout if there is no hierarchy."""
    without_lens: list[WithoutLens]
    skipped: dict[int, str]
    """Why a concept got no lens."""
    is_flat: bool
    """Whether nothing is above anything."""


def tree_of(pack: LensPack, dataset: LensDataset | None) -> Tree:
    """The hierarchy around the lenses of a pack."""
    if dataset is None:
        return Tree([[] for _ in pack], [], {}, is_flat=True)
    hierarchy, names = dataset.hierarchy, dataset.concept_names
    wanted = {lens.concept for lens in pack} | {c for c in pack.skipped if c in hierarchy}
    for concept in tuple(wanted):
        wanted |= hierarchy.ancestors(concept) if concept in hierarchy else frozenset()
    order = [lens.concept for lens in pack]
    order += [concept for concept in hierarchy if concept in wanted and concept not in pack]
    number = {concept: i for i, concept in enumerate(order)}
    parents = [[number[p] for p in hierarchy.parents(c)] if c in hierarchy else [] for c in order]
    extra = [WithoutLens(c, names[c], hierarchy.levels[c]) for c in order[len(pack) :]]
    skipped = {number[concept]: why for concept, why in pack.skipped.items() if concept in number}
    return Tree(parents, extra, skipped, is_flat=not any(parents))
