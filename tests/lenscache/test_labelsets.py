"""Label sets: other labels for texts that a store already holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.concepts.prompts import POSITIVE
from lenscache.errors import LabelSetError
from lenscache.store.labelsets import add_label_set, label_set_names, read_label_set
from lenscache.store.store import Store, open_store
from lenstrain.data.dataset import LensDataset
from lenstrain.data.tasks import draw_task
from lenstrain.errors import TooFewSamplesError
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from tests.lenstrain.conftest import make_planted_store, plant_round, planted_pack


def examples_of(pack: ConceptPack, concept: str) -> tuple[str, ...]:
    return pack[concept].examples


def topics(pack: ConceptPack | None = None) -> ConceptPack:
    """Two classes over the planted texts: what flies or floats, and what is done among people."""
    pack = pack or planted_pack()
    moving = (*examples_of(pack, "bird"), *examples_of(pack, "boat"))
    social = (*examples_of(pack, "vote"), *examples_of(pack, "debt"))
    return ConceptPack(
        "topics",
        "1",
        (
            Concept("moving", "moving", 0, examples=moving),
            Concept("social", "social life", 0, examples=social),
        ),
        origin="topics.csv",
        prompts="examples",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_planted_store(tmp_path / "store.zarr")


def test_labels_added_later_are_those_of_a_store_that_was_extracted_for_them(
    store: Store, tmp_path: Path
) -> None:
    add_label_set(store, "topics", topics())
    later = LensDataset(store, labels="topics")
    for_them = LensDataset(make_planted_store(tmp_path / "other.zarr", pack=topics()))

    def seen(dataset: LensDataset, concept: str) -> list[list[str]]:
        task = draw_task(dataset, concept, lambda n: 3 * n)
        return [[dataset.texts[row] for row in rows] for rows in task.positives] + [
            sorted(dataset.texts[row] for row in rows) for rows in task.negatives
        ]

    assert later.concepts == for_them.concepts == ("moving", "social")
    for concept in later.concepts:
        assert seen(later, concept) == seen(for_them, concept)
    assert later.concept_names["social"] == "social life"


def test_lenses_fitted_on_a_label_set_say_so(store: Store) -> None:
    added = add_label_set(store, "topics", topics())
    dataset, settings = LensDataset(store, labels="topics"), FitSettings(model_layers=(1,))
    pack = make_lens_pack(fit_lenses(dataset, settings), dataset, settings)
    assert {lens.concept for lens in pack} == {"moving", "social"}
    assert all(lens.metrics["auroc"] > 0.9 for lens in pack)
    assert pack.provenance["labels"] == {
        "name": "topics",
        "digest": added.label_set.digest,
        "source": "topics.csv",
    }


def test_samples_without_a_label_are_left_out(store: Store) -> None:
    add_label_set(store, "topics", topics())
    dataset = LensDataset(store, labels="topics")
    labelled = {text for concept in topics().concepts for text in concept.examples}
    assert set(dataset.texts) == labelled
    assert len(dataset.texts) == len(labelled) < LensDataset(store).n_samples


def test_texts_that_the_store_lacks_are_named_and_the_others_kept(store: Store) -> None:
    pack = topics()
    more = replace(
        pack.concepts[0], examples=(*pack.concepts[0].examples, "A text nobody extracted.")
    )
    absent = Concept("absent", "absent", 0, examples=("Another one.",))
    added = add_label_set(store, "topics", replace(pack, concepts=(more, pack.concepts[1], absent)))
    assert added.missing == ("A text nobody extracted.", "Another one.")
    assert added.lost_concepts == ("absent",)
    assert added.label_set.concepts == ("moving", "social")
    assert added.label_set.digest == add_label_set(store, "same", pack).label_set.digest


def test_given_splits_are_kept(store: Store) -> None:
    pack = topics()
    texts = [text for concept in pack.concepts for text in concept.examples]
    splits = {
        "train": tuple(texts[::3]),
        "calibration": tuple(texts[1::3]),
        "test": tuple(texts[2::3]),
    }
    add_label_set(store, "topics", replace(pack, splits=splits))
    dataset = LensDataset(store, labels="topics")
    found = {
        name: {t for t, s in zip(dataset.texts, dataset.split, strict=True) if s == i}
        for i, name in enumerate(splits)
    }
    assert found == {name: set(held) for name, held in splits.items()}


def test_binary_sets_keep_their_own_negatives(store: Store) -> None:
    base = planted_pack()
    pack = ConceptPack(
        "binary",
        "1",
        (
            Concept(
                "flies", "flies", 0, examples=base["bird"].examples, negatives=base["boat"].examples
            ),
        ),
        prompts="examples",
    )
    add_label_set(store, "binary", pack)
    dataset = LensDataset(store, labels="binary")
    task = draw_task(dataset, "flies", lambda n: n)
    assert {dataset.texts[row] for rows in task.negatives for row in rows} <= set(
        base["boat"].examples
    )


def test_a_text_sampled_again_in_another_round_carries_the_label_there_too(store: Store) -> None:
    once = add_label_set(store, "once", topics()).label_set
    plant_round(store, 1, 1, plan_samples(planted_pack(), [1]), sampling="again")
    twice = add_label_set(store, "twice", topics()).label_set
    assert len(twice.key) == 2 * len(once.key)
    dataset = LensDataset(store, labels="twice")
    assert dataset.n_samples == len(twice.key)
    split_of: dict[str, set[int]] = {}
    for text, split in zip(dataset.texts, dataset.split, strict=True):
        split_of.setdefault(text, set()).add(int(split))
    assert all(len(splits) == 1 for splits in split_of.values())


def test_a_taken_name_is_refused_unless_the_labels_are_the_same_or_overwrite_is_given(
    store: Store,
) -> None:
    add_label_set(store, "topics", topics())
    add_label_set(store, "topics", topics())
    other = replace(topics(), concepts=topics().concepts[:1])
    with pytest.raises(
        LabelSetError, match="'topics' already: choose another name, or pass overwrite=True"
    ):
        add_label_set(store, "topics", other)
    add_label_set(store, "topics", other, overwrite=True)
    assert read_label_set(store, "topics").concepts == ("moving",)
    assert label_set_names(open_store(store.path)) == ["topics"]


@pytest.mark.parametrize("name", ["../out", "", ".hidden", "a/b", "a" * 65, "ä", "a b", "-x"])
def test_names_that_could_be_paths_are_refused(store: Store, name: str) -> None:
    with pytest.raises(LabelSetError, match="cannot be used"):
        add_label_set(store, name, topics())
    assert label_set_names(store) == []


def test_a_set_without_a_single_known_text_is_refused(store: Store) -> None:
    unknown = ConceptPack(
        "x", "1", (Concept("x", "x", 0, examples=("Nowhere.",)),), prompts="examples"
    )
    with pytest.raises(LabelSetError, match="none of the 1 labelled texts is in the store"):
        add_label_set(store, "x", unknown)
    assert label_set_names(store) == []


def test_an_unknown_label_set_is_named_with_those_that_are_there(store: Store) -> None:
    add_label_set(store, "topics", topics())
    with pytest.raises(LabelSetError, match="no label set 'topic', it has: topics"):
        LensDataset(store, labels="topic")


def test_an_unfinished_label_set_is_not_there_and_can_be_written_again(store: Store) -> None:
    added = add_label_set(store, "topics", topics())
    folder = Path(store.path) / "label_sets" / "topics"
    (folder / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
    shutil.rmtree(folder / added.label_set.digest / "labels" / "role")
    assert label_set_names(open_store(store.path)) == []
    add_label_set(open_store(store.path, mode="r+"), "topics", topics())
    assert read_label_set(open_store(store.path), "topics").digest == added.label_set.digest


def test_a_damaged_label_set_is_named(store: Store) -> None:
    added = add_label_set(store, "topics", topics())
    column = (
        Path(store.path) / "label_sets" / "topics" / added.label_set.digest / "samples" / "split"
    )
    chunk = next(path for path in column.rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\xff")
    with pytest.raises(
        LabelSetError, match="is damaged: write it again with `lenscache label --overwrite`"
    ):
        read_label_set(open_store(store.path), "topics")


def test_the_labels_of_the_store_stay_as_they_are(store: Store) -> None:
    before = LensDataset(store)
    add_label_set(store, "topics", topics())
    after = LensDataset(open_store(store.path))
    assert after.concepts == before.concepts
    np.testing.assert_array_equal(after.split, before.split)
    assert after.store.digest() == before.store.digest()


def test_a_class_with_too_few_texts_is_an_error_of_that_class_alone(store: Store) -> None:
    pack = topics()
    one = Concept("one", "one", 0, examples=planted_pack()["oven"].examples[:1])
    add_label_set(store, "topics", replace(pack, concepts=(*pack.concepts, one)))
    dataset = LensDataset(store, labels="topics")
    with pytest.raises(TooFewSamplesError, match="one: "):
        draw_task(dataset, "one", lambda n: n)
    assert POSITIVE == 0
    draw_task(dataset, "moving", lambda n: n)
