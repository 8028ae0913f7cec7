"""HatCat's lens packs: a folder of state dicts, one a concept.

What is written, and who in HatCat reads it (https://github.com/p0ss/HatCat and HatCatDev):

    layer<L>/<Concept>_classifier.pt
        One folder a level of abstraction; a state dict (`lenstrain.exchange.statedict`).
        `MetadataLoader` in src/hat/monitoring/lens_loader.py looks for the name there,
        `load_lens_pack` in src/map/registry/lens_pack.py scans the folders.
    pack_info.json
        model, source_pack, pack_version, trained_layers: `load_lens_pack` needs it.
    version_manifest.json
        For each concept its classifiers by *model* layer, with file, technique (mlp or linear) and
        F1: `LensManifest` in src/map/data/version_manifest.py.
    lenses.json, directions.safetensors
        Ours, see `lenstrain.exchange.folder`; HatCat ignores them.

HatCat's `load_classifier` reads both kinds; its live monitor (`DynamicLensManager`) reads MLPs
alone, and by default scales each hidden state to mean 0 and deviation 1 first, which lenses on raw
activations must not have: make it with ``normalize_hidden_states=False``. It asks for names as they
are in its layer files, so a concept whose name had to be escaped (`lenstrain.exchange.filenames`)
is found by the registry alone.

What is read: the above, the same without the suffix ``_classifier``, in ``layer<L>/classifiers/``
and in ``activation_lenses/``, and files that lie in the folder itself. Where there is no
``lenses.json``, a lens gets threshold 0 and a plain sigmoid, as HatCat reads its classifiers, and
no grade and NaN for all that was never measured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lenstrain.errors import ForeignFormatError, SettingsError
from lenstrain.exchange.filenames import file_stems
from lenstrain.exchange.folder import Sidecar, read_sidecar, write_export, write_sidecar
from lenstrain.exchange.statedict import from_state_dict, load_state_dict, n_inputs, to_state_dict
from lenstrain.families.linear import LinearWeights
from lenstrain.families.weights import Weights, norm_of
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import RULE
from lenstrain.pack.folder import write_json
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance
from lenstrain.settings import FitSettings, settings_to_json

_FAMILIES = ("linear", "discriminant", "mean-difference", "mlp")
_SUFFIX = "_classifier"
_LAYER = re.compile(r"layer(\d{1,3})")
_PATTERNS = ("*.pt", "activation_lenses/*.pt", "layer*/*.pt", "layer*/classifiers/*.pt")
_THIRDS = ("early", "mid", "late")
_UNKNOWN = "unknown"

_NEVER_MEASURED = (
    *("test_f1", "test_f1_unnamed", "test_f1_named", "train_f1", "precision", "recall"),
    *("false_positive_rate", "score", "score_low", "score_high", "average_precision", "auroc"),
    *(
        "score_named",
        "score_all",
        "lead_over_controls",
        "brier",
        "brier_before",
        "expected_calibration_error",
    ),
    *("expected_calibration_error_before", "n_samples", "n_test", "n_judged", "iterations"),
    *("test_looks", "converged"),
)


# --- export -------------------------------------------------------------------------------------


def write_hatcat(pack: LensPack, out: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Write the lenses of a pack as a folder that HatCat reads.

    Returns
    -------
    The file of each concept, relative to `out`.

    Raises
    ------
    SettingsError
        If the lenses are of a family that HatCat has no classifier for.
    LensPackExistsError
        If `out` exists, and is not an earlier export or `overwrite` is off.
    """
    if pack.family not in _FAMILIES or any(len(lens.model_layers) > 1 for lens in pack):
        raise SettingsError(
            f"these {pack.family} lenses have no form in HatCat, whose classifiers read one model "
            "layer: fit with --family linear, mean-difference or mlp, or with discriminant "
            "--n-model-layers 1 --no-unit-norm"
        )
    if any(norm_of(lens.weights) is not None for lens in pack):
        raise SettingsError(
            "HatCat's classifiers cannot divide by the length of an activation, as these lenses "
            "do: fit them with --no-unit-norm"
        )
    files: dict[str, str] = {}
    for level in _levels(pack):
        stems = file_stems(lens.concept for lens in pack if lens.level == level)
        files |= {c: f"layer{level}/{stem}{_SUFFIX}.pt" for c, stem in stems.items()}
    files = {lens.concept: files[lens.concept] for lens in pack}

    def write(folder: Path) -> None:
        for level in _levels(pack):
            (folder / f"layer{level}").mkdir()
        for lens in pack:
            torch.save(to_state_dict(lens.weights), folder / files[lens.concept])
        write_json(folder / "pack_info.json", _pack_info(pack))
        write_json(folder / "version_manifest.json", _version_manifest(pack, files))
        write_sidecar(folder, pack, files, "hatcat")

    write_export(out, write, overwrite=overwrite)
    return files


