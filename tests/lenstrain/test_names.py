"""Lenses that read the name of their concept: perfect where it stands, and not to be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.errors import SettingsError
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.live.naming_rule import Presence, Rule
from lenstrain.live.steering import directions_of
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import LEAVES, Planting, make_planted_store, planted_pack
from tests.lenstrain.test_choice import NAMES_LAYER, Named

LEAF_NAMES = [leaf for leaves in LEAVES for leaf in leaves]
SETTINGS = FitSettings(model_layers=(NAMES_LAYER,), initial_samples=200, C=1.0)


def names_pack(n_examples: int) -> ConceptPack:
    """Few examples and many named prompts: what a lens learns first is the name."""
    return planted_pack(n_examples=n_examples, n_contrasts=0)


def fit(path: Path, n_examples: int) -> dict[str, FittedLens]:
    store = make_planted_store(path, pack=names_pack(n_examples), levels=[1])
    result = fit_lenses(Named(store), SETTINGS, concepts=LEAF_NAMES)
    return {lens.concept: lens for lens in result.lenses}


@pytest.fixture(scope="module")
def with_examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FittedLens]:
    return fit(tmp_path_factory.mktemp("names") / "s", 20)


@pytest.fixture(scope="module")
def without_examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FittedLens]:
    return fit(tmp_path_factory.mktemp("names") / "s", 0)


def test_a_lens_that_reads_the_name_is_a_by_its_name_and_c_by_its_grade(
    with_examples: dict[str, FittedLens],
) -> None:
    assert len(with_examples) == 9
    for lens in with_examples.values():
        assert Grade.of(lens.metrics["score_named"]) is Grade.A
        assert lens.n_test_unnamed >= 3
        assert lens.score < 0.2
        assert (lens.verdict.grade, lens.verdict.status) == (Grade.C, "provisional")


def test_without_unnamed_texts_it_is_ungraded_however_well_it_reads_the_name(
    without_examples: dict[str, FittedLens],
) -> None:
    assert len(without_examples) >= 5
    for lens in without_examples.values():
        assert lens.metrics["score_named"] == lens.ranking.score
        assert Grade.of(lens.ranking.score) is Grade.A  # what the rule of before went by
        assert np.isnan(lens.score)
        assert (lens.verdict.grade, lens.verdict.status) == (None, "ungraded")
        assert lens.verdict.reason == "no test text that expresses the concept without naming it"


def ranks(lenses: Sequence[FittedLens]) -> dict[str, int]:
    """A above B above C above no grade."""
    found = {lens.concept: lens.verdict.grade for lens in lenses}
    return {c: 0 if g is None else "CBA".index(g.value) + 1 for c, g in found.items()}


@pytest.mark.parametrize("strength", [0.0, 3.0, 6.0])
def test_taking_the_unnamed_examples_away_never_raises_a_grade(
    strength: float, tmp_path: Path
) -> None:
    """Whatever else there is to find: the name, and a direction of some strength."""

    class Both(Named):
        def vectors(
            self, model_layer: int, place: NDArray[np.intp] | None = None
        ) -> NDArray[np.float32]:
            # The planted directions are at model layer 1: added up with the names of model layer 0.
            return super().vectors(0, place) + super().vectors(1, place)

    found = {}
    for n_examples in (20, 5, 0):
        planting = Planting(strength=strength, completion_strength=strength)
        store = make_planted_store(
            tmp_path / f"{n_examples}", pack=names_pack(n_examples), planting=planting, levels=[1]
        )
        found[n_examples] = ranks(fit_lenses(Both(store), SETTINGS, concepts=LEAF_NAMES).lenses)
    for concept, rank in found[20].items():
        assert found[5].get(concept, 0) <= rank
        assert found[0].get(concept, 0) <= rank
    assert {*found[0].values()} == {0}
    if strength == 6.0:
        assert 3 in found[20].values()


def test_hiding_the_unnamed_test_texts_takes_every_grade(
    tmp_path: Path,
) -> None:
    """The same lenses, of which less is known."""
    store = make_planted_store(tmp_path / "s", levels=[1])

    class Hidden(LensDataset):
        def unnamed(self, concept: str, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
            return np.asarray(super().unnamed(concept, rows) & (self.split[rows] != TEST))

    settings = FitSettings(model_layers=(1,))
    known, hidden = (fit_lenses(each(store), settings).lenses for each in (LensDataset, Hidden))
    for one, other in zip(known, hidden, strict=True):
        assert one.verdict.status == "provisional"
        assert (other.verdict.grade, other.verdict.status) == (None, "ungraded")


# --- what becomes of such lenses ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> LensPack:
    """Ungraded lenses that read names."""
    store = make_planted_store(
        tmp_path_factory.mktemp("names") / "s", pack=names_pack(0), levels=[1]
    )
    dataset = Named(store)
    return make_lens_pack(fit_lenses(dataset, SETTINGS), dataset, SETTINGS)


def test_a_pack_says_what_its_lenses_are(pack: LensPack, tmp_path: Path) -> None:
    pack.save(tmp_path / "lenses")
    for found in (pack, LensPack.load(tmp_path / "lenses")):
        assert found.grades() == {"A": 0, "B": 0, "C": 0, "ungraded": len(pack)}
        assert found.summary()["capped"] == 0
        for lens in found:
            assert (lens.grade, lens.status, lens.grade_shown) == (None, "ungraded", "-")
            assert lens.reason == "no test text that expresses the concept without naming it"
            assert np.isnan(lens.metrics["score"])
            assert lens.metrics["score_named"] == lens.metrics["score_all"] > 0.5
            assert lens.metrics["n_test"] > lens.metrics["n_test_unnamed"] == 0


def test_an_ungraded_lens_is_named_only_if_it_is_asked_for(pack: LensPack) -> None:
    loud = np.full(len(pack), 1e6, np.float32)
    for grade in Grade:
        silent = Presence(pack.lenses, Rule(grade))
        assert (silent.n_judged, silent.strongest(loud, top=3)) == (0, ())
    asked = Presence(pack.lenses, Rule(untrusted=True))
    assert asked.n_judged == len(pack)
    for found in asked.strongest(loud, top=3):
        assert (found.grade, found.grade_shown, found.status) == (None, "-", "ungraded")
        assert found.reason == pack[found.concept].reason


def test_a_capped_lens_is_named_only_if_it_is_asked_for(pack: LensPack) -> None:
    reason = "not ahead of the control 'words of the prompt'"
    capped = [
        dataclasses.replace(lens, grade=Grade.C, status="provisional", reason=reason)
        for lens in pack
    ]
    loud = np.full(len(pack), 1e6, np.float32)
    assert Presence(capped, Rule(Grade.C)).n_judged == 0
    asked = Presence(capped, Rule(Grade.A, untrusted=True)).strongest(loud, top=1)
    assert [(found.grade, found.reason) for found in asked] == [(Grade.C, reason)]
    plain = [dataclasses.replace(lens, reason="") for lens in capped]
    assert Presence(plain, Rule(Grade.C)).n_judged == len(pack)


def test_an_ungraded_lens_is_not_steered_along_unless_that_is_allowed(pack: LensPack) -> None:
    lens = pack.lenses[0]
    with pytest.raises(SettingsError, match=r"is ungraded \(no test text that expresses"):
        directions_of(lens)
    assert directions_of(lens, allow_grade_c=True) == lens.directions
