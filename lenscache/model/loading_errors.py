"""Why a model could not be loaded, in one line: the file at fault, the names that are near.

What transformers says is meant for its own users: it goes over many lines, leaves out the file, and
may advise to run code from a repository or to unpickle anything.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from lenscache.errors import ModelError, ModelNotFoundError
from lenscache.model.builtin import BUILT_IN

_LFS_POINTER = b"version https://git-lfs"
_WEIGHTS = (".safetensors", ".bin")
_UNSAFE = re.compile(
    r"trust_remote_code|weights_only|custom code|pickle|ignore_mismatched_sizes", re.IGNORECASE
)


def loading_error(
    error: Exception, name: str, folder: Path | None, *, doing: str = "load"
) -> ModelError:
    """What to raise for an error that transformers raised.

    Parameters
    ----------
    name : what was asked for.
    folder : where its files are; None if it is not known.
    doing : what could not be done with the model.
    """
    damaged = next(damaged_files(folder), None) if folder is not None else None
    if damaged is not None:
        return ModelError(f"cannot {doing} the model {name!r}: {damaged}")
    said = str(error).strip()
    if "trust_remote_code" in said or "custom code" in said:
        return ModelError(
            f"cannot {doing} the model {name!r}: it needs code from its repository, which is never "
            "run here: use a model whose architecture is part of transformers"
        )
    first = next((line for line in said.splitlines() if not _UNSAFE.search(line)), "")
    first = first.strip() or type(error).__name__
    return ModelNotFoundError(
        f"cannot {doing} the model {name!r}: {first}{'' if first.endswith('.') else '.'} Give a "
        f"model folder, a Hugging Face id, or one of: {', '.join(BUILT_IN)}"
    )


def damaged_files(folder: Path) -> Iterator[str]:
    """For each file of a model that is torn, or not what its name says: what it is, what to do."""
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.suffix not in (*_WEIGHTS, ".json", ".model"):
            continue
        with file.open("rb") as opened:
            start = opened.read(64)
        if start.startswith(_LFS_POINTER):
            yield (
                f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
                "folder, or download the file again"
            )
        elif fault := _fault(file, start):
            yield f"{file} {fault}: download it again, or copy it again from where it is whole"


def _fault(file: Path, start: bytes) -> str:
    """What is wrong with a file; "" if nothing shows."""
    if not start:
        return "is empty"
    if file.suffix == ".safetensors":
        try:
            with safetensors.safe_open(file, framework="pt"):
                return ""
        except safetensors.SafetensorError as error:
            return f"is damaged ({error})"
    if file.suffix == ".bin":
        is_archive = start.startswith(b"PK")
        if is_archive and not zipfile.is_zipfile(file):
            return "is damaged, its end is missing"
        return "" if is_archive or start.startswith(b"\x80") else "is not a file of torch"
    if file.suffix == ".json":
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            return f"is not JSON ({error})"
    return ""
