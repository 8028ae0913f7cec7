"""The process of one check: a request comes in, lines of progress and one result go out.

    standard input: a request, one line
        --python -m lenscache.preflight.worker precision--> standard output: messages

Whatever a library prints goes to standard error: standard output belongs to the answer. Standard
input stays open as long as somebody waits for the answer.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from lenscache.errors import LenscacheError, ModelNotFoundError, first_line
from lenscache.preflight.results import MARK, CheckFunction, Outcome, Request, Verdict

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def serve(check: CheckFunction, refusals: tuple[type[Exception], ...] = (LenscacheError,)) -> None:
    """Answer the request on standard input.

    Parameters
    ----------
    check : what to run.
    refusals : errors that are answers ("failed"); any other is a fault of the check ("crashed").
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with suppress(OSError):  # should memory run out, the system is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")

    def send(kind: str, **message: Any) -> None:
        answers.write(json.dumps({MARK: kind, **plain(message)}, default=str) + "\n")
        answers.flush()

    request = Request(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(what: str, done: int, total: int) -> None:
        send("progress", what=what, done=done, total=total)

    try:
        outcome = check(request, tell)
    except ModelNotFoundError as error:
        send("not found", why=str(error))
    except refusals as error:
        send("result", verdict=Verdict.failed, why=first_line(error), details={})
    except Exception as error:  # noqa: BLE001 - the answer of a check that broke is how it broke
        traceback.print_exc()
        outcome = _fault(error)
        send("result", verdict=outcome.verdict, why=outcome.why, details={})
    else:
        send("result", verdict=outcome.verdict, why=outcome.why, details=outcome.details)


def _end_with_parent() -> None:
    """A check that nobody waits for any more must not go on for minutes."""
    while os.read(0, 1024):  # returns nothing once the other end is gone
        pass
    os._exit(1)


def _fault(error: Exception) -> Outcome:
    is_memory = type(error).__name__ in _OUT_OF_MEMORY or "can't allocate memory" in str(error)
    if is_memory:
        return Outcome.failed(f"out of memory: {first_line(error)}")
    return Outcome(Verdict.crashed, f"{type(error).__name__}: {first_line(error)}")


def plain(value: Any) -> Any:
    """A value as strict JSON holds it: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def main() -> None:
    """Entry point: the check that the command line names."""
    from lenscache.model.loading import silence

    silence()
    serve(import_module(f"lenscache.preflight.{sys.argv[1]}").check)


if __name__ == "__main__":
    main()
