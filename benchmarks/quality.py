"""How good the lenses of each family are: in the pack, on natural text, with half of the world
unknown.

    python benchmarks/quality.py [--model smollm2-135m] [--quick] [--families linear mlp]
                                 [--background FILE|N] [--learn N ...] [--natural FOLDER]
                                 [--public FOLDER] [--work DIR] [--json FILE]

The foundation pack is extracted in prompt mode (levels 0-3, with `--quick` 0-2) with a background
of texts of no concept (`--background`, 0 for none) and fitted with every family, on all training
positives and on 5 of each concept. The lenses are judged on

score      their own unnamed test texts among all held-out samples of other concepts, as grades are
natural    the same texts among texts of no concept in particular, at the same prevalence of 1 %
fpr        how many of those natural texts pass a threshold that lets 1 % of the pack's pass
recall     how many of the unnamed test texts pass it
unnamed    eight sentences a concept out of `benchmarks/data/unnamed.json`, in no split of any fit,
           among those of other concepts
unknown    the same, by lenses that were trained while every second concept was not in the pack
noise      grades of 200 concepts of sentences that were drawn by lot
ece        expected calibration error of the test samples of all lenses together, classes alike;
           without bins (`smooth`), of lenses that share nothing (`alone`), and at the prevalence
           that the test split has; Brier scores, their difference with its interval
changed    share of graded lenses that get another grade with another seed, at the same splits; and
           with other splits of the same texts

Natural texts are what the model itself writes from its beginning-of-sequence token, at temperature
1, with another seed than the background; none is part of any fit. With `--natural FOLDER` they are
the lines of the text files there.
Differences from the linear family are paired over concepts, with 95 % bootstrap intervals.

With `--public`, lenses on public labelled sets instead, see `public_sets.py`.

With `--learn`, discriminant lenses instead, which learn from the first N background texts each
time: how many a store needs.

`--work` keeps the stores, for another run.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import public_sets
import torch
from names import ROOT, SENTENCES, noise_concepts, with_examples
from numpy.typing import NDArray

from lenscache import ConceptPack, ExtractSettings, LoadedModel, load_model, open_store
from lenscache.concepts.importers.texts import read_texts
from lenscache.concepts.pack import Concept
from lenscache.extract import extract
from lenscache.extract.background import write_texts
from lenstrain import FitSettings, LensDataset, LensPack, open_dataset, train
from lenstrain.data.dataset import CALIBRATION, TEST
from lenstrain.data.features import Features
from lenstrain.data.rows import TaskRows
from lenstrain.data.tasks import draw_task
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.choice import MANY_CONCEPTS, settled
from lenstrain.metrics import calibrators
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import ranking
from lenstrain.metrics.thresholds import threshold_for_fpr

DEFAULT = settled(FitSettings(), MANY_CONCEPTS).family
FAST = ("discriminant", "mean-difference")
FEW = 5
N_BACKGROUND, N_NATURAL = 200, 600
FPR = 0.01
BOOTSTRAPS = 2000


class Worth(NamedTuple):
    """What a lens is worth, as the head of this file says."""

    score: float
    natural: float
    fpr: float
    recall: float
    unnamed: float

    def line(self) -> str:
        """For the table."""
        return (
            f"{self.score:6.3f} {self.natural:8.3f} {self.fpr:7.2%} {self.recall:7.2f} "
            f"{self.unnamed:8.3f}"
        )

    def figures(self, name: str) -> dict[str, float]:
        """By what they are called in the JSON file."""
        return {
            f"score_{name}": self.score,
            f"score_natural_{name}": self.natural,
            f"fpr_natural_{name}": self.fpr,
            f"unnamed_{name}": self.unnamed,
        }


@dataclass(frozen=True)
class Stores:
    """What lenses are fitted on and judged by."""

    whole: LensDataset
    half: LensDataset
    """Without every second concept."""
    noise: LensDataset
    sentences: LensDataset
    natural: LensDataset


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="levels 0-2 instead of 0-3")
    parser.add_argument("--families", nargs="*", choices=FAMILIES, help="default: fast ones")
    parser.add_argument("--background", default=str(N_BACKGROUND), help="file of texts, or a count")
    parser.add_argument(
        "--learn", type=int, nargs="+", help="background texts to learn from, a fit for each"
    )
    parser.add_argument("--natural", type=Path, help="folder of text files, a text a line")
    parser.add_argument("--public", type=Path, help="folder with the package sae-probes")
    parser.add_argument("--work", type=Path, help="folder for the stores (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine are slower
    families = [*dict.fromkeys(["linear", *(arguments.families or FAST)])]
    with tempfile.TemporaryDirectory() as scratch:
        work, model = arguments.work or Path(scratch), load_model(arguments.model)
        if arguments.public:
            finish(public_sets.compare(arguments.public, model, work), arguments.json)
            return
        given = arguments.background
        background = int(given) or None if given.isdecimal() else read_texts(given)
        top = 2 if arguments.quick else 3
        stores = make_stores(work, model, top, background, arguments.natural)
        if arguments.learn:
            learn_from_few(stores, arguments.learn)
            return
        figures = measure(stores, families)
    finish(figures | {"public_auc_minus_lrcv": None}, arguments.json)


def finish(figures: dict[str, Any], file: Path | None) -> None:
    """Print the figures, and write them to a file if there is one."""
    print(", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None))
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def make_stores(
    work: Path,
    model: LoadedModel,
    top: int,
    background: int | Sequence[str] | None,
    natural: Path | None,
) -> Stores:
    """Extract everything; what is in `work` already is kept."""
    foundation = ConceptPack.load(ROOT / "data" / "packs" / "foundation.json")
    whole = replace(foundation, concepts=tuple(c for c in foundation.concepts if c.level <= top))
    sentences = json.loads(SENTENCES.read_text())
    settings = ExtractSettings(mode="prompt", batch_size=32)
    texts: Sequence[str]
    if natural is None:
        texts = write_texts(model, N_NATURAL, replace(settings, seed=1), lambda _: None)
    else:
        texts = read_folder(natural)
    of_texts = Concept(id="natural", name="natural text", level=0, examples=tuple(texts))
    packs = {
        "whole": whole,
        "half": without_every_second(whole),
        "noise": noise_concepts(whole),
        "sentences": replace(
            whole,
            concepts=tuple(with_examples(c, sentences[c.id]) for c in whole.concepts),
            prompts="examples",
        ),
        "natural": replace(whole, concepts=(of_texts,), prompts="examples"),
    }
    for name, pack in packs.items():
        reuse = [open_store(work / f"{top}-whole.zarr")] if name in ("half", "noise") else []
        path, learned = work / f"{top}-{name}.zarr", background if name == "whole" else None
        if reuse and (known := reuse[0].background) is not None:
            learned = [str(text) for text in known.samples().text]
        report = extract(path, pack, model, settings, reuse=reuse, background=learned)
        found = f"{name}: {report.rows} rows, {report.rows_run} run, {report.elapsed_s:.0f} s"
        print(found, flush=True)
    return Stores(**{name: open_dataset(work / f"{top}-{name}.zarr") for name in packs})


def read_folder(folder: Path) -> list[str]:
    """The lines of all text files of a folder, five times as many as the model writes at most."""
    lines = (line.strip() for path in folder.glob("*.txt") for line in path.read_text().split("\n"))
    texts = sorted({line for line in lines if line})
    return random.Random(0).sample(texts, min(len(texts), 5 * N_NATURAL))


def without_every_second(pack: ConceptPack) -> ConceptPack:
    """Half of the concepts; those whose parents are gone have fewer."""
    kept = {concept.id for concept in pack.concepts[::2]}
    concepts = [
        replace(c, parents=tuple(parent for parent in c.parents if parent in kept))
        for c in pack.concepts
        if c.id in kept
    ]
    return replace(pack, concepts=tuple(concepts))


def measure(stores: Stores, families: Sequence[str]) -> dict[str, float]:
    """Fit, judge and print; the figures."""
    figures: dict[str, float] = {}
    print(f"{len(stores.whole.concepts)} concepts, {stores.natural.n_samples} natural texts\n")
    print("family, positives   seconds  score  natural     fpr  recall  unnamed  unknown  A B C")
    for positives in (None, FEW):
        linear: dict[str, Worth] = {}
        for family in families:
            settings = FitSettings(family=family)  # type: ignore[arg-type]  # checked by argparse
            if positives is not None:
                settings = replace(settings, max_samples=positives)
            start = time.process_time()
            pack = train(stores.whole, settings)
            seconds = time.process_time() - start
            found = worth(pack, stores.whole, stores)
            mean = Worth(*np.nanmean([*found.values()], axis=0))
            line = f"{family:15} {positives or 'all':>3} {seconds:8.1f} {mean.line()}"
            if positives is None:
                half = worth(train(stores.half, settings), stores.half, stores)
                unknown = np.nanmean([each.unnamed for each in half.values()])
                grades = train(stores.noise, settings).grades()
                line += f" {unknown:8.3f}  {' '.join(str(grades[grade]) for grade in Grade)}"
                for name in ("linear",) * (family == "linear") + ("default",) * (family == DEFAULT):
                    figures |= mean.figures(name)
                if family == DEFAULT:
                    figures["noise_a"] = grades[Grade.A]
                print(line, flush=True)
                told = probabilities(pack, stores.whole, settings)
                told["grades_changed_by_seed"] = changed_by_seed(pack, stores.whole, settings)
                told["grades_changed_by_split"] = changed_by_split(pack, stores.whole, settings)
                print("  " + ", ".join(f"{name} {value:.4f}" for name, value in told.items()))
                figures |= told if family == DEFAULT else {}
            else:
                print(line, flush=True)
            linear = linear or found
            if found is not linear:
                _print_differences(found, linear)
    return figures


def probabilities(pack: LensPack, dataset: LensDataset, settings: FitSettings) -> dict[str, float]:
    """How far probabilities are from what was observed: both classes alike in prevalence, beside
    those of lenses that share nothing, and at the prevalence that the test split has."""
    with patch.object(calibrators, "PULLS", (0.0,)):
        alone = train(dataset, settings)
    found = {}
    for name, its in (("", pack), ("_of_each_alone", alone)):
        noted = its.provenance["calibration"]
        found |= {f"ece{name}": noted["expected_calibration_error"], f"brier{name}": noted["brier"]}
    found["ece_smooth"] = pack.provenance["calibration"]["smooth_calibration_error"]
    paired = np.array(
        [a.metrics["brier"] - b.metrics["brier"] for a, b in zip(pack, alone, strict=True)]
    )
    drawn = np.random.default_rng(0).choice(paired, (BOOTSTRAPS, len(paired))).mean(axis=1)
    found["brier_difference"] = float(paired.mean())
    found |= dict(zip(("brier_low", "brier_high"), np.percentile(drawn, [2.5, 97.5]), strict=True))
    logits = pack.score_all({i: dataset.vectors(i, dataset.split_place) for i in pack.model_layers})
    y, p = [], []
    for number, lens in enumerate(pack):
        rows = TaskRows(dataset, draw_task(dataset, lens.concept, settings.n_negatives), settings)
        judged = rows.judged(TEST)
        y.append(judged.y)
        own = logits[dataset.split_slices[TEST], number][judged.rows]
        p.append(lens.calibrator(own, float(judged.y.mean())))
    weight = np.concatenate([np.full(len(its), 1 / len(its) / len(pack)) for its in y])
    error = calibrators.expected_calibration_error
    found["ece_at_true_prevalence"] = error(np.concatenate(y), np.concatenate(p), weight=weight)
    return found


def changed_by_seed(pack: LensPack, dataset: LensDataset, settings: FitSettings) -> float:
    """Share of graded lenses that get another grade from other negatives, folds and controls, at
    the same splits."""
    again = (
        train(open_dataset(dataset.store.path, seed=seed), replace(settings, seed=seed))
        for seed in (1, 2)
    )
    return float(np.mean([_changed(pack, other) for other in again]))


def changed_by_split(pack: LensPack, dataset: LensDataset, settings: FitSettings) -> float:
    """Share of the lenses graded in both that get another grade where other texts of each concept
    are held out, about as many as before."""
    split = dataset.split.copy()
    rng = np.random.default_rng(1)
    for rows in dataset.positive_rows.values():
        split[rows] = rng.permutation(split[rows])
    again = train(dataset.with_splits(split), settings)
    return _changed(pack, again)


def _changed(pack: LensPack, other: LensPack) -> float:
    grades = {lens.concept: lens.grade for lens in other}
    both = [(lens.grade, grades.get(lens.concept)) for lens in pack]
    return float(np.mean([a is not b for a, b in both if a and b]))


def learn_from_few(stores: Stores, sizes: Sequence[int]) -> None:
    """Print what discriminant lenses are worth by the background texts that they learned from."""
    read, first = Features.of_model_layers, {}
    print("texts to learn from   score  natural     fpr  recall  unnamed")
    for size in sizes:

        def cut(*given: Any, **options: Any) -> Features:
            features = read(*given, **options)
            if features.background is not None:
                features.background = features.background[:size] if size else None  # noqa: B023
            return features

        with patch.object(Features, "of_model_layers", cut):
            pack = train(stores.whole, FitSettings(family="discriminant"))
        found = worth(pack, stores.whole, stores)
        print(f"{size:>19}  {Worth(*np.nanmean([*found.values()], axis=0)).line()}", flush=True)
        first = first or found
        if found is not first:
            _print_differences(found, first, f"{sizes[0]} texts")


def worth(pack: LensPack, dataset: LensDataset, stores: Stores) -> dict[str, Worth]:
    """What each lens of a pack is worth, by concept."""
    own, natural, sentences = (
        pack.score_all({i: data.vectors(i, data.split_place) for i in pack.model_layers})
        for data in (dataset, stores.natural, stores.sentences)
    )
    calibration, test = (dataset.split_slices[split] for split in (CALIBRATION, TEST))
    settings, found = FitSettings(), {}
    for number, lens in enumerate(pack):
        rows = TaskRows(dataset, draw_task(dataset, lens.concept, settings.n_negatives), settings)
        of_test, others = own[test, number].astype(np.float64), natural[:, number]
        sides = rows.sides(TEST)
        positives = of_test[sides.positives[sides.is_unnamed]]
        held = rows.judged(CALIBRATION)
        threshold = threshold_for_fpr(held.y, own[calibration, number][held.rows], FPR)
        found[lens.concept] = Worth(
            rows.score(TEST, of_test, settings.prevalence),
            _score(positives, others),
            float((others >= threshold).mean()),
            float((positives >= threshold).mean()) if len(positives) else np.nan,
            _score(*_sentences_of(lens.concept, sentences[:, number], stores.sentences)),
        )
    return found


def _sentences_of(
    concept: str, logits: NDArray[np.float32], data: LensDataset
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of a concept's own sentences, and of those of unrelated concepts."""
    mark = np.zeros(data.n_samples, np.int8)
    for relative in data.hierarchy.family(concept):
        mark[data.labelled(relative)] = 2
    mark[data.positives(concept)] = 1
    by_row = mark[data.samples_by_split]
    return logits[by_row == 1], logits[by_row == 0]


def _score(positives: NDArray[Any], negatives: NDArray[Any]) -> float:
    y = np.repeat([True, False], [len(positives), len(negatives)])
    return ranking(y, np.concatenate([positives, negatives]).astype(np.float64)).score


def _print_differences(
    found: dict[str, Worth], first: dict[str, Worth], name_of_first: str = "linear"
) -> None:
    """Means over the concepts that both have, with their bootstrap intervals."""
    both = [concept for concept in found if concept in first]
    difference = np.array([found[c] for c in both]) - np.array([first[c] for c in both])
    drawn = np.random.default_rng(0).integers(len(both), size=(BOOTSTRAPS, len(both)))
    told = []
    for name in ("score", "natural", "unnamed"):
        values = difference[:, Worth._fields.index(name)]
        low, high = np.nanpercentile(np.nanmean(values[drawn], axis=1), [2.5, 97.5])
        told.append(f"{name} {np.nanmean(values):+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"  minus {name_of_first}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
