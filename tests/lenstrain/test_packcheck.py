"""Lenses beside each other: whose lens leads on whose samples, and who fires on everything."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.plan import SamplePlan
from lenscache.concepts.prompts import POSITIVE
from lenscache.store.store import Store
from lenstrain.compare.rivals import check_pack
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import BRANCHES, LEAVES, make_planted_store

LEAF_NAMES = [leaf for leaves in LEAVES for leaf in leaves]
SETTINGS = FitSettings(initial_samples=200, model_layers=(1,), C=0.1)


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    return make_lens_pack(fit_lenses(planted, SETTINGS), planted, SETTINGS)


def changed(pack: LensPack, *lenses: Lens) -> LensPack:
    """The pack with other lenses for some concepts."""
    new = {lens.concept: lens for lens in lenses}
    return LensPack([new.get(lens.concept, lens) for lens in pack], pack.provenance, {})


def swapped(pack: LensPack, one: str, other: str) -> LensPack:
    """The pack with the lenses of two concepts under each other's name."""
    return changed(
        pack, *(replace(pack[a], concept=b, name=b) for a, b in ((one, other), (other, one)))
    )


def shouting(lens: Lens) -> Lens:
    """A lens that says yes to whatever it sees."""
    assert isinstance(lens.weights, LinearWeights)
    return replace(lens, weights=LinearWeights(lens.weight, lens.bias + 100))


@pytest.mark.parametrize("split", [CALIBRATION, TEST])
def test_clear_concepts_lead_on_their_own_samples(
    planted: LensDataset, pack: LensPack, split: int
) -> None:
    checks = check_pack(pack, planted, split)
    assert set(checks) == {*BRANCHES, *LEAF_NAMES}
    for check in checks.values():
        assert check.median_rank == 1
        assert check.first > 0.9
        assert check.firing_rate < 0.1
        assert not check.fires_everywhere
    assert np.mean([check.first for check in checks.values()]) > 0.98


def test_rivals_are_the_other_lenses_of_the_level(planted: LensDataset, pack: LensPack) -> None:
    checks = check_pack(pack, planted)
    assert {concept: check.n_rivals for concept, check in checks.items()} == {
        **dict.fromkeys(BRANCHES, 2),
        **dict.fromkeys(LEAF_NAMES, 8),
    }


def test_swapped_lenses_are_found_and_named(planted: LensDataset, pack: LensPack) -> None:
    before, after = check_pack(pack, planted), check_pack(swapped(pack, "bird", "boat"), planted)
    for one, other in (("bird", "boat"), ("boat", "bird")):
        assert after[one].first == 0
        assert after[one].median_rank > 1
        assert after[one].confusers[0] == other
    untouched = set(before) - {"bird", "boat"}
    assert all(
        after[concept].first == before[concept].first for concept in untouched - {"nature", "craft"}
    )


def test_lens_with_the_weights_of_its_sibling_is_never_above_it(
    planted: LensDataset, pack: LensPack
) -> None:
    before, after = check_pack(pack, planted), check_pack(swapped(pack, "bird", "fish"), planted)
    assert before["bird"].above_siblings > 0.9
    assert after["bird"].above_siblings == after["fish"].above_siblings == 0
    assert after["boat"].above_siblings == before["boat"].above_siblings


def test_ancestors_are_compared_with_without_being_rivals(
    planted: LensDataset, pack: LensPack
) -> None:
    before, after = (
        check_pack(pack, planted),
        check_pack(changed(pack, shouting(pack["nature"])), planted),
    )
    for leaf in LEAF_NAMES:
        assert before[leaf].above_ancestors > 0.7
        is_below = leaf in LEAVES[0]
        assert (after[leaf].ancestors_fire == 1) == is_below
        assert (after[leaf].above_ancestors == 0) == is_below
        assert after[leaf].first == before[leaf].first
        assert after[leaf].confusers == before[leaf].confusers


