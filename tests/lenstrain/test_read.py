"""`lenstrain.live.read.read` and `lenstrain.live.steering.steer`, which the commands call."""

from __future__ import annotations

import numpy as np

from lenstrain.live.naming_rule import Rule
from lenstrain.live.read import read
from lenstrain.live.steering import steer
from lenstrain.pack.lens import Direction
from tests.lenstrain.test_monitor import HIDDEN, random_pack
from tests.models import tiny_model

RULE = Rule(min_signal=-np.inf)


def test_a_text_is_read_token_by_token_and_as_a_whole() -> None:
    model, pack = tiny_model(), random_pack()
    reading = read(pack, model, "The old man and the sea", rule=RULE, top=2)
    assert "".join(token.text for token in reading.tokens) == "The old man and the sea"
    assert all(len(token.findings) <= 2 for token in reading.tokens)
    assert (reading.n_lenses, reading.n_cut, reading.rule) == (len(pack), 0, RULE)
    only = read(pack, model, "The old man", concepts=["c1"], rule=RULE)
    assert {found.concept for token in only.tokens for found in token.findings} <= {"c1"}
    assert only.n_lenses == 1


def test_what_is_written_is_read_without_and_with_each_strength() -> None:
    model, pack = tiny_model(), random_pack(pooling="mean")
    lens = pack.lenses[0]
    push = Direction(lens.model_layers[0], np.eye(1, HIDDEN, dtype=np.float32)[0], 1.0)
    found = steer(pack, model, "The old man", [lens], [push], [0.0, 200.0], max_new_tokens=6)
    assert [each.strength for each in found] == [None, 0.0, 200.0]
    alone, still, pushed = (each.written for each in found)
    assert alone.text == still.text
    assert found[0].readings == found[1].readings
    assert pushed.text != alone.text
    ((probability, _),) = found[0].readings
    X = np.hstack([alone.activations[i] for i in lens.model_layers])
    assert probability == lens.predict_proba(X)[0, 1]
