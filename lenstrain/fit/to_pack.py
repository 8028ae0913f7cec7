"""From a fit to a lens pack: what is shipped of each lens, and where all of it comes from."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from lenstrain.data.dataset import LensDataset
from lenstrain.fit.adaptive import FitResult, FitSettings, FittedLens, settings_to_json
from lenstrain.fit.choice import settled
from lenstrain.metrics.grade import RULE
from lenstrain.pack.folder import none_for_nan
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance


def make_lens_pack(
    result: FitResult, dataset: LensDataset, settings: FitSettings, *, text: LensPack | None = None
) -> LensPack:
    """The lens pack of a fit, with its provenance; `text` is the pack of its text lenses."""
    names, levels = dataset.concept_names, dataset.hierarchy.levels
    attributes = dataset.concept_attributes
    lenses = [
        replace(
            _ship(lens, names[lens.concept], levels[lens.concept]),
            attributes=attributes.get(lens.concept, {}),
        )
        for lens in result.lenses
    ]
    run = {"iterations": {str(number): spent._asdict() for number, spent in result.times.items()}}
    provenance, vocabulary = pack_provenance(dataset, settings), result.vocabulary
    if result.calibration is not None:
        provenance = replace(provenance, calibration=none_for_nan(result.calibration._asdict()))
    return LensPack(
        lenses,
        provenance,
        result.skipped,
        short=result.short,
        vocabulary=vocabulary,
        text=text,
        run=run,
    )


def _ship(lens: FittedLens, name: str, level: int) -> Lens:
    verdict = lens.verdict
    return Lens(
        concept=lens.concept,
        name=name,
        level=level,
        model_layers=lens.model_layers,
        weights=lens.weights,
        threshold=lens.threshold,
        calibrator=lens.calibrator,
        noise=lens.noise,
        grade=verdict.grade,
        status=verdict.status,
        reason=verdict.reason,
        metrics=_metrics(lens),
        trajectory=tuple(lens.trajectory),
        beyond=tuple(lens.beyond),
        directions=lens.directions,
    )


def _metrics(lens: FittedLens) -> LensMetrics:
    rank, interval, probability = lens.ranking, lens.score_interval, lens.probability
    cut = lens.cut.metrics
    # A store without texts of no concept has no natural figures.
    has_natural = not np.isnan(cut.natural_false_positive_rate)
    return replace(
        lens.metrics,
        natural_score=lens.metrics.natural_score if has_natural else None,
        natural_false_positive_rate=cut.natural_false_positive_rate if has_natural else None,
        test_f1=lens.test_f1,
        test_f1_unnamed=cut.f1_unnamed,
        test_f1_named=cut.f1_named,
        test_accuracy=cut.accuracy,
        precision=cut.precision,
        recall=cut.recall,
        false_positive_rate=cut.false_positive_rate,
        score=lens.score,
        score_low=interval.low,
        score_high=interval.high,
        grade_uncertain=lens.verdict.is_uncertain,
        score_all=rank.score,
        calibration_score=lens.calibration_score,
        average_precision=rank.average_precision,
        auroc=rank.auroc,
        score_by_model_layer={str(n): s for n, s in lens.score_by_model_layer.items()},
        controls={name: control._asdict() for name, control in lens.controls.items()},
        unbeaten_controls=lens.unbeaten,
        best_control=lens.best_control,
        lead_over_controls=lens.lead,
        brier=probability.brier,
        brier_before=probability.brier_before,
        expected_calibration_error=probability.expected_calibration_error,
        expected_calibration_error_before=probability.expected_calibration_error_before,
        reliability=none_for_nan(probability.reliability.to_json()),
        n_samples=lens.n_samples,
        n_test_unnamed=lens.n_test_unnamed,
        n_judged=rank.n_positive + rank.n_negative,
        iterations=len(lens.trajectory),
        test_looks=len(lens.trajectory),
        graduated=lens.graduated,
        refined_against=list(lens.refined),
        hungry=lens.hungry,
    )


def pack_provenance(dataset: LensDataset, settings: FitSettings) -> Provenance:
    """Where lenses come from: store, labels, settings, rounds, levels of abstraction, versions."""
    header, used, background = dataset.store.header, dataset.label_set, dataset.background
    labels = None
    if used is not None:
        labels = {"name": used.name, "digest": used.digest, "source": used.source}
    packages = ("lenscache", "numpy", "torch", "zarr")
    return Provenance(
        store={"digest": dataset.store.digest(), **header.to_attributes()},
        labels=labels,
        background=None if background is None else {"texts_to_judge_by": background.n_texts},
        grading_rule=RULE,
        settings=settings_to_json(
            settled(settings, dataset.n_concepts, has_two_classes=dataset.has_two_classes)
        ),
        rounds=list(dataset.rounds),
        layers=sorted({dataset.hierarchy.levels[concept] for concept in dataset.concepts}),
        provisional=None if dataset.extracted is None else True,
        extracted=None if dataset.extracted is None else dataset.extracted._asdict(),
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
    )
