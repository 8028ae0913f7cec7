"""Run a check in a process of its own, and live with whatever becomes of it.

    run_check --"module:function", Request--> a spawned process
        --progress, then an Outcome, through a pipe--> run_check

What a check prints goes to a file; of a check that crashes, the last lines are kept.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType
from typing import Any

from lenscache.errors import LenscacheError, ModelNotFoundError, first_line
from lenscache.preflight.results import Outcome, Request, Tell, Verdict

_AT_THE_END_S = 10.0  # for a process that has closed its end of the pipe to end
_PRINTED_LINES = 20
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def run_check(check: str, request: Request, *, time_limit_s: float, tell: Tell) -> Outcome:
    """Run a check, named "module:function", on a request and wait for its answer.

    The outcome is "crashed" if the process is killed, ends without an answer, or takes too long.

    Raises
    ------
    ModelNotFoundError
        If the check finds no model: no other check will.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with NamedTemporaryFile() as printed, receiver:
        process = spawn.Process(target=_serve, args=(check, request, sender, printed.name))
        with sender, _without_main():
            process.start()
        try:
            outcome = _answer(process, receiver, time_limit_s, tell) or _end_of(process)
        finally:
            _stop(process)
        if outcome.verdict is not Verdict.crashed:
            return outcome
        text = printed.read().decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()][-_PRINTED_LINES:]
    is_unexplained = lines and "fault" not in outcome.details
    last = f"; its last words: {lines[-1][:200]}" if is_unexplained else ""
    return replace(
        outcome, why=f"{outcome.why}{last}", details={**outcome.details, "stderr": lines}
    )


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep the script that calls from running again, prints and all, in a process it spawns.

    multiprocessing imports it there, in case a target is defined in it. Checks never are, and a
    script without a guard would start a preflight in each check.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _answer(
    process: SpawnProcess, messages: Connection, time_limit_s: float, tell: Tell
) -> Outcome | None:
    """The outcome that a process sends; None if it ends or closes the pipe without one."""
    deadline = time.monotonic() + time_limit_s
    while ready := wait([messages, process.sentinel], max(deadline - time.monotonic(), 0)):
        if messages not in ready and not messages.poll():  # what it sent may have come since
            return None
        try:
            message = messages.recv()
        except (EOFError, OSError):  # closed, maybe within a message
            return None
        match message:
            case Outcome():
                return message
            case ModelNotFoundError():
                raise message
            case (str(what), int(done), int(total)):
                tell(what, done, total)
    why = f"no answer within {time_limit_s:.0f} s: stopped"
    return Outcome(Verdict.crashed, why, {"fault": "hung"})


def _end_of(process: SpawnProcess) -> Outcome:
    """How a process ended that gave no answer."""
    code = _exit_code(process, _AT_THE_END_S)
    if code is None:
        why = "it closed its output without an answer and did not end"
    elif code == -signal.SIGKILL:
        why = "killed by signal 9, probably out of memory"
    elif code < 0:
        why = f"killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        why = f"it ended with exit code {code} and without an answer"
    return Outcome(Verdict.crashed, why)


def _exit_code(process: SpawnProcess, within_s: float) -> int | None:
    """The exit code of a process; None if it has not ended in time.

    A process that closes all its files looks ended to `join`, which waits then without a limit.
    """
    deadline = time.monotonic() + within_s
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.exitcode


def _stop(process: SpawnProcess) -> None:
    """End a process and what it started; one that has answered may end by itself."""
    if _exit_code(process, 0.5) is None:
        assert process.pid is not None  # noqa: S101 - it was started
        with suppress(ProcessLookupError):  # it may not lead a group yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    process.close()


def _serve(check: str, request: Request, messages: Connection, printed: str) -> None:
    """Run a check in this process and send what becomes of it."""
    os.setsid()  # so that it is stopped with whatever it starts
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    with suppress(OSError):  # should memory run out, the system is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, function = check.partition(":")
    run = getattr(import_module(module), function)
    try:
        outcome = run(request, lambda *at: messages.send(at))
    except ModelNotFoundError as error:
        messages.send(ModelNotFoundError(str(error)))
    except LenscacheError as error:
        messages.send(Outcome.failed(first_line(error)))
    except Exception as error:  # noqa: BLE001 - the answer of a check that broke is how it broke
        traceback.print_exc()
        messages.send(_fault(error))
    else:
        messages.send(replace(outcome, details=plain(outcome.details)))


def _end_with_parent() -> None:
    """A check that nobody waits for any more must not go on for minutes.

    Asks again and again: to wait for the parent takes a file, which the check may have closed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this process was spawned
    while os.getppid() == parent.pid:
        time.sleep(0.2)
    os._exit(1)


def _fault(error: Exception) -> Outcome:
    if type(error).__name__ in _OUT_OF_MEMORY or "can't allocate memory" in str(error):
        return Outcome.failed(f"out of memory: {first_line(error)}")
    why = f"{type(error).__name__}: {first_line(error)}"
    return Outcome(Verdict.crashed, why, {"fault": "error"})


def plain(value: Any) -> Any:
    """A value as strict JSON holds it: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
