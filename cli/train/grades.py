"""How grades are told: how many lenses have each, why some have none, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from .. import console
from ..console import visible

if TYPE_CHECKING:
    from lenstrain.data.dataset import LensDataset
    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack

COLOURS = {"A": "green", "B": "yellow", "C": "red", "-": "dim"}
"""By grade as it is shown."""

_MOST_NAMED = 8
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def say(line: str, *, style: str = "") -> None:
    """Print one line of a result, broken between words on a terminal and nowhere else."""
    out = console.out()
    out.print(Text(line, style=style), soft_wrap=not out.is_terminal)


def figure(value: float | None, digits: int = 2) -> str:
    """A number for people; a dash for None and NaN."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def cell(name: str) -> Text:
    """A name on one line, with nothing in it that means something to a table or a terminal."""
    return Text(visible(name))


def named(lenses: Sequence[Lens]) -> str:
    """The first few lenses, each with its grade."""
    more = len(lenses) - _MOST_NAMED
    names = ", ".join(f"{visible(lens.name)} {lens.grade_shown}" for lens in lenses[:_MOST_NAMED])
    return names + (f" and {more} more" if more > 0 else "")


def beside(lens: Lens, name: str) -> Any:
    """A metric of a lens beside the others of its level; None if it was not measured."""
    return (lens.metrics.beside_others or {}).get(name)


def summary_line(pack: LensPack) -> str:
    """A pack in one line."""
    summary = pack.summary()
    grades = ", ".join(f"{count} {grade}" for grade, count in summary["grades"].items())
    line = f"{summary['n_lenses']} lenses: {grades}; {summary['graduated']} graduated"
    line += f"; mean test F1 {figure(summary['mean_test_f1'])}"
    kinds = [(kind, summary[f"mean_test_f1_{kind}"]) for kind in ("unnamed", "named")]
    known = [f"{figure(f1)} on {kind} samples" for kind, f1 in kinds if f1 == f1]
    if known:
        line += f" ({', '.join(known)})"
    line += f", mean score {figure(summary['mean_score'])}"
    line += f"; {figure(summary['mean_samples'], 1)} samples "
    line += f"and {figure(summary['mean_iterations'], 1)} iterations on average"
    if pack.hungry:
        line += f"; {len(pack.hungry)} used every cached sample (hungry.json)"
    return f"{line}; {len(pack.skipped)} left out" if pack.skipped else line


def natural_line(pack: LensPack) -> str | None:
    """How lenses do on texts that express no concept; None where the store has none."""
    summary, given = pack.summary(), pack.provenance.background
    if given is None or "mean_natural_score" not in summary:
        return None
    rate = 100 * summary["mean_natural_false_positive_rate"]
    return (
        f"natural: among {given['texts_to_judge_by']} texts that express no concept, mean score "
        f"{figure(summary['mean_natural_score'])}; a lens fires on {figure(rate)} % of them on "
        "average"
    )


def count_uncertain(pack: LensPack) -> int:
    """Lenses whose interval crosses the boundary of a grade."""
    return sum(lens.metrics.grade_uncertain for lens in pack)


def count_reasons(lenses: Iterable[Lens]) -> dict[str, int]:
    """How many lenses there are of each reason for a grade that is missing or capped.

    Reasons that differ in numbers alone are one, with the range of each number.
    """
    alike: dict[str, list[str]] = {}
    for lens in lenses:
        for reason in filter(None, lens.reason.split("; ")):
            alike.setdefault(_NUMBER.sub("#", reason), []).append(reason)
    counts = {_merged(reasons): len(reasons) for reasons in alike.values()}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _merged(reasons: list[str]) -> str:
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    spans = iter([sorted(set(column), key=float) for column in columns])

    def span(_: re.Match[str]) -> str:
        numbers = next(spans)
        return numbers[0] if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"

    return _NUMBER.sub(span, reasons[0])


def without_grade(pack: LensPack) -> tuple[list[Lens], list[Lens]]:
    """The lenses that are ungraded, and those whose grade is capped."""
    ungraded = [lens for lens in pack if lens.grade is None]
    return ungraded, [lens for lens in pack if lens.is_capped]


