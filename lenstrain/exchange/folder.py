"""Folders that lenses are exported to, with what the format itself cannot hold.

    lenses.json              as in a lens pack (`lenstrain.pack.folder`): provenance, and for each
                             lens its concept, model layers, threshold, calibration, noise floor,
                             metrics and grade; and the `file` that it is in
    directions.safetensors   directions to steer along, one row a lens, if the pack has them

Only the files of the format hold the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lenstrain.errors import ForeignFormatError, LensPackExistsError
from lenstrain.families.weights import Weights
from lenstrain.pack.folder import (
    FORMAT_VERSION,
    lens_from_json,
    lens_to_json,
    write_beside,
    write_json,
)
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import Provenance
from lenstrain.pack.tensors import pack_directions, unpack_directions

_DAMAGE = (KeyError, TypeError, ValueError, OSError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True)
class Sidecar:
    """What is known of exported lenses beside their weights."""

    provenance: Provenance
    skipped: dict[str, str]
    short: Sequence[str]
    entries: dict[str, tuple[dict[str, Any], NDArray[np.float32]]]
    """By file, relative to the folder: the entry of `lenses.json`, and (hidden,) or (0,) its
    direction."""
    path: Path

    def lens(self, file: str, weights: Weights) -> Lens:
        """The lens of a file.

        Raises
        ------
        ForeignFormatError
            If its entry is damaged.
        """
        try:
            return lens_from_json(self.entries[file][0], weights, self.entries[file][1])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(self.path, f"the entry of {file}: {error!r}") from error


def write_export(out: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` fill a folder beside `out`, then move it there.

    Raises
    ------
    LensPackExistsError
        If `out` exists, and is not an earlier export or `overwrite` is off.
    """
    if (out / "lenses.safetensors").exists():
        raise LensPackExistsError(
            f"{out} is a lens pack, which an export never replaces: choose another folder"
        )
    write_beside(out, write, overwrite=overwrite)


def write_sidecar(folder: Path, pack: LensPack, files: Mapping[str, str], format_name: str) -> None:
    """Write what is known of the lenses in `files`: paths, relative to the folder, by concept."""
    lenses = [lens for lens in pack if lens.concept in files]
    data = {
        "format_version": FORMAT_VERSION,
        "exported_to": format_name,
        "provenance": pack.provenance.to_json(),
        "skipped": pack.skipped,
        **({"short": list(pack.short)} if pack.short else {}),
        "lenses": [{"file": files[lens.concept], **lens_to_json(lens)} for lens in lenses],
    }
    write_json(folder / "lenses.json", data)
    if directions := pack_directions(lenses):
        (folder / "directions.safetensors").write_bytes(safetensors.numpy.save(directions))


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a folder; None if it has none.

    Raises
    ------
    ForeignFormatError
        If it is damaged or of another format version.
    """
    path, beside = folder / "lenses.json", folder / "directions.safetensors"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {data['format_version']}, expected {FORMAT_VERSION}")
        tensors = safetensors.numpy.load_file(beside) if beside.exists() else {}
        vectors = unpack_directions(tensors, len(data["lenses"]))
        rows = zip(data["lenses"], vectors, strict=True)
        entries = {str(entry["file"]): (entry, row) for entry, row in rows}
        provenance = Provenance.from_json(dict(data["provenance"]))
        skipped, short = dict(data["skipped"]), data.get("short", ())
        return Sidecar(provenance, skipped, short, entries, path)
    except _DAMAGE as error:
        raise _unreadable(path, repr(error)) from error


def _unreadable(path: Path, why: str) -> ForeignFormatError:
    advice = "export the lenses again, or delete it to read their weights alone"
    return ForeignFormatError(f"{path} cannot be read ({why}): {advice}")
