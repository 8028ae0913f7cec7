"""A record of one run: JSON lines, in a file beside the result and, if asked, on stderr.

    start       what was asked for, with which versions
    progress    where it stands, now and then
    message     what people were told once, such as a batch that did not fit
    end         what came of it; or error, or interrupted, with the reason

Runs of the same store or pack are one after the other in the same file.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import console

_INTERVAL_S = 10.0
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_PACKAGES = ("lenscache", "torch", "transformers", "zarr", "numpy")


class RunLog:
    """Context manager that records a run.

    Parameters
    ----------
    result : the store or pack that the run writes. Its log is ``<result>.log.jsonl`` beside it;
        none beside a URL.
    to_stderr : whether to write every line to stderr, too.
    asked : what was asked for.
    """

    def __init__(
        self, command: str, result: str | Path, *, to_stderr: bool = False, **asked: Any
    ) -> None:
        self.path = (
            None if _URL.match(str(result)) else Path(f"{str(result).rstrip('/')}.log.jsonl")
        )
        self.to_stderr = to_stderr
        self._command, self._asked = command, {"result": str(result), **asked}
        self._begun, self._told = time.monotonic(), -_INTERVAL_S
        self._result: dict[str, Any] = {}

    def __enter__(self) -> Self:
        versions = {"python": platform.python_version()} | {
            name: version(name) for name in _PACKAGES
        }
        asked = {"command": self._command, "asked": self._asked}
        self.event("start", **asked, versions=versions, system=platform.platform())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = round(time.monotonic() - self._begun, 1)
        if error is None:
            self.event("end", elapsed_s=seconds, **self._result)
        elif isinstance(error, KeyboardInterrupt):
            self.event("interrupted", elapsed_s=seconds)
        else:
            self.event("error", elapsed_s=seconds, error=type(error).__name__, message=str(error))

    def result(self, **values: Any) -> None:
        """Say what came of the run."""
        self._result |= values

    def progress(self, what: str, done: int, total: int, unit: str, **facts: Any) -> None:
        """Say where the run stands. Most calls write nothing: the log of a long run stays short."""
        now = time.monotonic()
        if done == total or now - self._told >= _INTERVAL_S:
            self._told = now
            self.event("progress", what=what, done=done, total=total, unit=unit, **facts)

    def event(self, kind: str, **values: Any) -> None:
        """Write one line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"time": now, "event": kind, **values}
        line = json.dumps(entry, ensure_ascii=False, default=str)
        if self.to_stderr:
            # print, not rich: machines read whole lines
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:  # a run must not end because its log cannot be written
            console.note(f"no log is kept: {self.path} cannot be written ({error.strerror})")
            self.path = None
