"""The report of a lens pack: what is in its data, and that nothing in a pack can do harm in its
page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.util
import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.errors import MissingPackageError, SettingsError
from lenstrain.fit.train import train
from lenstrain.metrics.grade import RULE, Grade
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance
from lenstrain.report import Report, make_report, render_page
from lenstrain.report.samples import N_SHOWN
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import Planting, make_planted_store
from tests.lenstrain.report_packs import HOSTILE, made_up_pack, made_up_report

SETTINGS = FitSettings(target_f1=0.8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Weak directions: some lenses miss samples, and some are mistaken."""
    planting = Planting(strength=2.5, completion_strength=1.5)
    return LensDataset(
        make_planted_store(tmp_path_factory.mktemp("planted") / "s.zarr", planting=planting)
    )


@pytest.fixture(scope="module")
def pack(dataset: LensDataset) -> LensPack:
    return train(dataset, SETTINGS)


@pytest.fixture(scope="module")
def report(pack: LensPack, dataset: LensDataset) -> Report:
    return make_report(pack, dataset, label="planted", beside={"itself": pack})


def packed(page: str, name: str) -> str:
    """What a page carries under a name."""
    found = re.search(
        rf'<script id="packed-{name}" type="application/octet-stream">([^<]*)</script>', page
    )
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


@cache
def large_page() -> str:
    """As large as an ontology gets."""
    return render_page(made_up_report(5665, n_beside=1))


# --- what a fit records -------------------------------------------------------------------------


def test_a_fit_records_the_score_at_each_model_layer_that_it_chose_from(
    pack: LensPack, dataset: LensDataset
) -> None:
    for lens in pack:
        scores = lens.metrics["score_by_model_layer"]
        assert set(scores) == {"0", "1"}
        assert all(0 < score <= 1 for score in scores.values())
    means = [
        np.mean([lens.metrics["score_by_model_layer"][i] for lens in pack]) for i in ("0", "1")
    ]
    assert means[1] > means[0] + 0.2  # all directions are in model layer 1


def test_where_there_is_one_model_layer_nothing_is_recorded(dataset: LensDataset) -> None:
    alone = train(dataset, replace(SETTINGS, model_layers=(1,)))
    assert all(lens.metrics["score_by_model_layer"] == {} for lens in alone)
    report = make_report(alone, dataset)
    assert report.model_layers == []
    assert all(row == [] for row in report.by_model_layer)


def test_refined_lenses_keep_it(dataset: LensDataset) -> None:
    # so that some are confused
    few = replace(SETTINGS, initial_samples=2, max_samples=2, negatives_per_positive=1.0)
    refined = train(dataset, few, refine=True)
    assert any(lens.metrics["refined_against"] for lens in refined)
    assert all(lens.metrics["score_by_model_layer"] for lens in refined)


# --- data ---------------------------------------------------------------------------------------


def test_every_lens_has_a_line_with_its_own_figures(report: Report, pack: LensPack) -> None:
    assert [line.id for line in report.concepts] == [lens.concept for lens in pack]
    for line, lens in zip(report.concepts, pack, strict=True):
        assert line.grade == lens.grade_shown
        assert (line.status, line.reason, line.capped) == (
            lens.status,
            lens.reason,
            lens.is_capped,
        )
        names = ("score", "score_named", "test_f1", "n_test", "n_test_unnamed", "graduated")
        for name in names:
            assert getattr(line, name) == lens.metrics[name], name
        assert (line.low, line.high) == (lens.metrics["score_low"], lens.metrics["score_high"])
        assert line.lead == lens.metrics["lead_over_controls"]
        assert line.f1_unnamed == lens.metrics["test_f1_unnamed"]
        assert line.n_test_unnamed is not None
        assert line.n_test is not None
        assert 0 < line.n_test_unnamed < line.n_test


def test_ungraded_lenses_are_a_group_of_their_own(pack: LensPack) -> None:
    nan = float("nan")
    nothing = replace(pack["bird"].metrics, score=nan, score_low=nan, score_high=nan)
    bird = replace(
        pack["bird"], grade=None, status="ungraded", reason="no test text", metrics=nothing
    )
    fish = replace(pack["fish"], grade=Grade.C, reason="fires on 40 % of unrelated samples")
    rest = [replace(pack[c], grade=Grade.A, reason="") for c in ("tree", "boat")]
    mixed = LensPack([bird, fish, *rest], pack.provenance, {})
    report = make_report(mixed, beside={"itself": mixed})
    assert [line.grade for line in report.concepts] == ["U", "C", "A", "A"]
    assert [line.reason for line in report.concepts[:2]] == [bird.reason, fish.reason]
    assert [line.capped for line in report.concepts] == [False, True, False, False]
    assert (report.concepts[0].status, report.concepts[0].score) == ("ungraded", None)
    assert report.summary["grades"] == {"A": 2, "B": 0, "C": 1, "ungraded": 1}
    counts = {warning["which"]: warning["n"] for warning in report.warnings}
    assert (counts["ungraded"], counts["capped"]) == (1, 1)
    (beside,) = report.beside
    assert (beside.grade, beside.status[0], beside.reason[:2]) == (
        ["U", "C", "A", "A"],
        "ungraded",
        [bird.reason, fish.reason],
    )
    trusted = make_report(LensPack(rest, pack.provenance, {}))
    assert not {warning["which"] for warning in trusted.warnings} & {"ungraded", "capped"}


