"""A store as xarray and pandas know data: one labelled, lazy dataset, and the labels as a table.

    Store --open_dataset-------> Dataset: activation (sample, phase, model_layer, hidden), and
                                 coordinates with all that is known of a sample
          --make_labels_frame--> DataFrame: sample, key, concept, role, order

Indexing reads the blocks that it touches, through `Round.read`, and nothing else. Values are
float32, which holds every bfloat16 and float16 exactly. Only rows of blocks that were complete when
the dataset was opened are in it; open it again to see more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import MissingPackageError
from lenscache.store.views.selection import RoundSelection, SampleLabel, Selection, select
from lenscache.terms import Phase

try:
    import pandas as pd
    import xarray as xr
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError:
    raise MissingPackageError(
        "a store as a dataset or a table needs xarray and pandas: run `pip install '.[xarray]'` in "
        "a clone of lenscache"
    ) from None

if TYPE_CHECKING:
    from lenscache.store.store import Store

DIMS = ("sample", "phase", "model_layer", "hidden")


def open_dataset(
    store: Store,
    level: int | None = None,
    *,
    model_layers: Sequence[int] | None = None,
    phases: Sequence[Phase] | None = None,
    chunks: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Open the rows of complete blocks, round after round, as one dataset.

    The variable `activation` is float32 (sample, phase, model_layer, hidden); a sample that has no
    position in a phase is NaN there. `sample` is the name of the row in the store
    (`layer_1/round_0/17`). Coordinates along it are level, round, row and the columns that the
    store has of a sample: key, text, completion, kind, split, n_prompt_tokens, n_completion_tokens,
    temperature ... The tokens of completions are not among them: see `Round.completion_ids`. The
    attribute `rows_not_extracted` says how many rows are left out.

    Parameters
    ----------
    level : level of abstraction; None for all that the store holds.
    model_layers, phases : which transformer blocks and phases; None for all that are stored.
    chunks : sizes of dask chunks by dimension, which needs dask; {} for the blocks of the store.
        None reads without dask, when values are asked for.

    Raises
    ------
    MissingPackageError
        If xarray, or with `chunks` dask, is not installed.
    StoreIncompleteError, ModelLayerError, StoreMismatchError
        If the store holds no such level, model layer or phase.
    """
    if chunks is not None and importlib.util.find_spec("dask") is None:
        raise MissingPackageError(
            "chunks= needs dask: run `pip install '.[dask]'` in a clone of lenscache"
        )
    selection = select(store, _as_levels(level), model_layers=model_layers, phases=phases)
    header = store.header
    source = _Activations(selection, header.hidden, store.digest())
    columns = [part.columns() for part in selection.rounds]
    joined = {
        name: ("sample", np.concatenate([column[name] for column in columns]))
        for name in (columns[0] if columns else ())
    }
    dataset = xr.Dataset(
        {"activation": (DIMS, indexing.LazilyIndexedArray(source))},
        coords={
            **joined,
            "phase": list(selection.phases),
            "model_layer": list(selection.model_layers),
        },
        attrs={
            "store_digest": store.digest(),
            "model": header.model_id,
            "model_fingerprint": header.model_fingerprint,
            "model_dtype": header.model_dtype,
            "pack": header.pack_name,
            "pack_digest": header.pack_digest,
            "pooling": header.pooling,
            "store_dtype": header.store_dtype,
            "rows_not_extracted": selection.n_left_out,
        },
    )
    if chunks is not None:
        sizes = dict(zip(DIMS, (source.block_sizes or -1, 1, 1, -1), strict=True))
        dataset["activation"] = dataset["activation"].chunk({**sizes, **chunks})
    return dataset


def make_labels_frame(store: Store, level: int | None = None) -> pd.DataFrame:
    """The labels that the rows of `open_dataset` carry, in the order in which the store holds them.

    The index is `sample`, as in the dataset; columns: `key`, `concept` (its id), `role`
    ("positive", "contrast" or "negative") and `order`, the place in the nested order of the
    concept's labels in the round. Select with ``dataset.sel(sample=frame[frame.concept ==
    "bird"].index)``.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    StoreIncompleteError
        If the store holds no such level.
    """
    rounds = select(store, _as_levels(level)).rounds
    lines = [line for part in rounds for line in _label_lines(part)]
    columns = ["sample", "key", *(name for name in SampleLabel._fields if name != "row")]
    return pd.DataFrame(lines, columns=columns).set_index("sample")


def _label_lines(part: RoundSelection) -> Iterator[tuple[Any, ...]]:
    keys = (bytes(key).hex() for key in part.samples.key)
    key_of = dict(zip(part.rows.tolist(), keys, strict=True))
    for row, *label in part.labels():
        yield (f"{part.source.name}/{row}", key_of[row], *label)


def _as_levels(level: int | None) -> list[int] | None:
    return None if level is None else [level]


class _Activations(BackendArray):
    """Rows of rounds as one array (sample, phase, model layer, hidden), read when it is indexed."""

    def __init__(self, selection: Selection, hidden: int, digest: str) -> None:
        self.phases, self.model_layers = selection.phases, selection.model_layers
        self.shape = (len(selection), len(self.phases), len(self.model_layers), hidden)
        self.dtype = np.dtype(np.float32)
        self._digest = digest
        blocks = [(part.source, i) for part in selection.rounds for i in part.blocks]
        spans = [source.rows(block) for source, block in blocks]
        self._blocks = [
            (source, span.start) for (source, _), span in zip(blocks, spans, strict=True)
        ]
        self.block_sizes = tuple(span.stop - span.start for span in spans)
        self._starts = np.cumsum([0, *self.block_sizes])

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self._read)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        places = [(source.name, start) for source, start in self._blocks]
        return (self._digest, places, self.phases, self.model_layers)

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        """Read an outer selection: an integer, a slice or an array of integers a dimension."""
        samples, phases, model_layers, features = (
            np.atleast_1d(np.arange(size)[part]) for size, part in zip(self.shape, key, strict=True)
        )
        values = np.empty((len(samples), len(phases), len(model_layers), len(features)), np.float32)
        number = np.searchsorted(self._starts, samples, side="right") - 1
        for block in np.unique(number):
            source, first_row = self._blocks[block]
            wanted = np.flatnonzero(number == block)
            rows = samples[wanted] - self._starts[block] + first_row
            span = slice(int(rows.min()), int(rows.max()) + 1)
            for p, phase in enumerate(phases):
                for m, model_layer in enumerate(model_layers):
                    found = source.read(self.phases[phase], self.model_layers[model_layer], span)
                    values[wanted, p, m] = found[rows - span.start][:, features].astype(np.float32)
        is_number = [isinstance(part, int | np.integer) for part in key]
        return values[tuple(0 if one else slice(None) for one in is_number)]
