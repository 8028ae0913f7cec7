"""What importers of ontologies share: the links between concepts, their levels, and their terms as
words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from lenscache.concepts.importers.report import ImportReport
from lenscache.errors import PackError


def cut_cycles(parents: dict[str, list[str]], report: ImportReport) -> None:
    """Remove the links that close a cycle, walking upwards; iterative, since chains may be long."""
    done: set[str] = set()
    for start in parents:
        path: list[tuple[str, list[str]]] = (
            [(start, list(parents[start]))] if start not in done else []
        )
        on_path = {start}
        while path:
            name, above = path[-1]
            if not above:
                done.add(name)
                on_path.discard(name)
                path.pop()
                continue
            parent = above.pop(0)
            if parent in on_path:
                parents[name].remove(parent)
                report.leave_out("link that closes a cycle", f"{name} below {parent}")
            elif parent not in done:
                on_path.add(parent)
                path.append((parent, list(parents[parent])))


def children_of(parents: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Children by name; none for a name without."""
    children: dict[str, list[str]] = {name: [] for name in parents}
    for name, above in parents.items():
        for parent in above:
            children[parent].append(name)
    return children


def depths_below(roots: Iterable[str], children: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """The roots and all below them, with the fewest links to a root; the shallow ones first."""
    depths = dict.fromkeys(roots, 0)
    waiting = list(depths)
    for name in waiting:
        for child in children[name]:
            if child not in depths:
                depths[child] = depths[name] + 1
                waiting.append(child)
    return depths


def unknown_root(root: str, meant: str, known: Collection[str], where: str) -> PackError:
    """The error for a root that a source does not hold; `meant` is the root in the form of the
    source's ids."""
    close = get_close_matches(meant, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "nothing in it has a similar id"
    return PackError(f"no concept {root!r} in {where} to take as a root: {hint}")


def spoken(term: str) -> str:
    """CookingDevice -> cooking device."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", term).split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)
