"""Readings: which lenses are named where, whether a pack fits a model, and the page."""

from __future__ import annotations

import html.parser
import json
from typing import Any

import numpy as np
import pytest

from lenstrain.errors import SettingsError
from lenstrain.families.linear import LinearWeights
from lenstrain.live.naming_rule import Presence, Rule
from lenstrain.live.page import reading_page
from lenstrain.live.reading import Reading, check_model, make_reading
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance

HOSTILE = "</span><script>alert(1)</script>\x1b[2J\u202e&amp;\"'"


def lens(
    concept: str, grade: Grade = Grade.A, *, name: str | None = None, threshold: float = 0.0
) -> Lens:
    return Lens(
        concept=concept,
        name=name or concept,
        level=0,
        model_layers=(1,),
        weights=LinearWeights(np.ones(4, np.float32), 0.0),
        threshold=threshold,
        calibrator=Calibrator("sigmoid", (1.0, 0.0)),
        noise=NoiseFloor(-2.0, 2.0),
        grade=grade,
        metrics=LensMetrics(),
        trajectory=(),
    )


LENSES = [lens("bird"), lens("fish", Grade.B), lens("tree", Grade.C), lens("boat", threshold=20.0)]
"""With the usual rule, named from the logit 6 on; the tree never, for its grade, and the boat from
its threshold on."""


def reading(
    scores: Any, pooled: Any = (0, 0, 0, 0), *, top: int = 3, tokens: Any = None, **rule: Any
) -> Reading:
    scores = np.array(scores, np.float32)
    tokens = [f" t{i}" for i in range(len(scores))] if tokens is None else tokens
    return make_reading(
        Presence(LENSES, Rule(**rule)),
        tokens,
        scores,
        np.array(pooled, np.float32),
        window=8,
        top=top,
    )


def named(found: Reading) -> list[list[str]]:
    return [[each.concept for each in token.findings] for token in found.tokens]


def test_a_lens_is_named_where_grade_threshold_and_noise_floor_allow_it() -> None:
    scores = [[6.1, 5.9, 50, 19], [5.9, 6.1, 50, 21], [np.nan] * 4]
    assert named(reading(scores)) == [["bird"], ["boat", "fish"], []]


def test_the_strongest_signal_comes_first_and_no_more_than_asked_for() -> None:
    assert named(reading([[8, 9, 0, 30]])) == [["boat", "fish", "bird"]]
    assert named(reading([[8, 9, 0, 30]], top=1)) == [["boat"]]


def test_figures_of_a_finding_are_those_of_the_lens() -> None:
    (found,) = reading([[7, 0, 0, 0]]).tokens[0].findings
    assert (found.logit, found.signal, found.grade) == (7.0, 4.5, Grade.A)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-7)))


def test_the_whole_text_asks_for_one_deviation_less() -> None:
    found = reading([[4.5, 0, 0, 0]], pooled=(4.5, 3.9, 50, 0))
    assert named(found) == [[]]
    assert [each.concept for each in found.whole] == ["bird"]


def test_a_lower_bar_and_grade_name_more() -> None:
    assert named(reading([[3, 3, 3, 3]], min_grade=Grade.C, min_signal=2.0)) == [
        ["bird", "fish", "tree"]
    ]
    assert named(reading([[9, 9, 9, 9]], min_grade=Grade.A)) == [["bird"]]


def test_json_is_plain() -> None:
    data = json.loads(json.dumps(reading([[7, 0, 0, 0], [np.nan] * 4]).to_json(), allow_nan=False))
    assert data["tokens"][1] == {"text": " t1", "lenses": []}
    assert data["tokens"][0]["lenses"][0]["grade"] == "A"
    assert (data["n_lenses"], data["n_judged"], data["window"]) == (4, 3, 8)


def test_scores_of_another_number_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows of scores for 2 tokens"):
        reading([[0, 0, 0, 0]], tokens=["a", "b"])


# --- whether a pack fits a model ----------------------------------------------------------------

MODEL = {"id": "m", "fingerprint": "f", "dtype": "bfloat16", "n_layers": 3, "hidden": 4}
PACK = LensPack(LENSES, Provenance(store={"model": MODEL, "tokenizer": {"fingerprint": "t"}}), {})


def test_the_model_of_the_pack_is_taken_without_a_word() -> None:
    assert check_model(PACK, MODEL, "t") is None


def test_the_same_model_in_another_dtype_is_taken_with_a_remark() -> None:
    note = check_model(PACK, {**MODEL, "fingerprint": "g", "dtype": "float32"}, "t")
    assert (
        note == "computed in float32, the pack's activations in bfloat16: scores differ by rounding"
    )


@pytest.mark.parametrize(
    ("changes", "tokenizer", "words"),
    [
        (
            {"fingerprint": "g"},
            "t",
            "made with another model: m .weights f, bfloat16., not m .weights g, bfloat16.",
        ),
        ({"fingerprint": "g", "dtype": "float32", "id": "n"}, "t", "made with another model"),
        ({"fingerprint": "g", "dtype": "float32", "hidden": 8}, "t", "made with another model"),
        ({}, "u", "made with another tokenizer"),
    ],
)
def test_another_model_is_refused_with_what_to_do(
    changes: dict[str, Any], tokenizer: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=f"{words}.*allow_other_model=True"):
        check_model(PACK, {**MODEL, **changes}, tokenizer)


def test_another_model_is_allowed_on_request_where_the_lenses_can_read_it() -> None:
    other = {**MODEL, "fingerprint": "g", "id": "n"}
    assert "no grade or probability of it is known to hold" in str(
        check_model(PACK, other, "t", allow_other=True)
    )
    for change in ({"hidden": 8}, {"n_layers": 1}):
        with pytest.raises(SettingsError, match="the lenses cannot read this model"):
            check_model(PACK, {**other, **change}, "t", allow_other=True)


# --- the page -----------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page(**options: Any) -> str:
    return reading_page(reading(**options), title="a pack", notes=("a note",))


def test_the_page_shows_every_token_and_the_figures_of_its_lenses() -> None:
    shown = Page(
        page(scores=[[7, 0, 0, 0], [0, 0, 0, 0]], pooled=(9, 0, 0, 0), tokens=["The ", "cat\n"])
    )
    assert "The bird: grade A, p 1.00, +4.5 deviations" in shown.text
    assert "cat\n" in shown.text
    assert "3 of 4 lenses have grade B or better" in shown.text
    assert "a note" in shown.text


def test_the_page_needs_no_network_and_no_script_and_knows_the_dark() -> None:
    source = page(scores=[[7, 0, 0, 0]])
    shown = Page(source)
    assert not {"script", "link", "img", "iframe"} & set(shown.tags)
    assert not [
        name for name, _ in shown.attributes if name in ("src", "href") or name.startswith("on")
    ]
    assert "http" not in source.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in source
    assert "default-src 'none'" in source


def test_hostile_text_and_names_are_shown_and_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LENSES", [lens("bird", name=HOSTILE), *LENSES[1:]])
    source = page(scores=[[7, 0, 0, 0]], pooled=(7, 0, 0, 0), tokens=[HOSTILE])
    shown = Page(source)
    assert "script" not in shown.tags
    assert shown.text.count("<script>alert(1)</script>\\x1b[2J\\u202e&amp;") == 3
    assert {char for char in source if not char.isprintable()} == {"\n"}


def test_a_page_without_a_finding_says_so() -> None:
    assert "No lens is sure that its concept is there." in Page(page(scores=[[0, 0, 0, 0]])).text
