"""What are three texts or fewer good for: to learn from, to judge by, or both?

    python benchmarks/few_texts.py [--work DIR] [--quick] [--seeds 3] [--family linear]

The foundation pack is extracted in prompt mode, levels 0-1 of it with `--quick`; `--work` keeps the
store, for another run.

Of each concept's examples that do not name it, three are drawn; the others, about a dozen, are in
no fit and tell the truth: the score that the lens really has. The three are used in every way:

    learn from 0, 1, 2 or 3 of them, beside the prompts that name the concept
    judge by the one text that a split of three leaves, or by all three in turn, each with the lens
        that did not learn from it (cross-fitting)
    pool: draw what they say of a concept towards what the texts of its siblings say of them

Predicted: a text is worth more to learn from than to judge by, and what three texts say of one
concept is too little for a grade however they are used.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache import ConceptPack, ExtractSettings, load_model
from lenscache.extract import extract
from lenstrain import FitSettings, LensDataset, open_dataset
from lenstrain.compare.heldout import held_out_logits
from lenstrain.data.dataset import TEST, TRAIN, stable_seed
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.metrics.grade import Grade
from lenstrain.metrics.score import ranking

FOUNDATION = Path(__file__).parents[1] / "data" / "packs" / "foundation.json"
N_MODEL_LAYERS = 7
FEW = 3
MIN_BANK = 6  # texts that tell the truth, at least
TRAIN_SETS = ((), (0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

Scores = NDArray[np.float64]


class Fit(NamedTuple):
    """What lenses that learned from some of the three texts get."""

    truth: dict[str, float]
    """Score of the texts that no fit saw, by concept."""
    each: dict[str, list[float]]
    """Score of each of the three by itself."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder of the store (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="levels 0-1 and one draw only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--family", choices=("discriminant", "linear"), default="discriminant")
    arguments = parser.parse_args()
    seeds = range(1 if arguments.quick else arguments.seeds)
    with tempfile.TemporaryDirectory() as scratch:
        store = (arguments.work or Path(scratch)) / f"few-{'quick' if arguments.quick else 'all'}"
        extract_foundation(store, [0, 1] if arguments.quick else None)
        drawn = [
            {learned: one_fit(store, learned, seed, arguments.family) for learned in TRAIN_SETS}
            for seed in seeds
        ]
        siblings = siblings_of(store)
    tell_learning(drawn)
    tell_judging(drawn, siblings)


def extract_foundation(store: Path, levels: list[int] | None) -> None:
    """Extract the foundation pack at seven model layers, or continue doing so."""
    model = load_model("smollm2-135m")
    chosen = np.linspace(0, model.n_layers - 1, N_MODEL_LAYERS).round().astype(int)
    settings = ExtractSettings(mode="prompt", batch_size=32, model_layers=tuple(map(int, chosen)))
    extract(store, ConceptPack.load(FOUNDATION), model, settings, levels=levels)


