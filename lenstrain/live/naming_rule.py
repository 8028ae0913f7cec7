"""When a lens is said to find its concept: if its grade, threshold and noise floor all allow it.

The threshold alone is not enough: there the F1 of a lens is best if its concept is present in half
of the texts, and on a text about something else a tenth of all lenses are above it. How many lenses
each bar lets through was measured on SmolLM2 with the 51 lenses of grade A and B of the starter
pack and 400 held-out prompts; for tokens see `lenstrain.live.reading`.

    bar, in deviations above the noise floor   none    2      2.5    3      4
    prompts of a concept: its lens is named    86 %    71 %   53 %   41 %   16 %
    all prompts: an unrelated lens is named    100 %   49 %   23 %   11 %   2 %
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.errors import SettingsError, near_names
from lenstrain.metrics.grade import Grade, Status
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack

MIN_SIGNAL = 4.0
"""Deviations above the noise floor that a lens needs at a token; over a whole text one less."""


@dataclass(frozen=True)
class Rule:
    """What a lens needs for being named."""

    min_grade: Grade = Grade.B
    min_signal: float = MIN_SIGNAL
    """Deviations above its noise floor at a token; one less over a whole text. Its threshold has
    to be reached, too."""
    untrusted: bool = False
    """Whether a lens is named, too, that is ungraded or whose grade is capped."""


class Finding(NamedTuple):
    """A lens that says its concept is there."""

    concept: str
    name: str
    grade: Grade | None
    logit: float
    probability: float
    """Calibrated; as if the concept were as often there as not."""
    signal: float
    """Deviations above its noise floor."""
    status: Status
    reason: str
    """Why it is ungraded or capped; "" otherwise."""

    @property
    def grade_shown(self) -> str:
        """Its grade for people; "-" where it has none."""
        return "-" if self.grade is None else self.grade.value


class Presence:
    """Applies a rule to the logits of some lenses."""

    def __init__(self, lenses: Sequence[Lens], rule: Rule) -> None:
        self.lenses, self.rule = tuple(lenses), rule
        mean = np.array([lens.noise.mean for lens in lenses])
        deviation = np.array([lens.noise.deviation for lens in lenses])
        graded = np.array(
            [lens.reaches(rule.min_grade, untrusted=rule.untrusted) for lens in lenses], np.bool_
        )
        threshold = np.array([lens.threshold for lens in lenses])
        self.n_judged = int(graded.sum())
        """Lenses whose grade is good enough."""

        def bars(min_signal: float) -> NDArray[np.float32]:
            bar = np.maximum(threshold, mean + min_signal * deviation)
            return np.where(graded, bar, np.inf).astype(np.float32)

        self.bars = bars(rule.min_signal)
        """(lenses,) least logit at which it is named for a token; infinite if its grade is low."""
        self.whole_bars = bars(rule.min_signal - 1)
        """(lenses,) the same over a whole text."""

    def finding(self, number: int, logit: float) -> Finding:
        """What a lens says at a logit."""
        lens, value = self.lenses[number], np.array([logit])
        probability, signal = float(lens.calibrator(value)[0]), float(lens.signal(value)[0])
        figures = (float(logit), probability, signal)
        return Finding(lens.concept, lens.name, lens.grade, *figures, lens.status, lens.reason)

    def strongest(
        self, logits: NDArray[np.float32], top: int, *, whole: bool = False
    ) -> tuple[Finding, ...]:
        """The lenses that are named at logits (lenses,) of a token or a whole text, the strongest
        signal first; NaN names none."""
        numbers = np.flatnonzero(logits >= (self.whole_bars if whole else self.bars))
        named = [self.finding(int(number), float(logits[number])) for number in numbers]
        return tuple(sorted(named, key=lambda found: (-found.signal, found.concept))[:top])


def choose_lenses(pack: LensPack, concepts: Sequence[str] | None) -> list[Lens]:
    """The lenses of some concepts, in the order of the pack; all for None.

    Raises
    ------
    SettingsError
        If they read text rather than activations, there is none, or one is not in the pack.
    """
    if pack.vocabulary is not None:
        raise SettingsError(
            "the lenses of this pack read what a model wrote, not its activations: give a pack of "
            "another family, or use LensPack.score_texts"
        )
    known = {lens.concept for lens in pack}
    wanted = known if concepts is None else set(concepts)
    if unknown := sorted(wanted - known):
        near = near_names(unknown[0], [lens.concept for lens in pack])
        raise SettingsError(f"no lens for the concept {unknown[0]!r} in this pack: {near}")
    if not wanted:
        raise SettingsError(
            "there is no lens to read with: the pack or the choice of concepts is empty"
        )
    return [lens for lens in pack if lens.concept in wanted]
