"""Fit lenses once more, on the calibration split as well, when nothing is left to choose.

    training and calibration texts --folds--> logits of each fold by lenses of the other folds
                                   --pooled--> noise floor, threshold, what probabilities rest on
    all of them --> the lens that is shipped, which the test split judges as it did before

A quarter of what a lens could learn from is in the calibration split. Cross-fitting makes both
uses of it: no row is judged by a lens that was fitted on it (Chernozhukov et al., Double/debiased
machine learning, 2018; `CalibratedClassifierCV(ensemble=False)` of scikit-learn does the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import (
    CALIBRATION,
    NO_ROWS,
    TEST,
    TRAIN,
    LensDataset,
    Rows,
    stable_seed,
)
from lenstrain.data.features import Features
from lenstrain.data.rows import HeldOut, TaskRows
from lenstrain.data.tasks import Task, draw_task
from lenstrain.families.contract import Fitted
from lenstrain.fit.adaptive import FitResult, features_of
from lenstrain.fit.controls import Controls
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.iterations import AdaptiveTraining
from lenstrain.fit.measure import Calibrated, decide, measure
from lenstrain.fit.settle import settle
from lenstrain.metrics.calibrators import CalibrationRows
from lenstrain.pack.lens import NoiseFloor
from lenstrain.settings import FitProgress, FitSettings, OnProgress

_FOLDS = 5
_KEPT = (
    *("graduated", "hungry", "trajectory", "beyond", "score_by_model_layer", "directions"),
    *("controls", "best_control", "rival"),
)
"""What the first fit says of a lens, and the second does not."""
_ALL = 10**9


def refit_lenses(
    dataset: LensDataset,
    settings: FitSettings,
    result: FitResult,
    *,
    jobs: int | None = None,
    on_progress: OnProgress = lambda _: None,
) -> FitResult:
    """The lenses of a fit, fitted on the calibration split as well.

    Model layers, strengths and sample counts stay as they were chosen, and so do graduation,
    trajectory and controls. Lenses that were refined stay as they are.
    """
    groups: dict[tuple[int, ...], list[FittedLens]] = {}
    for lens in result.lenses:
        if not lens.refined:
            groups.setdefault(lens.model_layers, []).append(lens)
    new: dict[str, FittedLens] = {}
    for done, (model_layers, lenses) in enumerate(sorted(groups.items())):
        on_progress(FitProgress("refitting", done, len(groups)))
        group = _Group(dataset, settings, model_layers, {lens.concept: lens for lens in lenses})
        new |= {lens.concept: lens for lens in group.refit(jobs)}
    lenses = [new.get(lens.concept, lens) for lens in result.lenses]
    return replace(result, lenses=lenses, calibration=settle(dataset, lenses, settings))


@dataclass
class _Pooled:
    """What lenses of other folds make of the rows of one concept."""

    rows: TaskRows
    """Of a dataset whose calibration split holds the rows of all folds."""
    own: NDArray[np.float64]
    """(its own rows there,) logits, in deviations above the noise floor of the lens of each."""
    sampled: NDArray[np.float64]
    """The same of (rows of `LensDataset.sampled_rows`,)."""
    noise: list[NoiseFloor]
    """Of the lens of each fold."""

    @property
    def held(self) -> HeldOut:
        """Its own rows."""
        return self.rows.drawn(CALIBRATION)

    def calibrated(self, prevalence: float) -> Calibrated:
        """What the folds say of the lens that is fitted on all of them."""
        held, texts = self.held, self.rows.dataset.text_number
        noise = NoiseFloor(*np.mean(self.noise, axis=0).tolist())
        kind = self.rows.counted(CALIBRATION)
        ranked = self.rows.ranked_in_sample(CALIBRATION, self.own[held.y], self.sampled, kind)
        return Calibrated(
            noise,
            CalibrationRows(held.y, self.own, texts[held.samples]),
            ranked.score(prevalence),
            self.rows.n_texts(CALIBRATION),
        )

    def threshold(self, settings: FitSettings, noise: NoiseFloor) -> float:
        """The decision threshold of the lens that is fitted on all folds."""
        held, logits = self.held, self.own
        if settings.fpr is not None:  # nearly all rows count, or a sample of them
            negative = self.sampled[self.rows.sampled_negatives(CALIBRATION)]
            logits = np.concatenate([logits[held.y], negative])
            y = np.arange(len(logits)) < held.y.sum()
            held = HeldOut(NO_ROWS, y, NO_ROWS)
        return noise.mean + noise.unit * decide(held, logits, settings)


class _Group:
    """Lenses that read the same model layers."""

    def __init__(
        self,
        dataset: LensDataset,
        settings: FitSettings,
        model_layers: tuple[int, ...],
        lenses: Mapping[str, FittedLens],
    ) -> None:
        self.dataset, self.model_layers, self.lenses = dataset, model_layers, lenses
        self.settings = settings
        self.fold = _folds(dataset, settings.seed)
        self.drawn = {c: draw_task(dataset, c, settings.n_negatives) for c in lenses}
        self.pooled_data = self._split(CALIBRATION)

    def refit(self, jobs: int | None) -> list[FittedLens]:
        """The lenses, fitted on all folds."""
        pooled = {concept: self._nothing_yet(concept) for concept in self.lenses}
        for fold in range(_FOLDS):
            self._take_in(fold, pooled, jobs)
        found = []
        for features, tasks, fits in self._fits(self._split(TRAIN), jobs):
            lenses = [(fit, number) for fit in fits for number in range(len(fit.converged))]
            test = features.logits(fits, TEST)
            natural = features.natural_logits([fit.some([number]) for fit, number in lenses])
            for task, lens, *logits in zip(tasks, lenses, test, natural, strict=True):
                its = pooled[task.task.concept]
                found.append(self._finish(task, features, its, *lens, *logits))
        return found

    def _finish(
        self,
        task: TaskRows,
        features: Features,
        its: _Pooled,
        fit: Fitted,
        number: int,
        test: NDArray[np.float64],
        natural: NDArray[np.float64],
    ) -> FittedLens:
        old = self.lenses[task.task.concept]
        calibrated = its.calibrated(self.settings.prevalence)
        new = measure(
            task,
            features,
            fit.ship(number, features.standardizer),
            calibrated,
            test,
            natural,
            old.trajectory[-1],
            its.threshold(self.settings, calibrated.noise),
            self.settings,
            model_layers=self.model_layers,
            C=old.metrics.C,
            converged=bool(fit.converged[number]),
        )
        new = replace(new, **{name: getattr(old, name) for name in _KEPT})
        if old.rival is not None:
            seed = stable_seed("lead", old.concept)
            new.lead = new.graded.lead_over(old.rival, self.settings.prevalence, seed=seed)
        return new

    def _nothing_yet(self, concept: str) -> _Pooled:
        drawn = self.drawn[concept]
        positives, negatives = (
            (NO_ROWS, np.concatenate(rows[:TEST]), rows[TEST])
            for rows in (drawn.positives, drawn.negatives)
        )
        task = Task(concept, positives, negatives, drawn.related)
        rows = TaskRows(self.pooled_data, task, self.settings)
        n_own = len(rows.drawn(CALIBRATION).rows)
        sampled = np.full(len(self.pooled_data.sampled_rows[CALIBRATION]), np.nan)
        return _Pooled(rows, np.full(n_own, np.nan), sampled, [])

    def _take_in(self, fold: int, pooled: Mapping[str, _Pooled], jobs: int | None) -> None:
        """Fit lenses on all folds but one, and note what they make of that one."""
        data = self._split(TRAIN, fold)
        here, there = data.split_slices[CALIBRATION], self.pooled_data.split_slices[CALIBRATION]
        place = self.pooled_data.split_place[data.split_order[here]] - there.start
        number = np.full(there.stop - there.start, -1)  # of each pooled row in this fold
        number[place] = np.arange(len(place))
        sampled = number[self.pooled_data.sampled_rows[CALIBRATION]]
        for features, tasks, fits in self._fits(data, jobs):
            for task, logits in zip(tasks, features.logits(fits, CALIBRATION), strict=True):
                its = pooled[task.task.concept]
                negative = logits[its.rows.sides(CALIBRATION).is_negative[place]]
                noise = NoiseFloor(float(negative.mean()), float(negative.std()))
                signal, own = (logits - noise.mean) / noise.unit, number[its.held.rows]
                its.own[own >= 0] = signal[own[own >= 0]]
                its.sampled[sampled >= 0] = signal[sampled[sampled >= 0]]
                its.noise.append(noise)

    def _split(self, to: int, held_out: int = -2) -> LensDataset:
        """The dataset with all folds in one split, but one of them in the calibration split."""
        split = np.where(self.fold >= 0, to, self.dataset.split).astype(np.uint8)
        split[self.fold == held_out] = CALIBRATION
        return self.dataset.with_splits(split)

    def _fits(
        self, data: LensDataset, jobs: int | None
    ) -> Iterator[tuple[Features, list[TaskRows], list[Fitted]]]:
        """Fits of all lenses on the training split of `data`, a wave at a time."""
        once = replace(
            self.settings,
            initial_samples=_ALL,
            max_samples=_ALL,
            max_iterations=1,
            min_iterations=1,
            negatives_per_positive=_ALL,
            max_negatives=_ALL,
            beyond_graduation=False,
        )
        features = features_of(data, self.model_layers, self.settings)[0]
        tasks = [TaskRows(data, self._task(c, data.split), once) for c in self.lenses]
        controls = Controls(data, once)
        training = AdaptiveTraining(features, tasks, self.model_layers, [once], controls, jobs, {})
        strengths = [self.lenses[task.task.concept].metrics.C for task in training.tasks]
        known = [np.nan if C is None else C for C in strengths]
        for chosen, fits in training.fit_once(known):
            yield features, chosen, fits

    def _task(self, concept: str, split: NDArray[np.uint8]) -> Task:
        """What a lens learns: the samples that it took up, and those of the calibration split."""
        drawn, n_negatives = self.drawn[concept], self.settings.n_negatives
        n = {TRAIN: self.lenses[concept].n_samples, CALIBRATION: len(drawn.positives[CALIBRATION])}

        def learned(rows: Sequence[Rows], n: Mapping[int, int]) -> tuple[Rows, Rows, Rows]:
            taken = np.concatenate([rows[s][: n[s]] for s in (TRAIN, CALIBRATION)])
            return _of_split(taken, split), NO_ROWS, rows[TEST]

        negatives = {s: n_negatives(count) for s, count in n.items()}
        both = learned(drawn.positives, n), learned(drawn.negatives, negatives)
        return Task(concept, *both, drawn.related)


def _of_split(rows: Rows, split: NDArray[np.uint8]) -> Rows:
    return np.asarray(rows[split[rows] == TRAIN])


def _folds(dataset: LensDataset, seed: int) -> NDArray[np.intp]:
    """(samples,) the fold of each training and calibration sample, -1 of test samples.

    Samples of a text are in one fold, and the texts of a concept are spread evenly.
    """
    first = np.full(dataset.n_samples, len(dataset.positive_rows))
    for number, rows in enumerate(dataset.positive_rows.values()):
        first[rows] = np.minimum(first[rows], number)
    rng = np.random.default_rng(stable_seed("folds", seed, ""))
    texts, example = np.unique(dataset.text_number, return_index=True)
    in_order = np.lexsort((rng.random(len(texts)), first[example]))
    fold = np.empty(len(texts), np.intp)
    fold[in_order] = np.arange(len(texts)) % _FOLDS
    return np.where(dataset.split == TEST, -1, fold[dataset.text_number])
