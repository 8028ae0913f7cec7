"""A folder is filled beside its place and moved there whole, so nobody meets half of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out`: takes its place at the end, and vanishes after an error."""
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp's folders are private
        if out.exists():
            old = scratch.with_name(f"{scratch.name}-old")
            out.rename(old)
            try:
                scratch.rename(out)
            except BaseException:
                old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