def _levels(pack: LensPack) -> list[int]:
    return sorted({lens.level for lens in pack})


def _pack_info(pack: LensPack) -> dict[str, Any]:
    return {
        "pack_version": "1.0.0",
        "model": pack.provenance.model.get("id", ""),
        "source_pack": pack.provenance.store.get("pack", {}).get("name", ""),
        "trained_layers": _levels(pack),
        "hidden_dim": n_inputs(pack.lenses[0].weights) if len(pack) else 0,
        "total_lenses": len(pack),
    }


def _version_manifest(pack: LensPack, files: dict[str, str]) -> dict[str, Any]:
    info = _pack_info(pack)
    lenses = {lens.concept: _manifest_entry(lens, files[lens.concept], pack) for lens in pack}
    name = f"{info['source_pack']}_{info['model'].replace('/', '_')}"
    return {
        "lens_pack_id": name,
        "model": info["model"],
        "source_pack": info["source_pack"],
        "current_version": info["pack_version"],
        "lenses": lenses,
        "version_history": [],
    }


def _manifest_entry(lens: Lens, file: str, pack: LensPack) -> dict[str, Any]:
    ours = {
        "f1": lens.metrics.test_f1,
        "precision": lens.metrics.precision,
        "recall": lens.metrics.recall,
    }
    metrics = {theirs: value for theirs, value in ours.items() if not math.isnan(value)}
    n_layers = max(pack.provenance.model.get("n_layers", 0), lens.model_layer + 1)
    classifier = {
        "layer": lens.model_layer,
        "category": _THIRDS[3 * lens.model_layer // n_layers],
        "technique": "linear" if isinstance(lens.weights, LinearWeights) else "mlp",
        "metrics": metrics,
        "trained_at": "",
        "file": file,
    }
    return {
        "concept": lens.concept,
        "trained_at_version": "1.0.0",
        "trained_timestamp": "",
        "default_layer": lens.model_layer,
        "classifiers": {str(lens.model_layer): classifier},
        "layer": lens.model_layer,
        "metrics": metrics,
        "lens_file": file,
    }


# --- import -------------------------------------------------------------------------------------


class _File(NamedTuple):
    path: Path
    place: str
    """Relative to the folder, with slashes."""
    concept: str
    level: int | None
    """Of abstraction, if a folder says so."""


def read_hatcat(folder: Path, *, model_layer: int | None = None) -> LensPack:
    """Read a folder of HatCat's classifiers as a lens pack.

    Parameters
    ----------
    model_layer : transformer block, counted from 0, that the classifiers were trained on; HatCat's
        ``layer_idx``. None if ``lenses.json`` says it.

    Raises
    ------
    ForeignFormatError
        If there is no classifier, or one is damaged or does not go with the others.
    SettingsError
        If nothing says which model layer the classifiers read, or it is another one than they were
        exported from.
    """
    files, sidecar = _find(folder), read_sidecar(folder)
    entries = {} if sidecar is None else sidecar.entries
    there = {file.place for file in files}
    missing = next((place for place in entries if place not in there), None)
    if missing is not None:
        raise ForeignFormatError(
            f"{folder / missing} is listed in lenses.json and not there: bring it back, or delete "
            "lenses.json to read what is there by its weights alone"
        )
    order = {place: number for number, place in enumerate(entries)}
    files.sort(key=lambda file: (order.get(file.place, len(order)), file.level or 0, file.concept))
    weights = _read_alike(files)
    lenses = []
    for file, each in zip(files, weights, strict=True):
        if sidecar is not None and file.place in entries:
            lenses.append(_checked(sidecar.lens(file.place, each), model_layer, file))
        else:
            lenses.append(_unknown_lens(file, each, model_layer, folder))
    _check_once(lenses, files)
    family = "linear" if isinstance(weights[0], LinearWeights) else "mlp"
    provenance = _provenance(folder, sidecar, family, n_inputs(weights[0]))
    skipped, short = ({}, ()) if sidecar is None else (sidecar.skipped, sidecar.short)
    return LensPack(lenses, provenance, skipped, short=short)


def _find(folder: Path) -> list[_File]:
    found = []
    for pattern in _PATTERNS:
        for path in sorted(folder.glob(pattern)):
            place = path.relative_to(folder).as_posix()
            parts = (folder.resolve().name, *place.split("/"))
            numbers = [int(match[1]) for part in parts if (match := _LAYER.fullmatch(part))]
            level = numbers[-1] if numbers else None
            found.append(_File(path, place, path.stem.removesuffix(_SUFFIX), level))
    if not found:
        raise ForeignFormatError(
            f"{folder} has no <concept>{_SUFFIX}.pt, nor a folder layer0, layer1 ... with any: "
            "give the folder of a HatCat lens pack"
        )
    return found


def _read_alike(files: Sequence[_File]) -> list[Weights]:
    """Weights of one kind and one size."""
    weights = [from_state_dict(load_state_dict(file.path), file.path) for file in files]
    for file, each in zip(files, weights, strict=True):
        if type(each) is not type(weights[0]) or n_inputs(each) != n_inputs(weights[0]):
            raise ForeignFormatError(
                f"{file.path} is {_described(each)}, expected {_described(weights[0])} as "
                f"{files[0].place}: lenses of one pack are of one kind and one model, so import "
                "the others from a folder of their own"
            )
    return weights


def _described(weights: Weights) -> str:
    kind = "linear" if isinstance(weights, LinearWeights) else "an MLP"
    return f"{kind} on {n_inputs(weights)} features"


def _checked(lens: Lens, model_layer: int | None, file: _File) -> Lens:
    if model_layer is not None and lens.model_layers != (model_layer,):
        found = "+".join(map(str, lens.model_layers))
        raise SettingsError(
            f"{file.path} reads model layer {found}, as lenses.json says, not {model_layer}"
        )
    return lens


def _unknown_lens(file: _File, weights: Weights, model_layer: int | None, folder: Path) -> Lens:
    """A lens of which nothing but the weights is known."""
    if model_layer is None:
        raise SettingsError(
            f"nothing in {folder} says which transformer block {file.place} was trained on: give "
            "its number, counted from 0, with --model-layer"
        )
    unknown = ["threshold", "calibration", "noise_floor", "grade", "metrics"]
    unknown += ["layer"] if file.level is None else []
    metrics: dict[str, Any] = dict.fromkeys(_NEVER_MEASURED, math.nan)
    metrics |= {
        "grade_uncertain": False,
        "best_control": "",
        "score_by_phase": {},
        "controls": {},
        "unbeaten_controls": [],
        "graduated": False,
        "refined_against": [],
        "C": None,
        "hungry": False,
        "unknown": unknown,
    }
    return Lens(
        concept=file.concept,
        name=file.concept,
        level=file.level or 0,
        model_layers=(model_layer,),
        weights=weights,
        threshold=0.0,
        calibrator=Calibrator("temperature", (1.0,)),
        # Signals are then logits; NaN is null on disk, which would not come back as a number.
        noise=NoiseFloor(0.0, 1.0),
        grade=None,
        metrics=LensMetrics.from_json(metrics),
        trajectory=(),
        status="ungraded",
        reason="imported: never measured here",
    )


def _check_once(lenses: Sequence[Lens], files: Sequence[_File]) -> None:
    first: dict[str, _File] = {}
    for lens, file in zip(lenses, files, strict=True):
        if (other := first.setdefault(lens.concept, file)) is not file:
            raise ForeignFormatError(
                f"{other.path} and {file.path} are both of {lens.concept}, expected one file a "
                "concept: import one of the folders at a time"
            )


def _provenance(folder: Path, sidecar: Sidecar | None, family: str, hidden: int) -> Provenance:
    if sidecar is not None:
        return replace(sidecar.provenance, imported={"from": "hatcat"})
    # Settings for readers of a pack, though there was no fit; no fit can have the target 0.
    settings = settings_to_json(FitSettings(beyond_graduation=False))
    settings |= {"family": family, "target_f1": 0.0}
    model = {
        "id": _model_id(folder),
        "fingerprint": _UNKNOWN,
        "dtype": _UNKNOWN,
        "n_layers": 0,
        "hidden": hidden,
    }
    return Provenance(
        store={"digest": _UNKNOWN, "model": model, "settings": {"pooling": _UNKNOWN}},
        grading_rule=RULE,
        settings=settings,
        imported={"from": "hatcat", "unknown": ["store", "settings"]},
    )


def _model_id(folder: Path) -> str:
    """What HatCat's own description of the pack calls the model."""
    try:
        info = json.loads((folder / "pack_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return _UNKNOWN
    found = info.get("model") if isinstance(info, dict) else None
    return found if isinstance(found, str) and found else _UNKNOWN
