"""What is shown of lenses and packs in Python: short, harmless, and right about what is missing."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import lenscache
import lenstrain
from lenscache import listen
from lenscache.extract import ExtractSettings
from lenstrain.errors import LenstrainError, SettingsError, UnknownNameError
from lenstrain.metrics.grade import COLOURS, INKS
from tests.hostile import HIDDEN, SCRIPT
from tests.models import tiny_model
from tests.packs import small_pack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> lenscache.Store:
    from lenscache.extract import extract

    path = tmp_path_factory.mktemp("shown") / "store.zarr"
    extract(path, small_pack(n_examples=12), tiny_model(), ExtractSettings(mode="prompt"))
    return lenscache.open_store(path)


@pytest.fixture(scope="module")
def pack(store: lenscache.Store) -> lenstrain.LensPack:
    return lenstrain.train(store, model_layers=(1,), C=0.1)


def test_a_repr_is_one_short_line(store: lenscache.Store, pack: lenstrain.LensPack) -> None:
    lens, monitor = pack["bird"], lenstrain.Monitor(pack)
    text = lenstrain.train(store, n_model_layers=2, family="ensemble", concepts=["bird"])["bird"]
    shown = {
        repr(lens): r"Lens\('bird': grade [ABC], (capped|provisional), score [01]\.\d\d, "
        r"reads model layer 1\)",
        repr(text): r"Lens\('bird': .*, reads model layers \d, \d\)",
        repr(pack): r"LensPack\(7 linear lenses of tiny-llama: \d A, \d B, \d C, \d ungraded\)",
        repr(store): r"Store\('.*store\.zarr': tiny-llama, model layers 0 to 2, pack 'small'\)",
        repr(store.rounds()[0]): r"Round\(layer_0/round_0: \d+ samples in \d+ blocks, 2 concepts\)",
        repr(monitor): r"Monitor\(7 lenses, model layers 1, window 8, nothing read yet\)",
        repr(tiny_model()): r"LoadedModel\('tiny-llama': 3 transformer blocks of size 32, "
        r"float32 on cpu\)",
        repr(small_pack()): r"ConceptPack\('small': 7 concepts on levels 0, 1\)",
    }
    for line, pattern in shown.items():
        assert re.fullmatch(pattern, line), line
        assert len(line) < 250
    model = tiny_model()
    with listen(model, monitor):
        model.model(torch.tensor([[5, 6, 7]]))
    assert "3 positions read" in repr(monitor)


def test_notebooks_get_tables_that_cannot_act(
    store: lenscache.Store, pack: lenstrain.LensPack
) -> None:
    name = f"{SCRIPT}\u202e$x$"
    lenses = [dataclasses.replace(pack["bird"], name=name, reason=name), *pack.lenses[1:]]
    page = dataclasses.replace(pack, lenses=lenses)._repr_html_()
    assert SCRIPT not in page
    assert not any(sign in page for sign in HIDDEN)
    assert page.count("<tr>") == 8
    for lens in pack:
        assert f"background: {COLOURS[lens.grade]}" in page
    many = dataclasses.replace(pack, lenses=[*pack.lenses] * 4)._repr_html_()
    assert "8 more: see to_frame()" in many
    rounds = store._repr_html_()
    assert rounds.count("<tr>") == 3
    assert "layer_1/round_0" in rounds
    assert "complete" in rounds


def test_grades_have_the_colours_of_the_report() -> None:
    css = (ROOT / "lenstrain/report/assets/page.css").read_text("utf-8").partition(":root.dark")[0]
    for grade, colour in COLOURS.items():
        key = "U" if grade is None else grade.value
        assert f"--{key}: {colour};" in css
        assert f"--{key}-ink: {INKS[grade]};" in css


def test_a_name_that_is_not_there_is_answered_with_what_is_near(pack: lenstrain.LensPack) -> None:
    with pytest.raises(KeyError) as caught:
        pack["brid"]
    assert str(caught.value) == "there is no lens of the concept 'brid': did you mean bird?"
    assert isinstance(caught.value, LenstrainError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(KeyError, match="'zzz': expected one of nature, craft, bird, "):
        pack["zzz"]
    with pytest.raises(UnknownNameError, match="no entry 'scoer': did you mean score"):
        pack["bird"].metrics["scoer"]
    assert pack["bird"].metrics.get("scoer") is None
    with pytest.raises(SettingsError, match="concept 'brid' in this pack: did you mean bird"):
        lenstrain.Monitor(pack, concepts=["brid"])


def test_activations_of_another_shape_are_refused(pack: lenstrain.LensPack) -> None:
    lens, positions = pack["bird"], np.zeros((4, 3, 32), np.float32)
    for score in (
        lens.decision_function,
        lens.predict_proba,
        lens.predict,
        lambda X: pack.score(X, 1),
        lambda X: pack.score_all({1: X}),
    ):
        for X in (positions, positions[0, 0], positions[0, :, :31]):
            with pytest.raises(SettingsError, match=r"X has shape .*, expected \(n, 32\): a row"):
                score(X)
    several = dataclasses.replace(pack, lenses=list(pack.lenses))
    with pytest.raises(SettingsError, match="reads model layer 2 alone, its lenses read 1"):
        several.score(positions[0], 2)


def test_tensors_are_scored_as_their_values(pack: lenstrain.LensPack) -> None:
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 32))).bfloat16()
    wanted = pack.score(X.float().numpy(), 1)
    for given in (
        X,
        X.float(),
        X.float().requires_grad_(),
        X.float().numpy().astype(ml_dtypes.bfloat16),
    ):
        np.testing.assert_array_equal(pack.score(given, 1), wanted)
        np.testing.assert_array_equal(pack.score_all({1: given}), wanted)
        alone = pack["bird"].decision_function(given)
        np.testing.assert_allclose(alone, np.asarray(wanted[:, 2], np.float32), rtol=1e-5)
