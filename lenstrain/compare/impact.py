"""What the other validation modes would have cost, from the trajectories that a lens pack keeps.

A calibration check that may revoke graduation makes concepts train on. Every fit goes on, for the
record, until the strictest mode is content too; so what each mode would have asked for, and what it
would have bought, is a matter of looking it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lenstrain.errors import SettingsError
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Iteration, Lens
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings, Validation, settings_from_json

MODES: tuple[tuple[str, Validation, Grade], ...] = (
    ("advisory", "advisory", Grade.C),
    ("falloff", "falloff", Grade.C),
    ("blocking, grade B", "blocking", Grade.B),
    ("blocking, grade A", "blocking", Grade.A),
)


class ModeCost(NamedTuple):
    """One validation mode beside advisory, which never blocks."""

    mode: str
    graduated: int
    """Lenses that graduate under it."""
    forced_on: int
    """Lenses that would have graduated, and had to go on."""
    never_graduated: int
    """Of those, lenses that used all their samples or iterations and did not graduate at all."""
    mean_extra_iterations: float
    """Over the lenses that were forced on; NaN if none was."""
    extra_iterations: int
    extra_samples: int
    """Positive training samples, over all lenses."""
    extra_seconds: float
    """Of one core, fitting and judging; NaN if the pack has no times of its iterations."""
    mean_score_gain: float
    """Score at the end minus that at advisory graduation, over lenses forced on; NaN if none."""


class _End(NamedTuple):
    iteration: int
    graduated: bool
    step: Iteration


def impact(pack: LensPack) -> list[ModeCost]:
    """The cost of every validation mode on the data of a pack.

    Raises
    ------
    SettingsError
        If the pack was fitted without a record beyond graduation.
    """
    settings = settings_from_json(pack.provenance.settings)
    if not settings.beyond_graduation:
        raise SettingsError(
            "this pack was fitted without going on after graduation: "
            "fit it again without --no-beyond"
        )
    if not len(pack):
        raise SettingsError("this pack has no lenses")
    seconds = {
        int(number): spent["seconds"] / spent["fits"]
        for number, spent in pack.run.get("iterations", {}).items()
    }
    ends = {}
    for name, mode, grade in MODES:
        asked = replace(settings, validation=mode, min_grade=grade)
        ends[name] = [_end(lens, asked) for lens in pack]
    return [_cost(name, ends["advisory"], of, seconds) for name, of in ends.items()]


def _end(lens: Lens, settings: FitSettings) -> _End:
    """Where the training of a lens ends under some settings."""
    steps = [*lens.trajectory, *lens.beyond]
    last, n_test = len(steps), lens.metrics.n_test
    for number, step in enumerate(steps, start=1):
        if settings.graduates(step, number, is_last=number == last, n_test=n_test):
            return _End(number, True, step)
    return _End(last, False, steps[-1])


def _cost(
    name: str, free: Sequence[_End], ends: Sequence[_End], seconds: dict[int, float]
) -> ModeCost:
    both = zip(free, ends, strict=True)
    forced = [(a, b) for a, b in both if a.graduated and b[:2] != a[:2]]
    extra = [b.iteration - a.iteration for a, b in forced]
    gains = [b.step.score - a.step.score for a, b in forced]
    gains = [gain for gain in gains if not np.isnan(gain)]  # ungraded lenses have no score
    iterations = (k for a, b in forced for k in range(a.iteration + 1, b.iteration + 1))
    spent = [seconds.get(k, np.nan) for k in iterations]
    return ModeCost(
        mode=name,
        graduated=sum(end.graduated for end in ends),
        forced_on=len(forced),
        never_graduated=sum(not b.graduated for _, b in forced),
        mean_extra_iterations=float(np.mean(extra)) if extra else np.nan,
        extra_iterations=sum(extra),
        extra_samples=sum(b.step.n_samples - a.step.n_samples for a, b in forced),
        extra_seconds=float(np.sum(spent)) if seconds else np.nan,
        mean_score_gain=float(np.mean(gains)) if gains else np.nan,
    )