def test_a_pack_of_before_keeps_the_grades_and_the_rule_that_it_came_with() -> None:
    old = made_up_pack(20, rule=1)
    report = make_report(old)
    assert [line.grade for line in report.concepts] == [lens.grade_shown for lens in old]
    assert report.summary["grading_rule"] == 1
    assert report.overview()["grading"]["rule"] == RULE
    assert report.concepts[0].score == old.lenses[0].metrics["score"]
    unknown = ("score_named", "lead", "n_test_unnamed")
    assert {getattr(line, name) for line in report.concepts for name in unknown} == {None}
    assert {line.n_test for line in report.concepts} == {8}
    json.dumps([report.overview(), report.rest()], allow_nan=False)


def test_attributes_of_a_concept_are_in_its_line(pack: LensPack) -> None:
    first, *others = pack
    marked = replace(first, attributes={"impacts": ("consent", "<b>"), "risk_level": ("high",)})
    report = make_report(LensPack([marked, *others], pack.provenance, {}))
    shown = report.overview()["columns"]["attributes"]
    assert shown[0] == ["impacts=consent", "impacts=<b>", "risk_level=high"]
    assert not any(shown[1:])


def test_the_tree_is_that_of_the_store(report: Report, dataset: LensDataset) -> None:
    names = [line.id for line in report.concepts]
    for number, name in enumerate(names):
        assert [names[p] for p in report.tree.parents[number]] == list(
            dataset.hierarchy.parents(name)
        )
    assert not report.tree.is_flat


def test_concepts_without_a_lens_are_in_the_tree_but_in_no_list_of_lenses(
    dataset: LensDataset,
) -> None:
    some = train(dataset, SETTINGS, concepts=["bird", "boat"])
    some.skipped["fish"] = "fish has too few samples"
    report = make_report(some, dataset)
    assert [line.id for line in report.concepts] == ["bird", "boat", "nature", "craft", "fish"]
    assert [line.grade for line in report.concepts[2:]] == ["", "", ""]
    assert len(report.details) == 2
    assert report.tree.parents == [[2], [3], [], [], [2]]
    assert report.tree.skipped == {4: "fish has too few samples"}


def test_samples_are_held_out_and_ranked(
    report: Report, pack: LensPack, dataset: LensDataset
) -> None:
    split = dict(zip(dataset.texts, dataset.split.tolist(), strict=True))
    assert all(split[prompt] == TEST for prompt, _ in report.texts)
    for lens, detail in zip(pack, report.details, strict=True):
        own = {dataset.texts[i] for i in dataset.positives(lens.concept)}
        relatives = dataset.hierarchy.family(lens.concept)
        related = {dataset.texts[i] for c in relatives for i in dataset.labelled(c)}
        assert {report.texts[line.text][0] for line in detail.best + detail.worst} <= own
        assert not {report.texts[line.text][0] for line in detail.false_alarms} & related
        assert not {line.text for line in detail.best} & {line.text for line in detail.worst}
        assert 0 < len(detail.best) <= N_SHOWN
        assert len(detail.false_alarms) == N_SHOWN
        down, up, alarms = (
            [line.probability for line in lines]
            for lines in (detail.best, detail.worst, detail.false_alarms)
        )
        assert down == sorted(down, reverse=True)
        assert up == sorted(up)
        assert alarms == sorted(alarms, reverse=True)


def test_a_false_alarm_says_what_it_is_a_sample_of(report: Report, dataset: LensDataset) -> None:
    number = {line.id: i for i, line in enumerate(report.concepts)}
    concepts_of: dict[str, set[int]] = {}
    for concept in dataset.concepts:
        for i in dataset.positives(concept):
            concepts_of.setdefault(dataset.texts[i], set()).add(number[concept])
    named = [line for detail in report.details for line in detail.false_alarms if line.concepts]
    assert named
    assert all(set(line.concepts) <= concepts_of[report.texts[line.text][0]] for line in named)


def test_learning_curve_goes_beyond_graduation(report: Report, pack: LensPack) -> None:
    for lens, detail in zip(pack, report.details, strict=True):
        assert len(detail.steps) == len(lens.trajectory) + len(lens.beyond)
        assert detail.steps[detail.n_steps - 1][2] == lens.trajectory[-1].test_f1


