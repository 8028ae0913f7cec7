"""More samples for the concepts that asked for them: another round, planned after the ones before
it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts import plan as plan_module
from lenscache.concepts.plan import PackPrompts, plan_samples, plan_top_up
from lenscache.concepts.prompts import concept_prompts
from lenscache.errors import PlanError, StoreIncompleteError, StoreMismatchError
from lenscache.extract import ExtractProgress, ExtractReport, ExtractSettings, planned_rounds
from lenscache.extract.planned_rounds import TopUp, check_top_up, plan_rounds, read_top_up
from lenscache.store.round import Round
from lenscache.store.store import Store, open_store
from lenstrain.data.dataset import LensDataset
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from tests.lenscache import conftest
from tests.lenscache.conftest import PACK, SETTINGS, run_small, tree

FEW = replace(SETTINGS, samples=6)
N_PROMPTS = len(concept_prompts(PACK, PACK["bird"]))


def top_up(
    path: Path, request: TopUp, settings: ExtractSettings = FEW, **options: Any
) -> ExtractReport:
    return conftest.top_up(path, request, settings, **options)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    run_small(tmp_path / "s.zarr", settings=FEW, limit=None)
    return tmp_path / "s.zarr"


def texts_of(target: Round, concept: str) -> list[str]:
    """Texts with a label of the concept, in the order of the labels."""
    labels, number = target.labels(), target.concepts.index(concept)
    texts = target.samples().text
    return [str(texts[row]) for row in labels.sample[labels.concept == number]]


def test_fewer_samples_are_the_first_of_each_concept(store: Path) -> None:
    target = open_store(store).rounds(1)[0]
    for concept in target.targets:
        first = [prompt.text for prompt in concept_prompts(PACK, PACK[concept])[:6]]
        assert [text for text in texts_of(target, concept) if text in first] == first
    assert target.attributes["samples"] == 6
    with pytest.raises(StoreMismatchError, match="samples 6, this run asks for 7"):
        run_small(store, settings=replace(SETTINGS, samples=7), limit=None)


def test_a_top_up_adds_the_next_prompts_of_the_concepts_that_asked(store: Path) -> None:
    before = tree(store)
    report = top_up(store, TopUp(("bird",), samples=3))
    first, second = open_store(store).rounds(1)
    assert second.targets == ("bird",)
    assert [p.text for p in concept_prompts(PACK, PACK["bird"])[6:9]] == list(second.samples().text)
    assert (second.samples().repeat == 0).all()
    assert report.rows_run == report.rows == 3
    assert second.is_complete
    assert first.is_complete
    assert {name: data for name, data in tree(store).items() if name in before} == before


def test_when_the_prompts_are_used_up_they_are_sampled_again(store: Path) -> None:
    n = N_PROMPTS + 2
    top_up(store, TopUp(("bird",), samples=n))
    first, second = open_store(store).rounds(1)
    again = second.samples().repeat > 0
    assert again.sum() == n - (N_PROMPTS - 6)
    samples, before = second.samples(), first.samples()
    seen = {str(text): row for row, text in enumerate(before.text)}
    for row in np.flatnonzero(again & (samples.repeat == 1)):
        old = seen.get(str(samples.text[row]))
        if old is not None:  # the same prompt in the same split, another key and temperature
            assert samples.split[row] == before.split[old]
            assert bytes(samples.key[row]) != bytes(before.key[old])
            assert samples.temperature[row] != before.temperature[old]


def test_the_same_request_again_finds_its_round_complete_and_another_one_adds_a_round(
    store: Path,
) -> None:
    request = TopUp(("bird", "fish"), samples=3, origin="a")
    top_up(store, request)
    before = tree(store)
    assert top_up(store, request).rows_run == 0
    assert tree(store) == before
    top_up(store, replace(request, origin="b"))
    assert [entry.index for entry in open_store(store).rounds(1)] == [0, 1, 2]
    taken = Counter(
        str(text) for entry in open_store(store).rounds(1) for text in entry.samples().text
    )
    first = [prompt.text for prompt in concept_prompts(PACK, PACK["bird"])[:12]]
    assert all(taken[text] >= 1 for text in first)


def test_an_interrupted_top_up_goes_on_where_it_stopped(store: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.zarr"
    run_small(whole, settings=FEW, limit=None)
    request = TopUp(("bird", "fish", "boat"), samples=5)

    def stop(progress: ExtractProgress) -> None:
        if progress.rows_done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        top_up(store, request, on_progress=stop)
    with pytest.raises(
        StoreIncompleteError,
        match=r"round_1 is not finished: run the `lenscache extract` that began",
    ):
        top_up(store, TopUp(("oven",)))
    top_up(store, request)
    top_up(whole, request)
    assert tree(store) == tree(whole)


def test_concepts_that_never_were_extracted_or_do_not_exist_are_refused(store: Path) -> None:
    with pytest.raises(
        PlanError, match="'dragon' asks for more samples and is not in pack 'small'"
    ):
        top_up(store, TopUp(("dragon",)))
    with pytest.raises(PlanError, match="'nature' was never extracted into"):
        top_up(store, TopUp(("nature",)))


def test_in_prompt_mode_nothing_is_sampled_again(tmp_path: Path) -> None:
    settings = replace(SETTINGS, mode="prompt", samples=N_PROMPTS - 1)
    run_small(tmp_path / "s", settings=settings, limit=None)
    assert top_up(tmp_path / "s", TopUp(("bird",)), settings).rows_run == 1
    with pytest.raises(
        PlanError, match=r"every prompt of the 1 concepts is in the store.*--templates.*--reuse"
    ):
        top_up(tmp_path / "s", TopUp(("bird",), origin="later"), settings)


def test_concepts_with_nothing_left_are_named_and_the_others_served(tmp_path: Path) -> None:
    settings = replace(SETTINGS, mode="prompt", samples=N_PROMPTS)
    short = replace(
        PACK["oven"], examples=(*PACK["oven"].examples, "A crust.", "A tin of hot rolls.")
    )
    pack = replace(PACK, concepts=tuple(short if c.id == "oven" else c for c in PACK.concepts))
    run_small(tmp_path / "s", settings=settings, limit=None, pack=pack)
    report = top_up(tmp_path / "s", TopUp(("bird", "oven")), settings, pack=pack)
    assert report.exhausted_concepts == ["bird"]
    assert report.rows_run == 2


def test_topping_up_gives_the_prompts_that_extracting_them_all_would_have_given() -> None:
    whole = plan_samples(PACK, [1])
    first = plan_samples(PACK, [1], samples=6)
    targets = list(first.concepts[: first.n_targets])
    taken = dict.fromkeys(first.texts, 1)
    more = plan_top_up(PackPrompts(PACK), targets, taken, samples=N_PROMPTS, resample=False)
    assert more is not None
    split = dict(zip(whole.texts, whole.split, strict=True))
    assert {*first.texts, *more.texts} == set(whole.texts)
    assert not {*first.texts} & {*more.texts}
    for plan in (first, more):
        assert [split[text] for text in plan.texts] == list(plan.split)


def test_the_prompts_of_a_pack_are_made_once_however_many_concepts_ask(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()

    def counted(pack: Any, concept: Any, *, seed: int = 0) -> Any:
        made[concept.id] += 1
        return concept_prompts(pack, concept, seed=seed)

    for module in (plan_module, planned_rounds):
        monkeypatch.setattr(module, "concept_prompts", counted, raising=False)
    asked = ("bird", "fish", "tree", "boat", "oven")
    plan_rounds(open_store(store), PACK, TopUp(asked, samples=2))
    assert sum(made.values()) <= len(PACK) + len(asked)


def test_what_a_request_adds_is_known_before_it_is_served(store: Path) -> None:
    request = TopUp(("bird", "fish"), samples=N_PROMPTS)
    assert check_top_up(open_store(store), PACK, TopUp(("bird",), samples=2)).lines() == []
    outlook = check_top_up(open_store(store), PACK, request)
    report = top_up(store, request)
    repeat = open_store(store).rounds(1)[1].samples().repeat
    assert report.rows == len(repeat) == outlook.new + outlook.again
    assert outlook.again == (repeat > 0).sum() == 12
    (line,) = outlook.lines()
    assert line.startswith("12 of the ")
    assert "They are no further samples" in line
    assert "--templates" in line


def test_a_top_up_with_another_pack_is_refused_without_a_model(store: Path) -> None:
    pack = replace(PACK, templates=("Tell me about {name}.",))
    with pytest.raises(StoreMismatchError, match=r"pack digest.*with --reuse"):
        check_top_up(open_store(store), pack, TopUp(("bird",)))


# --- hungry.json --------------------------------------------------------------------------------


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content", ["no json", "[]", "{}", '{"concepts": 3}', {"concepts": {}}, {"concepts": [1]}]
)
def test_what_is_no_hungry_file_is_one_line(content: Any, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"hungry\.json (is not the hungry\.json of a lens pack|names no concept)"
    ):
        read_top_up(write(tmp_path / "hungry.json", content))


def test_requests_of_other_states_of_the_store_are_other_requests(tmp_path: Path) -> None:
    base = {"concepts": {"bird": 12, "fish": 9}, "store": {"digest": "a"}}
    one = read_top_up(write(tmp_path / "a.json", base))
    other = read_top_up(write(tmp_path / "b.json", {**base, "store": {"digest": "b"}}))
    assert one.digest != other.digest
    assert (
        one.digest
        == read_top_up(
            write(tmp_path / "c.json", {**base, "concepts": {"fish": 9, "bird": 12}})
        ).digest
    )
    assert one.digest != read_top_up(tmp_path / "a.json", samples=5).digest


# --- fits read all complete rounds --------------------------------------------------------------


def open_rw(path: Path) -> Store:
    return open_store(path, mode="r+")


def test_fits_read_all_complete_rounds_and_leave_out_one_under_way(store: Path) -> None:
    alone = LensDataset(open_store(store), levels=[1])
    top_up(store, TopUp(("bird",), samples=N_PROMPTS))
    both = LensDataset(open_store(store), levels=[1])
    assert alone.rounds == ("layer_1/round_0",)
    assert both.rounds == ("layer_1/round_0", "layer_1/round_1")
    assert both.n_samples == alone.n_samples + N_PROMPTS
    assert both.rounds_left_out == ()
    open_rw(store).rounds(1)[1].unmark_block(0)
    unfinished = LensDataset(open_store(store), levels=[1])
    assert unfinished.rounds == ("layer_1/round_0",)
    assert unfinished.rounds_left_out == ("layer_1/round_1",)


def test_a_text_sampled_again_gives_a_completion_vector_and_no_second_prompt_vector(
    store: Path,
) -> None:
    top_up(store, TopUp(("bird",), samples=2 * N_PROMPTS))
    dataset = LensDataset(open_store(store), levels=[1])
    prompts = dataset.vector_sample[dataset.vector_phase == dataset.phases.index("prompt")]
    texts = [dataset.texts[row] for row in prompts]
    assert len(texts) == len(set(texts)) == len(set(dataset.texts))
    assert dataset.n_samples > len(texts)


def test_first_samples_are_never_copies_of_each_other(store: Path) -> None:
    top_up(store, TopUp(("bird",), samples=2 * N_PROMPTS))
    dataset = LensDataset(open_store(store), levels=[1])
    task = draw_task(dataset, "bird", lambda n: n)
    for rows in task.positives:
        texts = [dataset.texts[row] for row in rows]
        distinct = len(set(texts))
        assert len(set(texts[:distinct])) == distinct < len(texts)
    assert fit_lenses(dataset, FitSettings(model_layers=(2,)), concepts=["bird"]).lenses


def test_planning_needs_a_finished_first_round(tmp_path: Path) -> None:
    def stop(_: ExtractProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "s", settings=FEW, limit=None, on_progress=stop)
    with pytest.raises(StoreIncompleteError):
        plan_rounds(open_rw(tmp_path / "s"), PACK, TopUp(("bird",)))


def test_a_request_that_was_served_before_later_ones_is_not_served_again(store: Path) -> None:
    """Somebody tops up with the hungry.json of yesterday's lenses: its round is there, and so are
    later ones."""
    first, second = TopUp(("bird",), samples=2, origin="a"), TopUp(("bird",), samples=2, origin="b")
    assert top_up(store, first).rows_run > 0
    assert top_up(store, second).rows_run > 0
    before = len(open_store(store).rounds(1))
    assert top_up(store, first).rows_run == 0
    assert len(open_store(store).rounds(1)) == before
