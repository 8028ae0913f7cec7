"""What is represented against what is written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lenstrain.compare.agreement import Agreement, agreements
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.fit.train import text_settings
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import HIDDEN, LEAVES, Planting, make_planted_store
from tests.lenstrain.test_text import name_concepts, write_completions

SETTINGS = FitSettings(initial_samples=200, model_layers=(1,), C=0.1)
NAMED = {"bird", "vote", "boat"}
"""Concepts whose word is written where they are expressed."""
UNSEEN = {"oven", "bird"}
"""Concepts that leave no trace in the activations."""


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    return make_lens_pack(fit_lenses(planted, SETTINGS), planted, SETTINGS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Of the leaves some are represented, some written, some both, most of them one of the two; not
    every row has a completion."""
    planting = Planting(flat=tuple(UNSEEN), without_completion=0.2)
    store = make_planted_store(
        tmp_path_factory.mktemp("agreement") / "s", planting=planting, levels=[1]
    )
    chatter = itertools.cycle(
        itertools.product(("moss", "rain", "dust"), ("hums", "rots"), ("again", "alone", "today"))
    )

    def write(concepts: list[str], split: str) -> str:
        return name_concepts(
            [*next(chatter), *(concept for concept in concepts if concept in NAMED)], split
        )

    return LensDataset(write_completions(store, write))


@pytest.fixture(scope="module")
def found(dataset: LensDataset) -> dict[str, Agreement]:
    settings = replace(SETTINGS, fpr=0.05)  # lenses that know nothing keep silent
    texts, written = dataset.with_phase("completion"), replace(text_settings(settings), C=10.0)
    activations = make_lens_pack(fit_lenses(dataset, settings), dataset, settings)
    return agreements(
        activations, make_lens_pack(fit_lenses(texts, written), texts, written), dataset, texts
    )


def pointing_anywhere(pack: LensPack, seed: int) -> LensPack:
    """Lenses whose decisions have nothing to do with anything, and are made about half the time."""
    rng = np.random.default_rng(seed)
    lenses = []
    for lens in pack:
        weight = rng.normal(size=HIDDEN).astype(np.float32)
        weight -= weight.mean()  # all rows share an offset
        lenses.append(replace(lens, weights=LinearWeights(weight, 0.0), threshold=0.0))
    return LensPack(lenses, pack.provenance, {})


def test_lenses_that_decide_alike_have_kappa_1(planted: LensDataset, pack: LensPack) -> None:
    same = agreements(pack, pack, planted, planted)
    assert set(same) == {lens.concept for lens in pack}
    for agreement in same.values():
        assert agreement.kappa == pytest.approx(1)
        assert agreement.correlation == pytest.approx(1)
        assert agreement.represented_only == agreement.written_only == 0
        assert agreement.both > 0.8


def test_lenses_that_decide_the_opposite_have_kappa_below_0(
    planted: LensDataset, pack: LensPack
) -> None:
    one = pointing_anywhere(pack, 1)
    opposite = LensPack(
        [replace(lens, weights=LinearWeights(-lens.weight, 0.0)) for lens in one],
        pack.provenance,
        {},
    )
    found = agreements(one, opposite, planted, planted)
    assert np.mean([agreement.kappa for agreement in found.values()]) < -0.5
    for agreement in found.values():
        assert agreement.kappa < 0
        assert agreement.correlation == pytest.approx(-1)
        assert agreement.both == agreement.neither == 0


def test_lenses_that_have_nothing_to_do_with_each_other_have_kappa_about_0(
    planted: LensDataset, pack: LensPack
) -> None:
    pairs = [
        agreements(pointing_anywhere(pack, n), pointing_anywhere(pack, n + 100), planted, planted)
        for n in (1, 2)
    ]
    kappas = [agreement.kappa for pair in pairs for agreement in pair.values()]
    assert abs(np.mean(kappas)) < 0.15
    assert np.mean(
        [agreement.correlation for pair in pairs for agreement in pair.values()]
    ) == pytest.approx(0, abs=0.1)


def test_lenses_that_never_fire_agree_by_chance_alone(planted: LensDataset, pack: LensPack) -> None:
    silent = LensPack([replace(lens, threshold=1e9) for lens in pack], pack.provenance, {})
    for agreement in agreements(silent, silent, planted, planted).values():
        assert np.isnan(agreement.kappa)
        assert (agreement.both, agreement.neither) == (0, 1)
    for agreement in agreements(pack, silent, planted, planted).values():
        assert agreement.kappa == pytest.approx(0, abs=1e-9)
        assert agreement.represented_only > 0.8


def test_lens_that_says_the_same_of_everything_has_no_correlation(
    planted: LensDataset, pack: LensPack
) -> None:
    flat = LensPack(
        [replace(lens, weights=LinearWeights(np.zeros(HIDDEN, np.float32), 1.0)) for lens in pack],
        pack.provenance,
        {},
    )
    assert all(
        np.isnan(agreement.correlation)
        for agreement in agreements(pack, flat, planted, planted).values()
    )


def test_shares_of_the_concepts_samples_add_up_to_1(found: dict[str, Agreement]) -> None:
    for agreement in found.values():
        assert sum(agreement[2:6]) == pytest.approx(1)


def test_what_is_written_and_represented_is_told_apart(found: dict[str, Agreement]) -> None:
    leaves = {leaf for each in LEAVES for leaf in each}
    assert set(found) == leaves
    for concept in leaves:
        agreement = found[concept]
        match concept not in UNSEEN, concept in NAMED:
            case True, True:
                assert agreement.both > 0.6, concept
            case True, False:
                assert agreement.represented_only + agreement.both > 0.6, concept
                assert agreement.written_only <= 0.2, concept
            case False, True:
                assert agreement.written_only > 0.6, concept
    assert found["vote"].kappa > 0.8
    unwritten = [found[concept] for concept in leaves - UNSEEN - NAMED]
    assert np.mean([agreement.represented_only for agreement in unwritten]) > 0.5
    assert max(agreement.kappa for agreement in unwritten) < 0.5


def test_only_held_out_samples_with_a_completion_count_and_relatives_do_not(
    dataset: LensDataset, found: dict[str, Agreement]
) -> None:
    is_test = (dataset.split == TEST) & (dataset.n_completion_tokens > 0)
    for concept, agreement in found.items():
        positive = np.zeros(dataset.n_samples, np.bool_)
        positive[dataset.positives(concept)] = True
        related = np.zeros(dataset.n_samples, np.bool_)
        for relative in dataset.hierarchy.family(concept):
            related[dataset.labelled(relative)] = True
        assert agreement.n_positive == (positive & is_test).sum()
        assert agreement.n_negative == (is_test & ~positive & ~related).sum()
    assert is_test.sum() < (dataset.split == TEST).sum()


def test_concepts_with_one_lens_alone_are_left_out(planted: LensDataset, pack: LensPack) -> None:
    few = LensPack(pack.lenses[:3], pack.provenance, {})
    assert set(agreements(pack, few, planted, planted)) == {lens.concept for lens in few}
    assert set(agreements(few, pack, planted, planted)) == {lens.concept for lens in few}


def test_agreement_is_that_of_the_saved_pack(
    planted: LensDataset, pack: LensPack, tmp_path: Path
) -> None:
    pack.save(tmp_path / "p")
    loaded, anywhere = LensPack.load(tmp_path / "p"), pointing_anywhere(pack, 3)
    assert agreements(loaded, anywhere, planted, planted) == agreements(
        pack, anywhere, planted, planted
    )