def one_fit(store: Path, learned: Sequence[int], seed: int, family: str) -> Fit:
    """Fit every concept on its named prompts and some of its three texts, and judge."""
    dataset = open_dataset(store)
    few: dict[str, NDArray[np.intp]] = {}
    bank: dict[str, NDArray[np.intp]] = {}
    for concept in dataset.concepts:
        rows = dataset.positives(concept)
        rows = rows[dataset.unnamed(concept, rows)]
        rng = np.random.default_rng(stable_seed("few texts", seed, concept))
        rows = rng.permutation(rows)
        few[concept], bank[concept] = rows[:FEW], rows[FEW:]
    # All examples are held out but those that are learned from, of whatever concept they are.
    dataset.split[np.concatenate([*few.values(), *bank.values()])] = TEST
    dataset.split[np.concatenate([few[c][list(learned)] for c in few])] = TRAIN
    layer = (dataset.model_layers[len(dataset.model_layers) // 2],) if family == "linear" else None
    settings = FitSettings(family=family, model_layers=layer, initial_samples=200, max_iterations=1)
    pack = make_lens_pack(fit_lenses(dataset, settings, jobs=1), dataset, settings)
    held = held_out_logits(pack, dataset, TEST)
    logits = np.full((dataset.n_samples, len(pack)), np.nan)
    logits[held.samples] = held.logits
    return judged(dataset, [lens.concept for lens in pack], logits, few, bank)


def judged(
    dataset: LensDataset,
    concepts: Sequence[str],
    logits: Scores,
    few: dict[str, NDArray[np.intp]],
    bank: dict[str, NDArray[np.intp]],
) -> Fit:
    """Scores against the banks of all unrelated concepts: the same negatives for every fit."""
    banks = np.unique(np.concatenate([*bank.values()]))
    truth, each = {}, {}
    for column, concept in enumerate(concepts):
        family = np.concatenate([dataset.labelled(c) for c in dataset.hierarchy.family(concept)])
        negative = logits[np.setdiff1d(banks, family), column]
        own = logits[bank[concept], column]
        if len(own) < MIN_BANK or len(few[concept]) < FEW:
            continue
        truth[concept] = score(own, negative)
        each[concept] = [
            np.nan if np.isnan(logit) else score(np.array([logit]), negative)
            for logit in logits[few[concept], column]
        ]
    return Fit(truth, each)


def score(positive: Scores, negative: Scores) -> float:
    """Average precision of the positives at the reference prevalence."""
    y = np.repeat([True, False], [len(positive), len(negative)])
    return ranking(y, np.concatenate([positive, negative])).score


def siblings_of(store: Path) -> dict[str, list[str]]:
    """The siblings of each concept."""
    hierarchy = open_dataset(store).hierarchy
    return {concept: sorted(hierarchy.siblings(concept)) for concept in hierarchy}


def tell_learning(drawn: list[dict[tuple[int, ...], Fit]]) -> None:
    """The true score by how many texts are learned from."""
    print("learned from   true score   A or B")
    for n in range(FEW + 1):
        found = [
            value
            for fits in drawn
            for learned, fit in fits.items()
            if len(learned) == n
            for value in fit.truth.values()
        ]
        print(f"{n:7} texts {np.mean(found):12.3f} {np.mean(np.array(found) >= 0.2):8.0%}")


def tell_judging(drawn: list[dict[tuple[int, ...], Fit]], siblings: dict[str, list[str]]) -> None:
    """How far each way to judge is from the true score of the lens that it judges."""
    ways = {
        # texts, judged by, the lens that is shipped learned from: estimate of one draw
        ("1", "the one text", "0"): lambda f: single(f, (), 0),
        ("2", "one text", "1"): lambda f: single(f, (0,), 1),
        ("2", "both in turn", "2"): lambda f: in_turn(f, {0: (1,), 1: (0,)}),
        ("3", "one text", "2"): lambda f: single(f, (1, 2), 0),
        ("3", "all in turn", "3"): lambda f: in_turn(f, {0: (1, 2), 1: (0, 2), 2: (0, 1)}),
    }
    shipped = {"0": (), "1": (0,), "2": (0, 1), "3": (0, 1, 2)}
    print("\ntexts  judged by       learned  weight of siblings: root mean square error")
    print(f"{'':32}{''.join(f'{w:8}' for w in WEIGHTS)}   best: too high a grade, too low")
    for (n, by, learned), estimate in ways.items():
        errors: list[list[float]] = [[] for _ in WEIGHTS]
        grades: list[list[tuple[str, str]]] = [[] for _ in WEIGHTS]
        for fits in drawn:
            truth, own = fits[shipped[learned]].truth, estimate(fits)
            for concept in truth.keys() & own.keys():
                near = [own[s] for s in siblings[concept] if s in own]
                pooled = np.mean(near) if near else np.mean([*own.values()])
                for i, weight in enumerate(WEIGHTS):
                    said = (1 - weight) * own[concept] + weight * float(pooled)
                    errors[i].append(said - truth[concept])
                    grades[i].append((Grade.of(said).value, Grade.of(truth[concept]).value))
        rmse = [float(np.sqrt(np.mean(np.square(e)))) for e in errors]
        best = grades[int(np.argmin(rmse))]
        high, low = (np.mean([f(a, b) for a, b in best]) for f in (str.__lt__, str.__gt__))
        print(
            f"{n:5}  {by:15} {learned:7} {''.join(f'{e:8.3f}' for e in rmse)}"
            f"   {high:14.0%} {low:16.0%}"
        )


def single(
    fits: dict[tuple[int, ...], Fit], learned: tuple[int, ...], text: int
) -> dict[str, float]:
    """What one text says of lenses that learned from some others, by concept."""
    return {concept: each[text] for concept, each in fits[learned].each.items()}


def in_turn(
    fits: dict[tuple[int, ...], Fit], learned: dict[int, tuple[int, ...]]
) -> dict[str, float]:
    """What texts say on average, each of the lens that learned from those given for it."""
    found = [single(fits, sets, text) for text, sets in learned.items()]
    shared = set.intersection(*(set(each) for each in found))
    return {c: float(np.mean([each[c] for each in found])) for c in shared}


if __name__ == "__main__":
    main()
