"""Do the intervals of scores hold, and how wide are they? Coverage and width by simulation.

    python benchmarks/intervals.py [--quick] [--json FILE]

Model of the logits: negatives are standard normal, positives normal with deviation 1 and mean 2,
which is a true score of 0.27, between the boundaries of grades B and A. Beside it, other models:
means 1, 2.5, 4 and 9 (perfect separation), and mixtures in which a share of the positives is far
above (mean 5) and the rest is noise. Every data set has fresh samples; 1,000 of each kind.

coverage   share of intervals of 95 % that contain the true score, of 400,000 fresh samples
width      mean width, and its ratio to that of an oracle: the middle 95 % of the scores of fresh
           data sets of the same size
bootstrap  the percentile bootstrap alone, which rule 1 of grading used
leads      how often one of two equally good lenses is said to lead (nominal: 2.5 %)

Bounds: coverage at least 0.94 everywhere; at mean 2 a width of at most 1.4 times the oracle's.
Predicted: bootstrap 0.8 at 5/900 and 0.3 at 20/20; ours 0.97 and more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenstrain.metrics.score import Ranked, rank_texts

SIZES = ((5, 900), (12, 900), (20, 20), (150, 150), (1, 1000), (3, 900))
STATED = (("normal", 2.0),)
OTHERS = (
    ("normal", 1.0),
    ("normal", 2.5),
    ("normal", 4.0),
    ("normal", 9.0),
    ("mixture", 0.5),
    ("mixture", 0.8),
)
RESAMPLES = 500


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100 data sets of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    arguments = parser.parse_args()
    lines = []
    print(
        "model        score  positives/negatives   coverage  low  high  width  / oracle  bootstrap"
    )
    for model in (*STATED, *OTHERS):
        truth = _truth(*model)
        for size in SIZES:
            line = measure(model, size, truth, 100 if arguments.quick else 1000)
            lines.append(line)
            ratio = f"{line['ratio']:8.2f}" if line["ratio"] < 100 else "       -"
            print(
                f"{model[0]:8} {model[1]:3}  {truth:5.2f}  {size[0]:9}/{size[1]:<9}   "
                f"{line['coverage']:8.3f}  {line['above']:4.2f}  {line['below']:4.2f}  "
                f"{line['width']:5.2f}  {ratio}  {line['bootstrap']:9.3f}",
                flush=True,
            )
    for size in ((3, 900), (5, 900), (12, 900), (20, 20)):
        rate = false_leads(size, 50 if arguments.quick else 500)
        print(f"two equally good lenses, {size[0]}/{size[1]}: one is said to lead in {rate:.1%}")
    worst = min(line["coverage"] for line in lines)
    widest = max(line["ratio"] for line in lines[: len(STATED) * len(SIZES)])
    print(
        f"lowest coverage {worst:.3f} (bound 0.94); widest, stated model {widest:.2f} (bound 1.4)"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"coverage": worst, "ratio": widest}) + "\n")


def measure(
    model: tuple[str, float], size: tuple[int, int], truth: float, times: int
) -> dict[str, float]:
    """Coverage and width over data sets of one kind."""
    rng = np.random.default_rng([size[0], size[1]])
    y = np.repeat([True, False], size)
    data = [rank_texts(y, _draw(rng, *model, *size), np.arange(len(y))) for _ in range(times)]
    oracle = np.quantile([ranked.score() for ranked in data], [0.025, 0.975])
    ours = np.array([r.interval(n_resamples=RESAMPLES, seed=i) for i, r in enumerate(data)])
    alone = np.array([bootstrap(r, i) for i, r in enumerate(data)])
    width = float(np.mean(ours[:, 1] - ours[:, 0]))
    return {
        "coverage": float(_holds(ours, truth).mean()),
        "above": float((ours[:, 0] > truth + 1e-9).mean()),
        "below": float((ours[:, 1] < truth - 1e-9).mean()),
        "width": width,
        "ratio": width / max(float(oracle[1] - oracle[0]), 1e-9),
        "bootstrap": float(_holds(alone, truth).mean()),
    }


def false_leads(size: tuple[int, int], times: int) -> float:
    """How often `Ranked.lead_over` is above 0 between independent lenses of mean 2."""
    rng, y = np.random.default_rng(size), np.repeat([True, False], size)

    def one() -> Ranked:
        return rank_texts(y, _draw(rng, "normal", 2.0, *size), np.arange(len(y)))

    return float(np.mean([one().lead_over(one(), seed=i) > 0 for i in range(times)]))


def bootstrap(ranked: Ranked, seed: int) -> tuple[float, float]:
    """The percentile interval of positives and negatives drawn anew, nothing unseen."""
    rng = np.random.default_rng(seed)
    n, above = len(ranked.texts), ranked.cuts.above
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    share = np.diff(above, prepend=0) / ranked.n_rows
    let_in = rng.multinomial(
        ranked.n_rows, np.append(share, max(0.0, 1 - share.sum())), size=RESAMPLES
    )
    false = np.cumsum(let_in[:, :-1], axis=1) / ranked.n_rows
    true = 0.01 * np.cumsum(drawn, axis=1) / n
    scores = (drawn * true / np.maximum(true + 0.99 * false, 1e-300)).sum(axis=1) / n
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _holds(intervals: NDArray[np.float64], truth: float) -> NDArray[np.bool_]:
    return (intervals[:, 0] <= truth + 1e-9) & (intervals[:, 1] >= truth - 1e-9)


def _draw(
    rng: np.random.Generator, kind: str, parameter: float, n: int, m: int
) -> NDArray[np.float64]:
    if kind == "normal":
        mean = np.full(n, parameter)
    else:
        mean = np.where(rng.random(n) < parameter, 5.0, 0.0)
    return np.concatenate([mean + rng.standard_normal(n), rng.standard_normal(m)])


def _truth(kind: str, parameter: float) -> float:
    rng = np.random.default_rng(0)
    n, m = 40_000, 360_000
    return rank_texts(
        np.repeat([True, False], (n, m)), _draw(rng, kind, parameter, n, m), np.arange(n + m)
    ).score()


if __name__ == "__main__":
    main()
