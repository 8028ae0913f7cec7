"""What fitting costs: beside a loop over scikit-learn and one over MLPs, as concepts grow in
number, and in scoring.

    python benchmarks/fit.py [--quick] [--compare] [--scale] [--family NAME] [--device cuda]
                             [--json FILE] [--workdir FOLDER]

All data are stores planted by benchmarks/planted.py, read from disk as any other; --workdir keeps
them.

compare  a level of 276 concepts, hidden 2560, 40 to 200 prompts a concept; one negative a positive,
         so that the last iteration of a concept fits 42 to 214 rows. `fit_lenses`
         (beyond_graduation off, the rest as by default) beside the same schedule run concept by
         concept: the same rows and standardised features, C from the same three on the calibration
         split, then a fit for 5, 10, 20, 30 ... positives, each judged by
         `lenstrain.fit.measure.judge` on the calibration and test splits, until it graduates.
             scikit-learn  LogisticRegression(class_weight="balanced", max_iter=1000), its own
                           solver and tolerance
             MLP           2560-128-64-1, ReLU, Adam at 1e-3, minibatches of 32, 50 epochs: no C to
                           choose
         Loops run on random concepts, others in every turn, and their mean time stands for all.
         Products run on one thread: at these sizes more are no faster, and on a busy machine many
         times slower. lenstrain fits all, in turn with the loops. "Same work" leaves out what the
         loops do not do (calibrators, controls, intervals, directions to steer along) and what all
         share (negatives, reading, standardising): rows gathered, fits, held-out logits, judging;
         on all cores, as by default, and on one. "Whole" is all of `fit_lenses`, beside the loop
         plus what all share. With --device lenstrain fits there, and the loops where they always
         do.
one fit  a fit for each of 128 concepts on n rows, an eighth of them positive, beside
         LogisticRegression one by one
scale    `fit_lenses` with everything by default on stores of 40 prompts a concept, each in a
         process of its own: time, peak memory of the process, grades. The cosine of a lens and its
         planted direction is taken on standardised features, where the deviation of the noise is 1
         in each; median over strengths of 7.3 to 10.7, the middle third. Concepts without signal
         must not get an A. Seconds are extrapolated from those of CPU, which other work on the
         machine does not touch, at the best share of the cores seen; memory by the rows that are
         read.
scoring  one vector against 5,665 lenses (`LensPack.score`), in turn with the bare product of numpy

Bounds: 50 times the scikit-learn loop and 500 times the MLP loop (same work), 5,665 concepts in 600
s and 8 GiB, scoring at most 1.5 times the product. Only without --quick is the exit status 1 where
one does not hold. --quick takes fewer concepts and turns, and says what 5,665 concepts cost by
extrapolation.

Predicted before the first run: 25 times the scikit-learn loop and 300 times the MLP loop; 5,665
concepts in 420 s and 4 GiB, seconds growing with the power 1.3 of concepts, since products with
held-out rows grow with the square. Predicted once concepts took their iterations in step: 25 and
400; 300 s and 4.5 GiB, the power 1.15.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from planted import STRENGTHS, Planting, World, plant
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import lenstrain.fit.adaptive
import lenstrain.fit.iterations
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset, open_dataset
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.families.kinds import STRENGTHS as C_STRENGTHS
from lenstrain.families.linear import LinearTrainer, LinearWeights
from lenstrain.fit.adaptive import FittedLens, Iteration, fit_lenses
from lenstrain.fit.choice import CHOICE_PREVALENCE, best_for_each
from lenstrain.fit.controls import MeasuredControls
from lenstrain.fit.cut import AtThreshold, Cut
from lenstrain.fit.iterations import AdaptiveTraining
from lenstrain.fit.measure import decide, deciding, judge
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import rank_texts
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import Provenance
from lenstrain.parallel import in_parallel
from lenstrain.settings import FitSettings

LEVEL = Planting((5, 276), prompts=(40, 200))
SMALL_LEVEL = Planting((5, 96), prompts=(40, 200))
LEVEL_SETTINGS = FitSettings(
    family="linear", negatives_per_positive=1.0, beyond_graduation=False, model_layers=(0,)
)
ALL = 5665
MIDDLE = np.quantile(STRENGTHS, [1 / 3, 2 / 3])
SEED = 0

BOUNDS = {
    "speedup_sklearn": (50, "at least"),
    "speedup_mlp": (500, "at least"),
    "seconds_5665": (600, "at most"),
    "rss_gib_5665": (8, "at most"),
    "scoring_ratio": (1.5, "at most"),
    "without_signal_graded_a": (0, "at most"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer concepts and turns")
    parser.add_argument("--compare", action="store_true", help="only the comparison with loops")
    parser.add_argument("--scale", action="store_true", help="only the growing stores")
    parser.add_argument(
        "--device", default="cpu", help="where lenstrain fits in the comparison; default cpu"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--workdir", type=Path, help="folder that planted stores are kept in")
    parser.add_argument("--family", default="linear", help="of lenstrain's lenses; default linear")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(fit_alone(arguments.child, arguments.family)))
        return
    torch.set_num_threads(1)
    everything = not (arguments.compare or arguments.scale)
    figures: dict[str, Any] = {}
    with threadpool_limits(1), tempfile.TemporaryDirectory() as scratch:
        folder = arguments.workdir or Path(scratch)
        if everything or arguments.compare:
            settings = replace(LEVEL_SETTINGS, device=arguments.device, family=arguments.family)
            figures |= compare(folder, settings, quick=arguments.quick)
        if everything or arguments.scale:
            figures |= scale(folder, arguments.family, quick=arguments.quick)
        if everything:
            figures |= measure_scoring(turns=50 if arguments.quick else 300)
    held = check(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(not held and not arguments.quick)


def planted(folder: Path, name: str, planting: Planting) -> Path:
    """The path of a planted store, written unless it is there."""
    path = folder / f"planted-{name}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".planted-{name}"
        plant(unfinished, planting)
        unfinished.rename(path)
    return path


# --- beside loops -------------------------------------------------------------------------------

Decide = Callable[[NDArray[np.float32]], NDArray[Any]]
Fit = Callable[[NDArray[np.float32], NDArray[np.bool_], float], Decide]


def compare(folder: Path, settings: FitSettings, *, quick: bool) -> dict[str, Any]:
    """lenstrain and both loops, turn by turn, and single fits."""
    turns, n_sklearn, n_mlp = (2, 10, 1) if quick else (3, 40, 8)
    level = SMALL_LEVEL if quick else LEVEL
    dataset = open_dataset(planted(folder, f"level-{level.levels[1]}", level), levels=[1])
    start = time.perf_counter()
    tasks, features = prepare(dataset)
    shared = time.perf_counter() - start
    n = len(tasks)
    rows = [len(task) for task in tasks]
    print(
        f"{n} concepts, {dataset.n_samples} samples, {min(rows)} to {max(rows)} rows in the last "
        "iteration"
    )
    order = np.random.default_rng(SEED).permutation(n)
    seconds: dict[str, list[float]] = {
        side: [] for side in ("same work", "one core", "whole", "scikit-learn", "MLP")
    }
    f1: dict[str, dict[str, float]] = {"scikit-learn": {}, "MLP": {}}
    ours: dict[str, float] = {}
    fits: list[float] = []
    for turn in range(turns):
        # new rows, so that nothing is kept from the turn before
        tasks = [TaskRows(dataset, task.task, LEVEL_SETTINGS) for task in tasks]
        for side, jobs in (("same work", None), ("one core", 1)):
            spent, result = without_extras(dataset, settings, jobs)
            seconds[side].append(spent)
        start = time.perf_counter()
        fit_lenses(dataset, settings)
        seconds["whole"].append(time.perf_counter() - start)
        ours = {lens.concept: lens.test_f1 for lens in result}
        fits = [len(lens.trajectory) for lens in result]
        for side, fit, chosen, strengths in (
            ("scikit-learn", fit_sklearn, order[turn * n_sklearn :][:n_sklearn], C_STRENGTHS),
            ("MLP", fit_mlp, order[turn * n_mlp :][:n_mlp], ()),
        ):
            start = time.perf_counter()
            found = loop([tasks[i] for i in chosen], features, fit, strengths)
            seconds[side].append((time.perf_counter() - start) / len(chosen) * n)
            f1[side] |= found
        print(
            f"turn {turn + 1}: "
            + ", ".join(f"{side} {values[-1]:.1f} s" for side, values in seconds.items())
        )
    print(f"lenstrain: {np.mean(fits):.2f} iterations a concept; what all share: {shared:.1f} s\n")
    print(f"{'times as fast as':42}  median  lowest to highest")
    figures: dict[str, Any] = {"compare_seconds": seconds, "compare_seconds_shared": shared}
    for side, key in (("scikit-learn", "speedup_sklearn"), ("MLP", "speedup_mlp")):
        for ours_is, suffix in (("same work", ""), ("one core", "_one_core"), ("whole", "_whole")):
            more = shared if ours_is == "whole" else 0.0
            ratios = [(b + more) / a for a, b in zip(seconds[ours_is], seconds[side], strict=True)]
            low, ratio, high = min(ratios), statistics.median(ratios), max(ratios)
            what = f"{side} ({len(f1[side])} concepts), {ours_is}"
            print(f"{what:42}  {ratio:6.1f}  {low:.1f} to {high:.1f}")
            figures |= {key + suffix: ratio, f"{key}{suffix}_spread": [low, high]}
    for side, key in (("scikit-learn", "f1_delta_sklearn"), ("MLP", "f1_delta_mlp")):
        figures[key], figures[f"{key}_interval"] = delta = mean_difference(ours, f1[side])
        low, high = delta[1]
        print(f"test F1, lenstrain minus {side}: {delta[0]:+.4f} [{low:+.4f}, {high:+.4f}]")
    figures["one_fit"] = measure_one_fit(dataset, tasks, features, quick=quick)
    return figures


def prepare(dataset: LensDataset) -> tuple[list[TaskRows], Features]:
    """What every side needs: who is positive and negative, and standardised features."""
    tasks = [
        TaskRows(dataset, draw_task(dataset, concept, LEVEL_SETTINGS.n_negatives), LEVEL_SETTINGS)
        for concept in dataset.concepts
    ]
    return tasks, Features.of_model_layers(dataset, (0,))


def without_extras(
    dataset: LensDataset, settings: FitSettings, jobs: int | None
) -> tuple[float, list[FittedLens]]:
    """Seconds of adaptive training without calibrators, controls and intervals; and its lenses."""
    spent = 0.0
    run = AdaptiveTraining.run

    def timed(*args: Any) -> Iterator[list[FittedLens]]:
        nonlocal spent
        start = time.perf_counter()
        yield from [*run(*args)]
        spent += time.perf_counter() - start

    with bare_lenses(), patch.object(AdaptiveTraining, "run", timed):
        result = fit_lenses(dataset, settings, jobs=jobs)
    return spent, result.lenses


@contextmanager
def bare_lenses() -> Iterator[None]:
    """Let lenses be kept with their F1 alone, at the thresholds of their own samples."""
    unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(FittedLens))
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Cut))

    nobody = rank_texts(np.zeros(0, np.bool_), np.zeros(0), np.zeros(0, np.intp))

    def measure(rows: TaskRows, *args: Any, **_: Any) -> FittedLens:
        (step,) = (arg for arg in args if isinstance(arg, Iteration))
        f1 = AtThreshold(step.test_f1, *[np.nan] * (len(AtThreshold._fields) - 1))
        known = {"concept": rows.task.concept, "cut": Cut(**nothing | {"metrics": f1})}
        known |= {"graded": nobody, "score": step.score, "n_test_unnamed": 0}
        return FittedLens(**unknown | known)

    class NoControls:
        def __init__(self, *_: Any) -> None:
            pass

        def shuffled(self, *_: Any) -> None:
            pass

        def measure(
            self, _draws: Any, tasks: Sequence[TaskRows], _counts: Any
        ) -> list[MeasuredControls]:
            return [MeasuredControls({}, "", nobody) for _ in tasks]

    def no_directions(
        _features: Any, tasks: Sequence[TaskRows], _model_layers: Any
    ) -> list[tuple[()]]:
        return [()] * len(tasks)

    with (
        patch.object(lenstrain.fit.iterations, "measure", measure),
        patch.object(lenstrain.fit.iterations, "steering_directions", no_directions),
        patch.object(lenstrain.fit.adaptive, "Controls", NoControls),
        patch.object(lenstrain.fit.adaptive, "settle", lambda *_: None),
    ):
        yield


def loop(
    tasks: Sequence[TaskRows], features: Features, fit: Fit, strengths: Sequence[float]
) -> dict[str, float]:
    """Adaptive training concept by concept: the test F1 of each."""
    Z = features.Z.numpy()
    held_out = {split: Z[features.dataset.split_slices[split]] for split in (CALIBRATION, TEST)}
    C = [1.0] * len(tasks)
    if strengths:
        scores = np.empty((len(strengths), len(tasks)))
        for number, task in enumerate(tasks):
            for place, strength in enumerate(strengths):
                decide = fit(Z[task.training.rows], task.training.targets, strength)
                scores[place, number] = task.score(
                    CALIBRATION, decide(held_out[CALIBRATION]), CHOICE_PREVALENCE
                )
        C = [strengths[i] for i in best_for_each(scores, tasks)]
    return {
        task.task.concept: train(task, Z, held_out, fit, c).test_f1
        for task, c in zip(tasks, C, strict=True)
    }


def train(
    task: TaskRows, Z: NDArray[np.float32], held_out: dict[int, Any], fit: Fit, C: float
) -> Iteration:
    """The iterations of one concept; its last."""
    for iteration in count(1):
        end = task.training.ends[iteration - 1]
        rows = Z[task.training.rows[:end]]
        logits = fit(rows, task.training.targets[:end], C)
        chosen = deciding(task, LEVEL_SETTINGS)
        threshold = decide(chosen, logits(held_out[CALIBRATION][chosen.rows]), LEVEL_SETTINGS)
        test = logits(held_out[TEST])
        own, among = test[task.drawn(TEST).rows], test[task.dataset.sampled_rows[TEST]]
        step = judge(task, logits(rows), threshold, own, among, LEVEL_SETTINGS, iteration)
        if iteration == task.last_iteration or LEVEL_SETTINGS.graduates(step, iteration):
            return step
    raise AssertionError("unreachable")


def fit_sklearn(rows: NDArray[np.float32], y: NDArray[np.bool_], C: float) -> Decide:
    """scikit-learn's logistic regression as it comes, with balanced classes."""
    decide: Decide = (
        LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
        .fit(rows, y)
        .decision_function
    )
    return decide


