"""Lenses on other people's labelled text: test AUC beside scikit-learn's, on the same activations
and split.

    pip install --no-deps --target FOLDER sae-probes==0.4.2
    python benchmarks/labelled.py --data FOLDER [--quick] [--datasets 113 36 139] [--work FOLDER]
                                                [--json FILE]

Balanced binary sets of the package sae-probes go the way of a user's own file: a CSV with text,
label and split, the labelled importer, extraction (prompt mode), `fit_lenses`. The default ones
differ in kind: sentiment of film reviews (113), whether an answer to a science question is true
(36), whether news are about politics (139). Each set keeps its source's licence and none is part of
this repository. Sets 111 and 112, 15 and 16, 37 and 38 are byte-identical and 161 to 163 separate
news from code: leave those out. Rows are chosen and split 70/30 by a fixed seed, stratified by
label, each text once; texts of more than --max-tokens tokens are cut there, and the output says how
many.

Nobody sees the test rows before the end but the adaptive lens. What each side sees besides:

lens                      fits on the training rows (about three quarters of the 70 %), all of them
                          at once; chooses model layer, C, threshold and probabilities on the
                          calibration rows
lens, adaptive            the same with the default schedule: from 5 positives on until its test F1
                          reaches 0.95
regression, same rows     StandardScaler and LogisticRegressionCV on the lens's model layer and
                          training rows; chooses C by 5-fold cross-validation of AUC
regression, same block    the same on training and calibration rows
regression, own block     the same, and the model layer with the best cross-validated AUC, too

The difference is the lens's AUC minus the other's, with a 95 % bootstrap interval over test rows,
paired and within each class: it holds the chance in the test rows, not that in the training rows.
F1 has both classes alike, at the lens's own threshold, and 0.67 is what firing on everything gets;
score and grade are at a prevalence of 1 %, on few test rows: read them as rough.

Predicted before the first run: AUC 0.95 and more for politics, 0.75 to 0.85 for sentiment, 0.55 to
0.65 for truth (the model is small); the lens behind both regressions on more rows by 0 to 0.03, as
it fits on fewer rows and does not tune C, with intervals that hold 0 in most cases; next to nothing
between it and the regression on the same rows.
Found: AUC 0.95, 0.78 and 0.62. On politics and sentiment the lens is behind by 0.01 to 0.04, and so
it is, against the prediction, on its own rows and model layer: cross-validation chooses a C of
0.001 to 0.01 there, the default of 1 fits hundreds of rows too closely (--C tries others). On truth
no difference stands out from chance.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numcodecs.zstd import Zstd
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lenscache.concepts.importers.labelled import LabelledColumns, import_labelled
from lenscache.concepts.importers.tables import TableFormat
from lenscache.concepts.plan import SPLITS
from lenscache.errors import LenscacheError
from lenscache.extract import ExtractSettings, extract
from lenscache.model.loading import LoadedModel, load_model, silence
from lenstrain.data.dataset import CALIBRATION, TEST, TRAIN, LensDataset, open_dataset
from lenstrain.errors import LenstrainError
from lenstrain.fit.adaptive import FitSettings, fit_lenses

DATASETS = ("113_movie_sent", "36_sciq_tf", "139_news_class_Politics")
TEST_SHARE = 0.3
SEED = 0
BOOTSTRAPS = 2000
COSTS = np.logspace(-5, 2, 8)
FOLDS = 5
INSTALL = "`pip install --no-deps --target FOLDER sae-probes==0.4.2`, then pass --data FOLDER"


@dataclass(frozen=True)
class TextSet:
    """The rows that are used of one dataset."""

    name: str
    rows: list[tuple[str, str, str]]
    """Text, label and split."""
    positive: str
    """The label that the lens is about: the last one in order, as in the source's own code."""
    counts: dict[str, int]
    """Rows the source has, its distinct texts, texts labelled both ways, texts cut."""


@dataclass
class Result:
    """One classifier on one dataset."""

    method: str
    model_layer: int
    n_fitted: int
    """Rows it was fitted on."""
    C: float
    auc: float
    logits: np.ndarray = field(repr=False)
    """(test rows,)"""
    difference: tuple[float, float, float] | None = None
    """AUC of the lens minus this one's, and the ends of the 95 % interval."""
    f1: float | None = None
    score: float | None = None
    grade: str | None = None


@dataclass(frozen=True)
class Rows:
    """Labels and splits of the vectors of a store."""

    y: np.ndarray
    """(vectors,) whether the text has the positive label."""
    split: np.ndarray
    """(vectors,) index into `lenscache.concepts.plan.SPLITS`."""

    def of(self, *splits: int) -> np.ndarray:
        """(vectors,) which are in any of the splits."""
        return np.isin(self.split, splits)


