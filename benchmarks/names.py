"""Do grades hold where a lens could read the name of its concept?

    python benchmarks/names.py [--model smollm2-135m] [--quick] [--work DIR] [--json FILE] [--list]

The foundation pack is extracted in prompt mode and fitted twice: with its example sentences, and
without any, on names, definitions and templates alone (no row is extracted again). Both packs are
judged on the same sentences: eight for each concept, in `benchmarks/data/unnamed.json`, which were
written apart from the pack, do not name their concept and are in no split of either fit. They say
what a lens is worth, as an interval; what they say nothing of is no fault of a grade.

old rule     the grade of the score on all held-out samples, those that name the concept included
new rule     `lenstrain.metrics.grade`
overgraded   graded lenses whose grade is above the upper end of the interval on the sentences
undergraded  lenses that are A or B by the lower end and are graded lower, or not at all
noise        200 concepts of sentences drawn by lot, as many for each as real concepts have

`--quick` takes levels 0-1 instead of 0-3; `--list` names every lens whose grade differs between the
rules, with the reason. `--work` keeps the stores, for another run.

Predicted: old rule 40 % overgraded without examples and 10 % with them; new rule below 2 %, nothing
graded without examples, 15 % undergraded, no noise concept above C.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lenscache import ConceptPack, ExtractSettings, LoadedModel, load_model, open_store
from lenscache.concepts.pack import Concept
from lenscache.extract import extract
from lenstrain import FitSettings, LensDataset, LensPack, open_dataset, train
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import Interval, rank_texts
from lenstrain.pack.lens import Lens

ROOT = Path(__file__).parents[1]
SENTENCES = Path(__file__).parent / "data" / "unnamed.json"
N_NOISE = 200
N_MODEL_LAYERS = 7


@dataclass(frozen=True)
class Judged:
    """A lens beside what the sentences say of it."""

    lens: Lens
    truth: Interval
    score: float

    @property
    def old_grade(self) -> Grade:
        """By the rule of before."""
        return Grade.of(self.lens.metrics["score_all"])

    def overgraded(self, grade: Grade | None) -> bool:
        """Whether a grade is above the upper end."""
        return grade is not None and grade.value < Grade.of(self.truth.high).value

    def undergraded(self, grade: Grade | None) -> bool:
        """Whether the lower end carries A or B, and the grade is lower or missing."""
        shown = Grade.of(self.truth.low)
        return shown is not Grade.C and (grade is None or grade.value > shown.value)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="levels 0-1 only")
    parser.add_argument(
        "--work", type=Path, help="folder for the stores (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    parser.add_argument("--list", action="store_true", help="name the lenses whose grade changes")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        figures = run(work, load_model(arguments.model), arguments.quick, arguments.list)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def run(work: Path, model: LoadedModel, quick: bool, with_list: bool) -> dict[str, float]:
    """Extract, fit, judge and print; the figures."""
    whole = ConceptPack.load(ROOT / "data" / "packs" / "foundation.json")
    levels = [level for level in whole.levels if level <= (1 if quick else 3)]
    concepts = tuple(concept for concept in whole.concepts if concept.level in levels)
    pack = replace(whole, concepts=concepts)
    size = "quick" if quick else "whole"
    stores = {
        name: work / f"{size}-{name}.zarr" for name in ("with", "without", "sentences", "noise")
    }
    chosen = np.linspace(0, model.n_layers - 1, N_MODEL_LAYERS).round().astype(int)
    settings = ExtractSettings(
        mode="prompt", batch_size=32, model_layers=tuple(int(i) for i in chosen)
    )
    given = json.loads(SENTENCES.read_text())
    sentences = tuple(with_examples(c, given[c.id]) for c in concepts)
    packs = {
        "with": pack,
        "without": replace(pack, concepts=tuple(with_examples(c, ()) for c in concepts)),
        "sentences": replace(pack, concepts=sentences, prompts="examples"),
        "noise": noise_concepts(pack),
    }
    for name, path in stores.items():
        reuse = [] if name in ("with", "sentences") else [open_store(stores["with"])]
        report = extract(path, packs[name], model, settings, reuse=reuse)
        print(
            f"{name}: {report.rows} rows, {report.rows_run} run, {report.elapsed_s:.0f} s",
            flush=True,
        )
    held = open_dataset(stores["sentences"])
    fitted = {
        name: train(open_dataset(stores[name]), FitSettings(family="linear"))
        for name in ("with", "without", "noise")
    }
    judged = {name: [*judge(fitted[name], held)] for name in ("with", "without")}
    figures = _figures(judged, fitted["noise"])
    _print(judged, fitted["noise"], figures)
    if with_list:
        _list(judged["with"])
    return figures


def with_examples(concept: Concept, examples: tuple[str, ...] | list[str]) -> Concept:
    """A concept with other example sentences."""
    return replace(concept, examples=tuple(examples), negatives=())


def noise_concepts(pack: ConceptPack) -> ConceptPack:
    """Concepts of sentences drawn by lot, which mean nothing together."""
    rng = np.random.default_rng(0)
    texts = sorted({text for concept in pack.concepts for text in concept.examples})
    n = round(np.mean([len(concept.examples) for concept in pack.concepts]))
    concepts = []
    for i in range(N_NOISE):
        drawn = rng.choice(len(texts), size=n, replace=False)
        examples = tuple(texts[j] for j in drawn)
        concepts.append(Concept(id=f"noise-{i}", name=f"noise {i}", level=0, examples=examples))
    return replace(pack, name="noise", concepts=tuple(concepts), prompts="examples")


def judge(pack: LensPack, held: LensDataset) -> Iterator[Judged]:
    """Each lens on the sentences: its own against those of all unrelated concepts."""
    vectors = {i: held.vectors(i) for i in pack.model_layers}
    for lens in pack:
        logits = lens.decision_function(vectors[lens.model_layer]).astype(np.float64)
        y = np.zeros(held.n_samples, np.bool_)
        y[held.positives(lens.concept)] = True
        related = [held.labelled(c) for c in held.hierarchy.family(lens.concept)]
        keep = np.ones(held.n_samples, np.bool_)
        keep[np.concatenate(related)] = False
        rows = np.flatnonzero(keep | y)[:]
        sample = held.vector_sample
        chosen = np.isin(sample, rows)
        ranked = rank_texts(y[sample[chosen]], logits[chosen], held.text_number[sample[chosen]])
        yield Judged(lens, ranked.interval(), ranked.score())


def _figures(judged: dict[str, list[Judged]], noise: LensPack) -> dict[str, float]:
    both, own = judged["with"] + judged["without"], judged["with"]
    graded = [j for j in both if j.lens.grade is not None]
    widths = [j.lens.metrics["score_high"] - j.lens.metrics["score_low"] for j in own]
    grades = Counter(lens.grade for lens in noise)
    return {
        "overgraded_share_old": float(np.mean([j.overgraded(j.old_grade) for j in both])),
        "overgraded_share": float(np.mean([j.overgraded(j.lens.grade) for j in graded])),
        "undergraded_share": float(np.mean([j.undergraded(j.lens.grade) for j in own])),
        "undergraded_share_old": float(np.mean([j.undergraded(j.old_grade) for j in own])),
        "ungraded_share": float(np.mean([j.lens.grade is None for j in both])),
        "mean_width": float(np.nanmean(widths)),
        "noise_a": grades[Grade.A],
        "noise_b_share": grades[Grade.B] / len(noise),
    }


def _print(judged: dict[str, list[Judged]], noise: LensPack, figures: dict[str, float]) -> None:
    print("\nfitted on           lenses  rule    A    B    C  none  overgraded  undergraded")
    names = {"with": "example sentences", "without": "names alone"}
    for key, lenses in judged.items():
        for rule in ("old", "new"):
            given = [j.old_grade if rule == "old" else j.lens.grade for j in lenses]
            counts = " ".join(f"{given.count(grade):4}" for grade in (*Grade, None))
            over = [j.overgraded(grade) for j, grade in zip(lenses, given, strict=True)]
            under = [j.undergraded(grade) for j, grade in zip(lenses, given, strict=True)]
            print(
                f"{names[key]:19} {len(lenses):6}  {rule:4} {counts}  {np.mean(over):10.1%}  "
                f"{np.mean(under):11.1%}"
            )
    for key, lenses in judged.items():
        scores, named = ([j.score for j in lenses], [j.lens.metrics["score_named"] for j in lenses])
        kept = [j.lens.metrics["score"] for j in lenses if j.lens.grade is not None]
        print(
            f"{names[key]}: mean score on the sentences {np.mean(scores):.2f}, on test texts that "
            f"name the concept {np.nanmean(named):.2f}, on those that do not "
            f"{np.mean(kept) if kept else float('nan'):.2f}"
        )
    reasons = Counter(j.lens.reason for j in judged["with"] if j.lens.reason)
    for reason, n in reasons.most_common():
        print(f"  {n:3} {reason}")
    print(f"noise: {len(noise)} lenses, {noise.grades()}")
    print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()))


def _list(lenses: list[Judged]) -> None:
    print("\nconcept                 old  new  score  all   on the sentences    reason")
    for j in lenses:
        if j.lens.grade != j.old_grade:
            m, (low, high) = j.lens.metrics, j.truth
            print(
                f"{j.lens.concept:24}{j.old_grade.value:>3}{j.lens.grade_shown:>5}{m['score']:7.2f}"
                f"{m['score_all']:6.2f}   {j.score:.2f} [{low:.2f}, {high:.2f}]   {j.lens.reason}"
            )


if __name__ == "__main__":
    main()
