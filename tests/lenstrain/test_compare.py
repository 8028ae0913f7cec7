"""Two packs on the same held-out samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lenscache.store.store import Store
from lenstrain.compare.two_packs import Difference, compare, open_for
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.data.tasks import draw_task
from lenstrain.errors import SettingsError
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.fit.train import text_settings
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import LEAVES, Planting, make_planted_store
from tests.lenstrain.test_text import name_concepts, write_completions

SETTINGS = FitSettings(model_layers=(1,), C=0.1, max_iterations=2, beyond_graduation=False)
CONCEPTS = ["nature", "bird", "fish", "vote", "boat"]


def fit(
    dataset: LensDataset, settings: FitSettings = SETTINGS, concepts: Sequence[str] = CONCEPTS
) -> LensPack:
    return make_lens_pack(fit_lenses(dataset, settings, concepts=concepts), dataset, settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Faint directions; every completion holds the words of its concepts."""
    planting = Planting(strength=3.0, completion_strength=2.5, without_completion=0.2)
    made = make_planted_store(tmp_path_factory.mktemp("compare") / "s", planting=planting)
    return write_completions(made, name_concepts)


@pytest.fixture(scope="module")
def dataset(store: Store) -> LensDataset:
    return LensDataset(store)


@pytest.fixture(scope="module")
def pack(dataset: LensDataset) -> LensPack:
    return fit(dataset)


@pytest.fixture(scope="module")
def other(dataset: LensDataset) -> LensPack:
    return fit(dataset, FitSettings(model_layers=(1,), C=1.0, max_iterations=1, phase="both"))


def test_pack_does_not_differ_from_itself(dataset: LensDataset, pack: LensPack) -> None:
    found = compare(pack, pack, dataset)
    assert found.f1 == found.score == Difference(0, 0, 0)
    assert [pair.concept for pair in found.pairs] == CONCEPTS
    assert all(pair.a == pair.b for pair in found.pairs)
    assert found.only_a == found.only_b == []
    assert found.n_samples == (dataset.split == TEST).sum()


def test_swapped_packs_differ_by_as_much_the_other_way(
    dataset: LensDataset, pack: LensPack, other: LensPack
) -> None:
    one, back = compare(pack, other, dataset), compare(other, pack, dataset)
    assert one.score.mean != 0
    for there, here in ((one.f1, back.f1), (one.score, back.score)):
        assert there.low <= there.mean <= there.high
        assert here == pytest.approx((-there.mean, -there.high, -there.low))
    for a, b in zip(one.pairs, back.pairs, strict=True):
        assert (a.a, a.b) == (b.b, b.a)


def test_difference_is_the_mean_over_concepts(
    dataset: LensDataset, pack: LensPack, other: LensPack
) -> None:
    found = compare(pack, other, dataset)
    assert found.score.mean == pytest.approx(
        np.mean([pair.b.score - pair.a.score for pair in found.pairs])
    )
    assert found.f1.mean == pytest.approx(np.mean([pair.b.f1 - pair.a.f1 for pair in found.pairs]))
    assert all(pair.a.grade is Grade.of(pair.a.score) for pair in found.pairs)


def test_concepts_of_one_pack_alone_are_named(dataset: LensDataset, pack: LensPack) -> None:
    few = LensPack(pack.lenses[:2], pack.provenance, {})
    found = compare(few, pack, dataset)
    assert (len(found.pairs), found.only_a, found.only_b) == (2, [], CONCEPTS[2:])
    assert compare(pack, few, dataset).only_a == CONCEPTS[2:]


def test_packs_without_a_concept_in_common_are_refused(
    dataset: LensDataset, pack: LensPack
) -> None:
    one, rest = (
        LensPack(lenses, pack.provenance, {}) for lenses in (pack.lenses[:2], pack.lenses[2:])
    )
    with pytest.raises(SettingsError, match="no concept in common"):
        compare(one, rest, dataset)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("model", "fingerprint"), "another model"),
        (("pack", "digest"), "another concept pack"),
        (("settings", "seed"), "another seed"),
    ],
)
def test_pack_of_another_store_is_refused(
    dataset: LensDataset, pack: LensPack, path: tuple[str, str], words: str
) -> None:
    strange = LensPack(pack.lenses, copy.deepcopy(pack.provenance), {})
    strange.provenance["store"][path[0]][path[1]] = "strange"
    for a, b in ((pack, strange), (strange, pack)):
        with pytest.raises(SettingsError, match=f"{words} .*give it the store it was fitted on"):
            compare(a, b, dataset)


def test_pack_of_a_store_with_another_seed_is_refused(
    dataset: LensDataset, pack: LensPack, tmp_path: Path
) -> None:
    elsewhere = LensDataset(make_planted_store(tmp_path / "s", seed=1, levels=[1]))
    with pytest.raises(SettingsError, match="another seed"):
        compare(pack, fit(elsewhere, concepts=["bird"]), dataset)


def test_families_are_compared_on_the_same_samples(dataset: LensDataset, pack: LensPack) -> None:
    found = compare(
        pack, fit(dataset, FitSettings(family="mean-difference", model_layers=(1,))), dataset
    )
    assert [pair.a for pair in found.pairs] == [
        pair.a for pair in compare(pack, pack, dataset).pairs
    ]
    assert any(pair.a != pair.b for pair in found.pairs)
    assert all(pair.b.f1 > 0.7 for pair in found.pairs)


def test_text_lenses_are_compared_on_samples_with_a_completion(
    dataset: LensDataset, pack: LensPack
) -> None:
    settings = text_settings(FitSettings())
    texts = dataset.with_phase("completion")
    found = compare(pack, fit(texts, settings), dataset, texts)
    assert (
        found.n_samples
        == ((dataset.split == TEST) & (dataset.n_completion_tokens > 0)).sum()
        < (dataset.split == TEST).sum()
    )
    assert all(pair.b.score > 0.95 for pair in found.pairs)
    assert found.score.mean > 0.05
    assert found.score.low >= 0


def test_packs_of_different_levels_of_abstraction_meet_on_the_same_samples(
    store: Store, dataset: LensDataset, pack: LensPack
) -> None:
    """A dataset numbers its own samples: those of another dataset have other numbers."""
    leaves = [leaf for each in LEAVES for leaf in each][:3]
    few = LensDataset(store, levels=[1])
    clear = fit(few, FitSettings(model_layers=(1,), C=0.1, initial_samples=200), leaves)
    for a, b in (((pack, dataset), (clear, few)), ((clear, few), (pack, dataset))):
        found = compare(a[0], b[0], a[1], b[1])
        assert {pair.concept for pair in found.pairs} == {"bird", "fish"}
        assert found.n_samples == (few.split == TEST).sum() < (dataset.split == TEST).sum()
        assert all(min(pair.a.f1, pair.b.f1) > 0.75 for pair in found.pairs)
    same = compare(clear, clear, dataset, few)
    assert all(pair.a == pair.b for pair in same.pairs)


def test_store_is_opened_as_the_pack_was_fitted_on_it(store: Store) -> None:
    few = LensDataset(store, levels=[1], phase="prompt", seed=3)
    pack = fit(
        few, FitSettings(model_layers=(1,), max_iterations=1, phase="prompt", seed=3), ["bird"]
    )
    opened = open_for(pack, str(store.path))
    assert (opened.texts, opened.phases, opened.seed) == (few.texts, ("prompt",), 3)
    for ours, theirs in zip(
        draw_task(opened, "bird", lambda n: n).negatives,
        draw_task(few, "bird", lambda n: n).negatives,
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
