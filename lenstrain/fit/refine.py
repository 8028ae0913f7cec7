"""Refine lenses: fit once more, with samples of the concepts that set them off as extra negatives.

    FittedLens --check on the calibration split--> confusers --fit again--> FittedLens
                                                         kept if its calibration score is better

The calibration split decides which concepts confuse a lens, and whether the second fit is better.
The test split only reports the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

import numpy as np

from lenstrain.compare.rivals import LensCheck
from lenstrain.data.dataset import TRAIN, LensDataset, Rows
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.fit.adaptive import FitResult, fit_again
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.settle import settle
from lenstrain.settings import FitProgress, FitSettings, OnProgress

_MOST_EXTRA = 100  # samples of all confusers together
# A lens is refined that is first on this share of its own samples, or less.
_RARELY_FIRST = 0.5


def refine_lenses(
    dataset: LensDataset,
    settings: FitSettings,
    result: FitResult,
    checks: Mapping[str, LensCheck],
    *,
    jobs: int | None = None,
    on_progress: OnProgress = lambda _: None,
) -> FitResult:
    """Refit lenses that others of their level outrank on their own samples, or that fire
    everywhere.

    Parameters
    ----------
    checks : `check_pack` of these lenses on the calibration split, by concept.

    Returns
    -------
    The lenses, the better ones in place of the old; `FittedLens.refined` names the confusers.
    """
    before = {lens.concept: lens for lens in result.lenses}
    confusers = {name: check.confusers for name, check in checks.items() if _needs_it(check)}
    tasks: dict[tuple[int, ...], list[TaskRows]] = {}
    for lens in (lens for lens in result.lenses if lens.concept in confusers):
        rows = _with_confusers(dataset, settings, lens, confusers[lens.concept])
        if rows is not None:
            tasks.setdefault(lens.model_layers, []).append(rows)
    strengths = {concept: lens.metrics.C for concept, lens in before.items()}
    better: dict[str, FittedLens] = {}
    for done, (model_layers, here) in enumerate(sorted(tasks.items())):
        on_progress(FitProgress("refining", done, len(tasks)))
        for lens in fit_again(dataset, here, model_layers, settings, strengths, jobs=jobs):
            old = before[lens.concept]
            if lens.calibration_score > old.calibration_score:
                better[lens.concept] = _in_place_of(old, lens, confusers[lens.concept], settings)
    lenses = [better.get(lens.concept, lens) for lens in result.lenses]
    return replace(result, lenses=lenses, calibration=settle(dataset, lenses, settings))


def _needs_it(check: LensCheck) -> bool:
    return bool(check.confusers) and (check.first <= _RARELY_FIRST or check.fires_everywhere)


def _in_place_of(
    old: FittedLens, new: FittedLens, confusers: Sequence[str], settings: FitSettings
) -> FittedLens:
    """The new lens with the history of the old. Refining is one more iteration: it may graduate."""
    graduated = old.graduated or settings.graduates(
        new.trajectory[-1], len(old.trajectory) + 1, is_last=True
    )
    return replace(
        new,
        graduated=graduated,
        hungry=old.hungry and not graduated,
        refined=tuple(confusers),
        trajectory=old.trajectory,
        beyond=old.beyond,
        score_by_model_layer=old.score_by_model_layer,
    )


def _with_confusers(
    dataset: LensDataset, settings: FitSettings, lens: FittedLens, confusers: Sequence[str]
) -> TaskRows | None:
    """The rows of a lens's last iteration, and those of its confusers in turn; None if they have
    none."""
    task = draw_task(dataset, lens.concept, settings.n_negatives)
    n = lens.n_samples
    used = task.negatives[TRAIN][: settings.n_negatives(n)]
    taboo = np.concatenate([task.related, *task.positives, used])
    pools = [_training_samples(dataset, confuser, taboo) for confuser in confusers]
    in_turn = [row for row in chain.from_iterable(zip_longest(*pools)) if row is not None]
    extra = np.array(list(dict.fromkeys(in_turn))[:_MOST_EXTRA], np.intp)
    if not len(extra):
        return None
    negatives = np.concatenate([used, extra])
    changed = Task(
        task.concept,
        (task.positives[TRAIN][:n], *task.positives[1:]),
        (negatives, *task.negatives[1:]),
        task.related,
    )
    once = replace(
        settings,
        initial_samples=n,
        max_samples=n,
        max_iterations=1,
        min_iterations=1,
        negatives_per_positive=len(negatives) / n,
        max_negatives=len(negatives),
    )
    return TaskRows(dataset, changed, once)


def _training_samples(dataset: LensDataset, concept: str, taboo: Rows) -> list[int]:
    rows = dataset.positives(concept)
    return [int(row) for row in rows[dataset.split[rows] == TRAIN] if row not in taboo]
