"""What the `lenscache` command prints of what the library returns."""

from __future__ import annotations

from typing import Any

from .. import console
from ..meter import clock

_TABLE_COLUMNS = 5
_SMALLEST_SHARE = 0.01  # of the time, that is worth a word


def print_estimate(estimate: Any) -> None:
    """What an extraction would cost."""
    levels = (
        f"level{'s' if len(estimate.levels) > 1 else ''} {', '.join(map(str, estimate.levels))}"
    )
    for line in (
        f"{estimate.concepts} concepts on {levels}: {estimate.prompts} prompts, "
        f"{estimate.prompt_tokens} prompt tokens, at most {estimate.new_tokens} new ones",
        *(
            [f"{estimate.cut_prompts} prompts are longer than the model takes, and would be cut"]
            * (estimate.cut_prompts > 0)
        ),
        f"{estimate.model_layers} model layers: about {console.megabytes(estimate.stored_bytes)} "
        f"on disk, {console.megabytes(estimate.bytes_per_model_layer)} each, of "
        f"{console.megabytes(estimate.raw_bytes)} raw",
        f"about {clock(estimate.seconds)} on this device, at {estimate.prompts_per_second:.1f} "
        f"prompts/s in batches of {estimate.batch_size}",
    ):
        console.out().print(line, markup=False, soft_wrap=True)


def print_forecast(estimate: Any) -> None:
    """What an extraction would cost on other devices."""
    size = console.megabytes
    levels = (
        f"level{'s' if len(estimate.levels) > 1 else ''} {', '.join(map(str, estimate.levels))}"
    )
    guessed = ", guessed from their letters" if estimate.are_tokens_guessed else ""
    spread = (
        f", each over {estimate.devices_per_copy} devices" if estimate.devices_per_copy > 1 else ""
    )
    copies = "one copy" if estimate.copies == 1 else f"{estimate.copies} copies"
    otherwise = ""
    if estimate.engine == "ray":
        otherwise = (
            f" with --engine ray; with --partition {clock(estimate.seconds_with_partitions)} and "
            f"{estimate.gets_with_partitions} GET and HEAD"
        )
    elif estimate.copies > 1:
        otherwise = f" with --partition, a share for each of {estimate.copies}"
    largest = sorted(estimate.parts.items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= _SMALLEST_SHARE)
    for line in (
        f"{estimate.concepts} concepts on {levels}: {estimate.prompts} prompts, "
        f"{estimate.prompt_tokens} prompt tokens{guessed}, at most {estimate.new_tokens} new ones",
        f"{estimate.devices} x {estimate.device_kind}: {copies} of the model{spread}, batches of "
        f"{estimate.batch_size}, {estimate.blocks} blocks of {estimate.block_rows} rows",
        f"about {clock(estimate.seconds)} (from {clock(estimate.seconds_low)} to "
        f"{clock(estimate.seconds_high)}), {estimate.device_hours:.2f} device hours{otherwise}",
        f"loading {clock(estimate.seconds_to_load)}; a block {estimate.seconds_a_block:.1f} s, "
        f"written in {estimate.seconds_to_write_a_block:.1f} s beside the next one",
        f"time: {shares}",
        f"{estimate.model_layers} model layers: about {size(estimate.stored_bytes)} stored, of "
        f"{size(estimate.raw_bytes)} raw, in {estimate.objects} objects",
        f"requests: {estimate.puts} PUT, {estimate.gets} GET and HEAD, {estimate.lists} LIST",
        *(f"cheaper: {advice}" for advice in estimate.cheaper),
    ):
        console.out().print(line, markup=False, soft_wrap=True)


def print_report(store: Any, report: Any) -> None:
    """What an extraction did."""
    summary = store.summary()
    out = console.out()
    rate = (
        f" in {report.elapsed_s:.0f} s, {report.rows_run / report.elapsed_s:.1f} rows/s"
        if report.rows_run
        else ""
    )
    levels = f"level{'s' if len(report.levels) > 1 else ''} {', '.join(map(str, report.levels))}"
    out.print(
        f"{store.path}: {report.rows} rows on {levels}; {report.rows_run} extracted now{rate}",
        markup=False,
        soft_wrap=True,
    )
    if report.cut_prompts:
        limit = summary["settings"]["max_prompt_tokens"]
        out.print(
            f"cut: {report.cut_prompts} prompts to their first {limit} tokens "
            "(samples/n_cut_tokens says which)"
        )
    if report.rows_reused:
        out.print(f"copied: {report.rows_reused} rows that another store held")
    if report.exhausted_concepts:
        named = ", ".join(report.exhausted_concepts[:5]) + (
            " ..." if len(report.exhausted_concepts) > 5 else ""
        )
        out.print(
            f"nothing left to add for {len(report.exhausted_concepts)} concepts: {named}",
            markup=False,
        )
    for block in report.repaired_blocks:
        out.print(f"repaired: {block}", markup=False, soft_wrap=True)
    out.print(_sizes(summary))
    if report.unfinished_rounds:
        out.print(
            f"other partitions have blocks to do in {', '.join(report.unfinished_rounds)}: see "
            "`lenscache info`"
        )
        return
    if report.max_relative_error:
        error = f"{report.max_relative_error:.2%}"
        out.print(
            f"rows in batches of {report.batch_size} agree with the same rows one by one within "
            f"{error}"
        )
    out.print(
        f"next: lenstrain fit {store.path} --f1 0.95 --out lenses", markup=False, soft_wrap=True
    )


