"""Twins: texts that are the same, or nearly, and lie in different splits.

    texts --normalise--> distinct texts --near_pairs--> similar pairs --find_twins--> across splits

Two texts are *exact* twins if they differ in case, punctuation and spacing only, and *near* twins
if the cosine between their words and word pairs, weighted by inverse document frequency, is at
least `NEAR`. The weights are what tells a copied sentence from a template: what many texts share
weighs little, whichever words they put into it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from lenstrain.data.dataset import TEST, TRAIN, LensDataset, Rows
from lenstrain.data.tasks import Task

SPLIT_NAMES = ("train", "calibration", "test")

NEAR = 0.75
"""Least similarity of near twins. On the natural examples of the foundation pack, 99 of 100
sentences of 10 to 14 words stay above it when one word is replaced. Of 11 million unchanged pairs,
6 reach it: templates that differ in the concepts they name, which `near_pairs` leaves out."""
COPY = 0.9
"""Similarity from which two texts are near twins, whatever they differ in."""
EXAMPLES = 5
"""Twins that are kept to be shown, of each pair of splits, exact and near apart."""

# A feature of more texts weighs next to nothing, and comparing by it would take long.
_MAX_DOCUMENTS = 1000
_ROWS_AT_ONCE = 128  # of the cosines with all n texts: at most 4 kB for each text
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)


class Pairs(NamedTuple):
    """Pairs of texts, first < second, p of them."""

    first: Rows
    second: Rows
    similarity: NDArray[np.float64]


@dataclass(frozen=True)
class Twin:
    """Two texts that are alike and lie in different splits."""

    text_a: str
    split_a: str
    text_b: str
    split_b: str
    similarity: float
    """1 for exact twins."""


@dataclass(frozen=True)
class SplitPair:
    """How many twins two splits share, each text counted once however often it was sampled."""

    splits: tuple[str, str]
    exact: int
    near: int
    examples: tuple[Twin, ...]
    """Exact ones first, then the most similar."""


@dataclass(frozen=True)
class ConceptTwins:
    """How many test positives of a concept have a twin among its own train positives."""

    concept: str
    n_test: int
    exact: int
    near: int
    """Of those without an exact twin."""


def normalise(text: str) -> str:
    """The text without case, punctuation and spacing; unchanged if it has no letter or digit."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # In scripts without spaces each character is a word.
    return " ".join(_WORD.findall(folded)) or text


def near_pairs(texts: Sequence[str], names: Iterable[str] = ()) -> Pairs:
    """Find the pairs among distinct normalised texts that are alike.

    Parameters
    ----------
    texts : normalised, each once.
    names : of the concepts. Texts below `COPY` that differ in nothing but words of these, and in
        numbers, are one template about different things.
    """
    features = _tfidf(texts)
    # The norm stays that of all features.
    alike = features[:, np.diff(features.tocsc().indptr) <= _MAX_DOCUMENTS]
    found: list[tuple[Rows, Rows, NDArray[np.float64]]] = []
    other = alike.T.tocsr()
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        cosine = (alike[start : start + _ROWS_AT_ONCE] @ other).tocoo()
        first, second = (cosine.row + start).astype(np.intp), cosine.col.astype(np.intp)
        kept = (cosine.data >= NEAR) & (first < second)
        found.append((first[kept], second[kept], cosine.data[kept]))
    pairs = Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    in_names = {word for name in names for word in normalise(name).split()}

    def is_template(first: int, second: int) -> bool:
        differing = set(texts[first].split()) ^ set(texts[second].split())
        return bool(differing) and all(word in in_names or word.isnumeric() for word in differing)

    rows = zip(*pairs, strict=True)
    kept = np.array([value >= COPY or not is_template(a, b) for a, b, value in rows], np.bool_)
    return Pairs(*(column[kept] for column in pairs))


def _tfidf(texts: Sequence[str]) -> sparse.csr_matrix:
    """(texts, features) words and word pairs, 0 or 1 times log((1 + n) / df); rows of length 1."""
    counter = CountVectorizer(analyzer=_words_and_pairs, binary=True, dtype=np.float64)
    counted = counter.fit_transform(texts)
    documents = np.asarray(counted.sum(axis=0)).ravel()
    return normalize(counted.multiply(np.log((1 + len(texts)) / documents)).tocsr())


def _words_and_pairs(text: str) -> list[str]:
    words = text.split() or [text]
    return words + [f"{left} {right}" for left, right in pairwise(words)]


def find_twins(
    dataset: LensDataset, tasks: Iterable[Task]
) -> tuple[list[SplitPair], list[ConceptTwins]]:
    """Find the twins across splits: by pair of splits, and for the positives of each task.

    A task without twins is left out. A text that was sampled again lies in one split by design, and
    is no twin of itself.
    """
    place: dict[str, int] = {}
    texts = map(normalise, dataset.texts)
    number = np.array([place.setdefault(text, len(place)) for text in texts], np.intp)
    # The first sample of each text in each split, -1 if there is none.
    row_in = np.full((len(place), len(SPLIT_NAMES)), -1, np.intp)
    row_in[number[::-1], dataset.split[::-1]] = np.arange(dataset.n_samples)[::-1]
    pairs = near_pairs(list(place), dataset.concept_names.values())
    across = combinations(range(len(SPLIT_NAMES)), 2)
    splits = [_between(a, b, row_in, pairs, dataset) for a, b in across]
    near: dict[int, list[int]] = {}
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        near.setdefault(first, []).append(second)
        near.setdefault(second, []).append(first)
    concepts = []
    for task in tasks:
        train = set(number[task.positives[TRAIN]].tolist())
        test = number[task.positives[TEST]].tolist()
        exact = sum(text in train for text in test)
        alike = sum(text not in train and not train.isdisjoint(near.get(text, ())) for text in test)
        if exact or alike:
            concepts.append(ConceptTwins(task.concept, len(test), exact, alike))
    return splits, concepts


def _between(a: int, b: int, row_in: Rows, pairs: Pairs, dataset: LensDataset) -> SplitPair:
    text, names = dataset.texts, (SPLIT_NAMES[a], SPLIT_NAMES[b])

    def twin(row_a: int, row_b: int, similarity: float) -> Twin:
        shown = round(min(similarity, 1.0), 3)
        return Twin(text[row_a], names[0], text[row_b], names[1], shown)

    exact = row_in[(row_in[:, a] >= 0) & (row_in[:, b] >= 0)]
    near: list[tuple[float, int, int]] = []
    lies = row_in >= 0
    across = np.zeros(len(pairs.first), np.bool_)
    for one, other in permutations((pairs.first, pairs.second)):
        # A text in both splits makes one pair with its near twin.
        found = lies[one, a] & lies[other, b] & ~across
        across |= found
        best = np.flatnonzero(found)[np.argsort(-pairs.similarity[found], kind="stable")][:EXAMPLES]
        near += [
            (float(pairs.similarity[i]), int(row_in[one[i], a]), int(row_in[other[i], b]))
            for i in best
        ]
    nearest = sorted(near, key=lambda entry: -entry[0])[:EXAMPLES]
    examples = [twin(int(rows[a]), int(rows[b]), 1.0) for rows in exact[:EXAMPLES]]
    examples += [twin(row_a, row_b, similarity) for similarity, row_a, row_b in nearest]
    return SplitPair(names, len(exact), int(across.sum()), tuple(examples))
