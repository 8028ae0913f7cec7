"""Lenses on public labelled sets, beside scikit-learn on the same activations: for `quality.py`.

    pip install --no-deps --target FOLDER sae-probes==0.4.2
    python benchmarks/quality.py --public FOLDER

Every third, by number, of the sets of the package that have two balanced classes of 200 texts or
more and short texts (a median of up to 200 characters), without sets that are copies of others or
tell news from code (see `labelled.py`). 600 texts of each, 30 % of them for testing. Compared by
AUC on the test texts, and by accuracy, both classes alike in prevalence:

lens          as a fit ships it, all training texts at once
unrefit       the same without `refit`: fitted on the training split alone
f1            the same at the threshold of the best F1
lrcv          StandardScaler and LogisticRegressionCV (C by 5-fold cross-validated AUC) on training
              and calibration texts, at the lens's model layer
lda           LinearDiscriminantAnalysis with the covariance of Ledoit and Wolf, on the same
tfidf         TF-IDF and LogisticRegression on the texts themselves
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from labelled import (
    COSTS,
    FOLDS,
    SEED,
    choose_rows,
    find_data,
    join_rows,
    make_dataset,
    read_labels,
)
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lenscache import ExtractSettings, LoadedModel
from lenstrain import FitSettings, LensDataset, train
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN

N_ROWS, MAX_TOKENS, MEDIAN_LENGTH, PER_CLASS = 600, 96, 200, 200
DEFECTS = {16, 38, 112, 161, 162, 163}
MODEL_LAYERS = (10, 15, 20)
BOOTSTRAPS = 2000


def sets(data: Path) -> list[Path]:
    """The files of the sets that are compared on."""
    kept = []
    for path in sorted(data.glob("*.csv.zst"), key=_number):
        labels = read_labels(path)[1]
        sure = [next(iter(found)) for found in labels.values() if len(found) == 1]
        counts = np.unique(sure, return_counts=True)[1]
        is_balanced = len(counts) == 2 and counts.min() > 0.4 * counts.sum()
        is_short = np.median([*map(len, labels)]) <= MEDIAN_LENGTH
        if is_balanced and counts.min() >= PER_CLASS and is_short and _number(path) not in DEFECTS:
            kept.append(path)
    return kept[::3]


def _number(path: Path) -> int:
    return int(path.name.partition("_")[0])


def compare(folder: Path, model: LoadedModel, work: Path) -> dict[str, float]:
    """Print a line for each set and the means; the figures for the JSON file."""
    settings = ExtractSettings(mode="prompt", batch_size=32, model_layers=MODEL_LAYERS)
    found: list[dict[str, float]] = []
    for path in sets(find_data(folder)):
        texts = choose_rows(path, model, N_ROWS, MAX_TOKENS)
        dataset, concept = make_dataset(texts, model, work, settings)
        found.append(compare_on(dataset, concept, join_rows(dataset, texts).y))
        figures = ", ".join(f"{name} {value:.3f}" for name, value in found[-1].items())
        print(f"{texts.name}: {figures}", flush=True)
    figures = {}
    for name, one, other in (
        ("public_auc_minus_lrcv", "lens", "lrcv"),
        ("public_auc_minus_lda", "lens", "lda"),
        ("public_auc_minus_tfidf", "lens", "tfidf"),
        ("public_auc_of_refit", "lens", "unrefit"),
        ("public_accuracy_minus_lrcv", "accuracy of lens", "accuracy of lrcv"),
        ("public_accuracy_minus_f1", "accuracy of lens", "accuracy of f1"),
    ):
        paired = np.array([each[one] - each[other] for each in found])
        drawn = np.random.default_rng(0).choice(paired, (BOOTSTRAPS, len(paired))).mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        mean, beside = (np.mean([each[side] for each in found]) for side in (one, other))
        difference = f"{paired.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"{name}: {difference}, {mean:.3f} and {beside:.3f}")
        figures |= {name: float(paired.mean()), f"{name}_low": low, f"{name}_high": high}
    return figures


def compare_on(dataset: LensDataset, concept: str, y: NDArray[np.bool_]) -> dict[str, float]:
    """AUC and accuracy of every side on one set."""
    n, splits = dataset.n_samples, dataset.split[dataset.vector_sample]
    fitting, test = np.isin(splits, (TRAIN, CALIBRATION)), splits == TEST
    settings = FitSettings(phase="prompt", initial_samples=n, max_samples=n, max_negatives=n)
    found: dict[str, Any] = {}
    for side, changed in (("lens", {}), ("unrefit", {"refit": False}), ("f1", {"threshold": "f1"})):
        pack = train(dataset, replace(settings, **changed), concepts=[concept])
        lens = pack[concept]
        X = dataset.vectors(lens.model_layer)
        logits = lens.decision_function(X[test])
        found |= _judged(side, y[test], logits, lens.threshold)
    both = X.astype(np.float64)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    regression = LogisticRegressionCV(Cs=COSTS, cv=folds, scoring="roc_auc", max_iter=2000)
    shrunk = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    for side, classifier in (("lrcv", regression), ("lda", shrunk)):
        with warnings.catch_warnings():
            # of defaults that will change, and are not read here
            warnings.simplefilter("ignore", FutureWarning)
            fitted = make_pipeline(StandardScaler(), classifier).fit(both[fitting], y[fitting])
        found |= _judged(side, y[test], fitted.decision_function(both[test]), 0.0)
    words = np.array(dataset.texts, dtype=object)[dataset.vector_sample]
    text = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10)
    )
    text.fit(words[fitting], y[fitting])
    return found | _judged("tfidf", y[test], text.decision_function(words[test]), 0.0)


def _judged(
    side: str, y: NDArray[np.bool_], logits: NDArray[Any], threshold: float
) -> Mapping[str, float]:
    accuracy = balanced_accuracy_score(y, logits >= threshold)
    return {side: float(roc_auc_score(y, logits)), f"accuracy of {side}": float(accuracy)}
