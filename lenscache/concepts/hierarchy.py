"""Who is above, below and beside whom among the concepts of a pack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from lenscache.errors import PackError


class Hierarchy:
    """Who is above, below and beside whom, for every concept of a pack.

    Several parents are allowed. Ancestors and descendants are computed once, when first asked for.

    Parameters
    ----------
    levels : level of abstraction by concept id, in pack order.
    parents : ids of the parents by concept id.
    confusable : ids of concepts that could be mistaken for one, by its id; unknown ones are passed
        over.

    Raises
    ------
    PackError
        If a parent is unknown, or the parents form a cycle.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        parents: Mapping[str, tuple[str, ...]],
        confusable: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.levels = dict(levels)
        self._confusable = confusable or {}
        self._parents = {concept: tuple(parents.get(concept, ())) for concept in self.levels}
        self._children: dict[str, list[str]] = {concept: [] for concept in self.levels}
        for concept, above in self._parents.items():
            for parent in above:
                if parent not in self.levels:
                    raise PackError(
                        f"concept {concept!r} names the parent {parent!r}, which is not in the "
                        "pack: add that concept or correct `parents`"
                    )
                self._children[parent].append(concept)
        self._order = self._topological_order()

    def __contains__(self, concept: object) -> bool:
        return concept in self.levels

    def __iter__(self) -> Iterator[str]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def parents(self, concept: str) -> tuple[str, ...]:
        """The concepts directly above."""
        return self._parents[concept]

    def children(self, concept: str) -> tuple[str, ...]:
        """The concepts directly below."""
        return tuple(self._children[concept])

    def ancestors(self, concept: str) -> frozenset[str]:
        """Everything above, at any distance; not the concept itself."""
        return self._ancestors[concept]

    def descendants(self, concept: str) -> frozenset[str]:
        """Everything below, at any distance; not the concept itself."""
        return self._descendants[concept]

    def family(self, concept: str) -> frozenset[str]:
        """The concept, its ancestors and its descendants: what may never serve as its negatives."""
        return self._ancestors[concept] | self._descendants[concept] | {concept}

    def siblings(self, concept: str) -> frozenset[str]:
        """Concepts that share a parent; on level 0, the other concepts without a parent."""
        above = self._parents[concept]
        beside = [child for parent in above for child in self._children[parent]]
        roots = [] if above else [c for c, its in self._parents.items() if not its]
        return frozenset(beside + roots) - self.family(concept)

    def confusable(self, concept: str) -> frozenset[str]:
        """Concepts that the pack says could be mistaken for it; none of its family."""
        known = (other for other in self._confusable.get(concept, ()) if other in self.levels)
        return frozenset(known) - self.family(concept)

    def branches(self, concept: str) -> frozenset[str]:
        """The concepts without a parent that it falls under; itself if it has none."""
        return frozenset(c for c in self.ancestors(concept) | {concept} if not self._parents[c])

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        return _reached(self._order, self._parents)

    @cached_property
    def _descendants(self) -> dict[str, frozenset[str]]:
        return _reached(reversed(self._order), self._children)

    def _topological_order(self) -> list[str]:
        """Parents before children; iterative, since real ontologies outgrow the recursion limit."""
        waiting = {concept: len(set(above)) for concept, above in self._parents.items()}
        order = [concept for concept, n in waiting.items() if n == 0]
        for concept in order:
            for child in dict.fromkeys(self._children[concept]):
                waiting[child] -= 1
                if waiting[child] == 0:
                    order.append(child)
        if len(order) < len(waiting):
            cycle = self._show_cycle({concept for concept, n in waiting.items() if n > 0})
            raise PackError(f"the parents form a cycle: {cycle}: remove one of these links")
        return order

    def _show_cycle(self, stuck: set[str]) -> str:
        concept, path = min(stuck), list[str]()
        while concept not in path:
            path.append(concept)
            concept = next(parent for parent in self._parents[concept] if parent in stuck)
        return " -> ".join([*path[path.index(concept) :], concept])


def _reached(order: Iterable[str], links: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """All that each concept reaches by links, at any distance; `order` has their ends first."""
    found: dict[str, frozenset[str]] = {}
    for concept in order:
        found[concept] = frozenset(links[concept]).union(*(found[c] for c in links[concept]))
    return found
