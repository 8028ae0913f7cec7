"""Fitting while extraction runs: provisional lenses first, in the end what a fit afterwards
gives."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lenscache.concepts.plan import plan_samples
from lenscache.store.round import Round
from lenscache.store.store import Store, create_store, open_store
from lenstrain.compare.two_packs import open_for
from lenstrain.data.dataset import LensDataset
from lenstrain.errors import LensPackExistsError, SettingsError, StalledError, TooFewSamplesError
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.follow import FollowProgress, FollowSettings, fit_following, is_superseded
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.fit.train import train
from lenstrain.pack.pack import LensPack
from lenstrain.report import make_report
from lenstrain.sweeps.grid import Grid
from tests.lenstrain.conftest import make_planted_store, plant_round, planted_header, planted_pack

PACK = planted_pack()
SETTINGS = FitSettings(model_layers=(1,))
EAGER = FollowSettings(poll_s=0.01, patience_s=30)


def begin(path: Path, n_blocks: int = 0) -> Store:
    """A store whose level 1 is laid out and has some blocks."""
    store = create_store(path, planted_header(PACK), PACK)
    plant_round(store, 1, 0, plan_samples(PACK, [1]), n_blocks=n_blocks, verified=False)
    return store


def finish(store: Store) -> None:
    plant_round(store, 1, 0, plan_samples(PACK, [1]))


def rows_in_complete_blocks(target: Round) -> set[int]:
    return {
        row
        for b in np.flatnonzero(target.complete_blocks())
        for row in range(*target.rows(int(b)).indices(10**9))
    }


def weights_of(pack: LensPack) -> dict[str, bytes]:
    return {lens.concept: lens.weight.tobytes() for lens in pack}


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3])
def test_a_partial_dataset_has_the_concepts_of_which_every_sample_is_there(
    n_blocks: int, tmp_path: Path
) -> None:
    store = begin(tmp_path / "s", n_blocks)
    target = store.rounds(1)[0]
    done = rows_in_complete_blocks(target)
    labels = target.labels()
    ready = [
        concept
        for i, concept in enumerate(target.targets)
        if set(labels.sample[labels.concept == i].tolist()) <= done
    ]
    dataset = LensDataset(store, partial=True)
    assert list(dataset.concepts) == ready
    assert dataset.n_samples == len(done)
    assert set(dataset.texts) == {str(target.samples().text[row]) for row in done}


def test_vectors_of_a_partial_dataset_are_those_of_its_samples(tmp_path: Path) -> None:
    store = begin(tmp_path / "s", 3)
    target = store.rounds(1)[0]
    open_store(tmp_path / "s", mode="r+").rounds(1)[0].unmark_block(1)
    dataset = LensDataset(store, partial=True)
    finish(store)
    row_of = {str(text): row for row, text in enumerate(target.samples().text)}
    X = dataset.vectors(1)
    for phase_number, phase in enumerate(dataset.phases):
        here = dataset.vector_phase == phase_number
        rows = [row_of[dataset.texts[sample]] for sample in dataset.vector_sample[here]]
        np.testing.assert_array_equal(X[here], target.read(phase, 1)[rows])


def test_what_was_not_complete_when_the_dataset_was_opened_stays_out(tmp_path: Path) -> None:
    store = begin(tmp_path / "s", 1)
    dataset = LensDataset(store, partial=True)
    before = (dataset.concepts, dataset.n_samples)
    finish(store)
    assert (dataset.concepts, dataset.n_samples, len(dataset.vectors(1))) == (
        *before,
        len(dataset.vector_sample),
    )


@pytest.mark.parametrize(
    "settings", [SETTINGS, FitSettings(family="discriminant", model_layers=(1,), unit_norm=False)]
)
def test_following_a_growing_store_ends_with_what_a_fit_afterwards_gives(
    settings: FitSettings, tmp_path: Path
) -> None:
    store = begin(tmp_path / "s")
    seen: list[FollowProgress] = []
    packs: list[set[str]] = []

    def extract() -> None:
        for n_blocks in itertools.count(1):
            before = len(seen)
            plant_round(store, 1, 0, plan_samples(PACK, [1]), n_blocks=n_blocks, verified=False)
            while len(seen) == before:
                time.sleep(0.005)
            time.sleep(0.15)
            if n_blocks == store.rounds(1)[0].n_blocks:
                return finish(store)
        return None

    def watch(progress: FollowProgress) -> None:
        seen.append(progress)
        if (tmp_path / "out" / "lenses.json").exists():
            packs.append({lens.concept for lens in LensPack.load(tmp_path / "out")})

    writer = threading.Thread(target=extract)
    writer.start()
    pack = fit_following(
        tmp_path / "s", tmp_path / "out", settings, waiting=EAGER, on_progress=watch
    )
    writer.join()
    dataset = LensDataset(open_store(tmp_path / "s"))
    afterwards = make_lens_pack(fit_lenses(dataset, settings), dataset, settings)
    assert weights_of(pack) == weights_of(afterwards)
    assert LensPack.load(tmp_path / "out").provenance == afterwards.provenance
    assert "provisional" not in pack.provenance
    assert any(0 < len(some) < len(pack) for some in packs), (
        "no lens appeared before the store was complete"
    )
    assert all(one <= other for one, other in itertools.pairwise(packs))


def test_a_complete_store_is_fitted_at_once(tmp_path: Path) -> None:
    make_planted_store(tmp_path / "s", pack=PACK)
    pack = fit_following(
        tmp_path / "s", tmp_path / "out", SETTINGS, concepts=["bird"], waiting=EAGER
    )
    assert [lens.concept for lens in pack] == ["bird"]


def test_an_extraction_that_stands_still_is_given_up_and_the_provisional_lenses_kept(
    tmp_path: Path,
) -> None:
    store = begin(tmp_path / "s", 3)
    assert LensDataset(store, partial=True).concepts
    with pytest.raises(
        StalledError,
        match=r"3 of \d+ blocks are complete and none was added for 1 s, \d+ provisional",
    ):
        fit_following(
            tmp_path / "s",
            tmp_path / "out",
            SETTINGS,
            waiting=FollowSettings(poll_s=0.01, patience_s=1),
        )
    kept = LensPack.load(tmp_path / "out")
    assert len(kept) > 0
    assert kept.provenance["provisional"] is True
    assert kept.provenance.calibration is None


def test_a_follow_that_ended_early_goes_on_with_the_same_call(tmp_path: Path) -> None:
    store = begin(tmp_path / "s", 3)
    impatient = FollowSettings(poll_s=0.01, patience_s=0.2)
    again = partial(fit_following, tmp_path / "s", tmp_path / "out", SETTINGS)
    for _ in range(2):
        with pytest.raises(StalledError, match="Run both again, as they were, to go on"):
            again(waiting=impatient)
    assert LensPack.load(tmp_path / "out").provenance.provisional
    finish(store)
    pack = again(waiting=EAGER)
    assert LensPack.load(tmp_path / "out").provenance == pack.provenance
    assert pack.provenance.provisional is None
    assert pack.provenance.extracted is None
    with pytest.raises(LensPackExistsError):  # what is whole is not replaced
        again(waiting=EAGER)


def test_provisional_lenses_of_another_store_are_not_replaced(tmp_path: Path) -> None:
    begin(tmp_path / "s", 3)
    other = dataclasses.replace(planted_header(PACK), model_fingerprint="another")
    create_store(tmp_path / "other", other, PACK)
    with pytest.raises(StalledError):
        fit_following(
            tmp_path / "s",
            tmp_path / "out",
            SETTINGS,
            waiting=FollowSettings(poll_s=0.01, patience_s=0.2),
        )
    assert is_superseded(tmp_path / "out", tmp_path / "s")
    assert not is_superseded(tmp_path / "out", tmp_path / "other")
    assert not is_superseded(tmp_path / "nothing", tmp_path / "s")
    with pytest.raises(LensPackExistsError):
        fit_following(tmp_path / "other", tmp_path / "out", SETTINGS, waiting=EAGER)


def test_provisional_lenses_say_of_how_much_and_can_be_reported_with_their_store(
    tmp_path: Path,
) -> None:
    store = begin(tmp_path / "s", 3)
    n_blocks = store.rounds(1)[0].n_blocks
    dataset = LensDataset(store, partial=True)
    pack = train(dataset, SETTINGS)
    pack.save(tmp_path / "out")
    loaded = LensPack.load(tmp_path / "out")
    assert loaded.provenance.provisional is True
    assert loaded.provenance.extracted == {
        "blocks": 3,
        "of_blocks": n_blocks,
        "concepts": len(dataset.concepts),
        "of_concepts": 9,
    }
    for _ in range(2):  # while it grows, and when it is complete
        report = make_report(loaded, open_for(loaded, str(tmp_path / "s")))
        assert report.has_store
        assert report.about["provisional"]
        assert any(detail.best for detail in report.details)
        finish(store)


def test_a_partial_fit_of_a_whole_store_is_not_marked(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "s", pack=PACK)
    whole, part = (train(LensDataset(store, partial=p), SETTINGS) for p in (False, True))
    assert part.provenance == whole.provenance
    assert "provisional" not in part.provenance


def test_a_part_without_a_complete_concept_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "s", 0)
    grid = Grid(str(tmp_path / "s"), SETTINGS, ("linear",), (0.9,), partial=True)
    with pytest.raises(TooFewSamplesError, match=r"0 of \d+ blocks.*not one of 9 concepts"):
        grid.open()


def test_a_concept_that_is_not_complete_is_refused_by_name(tmp_path: Path) -> None:
    dataset = LensDataset(begin(tmp_path / "s", 3), partial=True)
    missing = next(c for c in ("loom", "oven", "boat") if c not in dataset.concepts)
    with pytest.raises(SettingsError, match=f"{missing}.*or not with all of its samples yet"):
        fit_lenses(dataset, SETTINGS, concepts=[missing])


def test_a_folder_that_is_taken_is_refused_before_waiting(tmp_path: Path) -> None:
    begin(tmp_path / "s")
    (tmp_path / "out").mkdir()
    with pytest.raises(LensPackExistsError):
        fit_following(tmp_path / "s", tmp_path / "out", SETTINGS, waiting=EAGER)


def test_a_level_that_is_not_there_is_refused_before_waiting(tmp_path: Path) -> None:
    begin(tmp_path / "s")
    with pytest.raises(SettingsError, match="level 7 is not in the store"):
        fit_following(tmp_path / "s", tmp_path / "out", SETTINGS, levels=[7], waiting=EAGER)
