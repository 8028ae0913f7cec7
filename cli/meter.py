"""What every command shares: progress on stderr, results on stdout, one line for an error."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from .runlog import RunLog

Function = TypeVar("Function", bound=Callable[..., Any])

_PLAIN_WIDTH = 120  # of a table that goes to a file or a pipe
_PLAIN_INTERVAL_S = 10.0
_SHORTEST_S = 0.5  # what took less says nothing about pace


def out() -> Console:
    """Where results go."""
    return Console(
        width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False, emoji=False
    )


def err() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def reports_errors(command: Function, *, interrupted: str = "nothing was written") -> Function:
    """Make a command end with one line on stderr and exit code 1 where it fails; `--debug` shows
    the traceback.

    Parameters
    ----------
    interrupted : what to say after Ctrl-C.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            err().print(f"interrupted: {interrupted}")
            raise typer.Exit(130) from None
        except Exception as error:
            if kwargs.get("debug") or isinstance(error, typer.Exit | typer.BadParameter):
                raise
            err().print(f"[bold red]error:[/] {escape(one_line(error))}")
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str))


def make_table(*columns: str) -> Table:
    """A table whose columns align right, but for the first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        first = number == 0
        table.add_column(
            column,
            justify="left" if first else "right",
            no_wrap=not first,
            min_width=18 if first else None,
        )
    return table


class Meter:
    """Progress of one long run: a bar with time left on a terminal, a line now and then elsewhere.

    Parameters
    ----------
    log : record of the run, which gets the same; where it goes to stderr, people are shown nothing.
    """

    def __init__(self, log: RunLog | None = None) -> None:
        self._bar: Progress | None = None
        self._log = log
        self._quiet = log is not None and log.to_stderr
        if sys.stderr.isatty() and not self._quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=err())
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._done: dict[str, int] = {}
        self._shown = time.monotonic()

    def update(
        self, what: str, done: int, total: int, unit: str, *, note: str = "", **facts: Any
    ) -> None:
        """Say that `done` of `total` units of `what` are done. What starts again is timed from
        there.

        Parameters
        ----------
        note : what else people should see; `facts` is what machines should.
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


def megabytes(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def clock(seconds: float) -> str:
    """A duration for people: m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def one_line(error: Exception) -> str:
    """What an error says, on one line; of one that nobody raised on purpose, its kind, too."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = {"LenscacheError", "LenstrainError", "OSError"} & {
        cls.__name__ for cls in type(error).__mro__
    }
    return (
        text
        if known
        else f"{type(error).__name__}: {text} (this is a fault of the program; --debug shows where)"
    )
