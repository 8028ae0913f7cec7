"""Run the checks one after another, each in its own process, and draw the conclusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lenscache.errors import PlanError
from lenscache.preflight.conclusion import draw_conclusion
from lenscache.preflight.process import run_check
from lenscache.preflight.results import LENS_FILE, CheckResult, Outcome, Request, Verdict

_HERE = "lenscache.preflight"


class Check(NamedTuple):
    """One question, and what to run for the answer."""

    number: int
    name: str
    question: str
    function: str
    """What answers it, as "module:function"; empty if it takes something that is not given."""


CHECKS = (
    Check(1, "bf16", "Does bf16 load and run?", f"{_HERE}.precision:check"),
    Check(2, "memory", "Does batch 4 fit?", f"{_HERE}.batches:check"),
    Check(3, "speed", "What is the real speed-up?", f"{_HERE}.speed:check"),
    Check(4, "lenses", "Are lenses as good?", ""),
    Check(5, "steering", "Can we steer, and in which precision?", f"{_HERE}.steering:check"),
)
"""Check 4 fits lenses, which this package does not: whoever does names its module."""

_LENSES, _STEERING = 4, 5


class CheckProgress(NamedTuple):
    """Where a preflight stands."""

    number: int
    """Of the check."""
    name: str
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class PreflightReport:
    """All answers."""

    model: str
    checks: tuple[CheckResult, ...]
    conclusion: str
    """One paragraph in plain words."""

    @property
    def passed(self) -> bool:
        """Whether no check failed or crashed."""
        return not any(check.verdict in (Verdict.failed, Verdict.crashed) for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        head = {"model": self.model, "passed": self.passed, "conclusion": self.conclusion}
        return {**head, "checks": [asdict(check) for check in self.checks]}


def run_preflight(
    request: Request,
    *,
    numbers: Sequence[int] | None = None,
    lens_module: str | None = None,
    checks: Sequence[Check] = CHECKS,
    time_limit_s: float = 900.0,
    keep: str | Path | None = None,
    on_progress: Callable[[CheckProgress], None] = lambda _: None,
) -> PreflightReport:
    """Run checks and say what follows from them.

    Parameters
    ----------
    numbers : of the checks to run; None for all.
    lens_module : module whose `check` answers check 4 and leaves lenses for check 5, and whose
        `check_steering` only leaves lenses. Without it, check 4 is skipped and check 5 steers along
        random directions.
    time_limit_s : seconds that one check may take.
    keep : folder that stores and lenses are left in; None for one that is removed.

    Raises
    ------
    PlanError
        If there is no check of a number.
    ModelNotFoundError
        If there is no such model.
    """
    known = {check.number for check in checks}
    wanted = sorted(known if numbers is None else set(numbers))
    if unknown := [number for number in wanted if number not in known]:
        choices = ", ".join(map(str, sorted(known)))
        raise PlanError(f"there is no check {unknown[0]}, only {choices}")
    by_number = {check.number: check for check in checks}
    if lens_module and _LENSES in by_number:
        by_number[_LENSES] = by_number[_LENSES]._replace(function=f"{lens_module}:check")
    with TemporaryDirectory(prefix="lenscache-preflight-") as scratch:
        folder = Path(scratch) if keep is None else Path(keep)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LENS_FILE).unlink(missing_ok=True)  # of an earlier run, maybe of another model
        run = _Run(replace(request, folder=str(folder.absolute())), time_limit_s, on_progress)
        if _STEERING in wanted and _LENSES not in wanted and lens_module:
            fit = f"{lens_module}:check_steering"
            run.ask(by_number[_LENSES]._replace(function=fit))
        results = tuple(run.ask(by_number[number]) for number in wanted)
    return PreflightReport(request.model, results, draw_conclusion(results))


class _Run:
    """What all checks of one preflight share."""

    def __init__(
        self, request: Request, time_limit_s: float, on_progress: Callable[[CheckProgress], None]
    ) -> None:
        self.request, self.time_limit_s, self.on_progress = request, time_limit_s, on_progress

    def ask(self, check: Check) -> CheckResult:
        """Run one check."""
        start = time.perf_counter()

        def tell(what: str, done: int, total: int) -> None:
            self.on_progress(CheckProgress(check.number, check.name, what, done, total))

        if check.function:
            tell("starting", 0, 1)
            limit = self.time_limit_s
            outcome = run_check(check.function, self.request, time_limit_s=limit, tell=tell)
        else:
            outcome = Outcome(Verdict.skipped, "lenstrain is not at hand to fit lenses")
        asked = check.number, check.name, check.question
        answer = outcome.verdict, outcome.why, outcome.details
        return CheckResult(*asked, *answer, elapsed_s=time.perf_counter() - start)
