"""Calls of something deprecated that are logged, as transformers does, rather than warned of.

No filter of warnings sees them, and the commands silence that logger.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

_OURS = {"lenscache", "lenstrain", "lens_cli"}


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What loggers of any level call deprecated and modules of ours called."""
    said: list[str] = []
    log = logging.Logger.warning

    def listen(logger: logging.Logger, message: object, *args: Any, **kwargs: Any) -> None:
        if "deprecat" in str(message).lower() and (module := _caller()):
            said.append(f"{module} called what {logger.name} says of: {message}")
        log(logger, message, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + 1})

    with mock.patch.object(logging.Logger, "warning", listen):
        yield said


def say_again() -> None:
    """Let transformers repeat what it says once a process."""
    if module := sys.modules.get("transformers.utils.logging"):
        module.warning_once.cache_clear()


def _caller() -> str | None:
    """The module of ours that is on the logger's stack, unless one of the tests is nearer."""
    frame: FrameType | None = sys._getframe(2)  # not this function and `listen`
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        package = name.partition(".")[0]
        if package in _OURS:
            return name
        if package == "tests":
            return None
        frame = frame.f_back
    return None
