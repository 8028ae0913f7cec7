"""What importers of ontologies share: links between concepts, their levels, names and examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from lenscache.concepts.importers.report import ImportReport
from lenscache.concepts.pack import Concept
from lenscache.errors import PackError


def join_links(
    above: Mapping[str, Iterable[str]],
    below: Mapping[str, Iterable[str]],
    report: ImportReport,
    *,
    words: tuple[str, str] = ("parent", "child"),
    show: Callable[[str], str] = str,
) -> dict[str, list[str]]:
    """Parents by concept: links are given from both ends, and either end may be the only one.

    `words` are what the source calls both ends, `show` gives the name of a concept for the report.
    """
    parents: dict[str, dict[str, None]] = {concept: {} for concept in above}
    for concept, given in above.items():
        for parent in given:
            if parent in parents:
                parents[concept][parent] = None
            else:
                report.leave_out(f"{words[0]} that does not exist", f"{parent} of {show(concept)}")
    for concept, given in below.items():
        for child in given:
            if child not in parents:
                report.leave_out(f"{words[1]} that does not exist", f"{child} of {show(concept)}")
            elif concept not in parents[child]:
                link = f"{show(child)} below {show(concept)}"
                report.repair(f"link given by the {words[0]} only", link)
                parents[child][concept] = None
    return {concept: list(found) for concept, found in parents.items()}


def cut_cycles(parents: dict[str, list[str]], report: ImportReport) -> None:
    """Remove the links that close a cycle, walking upwards; iterative, since chains may be long."""
    done: set[str] = set()
    for start in parents:
        path = [] if start in done else [(start, list(parents[start]))]
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
    """The error for a root that a source lacks; `meant` is the root in the form of its ids."""
    close = get_close_matches(meant, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "nothing in it has a similar id"
    return PackError(f"no concept {root!r} in {where} to take as a root: {hint}")


def with_examples(concept: Concept, texts: Iterable[str], report: ImportReport) -> Concept:
    """The concept with the texts as examples, except for texts that name it."""
    is_named = {text: concept.is_named_in(text) for text in texts}
    for text in (text for text in is_named if is_named[text]):
        report.leave_out("example that names its concept", f"{concept.id}: {text}")
    return replace(concept, examples=tuple(text for text in is_named if not is_named[text]))


def other_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names that differ from `name` and from each other in more than case."""
    found = {other.casefold(): other for other in reversed(names)}
    found.pop(name.casefold(), None)
    return tuple(reversed(found.values()))


def spoken(term: str) -> str:
    """CookingDevice -> cooking device."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", term).split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)
