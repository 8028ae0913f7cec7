"""Run a check in a process of its own, and live with whatever becomes of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import IO, Any

from lenscache.errors import ModelNotFoundError
from lenscache.preflight.results import MARK, Outcome, Request, Tell, Verdict

_AT_THE_END_S = 10.0  # for a process that has answered, or closed its output, to end
_STDERR_LINES = 20


def run_check(
    command: Sequence[str], request: Request, *, time_limit_s: float, tell: Tell
) -> Outcome:
    """Run ``python -m command`` on a request and wait for its answer.

    The outcome is "crashed" if the process is killed, ends without an answer, or takes too long.

    Raises
    ------
    ModelNotFoundError
        If the check finds no model: no other check will.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            outcome = _answer(process, request, time_limit_s, tell) or _end_of(process)
        finally:
            _stop(process)
        if outcome.verdict is Verdict.crashed:
            lines = _tail(stderr)
            is_unexplained = lines and "fault" not in outcome.details
            last = f"; its last words: {lines[-1][:200]}" if is_unexplained else ""
            details = {**outcome.details, "stderr": lines}
            return replace(outcome, why=f"{outcome.why}{last}", details=details)
        return outcome


def _answer(
    process: subprocess.Popen[str], request: Request, time_limit_s: float, tell: Tell
) -> Outcome | None:
    """The result that a process sends; None if it closes its output without one."""
    assert process.stdin is not None  # noqa: S101 - both are pipes
    with suppress(BrokenPipeError):  # it may be gone already
        process.stdin.write(json.dumps(asdict(request)) + "\n")
        process.stdin.flush()  # and left open: a process that sees it closed ends
    for message in _messages(process, time.monotonic() + time_limit_s):
        if message is None:
            why = f"no answer within {time_limit_s:.0f} s: stopped"
            return Outcome(Verdict.crashed, why, {"fault": "hung"})
        match message[MARK], message:
            case "progress", {"what": str(what), "done": int(done), "total": int(total)}:
                tell(what, done, total)
            case "not found", {"why": str(why)}:
                raise ModelNotFoundError(why)
            case "result", {"verdict": str(verdict), "why": str(why), "details": dict(details)}:
                fault = {"fault": "error"} if verdict == Verdict.crashed else {}
                return Outcome(Verdict(verdict), why, {**details, **fault})
    return None


def _messages(process: subprocess.Popen[str], deadline: float) -> Iterator[Any]:
    """Messages of a process, parsed; None when the time is up. Any other output is ignored."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None  # noqa: S101
        with process.stdout as stdout:
            for line in stdout:
                lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            yield None
            return
        if not line:
            return
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and MARK in message:
                yield message


def _end_of(process: subprocess.Popen[str]) -> Outcome:
    """How a process ended that gave no answer."""
    try:
        code = process.wait(_AT_THE_END_S)
    except subprocess.TimeoutExpired:
        return Outcome(Verdict.crashed, "it closed its output without an answer and did not end")
    if code == -signal.SIGKILL:
        return Outcome(Verdict.crashed, "killed by signal 9, probably out of memory")
    if code < 0:
        return Outcome(Verdict.crashed, f"killed by signal {-code} ({signal.Signals(-code).name})")
    return Outcome(Verdict.crashed, f"it ended with exit code {code} and without an answer")


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and what it started; one that has answered may end by itself."""
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(stderr: IO[bytes]) -> list[str]:
    stderr.seek(0)
    text = stderr.read().decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-_STDERR_LINES:]
