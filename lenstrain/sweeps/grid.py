"""A grid of fits: a lens pack for every combination of family, model layers and target F1.

    Grid --cells--> Cell: a family on some model layers, all targets in one pass --Engine--> packs
         --fit_grid--> DIR/linear-f1-0.95, DIR/mlp-f1-0.95-layers-5 ..., each written when fitted

A pass for several targets costs little more than one for the highest (benchmarks/sweep.py). So an
engine is given whole cells, and fits a cell again if its worker dies. With any engine the packs are
the same, bit for bit, as those of `lenstrain.fit.train.train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lenstrain.data.dataset import LensDataset, open_dataset
from lenstrain.errors import (
    LensPackExistsError,
    LenstrainError,
    SettingsError,
    TooFewSamplesError,
)
from lenstrain.fit.choice import ranges, settled
from lenstrain.fit.train import check_family, train_targets
from lenstrain.pack.folder import check_output
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FamilyName, FitProgress, FitSettings, OnProgress, settings_from_json
from lenstrain.sweeps.existing import difference


class Cell(NamedTuple):
    """What one pass over the data fits."""

    settings: FitSettings
    targets: tuple[float, ...]

    @property
    def label(self) -> str:
        """Family and model layers, for people."""
        chosen = self._model_layers
        return self.settings.family + (f" on {chosen}" if chosen is not None else "")

    def name(self, target: float) -> str:
        """Folder of the pack for a target; the rest of the grid does not change it."""
        name, chosen = f"{self.settings.family}-f1-{target:.12g}", self._model_layers
        return name if chosen is None else f"{name}-layers-{chosen.replace(', ', '+')}"

    @property
    def _model_layers(self) -> str | None:
        model_layers = self.settings.model_layers
        return None if model_layers is None else ranges(sorted(set(model_layers)))


@dataclass(frozen=True)
class Grid:
    """What to fit. Plain values: workers elsewhere get it as it is and open the store
    themselves."""

    store: str
    """Path or URL."""
    settings: FitSettings
    """What all fits have in common; family, model layers and target F1 are those of each."""
    families: tuple[FamilyName, ...]
    targets: tuple[float, ...]
    model_layers: tuple[tuple[int, ...] | None, ...] = (None,)
    """Sets of transformer blocks to choose from; None for all that the store holds. Text lenses
    read none and are fitted once beside other families."""
    levels: tuple[int, ...] | None = None
    """Levels of abstraction; None for all."""
    labels: str | None = None
    """Label set; None for the labels that the store was extracted with."""
    concepts: tuple[str, ...] | None = None
    text: FitSettings | None = None
    """As for `train`."""
    refine: bool = False
    partial: bool = False
    """Fit what is complete, though the extraction is not finished."""

    def __post_init__(self) -> None:
        if not (self.families and self.targets and self.model_layers):
            raise SettingsError(
                "the grid is empty: name a family, a target F1 and a set of model layers at least"
            )
        for cell in self.cells:
            check_family(cell.settings.family, text=self.text is not None, refine=self.refine)
            for target in cell.targets:
                replace(cell.settings, target_f1=target)  # refused now, not after the work

    def settled(self) -> Grid:
        """The same with the family that "auto" stands for in this store."""
        if "auto" not in self.families:
            return self
        n_concepts = self.open().n_concepts
        its = (settled(replace(self.settings, family=f), n_concepts).family for f in self.families)
        return replace(self, families=tuple(dict.fromkeys(its)))

    @property
    def cells(self) -> list[Cell]:
        """What is to be fitted, a pass each; nothing twice."""
        targets = tuple(sorted(set(self.targets)))
        families = tuple(dict.fromkeys(self.families))
        cells: dict[str, Cell] = {}
        for family in families:
            own: dict[str, Any] = {"family": family, "model_layers": None}
            if family == "text":  # `train` does the same; here, to compare with packs that exist
                own |= {"phase": "completion", "n_model_layers": None}
            once = family == "text" and len(families) > 1
            for model_layers in (None,) if once else self.model_layers:
                own |= {"model_layers": model_layers, "target_f1": targets[-1]}
                cell = Cell(replace(self.settings, **own), targets)
                cells.setdefault(cell.label, cell)
        return list(cells.values())

    @property
    def is_single(self) -> bool:
        """Whether it is one fit, and so one pack."""
        return len(self.cells) == len(self.cells[0].targets) == 1

    def open(self) -> LensDataset:
        """The store as training data.

        Raises
        ------
        StoreIncompleteError
            If extraction is not finished, and `partial` is not set.
        TooFewSamplesError
            If it is, and no concept is complete.
        """
        dataset = open_dataset(
            self.store,
            levels=self.levels,
            phase=self.settings.phase,
            seed=self.settings.seed,
            labels=self.labels,
            partial=self.partial,
        )
        if (part := dataset.extracted) is not None and not part.concepts:
            raise TooFewSamplesError(
                f"{self.store}: {part.blocks} of {part.of_blocks} blocks are extracted, and not "
                f"one of {part.of_concepts} concepts has all of its samples in them: fit later"
            )
        return dataset


class GridProgress(NamedTuple):
    """Where a grid stands."""

    done: int
    total: int
    """Packs."""
    running: Mapping[str, FitProgress]
    """The passes that run, by label."""


Running = Callable[[Mapping[str, FitProgress]], None]
Outcome = list[LensPack] | Exception
"""The packs of a cell, in the order of its targets, or why there are none."""


class Engine(Protocol):
    """Where cells are fitted."""

    def run(
        self, grid: Grid, cells: Sequence[Cell], on_progress: Running
    ) -> Generator[tuple[Cell, Outcome]]:
        """Fit cells, in any order; an error of one is handed over and does not end the others."""


@dataclass(frozen=True)
class LocalEngine:
    """Fits in this process, one cell after the other.

    Parameters
    ----------
    dataset : the store of the grid, as it was opened.
    jobs : threads; None for one a core, 8 at most.
    """

    dataset: LensDataset
    jobs: int | None = None

    def run(
        self, grid: Grid, cells: Sequence[Cell], on_progress: Running
    ) -> Generator[tuple[Cell, Outcome]]:
        """As `Engine.run`."""
        for cell in cells:

            def tell(progress: FitProgress, label: str = cell.label) -> None:
                on_progress({label: progress})

            outcome: Outcome
            try:
                outcome = fit_cell(self.dataset, grid, cell, jobs=self.jobs, on_progress=tell)
            # told by name, beside what the other cells gave
            except Exception as error:  # noqa: BLE001
                outcome = error
            yield cell, outcome


class FittedCombination(NamedTuple):
    """One pack of a grid, in a few numbers."""

    name: str
    folder: Path
    settings: FitSettings
    kept: bool
    """It was there, and was not fitted again."""
    elapsed_s: float
    """Of the pass that fitted it, with the other targets of that pass."""
    summary: dict[str, Any]
    """`LensPack.summary`."""
    calibration_scores: dict[str, float]
    """By concept: the score on the calibration split."""


@dataclass
class GridResult:
    """What came of a grid."""

    packs: list[FittedCombination] = field(default_factory=list)
    """In the order of the grid."""
    failures: dict[str, Exception] = field(default_factory=dict)
    """Why there is no pack, by name."""

    def calibration_scores(self) -> dict[str, float]:
        """By name: the mean score on the calibration split, over the concepts that all compared
        packs have a lens of.

        Packs may be chosen by this score. Choosing by test figures would fit to the test split, and
        those figures would then be too good. Text lenses are judged on other vectors than lenses
        that read activations, and are not compared with them. NaN if packs have no concept in
        common.
        """
        means: dict[str, float] = {}
        for reads_text in (False, True):
            compared = [p for p in self.packs if (p.settings.family == "text") == reads_text]
            concepts = [set(pack.calibration_scores) for pack in compared]
            common = set[str].intersection(*concepts) if concepts else ()
            for pack in compared:
                scores = [pack.calibration_scores[concept] for concept in sorted(common)]
                means[pack.name] = sum(scores) / len(scores) if scores else math.nan
        return means

    @property
    def best(self) -> str | None:
        """Name of the pack with the highest of `calibration_scores`, the first of equals; None
        unless two compare. Text lenses are left out if there are others."""
        compared = [pack for pack in self.packs if pack.settings.family != "text"] or self.packs
        means = self.calibration_scores()
        scored = [pack.name for pack in compared if not math.isnan(means[pack.name])]
        return max(scored, key=means.__getitem__) if len(scored) > 1 else None


def fit_cell(
    dataset: LensDataset, grid: Grid, cell: Cell, *, jobs: int | None, on_progress: OnProgress
) -> list[LensPack]:
    """The packs of one cell, in the order of its targets.

    Raises
    ------
    SettingsError, TooFewSamplesError
        As `train_targets`.
    """
    return train_targets(
        dataset,
        cell.settings,
        cell.targets,
        text=grid.text,
        refine=grid.refine,
        concepts=grid.concepts,
        jobs=jobs,
        on_progress=on_progress,
    )


def fit_one(
    grid: Grid,
    out: Path,
    *,
    engine: Engine,
    overwrite: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> LensPack:
    """Fit a grid of one combination, whose pack is `out` itself.

    Raises
    ------
    LensPackExistsError
        If the folder exists, and is not a lens pack or `overwrite` is off.
    LenstrainError
        Whatever the fit raises.
    """
    check_output(out, overwrite=overwrite)

    def tell(running: Mapping[str, FitProgress]) -> None:
        for progress in running.values():
            on_progress(progress)

    with closing(engine.run(grid, grid.cells, tell)) as outcomes:
        _, found = next(outcomes)
    if isinstance(found, Exception):
        raise found
    (pack,) = found
    pack.save(out, overwrite=overwrite)
    return pack


def fit_grid(
    grid: Grid,
    out: Path,
    *,
    dataset: LensDataset,
    engine: Engine,
    overwrite: bool = False,
    on_progress: Callable[[GridProgress], None] = lambda _: None,
) -> GridResult:
    """Fit every combination of a grid that is not there yet, and write each to a folder of its own
    under `out`.

    A pack that is there is kept if this grid would write the very same: another run was
    interrupted, or was smaller. A combination that fails does not take the others with it.

    Parameters
    ----------
    dataset : the store of the grid, as it was opened.
    overwrite : fit all of them, and replace the packs that are there.

    Raises
    ------
    LensPackExistsError
        If a folder is there that holds anything else; the message says what differs. Nothing was
        fitted.
    """
    if (out / "lenses.json").exists():
        raise LensPackExistsError(
            f"{out} is a lens pack, a folder of several was asked for: choose another --out"
        )
    result, found = GridResult(), dict[str, FittedCombination]()
    waiting: list[Cell] = []
    for cell in grid.cells:
        missing = []
        for target in cell.targets:
            name = cell.name(target)
            if overwrite or not (out / name / "lenses.json").exists():
                check_output(out / name, overwrite=overwrite)
                missing.append(target)
            else:
                pack = _checked(out / name, grid, replace(cell.settings, target_f1=target), dataset)
                found[name] = _in_numbers(pack, out / name, kept=True)
        if missing:
            waiting.append(Cell(replace(cell.settings, target_f1=missing[-1]), tuple(missing)))
    total = len(found) + sum(len(cell.targets) for cell in waiting)

    def tell(running: Mapping[str, FitProgress]) -> None:
        on_progress(GridProgress(len(found) + len(result.failures), total, running))

    tell({})
    with closing(engine.run(grid, waiting, tell)) as outcomes:
        for cell, packs in outcomes:
            names = [cell.name(target) for target in cell.targets]
            if isinstance(packs, Exception):
                result.failures |= dict.fromkeys(names, packs)
                packs = []
            for name, pack in zip(names, packs, strict=False):
                try:
                    pack.save(out / name, overwrite=overwrite)
                    found[name] = _in_numbers(pack, out / name, kept=False)
                except (LenstrainError, OSError) as error:
                    result.failures[name] = error
            tell({})
    order = [cell.name(target) for cell in grid.cells for target in cell.targets]
    result.packs = [found[name] for name in order if name in found]
    return result


def _checked(folder: Path, grid: Grid, settings: FitSettings, dataset: LensDataset) -> LensPack:
    """The pack that is there, if this grid would write the same."""
    pack = LensPack.load(folder)
    differs = difference(
        pack, dataset, settings, concepts=grid.concepts, text=grid.text, refine=grid.refine
    )
    if differs:
        raise LensPackExistsError(
            f"{folder} is there and was fitted otherwise ({differs}): choose another --out, or "
            "pass --overwrite"
        )
    return pack


def _in_numbers(pack: LensPack, folder: Path, *, kept: bool) -> FittedCombination:
    scores = ((lens.concept, lens.metrics.calibration_score) for lens in pack)
    known = {concept: its for concept, its in scores if its is not None and not math.isnan(its)}
    settings = settings_from_json(pack.provenance.settings)
    elapsed_s = float(pack.run.get("elapsed_s", math.nan))
    return FittedCombination(folder.name, folder, settings, kept, elapsed_s, pack.summary(), known)
