"""Few samples for all and more for the hungry, beside everything for everyone: what is saved, and
what it costs.

    python benchmarks/topup.py [--pack data/packs/starter.json] [--levels 0 1 2]
                               [--model smollm2-135m] [--first 8] [--more 6]
                               [--target 0.75 0.80 0.85] [--mode prompt] [--quick] [--json FILE]

Three ways to extract, trained with the same settings, by what `lenscache extract` and `lenstrain
fit` call:

top-up  the first 8 prompts of each concept; then, as long as lenses are hungry, 6 more prompts for
        those alone
full    every prompt of every concept
even    the first k prompts of each concept, k the smallest with as many rows as top-up took: is it
        better to give more to the hungry than the same to all? Its rows are copied from the full
        store, the model runs for none

`own F1` is what a pack says of itself, on the test samples of its own store: few of them, and
looked at after every round by whoever decides that a lens is done. So all final lenses are measured
once more on the test samples of the full store. `hold` is how many of the lenses that graduated
reach the target there, too (in prompt mode all of full's: they graduated on these very samples).
Differences are paired by concept, minus full, with a 95 % bootstrap interval over concepts. `new
only` is F1 on the positive test samples that the top-up store does not hold, which nobody in that
way has looked at, but full has; concepts without one are left out. `model s` is all of extraction,
so it holds what a round costs however small it is (round 0 is the start, made once for all
targets).

The script stops if a sample that the top-up or the even store trains or calibrates on is a test
sample of the full one.

PREDICTED (before the first run): with 8 samples first, 45 % of the rows are saved at target F1
0.75, 35 % at 0.80 and 25 % at 0.85; mean test F1 on the full store's test samples is 0.02 to 0.04
below full's and the score 0.03 below; `even` does as well as top-up to within 0.01, since the
hungriest concepts are hopeless; a quarter of the lenses that graduated on the few test samples of
top-up do not hold.

FOUND (SmolLM2-135M, starter pack, 56 concepts): 17 to 22 % of the rows saved and no time at all in
prompt mode, where rows are cheap and the last rounds small. F1 +0.010 to +0.017, intervals that
hold 0; score -0.013 to -0.047, whose interval leaves 0 out at 0.85. `even` in a few more rows: F1
+0.009 to +0.012, score -0.013 to +0.005. Of the lenses that graduated 8 to 17 % do not hold, and
say 0.03 to 0.05 too much. Foundation pack, levels 0-3, 185 concepts: 16 % saved at 0.80 (13 % do
not hold) and 7 % at 0.95 (half do not hold); F1 as full's, score -0.026 and -0.013.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lenscache import ConceptPack, load_model, open_store
from lenscache.concepts.plan import plan_samples
from lenscache.errors import PlanError
from lenscache.extract import ExtractReport, ExtractSettings, extract
from lenscache.extract.extraction import LocalEngine
from lenscache.extract.planned_rounds import read_top_up
from lenscache.extract.request import Request
from lenscache.model.loading import LoadedModel, silence
from lenstrain import FitSettings, LensPack
from lenstrain.compare.heldout import held_out_logits
from lenstrain.compare.two_packs import Comparison, compare
from lenstrain.data.dataset import TEST, LensDataset, open_dataset
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.errors import LeakageError
from lenstrain.fit.train import train, train_targets
from lenstrain.metrics.thresholds import classify

MODEL_LAYERS = (5, 10, 15, 20, 25)
BATCH_SIZE = 16


@dataclass
class RoundOfTopUp:
    """One round: what was extracted, and who was hungry after it."""

    rows: int
    model_s: float
    fit_s: float
    hungry: int
    graduated: int
    skipped: int


@dataclass
class Arm:
    """One way of extracting for one target, and what came of it."""

    name: str
    target: float
    rows: int
    tokens: int
    model_s: float
    pack: LensPack
    rounds: list[RoundOfTopUp] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)


class Bench:
    """What all arms share: the pack, the model, the settings and where stores are written."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder, self.first, self.more = folder, arguments.first, arguments.more
        self.pack = ConceptPack.load(arguments.pack)
        self.levels: list[int] = arguments.levels or list(self.pack.levels)
        self.loaded: LoadedModel = load_model(arguments.model)
        self.settings: dict[str, Any] = {
            "mode": arguments.mode,
            "model_layers": self.loaded.check_model_layers(arguments.model_layers),
            "batch_size": BATCH_SIZE,
        }

    def extract(self, name: str, samples: int | None = None, **options: Any) -> ExtractReport:
        """Extract into a new store."""
        settings = ExtractSettings(**self.settings, samples=samples)
        return extract(
            self.folder / name, self.pack, self.loaded, settings, levels=self.levels, **options
        )

    def dataset(self, name: str) -> LensDataset:
        """A store of this bench."""
        return open_dataset(self.folder / name)

    def rows_of(self, samples: int | None) -> int:
        """Rows of a store with so many samples a concept."""
        return sum(len(plan_samples(self.pack, [level], samples=samples)) for level in self.levels)

    def full(self, targets: Sequence[float]) -> list[Arm]:
        """Everything for everyone; one pass over the data trains for all targets."""
        report, dataset = self.extract("full.zarr"), self.dataset("full.zarr")
        packs = train_targets(dataset, FitSettings(family="linear"), targets)
        return [
            Arm("full", target, report.rows, n_tokens(dataset), report.elapsed_s, pack)
            for target, pack in zip(targets, packs, strict=True)
        ]

    def top_up(self, target: float, first: ExtractReport) -> Arm:
        """Few samples for all, then more for the hungry until nobody is or nothing is left."""
        name = f"top-up-{target:.2f}.zarr"
        shutil.copytree(self.folder / "first.zarr", self.folder / name)
        rounds, report = [], first
        while True:
            with stopwatch() as spent:
                pack = train(self.dataset(name), FitSettings(family="linear", target_f1=target))
            graduated = sum(lens.metrics["graduated"] for lens in pack)
            rounds.append(
                RoundOfTopUp(
                    report.rows_run,
                    report.elapsed_s,
                    spent[0],
                    len(pack.hungry),
                    graduated,
                    len(pack.skipped),
                )
            )
            if not pack.hungry:
                break
            lenses = self.folder / f"lenses-{target:.2f}-{len(rounds)}"
            pack.save(lenses)
            request = Request(
                self.folder / name,
                self.pack,
                ExtractSettings(**self.settings),
                top_up=read_top_up(lenses / "hungry.json", self.more),
            )
            try:
                report = LocalEngine(self.loaded).run(request)
            except PlanError:  # every prompt of every hungry concept is there
                break
            if self.settings["mode"] != "prompt" and sum(
                r.rows for r in rounds
            ) + report.rows >= self.rows_of(None):
                break  # texts could be sampled again without end
        dataset = self.dataset(name)
        rows, seconds = sum(r.rows for r in rounds), sum(r.model_s for r in rounds)
        return Arm("top-up", target, rows, n_tokens(dataset), seconds, pack, rounds)

    def even(self, target: float, rows: int) -> Arm:
        """The same number of prompts for all, in at least as many rows as top-up took."""
        samples = next(n for n in range(self.first, 10_000) if self.rows_of(n) >= rows)
        name = f"even-{target:.2f}.zarr"
        report = self.extract(name, samples, reuse=[open_store(self.folder / "full.zarr")])
        dataset = self.dataset(name)
        pack = train(dataset, FitSettings(family="linear", target_f1=target))
        return Arm(f"even, {samples}", target, report.rows, n_tokens(dataset), 0.0, pack)


