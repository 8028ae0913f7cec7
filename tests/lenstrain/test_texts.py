"""Samples are texts: completions of one text are one sample wherever samples are counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.store.store import Store, open_store
from lenstrain.data.dataset import CALIBRATION, TEST, LensDataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import (
    SIGNAL_LAYER,
    direction_of,
    make_planted_store,
    plant_round,
    planted_pack,
)

SETTINGS = FitSettings(model_layers=(SIGNAL_LAYER,), max_overfit_gap=1.0, target_f1=0.5)
TIMES = 3
"""How often each text is sampled again."""


def sample_again(store: Store, pack: ConceptPack, levels: Sequence[int]) -> None:
    """Rounds that sample every text again, with the same activations."""
    for time in range(1, TIMES + 1):
        for level in levels:
            plan = plan_samples(pack, [level])
            again = dataclasses.replace(plan, repeat=np.full(len(plan), time, np.uint16))
            plant_round(store, level, time, again, sampling=f"again {time}")


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """The planted store with several completions of every text."""
    store = make_planted_store(tmp_path_factory.mktemp("texts") / "s")
    sample_again(store, planted_pack(), [0, 1])
    return LensDataset(open_store(store.path), phase="completion")


@pytest.fixture(scope="module")
def once(planted_store: Store) -> LensDataset:
    return LensDataset(planted_store, phase="completion")


def rows_of(dataset: LensDataset, concept: str) -> TaskRows:
    return TaskRows(dataset, draw_task(dataset, concept, SETTINGS.n_negatives), SETTINGS)


def logits_of(dataset: LensDataset, concept: str, split: int) -> NDArray[np.float64]:
    """Of a lens along the planted direction: the same for all completions of a text."""
    X = dataset.vectors(SIGNAL_LAYER, dataset.split_place)[dataset.split_slices[split]]
    return np.asarray(X @ direction_of(concept), np.float64).round(4)


def test_store_has_several_completions_of_every_text(
    once: LensDataset, repeated: LensDataset
) -> None:
    """Else the tests below would say little."""
    assert set(repeated.texts) == set(once.texts)
    assert repeated.n_samples == (TIMES + 1) * once.n_samples
    assert len(repeated.vector_sample) == repeated.n_samples


def test_text_number_is_that_of_the_text(repeated: LensDataset) -> None:
    number = repeated.text_number
    assert len(number) == repeated.n_samples
    by_number: dict[int, set[str]] = {}
    for n, text in zip(number.tolist(), repeated.texts, strict=True):
        by_number.setdefault(n, set()).add(text)
    assert all(len(texts) == 1 for texts in by_number.values())
    assert len(by_number) == len(set(repeated.texts))


@pytest.mark.parametrize("split", [CALIBRATION, TEST])
@pytest.mark.parametrize("concept", ["nature", "bird", "loom"])
def test_texts_are_counted_and_not_their_completions(
    once: LensDataset, repeated: LensDataset, concept: str, split: int
) -> None:
    single, several = rows_of(once, concept), rows_of(repeated, concept)
    more, one = (len(rows.task.positives[split]) for rows in (several, single))
    assert more == (TIMES + 1) * one > 0
    for which in ("all", "named", "unnamed"):
        assert several.n_texts(split, which) == single.n_texts(split, which)
    assert several.n_texts(split) == several.n_texts(split, "named") + several.n_texts(
        split, "unnamed"
    )
    assert several.n_graded == single.n_graded > 0


@pytest.mark.parametrize("concept", ["nature", "bird", "loom"])
def test_score_and_interval_are_those_of_the_texts(
    once: LensDataset, repeated: LensDataset, concept: str
) -> None:
    single, several = (
        rows_of(dataset, concept).ranked(TEST, logits_of(dataset, concept, TEST))
        for dataset in (once, repeated)
    )
    assert several.n_positive_texts == single.n_positive_texts < len(several.texts) / 2
    assert (several.n_texts, several.n_rows > several.n_texts) == (single.n_texts, True)
    assert several.score() == pytest.approx(single.score(), abs=1e-9)
    assert several.interval() == pytest.approx(single.interval(), abs=1e-6)


def test_test_size_of_a_lens_is_in_texts(once: LensDataset, repeated: LensDataset) -> None:
    single, several = (fit_lenses(dataset, SETTINGS).lenses for dataset in (once, repeated))
    for one, more in zip(single, several, strict=True):
        rows = rows_of(once, one.concept)
        assert (more.metrics.n_test, more.n_test_unnamed) == (
            one.metrics.n_test,
            one.n_test_unnamed,
        )
        assert (one.metrics.n_test, one.n_test_unnamed) == (rows.n_texts(TEST), rows.n_graded)
        assert more.ranking.n_positive == (TIMES + 1) * one.ranking.n_positive
        assert more.cut.n_texts == one.cut.n_texts == rows.n_texts(CALIBRATION)
        width, before = (x.score_interval.high - x.score_interval.low for x in (more, one))
        assert width > 0.7 * before  # no narrower than by a better lens
    metrics = make_lens_pack(fit_lenses(repeated, SETTINGS), repeated, SETTINGS)["bird"].metrics
    bird = rows_of(once, "bird")
    assert (metrics["n_test"], metrics["n_test_unnamed"]) == (bird.n_texts(TEST), bird.n_graded)


def test_graduation_asks_for_texts(repeated: LensDataset) -> None:
    texts = rows_of(repeated, "bird").n_texts(TEST)
    enough, too_many = (
        dataclasses.replace(SETTINGS, min_test_samples=n) for n in (texts, texts + 1)
    )
    assert len(draw_task(repeated, "bird", SETTINGS.n_negatives).positives[TEST]) > texts + 1
    (lens,) = fit_lenses(repeated, enough, concepts=["bird"]).lenses
    assert (lens.graduated, lens.hungry) == (True, False)
    (lens,) = fit_lenses(repeated, too_many, concepts=["bird"]).lenses
    assert (lens.graduated, lens.hungry) == (False, True)


def test_completions_of_two_texts_are_too_few_for_a_grade(tmp_path: Path) -> None:
    """Of two unnamed test texts, each sampled several times, there are many rows and no grade."""
    pack = planted_pack()
    bird = dataclasses.replace(pack["bird"], examples=pack["bird"].examples[:8])
    pack = planted_pack(changes=[bird])
    store = make_planted_store(tmp_path / "s", pack=pack, levels=[1])
    sample_again(store, pack, [1])
    dataset = LensDataset(open_store(store.path), phase="completion")
    rows = rows_of(dataset, "bird")
    (lens,) = fit_lenses(dataset, SETTINGS, concepts=["bird"]).lenses
    assert rows.sides(TEST).is_unnamed.sum() >= 4
    assert 1 <= lens.n_test_unnamed == rows.n_graded <= 2
    assert (lens.verdict.grade, lens.verdict.status) == (None, "ungraded")
    assert lens.verdict.reason.startswith("too few test texts without the concept's name")
