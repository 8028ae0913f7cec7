"""What every command shares: progress on stderr, results on stdout, one line for an error."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Function = TypeVar("Function", bound=Callable[..., Any])

_PLAIN_WIDTH = 120  # of a table that goes to a file or a pipe
_TEXT_LENGTH = 100  # characters of a text that are shown
_NO_THREAD = "can't start new thread"  # what Python says, in a RuntimeError


def out() -> Console:
    """Where results go."""
    return Console(
        width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False, emoji=False
    )


def err() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def say(line: str, *, style: str | None = None) -> None:
    """Print one line of a result, without markup and without line breaks of our own."""
    out().print(line, markup=False, soft_wrap=True, style=style)


def note(line: str) -> None:
    """Print one line beside the results, on stderr and without markup."""
    err().print(line, markup=False)


def reports_errors(command: Function, *, interrupted: str = "nothing was written") -> Function:
    """Make a command that fails end with one line on stderr and exit code 1.

    With `--debug` it shows the traceback.

    Parameters
    ----------
    interrupted : what to say after Ctrl-C.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from lenscache.errors import in_a_command

        try:
            with in_a_command():
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
    # Where a letter cannot be written, JSON has an escape of its own for it.
    is_narrow = not (sys.stdout.encoding or "utf-8").casefold().startswith("utf")
    typer.echo(json.dumps(value, indent=1, ensure_ascii=is_narrow, allow_nan=False, default=str))


def write_file(path: Path, data: bytes) -> None:
    """Write a file: all of it, or nothing."""
    if path.exists() and not path.is_file():  # such as /dev/stdout, which must not be replaced
        path.write_bytes(data)
        return
    scratch = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def make_table(*columns: str) -> Table:
    """A table whose first column is aligned left, all others right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(columns[0], min_width=18)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def megabytes(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def one_line(error: Exception) -> str:
    """What an error says, on one line; for an unexpected error also its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    if {"LenscacheError", "LenstrainError", "OSError"} & {c.__name__ for c in type(error).__mro__}:
        return text
    if isinstance(error, MemoryError) or text == _NO_THREAD:
        return f"this machine is short of memory or threads ({text}): free some and run it again"
    return f"{type(error).__name__}: {text} (this is a fault of the program; --debug shows where)"


def visible(text: str, length: int = _TEXT_LENGTH) -> str:
    """The text on one line, cut to `length`, with control and direction characters escaped."""
    shown = text if len(text) <= length else f"{text[: length - 3]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown
    )
