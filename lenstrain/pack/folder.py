"""Lens packs on disk: a folder of lenses from one store, as safetensors and JSON, never pickled.

    lenses.safetensors  the weights of all lenses, one row a lens: see `lenstrain.pack.tensors`
    lenses.json         for each row: concept, model layers, threshold, calibration, metrics, grade,
                        trajectory; and the provenance of all: store, model, settings, versions
    hungry.json         concepts that used every cached sample and did not graduate
    run.json            when and how long the fit ran: nothing else differs from run to run
    vocabulary.json     of lenses that read text: the terms of their rows
    text/               of dual training: a pack of the lenses that read what the model wrote

The folder is written beside its final place and moved there when it is complete.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lenscache.errors import argument
from lenscache.folders import replacing
from lenstrain.data.words import Vocabulary
from lenstrain.errors import LensPackExistsError, LensPackFormatError, LensPackNotFoundError
from lenstrain.families.weights import Weights
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Direction, Iteration, Lens, NoiseFloor
from lenstrain.pack.records import LensMetrics, Provenance
from lenstrain.pack.tensors import (
    pack_directions,
    pack_norms,
    pack_weights,
    unpack_directions,
    unpack_weights,
    with_norms,
)

FORMAT_VERSION = 2
NORM_VERSION = 3
"""Of packs that a reader of version 2 would score wrongly: they hold `norm` tensors."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as a path: without its second slash


@dataclass(eq=False, repr=False)
class PackContent:
    """What one folder holds, but for the pack of text lenses inside it: see `LensPack`."""

    lenses: Sequence[Lens]
    provenance: Provenance
    skipped: dict[str, str]
    _: KW_ONLY
    short: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    run: dict[str, Any] = field(default_factory=dict)


def read_folder(folder: Path) -> PackContent:
    """Read the folder of a lens pack.

    Raises
    ------
    LensPackNotFoundError, LensPackFormatError
        As `LensPack.load`.
    """
    try:
        data = _read_json(folder / "lenses.json")
        tensors = safetensors.numpy.load_file(folder / "lenses.safetensors")
    except (FileNotFoundError, NotADirectoryError):
        raise LensPackNotFoundError(
            f"no lens pack at {folder}: make one with `lenstrain fit`"
        ) from None
    except (ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, error) from error
    found = data.get("format_version") if isinstance(data, dict) else None
    if found not in (FORMAT_VERSION, NORM_VERSION):
        is_older = isinstance(found, int) and found < FORMAT_VERSION
        raise LensPackFormatError(
            f"{folder} has format version {found}, this lenstrain reads {FORMAT_VERSION} and "
            f"{NORM_VERSION}: "
            f"{'fit it again' if is_older else 'upgrade lenstrain'}"
        )
    try:
        vocabulary = _read_vocabulary(folder / "vocabulary.json", tensors)
        n_terms = 0 if vocabulary is None else len(vocabulary.terms)
        rows, skipped = data["lenses"], data["skipped"]
        provenance = Provenance.from_json(data["provenance"])
        weights = unpack_weights(tensors, provenance.family, n_terms)
        if len(rows) != len(weights):
            raise ValueError(f"{len(rows)} lenses in JSON and {len(weights)} in safetensors")
        run, hungry = (
            _read_json(path) if path.exists() else {}
            for path in (folder / "run.json", folder / "hungry.json")
        )
        short = [concept for concept in hungry.get("concepts", ()) if concept in skipped]
        weights = with_norms(weights, [tuple(row["model_layers"]) for row in rows], tensors)
        vectors = unpack_directions(tensors, len(weights))
        lenses = [lens_from_json(*row) for row in zip(rows, weights, vectors, strict=True)]
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise _unreadable(folder, error) from error
    return PackContent(lenses, provenance, skipped, short=short, vocabulary=vocabulary, run=run)


def _unreadable(folder: Path, error: Exception) -> LensPackFormatError:
    return LensPackFormatError(f"{folder} is not a readable lens pack ({error}): fit it again")


