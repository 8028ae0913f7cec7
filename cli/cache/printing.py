"""What the `lenscache` command prints of what the library returns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import console
from ..meter import clock

if TYPE_CHECKING:
    from lenscache.concepts.evidence import UnnamedTexts
    from lenscache.concepts.quality import Fault
    from lenscache.extract.estimate import RunEstimate
    from lenscache.extract.settings import ExtractReport
    from lenscache.forecast import Forecast
    from lenscache.store.store import Store
    from lenscache.store.verify.findings import VerifyReport
    from lenscache.store.verify.repair import RepairReport

_TABLE_COLUMNS = 5
_MOST_FINDINGS = 3  # of a rule in a table
_FINDING_LINES = 12  # of findings in a table, divided among the rules: a screen has 24 in all
_LONG = 400  # characters of a finding by itself: all that it says
_FINDING_WIDTH = 58  # beside rule and count, of 80 columns


def print_estimate(estimate: RunEstimate) -> None:
    """What an extraction would cost."""
    size = console.megabytes
    console.say(
        f"{estimate.concepts} concepts on {_levels(estimate)}: {estimate.prompts} prompts, "
        f"{estimate.prompt_tokens} prompt tokens, at most {estimate.new_tokens} new ones"
    )
    if estimate.background:
        console.say(f"{estimate.background} of the prompts are background texts of no concept")
    if estimate.cut_prompts:
        cut = f"{estimate.cut_prompts} prompts are longer than the model takes"
        console.say(f"{cut}, and would be cut")
    console.say(
        f"{estimate.model_layers} model layers: about {size(estimate.stored_bytes)} on disk, "
        f"{size(estimate.bytes_per_model_layer)} each, of {size(estimate.raw_bytes)} raw"
    )
    console.say(
        f"about {clock(estimate.seconds)} on this device, at {estimate.prompts_per_second:.1f} "
        f"prompts/s in batches of {estimate.batch_size}"
    )


def print_forecast(estimate: Forecast) -> None:
    """What an extraction would cost on other devices."""
    size = console.megabytes
    guessed = ", guessed from their letters" if estimate.are_tokens_guessed else ""
    over = estimate.devices_per_copy
    spread = f", each over {over} devices" if over > 1 else ""
    copies = "one copy" if estimate.copies == 1 else f"{estimate.copies} copies"
    shared = "--partition" if over > 1 else "--engine ray or --partition"
    divided = f" with {shared}" if estimate.copies > 1 else ""
    for line in (
        f"{estimate.concepts} concepts on {_levels(estimate)}: {estimate.prompts} prompts, "
        f"{estimate.prompt_tokens} prompt tokens{guessed}, at most {estimate.new_tokens} new ones",
        f"{estimate.devices} x {estimate.device_kind}: {copies} of the model{spread}, batches of "
        f"{estimate.batch_size}, {estimate.blocks} blocks of {estimate.block_rows} rows",
        f"about {clock(estimate.seconds)} (from {clock(estimate.seconds_low)} to "
        f"{clock(estimate.seconds_high)}), {estimate.device_hours:.2f} device hours{divided}: "
        f"loading {clock(estimate.seconds_to_load)}, then {estimate.seconds_a_block:.1f} s a block",
        f"{estimate.model_layers} model layers: about {size(estimate.stored_bytes)} stored, of "
        f"{size(estimate.raw_bytes)} raw",
        "not counted: waiting for an object store, slow machines and restarts (docs/scaling.md)",
    ):
        console.say(line)


def print_report(store: Store, report: ExtractReport) -> None:
    """What an extraction did."""
    summary, say = store.summary(), console.say
    line = f"{store.path}: {report.rows} rows on {_levels(report)}; {report.rows_run} extracted now"
    if report.rows_run:
        pace = report.rows_run / report.elapsed_s
        line += f" in {report.elapsed_s:.0f} s, {pace:.1f} rows/s"
    say(line)
    if store.background is not None:
        say(f"background: {store.background.n_samples} rows that express no concept")
    if report.cut_prompts:
        first = f"their first {summary['settings']['max_prompt_tokens']} tokens"
        say(f"cut: {report.cut_prompts} prompts to {first} (samples/n_cut_tokens says which)")
    if report.rows_reused:
        say(f"copied: {report.rows_reused} rows that another store held")
    if exhausted := report.exhausted_concepts:
        named = ", ".join(exhausted[:5]) + (" ..." if len(exhausted) > 5 else "")
        say(f"nothing left to add for {len(exhausted)} concepts: {named}")
    for block in report.repaired_blocks:
        say(f"repaired: {block}")
    say(_sizes(summary))
    if report.unfinished_rounds:
        rounds = ", ".join(report.unfinished_rounds)
        say(f"other partitions have blocks to do in {rounds}: see `lenscache info`")
        return
    if report.max_relative_error:
        same = f"agree with the same rows one by one within {report.max_relative_error:.2%}"
        say(f"rows in batches of {report.batch_size} {same}")
    say(f"next: lenstrain fit {store.path} --f1 0.95 --out lenses")


def print_summary(summary: dict[str, Any]) -> None:
    """What a store holds."""
    out, say = console.out(), console.say
    model, settings, pack = summary["model"], summary["settings"], summary["pack"]
    say(f"{summary['path']}  format {summary['format_version']}, digest {summary['digest']}")
    shape = f"{model['n_layers']} transformer blocks of size {model['hidden']}"
    say(f"model {model['id']} ({model['fingerprint']}), {shape}, computed in {model['dtype']}")
    say(f"pack {pack['name']} {pack['version']} ({pack['digest']})")
    with_first = "with" if settings["pool_first_position"] else "without"
    say(
        f"{settings['mode']} mode, {settings['max_new_tokens']} new tokens, {settings['pooling']} "
        f"over positions {with_first} the first, stored as {settings['store_dtype']}, "
        f"seed {settings['seed']}"
    )
    say(_sizes(summary))
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
        say(f"label sets: {', '.join(summary['label_sets'])}")


def print_unnamed(
    unnamed: UnnamedTexts, say: Callable[[str], None] = console.say, *, brief: bool = False
) -> None:
    """Which concepts have too few texts that do not name them; nothing where all is well."""
    for line in unnamed.lines(brief=brief):
        say(console.visible(line))


def print_rules(findings: Sequence[Fault], command: str) -> None:
    """Findings of a pack by rule, with the first few of each, and the `command` for the rest."""
    if not findings:
        return
    by_rule = defaultdict(list)
    for finding in findings:
        by_rule[finding.rule].append(finding)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule")
    table.add_column("findings", justify="right")
    table.add_column("first few", no_wrap=True, overflow="ellipsis")
    few = max(1, min(_MOST_FINDINGS, _FINDING_LINES // len(by_rule)))
    rules = sorted(by_rule, key=lambda rule: -len(by_rule[rule]))
    for rule in rules:
        for number, finding in enumerate(by_rule[rule][:few]):
            head = ("", "") if number else (rule, str(len(by_rule[rule])))
            table.add_row(*head, Text(console.visible(finding.sentence(), _FINDING_WIDTH)))
    console.out().print(table)
    console.say(f"all of a rule: {command} --rule {rules[0]}")


def print_findings(shown: Sequence[Fault], chosen: Sequence[Fault]) -> None:
    """Findings of a pack, one a line, and how many of those that were `chosen` are left out."""
    for finding in shown:
        console.say(f"{finding.rule}: {console.visible(finding.sentence(), _LONG)}")
    left = Counter(each.rule for each in chosen)
    left.subtract(each.rule for each in shown)
    for rule, count in left.items():
        if count:
            console.say(f"{rule}: {count} more")


def print_verified(report: VerifyReport) -> None:
    """What a check found."""
    for line in (
        *(finding.line() for finding in report.findings),
        *(f"note: {note}" for note in report.notes),
        *(state.line() for state in report.rounds),
    ):
        console.say(line)
    how = "looked at, not decoded" if report.quick else "decoded"
    counted = f"{report.objects} objects of {report.arrays} arrays {how}"
    found = f"{len(report.findings)} findings" if report.is_damaged else "clean"
    if not (report.is_clean or report.is_damaged):
        found = "no round was found, in a store that was just begun or a folder that is not listed"
        if report.rounds:
            found = "nothing was checked, since no round is laid out yet"
    console.say(f"{report.path}: {found}; {counted}, {console.megabytes(report.bytes)}")
    if any(finding.block is not None for finding in report.findings):
        console.say(f"next: lenscache repair {report.path}")


def print_repaired(report: RepairReport) -> None:
    """What a repair did, and what is left to do."""
    for line in (
        *(f"unmarked: {block}" for block in report.unmarked),
        *(f"left to extract: {finding.line()}" for finding in report.left_to_extract),
        *(f"not repaired: {finding.line()}" for finding in report.left_to_user),
    ):
        console.say(line)
    if not (report.unmarked or report.left_to_extract or report.left_to_user):
        console.say(f"{report.path}: nothing to repair")
        return
    done = f"{len(report.unmarked)} blocks unmarked, {report.rows} rows to extract again"
    again = "next: lenscache extract with the arguments it was run with before"
    console.say(f"{report.path}: {done}; {again}")


def _model_layer_table(summary: dict[str, Any]) -> Table:
    """Sizes by model layer; five to a row, since there may be eighty."""
    stored = summary["stored_bytes_by_model_layer"]
    raw = summary["raw_bytes"] / max(len(stored), 1)
    title = "model layer: stored, share of raw"
    table = console.make_table(title, *[""] * (_TABLE_COLUMNS - 1))
    cells = [f"{i}: {console.megabytes(n)}, {n / max(raw, 1):.2f}" for i, n in stored.items()]
    for start in range(0, len(cells), _TABLE_COLUMNS):
        table.add_row(*cells[start : start + _TABLE_COLUMNS])
    return table


def _sizes(summary: dict[str, Any]) -> str:
    stored, raw, size = summary["stored_bytes"], summary["raw_bytes"], console.megabytes
    n_model_layers = len(summary["settings"]["model_layers"])
    phases = " and ".join(summary["phases"])
    share = f"{stored / max(raw, 1):.2f} of the {size(raw)} they hold uncompressed"
    return f"{n_model_layers} model layers x {phases}: {size(stored)} stored, {share}"


def _levels(found: RunEstimate | Forecast | ExtractReport) -> str:
    """The levels of an estimate or a report in words: level 1, levels 0, 2."""
    return f"level{'s' * (len(found.levels) > 1)} {', '.join(map(str, found.levels))}"
