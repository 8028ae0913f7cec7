"""Lens packs: a folder of lenses trained from one store, as safetensors and JSON. Nothing in it is pickled.

    lenses.safetensors    the weights of all lenses, one row a lens: see `lenstrain.shipping`
    lenses.json           for each row: concept, model layers, threshold, calibration, metrics, grade, trajectory;
                          and the provenance of all: store, model, settings, versions
    hungry.json           concepts that used every cached sample and did not graduate
    run.json              when and how long the fit ran: what differs from run to run, and nothing else does
    vocabulary.json       of lenses that read text: the terms of their rows
    text/                 of dual training: a pack of its own, the lenses that read what the model wrote

The weights of linear lenses are one matrix, so scoring an activation with the whole pack is one matrix product a model
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lenstrain.adaptive import FitResult, FitSettings, FittedLens, Iteration, settings_to_json
from lenstrain.calibration import Grade, is_uncertain
from lenstrain.dataset import SHORT, LensDataset
from lenstrain.errors import LensPackExistsError, LensPackFormatError, LensPackNotFoundError
from lenstrain.families import Weights
from lenstrain.linear import LinearWeights
from lenstrain.measure import NoiseFloor
from lenstrain.probability import Calibrator
from lenstrain.shipping import pack_weights, unpack_weights
from lenstrain.text import Vocabulary

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as a path: without its second slash

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Lens:
    """One concept's lens, as shipped: a small classifier over raw pooled activations of its model layers."""

    concept: str
    name: str
    """What people call the concept."""
    layer: int
    """Layer of abstraction of the concept."""
    model_layers: tuple[int, ...]
    """Transformer blocks whose outputs it reads, side by side; none if it reads text."""
    weights: Weights
    threshold: float
    """Logit from which on the concept counts as present."""
    calibrator: Calibrator
    noise: NoiseFloor
    """Its logits where nothing of the concept is: what to tell a signal from."""
    grade: Grade
    metrics: dict[str, Any]
    """Everything measured: F1, score, average precision, AUROC, scores by phase, controls ..."""
    trajectory: tuple[Iteration, ...]
    beyond: tuple[Iteration, ...] = ()
    """Iterations after graduation, recorded for `lenstrain impact`."""

    @property
    def model_layer(self) -> int:
        """The transformer block it reads, of a lens that reads one."""
        (model_layer,) = self.model_layers
        return model_layer

    @property
    def weight(self) -> NDArray[np.float32]:
        """(hidden,) of a linear lens, on raw activations.

        Raises
        ------
        TypeError
            If the lens is no linear one.
        """
        return self._linear.weight

    @property
    def bias(self) -> float:
        """Of a linear lens."""
        return self._linear.bias

    @property
    def _linear(self) -> LinearWeights:
        if not isinstance(self.weights, LinearWeights):
            raise TypeError(f"the lens of {self.concept} is not linear: use its decision_function")
        return self.weights

    def decision_function(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """(n,) logits of raw activations X (n, hidden); of several model layers side by side (n, layers * hidden)."""
        return np.asarray(self.weights.decision_function(np.asarray(X)), np.float32)

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """(n, 2) calibrated probabilities of absence and presence, both alike in prevalence."""
        present = self.calibrator(self.decision_function(X).astype(np.float64))
        return np.stack([1 - present, present], axis=1)

    def predict(self, X: NDArray[Any]) -> NDArray[np.bool_]:
        """(n,) whether the concept counts as present."""
        return self.decision_function(X) >= self.threshold

    def signal(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """How far logits, any shape, are above the noise floor, in its deviations."""
        return np.asarray((logits - self.noise.mean) / max(self.noise.deviation, 1e-12), np.float64)


class _Readers(NamedTuple):
    """The lenses that read one model layer, by number."""

    linear: list[int]
    weight: NDArray[np.float32]
    """(linear, hidden) what they weigh this model layer with"""
    others: list[int]
    alone: list[int]
    """those that read no other model layer"""


class LensPack:
    """A lens pack in memory: a sequence of lenses that can score activations all at once.

    Parameters
    ----------
    vocabulary : of lenses that read text.
    text : the pack of text lenses that was trained beside this one.
    run : when and how long the fit ran.

    Examples
    --------
    >>> pack = LensPack.load("lenses")  # doctest: +SKIP
    >>> pack["bird"].predict_proba(X)  # doctest: +SKIP
    >>> pack.score(X, model_layer=15)  # (n, lenses of model layer 15)  # doctest: +SKIP
    """

    def __init__(
        self,
        lenses: Sequence[Lens],
        provenance: dict[str, Any],
        skipped: dict[str, str],
        *,
        vocabulary: Vocabulary | None = None,
        text: LensPack | None = None,
        run: dict[str, Any] | None = None,
    ) -> None:
        self.lenses, self.provenance, self.skipped = tuple(lenses), provenance, skipped
        self.vocabulary, self.text, self.run = vocabulary, text, run or {}
        self._by_concept = {lens.concept: lens for lens in self.lenses}
        self._by_layer: dict[int, _Readers] = {}

    def __len__(self) -> int:
        return len(self.lenses)

    def __iter__(self) -> Iterator[Lens]:
        return iter(self.lenses)

    def __getitem__(self, concept: str) -> Lens:
        return self._by_concept[concept]

    def __contains__(self, concept: object) -> bool:
        return concept in self._by_concept

    @property
    def family(self) -> str:
        """What its lenses are."""
        return str(self.provenance.get("settings", {}).get("family", "linear"))

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Transformer blocks that any lens reads, ascending."""
        return tuple(sorted({layer for lens in self.lenses for layer in lens.model_layers}))

    @property
    def hungry(self) -> list[str]:
        """Concepts that used every cached sample and did not graduate."""
        return [lens.concept for lens in self.lenses if lens.metrics["hungry"]]

    @property
    def short(self) -> list[str]:
        """Concepts without a lens for want of samples: they ask for more, too."""
        return [concept for concept, reason in self.skipped.items() if SHORT in reason]

    def at(self, model_layer: int) -> list[Lens]:
        """The lenses that read one model layer alone, in the order of `score`'s columns."""
        return [lens for lens in self.lenses if lens.model_layers == (model_layer,)]

    def score(self, X: NDArray[Any], model_layer: int) -> NDArray[np.float32]:
        """(n, lenses at this model layer) logits of raw activations X (n, hidden), in one matrix product."""
        X = np.asarray(X)
        scores = self.no_scores(len(X))
        self.add_scores(scores, X, model_layer)
        here = self._readers(model_layer).alone
        return scores if len(here) == len(self) else scores[:, here]

    def score_all(self, activations: Mapping[int, NDArray[Any]]) -> NDArray[np.float32]:
        """(n, lenses) logits of raw activations (n, hidden) of every model layer that a lens of the pack reads.

        Raises
        ------
        KeyError
            If a model layer is missing.
        ValueError
            If the lenses read text.
        """
        if self.vocabulary is not None:
            raise ValueError("the lenses of this pack read text: use `score_texts`")
        scores = self.no_scores(len(next(iter(activations.values()), ())))
        for model_layer in self.model_layers:
            self.add_scores(scores, np.asarray(activations[model_layer]), model_layer)
        return scores

    def no_scores(self, n: int) -> NDArray[np.float32]:
        """(n, lenses) to add the scores of each model layer to."""
        return np.tile(self._biases, (n, 1))

    def add_scores(self, scores: NDArray[np.float32], X: NDArray[Any], model_layer: int) -> None:
        """Add to `scores` (n, lenses) what raw activations X (n, hidden) of one model layer say.

        For whoever cannot hold the activations of all model layers at once.
        """
        readers = self._readers(model_layer)
        if len(readers.linear):
            # One vector: a product with a matrix is several times slower than with a vector, for the same numbers.
            X = X.astype(np.float32, copy=False)
            product = (readers.weight @ X[0])[None] if len(X) == 1 else X @ readers.weight.T
            if len(readers.linear) == len(self):
                scores += product
            else:
                scores[:, readers.linear] += product
        for number in readers.others:
            scores[:, number] += self.lenses[number].decision_function(X)

    def score_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, lenses) logits of texts, for a pack of text lenses.

        Raises
        ------
        ValueError
            If the lenses read activations.
        """
        if self.vocabulary is None:
            raise ValueError("the lenses of this pack read activations: `LensPack.text` has those that read text")
        rows = self.vocabulary.transform(texts)
        weight = np.array([lens.weights.weight for lens in self.lenses if isinstance(lens.weights, LinearWeights)])
        return np.asarray(rows @ weight.T + self._biases, np.float32)

    @cached_property
    def _biases(self) -> NDArray[np.float32]:
        return np.array(
            [lens.weights.bias if isinstance(lens.weights, LinearWeights) else 0.0 for lens in self.lenses], np.float32
        )

    def _readers(self, model_layer: int) -> _Readers:
        if model_layer not in self._by_layer:
            linear, rows, others, alone = [], [], [], []
            for number, lens in enumerate(self.lenses):
                if lens.model_layers == (model_layer,):
                    alone.append(number)
                if model_layer in lens.model_layers:
                    if isinstance(lens.weights, LinearWeights):
                        parts = np.split(lens.weights.weight, len(lens.model_layers))
                        linear.append(number)
                        rows.append(parts[lens.model_layers.index(model_layer)])
                    else:
                        others.append(number)
            hidden = len(rows[0]) if rows else 0
            weight = np.array(rows, np.float32).reshape(len(rows), hidden)
            self._by_layer[model_layer] = _Readers(linear, weight, others, alone)
        return self._by_layer[model_layer]

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
            todo = "fit it again" if isinstance(found, int) and found < FORMAT_VERSION else "upgrade lenstrain"
            raise LensPackFormatError(
                f"{folder} has format version {found}, this lenstrain reads {FORMAT_VERSION}: {todo}"
            )
        try:
            vocabulary = _read_vocabulary(folder / "vocabulary.json", tensors)
            family = data["provenance"].get("settings", {}).get("family", "linear")
            weights = unpack_weights(tensors, family, 0 if vocabulary is None else len(vocabulary.terms))
            if len(data["lenses"]) != len(weights):
                raise ValueError(f"{len(data['lenses'])} lenses in JSON and {len(weights)} in safetensors")
            provenance, skipped = data["provenance"], data["skipped"]
            path = folder / "run.json"
            run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            lenses = [_lens_from_json(*row) for row in zip(data["lenses"], weights, strict=True)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise LensPackFormatError(f"{folder} is not a readable lens pack ({error}): fit it again") from error
        text = cls.load(folder / "text") if (folder / "text").exists() else None
        return cls(lenses, provenance, skipped, vocabulary=vocabulary, text=text, run=run)

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
        tensors = pack_weights([lens.weights for lens in self.lenses], self.family)
        if self.vocabulary is not None:
            tensors["idf"] = self.vocabulary.idf
            _write_json(folder / "vocabulary.json", list(self.vocabulary.terms))
        # Not save_file, which makes the file private whatever the umask says.
        (folder / "lenses.safetensors").write_bytes(safetensors.numpy.save(tensors))
        data = {
            "format_version": FORMAT_VERSION,
            "provenance": self.provenance,
            "skipped": self.skipped,
            "lenses": [_lens_to_json(lens) for lens in self.lenses],
        }
        _write_json(folder / "lenses.json", data)
        hungry = {lens.concept: lens.metrics["n_samples"] for lens in self.lenses if lens.metrics["hungry"]}
        hungry |= dict.fromkeys(self.short, 0)
        _write_json(folder / "hungry.json", {"concepts": hungry, "store": self.provenance.get("store")})
        if self.run:
            _write_json(folder / "run.json", self.run)
        if self.text is not None:
            (folder / "text").mkdir()
            self.text._write(folder / "text")


def make_lens_pack(
    result: FitResult, dataset: LensDataset, settings: FitSettings, *, text: LensPack | None = None
) -> LensPack:
    """The lens pack of a fit, with its provenance; `text` is the pack of text lenses trained beside it."""
    names, layers = dataset.concept_names, dataset.hierarchy.layers
    lenses = [_ship(lens, names[lens.concept], layers[lens.concept]) for lens in result.lenses]
    run = {"iterations": {str(number): spent._asdict() for number, spent in result.times.items()}}
    return LensPack(
        lenses, _provenance(dataset, settings), result.skipped, vocabulary=result.vocabulary, text=text, run=run
    )


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
    rank, interval, probability = lens.ranking, lens.score_interval, lens.probability
    return Lens(
        concept=lens.concept, name=name, layer=layer, model_layers=lens.model_layers, weights=lens.weights,
        threshold=lens.threshold, calibrator=lens.calibrator, noise=lens.noise, grade=lens.grade,
        metrics={
            "test_f1": lens.test_f1, "test_f1_unnamed": lens.f1_unnamed, "test_f1_named": lens.f1_named,
            "train_f1": lens.train_f1, "precision": lens.precision, "recall": lens.recall,
            "false_positive_rate": lens.false_positive_rate,
            "score": rank.score, "score_low": interval.low, "score_high": interval.high,
            "grade_uncertain": is_uncertain(rank.score, interval),
            "average_precision": rank.average_precision, "auroc": rank.auroc,
            "score_unnamed": lens.unnamed_score, "score_by_phase": lens.phase_scores,
            "controls": {name: control._asdict() for name, control in lens.controls.items()},
            "unbeaten_controls": lens.unbeaten,
            "brier": probability.brier, "brier_before": probability.brier_before,
            "expected_calibration_error": probability.expected_calibration_error,
            "expected_calibration_error_before": probability.expected_calibration_error_before,
            "calibration_log_loss": probability.held_out_log_loss,
            "reliability": none_for_nan(probability.reliability.to_json()),
            "n_samples": lens.n_samples, "n_test": lens.n_test, "n_judged": rank.n_positive + rank.n_negative,
            "iterations": len(lens.trajectory), "test_looks": len(lens.trajectory), "graduated": lens.graduated,
            "refined_against": list(lens.refined), "C": lens.C, "hungry": lens.hungry, "converged": lens.converged,
        },
        trajectory=tuple(lens.trajectory), beyond=tuple(lens.beyond),
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
        "settings": settings_to_json(settings),
        "rounds": list(dataset.rounds),
        "layers": sorted({dataset.hierarchy.layers[concept] for concept in dataset.concepts}),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _lens_to_json(lens: Lens) -> dict[str, Any]:
    return {
        "concept": lens.concept, "name": lens.name, "layer": lens.layer, "model_layers": list(lens.model_layers),
        "threshold": lens.threshold, "calibration": lens.calibrator.to_json(), "noise_floor": lens.noise._asdict(),
        "grade": lens.grade.value, "metrics": lens.metrics,
        "trajectory": [step._asdict() for step in lens.trajectory], "beyond": [step._asdict() for step in lens.beyond],
    }  # fmt: skip


def _lens_from_json(data: dict[str, Any], weights: Weights) -> Lens:
    return Lens(
        concept=data["concept"], name=data["name"], layer=data["layer"], model_layers=tuple(data["model_layers"]),
        weights=weights, threshold=data["threshold"], calibrator=Calibrator.from_json(data["calibration"]),
        noise=NoiseFloor(**data["noise_floor"]), grade=Grade(data["grade"]), metrics=_nan_for_none(data["metrics"]),
        trajectory=tuple(Iteration(**step) for step in data["trajectory"]),
        beyond=tuple(Iteration(**step) for step in data["beyond"]),
    )  # fmt: skip


def _read_vocabulary(path: Path, tensors: dict[str, NDArray[Any]]) -> Vocabulary | None:
    if "idf" not in tensors:
        return None
    terms = tuple(json.loads(path.read_text(encoding="utf-8")))
    if len(terms) != len(tensors["idf"]):
        raise ValueError(f"{len(terms)} terms in JSON and {len(tensors['idf'])} in safetensors")
    return Vocabulary(terms, tensors["idf"])


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

    # A family without an L2 strength has none, rather than one that could not be measured.
    return {key: value if key == "C" else restore(value) for key, value in metrics.items()}