def write_beside(folder: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` fill a new folder beside `folder`, then move it there.

    Raises
    ------
    LensPackExistsError, LensPackFormatError
        As `check_output`.
    """
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as scratch:
        write(scratch)


def write_folder(folder: Path, content: PackContent) -> None:
    """Write one folder."""
    tensors = pack_weights([lens.weights for lens in content.lenses], content.provenance.family)
    norms = pack_norms(content.lenses)
    tensors |= pack_directions(content.lenses) | norms
    if content.vocabulary is not None:
        tensors["idf"] = content.vocabulary.idf
        write_json(folder / "vocabulary.json", list(content.vocabulary.terms))
    # Not save_file, which makes the file private whatever the umask says.
    (folder / "lenses.safetensors").write_bytes(safetensors.numpy.save(tensors))
    data = {
        "format_version": NORM_VERSION if norms else FORMAT_VERSION,
        "provenance": content.provenance.to_json(),
        "skipped": content.skipped,
        "lenses": [lens_to_json(lens) for lens in content.lenses],
    }
    write_json(folder / "lenses.json", data)
    measured = {lens.concept: lens.metrics for lens in content.lenses}
    hungry = {concept: its.n_samples for concept, its in measured.items() if its.hungry}
    hungry |= dict.fromkeys(content.short, 0)
    store = content.provenance.store or None
    write_json(folder / "hungry.json", {"concepts": hungry, "store": store})
    if content.run:
        write_json(folder / "run.json", content.run)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise LensPackExistsError unless `folder` may be written; called before the work, too.

    Raises
    ------
    LensPackFormatError
        If it is a URL.
    """
    if _URL.match(str(folder)):
        raise LensPackFormatError(
            f"a lens pack cannot be written to a URL ({folder}): choose a folder, and copy it"
        )
    is_pack, or_overwrite = (folder / "lenses.json").exists(), f", or pass {argument('overwrite')}"
    if folder.exists() and not (overwrite and is_pack):
        raise LensPackExistsError(
            f"the output folder {folder} exists already: choose another folder"
            f"{or_overwrite if is_pack else ''}"
        )


def lens_to_json(lens: Lens) -> dict[str, Any]:
    """All of a lens but its weights and directions."""
    attributes = {name: list(texts) for name, texts in lens.attributes.items()}
    return {
        "concept": lens.concept,
        "name": lens.name,
        "layer": lens.level,
        "model_layers": list(lens.model_layers),
        "threshold": lens.threshold,
        "calibration": lens.calibrator.to_json(),
        "noise_floor": lens.noise._asdict(),
        "grade": None if lens.grade is None else lens.grade.value,
        "status": lens.status,
        "reason": lens.reason,
        "metrics": lens.metrics.to_json(),
        "trajectory": [step._asdict() for step in lens.trajectory],
        "beyond": [step._asdict() for step in lens.beyond],
        "deviations": [direction.deviation for direction in lens.directions],
    } | ({"attributes": attributes} if attributes else {})


def lens_from_json(data: dict[str, Any], weights: Weights, vectors: NDArray[np.float32]) -> Lens:
    """A lens from its JSON; `vectors` (hidden,) are the directions, model layers side by side."""
    deviations = data.get("deviations", [])
    parts = np.split(vectors, len(deviations) or 1)
    found = zip(data["model_layers"], parts, deviations, strict=False)
    return Lens(
        concept=data["concept"],
        name=data["name"],
        level=data["layer"],
        model_layers=tuple(data["model_layers"]),
        weights=weights,
        threshold=data["threshold"],
        calibrator=Calibrator.from_json(data["calibration"]),
        noise=NoiseFloor(**data["noise_floor"]),
        grade=None if data["grade"] is None else Grade(data["grade"]),
        # Packs of an older rule of grading have neither.
        status=data.get("status", "provisional"),
        reason=data.get("reason", ""),
        metrics=LensMetrics.from_json(_nan_for_none(data["metrics"])),
        trajectory=tuple(Iteration(**_nan_for_none(step)) for step in data["trajectory"]),
        beyond=tuple(Iteration(**_nan_for_none(step)) for step in data["beyond"]),
        directions=tuple(Direction(*each) for each in found),
        attributes={name: tuple(texts) for name, texts in data.get("attributes", {}).items()},
    )


def _read_vocabulary(path: Path, tensors: dict[str, NDArray[Any]]) -> Vocabulary | None:
    if "idf" not in tensors:
        return None
    terms = tuple(_read_json(path))
    if len(terms) != len(tensors["idf"]):
        raise ValueError(f"{len(terms)} terms in JSON and {len(tensors['idf'])} in safetensors")
    return Vocabulary(terms, tensors["idf"])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write plain values; what could not be measured (NaN) is null."""
    text = json.dumps(none_for_nan(data), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


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
