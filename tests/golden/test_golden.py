"""Stores of format version 1 and a lens pack that were written once and must open for ever, as they
are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.prompts import KINDS
from lenscache.errors import StoreFormatError
from lenscache.store.store import open_store
from lenscache.store.token_ids import ids_of_row
from lenscache.store.verify.verify import verify_store
from lenstrain.data.dataset import LensDataset
from lenstrain.pack.pack import LensPack
from tests.golden.make import HIDDEN

FOLDER = Path(__file__).parent
BF16, INT8 = FOLDER / "format-1.zarr", FOLDER / "format-1-int8.zarr"
WITH_IDS = FOLDER / "format-1-ids.zarr"
LENSES = FOLDER / "lenses-2"

# Written out, and not computed by the code that is under test.
KEY = "dc922bfc34414acfc346c96b05add950"
TEXTS = [
    'What does "bird" mean?',
    "It sang at dawn.",
    'The idea of "bird" falls under the broader idea of "nature".',
    'Here is a short explanation of the concept "bird", with an example.',
    "Ein Vogel? 🐦",
    "Bird: A creature with feathers.",
]


def test_golden_stores_are_of_format_1() -> None:
    for path in (BF16, INT8, WITH_IDS):
        assert json.loads((path / "zarr.json").read_text())["attributes"]["format_version"] == 1


def test_golden_bfloat16_store_holds_what_was_put_into_it() -> None:
    store = open_store(BF16)
    (target,) = store.rounds(1)
    values = np.arange(12)[:, None] + np.arange(HIDDEN) / 4
    np.testing.assert_array_equal(target.read("prompt", 1).astype(np.float32), values)
    completion = target.read("completion", 1).astype(np.float32)
    without = counts_of(12) == 0
    assert np.isnan(completion[without]).all()
    np.testing.assert_array_equal(completion[~without], -values[~without])
    assert target.targets == ("bird", "moss")
    assert target.is_complete


def counts_of(n: int) -> NDArray[Any]:
    """Tokens that the golden rows generated."""
    return np.arange(n) % 3


def test_golden_samples_and_labels_read_back() -> None:
    (target,) = open_store(BF16).rounds(1)
    samples, labels = target.samples(), target.labels()
    assert {str(text) for text in samples.text} >= set(TEXTS)
    assert list(samples.n_completion_tokens) == list(counts_of(12))
    assert [str(text) for text in samples.completion] == [
        f"and {n}" if n else "" for n in counts_of(12)
    ]
    assert bytes(samples.key[list(map(str, samples.text)).index(TEXTS[1])]).hex() == KEY
    bird = {
        str(samples.text[row])
        for row in labels.sample[labels.concept == target.concepts.index("bird")]
    }
    assert bird == set(TEXTS)
    assert tuple(target.attributes["kinds"]) == KINDS[:5]


def test_golden_hierarchy_and_label_set_read_back() -> None:
    store = open_store(BF16)
    assert store.hierarchy.ancestors("bird") == {"nature"}
    assert store.concept_names == {"nature": "nature", "bird": "bird", "moss": "moss"}
    dataset = LensDataset(store, labels="sounds")
    assert dataset.concepts == ("sound",)
    assert set(dataset.texts) == {"It sang at dawn.", "Green on the north side."}


def test_golden_int8_store_holds_what_was_put_into_it() -> None:
    (target,) = open_store(INT8).rounds(1)
    values = np.arange(12)[:, None] + np.arange(HIDDEN) / 4
    np.testing.assert_allclose(target.read("prompt", 1), values, atol=values.max() / 254)


def test_golden_token_ids_read_back_and_older_stores_have_none() -> None:
    (target,) = open_store(WITH_IDS).rounds(1)
    ids = target.completion_ids()
    assert ids is not None
    rows = [ids_of_row(row) for row in ids]
    assert rows == [None if row == 9 else (100 + row,) * (row % 3) for row in range(12)]
    for path in (BF16, INT8):
        assert open_store(path).rounds(1)[0].completion_ids() is None


@pytest.mark.parametrize("path", [BF16, INT8, WITH_IDS], ids=lambda path: path.stem)
def test_golden_stores_verify(path: Path) -> None:
    assert verify_store(path).findings == []


def test_golden_lens_pack_scores_as_it_did() -> None:
    """Written by a lenstrain that knew no `norm` tensors."""
    pack, X = LensPack.load(LENSES), np.load(LENSES / "activations.npy")
    scores = np.load(LENSES / "scores.npy")
    assert [lens.concept for lens in pack] == ["bird", "vote", "oven"]
    np.testing.assert_allclose(pack.score(X, 1), scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pack["vote"].decision_function(X), scores[:, 1], rtol=1e-5)


@pytest.mark.parametrize("version", [2, "2", None])
def test_a_newer_version_is_refused_with_a_clear_message(version: object, tmp_path: Path) -> None:
    path = Path(shutil.copytree(BF16, tmp_path / "newer.zarr"))
    data = json.loads((path / "zarr.json").read_text())
    data["attributes"]["format_version"] = version
    (path / "zarr.json").write_text(json.dumps(data))
    expected = "no format_version" if version is None else "reads up to 1: upgrade lenscache"
    with pytest.raises(StoreFormatError, match=expected):
        open_store(path)
