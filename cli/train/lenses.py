"""What `lenstrain` shows of finished lens packs beside their lenses: impact, compare, check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from .. import console, options
from .grades import cell, figure, named

if TYPE_CHECKING:
    from rich.table import Table

    from lenstrain.compare.two_packs import Pair
    from lenstrain.pack.pack import LensPack


@console.reports_errors
def impact(
    folder: options.PackFolder, json: options.Json = False, debug: options.Debug = False
) -> None:
    """Say what each validation mode would have cost on the data of a pack.

    The costs are iterations, samples and time.
    """
    from lenstrain.compare.impact import impact as measure_impact
    from lenstrain.pack.folder import none_for_nan
    from lenstrain.pack.pack import LensPack

    pack = LensPack.load(folder)
    costs = measure_impact(pack)
    if json:
        modes = [cost._asdict() for cost in costs]
        console.print_json(none_for_nan({"n_lenses": len(pack), "modes": modes}))
        return
    columns = "forced on, in vain, extra iterations, mean, extra samples, seconds, score gained"
    table = console.make_table("validation", "graduated", *columns.split(", "))
    for cost in costs:
        table.add_row(
            cost.mode,
            str(cost.graduated),
            str(cost.forced_on),
            str(cost.never_graduated),
            str(cost.extra_iterations),
            figure(cost.mean_extra_iterations, 1),
            str(cost.extra_samples),
            figure(cost.extra_seconds, 1),
            figure(cost.mean_score_gain, 3),
        )
    target = pack.provenance.settings["target_f1"]
    console.say(f"{folder}: {len(pack)} lenses, target F1 {target:g}")
    console.out().print(table)
    console.say(
        "forced on: lenses at the target F1 that had to train on for their grade; in vain: those "
        "that never got it; mean and score gained: over the lenses forced on; seconds of one core, "
        "model time for samples not included",
        style="dim",
    )


@console.reports_errors
def compare(
    first: Annotated[Path, Argument(metavar="A", help="Folder of a lens pack.")],
    second: Annotated[Path, Argument(metavar="B", help="Folder of another.")],
    store: options.StoreOption,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare two packs on the same held-out samples, concept by concept."""
    from lenstrain.compare.two_packs import compare as compare_packs
    from lenstrain.compare.two_packs import open_for
    from lenstrain.pack.folder import none_for_nan
    from lenstrain.pack.pack import LensPack

    a, b = LensPack.load(first), LensPack.load(second)
    found = compare_packs(a, b, open_for(a, store), open_for(b, store))
    if json:
        pairs = [{**p._asdict(), "a": p.a._asdict(), "b": p.b._asdict()} for p in found.pairs]
        differences = {"f1": found.f1._asdict(), "score": found.score._asdict()}
        console.print_json(none_for_nan({**found._asdict(), **differences, "pairs": pairs}))
        return
    console.say(f"A: {first} ({a.family}); B: {second} ({b.family})")
    console.out().print(_pair_table(found.pairs, a, b))
    console.say(
        "a sample's logit is the mean over its prompt and completion; `lenstrain show` judges "
        "each of them alone; grades are those of the packs, - ungraded",
        style="dim",
    )
    console.out().print(_grade_table({"A": a, "B": b}))
    for what, each in (("test F1", found.f1), ("score", found.score)):
        if each.mean != each.mean:
            console.say(f"{what}, B minus A: -")
            continue
        sure = "" if each.low <= 0 <= each.high else ", which chance does not explain"
        interval = f"[{each.low:+.3f}, {each.high:+.3f}]"
        console.say(f"{what}, B minus A: {each.mean:+.3f} {interval}{sure}")
    better = sum(p.b.score > p.a.score for p in found.pairs)
    console.say(
        f"{len(found.pairs)} concepts on {found.n_samples} held-out samples: B scores higher on "
        f"{better}; {len(found.only_a)} only in A, {len(found.only_b)} only in B"
    )


def _pair_table(pairs: Sequence[Pair], a: LensPack, b: LensPack) -> Table:
    table = console.make_table(
        "concept", "F1 of A", "F1 of B", "score of A", "score of B", "B - A", "grades"
    )

    gains = [(pair.b.score - pair.a.score, pair) for pair in pairs]
    for more, pair in sorted(gains, key=lambda each: (each[0] != each[0], -each[0])):
        table.add_row(
            cell(pair.name),
            *map(figure, (pair.a.f1, pair.b.f1, pair.a.score, pair.b.score)),
            "-" if more != more else f"{more:+.2f}",
            " ".join(pack[pair.concept].grade_shown for pack in (a, b)),
        )
    return table


def _grade_table(packs: dict[str, LensPack]) -> Table:
    table = console.make_table("pack", "lenses", "A", "B", "C", "ungraded", "capped")
    for label, pack in packs.items():
        summary = pack.summary()
        counts = (len(pack), *summary["grades"].values(), summary["capped"])
        table.add_row(label, *map(str, counts))
    return table


@console.reports_errors
def check(
    folder: options.PackFolder,
    store: options.StoreOption,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check the lenses of a pack beside each other.

    Shows whose lens leads on each concept's held-out samples.
    """
    from lenstrain.compare.rivals import check_pack
    from lenstrain.compare.two_packs import open_for
    from lenstrain.pack.folder import none_for_nan
    from lenstrain.pack.pack import LensPack

    pack = LensPack.load(folder)
    checks = check_pack(pack, open_for(pack, store))
    if json:
        found = {concept: each._asdict() for concept, each in checks.items()}
        console.print_json(none_for_nan(found))
        return
    columns = (
        "level, grade, rank, of, first, above siblings, ancestors fire, fires elsewhere, confusers"
    )
    table = console.make_table("concept", *columns.split(", "))
    table.columns[-1].no_wrap, table.columns[-1].justify = False, "left"
    for lens, its in sorted(
        ((pack[concept], each) for concept, each in checks.items()),
        key=lambda pair: (pair[0].level, -pair[1].first),
    ):
        shares = (its.first, its.above_siblings, its.ancestors_fire, its.firing_rate)
        table.add_row(
            cell(lens.name),
            str(lens.level),
            lens.grade_shown,
            f"{its.median_rank:g}",
            str(its.n_rivals + 1),
            *map(figure, shares),
            cell(named([pack[other] for other in its.confusers[:3]])),
        )
    console.out().print(table)
    console.say(
        "rank: of a lens among those of its level, on its concept's held-out samples (median); "
        "first: share of them on which it leads; ancestors fire: share on which all its ancestors' "
        "lenses do; fires elsewhere: share of unrelated samples on which it does; confusers: whose "
        "lenses outrank it",
        style="dim",
    )
    everywhere = [pack[concept] for concept, its in checks.items() if its.fires_everywhere]
    mean = sum(its.first for its in checks.values()) / max(len(checks), 1)
    line = f"{len(checks)} lenses: first of their level on {mean:.0%} of their samples"
    line += f"; {len(everywhere)} fire everywhere"
    console.say(f"{line}: {named(everywhere)}" if everywhere else line)
