"""What `lenscache preflight` prints: a line a check, a table of its numbers, and the conclusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from .. import console

if TYPE_CHECKING:
    from lenscache.preflight.run import PreflightReport

_STYLES = {"passed": "green", "failed": "bold red", "crashed": "bold red", "skipped": "yellow"}


def print_preflight(report: PreflightReport) -> None:
    """All checks, then what follows from them."""
    out = console.out()
    tables = {
        "bf16": _bf16,
        "memory": _memory,
        "speed": _speed,
        "lenses": _lenses,
        "steering": _steering,
    }
    for check in report.checks:
        verdict = check.verdict.value
        line = Text.assemble(
            (f"{check.number}. {check.question} ", "bold"),
            (verdict, _STYLES[verdict]),
            f" in {check.elapsed_s:.0f} s",
        )
        out.print(line, soft_wrap=True)
        console.say(check.why)
        if check.details and verdict in ("passed", "failed"):
            for table in tables[check.name](check.details):
                out.print(table)
        out.print()
    console.say(report.conclusion, style="bold")


def _bf16(details: dict[str, Any]) -> list[Any]:
    memory = console.make_table("loaded in", "weights", "memory held", "parameters")
    for entry in details["memory"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in entry["parameter_dtypes"].items())
        memory.add_row(entry["dtype"], _size(entry["weights"]), _size(entry["held"]), kinds)
    prompts = console.make_table("prompt", "tokens", "finite", "largest activation")
    for entry in details["prompts"]:
        finite = "yes" if entry["finite"] else f"no, from model layer {entry['first_broken']}"
        prompts.add_row(
            entry["prompt"], str(entry["tokens"]), finite, f"{entry['largest_activation']:,.0f}"
        )
    return [memory, prompts]


def _memory(details: dict[str, Any]) -> list[Any]:
    table = console.make_table(
        "batch", "fits", "peak", "weights", "cache", "program", "the rest", "reserved"
    )
    names = ("peak", "weights", "cache", "program", "rest", "reserved")
    for row in details["batches"]:
        sizes = (_size(row[name]) for name in names)
        table.add_row(str(row["batch"]), "yes" if row["fits"] else "no", *sizes)
    how = f"by estimate, {_size(details['per_row'])} a row" if details["estimated"] else "by trying"
    tokens = f"{details['prompt_tokens']} prompt tokens and {details['new_tokens']} new ones a row"
    return [
        table,
        Text(
            f"{details['dtype']} on {details['device']}, {tokens}; largest batch: "
            f"{details['largest']}, {how}; {_size(details['free'])} free before"
        ),
    ]


def _speed(details: dict[str, Any]) -> list[Any]:
    table = console.make_table(
        "way to run", "prompts/s", "spread", f"x {details['timings'][0]['name']}", "spread"
    )
    for row in details["timings"]:
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        spread_of_ratio = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
        ratio = f"{row['ratio']:.2f}"
        table.add_row(row["name"], f"{row['median']:.2f}", spread, ratio, spread_of_ratio)
    tried = ", ".join(f"{size}: {rate:.2f}" for size, rate in details["batch_sizes"].items())
    note = (
        f"median and range of {details['repeats']} repeats in turn, {details['prompts']} prompts "
        f"or a batch each, {details['new_tokens']} new tokens; prompts/s by batch size, "
        f"tried once: {tried}"
    )
    return [table, Text(note)]


def _lenses(details: dict[str, Any]) -> list[Any]:
    table = console.make_table(
        "lenses fitted on", "judged on", "F1", "score", "F1 - fp32's", "score - fp32's"
    )
    for row in details["quality"]:
        change = details["changes"].get(f"{row['fitted']} on {row['judged']}")
        shown = [_change(change[name]) for name in ("f1", "score")] if change else ["", ""]
        table.add_row(
            row["fitted"], row["judged"], f"{row['f1']:.3f}", f"{row['score']:.3f}", *shown
        )
    note = (
        f"{len(details['concepts'])} concepts, prompts only, each concept at the same model layer "
        "in both; differences are to lenses fitted and judged in float32, with a 95 % interval "
        "over concepts"
    )
    return [table, Text(note)]


def _steering(details: dict[str, Any]) -> list[Any]:
    columns = "precision, direction, strength, finite, own lens, other lens, perplexity, largest"
    table = console.make_table(*columns.split(", "))
    for dtype, found in details["precisions"].items():
        for step in found.get("steps", ()):
            table.add_row(
                dtype,
                step["concept"],
                f"{step['strength']:+g}",
                "yes" if step["finite"] else "no",
                _signed(step["own"]),
                _signed(step["unrelated"]),
                "" if step["perplexity_ratio"] is None else f"x {step['perplexity_ratio']:.2f}",
                f"{step['largest_activation']:,.0f}",
            )
    lines = []
    for dtype, found in details["precisions"].items():
        if not found["runs"]:
            lines.append(f"{dtype}: {found['why']}")
            continue
        plain, overflow = found["unsteered"], found["overflow"]
        line = f"{dtype}: unsteered, activations reach {plain['largest_activation']:,.0f}"
        if overflow is not None:
            line += f"; overflows from about {overflow:,.0f} deviations on"
        elif plain["finite"]:
            line += "; nothing overflows up to a million deviations"
        lines.append(line)
    note = (
        f"steered after model layer {details['steered_layer']}, read at {details['read_layer']}; "
        "strengths are in deviations of pooled activations along the direction, lenses in "
        "deviations of their noise"
    )
    return [table, Text("\n".join([*lines, note]))]


def _size(size: float | None) -> str:
    return "unknown" if size is None else console.megabytes(size)


def _change(change: dict[str, float]) -> str:
    return f"{change['mean']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"
