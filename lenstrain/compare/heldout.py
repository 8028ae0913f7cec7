"""Logits of all lenses of a pack on the held-out samples: what packs are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lenstrain.data.dataset import LensDataset, Rows
from lenstrain.errors import SettingsError
from lenstrain.pack.pack import LensPack


class HeldOutLogits(NamedTuple):
    """Logits of a pack on the samples of one split."""

    samples: Rows
    """(n,) samples of the dataset, ascending."""
    logits: NDArray[np.float32]
    """(n, lenses) mean over the phases that a sample has."""

    def rows_of(self, samples: Rows) -> Rows:
        """Rows of those of some samples that are here."""
        return np.flatnonzero(np.isin(self.samples, samples))


def held_out_logits(pack: LensPack, dataset: LensDataset, split: int) -> HeldOutLogits:
    """Score the samples of a split with every lens of a pack; one model layer in memory at a time.

    Raises
    ------
    SettingsError
        If the pack was trained on another model's activations, or with other splits: then these
        samples would not be held out.
    """
    check_same_source(pack, dataset)
    samples = dataset.samples_by_split[dataset.split_slices[split]]
    distinct, place = np.unique(samples, return_inverse=True)
    if pack.vocabulary is not None:
        return HeldOutLogits(distinct, pack.score_texts([dataset.completions[i] for i in distinct]))
    scores = pack.no_scores(len(samples))
    for model_layer in pack.model_layers:
        X = dataset.vectors(model_layer, dataset.split_place)[dataset.split_slices[split]]
        pack.add_scores(scores, X, model_layer)
    share = 1 / np.bincount(place)[place]
    mean = scipy.sparse.csr_array((share, (place, np.arange(len(place)))), dtype=np.float32)
    return HeldOutLogits(distinct, np.asarray(mean @ scores))


def check_same_source(pack: LensPack, dataset: LensDataset) -> None:
    """Raise SettingsError unless a pack was trained on this model, with these splits."""
    trained, header = pack.provenance.store, dataset.store.header.to_attributes()
    for what, *path in (
        ("model", "model", "fingerprint"),
        ("concept pack", "pack", "digest"),
        ("seed", "settings", "seed"),
    ):
        found, expected = _at(trained, path), _at(header, path)
        if found is not None and found != expected:
            raise SettingsError(
                f"the lens pack was trained on a store with another {what} ({found}) than this "
                f"one ({expected}): which samples were held out is not known; "
                "give it the store it was fitted on"
            )


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values
