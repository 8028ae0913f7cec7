from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lenstrain.data.dataset import LensDataset
from lenstrain.errors import SettingsError
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.live.steering import directions_at, directions_of, find_lens
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Direction, Lens
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import Provenance
from lenstrain.settings import FitSettings


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    return make_lens_pack(fit_lenses(planted, FitSettings()), planted, FitSettings())


def named(lens: Lens, concept: str, name: str) -> Lens:
    return dataclasses.replace(lens, concept=concept, name=name)


def test_a_lens_is_found_by_id_and_by_name_whatever_its_case(pack: LensPack) -> None:
    lenses = LensPack([named(pack["bird"], "bird.n.01", "Bird"), pack["fish"]], Provenance(), {})
    assert find_lens(lenses, "bird.n.01") is find_lens(lenses, "bird") is lenses["bird.n.01"]


def test_an_unknown_concept_is_answered_with_those_spelled_alike(pack: LensPack) -> None:
    with pytest.raises(SettingsError, match=r"no lens of 'brid': did you mean bird"):
        find_lens(pack, "brid")
    with pytest.raises(SettingsError, match="expected one of nature, society"):
        find_lens(pack, "quark")


def test_a_name_of_several_concepts_asks_for_the_id(pack: LensPack) -> None:
    lenses = LensPack(
        [named(pack["bird"], "crane.1", "crane"), named(pack["fish"], "crane.2", "crane")],
        Provenance(),
        {},
    )
    with pytest.raises(SettingsError, match=r"name of 2 concepts.*crane.1, crane.2"):
        find_lens(lenses, "crane")


def test_a_lens_of_grade_c_is_refused_unless_it_is_allowed(pack: LensPack) -> None:
    poor = dataclasses.replace(pack["bird"], grade=Grade.C)
    with pytest.raises(SettingsError, match="bird has grade C"):
        directions_of(poor)
    assert directions_of(poor, allow_grade_c=True) == poor.directions


def test_a_unit_of_strength_along_the_weights_moves_the_logit_by_a_deviation_of_its_noise(
    pack: LensPack,
) -> None:
    lens = pack["bird"]
    ((_, vector, deviation),) = directions_of(lens, "weights")
    x = np.random.default_rng(0).normal(size=(1, len(vector))).astype(np.float32)
    moved = lens.decision_function(x + 3 * deviation * vector) - lens.decision_function(x)
    assert moved[0] == pytest.approx(3 * lens.noise.deviation, rel=1e-3)


def test_along_its_mean_difference_the_logit_of_a_lens_rises_too(pack: LensPack) -> None:
    for lens in pack:
        ((_, vector, _),) = directions_of(lens, allow_grade_c=True)
        assert lens.weight @ vector > 0, lens.concept


def test_a_lens_without_directions_is_refused(pack: LensPack) -> None:
    with pytest.raises(SettingsError, match="no direction to steer along"):
        directions_of(dataclasses.replace(pack["bird"], directions=()))


def test_a_direction_of_zeros_is_refused(pack: LensPack) -> None:
    (found,) = pack["bird"].directions
    nowhere = found._replace(vector=np.zeros_like(found.vector))
    with pytest.raises(SettingsError, match="nowhere to steer to"):
        directions_of(dataclasses.replace(pack["bird"], directions=(nowhere,)))


def test_the_weights_of_an_mlp_are_no_direction(planted: LensDataset) -> None:
    settings = FitSettings(family="mlp", max_iterations=1)
    lens = make_lens_pack(fit_lenses(planted, settings, concepts=["bird"]), planted, settings)[
        "bird"
    ]
    with pytest.raises(SettingsError, match="is not linear: steer along its mean difference"):
        directions_of(lens, "weights", allow_grade_c=True)
    assert directions_of(lens, allow_grade_c=True)


def test_of_several_model_layers_the_middle_one_is_steered_or_those_asked_for() -> None:
    six = tuple(Direction(layer, np.ones(4, np.float32), 1.0) for layer in (4, 9, 14, 19, 24, 29))
    assert [each.model_layer for each in directions_at(six)] == [14]
    assert directions_at(six[:1]) == six[:1]
    assert [each.model_layer for each in directions_at(six, [24, 4, 24])] == [4, 24]
    with pytest.raises(SettingsError, match="no direction at model layer 5, it reads 4, 9, 14, 19"):
        directions_at(six, [4, 5])
