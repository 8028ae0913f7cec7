"""From a dataset to finished lens packs: fit, refine, compare with text lenses and each other.

LensDataset --fit_targets--> FitResult --refine_lenses--> FitResult --make_lens_pack--> LensPack
            --fit_targets, text--> LensPack of text lenses --agreements--> metrics of each lens
                                          the LensPack itself --check_pack--> metrics of each lens
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenscache.errors import argument
from lenstrain.compare.agreement import agreements
from lenstrain.compare.rivals import check_pack
from lenstrain.data.dataset import CALIBRATION, LensDataset, open_dataset
from lenstrain.errors import SettingsError
from lenstrain.fit.adaptive import FitResult, fit_targets
from lenstrain.fit.choice import settled
from lenstrain.fit.refine import refine_lenses
from lenstrain.fit.refit import refit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FamilyName, FitProgress, FitSettings, OnProgress

if TYPE_CHECKING:
    from lenscache.store.store import Store

TEXT_TARGET_F1 = 0.80
"""Default target of text lenses: the words that a model writes tell less than its activations."""


def text_settings(
    settings: FitSettings, target_f1: float = TEXT_TARGET_F1, **changes: Any
) -> FitSettings:
    """Settings of the text lenses beside activation lenses; `changes` give them their own
    schedule."""
    reads_text = {"family": "text", "phase": "completion", "model_layers": None, "device": "cpu"}
    fixed: dict[str, Any] = {**reads_text, "C": None, "target_f1": target_f1}
    fixed["n_model_layers"] = None
    return replace(settings, **fixed | changes)


def train(
    dataset: LensDataset | Store | str | Path,
    settings: FitSettings | None = None,
    *,
    text: FitSettings | None = None,
    refine: bool = False,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
    **changes: Any,
) -> LensPack:
    """Fit, calibrate, grade and check a lens for every concept of a store.

    The lenses equal those of ``lenstrain fit`` with the same settings.

    Parameters
    ----------
    dataset : a store, its path, or a dataset of it where not all of the store is to be read.
    settings : how to fit; None for the defaults.
    text : `text_settings` for lenses that read the completions, trained beside the others; None for
        none.
    refine : whether to fit lenses again with their confusers as extra negatives.
    concepts : which concepts; None for all that the store was extracted for.
    jobs : threads; None for one a core, 8 at most. It changes no bit of the lenses.
    changes : fields of `FitSettings` to have instead, such as ``target_f1=0.9``.

    Raises
    ------
    SettingsError
        If a concept, model layer or phase that is asked for is not in the store.
    TooFewSamplesError
        If not one concept has enough samples.
    StoreIncompleteError
        If a round of the store is not finished.
    """
    settings = replace(settings or FitSettings(), **changes)
    if not isinstance(dataset, LensDataset):
        dataset = open_dataset(dataset, phase=settings.phase, seed=settings.seed)
    shared: dict[str, Any] = {"concepts": concepts, "jobs": jobs, "on_progress": on_progress}
    (pack,) = train_targets(
        dataset, settings, [settings.target_f1], text=text, refine=refine, **shared
    )
    return pack


def train_targets(
    dataset: LensDataset,
    settings: FitSettings,
    targets: Sequence[float],
    *,
    text: FitSettings | None = None,
    refine: bool = False,
    concepts: Sequence[str] | None = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[LensPack]:
    """`train` for several target F1 in one pass over the data: a pack for each, in their order.

    Raises
    ------
    SettingsError, TooFewSamplesError
        As `train`.
    """
    tell, start = on_progress or (lambda _: None), time.perf_counter()
    settings = settled(settings, dataset.n_concepts, has_two_classes=dataset.has_two_classes)
    check_family(settings.family, text=text is not None, refine=refine)
    own = dataset
    if settings.family == "text":
        settings, own = replace(settings, phase="completion"), dataset.with_phase("completion")
    # Before the fit: a store without completions is refused at once.
    texts = None if text is None else dataset.with_phase("completion")
    fit = partial(fit_targets, concepts=concepts, jobs=jobs)
    results = fit(own, settings, targets, on_progress=tell)
    beside = None
    if text is not None and texts is not None:

        def tell_text(progress: FitProgress) -> None:
            tell(progress._replace(stage="fitting text lenses"))

        (written,) = fit(texts, text, [text.target_f1], on_progress=tell_text)
        beside = _finished(written, texts, text, None, None, tell)
    packs = []
    for target, result in zip(targets, results, strict=True):
        its = replace(settings, target_f1=target)
        if refine:
            checks = check_pack(make_lens_pack(result, own, its), own, CALIBRATION)
            result = refine_lenses(own, its, result, checks, jobs=jobs, on_progress=tell)
        if settings.refit:
            result = refit_lenses(own, its, result, jobs=jobs, on_progress=tell)
        packs.append(_finished(result, own, its, beside, texts, tell))
        if refine:
            packs[-1].provenance = replace(packs[-1].provenance, refined=True)
    for pack in packs:
        pack.run["elapsed_s"] = time.perf_counter() - start
        pack.run["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return packs


def check_family(family: FamilyName, *, text: bool, refine: bool) -> None:
    """Raise SettingsError if a family cannot be refined, or have text lenses beside it."""
    if family == "text" and text:
        raise SettingsError(
            "text lenses beside text lenses: choose another family for those that read activations"
        )
    if family == "text" and refine:
        raise SettingsError(
            f"text lenses are not refined: leave {argument('refine')} out, or choose a family that "
            "reads activations"
        )


def _finished(
    result: FitResult,
    dataset: LensDataset,
    settings: FitSettings,
    text: LensPack | None,
    texts: LensDataset | None,
    tell: OnProgress,
) -> LensPack:
    """The pack of a fit, each lens checked beside the others and the text lenses."""
    pack = make_lens_pack(result, dataset, settings, text=text)
    tell(FitProgress("checking", 0, 1))
    found: dict[str, dict[str, Any]] = {
        concept: {"beside_others": check._asdict() | {"fires_everywhere": check.fires_everywhere}}
        for concept, check in check_pack(pack, dataset).items()
    }
    if text is not None and texts is not None:
        for concept, agreement in agreements(pack, text, dataset, texts).items():
            found[concept]["agreement"] = agreement._asdict()
    tell(FitProgress("checking", 1, 1))
    lenses = [
        replace(lens, metrics=replace(lens.metrics, **found.get(lens.concept, {}))) for lens in pack
    ]
    return replace(pack, lenses=lenses)
