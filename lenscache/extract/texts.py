"""Labelled texts that Python holds, extracted into a store: the first of three lines.

texts, labels --import_texts--> ConceptPack --extract--> Store, which may vanish with its object
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenscache.concepts.importers.frames import import_texts
from lenscache.extract.api import extract
from lenscache.extract.settings import ExtractSettings, OnProgress
from lenscache.model.loading import LoadedModel, as_loaded
from lenscache.store.store import Store, open_store


def extract_texts(
    texts: Any,
    model: str | LoadedModel,
    *,
    labels: Any = None,
    negatives: Any = None,
    text: str = "text",
    path: str | Path | None = None,
    settings: ExtractSettings | None = None,
    background: int | Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
    **meaning: Any,
) -> Store:
    """Extract the activations of labelled texts into a store.

    Rows without a text or label, and texts that a set calls both, are left out with a warning. The
    store equals that of ``lenscache pack import`` and ``lenscache extract --mode prompt
    --background 0`` on the same texts and labels.

    Parameters
    ----------
    texts : a list of texts; or a data frame of pandas or polars, or a dataset or dictionary of
        datasets of Hugging Face, whose column `text` is read.
    model : path, Hugging Face id or built-in name, as for `load_model`; or a loaded model, as
        `load_model` and `wrap_model` give.
    labels : the label of each text; of a table the name of their column, "label" if left out. Each
        distinct label becomes a concept; 0 and 1 become one concept with negatives.
    negatives : instead of labels, texts that do not express the concept which `texts` express.
    path : where to keep the store; None for a temporary folder, which is removed when neither the
        returned store nor a round of it is in use any longer, and at the latest when Python ends.
    settings : how to extract; None for ``ExtractSettings(mode="prompt")``: labelled texts need no
        completions.
    background : as for `lenscache.extract.extract`.
    meaning : what the labels mean: further fields of
        `lenscache.concepts.importers.labels.LabelledColumns`, such as `concept` (the id of the
        concept of 0 and 1), `split` (a column), `separator` and `threshold`.

    Raises
    ------
    PackError
        If texts and labels do not belong together, or may mean more than one thing.
    ModelError
        If the model cannot be loaded, or is not wrapped.
    StoreMismatchError, DiskSpaceError, NonFiniteError, BatchMismatchError
        As `lenscache.extract.extract`.

    Examples
    --------
    >>> store = extract_texts(texts, "smollm2-135m", labels=topics)  # doctest: +SKIP
    >>> pack = lenstrain.train(store, target_f1=0.95)  # doctest: +SKIP
    >>> pack.predict("smollm2-135m", ["The yacht lost its mast."])  # doctest: +SKIP
        kitchen   sea
    0      0.04  0.97
    """
    imported = import_texts(texts, labels, negatives=negatives, text=text, **meaning)
    for line in imported.report.lines():
        if line.startswith("left out"):
            warnings.warn(line, stacklevel=2)
    pack, loaded = imported.pack, as_loaded(model)
    settings = settings or ExtractSettings(mode="prompt")
    asked: dict[str, Any] = {"background": background, "on_progress": on_progress}
    if path is not None:
        extract(path, pack, loaded, settings, **asked)
        return open_store(path)
    folder = tempfile.mkdtemp(prefix="lenscache-texts-")
    try:
        place = Path(folder, "store.zarr")
        extract(place, pack, loaded, settings, **asked)
        store = open_store(place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Its rounds and arrays read through this object, too, and may outlive the store.
    weakref.finalize(store.group.store, shutil.rmtree, folder, ignore_errors=True)
    return store