def main() -> None:
    """Run from the command line."""
    arguments = parse_arguments()
    silence()
    start = time.perf_counter()
    print("PREDICTED" + (__doc__ or "").split("PREDICTED", 1)[1].split("\nFOUND", 1)[0])
    with work_folder(arguments.workdir) as folder:
        bench = Bench(arguments, folder)
        print(
            f"{arguments.pack}, levels {bench.levels}; {bench.loaded.id} in {bench.loaded.dtype}, "
            f"mode {arguments.mode}, model layers {bench.settings['model_layers']}; first "
            f"{bench.first}, then {bench.more}"
        )
        fulls, first = bench.full(arguments.target), bench.extract("first.zarr", bench.first)
        full_dataset = bench.dataset("full.zarr")
        arms: list[Arm] = []
        for target, full in zip(arguments.target, fulls, strict=True):
            top_up = bench.top_up(target, first)
            even = bench.even(target, top_up.rows)
            stores = {"top-up": f"top-up-{target:.2f}.zarr", "even": f"even-{target:.2f}.zarr"}
            datasets = {name: bench.dataset(store) for name, store in stores.items()}
            for name, dataset in datasets.items():
                check_no_leak(name, dataset, full_dataset)
            seen = set(datasets["top-up"].texts)
            for arm in (full, top_up, even):
                arm.outcome = outcome(arm, full, full_dataset, seen)
            arms += [full, top_up, even]
            print_rounds(top_up)
    print_arms(arms, len(full_dataset.concepts))
    print_found(arms)
    print("no test sample of the full store was trained or calibrated on elsewhere")
    print(f"{time.perf_counter() - start:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps([as_json(arm) for arm in arms], indent=1))


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, default=Path("data/packs/starter.json"))
    parser.add_argument(
        "--levels", type=int, nargs="*", help="levels of abstraction (default: all)"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--model-layers", type=int, nargs="*", default=MODEL_LAYERS)
    parser.add_argument("--mode", choices=["prompt", "combined"], default="prompt")
    parser.add_argument("--first", type=int, default=8, help="samples of each concept at first")
    parser.add_argument(
        "--more", type=int, default=6, help="samples that a round adds for each hungry concept"
    )
    parser.add_argument(
        "--target", type=float, nargs="*", default=[0.75, 0.80, 0.85], help="test F1 to graduate at"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="empty or new folder to keep the stores in (default: temporary)",
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--quick", action="store_true", help="levels 0 and 1, two model layers, target 0.80"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.levels, arguments.target, arguments.model_layers = [0, 1], [0.80], (15, 25)
    if arguments.workdir and arguments.workdir.exists() and any(arguments.workdir.iterdir()):
        raise SystemExit(
            f"{arguments.workdir} is not empty: rounds that are there would not be extracted again"
        )
    return arguments


@contextmanager
def work_folder(path: Path | None) -> Iterator[Path]:
    """A folder to keep, or one that goes away."""
    if path:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Seconds, once the block is left."""
    spent, start = [0.0], time.perf_counter()
    yield spent
    spent[0] = time.perf_counter() - start


def n_tokens(dataset: LensDataset) -> int:
    """Tokens read and generated for a store; those of a row that two levels hold twice, as the
    model ran it."""
    samples = [entry.samples() for entry in dataset.store.rounds()]
    return sum(int(s.n_prompt_tokens.sum() + s.n_completion_tokens.sum()) for s in samples)


def check_no_leak(name: str, dataset: LensDataset, full: LensDataset) -> None:
    """Stop if a store trains or calibrates on a test sample of the full one."""
    held_out = {text for text, split in zip(full.texts, full.split, strict=True) if split == TEST}
    used = {text for text, split in zip(dataset.texts, dataset.split, strict=True) if split != TEST}
    if leaked := held_out & used:
        raise LeakageError(
            f"{name}: {len(leaked)} test samples of the full store are used, as {min(leaked)!r}"
        )


def outcome(arm: Arm, full: Arm, dataset: LensDataset, seen: set[str]) -> dict[str, Any]:
    """An arm's lenses on the test samples of the full store, beside those of the full arm."""
    found: Comparison = compare(full.pack, arm.pack, dataset)
    graduated = {lens.concept for lens in arm.pack if lens.metrics["graduated"]}
    own, new = [lens.metrics["test_f1"] for lens in arm.pack], f1_on_new(arm.pack, dataset, seen)
    own_of_graduated = [lens.metrics["test_f1"] for lens in arm.pack if lens.concept in graduated]
    return {
        "lenses": len(arm.pack),
        "graduated": len(graduated),
        "hungry": len(arm.pack.hungry),
        "grades": "/".join(
            str(sum(pair.b.grade == grade for pair in found.pairs)) for grade in "ABC"
        ),
        "own_f1": float(np.mean(own)),
        "own_f1_graduated": float(np.mean(own_of_graduated or [np.nan])),
        "f1": float(np.mean([pair.b.f1 for pair in found.pairs])),
        "f1_graduated": float(
            np.mean([p.b.f1 for p in found.pairs if p.concept in graduated] or [np.nan])
        ),
        "score": float(np.nanmean([pair.b.score for pair in found.pairs])),
        "hold": sum(pair.b.f1 >= arm.target for pair in found.pairs if pair.concept in graduated),
        "f1_difference": found.f1._asdict(),
        "score_difference": found.score._asdict(),
        "f1_new": float(np.mean(new or [np.nan])),
        "concepts_new": len(new),
        "test_samples": found.n_samples,
    }


def f1_on_new(pack: LensPack, dataset: LensDataset, seen: set[str]) -> list[float]:
    """F1 on positives of the test split that are not among `seen` texts, against the same negatives
    as always.

    One for each concept that has such positives.
    """
    held, settings, values = held_out_logits(pack, dataset, TEST), FitSettings(), []
    is_new = np.array([text not in seen for text in dataset.texts])
    for number, lens in enumerate(pack):
        drawn = TaskRows(
            dataset, draw_task(dataset, lens.concept, settings.n_negatives), settings
        ).drawn(TEST)
        positives, negatives = np.unique(drawn.samples[drawn.y]), np.unique(drawn.samples[~drawn.y])
        rows = held.rows_of(np.concatenate([positives[is_new[positives]], negatives]))
        y = np.isin(held.samples[rows], positives)
        if y.any():
            values.append(
                classify(y, held.logits[rows, number].astype(np.float64), lens.threshold).f1
            )
    return values


def print_rounds(arm: Arm) -> None:
    """How a top-up went."""
    print(f"\ntarget F1 {arm.target:.2f}: top-up, round by round")
    print("round   rows  in all  model s  fit s  hungry  graduated  skipped")
    in_all = 0
    for number, r in enumerate(arm.rounds):
        in_all += r.rows
        print(
            f"{number:5}  {r.rows:5}  {in_all:6}  {r.model_s:7.1f}  {r.fit_s:5.1f}  {r.hungry:6}  "
            f"{r.graduated:9}  {r.skipped:7}"
        )


def print_arms(arms: Sequence[Arm], n_concepts: int) -> None:
    """The ways beside each other."""
    print(
        f"\n{n_concepts} concepts, {arms[0].outcome['test_samples']} test samples in the full store"
    )
    print(
        "target  way        rows  saved   tokens  model s  lenses  graduated  hold  A/B/C       "
        "own F1  test F1  new only    score  test F1 - full (95 %)    score - full (95 %)"
    )
    full = arms[0].rows
    for arm in arms:
        o = arm.outcome
        seconds = f"{arm.model_s:.1f}" if arm.model_s else "-"
        new = f"{o['f1_new']:.3f} ({o['concepts_new']})"
        print(
            f"{arm.target:6.2f}  {arm.name:8}  {arm.rows:5}  {1 - arm.rows / full:5.0%}  "
            f"{arm.tokens:7}  {seconds:>7}  {o['lenses']:6}  {o['graduated']:9}  {o['hold']:4}  "
            f"{o['grades']:10}  {o['own_f1']:6.3f}  {o['f1']:7.3f}  {new:11} {o['score']:5.3f}  "
            f"{interval(o['f1_difference']):23}  {interval(o['score_difference'])}"
        )


def interval(difference: dict[str, float]) -> str:
    """A difference as it is printed."""
    return f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def print_found(arms: Sequence[Arm]) -> None:
    """What became of the prediction, one line a target."""
    print("\nFOUND")
    for full, top_up, even in zip(arms[::3], arms[1::3], arms[2::3], strict=True):
        o = top_up.outcome
        print(
            f"target {full.target:.2f}: {1 - top_up.rows / full.rows:.0%} of the rows saved; test "
            f"F1 {o['f1_difference']['mean']:+.3f}, score {o['score_difference']['mean']:+.3f}; "
            f"even: F1 {even.outcome['f1_difference']['mean']:+.3f}, score "
            f"{even.outcome['score_difference']['mean']:+.3f}; {o['graduated'] - o['hold']} of "
            f"{o['graduated']} graduated lenses do not hold (full: "
            f"{full.outcome['graduated'] - full.outcome['hold']} of {full.outcome['graduated']}): "
            f"they say {o['own_f1_graduated']:.2f}, it is {o['f1_graduated']:.2f}"
        )


def as_json(arm: Arm) -> dict[str, Any]:
    """The figures of an arm."""
    figures = {name: getattr(arm, name) for name in ("name", "target", "rows", "tokens", "model_s")}
    return {**figures, "rounds": [vars(r) for r in arm.rounds], **arm.outcome}


if __name__ == "__main__":
    main()
