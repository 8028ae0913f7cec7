"""Lens packs: a folder of lenses trained from one store, as safetensors and JSON. Nothing in it is pickled.

    lenses.safetensors    weight (lenses, hidden) and bias (lenses,), float32, on raw activations
    lenses.json           for each row: concept, model layer, threshold, calibration, metrics, grade, trajectory;
                          and the provenance of all: store, model, settings, versions
    hungry.json           concepts that used every cached sample and did not graduate

The weights of all lenses are one matrix, so scoring an activation with the whole pack is one matrix product a model
layer. The folder is written beside its final place and moved there when it is complete.
"""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lenstrain.adaptive import FitResult, FitSettings, FittedLens, Iteration, settings_to_json
from lenstrain.calibration import Grade, Sigmoid
from lenstrain.dataset import LensDataset
from lenstrain.errors import LensPackExistsError, LensPackFormatError, LensPackNotFoundError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as a path: without its second slash

FORMAT_VERSION = 1
FAMILY = "linear"


@dataclass(frozen=True)
class Lens:
    """One concept's lens, as shipped: a small classifier over raw pooled activations of one model layer."""

    concept: str
    name: str
    """What people call the concept."""
    layer: int
    """Layer of abstraction of the concept."""
    model_layer: int
    """Transformer block whose output it reads."""
    weight: NDArray[np.float32]
    """(hidden,)"""
    bias: float
    threshold: float
    """Logit from which on the concept counts as present."""
    sigmoid: Sigmoid
    grade: Grade
    metrics: dict[str, Any]
    """Everything measured: F1, score, average precision, AUROC, scores by phase ..."""
    trajectory: tuple[Iteration, ...]

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """(n,) logits of raw activations X (n, hidden)."""
        return np.asarray(np.asarray(X).astype(np.float32) @ self.weight + np.float32(self.bias))

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(n, 2) calibrated probabilities of absence and presence, both alike in prevalence."""
        present = self.sigmoid(self.decision_function(X).astype(np.float64))
        return np.stack([1 - present, present], axis=1)

    def predict(self, X: NDArray[Any]) -> NDArray[np.bool_]:
        """(n,) whether the concept counts as present."""
        return self.decision_function(X) >= self.threshold


class LensPack:
    """A lens pack in memory: a sequence of lenses that can score activations all at once.

    Examples
    --------
    >>> pack = LensPack.load("lenses")  # doctest: +SKIP
    >>> pack["bird"].predict_proba(X)  # doctest: +SKIP
    >>> pack.score(X, model_layer=15)  # (n, lenses of model layer 15)  # doctest: +SKIP
    """

    def __init__(self, lenses: Sequence[Lens], provenance: dict[str, Any], skipped: dict[str, str]) -> None:
        self.lenses, self.provenance, self.skipped = tuple(lenses), provenance, skipped
        self._by_concept = {lens.concept: lens for lens in self.lenses}
        self._stacks: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def __len__(self) -> int:
        return len(self.lenses)

    def __iter__(self) -> Iterator[Lens]:
        return iter(self.lenses)

    def __getitem__(self, concept: str) -> Lens:
        return self._by_concept[concept]

    def __contains__(self, concept: object) -> bool:
        return concept in self._by_concept

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Transformer blocks that any lens reads, ascending."""
        return tuple(sorted({lens.model_layer for lens in self.lenses}))

    @property
    def hungry(self) -> list[str]:
        """Concepts that used every cached sample and did not graduate."""
        return [lens.concept for lens in self.lenses if lens.metrics["hungry"]]

    def at(self, model_layer: int) -> list[Lens]:
        """The lenses that read one model layer, in the order of `score`'s columns."""
        return [lens for lens in self.lenses if lens.model_layer == model_layer]

    def score(self, X: NDArray[Any], model_layer: int) -> NDArray[np.float32]:
        """(n, lenses at this model layer) logits of raw activations X (n, hidden), in one matrix product."""
        if model_layer not in self._stacks:
            here = self.at(model_layer)
            hidden = len(self.lenses[0].weight) if self.lenses else np.asarray(X).shape[1]
            weight = np.array([lens.weight for lens in here], np.float32).reshape(len(here), hidden)
            self._stacks[model_layer] = weight, np.array([lens.bias for lens in here], np.float32)
        weight, bias = self._stacks[model_layer]
        return np.asarray(np.asarray(X).astype(np.float32) @ weight.T + bias)

    def grades(self) -> dict[str, int]:
        """How many lenses have each grade."""
        counts = Counter(lens.grade.value for lens in self.lenses)
        return {grade.value: counts[grade.value] for grade in Grade}

    def summary(self) -> dict[str, Any]:
        """The pack in a few numbers."""

        def mean(metric: str) -> float:
            values = [value for lens in self.lenses if not math.isnan(value := lens.metrics[metric])]
            return float(np.mean(values)) if values else math.nan

        return {
            "n_lenses": len(self),
            "grades": self.grades(),
            "graduated": sum(lens.metrics["graduated"] for lens in self.lenses),
            "hungry": self.hungry,
            "skipped": self.skipped,
            "mean_test_f1": mean("test_f1"),
            "mean_test_f1_unnamed": mean("test_f1_unnamed"),
            "mean_test_f1_named": mean("test_f1_named"),
            "mean_score": mean("score"),
            "mean_samples": mean("n_samples"),
            "mean_iterations": mean("iterations"),
        }

    @classmethod
    def load(cls, folder: str | Path) -> LensPack:
        """Read a lens pack from its folder.

        Raises
        ------
        LensPackNotFoundError
            If there is none.
        LensPackFormatError
            If the folder holds something else, or a pack of a newer format.
        """
        folder = Path(folder)
        try:
            data = json.loads((folder / "lenses.json").read_text(encoding="utf-8"))
            tensors = safetensors.numpy.load_file(folder / "lenses.safetensors")
        except (FileNotFoundError, NotADirectoryError):
            raise LensPackNotFoundError(f"no lens pack at {folder}: make one with `lenstrain fit`") from None
        except (ValueError, safetensors.SafetensorError) as error:
            raise LensPackFormatError(f"{folder} is not a readable lens pack ({error}): fit it again") from error
        found = data.get("format_version") if isinstance(data, dict) else None
        if found != FORMAT_VERSION:
            raise LensPackFormatError(
                f"{folder} has format version {found}, this lenstrain reads {FORMAT_VERSION}: upgrade lenstrain"
            )
        try:
            if len(data["lenses"]) != len(tensors["weight"]):
                raise ValueError(f"{len(data['lenses'])} lenses in JSON and {len(tensors['weight'])} in safetensors")
            rows = zip(data["lenses"], tensors["weight"], tensors["bias"], strict=True)
            return cls([_lens_from_json(*row) for row in rows], data["provenance"], data["skipped"])
        except (KeyError, TypeError, ValueError) as error:
            raise LensPackFormatError(f"{folder} is not a readable lens pack ({error}): fit it again") from error

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the pack to a folder that does not exist yet.

        Parameters
        ----------
        overwrite : replace a lens pack that is there; it stays until the new one is complete.

        Raises
        ------
        LensPackExistsError
            If the folder exists, and is not a lens pack or `overwrite` is off.
        """
        folder = Path(folder)
        check_output(folder, overwrite=overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            self._write(scratch)
            scratch.chmod(0o755)  # mkdtemp's folders are private
            if folder.exists():
                old = scratch.with_name(f"{scratch.name}-old")
                folder.rename(old)
                try:
                    scratch.rename(folder)
                except BaseException:
                    old.rename(folder)
                    raise
                shutil.rmtree(old)
            else:
                scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _write(self, folder: Path) -> None:
        weight = np.array([lens.weight for lens in self.lenses], np.float32)
        bias = np.array([lens.bias for lens in self.lenses], np.float32)
        # Not save_file, which makes the file private whatever the umask says.
        (folder / "lenses.safetensors").write_bytes(safetensors.numpy.save({"weight": weight, "bias": bias}))
        data = {
            "format_version": FORMAT_VERSION,
            "provenance": self.provenance,
            "skipped": self.skipped,
            "lenses": [_lens_to_json(lens) for lens in self.lenses],
        }
        _write_json(folder / "lenses.json", data)
        hungry = {lens.concept: lens.metrics["n_samples"] for lens in self.lenses if lens.metrics["hungry"]}
        _write_json(folder / "hungry.json", {"concepts": hungry, "store": self.provenance.get("store")})


def make_lens_pack(result: FitResult, dataset: LensDataset, settings: FitSettings) -> LensPack:
    """The lens pack of a fit, with its provenance."""
    names, layers = dataset.concept_names, dataset.hierarchy.layers
    lenses = [_ship(lens, names[lens.concept], layers[lens.concept]) for lens in result.lenses]
    return LensPack(lenses, _provenance(dataset, settings), result.skipped)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise LensPackExistsError unless `folder` may be written; called before the work, too.

    Raises
    ------
    LensPackFormatError
        If it is a URL.
    """
    if _URL.match(str(folder)):
        raise LensPackFormatError(f"a lens pack cannot be written to a URL ({folder}): choose a folder, and copy it")
    if folder.exists() and not (overwrite and (folder / "lenses.json").exists()):
        hint = (
            "choose another --out, or pass --overwrite" if (folder / "lenses.json").exists() else "choose another --out"
        )
        raise LensPackExistsError(f"the output folder {folder} exists already: {hint}")


