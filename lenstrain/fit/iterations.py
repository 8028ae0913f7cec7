"""The iterations of all concepts that read the same features, in step.

    wave of concepts --fit, a chunk of them to a core--> lenses of one iteration
                     --one product with held-out rows, shared out by rows--> logits
                     --judge--> who goes on; --measure, a lens to a core--> who has a lens

A chunk is what a core fits at once: the products of its rows are computed once, and every iteration
is a batch of small problems. A wave is as many chunks as fit in memory. Its concepts take each
iteration together, since a product of all held-out rows costs hardly less with the last four lenses
of a chunk than with all sixty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby, repeat
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, stable_seed
from lenstrain.data.features import Features
from lenstrain.data.rows import HeldOut, TaskRows, training_classes
from lenstrain.families.contract import Fitted, Job, PathTrainer, Trainer
from lenstrain.families.kinds import FAMILIES
from lenstrain.families.linear import LinearFit
from lenstrain.fit.choice import best_for_each, calibration_scores, settled
from lenstrain.fit.controls import Controls, random_directions
from lenstrain.fit.directions import steering_directions
from lenstrain.fit.fitted import FittedLens
from lenstrain.fit.measure import Calibrated, decide, deciding, judge, measure
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration
from lenstrain.parallel import chunks_by_size, cores
from lenstrain.settings import FitSettings

_WAVE_BYTES = 2**30  # of rows and Gram matrices
_COLUMNS = 256  # lenses in one product: on 45,000 rows of a split their logits are 92 MB
_PIECE_BYTES = 2**22  # of float32 systems that a core solves before it takes the next
BACKGROUND_WEIGHT = 0.25
"""Share of texts of no concept in the mean negative (`benchmarks/quality.py`)."""
BACKGROUND_WEIGHT_OF_NAMES = 0.1
"""The same of a concept whose training texts all name it."""
_SOME = 16  # lenses that a core takes at a time


class IterationTime(NamedTuple):
    """What an iteration cost, over all concepts that got to it."""

    fits: int
    seconds: float
    """Of one core: fit and judge."""


class _Run:
    """One concept on its way: what was recorded, and for which of the settings it has a lens."""

    def __init__(self, rows: TaskRows, wanted: Sequence[FitSettings]) -> None:
        self.rows, self.wanted, self._n_test = rows, wanted, rows.n_texts(TEST)
        self.steps: list[Iteration] = []
        self.stopped: dict[int, int] = {}  # number of the settings: iteration
        self.lenses: dict[int, FittedLens] = {}  # by iteration
        # A concept that satisfies these settings has satisfied every other mode before.
        self._strictest = replace(
            max(wanted, key=lambda s: s.target_f1), validation="blocking", min_grade=Grade.A
        )
        self._strictest_met = not wanted[0].beyond_graduation

    def record(self, step: Iteration) -> bool:
        """Take down an iteration; true if it is the last for any of the settings."""
        self.steps.append(step)
        iteration = len(self.steps)
        self._strictest_met |= self._strictest.graduates(
            step, iteration, is_last=self._is_last, n_test=self._n_test
        )
        ended = [
            number
            for number, settings in enumerate(self.wanted)
            if number not in self.stopped
            and (self._is_last or settings.graduates(step, iteration, n_test=self._n_test))
        ]
        self.stopped |= dict.fromkeys(ended, iteration)
        return bool(ended)

    @property
    def _is_last(self) -> bool:
        return len(self.steps) == self.rows.last_iteration

    @property
    def is_through(self) -> bool:
        """Whether no more iterations are needed."""
        return self._is_last or (len(self.stopped) == len(self.wanted) and self._strictest_met)

    def result(self) -> list[FittedLens]:
        """The lens for each of the settings."""
        return [self._lens(settings, self.stopped[i]) for i, settings in enumerate(self.wanted)]

    def _lens(self, settings: FitSettings, end: int) -> FittedLens:
        def graduates(step: Iteration, number: int) -> bool:
            is_last = number == self.rows.last_iteration
            return settings.graduates(step, number, is_last=is_last, n_test=self._n_test)

        steps = [
            step._replace(graduated=graduates(step, number))
            for number, step in enumerate(self.steps, start=1)
        ]
        graduated, used = steps[end - 1].graduated, steps[end - 1].n_samples
        is_spent = used == len(self.rows.task.positives[TRAIN])
        return replace(
            self.lenses[end],
            graduated=graduated,
            hungry=not graduated and is_spent and used < settings.max_samples,
            trajectory=steps[:end],
            beyond=steps[end:],
        )


class _End(NamedTuple):
    """Where the training of a concept ended for some of the settings."""

    lens: FittedLens
    place: int
    """Of the concept in its chunk."""
    n_rows: int
    """Rows it learned."""


@dataclass
class _Chunk:
    """Concepts that a core fits at once."""

    trainer: Trainer
    runs: list[_Run]
    C: list[float]
    """Inverse L2 strength of each; NaN in families without."""
    ends: list[_End] = field(default_factory=list)


class _Going(NamedTuple):
    """Those of a chunk that need more iterations."""

    chunk: _Chunk
    places: list[int]
    """Of the concepts in the chunk."""

    def n_rows(self, iteration: int) -> list[int]:
        """Rows that each learns."""
        return [self.chunk.runs[place].rows.training.ends[iteration - 1] for place in self.places]


@dataclass
class _Fit:
    """What a chunk's concepts that go on got in one iteration."""

    chunk: _Chunk
    places: list[int]
    """Of the concepts in the chunk."""
    n_rows: list[int]
    fitted: Fitted

    def run(self, number: int) -> _Run:
        """The concept of a lens."""
        return self.chunk.runs[self.places[number]]