MORE_EXAMPLES = (
    "more examples that do not name the concept: on a handful of test texts few lenses can be "
    "shown to be ahead of a control"
)


def provisional_line(pack: LensPack) -> str | None:
    """How much of the store a pack was fitted on; None for all of it."""
    if not pack.provenance.provisional:
        return None
    if (part := pack.provenance.extracted) is None:
        return "provisional: extraction was still running, these lenses saw part of the store"
    return (
        f"provisional: {part['concepts']} of {part['of_concepts']} concepts, on "
        f"{part['blocks']} of {part['of_blocks']} blocks of the store that were extracted then; "
        "fit again when all are"
    )


def tell_standing(pack: LensPack) -> None:
    """What to know before these lenses are trusted, a line each."""
    if (line := natural_line(pack)) is not None:
        say(line)
    ungraded, capped = without_grade(pack)
    for what, lenses in (("ungraded", ungraded), ("capped", capped)):
        if lenses:
            reasons = ", ".join(f"{n} {visible(why)}" for why, n in count_reasons(lenses).items())
            say(f"{len(lenses)} of {len(pack)} {what}: {reasons}")
    if any(lens.metrics.n_test_unnamed is not None for lens in ungraded):
        say(f"what helps: {_advice()}")
    elif any(lens.metrics.n_test_unnamed is not None for lens in capped):
        say(f"what helps: {MORE_EXAMPLES}")
    if uncertain := count_uncertain(pack):
        what = "have a score whose interval crosses a grade's boundary"
        say(f"{uncertain} of {len(pack)} {what}")
    # By the newer rule, what is no better than a control is capped.
    unbeaten = [x for x in pack if x.metrics.unbeaten_controls and pack.grading_rule == 1]
    everywhere = [lens for lens in pack if beside(lens, "fires_everywhere")]
    for lenses, what in (
        (unbeaten, "do no better than a control, whatever their grade"),
        (everywhere, "fire everywhere"),
    ):
        if lenses:
            say(f"{len(lenses)} of {len(pack)} {what}: {named(lenses)}")


def _advice() -> str:
    from lenscache.concepts.evidence import examples_needed

    return (
        f"write at least {examples_needed()} examples of each concept that do not name it, and "
        "extract more"
    )


def old_rule(pack: LensPack) -> str | None:
    """What to know of a pack that was graded by the rule before this one."""
    if pack.grading_rule > 1 or all(lens.grade is None for lens in pack):
        return None
    return (
        "the grades of this pack come from the rule of versions before 0.3, by which test "
        "samples that name the concept count, too: fit again"
    )


def tell_evidence(
    dataset: LensDataset, concepts: Sequence[str] | None, tell: Callable[[str], None]
) -> None:
    """Say which concepts cannot get a grade, before the work; nothing where all of them can."""
    from lenscache.concepts.evidence import FEW_TEXTS, use_of_few_texts
    from lenstrain.data.evidence import count_texts
    from lenstrain.metrics.grade import MIN_TEXTS

    counts = count_texts(dataset, concepts)
    if counts.too_few_test_texts:
        tell(
            f"{counts.too_few_test_texts} of {counts.n_concepts} concepts have too few unnamed "
            f'texts for a grade: the status of their lenses is "ungraded" at best. It takes '
            f"{MIN_TEXTS} test texts that do not name the concept: {counts.no_text} have no "
            f"unnamed text, {counts.no_test_text - counts.no_text} have some and none for "
            f"testing, {counts.one_test_text} have one test text"
        )
    if counts.few_texts and dataset.label_set is None:
        tell(
            f"{counts.few_texts} of {counts.n_concepts} concepts have {FEW_TEXTS} unnamed texts or "
            f"fewer: {use_of_few_texts()}"
        )
    if counts.no_calibration_text:
        tell(
            f"{counts.no_calibration_text} of {counts.n_concepts} concepts have no unnamed "
            "calibration text: no vote on the model layer, and a threshold chosen on texts with "
            "the name"
        )
    if counts.too_few_test_texts or counts.no_calibration_text:
        tell(f"what helps: {_advice()}")
