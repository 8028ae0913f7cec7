"""Lens packs to and from folders in other formats, whole or some of their lenses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lenstrain.errors import LensPackExistsError, SettingsError
from lenstrain.exchange.gguf import Written, write_gguf
from lenstrain.exchange.hatcat import read_hatcat, write_hatcat
from lenstrain.live.steering import Kind, find_lens
from lenstrain.metrics.grade import Grade
from lenstrain.pack.folder import check_output
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack

Format = Literal["hatcat", "gguf", "safetensors"]


def export_pack(
    folder: Path,
    out: Path,
    to: Format,
    *,
    concepts: Sequence[str] | None = None,
    min_grade: Grade = Grade.C,
    untrusted: bool = False,
    kind: Kind = "mean-difference",
    overwrite: bool = False,
) -> Written:
    """Write the lenses of the pack in `folder` to the folder `out`.

    Parameters
    ----------
    to : "hatcat", "gguf", or "safetensors" for a lens pack of ours.
    concepts : ids or names; None for all.
    min_grade : leave out lenses below it.
    untrusted : export lenses, too, that are ungraded or whose grade is capped.
    kind : what control vectors lie along.
    overwrite : replace an earlier export; it stays until the new one is complete.

    Returns
    -------
    Files by concept, relative to `out`, and what was left out.

    Raises
    ------
    LensPackNotFoundError, LensPackFormatError
        If `folder` is no lens pack.
    LensPackExistsError
        If `out` exists and may not be replaced.
    SettingsError
        If a concept is not in the pack, there is nothing left to export, or the format cannot hold
        it.
    MissingPackageError
        If the format needs a package that is not installed.
    """
    whole = LensPack.load(folder)
    _check_apart(folder, out)
    pack = select_lenses(whole, concepts, min_grade, untrusted=untrusted)
    low = {
        lens.concept: f"the lens of {lens.concept} {_standing(lens)}"
        for lens in _wanted(whole, concepts)
        if lens.concept not in pack
    }
    if to == "gguf":
        files, left_out = write_gguf(pack, out, kind=kind, overwrite=overwrite)
        return Written(files, low | left_out)
    if to == "hatcat":
        return Written(write_hatcat(pack, out, overwrite=overwrite), low)
    pack.save(out, overwrite=overwrite)
    return Written({lens.concept: "lenses.safetensors" for lens in pack}, low)


def import_hatcat(
    folder: Path, out: Path, *, model_layer: int | None = None, overwrite: bool = False
) -> LensPack:
    """Read the classifiers of HatCat in `folder` and write them to `out` as a lens pack.

    Parameters
    ----------
    model_layer : transformer block that the lenses read, counted from 0; None if the folder says
        it.
    overwrite : replace a lens pack that is there; it stays until the new one is complete.

    Raises
    ------
    LensPackExistsError
        If `out` exists and may not be replaced.
    ForeignFormatError, SettingsError
        As `read_hatcat`.
    """
    _check_apart(folder, out)
    check_output(out, overwrite=overwrite)
    pack = read_hatcat(folder, model_layer=model_layer)
    pack.save(out, overwrite=overwrite)
    return pack


def _standing(lens: Lens) -> str:
    if lens.grade is None:
        return f"is ungraded ({lens.reason})"
    return f"has grade {lens.grade.value}{f' ({lens.reason})' if lens.reason else ''}"


def select_lenses(
    pack: LensPack, concepts: Sequence[str] | None, min_grade: Grade, *, untrusted: bool = False
) -> LensPack:
    """A pack of some of the lenses, in the order that they have.

    The pack of text lenses inside it keeps those of the same concepts. What was skipped is kept if
    all are wanted.

    Raises
    ------
    SettingsError
        If a concept is not in the pack, or no lens is left.
    """
    wanted = _wanted(pack, concepts)
    chosen = [lens for lens in wanted if lens.reaches(min_grade, untrusted=untrusted)]
    if not chosen:
        raise SettingsError(
            f"no lens to export has grade {min_grade.value} or better: see `lenstrain show`; "
            "--ungraded exports lenses, too, that are ungraded or capped"
        )
    text, ids = pack.text, {lens.concept for lens in chosen}
    if text is not None:
        beside = [lens for lens in text if lens.concept in ids]
        text = replace(text, lenses=beside, skipped={}, short=()) if beside else None
    pack = replace(pack, lenses=chosen, text=text)
    return pack if concepts is None else replace(pack, skipped={}, short=())


def _check_apart(folder: Path, out: Path) -> None:
    """Refuse to replace a folder by its own export: what that format cannot hold would be lost."""
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise LensPackExistsError(f"{out} holds the lenses that are read: choose another folder")


def _wanted(pack: LensPack, concepts: Sequence[str] | None) -> list[Lens]:
    if concepts is None:
        return list(pack)
    found = {find_lens(pack, concept).concept for concept in concepts}
    return [lens for lens in pack if lens.concept in found]