class _Ended(NamedTuple):
    """A lens that is the last of its concept for some of the settings."""

    fit: _Fit
    number: int
    """Of the lens in the fit."""
    threshold: float


class AdaptiveTraining:
    """The iterations of all tasks that read the same features, for settings with different target
    F1.

    Parameters
    ----------
    on_through : called with the lenses of concepts that need no more iterations; they have no
        controls yet.
    """

    def __init__(
        self,
        features: Features,
        tasks: Sequence[TaskRows],
        model_layers: tuple[int, ...],
        wanted: Sequence[FitSettings],
        controls: Controls,
        jobs: int | None,
        skipped: dict[str, str],
        on_through: Callable[[list[list[FittedLens]]], None] = lambda _: None,
    ) -> None:
        self.features, self.model_layers, self.controls = features, model_layers, controls
        self.wanted, self.settings, self.jobs = wanted, wanted[0], jobs
        self._on_through = on_through
        its = settled(self.settings, features.dataset.n_concepts)
        self.family = FAMILIES[its.family]
        self.tasks = [rows for task in tasks if (rows := self._usable(task, skipped)) is not None]
        self.waves = self._waves()
        self._kept: list[Trainer] = []
        self._shared: Any = None

    def run(
        self, times: dict[int, IterationTime], strengths: Sequence[float] | None = None
    ) -> Iterator[list[FittedLens]]:
        """The lenses of each concept, one for each of the settings; `times` gets what each
        iteration cost."""
        with cores(self.jobs) as pool:
            self._shared = self._share(pool)
            self._directions = random_directions(self.features, self.settings.seed)
            strengths = strengths or self._choose_strengths(pool)
            for wave in self.waves:
                for found in self._train(self._chunks(wave, strengths, pool), pool, times):
                    yield from found

    def fit_once(self, strengths: Sequence[float]) -> Iterator[tuple[list[TaskRows], list[Fitted]]]:
        """Fit each task on the rows of its first iteration, and judge none: the tasks of a wave,
        and their fits in the same order."""
        with cores(self.jobs) as pool:
            self._shared = self._share(pool)
            for wave in self.waves:
                chunks = self._chunks(wave, strengths, pool)
                going = [_Going(chunk, list(range(len(chunk.runs)))) for chunk in chunks]
                fits = [*pool.map(self._fit, _pieces(going, 1), repeat(1))]
                tasks = [fit.run(number).rows for fit in fits for number in range(len(fit.places))]
                yield tasks, [fit.fitted for fit in fits]

    def _share(self, pool: Executor) -> Any:
        """What the concepts share, of a family in which they share something."""
        if self.family.share is None:
            return None
        training, dataset = self.features.dataset.split_slices[TRAIN], self.features.dataset
        classes = training_classes(dataset, self.features.finite[training])
        n_parts = len(self.model_layers)
        return self.family.share(self.features.Z[training], classes, n_parts, pool.map)

    def _waves(self) -> list[list[list[int]]]:
        """Numbers of tasks in chunks, those in waves."""
        lengths = [len(task) for task in self.tasks]
        per_concept = self.family.bytes_per_feature * self.features.Z.shape[1]
        waves: list[list[list[int]]] = []
        room = 0
        for chunk in chunks_by_size(lengths, self.features.row_bytes, per_concept):
            width = lengths[chunk[0]]
            size = len(chunk) * (per_concept + width * (self.features.row_bytes + 8 * width))
            if not waves or size > room:
                waves.append([])
                room = _WAVE_BYTES
            waves[-1].append(chunk)
            room -= size
        return waves

    def _chunks(
        self, wave: list[list[int]], strengths: Sequence[float], pool: Executor
    ) -> list[_Chunk]:
        trainers, self._kept = self._kept or self._trainers(wave, pool), []
        chunks = []
        for trainer, here in zip(trainers, wave, strict=True):
            runs = [_Run(self.tasks[i], self.wanted) for i in here]
            chunks.append(_Chunk(trainer, runs, [strengths[i] for i in here]))
        return chunks

    def _trainers(self, wave: list[list[int]], pool: Executor) -> list[Trainer]:
        def trainer(chunk: list[int]) -> Trainer:
            here = [self.tasks[i] for i in chunk]
            rows, targets = [t.training.rows for t in here], [t.training.targets for t in here]
            seeds = [stable_seed("lens", self.settings.seed, t.task.concept) for t in here]
            apart = [t.apart for t in here] if self._shared is not None else []
            n, weights = len(self.model_layers), [self._background_weight(task) for task in here]
            its = self._shared, self.features.background, weights
            return self.family.trainer(Job(self.features.Z, rows, targets, seeds, apart, n, *its))

        return [*pool.map(trainer, wave)]

    def _background_weight(self, task: TaskRows) -> float:
        if self.settings.background_weight is not None:
            return self.settings.background_weight
        return BACKGROUND_WEIGHT if task.n_texts(TRAIN, "unnamed") else BACKGROUND_WEIGHT_OF_NAMES

    def _choose_strengths(self, pool: Executor) -> list[float]:
        """The L2 strength of each task: the best of the family's on the calibration split.

        With a dozen samples they hardly differ. With hundreds of labelled texts a weak penalty
        costs 0.02-0.05 of AUROC (`benchmarks/labelled.py`), so it is chosen as the model layer is.
        Of equal ones, the strongest penalty is chosen.
        """
        if not self.family.strengths or self.settings.C is not None:
            return [self.settings.C or np.nan] * len(self.tasks)
        scores = np.empty((len(self.family.strengths), len(self.tasks)))
        for wave in self.waves:
            self._score_strengths(wave, scores, pool)
        return [self.family.strengths[number] for number in best_for_each(scores, self.tasks)]

    def _score_strengths(
        self, wave: list[list[int]], scores: NDArray[np.float64], pool: Executor
    ) -> None:
        """Fill in `scores` (strengths, tasks) for the tasks of a wave."""
        trainers, strengths = self._trainers(wave, pool), self.family.strengths
        paths = pool.map(lambda trainer: cast(PathTrainer, trainer).path(strengths), trainers)
        for block in _blocks([*zip(wave, paths, strict=True)], lambda each: len(each[0])):
            numbers = [i for chunk, _ in block for i in chunk]
            tasks = [self.tasks[i] for i in numbers]
            for strength in range(len(scores)):
                fits = [path[strength] for _, path in block]
                (found,) = calibration_scores(self.features, fits, tasks, pool=pool)
                scores[strength, numbers] = found
        if len(self.waves) == 1:
            self._kept = trainers

    def _train(
        self, chunks: Sequence[_Chunk], pool: Executor, times: dict[int, IterationTime]
    ) -> Iterator[list[list[FittedLens]]]:
        """The lenses of a wave, chunk by chunk."""
        going = [_Going(chunk, list(range(len(chunk.runs)))) for chunk in chunks]
        for iteration in count(1):
            start, seconds = time.process_time(), 0.0
            fits = [*pool.map(self._fit, _pieces(going, iteration), repeat(iteration))]
            for block in _blocks(fits, lambda fit: len(fit.places)):
                ended = self._judge(block, pool, iteration)
                seconds += time.process_time() - start
                self._keep(ended, pool, iteration)
                start = time.process_time()
            known = times.get(iteration, IterationTime(0, 0.0))
            n = sum(len(fit.places) for fit in fits)
            times[iteration] = IterationTime(known.fits + n, known.seconds + seconds)
            runs = (chunk.runs[place] for chunk, places in going for place in places)
            if through := [run.result() for run in runs if run.is_through]:
                self._on_through(through)
            left = [
                _Going(chunk, [i for i in places if not chunk.runs[i].is_through])
                for chunk, places in going
            ]
            if not (going := [each for each in left if each.places]):
                break
        yield from pool.map(self._finish, chunks)

    def _fit(self, going: _Going, iteration: int) -> _Fit:
        (chunk, places), n_rows = going, going.n_rows(iteration)
        fitted = chunk.trainer.fit(places, n_rows, [chunk.C[place] for place in places])
        return _Fit(chunk, places, n_rows, fitted)

    def _judge(self, fits: Sequence[_Fit], pool: Executor, iteration: int) -> list[_Ended]:
        """Judge the lenses of some fits; those that are the last of their concept."""
        lenses = [(fit, number) for fit in fits for number in range(len(fit.places))]
        thresholds = self._thresholds(fits, lenses, pool)
        sampled = self.features.sampled_logits([fit.fitted for fit in fits], TEST, pool)
        drawn = self._drawn(lenses, sampled, pool)
        ended = []
        # Not shared out: it is Python's own work, of which threads do one at a time.
        for (fit, number), threshold, own, among in zip(
            lenses, thresholds, drawn, sampled, strict=True
        ):
            run, training_logits = fit.run(number), fit.fitted.training_logits[number]
            step = judge(run.rows, training_logits, threshold, own, among, self.settings, iteration)
            if run.record(step):
                ended.append(_Ended(fit, number, threshold))
        return ended

    def _drawn(
        self, lenses: Sequence[tuple[_Fit, int]], sampled: NDArray[np.float64], pool: Executor
    ) -> list[NDArray[np.float64]]:
        """For each lens, its logits on the rows drawn for it of the test split."""
        test = self.features.dataset.split_slices[TEST]
        if sampled.shape[1] == test.stop - test.start:  # the sample is everything
            held = [fit.run(number).rows.drawn(TEST) for fit, number in lenses]
            return [logits[its.rows] for its, logits in zip(held, sampled, strict=True)]
        found = self._on_few_rows(lenses, lambda rows: rows.drawn(TEST), TEST, pool)
        return [logits for _, logits in found]

    def _thresholds(
        self, fits: Sequence[_Fit], lenses: Sequence[tuple[_Fit, int]], pool: Executor
    ) -> list[float]:
        def held(rows: TaskRows) -> HeldOut:
            return deciding(rows, self.settings)

        if self.settings.fpr is None:
            found = self._on_few_rows(lenses, held, CALIBRATION, pool)
        else:  # nearly all rows count: one product for all lenses
            every = self.features.logits([fit.fitted for fit in fits], CALIBRATION, pool)
            judged = [held(fit.run(number).rows) for fit, number in lenses]
            found = [(its, logits[its.rows]) for its, logits in zip(judged, every, strict=True)]
        return [decide(rows, logits, self.settings) for rows, logits in found]

    def _on_few_rows(
        self,
        lenses: Sequence[tuple[_Fit, int]],
        which: Callable[[TaskRows], HeldOut],
        split: int,
        pool: Executor,
    ) -> list[tuple[HeldOut, NDArray[np.float64]]]:
        """For each lens, a few rows of a split and its logits there."""

        def on(some: Sequence[tuple[_Fit, int]]) -> list[tuple[HeldOut, NDArray[np.float64]]]:
            held = [which(fit.run(number).rows) for fit, number in some]
            return [
                (its, self.features.logits_of(fit.fitted, number, split, its.rows))
                for its, (fit, number) in zip(held, some, strict=True)
            ]

        parts = [lenses[start : start + _SOME] for start in range(0, len(lenses), _SOME)]
        return [*chain.from_iterable(pool.map(on, parts))]

    def _keep(self, ended: Sequence[_Ended], pool: Executor, iteration: int) -> None:
        """Measure lenses that are the last of their concept."""
        for some in _blocks(ended, lambda _: 1):
            lenses = [each.fit.fitted.some([each.number]) for each in some]
            test = self.features.logits(lenses, TEST, pool)
            calibration = self.features.logits(lenses, CALIBRATION, pool)
            natural = self.features.natural_logits(lenses)
            by_model_layer = self._scores_by_model_layer(some, pool)
            found = pool.map(self._measure, some, test, calibration, natural)
            for each, lens, scores in zip(some, found, by_model_layer, strict=True):
                lens.score_by_model_layer = scores
                fit, place = each.fit, each.fit.places[each.number]
                fit.chunk.runs[place].lenses[iteration] = lens
                fit.chunk.ends.append(_End(lens, place, fit.n_rows[each.number]))

    def _scores_by_model_layer(
        self, some: Sequence[_Ended], pool: Executor
    ) -> list[dict[int, float]]:
        """For each lens, the calibration score of what it reads at each of its model layers; empty
        in families that choose model layers by such scores."""
        scores: list[dict[int, float]] = [{} for _ in some]
        if not self.family.spread or len(self.model_layers) == 1:
            return scores
        tasks = [each.fit.run(each.number).rows for each in some]
        fits = [cast(LinearFit, each.fit.fitted.some([each.number])) for each in some]
        fit, width = LinearFit.joined(fits), self.features.Z.shape[1] // len(self.model_layers)
        for number, model_layer in enumerate(self.model_layers):
            part = slice(number * width, (number + 1) * width)
            alone = Features(self.features.dataset, self.features.Z[:, part])
            own = [fit._replace(weight=fit.weight[:, part])]
            (found,) = calibration_scores(alone, own, tasks, [self.settings.prevalence], pool)
            for its, score in zip(scores, found.tolist(), strict=True):
                its[model_layer] = score
        return scores

    def _measure(
        self,
        ended: _Ended,
        test: NDArray[np.float64],
        calibration: NDArray[np.float64],
        natural: NDArray[np.float64],
    ) -> FittedLens:
        fit, number, threshold = ended
        run, C = fit.run(number), fit.chunk.C[fit.places[number]]
        return measure(
            run.rows,
            self.features,
            fit.fitted.ship(number, self.features.standardizer),
            Calibrated.of(run.rows, calibration, self.settings.prevalence),
            test,
            natural,
            run.steps[-1],
            threshold,
            self.settings,
            model_layers=self.model_layers,
            C=None if np.isnan(C) else C,
            converged=bool(fit.fitted.converged[number]),
        )

    def _finish(self, chunk: _Chunk) -> list[list[FittedLens]]:
        """Controls and directions for all lenses of a chunk at once, and its lenses."""
        runs, ends = chunk.runs, sorted(chunk.ends, key=lambda end: (end.place, end.n_rows))
        every = [run.rows for run in runs]
        shuffled = self.controls.shuffled(chunk.trainer, self.features, every, chunk.C)
        tasks, counts = [runs[end.place].rows for end in ends], [end.n_rows for end in ends]
        controls = self.controls.measure((shuffled, self._directions), tasks, counts)
        directions = steering_directions(self.features, every, self.model_layers)
        for end, found in zip(ends, controls, strict=True):
            lens = end.lens
            lens.controls, lens.directions = found.controls, directions[end.place]
            seed = stable_seed("lead", lens.concept)
            lens.best_control, lens.rival = found.best, found.ranked
            lens.lead = lens.graded.lead_over(found.ranked, self.settings.prevalence, seed=seed)
        for run in runs:
            run.rows.forget()
        return [run.result() for run in runs]

    def _usable(self, task: TaskRows, skipped: dict[str, str]) -> TaskRows | None:
        """A task without the samples that have NaN or infinite activations. If some are its own,
        None, and the reason in `skipped`."""
        dataset, finite = self.features.dataset, self.features.finite
        if finite.all():
            return task
        broken = np.unique(dataset.samples_by_split[~finite])
        own = int(np.isin(np.concatenate(task.task.positives), broken).sum())
        if not own:
            return task.without(broken)
        where = ", ".join(map(str, self.model_layers))
        skipped[task.task.concept] = (
            f"{task.task.concept}: {own} of its samples have activations at model layer {where} "
            "that are NaN or infinite: run `lenscache verify`, then `lenscache repair` and extract "
            "again"
        )
        return None


def _pieces(going: Sequence[_Going], iteration: int) -> list[_Going]:
    """The same in pieces of about equal work: the concepts with most rows, which go on longest, are
    all in one chunk."""
    pieces = []
    for chunk, places in going:
        systems = 4 * len(places) * max(_Going(chunk, places).n_rows(iteration)) ** 2
        for piece in np.array_split(places, min(len(places), -(-systems // _PIECE_BYTES))):
            pieces.append(_Going(chunk, piece.tolist()))
    return pieces


_Part = TypeVar("_Part")


def _blocks(parts: Sequence[_Part], size: Callable[[_Part], int]) -> Iterator[list[_Part]]:
    """Neighbours in blocks of about `_COLUMNS`, all of about the same size."""
    total = sum(map(size, parts))
    most = total / max(1, round(total / _COLUMNS))
    ends = np.cumsum([size(part) for part in parts])
    for _, block in groupby(zip(parts, ends, strict=True), lambda each: int((each[1] - 1) // most)):
        yield [part for part, _ in block]
