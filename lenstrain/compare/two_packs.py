"""Two lens packs on the same held-out samples, whatever it is that they differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.compare.heldout import held_out_logits
from lenstrain.data.dataset import TEST, LensDataset, Rows, open_dataset, stable_seed
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.errors import SettingsError
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import ranking
from lenstrain.metrics.thresholds import classify
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings


class Measured(NamedTuple):
    """One lens on the shared samples; a sample's logit is the mean over its phases."""

    f1: float
    """At the lens's own threshold, both classes alike in prevalence."""
    score: float
    """Average precision of the unnamed samples against all unrelated ones, at the reference
    prevalence; NaN without any."""

    @property
    def grade(self) -> Grade | None:
        """Of this score; None without one. Controls have no say in it."""
        return None if np.isnan(self.score) else Grade.of(self.score)


class Pair(NamedTuple):
    """A concept in both packs."""

    concept: str
    name: str
    a: Measured
    b: Measured


class Difference(NamedTuple):
    """Mean of b minus a over concepts, with a 95 % percentile bootstrap interval over concepts."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two packs over the concepts that both have."""

    pairs: list[Pair]
    n_samples: int
    """Held-out samples that both were asked about."""
    f1: Difference
    score: Difference
    only_a: list[str]
    """Concepts that only the first pack has a lens for."""
    only_b: list[str]


def compare(
    a: LensPack,
    b: LensPack,
    dataset: LensDataset,
    dataset_b: LensDataset | None = None,
) -> Comparison:
    """Compare two packs on the test samples that both can read.

    Parameters
    ----------
    dataset, dataset_b : the store as each of the packs reads it (the phases may differ); None for
        the same.

    Raises
    ------
    SettingsError
        If they have no concept in common, or were not trained on this store.
    """
    dataset_b = dataset_b or dataset
    held_a, held_b = held_out_logits(a, dataset, TEST), held_out_logits(b, dataset_b, TEST)
    shared, rows_a, rows_b = np.intersect1d(
        held_a.samples, _as_numbered_in(dataset, dataset_b, held_b.samples), return_indices=True
    )
    columns = {lens.concept: i for i, lens in enumerate(b)}
    pairs = []
    for i, lens in enumerate(a):
        if lens.concept in columns:
            j = columns[lens.concept]
            logits = held_a.logits[rows_a, i], held_b.logits[rows_b, j]
            thresholds = lens.threshold, b.lenses[j].threshold
            if pair := _measure(dataset, lens.concept, shared, logits, thresholds):
                pairs.append(Pair(lens.concept, lens.name, *pair))
    if not pairs:
        raise SettingsError("the two packs have no concept in common that has held-out samples")
    rng = np.random.default_rng(stable_seed("compare", 0))
    return Comparison(
        pairs,
        len(shared),
        _difference([p.b.f1 - p.a.f1 for p in pairs], rng),
        _difference([p.b.score - p.a.score for p in pairs], rng),
        [lens.concept for lens in a if lens.concept not in b],
        [lens.concept for lens in b if lens.concept not in a],
    )


def open_for(pack: LensPack, store: str) -> LensDataset:
    """A store as a pack was fitted on it: the same levels, phase, labels and negatives.

    For provisional lenses, that is what of it is complete by now.

    Raises
    ------
    StoreError
        As `open_dataset`.
    """
    settings, labels = pack.provenance.settings, pack.provenance.labels
    return open_dataset(
        store,
        levels=pack.provenance.layers,
        phase=settings["phase"],
        seed=settings["seed"],
        labels=None if labels is None else labels["name"],
        partial=bool(pack.provenance.provisional),
    )


def _as_numbered_in(dataset: LensDataset, other: LensDataset, samples: Rows) -> Rows:
    """The numbers that samples of `other` have in `dataset`, -1 where it does not read them.

    A sample is known by its text and by how often that text was sampled before.
    """
    number = {sample: i for i, sample in enumerate(_times_sampled(dataset.texts))}
    names = _times_sampled(other.texts)
    return np.array([number.get(names[sample], -1) for sample in samples], np.intp)


def _times_sampled(texts: Sequence[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    names = []
    for text in texts:
        names.append((text, seen[text]))
        seen[text] += 1
    return names


def _measure(
    dataset: LensDataset,
    concept: str,
    samples: NDArray[np.intp],
    logits: tuple[NDArray[np.float32], NDArray[np.float32]],
    thresholds: tuple[float, float],
) -> tuple[Measured, Measured] | None:
    settings = FitSettings()
    rows = TaskRows(dataset, draw_task(dataset, concept, settings.n_negatives), settings)
    drawn, judged = rows.drawn(TEST), rows.judged(TEST)
    own = dict(zip(drawn.samples.tolist(), drawn.y.tolist(), strict=True))
    every = dict(zip(judged.samples.tolist(), judged.y.tolist(), strict=True))
    of_own = np.array([s in own for s in samples.tolist()])
    of_all = np.array([s in every for s in samples.tolist()])
    y_own = np.array([own[s] for s in samples[of_own].tolist()], np.bool_)
    y_all = np.array([every[s] for s in samples[of_all].tolist()], np.bool_)
    named = np.zeros(len(y_all), np.bool_)
    named[y_all] = ~dataset.unnamed(concept, samples[of_all][y_all])
    if y_own.all() or not y_own.any():
        return None

    def measured(values: NDArray[np.float64], threshold: float) -> Measured:
        f1 = classify(y_own, values[of_own], threshold).f1
        return Measured(f1, ranking(y_all[~named], values[of_all][~named]).score)

    a, b = (values.astype(np.float64) for values in logits)
    return measured(a, thresholds[0]), measured(b, thresholds[1])


def _difference(values: list[float], rng: np.random.Generator) -> Difference:
    values = [value for value in values if not np.isnan(value)]  # ungraded lenses have no score
    if not values:
        return Difference(np.nan, np.nan, np.nan)
    drawn = np.array(values)[rng.integers(len(values), size=(2000, len(values)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(np.mean(values)), float(low), float(high))
