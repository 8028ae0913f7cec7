"""What `lenstrain` shows of finished lens packs: show, impact, compare, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from typer import Argument

from .. import console, options
from ..console import visible

_COLOURS = {"A": "green", "B": "yellow", "C": "red"}
_MOST_NAMED = 8


@console.reports_errors
def show(
    folder: options.PackFolder, json: options.Json = False, debug: options.Debug = False
) -> None:
    """Show the lenses of a pack: what each detects, where, and how far it can be trusted."""
    from lenstrain.pack.folder import none_for_nan
    from lenstrain.pack.pack import LensPack

    pack = LensPack.load(folder)
    if json:
        rows = [_row(lens) for lens in pack]
        console.print_json(none_for_nan({**pack.summary(), "lenses": rows}))
        return
    if pack.provenance.get("provisional"):
        console.say("provisional: extraction was still running, these lenses saw part of the store")
    settings = pack.provenance["settings"]
    console.say(
        f"{folder}: {pack.provenance['store']['model']['id']}, {pack.family} lenses, "
        f"target F1 {settings['target_f1']:g}, {settings['validation']} validation"
    )
    with_agreement = any("agreement" in lens.metrics for lens in pack)
    console.out().print(_lens_table(pack, with_agreement))
    legend = (
        "score: average precision at 1 % prevalence, with its 95 % interval; ?: the interval "
        "crosses a grade's boundary; control: the best score of what knows nothing of the concept, "
        "! where the lens is no better; first: share of its samples on which it leads the lenses "
        "of its level"
    )
    if with_agreement:
        legend += "; agreement: of the lens with the one that reads what the model wrote (kappa)"
    console.say(legend, style="dim")
    console.say(summary_line(pack))
    print_warnings(pack)
    if pack.text is not None:
        console.say(f"text lenses: {summary_line(pack.text)}")
        console.say(f"see them with: lenstrain show {folder / 'text'}")


def _lens_table(pack: Any, with_agreement: bool) -> Any:
    columns = "level, model layer, test F1, unnamed, score, 95 %, grade, control, first"
    agreement = ["agreement"] * with_agreement
    table = console.make_table("concept", *columns.split(", "), *agreement, "graduated")
    for lens in sorted(pack, key=lambda lens: (lens.level, -lens.metrics["score"])):
        metrics = lens.metrics
        kappa = metrics.get("agreement", {}).get("kappa")
        table.add_row(
            _cell(lens.name),
            str(lens.level),
            "+".join(map(str, lens.model_layers)) or "text",
            f"{metrics['test_f1']:.2f}",
            _share(metrics["test_f1_unnamed"]),
            f"{metrics['score']:.2f}",
            f"{_share(metrics['score_low'])}-{_share(metrics['score_high'])}",
            _grade(lens),
            _best_control(metrics),
            _share(_beside(lens, "first")),
            *[_share(kappa)] * with_agreement,
            f"at {metrics['iterations']}" if metrics["graduated"] else "no",
        )
    return table


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
            _share(cost.mean_extra_iterations, 1),
            str(cost.extra_samples),
            _share(cost.extra_seconds, 1),
            _share(cost.mean_score_gain, 3),
        )
    target = pack.provenance["settings"]["target_f1"]
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
    table = console.make_table(
        "concept", "F1 of A", "F1 of B", "score of A", "score of B", "B - A", "grades"
    )
    for pair in sorted(found.pairs, key=lambda p: p.a.score - p.b.score):
        table.add_row(
            _cell(pair.name),
            *(f"{x:.2f}" for x in (pair.a.f1, pair.b.f1, pair.a.score, pair.b.score)),
            f"{pair.b.score - pair.a.score:+.2f}",
            f"{pair.a.grade.value} {pair.b.grade.value}",
        )
    say = console.out()
    console.say(f"A: {first} ({a.family}); B: {second} ({b.family})")
    say.print(table)
    console.say(
        "a sample's logit is the mean over its prompt and completion; `lenstrain show` judges "
        "each of them alone",
        style="dim",
    )
    for what, each in (("test F1", found.f1), ("score", found.score)):
        sure = "" if each.low <= 0 <= each.high else ", which chance does not explain"
        interval = f"[{each.low:+.3f}, {each.high:+.3f}]"
        console.say(f"{what}, B minus A: {each.mean:+.3f} {interval}{sure}")
    better = sum(p.b.score > p.a.score for p in found.pairs)
    console.say(
        f"{len(found.pairs)} concepts on {found.n_samples} held-out samples: B scores higher on "
        f"{better}; {len(found.only_a)} only in A, {len(found.only_b)} only in B"
    )


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
    columns = "level, rank, of, first, above siblings, ancestors fire, fires elsewhere, confusers"
    table = console.make_table("concept", *columns.split(", "))
    table.columns[-1].no_wrap, table.columns[-1].justify = False, "left"
    for lens, its in sorted(
        ((pack[concept], each) for concept, each in checks.items()),
        key=lambda pair: (pair[0].level, -pair[1].first),
    ):
        shares = (its.first, its.above_siblings, its.ancestors_fire, its.firing_rate)
        table.add_row(
            _cell(lens.name),
            str(lens.level),
            f"{its.median_rank:g}",
            str(its.n_rivals + 1),
            *map(_share, shares),
            _cell(", ".join(pack[other].name for other in its.confusers[:3])),
        )
    console.out().print(table)
    console.say(
        "rank: of a lens among those of its level, on its concept's held-out samples (median); "
        "first: share of them on which it leads; ancestors fire: share on which all its ancestors' "
        "lenses do; fires elsewhere: share of unrelated samples on which it does; confusers: whose "
        "lenses outrank it",
        style="dim",
    )
    everywhere = [pack[concept].name for concept, its in checks.items() if its.fires_everywhere]
    mean = sum(its.first for its in checks.values()) / max(len(checks), 1)
    line = f"{len(checks)} lenses: first of their level on {mean:.0%} of their samples"
    named = f": {_named(everywhere)}" if everywhere else ""
    console.say(f"{line}; {len(everywhere)} fire everywhere{named}")


def summary_line(pack: Any) -> str:
    """A pack in one line."""
    summary = pack.summary()
    grades = ", ".join(f"{count} {grade}" for grade, count in summary["grades"].items())
    line = f"{summary['n_lenses']} lenses: {grades}; {summary['graduated']} graduated"
    line += f"; mean test F1 {summary['mean_test_f1']:.2f}"
    named, unnamed = summary["mean_test_f1_named"], summary["mean_test_f1_unnamed"]
    if named == named:  # NaN of labelled texts: they name no concept
        line += f" ({unnamed:.2f} on unnamed samples, {named:.2f} on named)"
    line += f", mean score {summary['mean_score']:.2f}; {summary['mean_samples']:.1f} samples "
    line += f"and {summary['mean_iterations']:.1f} iterations on average"
    if pack.hungry:
        line += f"; {len(pack.hungry)} used every cached sample (hungry.json)"
    return f"{line}; {len(pack.skipped)} left out" if pack.skipped else line


def print_warnings(pack: Any) -> None:
    """What to know before these lenses are trusted, a line each."""
    crossing = sum(lens.metrics["grade_uncertain"] for lens in pack)
    unbeaten = [lens.name for lens in pack if lens.metrics["unbeaten_controls"]]
    everywhere = [lens.name for lens in pack if _beside(lens, "fires_everywhere")]
    lines = [
        (crossing, "have a score whose interval crosses a grade's boundary", []),
        (len(unbeaten), "do no better than a control, whatever their grade", unbeaten),
        (len(everywhere), "fire everywhere", everywhere),
    ]
    for n, what, names in lines:
        if n:
            named = f": {_named(names)}" if names else ""
            console.say(f"{n} of {len(pack)} {what}{named}")


def _named(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(map(visible, names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def _cell(name: str) -> Text:
    """A name on one line, with nothing in it that means something to a table or a terminal."""
    return Text(visible(name))


def _beside(lens: Any, name: str) -> Any:
    """A metric of a lens beside the others of its level; None if it was not measured."""
    return lens.metrics.get("beside_others", {}).get(name)


def _grade(lens: Any) -> str:
    grade = lens.grade.value
    return f"[{_COLOURS[grade]}]{grade}[/]{'?' if lens.metrics['grade_uncertain'] else ' '}"


def _best_control(metrics: dict[str, Any]) -> str:
    scores = [control["score"] for control in metrics["controls"].values()]
    return f"{max(scores):.2f}{'!' if metrics['unbeaten_controls'] else ' '}" if scores else ""


def _share(value: float | None, digits: int = 2) -> str:
    """A number for a table; nothing for None and NaN."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _row(lens: Any) -> dict[str, Any]:
    return {
        **{name: getattr(lens, name) for name in ("concept", "name", "level")},
        "model_layers": list(lens.model_layers),
        "grade": lens.grade.value,
        "threshold": lens.threshold,
        "noise_floor": lens.noise._asdict(),
        **lens.metrics,
    }