def find_data(folder: Path | None) -> Path:
    """Folder of the compressed datasets: in `folder`, or where the package is installed."""
    if folder is not None:
        candidates = [folder, folder / "sae_probes"]
    else:
        # found and not imported: the package needs libraries that we do not
        spec = importlib.util.find_spec("sae_probes")
        candidates = (
            [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        )
    for candidate in candidates:
        if (data := candidate / "data" / "cleaned_data").is_dir():
            return data
    raise SystemExit(
        f"no datasets of sae-probes {f'in {folder}' if folder else 'installed'}: run {INSTALL}"
    )


def find_dataset(data: Path, name: str) -> Path:
    """File of a dataset, by name or number."""
    found = [*data.glob(f"{name}.csv.zst"), *data.glob(f"{name}_*.csv.zst")]
    if len(found) != 1:
        raise SystemExit(
            f"{len(found)} datasets in {data} are called {name!r}: give one name or number, such "
            "as 113"
        )
    return found[0]


def read_labels(path: Path) -> tuple[int, dict[str, set[str]]]:
    """Number of rows, and the labels of each distinct text."""
    csv.field_size_limit(2**31 - 1)
    content = bytes(Zstd().decode(path.read_bytes())).decode("utf-8")
    labels: dict[str, set[str]] = {}
    n_rows = 0
    for row in csv.DictReader(io.StringIO(content, newline="")):
        n_rows += 1
        labels.setdefault(row["prompt"], set()).add(row["target"])
    return n_rows, labels


def choose_rows(path: Path, loaded: LoadedModel, n_rows: int, max_tokens: int) -> TextSet:
    """Choose balanced rows by a fixed seed, cut long texts, and split what is left by label."""
    name = path.name.removesuffix(".csv.zst")
    n_source, labels = read_labels(path)
    classes = sorted({label for found in labels.values() for label in found})
    if len(classes) != 2:
        raise SystemExit(
            f"{name} has {len(classes)} classes, this script compares binary sets: choose another"
        )
    texts = sorted(labels)
    random.Random(f"{SEED} {name}").shuffle(texts)
    chosen: dict[str, str] = {}
    counts = {
        "source_rows": n_source,
        "distinct_texts": len(texts),
        "labelled_both_ways": 0,
        "cut_texts": 0,
    }
    taken: Counter[str] = Counter()
    for text in texts:
        if len(labels[text]) > 1:
            counts["labelled_both_ways"] += 1
            continue
        (label,) = labels[text]
        short = cut_text(loaded, text, max_tokens) if taken[label] < n_rows // 2 else ""
        if short.strip() and short not in chosen:
            chosen[short] = label
            taken[label] += 1
            counts["cut_texts"] += short != text
    per_class = min(taken[label] for label in classes)
    rows = [
        (text, label, "test" if number < round(TEST_SHARE * per_class) else "train")
        for label in classes
        for number, text in enumerate(
            [t for t, found in chosen.items() if found == label][:per_class]
        )
    ]
    return TextSet(name, rows, classes[-1], counts)


def cut_text(loaded: LoadedModel, text: str, max_tokens: int) -> str:
    """The beginning of a text that has at most `max_tokens` tokens."""
    while True:
        encoded = loaded.tokenizer(text, return_offsets_mapping=True, verbose=False)
        if len(encoded["input_ids"]) <= max_tokens:
            return text
        end = max(end for _, end in encoded["offset_mapping"][:max_tokens])
        text = text[: min(end, len(text) - 1)]


def make_dataset(
    texts: TextSet, loaded: LoadedModel, folder: Path, settings: ExtractSettings
) -> tuple[LensDataset, str]:
    """CSV -> pack -> store -> training data; and the id of the concept that the lens is about."""
    source = folder / f"{texts.name}-{len(texts.rows)}.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        writer.writerows(texts.rows)
    # a text of several lines may hold one that looks like a row
    table = TableFormat(quoting="csv")
    columns = LabelledColumns(split="split", concept=texts.name)
    imported = import_labelled(source, columns, table)
    for line in imported.report.lines():
        if not line.startswith("read:"):
            print(f"  {line}")
    store = source.with_suffix(".zarr")
    extract(store, imported.pack, loaded, settings)
    # Labels such as 0/1 and true/false make one concept with negatives of its own, others a concept
    # a class.
    concepts = [concept.id for concept in imported.pack.concepts]
    return open_dataset(store, phase="prompt"), concepts[0] if len(
        concepts
    ) == 1 else texts.positive


def join_rows(dataset: LensDataset, texts: TextSet) -> Rows:
    """Labels by text, from the source and not from the store; splits as the lens has them."""
    label_of = {text: label for text, label, _ in texts.rows}
    given_test = {text for text, _, split in texts.rows if split == "test"}
    splits = dict(zip(dataset.texts, dataset.split, strict=True))
    if lost := [text for text in given_test if splits.get(text) != TEST]:
        raise SystemExit(
            f"{texts.name}: {len(lost)} test texts are not test samples of the store, as "
            f"{lost[0]!r:.60}"
        )
    y = np.array([label_of[text] == texts.positive for text in dataset.texts])
    return Rows(y[dataset.vector_sample], dataset.split[dataset.vector_sample])


def compare(dataset: LensDataset, concept: str, rows: Rows, C: float | None) -> list[Result]:
    """Every method of the module's docstring; the lens comes first and the others are measured
    against it."""
    n = dataset.n_samples
    at_once = FitSettings(
        family="linear",
        phase="prompt",
        initial_samples=n,
        max_samples=n,
        max_negatives=n,
        C=C,
    )
    adaptive = FitSettings(family="linear", phase="prompt", C=C)
    lens = fit_lens("lens", dataset, concept, rows, at_once)
    here = [lens.model_layer]
    results = [
        lens,
        fit_lens("lens, adaptive", dataset, concept, rows, adaptive),
        fit_regression("regression, same rows", dataset, here, rows, rows.of(TRAIN)),
        fit_regression("regression, same block", dataset, here, rows, rows.of(TRAIN, CALIBRATION)),
        fit_regression(
            "regression, own block",
            dataset,
            dataset.model_layers,
            rows,
            rows.of(TRAIN, CALIBRATION),
        ),
    ]
    for other in results[1:]:
        other.difference = auc_difference(rows.y[rows.of(TEST)], lens.logits, other.logits)
    return results


def fit_lens(
    method: str, dataset: LensDataset, concept: str, rows: Rows, settings: FitSettings
) -> Result:
    """Fit with lenstrain, and check its AUC against scikit-learn's on the rows and labels of the
    source."""
    fitted = fit_lenses(dataset, settings, concepts=[concept]).lenses[0]
    test, last = rows.of(TEST), fitted.trajectory[-1]
    (model_layer,) = fitted.model_layers
    logits = fitted.weights.decision_function(dataset.vectors(model_layer)[test]).astype(np.float64)
    auc = float(roc_auc_score(rows.y[test], logits))
    if abs(auc - fitted.ranking.auroc) > 1e-4:  # shipped weights are float32
        raise SystemExit(
            f"{concept}: lenstrain reports AUC {fitted.ranking.auroc}, on the source's labels it "
            f"is {auc}"
        )
    n_negatives = min(last.n_negatives, int((~rows.y[rows.of(TRAIN)]).sum()))
    return Result(
        method,
        model_layer,
        last.n_samples + n_negatives,
        fitted.metrics.C,
        auc,
        logits,
        f1=fitted.test_f1,
        score=fitted.score,
        grade=fitted.verdict.grade.value if fitted.verdict.grade else "-",
    )


def fit_regression(
    method: str, dataset: LensDataset, model_layers: Sequence[int], rows: Rows, chosen: np.ndarray
) -> Result:
    """Fit scikit-learn's regression on the rows `chosen` (vectors,), on the best model layer."""
    best: tuple[float, int, Pipeline] | None = None
    for model_layer in model_layers:
        X = dataset.vectors(model_layer).astype(np.float64)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
        regression = LogisticRegressionCV(Cs=COSTS, cv=folds, scoring="roc_auc", max_iter=5000)
        pipeline = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            # scikit-learn warns of defaults that will change; both results are read below
            warnings.simplefilter("ignore", FutureWarning)
            pipeline.fit(X[chosen], rows.y[chosen])
        scores = regression.scores_
        by_fold = np.asarray(
            next(iter(scores.values())) if isinstance(scores, dict) else scores
        ).reshape(FOLDS, -1)
        cross_validated = float(by_fold.mean(axis=0).max())
        if best is None or cross_validated > best[0]:
            best = cross_validated, model_layer, pipeline
    assert best is not None, "a store has at least one model layer"
    _, model_layer, pipeline = best
    test = rows.of(TEST)
    logits = pipeline.decision_function(dataset.vectors(model_layer)[test].astype(np.float64))
    C = float(np.ravel(pipeline[-1].C_)[0])
    return Result(
        method,
        model_layer,
        int(chosen.sum()),
        C,
        float(roc_auc_score(rows.y[test], logits)),
        logits,
    )


def auc_difference(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """AUC of logits `a` minus that of `b`, and its 95 % interval over rows resampled within each
    class."""

    def wins(logits: np.ndarray) -> np.ndarray:
        return np.asarray(np.heaviside(logits[y][:, None] - logits[~y][None, :], 0.5))

    difference = wins(a) - wins(b)  # (positives, negatives); AUC is the mean of wins
    rng = np.random.default_rng(SEED)
    n_positive, n_negative = difference.shape
    positive = (
        rng.multinomial(n_positive, np.full(n_positive, 1 / n_positive), size=BOOTSTRAPS)
        / n_positive
    )
    negative = (
        rng.multinomial(n_negative, np.full(n_negative, 1 / n_negative), size=BOOTSTRAPS)
        / n_negative
    )
    low, high = np.quantile(((positive @ difference) * negative).sum(axis=1), [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def table(name: str, results: Sequence[Result]) -> list[str]:
    """Lines for people."""
    lines = []
    for r in results:
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*r.difference) if r.difference else ""
        lens = f"{r.f1:5.2f}  {r.score:5.2f}  {r.grade:>5}" if r.f1 is not None else ""
        lines.append(
            f"{name:24}  {r.method:22}  {r.model_layer:11}  {r.n_fitted:6}  {r.C:7.5g}  "
            f"{r.auc:8.3f}  {difference:23}  {lens}".rstrip()
        )
    return lines


def to_json(texts: TextSet, rows: Rows, results: Sequence[Result]) -> dict[str, Any]:
    """Plain values of one dataset."""
    return {
        "dataset": texts.name,
        "positive_label": texts.positive,
        **texts.counts,
        **split_counts(rows),
        "results": [{k: v for k, v in vars(result).items() if k != "logits"} for result in results],
    }


def split_counts(rows: Rows) -> dict[str, int]:
    """Rows by split."""
    return {f"{name}_rows": int(rows.of(split).sum()) for split, name in enumerate(SPLITS)}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the package sae-probes; default: where it is installed"
    )
    parser.add_argument(
        "--datasets", nargs="+", default=DATASETS, help="names or numbers of binary datasets"
    )
    parser.add_argument(
        "--rows", type=int, default=600, help="rows a dataset, at most (default 600)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="where texts are cut (default 256)"
    )
    parser.add_argument(
        "--C",
        type=float,
        help="inverse L2 strength of lenses (default: chosen on the calibration rows)",
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--model-layers", type=int, nargs="+", default=[5, 10, 15, 20, 25])
    parser.add_argument(
        "--work", type=Path, help="folder for CSV files and stores, to be used again"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="120 rows a dataset: shows that it runs, not who is better",
    )
    arguments = parser.parse_args()
    arguments.rows = min(arguments.rows, 120) if arguments.quick else arguments.rows
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    try:
        if arguments.work is not None:
            run(arguments, arguments.work)
        else:
            with tempfile.TemporaryDirectory() as folder:
                run(arguments, Path(folder))
    except (LenscacheError, LenstrainError) as error:
        raise SystemExit(str(error)) from None


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """All datasets, one after the other."""
    data = find_data(arguments.data)
    sources = [find_dataset(data, name) for name in arguments.datasets]
    folder.mkdir(parents=True, exist_ok=True)
    silence()
    loaded = load_model(arguments.model)
    max_tokens = min(arguments.max_tokens, loaded.max_positions or arguments.max_tokens)
    settings = ExtractSettings(
        mode="prompt", model_layers=tuple(arguments.model_layers), batch_size=16
    )
    print(
        f"{loaded.id}, model layers {', '.join(map(str, arguments.model_layers))}, computed in "
        f"{loaded.dtype}"
    )
    chosen = [choose_rows(source, loaded, arguments.rows, max_tokens) for source in sources]
    lines, figures = [], []
    for texts in chosen:
        head = f"{len(texts.rows)} rows of {texts.counts['distinct_texts']} distinct texts"
        print(
            f"{texts.name}: {head}, {texts.counts['cut_texts']} cut to {max_tokens} tokens",
            flush=True,
        )
        dataset, concept = make_dataset(texts, loaded, folder, settings)
        rows = join_rows(dataset, texts)
        print(f"  {', '.join(f'{n} {name}' for name, n in split_counts(rows).items())}", flush=True)
        results = compare(dataset, concept, rows, arguments.C)
        lines += ["", *table(texts.name, results)]
        figures.append(to_json(texts, rows, results))
    print(
        f"\n{'dataset':24}  {'method':22}  model layer  fitted        C  test AUC  "
        f"{'lens minus it (95 %)':23}  "
        "   F1  score  grade",
        *lines,
        sep="\n",
    )
    if arguments.json:
        versions = {"scikit-learn": sklearn.__version__, "numpy": np.__version__}
        settings_used = {
            "model": loaded.id,
            "dtype": loaded.dtype,
            "model_layers": arguments.model_layers,
            "rows": arguments.rows,
            "max_tokens": max_tokens,
            "seed": SEED,
        }
        content = {"settings": settings_used, "versions": versions, "datasets": figures}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
