"""Checks that go wrong in every way, each to be run in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from lenscache.errors import ModelError, ModelNotFoundError
from lenscache.preflight.results import Outcome, Request, Tell


def passes(request: Request, tell: Tell) -> Outcome:
    tell("half", 1, 2)
    return Outcome.passed("all is well", value=float("nan"), folder=request.folder)


def killed(_request: Request, tell: Tell) -> Any:
    tell("half", 1, 2)
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(_request: Request, tell: Tell) -> Any:
    tell("half", 1, 2)
    time.sleep(600)


def raises(*_: Any) -> Outcome:
    raise RuntimeError("the check has a fault\nand a second line")


def refuses(*_: Any) -> Outcome:
    raise ModelError("the device cannot be used")


def no_model(*_: Any) -> Outcome:
    raise ModelNotFoundError("no model there")


def memory(*_: Any) -> Outcome:
    raise MemoryError


def exits(*_: Any) -> Any:
    os._exit(3)


def ends(*_: Any) -> Any:
    os._exit(0)


def junk(request: Request, tell: Tell) -> Outcome:
    sys.stdout.write("{not json\n[1, 2]\n{}\n")
    os.write(1, b"\xff\xfe{ also not json\n")
    os.write(2, b"a warning\n")
    return passes(request, tell)


def dies_within_a_message(_request: Request, tell: Tell) -> Any:
    def send_half(self: Connection, data: bytes) -> None:
        os.write(self.fileno(), len(data).to_bytes(4, "big") + data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send_bytes = send_half  # type: ignore[attr-defined]
    tell("half", 1, 2)


def closes(*_: Any) -> Any:
    os.closerange(3, 256)
    time.sleep(600)
