"""Do thresholds transfer? Test F1 with each concept's own threshold and with drawn ones.

    python benchmarks/names.py --work DIR            # makes the stores
    python benchmarks/thresholds.py --work DIR [--quick]

A concept has two to four calibration texts, so its best threshold is partly luck.
`lenstrain.fit.cut` draws it towards the median of its level, which counts as so many calibration
texts. The number was chosen on the sentences of names.py, which are in no split; the test split is
what is reported, and was looked at twice.

Predicted: 0.02 of test F1, and no lens with a score of A whose test F1 is below 0.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from lenstrain import FitSettings, LensDataset, open_dataset
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.cut import PRIOR_TEXTS, draw_thresholds
from lenstrain.fit.fitted import FittedLens
from lenstrain.metrics.thresholds import classify


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of names.py")
    parser.add_argument("--quick", action="store_true", help="the stores of names.py --quick")
    arguments = parser.parse_args()
    size = "quick" if arguments.quick else "whole"
    stores = [arguments.work / f"{size}-{name}.zarr" for name in ("with", "sentences")]
    if missing := [path for path in stores if not path.exists()]:
        raise SystemExit(f"no store at {missing[0]}: run benchmarks/names.py --work DIR first")
    dataset, sentences = map(open_dataset, stores)
    lenses = fit_lenses(dataset, FitSettings(family="linear")).lenses
    levels = [dataset.hierarchy.levels[lens.concept] for lens in lenses]
    vectors = {i: sentences.vectors(i) for i in {lens.model_layers[0] for lens in lenses}}
    rows = [judged_by(lens, sentences, vectors) for lens in lenses]
    print(
        "a level's threshold        test F1  false positives   score of A: F1 below 0.5   F1 on the"
    )
    print(
        "is worth so many texts                                of all   lowest            sentences"
    )
    for prior in (0, 3, PRIOR_TEXTS, 12, 100):
        with patch("lenstrain.fit.cut.PRIOR_TEXTS", prior):
            cuts = draw_thresholds([lens.cut for lens in lenses], levels)
        f1 = np.array([cut.metrics.f1 for cut in cuts])
        rate = np.mean([cut.metrics.false_positive_rate for cut in cuts])
        good = f1[[lens.score >= 0.5 for lens in lenses]]
        others = [classify(*row, cut.threshold).f1 for row, cut in zip(rows, cuts, strict=True)]
        print(
            f"{prior:5}{'  (own threshold)' if not prior else '':20} {f1.mean():9.3f}  {rate:15.3f}"
            f"   {(good < 0.5).sum():2} of {len(good):3}  {good.min():5.2f}      "
            f"{np.mean(others):18.3f}"
        )


def judged_by(
    lens: FittedLens, held: LensDataset, vectors: dict[int, NDArray[np.float32]]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which sentences express a concept, and the logits of its lens; unrelated sentences only."""
    y = np.zeros(held.n_samples, np.bool_)
    y[held.positives(lens.concept)] = True
    keep = np.ones(held.n_samples, np.bool_)
    keep[np.concatenate([held.labelled(c) for c in held.hierarchy.family(lens.concept)])] = False
    chosen = (keep | y)[held.vector_sample]
    logits = lens.weights.decision_function(vectors[lens.model_layers[0]]).astype(np.float64)
    return y[held.vector_sample[chosen]], logits[chosen]


if __name__ == "__main__":
    main()