def test_lens_that_fires_on_everything_is_named_and_outranks_the_others(
    planted: LensDataset, pack: LensPack
) -> None:
    checks = check_pack(changed(pack, shouting(pack["boat"])), planted)
    assert [concept for concept, check in checks.items() if check.fires_everywhere] == ["boat"]
    assert checks["boat"].firing_rate == 1
    assert checks["boat"].first == 1
    for concept in set(LEAF_NAMES) - {"boat"}:
        assert checks[concept].confusers[0] == "boat"
        assert checks[concept].first == 0


def test_ancestors_and_descendants_are_no_rivals(planted_store: Store, pack: LensPack) -> None:
    """In a hierarchy in which a concept stands on the level of its parent."""
    dataset, below = LensDataset(planted_store), {"bird": ("fish",)}
    levels = {**dict.fromkeys(BRANCHES, 0), **dict.fromkeys(LEAF_NAMES, 1)}
    parents = {
        leaf: (branch,) for branch, leaves in zip(BRANCHES, LEAVES, strict=True) for leaf in leaves
    } | below
    loud = changed(pack, shouting(pack["fish"]))
    beside = check_pack(loud, dataset)["bird"]
    dataset.__dict__["hierarchy"] = Hierarchy(levels, parents)
    under = check_pack(loud, dataset)
    assert (beside.n_rivals, beside.first, beside.confusers) == (8, 0, ["fish"])
    assert (under["bird"].n_rivals, under["bird"].first, under["bird"].confusers) == (7, 1, [])
    assert under["bird"].above_ancestors == 0
    assert (under["fish"].n_rivals, under["tree"].n_rivals) == (7, 8)


def test_rival_whose_concept_a_sample_expresses_as_well_is_right(tmp_path: Path) -> None:
    def also_a_boat(plan: SamplePlan) -> SamplePlan:
        if "bird" not in plan.concepts:
            return plan
        bird, boat = plan.concepts.index("bird"), plan.concepts.index("boat")
        samples = plan.label_sample[(plan.label_concept == bird) & (plan.label_role == POSITIVE)]
        return replace(
            plan,
            label_sample=np.append(plan.label_sample, samples),
            label_concept=np.append(plan.label_concept, np.full_like(samples, boat)),
            label_role=np.append(plan.label_role, np.full(len(samples), POSITIVE, np.uint8)),
        )

    dataset = LensDataset(make_planted_store(tmp_path / "s", change_plan=also_a_boat))
    pack = make_lens_pack(fit_lenses(dataset, SETTINGS), dataset, SETTINGS)
    checks = check_pack(changed(pack, shouting(pack["boat"])), dataset)
    assert checks["bird"].first == 1
    assert "boat" not in checks["bird"].confusers
    assert checks["fish"].confusers[0] == "boat"


def test_lens_without_siblings_or_ancestors_in_the_pack_has_no_share_above_them(
    planted: LensDataset, pack: LensPack
) -> None:
    alone = check_pack(LensPack([pack["bird"]], pack.provenance, {}), planted)["bird"]
    assert alone.n_rivals == 0
    assert math.isnan(alone.above_siblings)
    assert math.isnan(alone.above_ancestors)
    assert math.isnan(alone.ancestors_fire)
    with_parent = check_pack(LensPack([pack["bird"], pack["nature"]], pack.provenance, {}), planted)
    assert not math.isnan(with_parent["bird"].ancestors_fire)
    assert math.isnan(with_parent["nature"].ancestors_fire)


def test_lens_without_a_sample_in_the_split_is_left_out(fresh: LensDataset, pack: LensPack) -> None:
    rows = fresh.positives("loom")
    fresh.split[rows[fresh.split[rows] == TEST]] = TRAIN
    assert set(check_pack(pack, fresh)) == {*BRANCHES, *LEAF_NAMES} - {"loom"}


def test_confusers_are_five_at_most_the_worst_first(planted: LensDataset, pack: LensPack) -> None:
    others = [leaf for leaf in LEAF_NAMES if leaf != "bird"]
    loud = [replace(shouting(pack[leaf]), threshold=0.0) for leaf in others]
    confusers = check_pack(changed(pack, *loud), planted)["bird"].confusers
    assert len(confusers) == 5
    assert set(confusers) <= set(others)
