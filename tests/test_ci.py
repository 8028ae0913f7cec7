"""`.ci/run` tries both environments, and its output ends as that of `make test` does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLOSING = "========= 4118 passed, 1 skipped in 571.46s (0:09:31) ========="
FAKE_MAKE = """#!/bin/sh
echo "$@" >>"$CALLS"
case $1 in
test) echo "$TEST_PRINTS"; status=$TEST ;;
test-newest) echo "========= 3000 passed in 9.00s ========="; status=$TEST_NEWEST ;;
esac
[ "$status" = 0 ] || echo "make: *** [Makefile:41: $1] Error 1" >&2
exit "$status"
"""


class Ran:
    """What `.ci/run` does where `make` is a script that ends as it is told."""

    def __init__(self, folder: Path, test: int, newest: int, prints: str = CLOSING) -> None:
        # A browser is there, so that none is installed.
        for name, script in (("make", FAKE_MAKE), ("chromium", ""), ("chromedriver", "")):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        calls = folder / "calls"
        env = {
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "TEST": str(test),
            "TEST_NEWEST": str(newest),
            "TEST_PRINTS": prints,
        }
        ran = subprocess.run(
            [str(ROOT / ".ci/run")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.status, self.lines = ran.returncode, ran.stdout.splitlines()
        self.calls = calls.read_text().splitlines()


@pytest.mark.parametrize(("test", "newest"), [(0, 0), (2, 0), (0, 2), (2, 2)])
def test_ci_runs_both_environments_and_fails_if_one_does(
    tmp_path: Path, test: int, newest: int
) -> None:
    ran = Ran(tmp_path, test, newest)
    assert ran.calls == ["test", "test-newest"]
    assert (ran.status != 0) == (test != 0 or newest != 0)
    assert ran.lines.count("========= 3000 passed in 9.00s =========") == 1
    assert ran.lines[-2:] == [
        f"exit status: {test} of make test, {newest} of make test-newest",
        CLOSING,
    ]


def test_ci_ends_with_what_the_linters_say_where_pytest_did_not_run(tmp_path: Path) -> None:
    ran = Ran(tmp_path, 2, 0, prints="Found 1 error.")
    assert ran.status != 0
    assert ran.lines[-1] == "make: *** [Makefile:41: test] Error 1"
