"""`lenstrain audit`: what the library finds, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from typer import Exit, Option

from .. import console, options
from ..console import visible

if TYPE_CHECKING:
    from rich.table import Table

    from lenstrain.audit.audit import AuditReport

_MAX_FINDINGS = 20


@console.reports_errors
def audit(
    store: options.StorePath,
    level: options.Levels = None,
    labels: options.Labels = None,
    strict: Annotated[
        bool, Option("--strict", help="Exit with 1 where there is a finding.")
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say how far a score on the held-out samples of STORE can be trusted.

    Looks for twins across splits and for confounds of labels.
    """
    from lenstrain.audit.audit import audit_dataset
    from lenstrain.data.dataset import open_dataset

    dataset = open_dataset(store, levels=level, labels=labels)
    for name in dataset.rounds_left_out:
        console.note(f"left out: {name} is not finished")
    report = audit_dataset(dataset)
    if json:
        console.print_json(report.to_json())
    else:
        _print_report(report)
    if strict and report.findings:
        raise Exit(1)


def _print_report(report: AuditReport) -> None:
    out = console.out()
    line = f"{report.path}: {report.n_samples} samples, {len(report.names)} concepts"
    if report.left_out:
        line += f"; {len(report.left_out)} left out, with too few samples for a lens"
    console.say(line)
    out.print(_split_table(report))
    for pair in report.splits:
        for twin in pair.examples:
            a, b = visible(twin.text_a), visible(twin.text_b)
            console.say(f"  {twin.similarity:.2f}  {a} ({twin.split_a}) = {b} ({twin.split_b})")
    out.print()
    out.print(_factor_table(report))
    out.print()
    findings = report.findings
    for line in findings[:_MAX_FINDINGS]:
        console.say(f"finding: {visible(line, len(line))}")
    if len(findings) > _MAX_FINDINGS:
        console.say(f"and {len(findings) - _MAX_FINDINGS} more (--json has all)")
    console.say(report.verdict)


def _split_table(report: AuditReport) -> Table:
    table = console.make_table("splits", "exact twins", "near twins")
    for pair in report.splits:
        table.add_row(" and ".join(pair.splits), str(pair.exact), str(pair.near))
    return table


def _factor_table(report: AuditReport) -> Table:
    table = console.make_table(
        "factor", "concepts", "mean |r|", "by chance", "worst", "concept", "flagged"
    )
    for factor in report.factors:
        if factor.worst is None:
            table.add_row(factor.name, "0", "", "", "", "does not vary", "")
            continue
        table.add_row(
            factor.name,
            str(factor.n_concepts),
            f"{factor.mean_abs_r:.2f}",
            f"{factor.by_chance:.2f}",
            f"{factor.worst.r:+.2f}",
            escape(visible(report.short_name(factor.worst.concept))),
            "by design" if factor.by_design else str(len(factor.flagged)),
        )
    return table