def print_summary(summary: dict[str, Any]) -> None:
    """What a store holds."""
    out = console.out()
    model, settings = summary["model"], summary["settings"]
    out.print(f"{summary['path']}  format {summary['format_version']}, digest {summary['digest']}")
    shape = f"{model['n_layers']} transformer blocks of size {model['hidden']}"
    out.print(
        f"model {model['id']} ({model['fingerprint']}), {shape}, computed in {model['dtype']}",
        markup=False,
        soft_wrap=True,
    )
    out.print(
        (
            f"pack {summary['pack']['name']} {summary['pack']['version']} "
            f"({summary['pack']['digest']})"
        ),
        markup=False,
    )
    pooling = (
        f"{settings['pooling']} over positions "
        f"{'with' if settings['pool_first_position'] else 'without'} the first"
    )
    tokens = f"{settings['mode']} mode, {settings['max_new_tokens']} new tokens"
    out.print(f"{tokens}, {pooling}, stored as {settings['store_dtype']}, seed {settings['seed']}")
    out.print(_sizes(summary))
    table = console.make_table(
        "round", "concepts", "rows", "blocks", "state", "batch", "largest error"
    )
    for entry in summary["rounds"]:
        error = entry["max_relative_error"]
        table.add_row(
            entry["name"],
            str(entry["concepts"]),
            str(entry["rows"]),
            f"{entry['complete_blocks']}/{entry['blocks']}",
            entry["state"],
            str(entry["batch_size"] or ""),
            "" if error is None else f"{error:.2%}",
        )
    out.print(table)
    out.print(_model_layer_table(summary))
    if partitions := summary.get("partitions"):
        table = console.make_table("partition", "blocks", "state")
        for entry in partitions:
            state = "complete" if entry["is_done"] else "to do"
            table.add_row(entry["partition"], f"{entry['complete']}/{entry['blocks']}", state)
        out.print(table)
    if summary["label_sets"]:
        out.print(f"label sets: {', '.join(summary['label_sets'])}", markup=False, soft_wrap=True)


def print_verified(report: Any) -> None:
    """What a check found."""
    for line in (
        *(finding.line() for finding in report.findings),
        *(f"note: {note}" for note in report.notes),
        *(state.line() for state in report.rounds),
    ):
        console.out().print(line, markup=False, soft_wrap=True)
    how = "looked at, not decoded" if report.quick else "decoded"
    counted = (
        f"{report.objects} objects of {report.arrays} arrays {how}, "
        f"{console.megabytes(report.bytes)}"
    )
    found = f"{len(report.findings)} findings" if report.is_damaged else "clean"
    console.out().print(f"{report.path}: {found}; {counted}", markup=False, soft_wrap=True)
    if any(finding.block is not None for finding in report.findings):
        console.out().print(f"next: lenscache repair {report.path}", markup=False, soft_wrap=True)


def print_repaired(report: Any) -> None:
    """What a repair did, and what is left to do."""
    for line in (
        *(f"unmarked: {block}" for block in report.unmarked),
        *(f"left to extract: {finding.line()}" for finding in report.left_to_extract),
        *(f"not repaired: {finding.line()}" for finding in report.left_to_user),
    ):
        console.out().print(line, markup=False, soft_wrap=True)
    if not (report.unmarked or report.left_to_extract or report.left_to_user):
        console.out().print(f"{report.path}: nothing to repair", markup=False, soft_wrap=True)
        return
    done = f"{len(report.unmarked)} blocks unmarked, {report.rows} rows to extract again"
    again = "next: lenscache extract with the arguments it was run with before"
    console.out().print(f"{report.path}: {done}; {again}", markup=False, soft_wrap=True)


def _model_layer_table(summary: dict[str, Any]) -> Any:
    """Sizes by model layer; five to a row, since there may be eighty."""
    stored = summary["stored_bytes_by_model_layer"]
    raw = summary["raw_bytes"] / max(len(stored), 1)
    table = console.make_table(
        *("model layer: stored, share of raw" if i == 0 else "" for i in range(_TABLE_COLUMNS))
    )
    cells = [
        f"{i}: {console.megabytes(size)}, {size / max(raw, 1):.2f}" for i, size in stored.items()
    ]
    for start in range(0, len(cells), _TABLE_COLUMNS):
        table.add_row(*cells[start : start + _TABLE_COLUMNS])
    return table


def _sizes(summary: dict[str, Any]) -> str:
    stored, raw = summary["stored_bytes"], summary["raw_bytes"]
    n_model_layers = len(summary["settings"]["model_layers"])
    return (
        f"{n_model_layers} model layers x {' and '.join(summary['phases'])}: {console.megabytes(stored)} "
        f"stored, {stored / max(raw, 1):.2f} of the {console.megabytes(raw)} they hold uncompressed"
    )
