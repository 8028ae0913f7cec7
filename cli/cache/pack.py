"""The `lenscache pack` commands: make, check and show concept packs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, BadParameter, Exit, Option

from .. import console, options
from . import printing

if TYPE_CHECKING:
    from lenscache.concepts.evidence import UnnamedTexts
    from lenscache.concepts.importers.labelled import LabelledColumns
    from lenscache.concepts.importers.report import Imported
    from lenscache.concepts.importers.tables import TableFormat
    from lenscache.concepts.pack import ConceptPack
    from lenscache.concepts.quality import Fault

app = typer.Typer(
    help="Make, check and show concept packs.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command(
    "import",
    epilog="Example: lenscache pack import reviews.csv --label sentiment --out reviews.json",
)
@console.reports_errors
def import_pack(
    source: Annotated[
        Path,
        Argument(
            help="Labelled texts (CSV, TSV, JSON, Parquet, a saved Hugging Face dataset), "
            "a concept pack of HatCat, SUMO KIF or a WordNet folder."
        ),
    ],
    out: Annotated[Path, Option(help="Pack to write, a JSON file.")],
    text: options.TextColumn = "text",
    label: options.LabelColumn = "label",
    split: options.SplitColumn = None,
    concept: options.BinaryConcept = None,
    separator: options.Separator = None,
    threshold: options.Threshold = None,
    fold_case: options.FoldCase = False,
    missing: options.Missing = None,
    keep_na: options.KeepNa = False,
    as_classes: options.AsClasses = False,
    encoding: options.Encoding = "utf-8-sig",
    delimiter: options.Delimiter = None,
    quoting: options.QuotingOption = "auto",
    root: Annotated[
        list[str] | None, Option(help="KIF and WordNet: concept to start from; repeatable.")
    ] = None,
    overwrite: Annotated[bool, options.overwrite("a file that is at --out")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make a concept pack of what you have, and say what was read, repaired and left out."""
    from lenscache.concepts.importers.labelled import LabelledColumns
    from lenscache.concepts.importers.tables import TableFormat
    from lenscache.errors import PackError

    if out.exists() and not overwrite:
        raise PackError(f"{out} exists already: choose another --out, or pass --overwrite")
    meaning = separator, threshold, fold_case, tuple(missing or ()), keep_na, as_classes
    columns = LabelledColumns(text, label, split, concept, *meaning)
    table = TableFormat(encoding, delimiter, quoting)
    imported = _import_any(source, columns, table, root)
    if not json:
        for line in imported.report.lines():
            console.say(line)
    imported.pack.save(out)
    if json:
        found = {"out": str(out), "digest": imported.pack.digest}
        console.print_json(found | imported.report.to_dict())
        return
    console.say(f"written to {out}; next: lenscache pack check {out}")


