"""Progress of a long command: a line that changes on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.markup import escape

from .console import err

if TYPE_CHECKING:
    from .runlog import RunLog

_PLAIN_INTERVAL_S = 10.0
_SHORTEST_S = 0.5  # what took less says nothing about pace


class Meter:
    """Progress of one long run: a bar with time left on a terminal, else a line now and then.

    Parameters
    ----------
    log : record of the run, which gets the same facts. If it goes to stderr, nothing else is shown.
    """

    def __init__(self, log: RunLog | None = None) -> None:
        self._bar: progress.Progress | None = None
        self._log = log
        self._quiet = log is not None and log.to_stderr
        if sys.stderr.isatty() and not self._quiet:
            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[note]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=err())
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._done: dict[str, int] = {}
        self._shown = time.monotonic()

    def update(
        self, what: str, done: int, total: int, unit: str, *, note: str = "", **facts: Any
    ) -> None:
        """Say that `done` of `total` units of `what` are done; a smaller `done` restarts the clock.

        Parameters
        ----------
        note : what else people should see; `facts` go to the log.
        """
        if done < self._done.get(what, done):
            del self._begun[what]
        self._done[what] = done
        start, first = self._begun.setdefault(what, (time.monotonic(), done))
        elapsed = time.monotonic() - start
        rate = (done - first) / elapsed if elapsed > _SHORTEST_S else 0.0
        if self._log is not None:
            self._log.progress(what, done, total, unit, rate=round(rate, 3), **facts)
        if self._quiet:
            return
        note = ", ".join(part for part in (f"{rate:.1f} {unit}/s" if rate else unit, note) if part)
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, completed=done, note=note)
            self._bar.update(self._tasks[what], completed=done, total=total, note=note)
        elif done == total or time.monotonic() - self._shown > _PLAIN_INTERVAL_S:
            self._shown = time.monotonic()
            left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
            pace = f", {note}" if note != unit else ""
            err().print(escape(f"{what}: {done} of {total} {unit}, {clock(elapsed)}{left}{pace}"))

    def say(self, message: str) -> None:
        """Show one line above the bar."""
        if self._log is not None:
            self._log.event("message", message=message)
        if self._quiet:
            return
        (self._bar.console if self._bar is not None else err()).print(escape(message))

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Show the meter while the block runs."""
        if self._bar is None:
            yield self
            return
        with self._bar:
            yield self


def clock(seconds: float) -> str:
    """A duration for people: m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
