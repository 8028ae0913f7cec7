"""Preflight: what this model does on this device, answered with numbers before hours are spent.

    run_preflight --Request--> one process a check --progress, Outcome--> CheckResult --draw_conclusion--> a paragraph

Each check runs in a process of its own, so that a crash or a lack of memory takes down that check
alone. `run` starts them, `process` talks to one, `worker` is the other end, and every other module
is one check or what checks share.
"""

from lenscache.preflight.results import CheckResult, Outcome, Request, Verdict
from lenscache.preflight.run import CHECKS, Check, CheckProgress, PreflightReport, run_preflight

__all__ = [
    "CHECKS",
    "Check",
    "CheckProgress",
    "CheckResult",
    "Outcome",
    "PreflightReport",
    "Request",
    "Verdict",
    "run_preflight",
]
