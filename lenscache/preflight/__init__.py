"""Preflight: what this model does on this device, answered with numbers before hours are spent.

    run_preflight --Request--> one process a check --progress, Outcome--> CheckResult
    all CheckResults --draw_conclusion--> a paragraph

Each check runs in a process of its own: a crash or a lack of memory ends that check alone. `run`
starts them, `process` is both ends of one. Every other module is one check, or shared by checks.
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