def _ship(lens: FittedLens, name: str, layer: int) -> Lens:
    rank = lens.ranking
    return Lens(
        concept=lens.concept, name=name, layer=layer, model_layer=lens.model_layer,
        weight=lens.weight.astype(np.float32), bias=float(np.float32(lens.bias)), threshold=lens.threshold,
        sigmoid=lens.sigmoid, grade=lens.grade,
        metrics={
            "test_f1": lens.test_f1, "test_f1_unnamed": lens.f1_unnamed, "test_f1_named": lens.f1_named,
            "train_f1": lens.train_f1, "precision": lens.precision, "recall": lens.recall,
            "score": rank.score, "average_precision": rank.average_precision, "auroc": rank.auroc,
            "score_unnamed": lens.unnamed_score, "score_by_phase": lens.phase_scores,
            "n_samples": lens.n_samples, "n_test": lens.n_test, "n_judged": rank.n_positive + rank.n_negative,
            "iterations": len(lens.trajectory), "test_looks": len(lens.trajectory), "graduated": lens.graduated,
            "C": lens.C, "hungry": lens.hungry, "converged": lens.converged,
        },
        trajectory=tuple(lens.trajectory),
    )  # fmt: skip


def _provenance(dataset: LensDataset, settings: FitSettings) -> dict[str, Any]:
    header = dataset.store.header.to_attributes()
    packages = ("lenscache", "numpy", "torch", "zarr")
    return {
        "store": {"digest": dataset.store.digest(), **header},
        "labels": None
        if (used := dataset.label_set) is None
        else {
            "name": used.name,
            "digest": used.digest,
            "source": used.source,
        },
        "family": FAMILY,
        "settings": settings_to_json(settings),
        "rounds": list(dataset.rounds),
        "layers": sorted({dataset.hierarchy.layers[concept] for concept in dataset.concepts}),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _lens_to_json(lens: Lens) -> dict[str, Any]:
    return {
        "concept": lens.concept, "name": lens.name, "layer": lens.layer, "model_layer": lens.model_layer,
        "threshold": lens.threshold, "calibration": lens.sigmoid._asdict(), "grade": lens.grade.value,
        "metrics": lens.metrics, "trajectory": [iteration._asdict() for iteration in lens.trajectory],
    }  # fmt: skip


def _lens_from_json(data: dict[str, Any], weight: NDArray[np.float32], bias: np.float32) -> Lens:
    return Lens(
        concept=data["concept"], name=data["name"], layer=data["layer"], model_layer=data["model_layer"],
        weight=weight, bias=float(bias), threshold=data["threshold"], sigmoid=Sigmoid(**data["calibration"]),
        grade=Grade(data["grade"]), metrics=_nan_for_none(data["metrics"]),
        trajectory=tuple(Iteration(**iteration) for iteration in data["trajectory"]),
    )  # fmt: skip


def _write_json(path: Path, data: Any) -> None:
    path.write_text(
        json.dumps(none_for_nan(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def none_for_nan(value: Any) -> Any:
    """Plain values for JSON, which has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: none_for_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [none_for_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _nan_for_none(metrics: dict[str, Any]) -> dict[str, Any]:
    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(entry) for key, entry in value.items()}
        return math.nan if value is None else value

    return {key: restore(value) for key, value in metrics.items()}