def test_without_a_store_the_report_says_so_and_has_the_rest(pack: LensPack) -> None:
    report = make_report(pack)
    assert not report.has_store
    assert report.tree.is_flat
    assert report.texts == []
    assert report.model_layers == [0, 1]
    assert [mode["mode"] for mode in report.impact] == [
        "advisory",
        "falloff",
        "blocking, grade B",
        "blocking, grade A",
    ]


def test_a_pack_is_compared_concept_by_concept(pack: LensPack, dataset: LensDataset) -> None:
    some = train(dataset, replace(SETTINGS, family="mean-difference"), concepts=["bird"])
    (beside,) = make_report(pack, beside={"other": some}).beside
    (all_there,) = make_report(some, beside={"first": pack}).beside
    bird = [lens.concept for lens in pack].index("bird")
    assert [i for i, score in enumerate(beside.score) if score is not None] == [bird]
    assert beside.score[bird] == some["bird"].metrics["score"]
    assert (beside.n_only_there, all_there.n_only_there) == (0, len(pack) - 1)


def test_the_data_is_strict_json_whatever_could_not_be_measured(pack: LensPack) -> None:
    bird = pack["bird"]
    unknown: dict[str, Any] = {
        "score": float("nan"),
        "hungry": False,
        "graduated": False,
        "n_samples": 0,
    }
    unknown |= dict.fromkeys(
        ("test_f1", "test_f1_unnamed", "test_f1_named", "iterations"), float("nan")
    )
    unknown["n_test"] = float("nan")
    metrics = LensMetrics.from_json(unknown)
    lens = replace(bird, metrics=metrics, trajectory=(), beyond=())
    foreign = LensPack([lens], Provenance(), {})
    report = make_report(foreign)
    assert (report.concepts[0].n_test, report.concepts[0].iterations) == (None, None)
    text = json.dumps([report.overview(), report.rest()], allow_nan=False)
    assert report.concepts[0].score is None
    assert report.impact == []
    assert "NaN" not in text
    render_page(report)


def test_an_empty_pack_has_no_report() -> None:
    with pytest.raises(SettingsError, match="no lenses"):
        make_report(LensPack([], Provenance(), {}))


def test_another_store_is_refused(pack: LensPack, tmp_path: Any) -> None:
    other = LensDataset(make_planted_store(tmp_path / "s.zarr", model_fingerprint="f" * 16))
    with pytest.raises(SettingsError, match="another model"):
        make_report(pack, other)


# --- page ---------------------------------------------------------------------------------------


def test_the_page_carries_the_data_of_the_report(report: Report) -> None:
    page = render_page(report)
    assert json.loads(packed(page, "overview")) == report.overview()
    assert json.loads(packed(page, "rest")) == json.loads(json.dumps(report.rest()))


def test_the_same_report_is_the_same_page(report: Report) -> None:
    assert render_page(report) == render_page(report)


def test_the_page_lets_nothing_run_but_its_own_scripts_and_fetches_nothing(report: Report) -> None:
    page = render_page(report)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().partition(" ")[::2] for rule in html.unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert "unsafe" not in rules["script-src"]
    (glue,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    for script in (glue, packed(page, "plotly"), packed(page, "tables")):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", markup)
    assert "@import" not in page
    assert not re.search(
        r"url\(\s*[\"']?(?!data:|%23|#)",
        "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL)),
    )


def test_hostile_texts_are_nowhere_in_the_markup() -> None:
    report = made_up_report(40, names=HOSTILE, texts=HOSTILE)
    page = render_page(replace(report, label=HOSTILE[0]))
    assert "window.harmed=1</script>" not in page
    assert "onerror" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<title>&lt;script&gt;window.harmed=1&lt;/script&gt;: lens report</title>" in page
    names = json.loads(packed(page, "overview"))["columns"]["name"]
    assert names[: len(HOSTILE)] == [name.encode(errors="replace").decode() for name in HOSTILE]


def test_long_samples_are_cut(pack: LensPack, dataset: LensDataset) -> None:
    dataset = LensDataset(dataset.store)
    dataset.texts[:] = [text + "y" * 10_000 for text in dataset.texts]
    report = make_report(pack, dataset)
    assert report.texts
    assert all(
        len(prompt) < 1100 and prompt.endswith("characters more)") for prompt, _ in report.texts
    )


@pytest.mark.slow
def test_5665_concepts_are_less_than_30_megabytes() -> None:
    assert len(large_page().encode()) < 30e6


@pytest.mark.parametrize("package", ["plotly", "itables"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(
        "lenstrain.report.page.find_spec",
        lambda name: None if name == package else importlib.util.find_spec(name),
    )
    with pytest.raises(
        MissingPackageError, match=rf"needs {package}: run `pip install '\.\[report\]'`"
    ):
        render_page(make_report(made_up_pack(3)))
