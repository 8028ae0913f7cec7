"""Checks that go wrong in every way, each to be run in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time

from lenscache.errors import ModelError, ModelNotFoundError
from lenscache.preflight.results import Outcome, Request, Tell
from lenscache.preflight.worker import serve


def check(request: Request, tell: Tell) -> Outcome:
    what = sys.argv[1]
    tell("half", 1, 2)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hangs":
        time.sleep(600)
    elif what == "raises":
        raise RuntimeError("the check has a fault\nand a second line")
    elif what == "refuses":
        raise ModelError("the device cannot be used")
    elif what == "no model":
        raise ModelNotFoundError("no model there")
    elif what == "memory":
        raise MemoryError
    elif what == "exits":
        os._exit(3)
    elif what == "junk":
        sys.stdout.write("{not json\n[1, 2]\n{}\n")
        os.write(1, b"\xff\xfe{ also not json\n")
    return Outcome.passed("all is well", value=float("nan"), folder=request.folder)


if __name__ == "__main__":
    if sys.argv[1] == "answers junk":
        sys.stdout.write('{"preflight": "result", "verdict": "passed"}\n')  # without a reason
        sys.stdout.write('3\n\n{"preflight": 4}\nnull\n')
    elif sys.argv[1] == "closes":
        os.close(1)
        time.sleep(600)
    else:
        serve(check)