@app.command(epilog="Example: lenscache pack check data/packs/starter.json")
@console.reports_errors
def check(
    pack: options.PackFile,
    min_examples: Annotated[int, Option(min=0, help="Examples a concept.")] = 8,
    min_contrasts: Annotated[int, Option(min=0, help="Contrasts a concept.")] = 1,
    rule: Annotated[
        list[str] | None,
        Option(help="Print all findings of this rule, one a line; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, Option(min=1, metavar="N", help="Print N findings of each rule, at most.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Hold PACK against what makes lenses good; exit code 1 if anything is found.

    Counts the findings of each rule, and the concepts without texts for a grade.
    """
    from lenscache.concepts.pack import ConceptPack
    from lenscache.concepts.quality import RULES, CheckSettings, find_faults

    if unknown := [each for each in rule or [] if each not in RULES]:
        raise BadParameter(f"{unknown[0]!r} is no rule: give one of {', '.join(RULES)}")
    concepts = ConceptPack.load(pack)
    labelled = concepts.prompts == "examples"  # has neither names nor contrasts to check
    settings = CheckSettings(
        min_examples=min_examples, min_contrasts=0 if labelled else min_contrasts
    )
    skipped = ("definition", "naming", "length") if labelled else ()
    found = [each for each in find_faults(concepts, settings) if each.rule not in skipped]
    chosen = [each for each in found if not rule or each.rule in rule]
    shown = _first_of_each(chosen, limit)
    unnamed = _unnamed_texts(concepts)
    if json:
        facts = {"digest": concepts.digest, "counts": Counter(each.rule for each in found)}
        findings = [each._asdict() for each in shown]
        texts = None if unnamed is None else unnamed.to_dict()
        console.print_json({**facts, "findings": findings, "unnamed_texts": texts})
    else:
        if rule or limit:
            printing.print_findings(shown, chosen)
        else:
            printing.print_rules(found, f"lenscache pack check {pack}")
            if unnamed is not None:
                printing.print_unnamed(unnamed, brief=True)
        head = f"{concepts.name} {concepts.version} ({concepts.digest}): {len(concepts)} concepts"
        n_examples = sum(len(concept.examples) for concept in concepts.concepts)
        console.say(f"{head}, {n_examples} examples; {len(found)} findings")
    if found:
        raise Exit(1)


@app.command("show", epilog="Example: lenscache pack show data/packs/starter.json bird")
@console.reports_errors
def show_pack(
    pack: options.PackFile,
    concept: Annotated[
        str | None, Argument(help="Id of one concept. Default: the tree of all.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show PACK as a tree with counts a level, or all there is about one concept."""
    from lenscache.concepts.pack import ConceptPack

    concepts = ConceptPack.load(pack)
    if json:
        facts = concepts.to_dict() if concept is None else _concept_facts(concepts, concept)
        console.print_json(facts)
    elif concept is None:
        _print_tree(concepts)
    else:
        for key, value in _concept_facts(concepts, concept).items():
            lines = value if isinstance(value, list | tuple) else [value]
            for number, line in enumerate(lines):
                console.say(f"{key if number == 0 else '':16} {line}")


def _import_any(
    source: Path, columns: LabelledColumns, table: TableFormat, roots: list[str] | None
) -> Imported:
    """Import a source as the kind that its files show."""
    from lenscache.concepts.importers.hatcat import import_hatcat, is_hatcat
    from lenscache.concepts.importers.kif import import_kif, is_kif
    from lenscache.concepts.importers.labelled import import_labelled
    from lenscache.concepts.importers.wordnet import import_wordnet, is_wordnet

    if is_hatcat(source):
        return import_hatcat(source)
    if is_kif(source):
        return import_kif(source, roots=roots)
    if is_wordnet(source):
        return import_wordnet(source, roots=roots) if roots else import_wordnet(source)
    return import_labelled(source, columns, table)


def _first_of_each(findings: Sequence[Fault], limit: int | None) -> list[Fault]:
    """The first findings of each rule, in pack order."""
    if limit is None:
        return [*findings]
    taken: Counter[str] = Counter()
    first = []
    for finding in findings:
        taken[finding.rule] += 1
        if taken[finding.rule] <= limit:
            first.append(finding)
    return first


def _unnamed_texts(pack: ConceptPack) -> UnnamedTexts | None:
    """What of the pack a grade could rest on; None for a pack of which no prompt can be made."""
    from lenscache.concepts.evidence import count_unnamed
    from lenscache.concepts.plan import plan_samples
    from lenscache.concepts.prompts import concept_prompts

    if not any(concept_prompts(pack, concept) for concept in pack.concepts):
        return None
    return count_unnamed(pack, plan_samples(pack))


def _concept_facts(pack: ConceptPack, concept: str) -> dict[str, Any]:
    from lenscache.concepts.plan import SPLITS, plan_samples
    from lenscache.concepts.prompts import KINDS
    from lenscache.errors import PackError

    if concept not in pack.hierarchy:
        raise PackError(
            f"concept {concept!r} is not in pack {pack.name!r}: see `lenscache pack show` for all"
        )
    entry = pack[concept]
    plan = plan_samples(pack, [entry.level])
    own = plan.label_sample[plan.label_concept == plan.concepts.index(concept)]
    counted = {f"{SPLITS[s]} {KINDS[k]}": 0 for s in range(len(SPLITS)) for k in range(len(KINDS))}
    for row in own:
        counted[f"{SPLITS[plan.split[row]]} {KINDS[plan.kind[row]]}"] += 1
    first = ("id", "name", "level", "definition", "aliases", "parents")
    last = ("confusable_with", "examples", "contrasts", "negatives")
    attributes = [f"{key}: {', '.join(texts)}" for key, texts in entry.attributes.items()]
    return {
        **{name: getattr(entry, name) for name in first},
        "children": pack.hierarchy.children(concept),
        "siblings": sorted(pack.hierarchy.siblings(concept)),
        **{name: getattr(entry, name) for name in last},
        "attributes": attributes,
        "samples": [f"{n} {what}" for what, n in counted.items() if n],
    }


def _print_tree(pack: ConceptPack) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    out = console.out()
    tree = Tree(
        f"[bold]{escape(pack.name)}[/] {escape(pack.version)}, {len(pack)} concepts ({pack.digest})"
    )
    branches = {concept.id: tree for concept in pack.concepts if not concept.parents}
    for concept in sorted(pack.concepts, key=lambda concept: concept.level):
        above = [branches[parent] for parent in concept.parents if parent in branches] or [tree]
        label = f"{escape(concept.name)} [dim]{concept.level}, {len(concept.examples)} examples[/]"
        branches[concept.id] = above[0].add(label)  # with several parents, below the first
    out.print(tree)
    table = console.make_table("level", "concepts", "examples", "contrasts")
    for level in pack.levels:
        here = pack.in_level(level)
        n_examples = sum(len(concept.examples) for concept in here)
        n_contrasts = sum(len(concept.contrasts) for concept in here)
        table.add_row(*map(str, (level, len(here), n_examples, n_contrasts)))
    out.print(table)