def fit_mlp(rows: NDArray[np.float32], y: NDArray[np.bool_], _C: float) -> Decide:
    """A small network, by the usual loop over minibatches."""
    torch.manual_seed(SEED)
    network = torch.nn.Sequential(
        torch.nn.Linear(rows.shape[1], 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    X, target = torch.from_numpy(rows), torch.from_numpy(y).float()
    for _ in range(50):
        for batch in torch.randperm(len(X)).split(32):
            optimizer.zero_grad()
            logits = network(X[batch])[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(logits, target[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def decide(rows: NDArray[np.float32]) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(rows))[:, 0].double())

    return decide


def mean_difference(
    ours: dict[str, float], theirs: dict[str, float]
) -> tuple[float, tuple[float, float]]:
    """Mean over the concepts of both, with a bootstrap interval of 95 %."""
    values = np.array([ours[concept] - f1 for concept, f1 in theirs.items()])
    drawn = np.random.default_rng(SEED).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def measure_one_fit(
    dataset: LensDataset, tasks: Sequence[TaskRows], features: Features, *, quick: bool
) -> list[dict[str, float]]:
    """Milliseconds a concept of one fit on n rows, C = 1."""
    turns, n_ours, n_loop = (2, 64, 5) if quick else (3, 128, 20)
    Z, training = features.Z, dataset.split_slices[TRAIN]
    chosen = [task for task in tasks if len(task.task.positives[TRAIN]) >= 40][:n_ours]
    print(f"\n{'one fit on':12}  lenstrain  scikit-learn  ratio (lowest to highest)")
    found = []
    for n in (16, 80, 320) if quick else (16, 40, 80, 160, 320):
        rows, targets = [], []
        for number, task in enumerate(chosen):
            positives = task.training.rows[task.training.targets][: n // 8]
            others = np.setdiff1d(
                np.arange(training.start, training.stop), task.training.rows[task.training.targets]
            )
            negatives = np.random.default_rng([SEED, number]).choice(
                others, n - n // 8, replace=False
            )
            rows.append(np.concatenate([positives, negatives]))
            targets.append(np.arange(n) < n // 8)

        def fit(half: list[int], rows: Any = rows, targets: Any = targets, n: int = n) -> None:
            trainer = LinearTrainer(Z, [rows[i] for i in half], [targets[i] for i in half])
            trainer.fit(range(len(half)), [n] * len(half), [1.0] * len(half))

        ours, theirs = [], []
        for turn in range(turns):
            start = time.perf_counter()
            for _ in in_parallel(fit, np.array_split(np.arange(len(chosen)), 2)):
                pass
            ours.append((time.perf_counter() - start) / len(chosen) * 1e3)
            start = time.perf_counter()
            for i in range(turn * n_loop, (turn + 1) * n_loop):
                fit_sklearn(Z.numpy()[rows[i]], targets[i], 1.0)
            theirs.append((time.perf_counter() - start) / n_loop * 1e3)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        a, b, ratio = (statistics.median(values) for values in (ours, theirs, ratios))
        print(
            f"{n:3} rows      {a:6.2f} ms     {b:6.2f} ms   {ratio:6.1f} ({min(ratios):.1f} to "
            f"{max(ratios):.1f})"
        )
        found.append({"rows": n, "ms": a, "ms_sklearn": b, "ratio": ratio})
    return found


# --- growing stores -----------------------------------------------------------------------------


def fit_alone(path: Path, family: Any) -> dict[str, Any]:
    """Fit a store in this process, which has done nothing else: what it cost and what came of
    it."""
    start = time.perf_counter()
    dataset = open_dataset(path)
    opened, worked = time.perf_counter(), time.process_time()
    lenses = fit_lenses(dataset, FitSettings(family=family, model_layers=(0,))).lenses
    seconds, cpu_seconds = time.perf_counter() - opened, time.process_time() - worked
    peak = peak_memory()
    world = World(Planting.of_size(len(dataset.concepts)), dataset.hierarchy)
    number = [world.number[lens.concept] for lens in lenses]
    strength = world.strengths[number]
    weight = np.stack([lens.weights.weight for lens in lenses]) * world.deviations  # type: ignore[union-attr]
    wanted = world.directions[number] * (world.scale / world.deviations)
    cosine = (
        (weight * wanted).sum(axis=1)
        / np.linalg.norm(weight, axis=1)
        / np.linalg.norm(wanted, axis=1)
    )
    middle = (strength > MIDDLE[0]) & (strength < MIDDLE[1])
    grades = Counter(lens.verdict.grade for lens in lenses)
    return {
        "concepts": len(lenses),
        "rows": len(dataset.vector_sample),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_to_open": opened - start,
        "rss_gib": peak,
        "grades": {g.value: grades[g] for g in Grade} | {"ungraded": grades[None]},
        "mean_score": float(np.nanmean([lens.score for lens in lenses])),
        "mean_test_f1": float(np.mean([lens.test_f1 for lens in lenses])),
        "iterations": float(np.mean([len(lens.trajectory) for lens in lenses])),
        "median_cosine": float(np.median(cosine[middle])),
        "without_signal": int((strength == 0).sum()),
        "without_signal_graded_a": sum(
            lens.verdict.grade is Grade.A
            for lens, s in zip(lenses, strength, strict=True)
            if s == 0
        ),
    }


def peak_memory() -> float:
    """GiB that this process held at most; not `ru_maxrss`, which starts from what its parent
    held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
        / 2**20
    )


def scale(folder: Path, family: str, *, quick: bool) -> dict[str, Any]:
    """Stores of growing size, each fitted in a process of its own."""
    print(
        f"\n{'concepts':>8}  {'rows':>7}  {'seconds':>7}  predicted  of CPU  GiB peak  {'A':>5} "
        f"{'B':>5} {'C':>5} {'-':>5}"
        "  score     F1  cosine  no signal: A of"
    )
    runs: list[dict[str, Any]] = []
    for n in (75, 150, 300) if quick else (500, 1000, 2000, ALL):
        path = planted(folder, str(n), Planting.of_size(n))
        command = [sys.executable, __file__, "--family", family, "--child", str(path)]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        runs.append(run)
        grades = " ".join(f"{number:5}" for number in run["grades"].values())
        print(
            f"{n:8}  {run['rows']:7}  {run['seconds']:7.1f}  {420 * (n / ALL) ** 1.3:9.1f}  "
            f"{run['cpu_seconds']:6.1f}  {run['rss_gib']:8.2f}  {grades}  "
            f"{run['mean_score']:5.3f}  {run['mean_test_f1']:5.3f}  {run['median_cosine']:6.3f}  "
            f"{run['without_signal_graded_a']} of {run['without_signal']}",
            flush=True,
        )
    n, seconds, cpu = (
        np.array([run[key] for run in runs]) for key in ("concepts", "seconds", "cpu_seconds")
    )
    slope = float(np.polyfit(np.log(n), np.log(cpu), 1)[0])
    print(f"CPU seconds grow with the power {slope:.2f} of concepts")
    figures: dict[str, Any] = {
        "scale": runs,
        "scale_slope": slope,
        "seconds_5665_is_extrapolated": quick,
    }
    figures["without_signal_graded_a"] = sum(run["without_signal_graded_a"] for run in runs)
    smaller = slice(None) if quick else slice(-1)
    foreseen = extrapolate(n[smaller], cpu[smaller]) * float((seconds / cpu)[smaller].min())
    foreseen_gib = (
        runs[smaller][-1]["rss_gib"] + 40 * (ALL - n[smaller][-1]) * LEVEL.hidden * 4 / 2**30
    )
    figures["seconds_5665"] = foreseen if quick else seconds[-1]
    figures["rss_gib_5665"] = foreseen_gib if quick else runs[-1]["rss_gib"]
    print(
        (
            f"{ALL} concepts by extrapolation from {n[0]} to {n[smaller][-1]}: {foreseen:.0f} s, "
            f"{foreseen_gib:.1f} GiB"
        )
        + ("" if quick else f"; seen: {seconds[-1]:.0f} s, {runs[-1]['rss_gib']:.1f} GiB")
    )
    return figures


def extrapolate(n: NDArray[Any], seconds: NDArray[Any]) -> float:
    """CPU seconds of all concepts, as a n + b n^2: products with held-out rows grow with the
    square."""
    (a, b), _ = nnls(np.stack([n, n**2], axis=1) / seconds[:, None], np.ones(len(n)))
    return float(a * ALL + b * ALL**2)


# --- scoring ------------------------------------------------------------------------------------


def measure_scoring(*, turns: int) -> dict[str, Any]:
    """One vector against every lens of a large pack, beside the product alone."""
    rng = np.random.default_rng(SEED)
    weight = rng.normal(size=(ALL, LEVEL.hidden)).astype(np.float32)
    lenses = [
        Lens(
            f"concept {i}",
            f"concept {i}",
            0,
            (0,),
            LinearWeights(row, 0.5),
            0.0,
            Calibrator("sigmoid", (1.0, 0.0)),
            NoiseFloor(0.0, 1.0),
            Grade.A,
            {},
            (),
        )
        for i, row in enumerate(weight)
    ]
    pack, x = (
        LensPack(lenses, Provenance(), {}),
        rng.normal(size=(1, LEVEL.hidden)).astype(np.float32),
    )
    sides: dict[str, Callable[[], NDArray[np.float32]]] = {
        "LensPack.score": lambda: pack.score(x, 0)[0],
        "numpy": lambda: weight @ x[0] + np.float32(0.5),
    }
    if not np.allclose(*(side() for side in sides.values()), atol=1e-2):
        raise SystemExit("LensPack.score and numpy disagree")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    ours, bare = (statistics.median(values) * 1e3 for values in seconds.values())
    ratios = np.array(seconds["LensPack.score"]) / np.array(seconds["numpy"])
    low, ratio, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    print(
        f"\none vector against {ALL} lenses: {ours:.2f} ms, numpy's product {bare:.2f} ms, "
        f"ratio {ratio:.2f} ({low:.2f} to {high:.2f} in nine of ten turns)"
    )
    return {"scoring_ratio": float(ratio), "scoring_ratio_spread": [float(low), float(high)]}


# --- what must hold -----------------------------------------------------------------------------


def check(figures: dict[str, Any]) -> bool:
    """Whether what was measured is within its bounds."""
    print()
    held = True
    for name, (bound, sense) in BOUNDS.items():
        if name in figures:
            value = figures[name]
            holds = value >= bound if sense == "at least" else value <= bound
            held &= holds
            note = (
                " (extrapolated)"
                if "5665" in name and figures["seconds_5665_is_extrapolated"]
                else ""
            )
            print(
                f"{name}: {value:.4g}{note}, {sense} {bound}: "
                f"{'holds' if holds else 'DOES NOT HOLD'}"
            )
    return held


if __name__ == "__main__":
    main()
