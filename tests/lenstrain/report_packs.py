"""Lens packs made up in code for the report: as large and as hostile as packs get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from lenstrain.families.linear import LinearWeights
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration, Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.report.data import Report, make_report
from lenstrain.report.samples import SampleLine
from lenstrain.report.tree import Tree
from lenstrain.settings import FitSettings, settings_to_json

HOSTILE = (
    "<script>window.harmed=1</script>",
    "<img src=x onerror='window.harmed=1'>",
    "&<img src=x onerror=window.harmed=1>",
    "&lt;b&gt; <b>bold</b> <a href='javascript:window.harmed=1'>link</a>",
    "\"quotes\" 'and' `more` %{label} $\\frac$ {{glue}} </script><!--<script>",
    "abc \u202egnp.exe\u202c \u2066x\u2069 \x1b[31m\x00\x07 tab\tline\nend",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 123",
    "constructor",
    "__proto__",
    "long " + "x" * 10_000,
    "e" + "\u0301" * 500,
    "half a pair \ud800",
    " ",
)
MODEL_LAYERS = 30
_WORDS = (
    "bird",
    "river",
    "debt",
    "engine",
    "grief",
    "treaty",
    "orchid",
    "verb",
    "harbour",
    "proof",
    "loan",
    "quartz",
)


def made_up_pack(n: int, *, names: Sequence[str] = (), shift: float = 0.0) -> LensPack:
    """A pack of n lenses with all the figures of a fitted one; the first have the `names` given, in
    id and name.

    `shift` is added to every score.
    """
    rng = np.random.default_rng(7)
    lenses = [_lens(i, names[i] if i < len(names) else None, rng, shift) for i in range(n)]
    model = {"id": "made up", "n_layers": MODEL_LAYERS}
    provenance = {
        "store": {"digest": "0" * 16, "model": model, "pack": {"name": "made up"}},
        "settings": settings_to_json(FitSettings()),
        "labels": None,
        "layers": list(range(6)),
    }
    iterations = {str(k): {"fits": max(n // k, 1), "seconds": n / (90 + k)} for k in range(1, 8)}
    return LensPack(
        lenses,
        provenance,
        {},
        run={"iterations": iterations, "elapsed_s": n / 9, "finished": "2026-01-01"},
    )


def made_up_report(
    n: int, *, names: Sequence[str] = (), texts: Sequence[str] = (), n_beside: int = 1
) -> Report:
    """The report of such a pack as if there were a store: a tree of six levels and twelve samples a
    concept."""
    others = {
        f"other {k}": made_up_pack(n, names=names, shift=0.02 * k) for k in range(1, n_beside + 1)
    }
    report = make_report(made_up_pack(n, names=names), label="made up", beside=others)
    rng = np.random.default_rng(8)
    # Every concept of a level is below some concept of the level above it.
    by_level = [
        [i for i, line in enumerate(report.concepts) if line.level == level] for level in range(6)
    ]
    parents: list[list[int]] = [[] for _ in report.concepts]
    for above, here in pairwise(by_level):
        for i in here if above else ():
            parents[i] = sorted({int(p) for p in rng.choice(above, 2 if rng.random() < 0.1 else 1)})
    samples = [[text, f"and so on: {text}"] for text in texts]
    details = []
    for i, detail in enumerate(report.details):
        lines = []
        for k in range(12):
            samples.append(
                [" ".join(rng.choice(_WORDS, 16)) + f" {i}", " ".join(rng.choice(_WORDS, 12))]
            )
            number = k if i == 0 and k < len(texts) else len(samples) - 1
            lines.append(
                SampleLine(
                    number, round(float(rng.random()), 4), bool(rng.random() < 0.5), k % 2 == 0, [i]
                )
            )
        details.append(replace(detail, best=lines[:4], worst=lines[4:8], false_alarms=lines[8:]))
    return replace(
        report,
        tree=Tree(parents, [], {}, is_flat=False),
        details=details,
        texts=samples,
        has_store=True,
    )


def _level(i: int) -> int:
    """The level of abstraction of a concept by number; there are more the more special they are."""
    return next((level for level, end in enumerate((5, 40, 300, 1000, 2700)) if i < end), 5)


def _lens(i: int, name: str | None, rng: np.random.Generator, shift: float) -> Lens:
    score = float(np.clip(rng.beta(2, 2) + shift, 0, 1))
    f1 = 0.5 + 0.5 * score
    n_steps, n_beyond = int(rng.integers(1, 8)), int(rng.integers(0, 6))
    steps = [
        Iteration(
            5 + 10 * k,
            50 + 100 * k,
            0.99,
            f1 * (1 - 0.3 / (k + 1)),
            score * (1 - 0.4 / (k + 1)),
            Grade.of(score).value,
            False,
        )
        for k in range(n_steps + n_beyond)
    ]
    curve = np.clip(
        score * np.sin(np.linspace(0.2, 2.4, MODEL_LAYERS)) + rng.normal(0, 0.04, MODEL_LAYERS),
        0,
        1,
    )
    bins = np.linspace(0.05, 0.95, 10)
    concept = f"{_WORDS[i % len(_WORDS)]}-{i}" if name is None else name
    metrics = {
        "test_f1": f1,
        "test_f1_unnamed": f1 - 0.05,
        "test_f1_named": min(f1 + 0.05, 1.0),
        "train_f1": 0.99,
        "precision": f1,
        "recall": f1,
        "false_positive_rate": 0.05,
        "score": score,
        "score_low": max(score - 0.2, 0.0),
        "score_high": min(score + 0.2, 1.0),
        "grade_uncertain": i % 3 == 0,
        "average_precision": score,
        "auroc": 0.9,
        "score_unnamed": score,
        "score_by_phase": {"prompt": score, "completion": float("nan")},
        "controls": {
            kind: {"score": float(rng.random() / 4), "test_f1": 0.5}
            for kind in (
                "shuffled labels",
                "random direction",
                "text length",
                "words of the prompt",
            )
        },
        "unbeaten_controls": ["text length"] if i % 9 == 0 else [],
        "brier": 0.1,
        "brier_before": 0.2,
        "expected_calibration_error": 0.05,
        "expected_calibration_error_before": 0.1,
        "reliability": {
            "predicted": bins.tolist(),
            "observed": (bins**1.3).tolist(),
            "rows": [9.0] * 10,
            "weight": [0.1] * 10,
        },
        "n_samples": steps[n_steps - 1].n_samples,
        "n_test": 8,
        "n_judged": 40_000,
        "iterations": n_steps,
        "test_looks": n_steps,
        "graduated": i % 4 != 0,
        "hungry": i % 4 == 0,
        "refined_against": [],
        "C": 0.1,
        "converged": True,
        "score_by_model_layer": {str(k): float(value) for k, value in enumerate(curve)},
        "beside_others": {
            "first": float(rng.random()),
            "median_rank": 2.0,
            "n_rivals": 9,
            "firing_rate": 0.1,
            "confusers": [],
            "fires_everywhere": i % 20 == 0,
        },
    }
    return Lens(
        concept=concept,
        name=concept.replace("-", " ") if name is None else name,
        level=_level(i),
        model_layers=(int(curve.argmax()),),
        weights=LinearWeights(np.zeros(4, np.float32), 0.0),
        threshold=0.0,
        calibrator=Calibrator("sigmoid", (1.0, 0.0)),
        noise=NoiseFloor(0.0, 1.0),
        grade=Grade.of(score),
        metrics=metrics,
        trajectory=tuple(steps[:n_steps]),
        beyond=tuple(steps[n_steps:]),
    )
