"""Lens packs made up in code for the report: as large and as hostile as packs get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from lenstrain.families.linear import LinearWeights
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import RULE, Evidence, Grade, Verdict, judge_evidence
from lenstrain.metrics.score import Interval
from lenstrain.pack.lens import Iteration, Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance
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


def made_up_pack(
    n: int, *, names: Sequence[str] = (), shift: float = 0.0, rule: int = RULE
) -> LensPack:
    """A pack of n lenses with all the figures of a fitted one; the first have the `names` given, in
    id and name. Of ten lenses, two are ungraded: one has no score, and one that of two texts.

    `shift` is added to every score. By `rule` 1, all are graded and no figure of today's rule is
    there, as in a pack of before.
    """
    rng = np.random.default_rng(7)
    lenses = [_lens(i, names[i] if i < len(names) else None, rng, shift) for i in range(n)]
    model = {"id": "made up", "n_layers": MODEL_LAYERS}
    provenance: dict[str, Any] = {
        "store": {"digest": "0" * 16, "model": model, "pack": {"name": "made up"}},
        "settings": settings_to_json(FitSettings()),
        "labels": None,
        "layers": list(range(6)),
        "grading_rule": rule,
    }
    if rule == 1:
        lenses = [_of_before(lens) for lens in lenses]
        del provenance["grading_rule"]
    iterations = {str(k): {"fits": max(n // k, 1), "seconds": n / (90 + k)} for k in range(1, 8)}
    return LensPack(
        lenses,
        Provenance.from_json(provenance),
        {},
        run={"iterations": iterations, "elapsed_s": n / 9, "finished": "2026-01-01"},
    )


def made_up_report(
    n: int,
    *,
    names: Sequence[str] = (),
    texts: Sequence[str] = (),
    n_beside: int = 1,
    rule: int = RULE,
) -> Report:
    """The report of such a pack as if there were a store: a tree of six levels and twelve samples a
    concept."""
    others = {
        f"other {k}": made_up_pack(n, names=names, shift=0.02 * k) for k in range(1, n_beside + 1)
    }
    report = make_report(made_up_pack(n, names=names, rule=rule), label="made up", beside=others)
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


def _verdict(i: int, score: float, interval: Interval) -> Verdict:
    """Ninths are beaten by a control, twentieths fire everywhere."""
    return judge_evidence(
        Evidence(
            score=score,
            interval=interval,
            n_unnamed=_n_unnamed(i),
            control="text length",
            lead=_lead(i),
            false_positive_rate=0.3 if i % 20 == 0 else 0.05,
            test_f1=0.8,
        )
    )


def _n_unnamed(i: int) -> int:
    return {4: 0, 7: 2}.get(i % 10, 5)


def _lead(i: int) -> float:
    return -0.1 if i % 9 == 0 else 0.2


def _of_before(lens: Lens) -> Lens:
    """As the first rule graded it, and a pack of that time recorded it."""
    score = lens.metrics["score_all"]
    new = ("score_named", "score_all", "best_control", "lead_over_controls", "n_test_unnamed")
    metrics = {name: value for name, value in lens.metrics.items() if name not in new}
    metrics |= {"score": score, "score_low": score / 2, "score_high": score, "score_unnamed": 0.5}
    return replace(
        lens,
        grade=Grade.of(score),
        status="provisional",
        reason="",
        metrics=LensMetrics.from_json(metrics),
    )


def _lens(i: int, name: str | None, rng: np.random.Generator, shift: float) -> Lens:
    on_all = float(np.clip(rng.beta(2, 2) + shift, 0, 1))
    score, f1 = on_all, 0.5 + 0.5 * on_all
    n_steps, n_beyond = int(rng.integers(1, 8)), int(rng.integers(0, 6))
    steps = [
        Iteration(
            5 + 10 * k,
            50 + 100 * k,
            0.99,
            f1 * (1 - 0.3 / (k + 1)),
            score * (1 - 0.4 / (k + 1)) if _n_unnamed(i) else float("nan"),
            Grade.of(score).value if _n_unnamed(i) > 2 else "ungraded",
            False,
        )
        for k in range(n_steps + n_beyond)
    ]
    curve = np.clip(
        on_all * np.sin(np.linspace(0.2, 2.4, MODEL_LAYERS)) + rng.normal(0, 0.04, MODEL_LAYERS),
        0,
        1,
    )
    bins = np.linspace(0.05, 0.95, 10)
    if not _n_unnamed(i):
        score = float("nan")
    interval = Interval(score - 0.2 * score, score + 0.2 * (1 - score))
    verdict = _verdict(i, score, interval)
    concept = f"{_WORDS[i % len(_WORDS)]}-{i}" if name is None else name
    metrics = {
        "test_f1": f1,
        "test_f1_unnamed": f1 - 0.05 if _n_unnamed(i) else float("nan"),
        "test_f1_named": min(f1 + 0.05, 1.0),
        "train_f1": 0.99,
        "precision": f1,
        "recall": f1,
        "false_positive_rate": 0.05,
        "score": score,
        "score_low": interval.low,
        "score_high": interval.high,
        "grade_uncertain": verdict.is_uncertain,
        "score_named": min(on_all + 0.1, 1.0),
        "score_all": on_all,
        "average_precision": on_all,
        "auroc": 0.9,
        "score_by_phase": {"prompt": on_all, "completion": float("nan")},
        "controls": {
            kind: {
                "score": float(rng.random() / 4) if _n_unnamed(i) else float("nan"),
                "test_f1": 0.5,
            }
            for kind in (
                "shuffled labels",
                "random direction",
                "text length",
                "words of the prompt",
            )
        },
        "unbeaten_controls": ["text length"] if i % 9 == 0 and _n_unnamed(i) else [],
        "best_control": "text length" if _n_unnamed(i) else "",
        "lead_over_controls": _lead(i) if _n_unnamed(i) else float("nan"),
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
        "n_test_unnamed": _n_unnamed(i),
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
        grade=verdict.grade,
        status=verdict.status,
        reason=verdict.reason,
        metrics=LensMetrics.from_json(metrics),
        trajectory=tuple(steps[:n_steps]),
        beyond=tuple(steps[n_steps:]),
    )
