"""Which samples are the positives and negatives of one concept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import SPLITS
from lenscache.concepts.prompts import CONTRAST, NEGATIVE, stable_hash
from lenstrain.data.dataset import NO_ROWS, TRAIN, LensDataset, Rows
from lenstrain.errors import ShortConceptError, TooFewSamplesError

SIBLING_SHARE = 0.3
"""Share of a concept's negatives that are samples of its siblings and confusable concepts."""
CONTRAST_SHARE = 0.2
"""Share of a concept's negatives, at most, that are its own contrast samples."""
_SHARES = (CONTRAST_SHARE, SIBLING_SHARE, 1 - CONTRAST_SHARE - SIBLING_SHARE)
HELD_OUT_NEGATIVES = 300
"""Negatives, at least, by which thresholds are chosen and F1 is measured."""


@dataclass(frozen=True)
class Task:
    """What the samples of a store are to one concept. All rows index the dataset's samples."""

    concept: str
    positives: tuple[Rows, ...]
    """Rows that express the concept, by split, nested: the first ten are among the first thirty."""
    negatives: tuple[Rows, ...]
    """Rows that do not, by split, in nested order; never of its ancestors or descendants."""
    related: Rows
    """Rows of its ancestors and descendants, in any role: left out when the lens is judged."""


def draw_task(dataset: LensDataset, concept: str, n_negatives: Callable[[int], int]) -> Task:
    """Who is positive, who is negative, and who counts in judging the lens of one concept.

    Negatives cost nothing, they are other concepts' samples: about 30 % of siblings and confusable
    concepts (then of other relatives on the same branch), up to 20 % the concept's own contrast
    samples, the rest spread evenly over the other branches of level 0. Where the data names
    negatives of its own, those come first.

    Parameters
    ----------
    dataset : the samples of a store.
    n_negatives : how many negatives go with a number of positives; in the held-out splits at least
        `HELD_OUT_NEGATIVES`, as far as there are so many.

    Raises
    ------
    ShortConceptError
        If a split has too few positives.
    TooFewSamplesError
        If there is not a single negative.
    """
    positive = dataset.positives(concept)
    relatives = sorted(dataset.hierarchy.family(concept) - {concept})
    related = np.setdiff1d(_concatenate(map(dataset.labelled, relatives)), positive)
    by_split = [positive[dataset.split[positive] == split] for split in range(len(SPLITS))]
    allowed = dataset.has_vector.copy()
    allowed[related] = allowed[positive] = False

    def wanted(split: int, n: int) -> int:
        return n if split == TRAIN else max(n, HELD_OUT_NEGATIVES)

    negatives = [
        _draw_negatives(dataset, concept, split, allowed, wanted(split, n_negatives(len(rows))))
        for split, rows in enumerate(by_split)
    ]
    _check_enough(concept, by_split, negatives)
    return Task(concept, tuple(by_split), tuple(negatives), related)


def _draw_negatives(
    dataset: LensDataset, concept: str, split: int, allowed: NDArray[np.bool_], n: int
) -> Rows:
    rng = np.random.default_rng([stable_hash("negatives", dataset.seed, concept), split])

    def pool(rows: Rows) -> Rows:
        # In a store of thousands of concepts, a few of its many rows will do.
        if len(rows) > 16 * (n + 1):
            some = rows[np.unique(rng.integers(len(rows), size=8 * (n + 1)))]
            if len(found := some[allowed[some] & (dataset.split[some] == split)]) >= n:
                return rng.permutation(found)
        return rng.permutation(rows[allowed[rows] & (dataset.split[rows] == split)])

    branches, by_branch = dataset.hierarchy.branches(concept), dataset.branch_rows[split]
    hierarchy = dataset.hierarchy
    near = sorted(hierarchy.siblings(concept) | hierarchy.confusable(concept))
    of_near = np.unique(_concatenate(map(dataset.positive_rows.get, near)))
    same_branch = _concatenate(map(by_branch.get, sorted(branches)))
    # Each pool draws from the generator, so their order counts.
    others = [pool(rows) for branch, rows in by_branch.items() if branch not in branches]
    contrasts = pool(dataset.rows_with_role(concept, CONTRAST))
    related = np.concatenate([pool(of_near), pool(same_branch)])
    rest = _round_robin([others[i] for i in rng.permutation(len(others))])
    given = pool(dataset.rows_with_role(concept, NEGATIVE))
    distinct = dict.fromkeys(given.tolist()[:n])
    by_share = (contrasts, related, rest)
    # A row may be in two pools, so some more than n are looked at, or all.
    for most in (2 * n, sum(map(len, by_share))):
        if len(distinct) < n:
            distinct |= dict.fromkeys(_merge_by_share(by_share, most).tolist())
    return np.array([*distinct][:n], np.intp)


def _check_enough(concept: str, positives: Sequence[Rows], negatives: Sequence[Rows]) -> None:
    for name, rows, minimum in zip(SPLITS, positives, (2, 1, 1), strict=True):
        if len(rows) < minimum:
            raise ShortConceptError(
                f"{concept}: {len(rows)} positive samples in the {name} split, at least {minimum} "
                "are needed: extract more of its prompts, or give the concept more examples"
            )
    for name, rows in zip(SPLITS, negatives, strict=True):
        if not len(rows):
            raise TooFewSamplesError(
                f"{concept}: no negative sample in the {name} split: extract more concepts"
            )


def _concatenate(parts: Iterable[Rows | None]) -> Rows:
    return np.concatenate([NO_ROWS, *(part for part in parts if part is not None)])


def _round_robin(lists: Sequence[Rows]) -> Rows:
    """First of each, second of each, ...; the shorter ones end earlier."""
    places = np.concatenate([NO_ROWS, *(np.arange(len(rows)) for rows in lists)])
    return _concatenate(lists)[np.argsort(places, kind="stable")]


def _merge_by_share(parts: Sequence[Rows], most: int) -> Rows:
    """The first rows, `most` at most, merged so that every prefix has the shares of `_SHARES`; the
    others share that of an ended part."""
    turns = _turns(tuple(min(len(rows), most) for rows in parts), most)
    merged = np.empty(len(turns), np.intp)
    for number, rows in enumerate(parts):
        merged[turns == number] = rows[: np.count_nonzero(turns == number)]
    return merged


@lru_cache(maxsize=1024)
def _turns(lengths: tuple[int, ...], most: int) -> NDArray[np.int8]:
    """(rows,) which part each row of a merge comes from; thousands of concepts have the same."""
    remaining, taken, left = [*_SHARES], [0] * len(lengths), [*enumerate(lengths)]
    turns: list[int] = []
    while left and len(turns) < most:
        n = sum(taken) + 1
        lag = [share * n - own for share, own in zip(remaining, taken, strict=True)]
        chosen = lag.index(max(lag))
        number, length = left[chosen]
        if taken[chosen] < length:
            turns.append(number)
            taken[chosen] += 1
        else:
            del remaining[chosen], taken[chosen], left[chosen]
    return np.array(turns, np.int8)
