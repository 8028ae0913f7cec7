"""Directions to steer a model along, from a lens pack; refused if a lens cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.errors import SettingsError, near_names
from lenstrain.families.linear import LinearWeights
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Direction, Lens
from lenstrain.pack.pack import LensPack

if TYPE_CHECKING:
    from lenscache.live.continuation import Continuation
    from lenscache.live.steering import Positions
    from lenscache.model.loading import LoadedModel

Kind = Literal["mean-difference", "weights"]
"""From all vectors to the concept's, or across the lens's decision boundary."""


class Steered(NamedTuple):
    """What a model wrote, steered or not, and how lenses read it without steering."""

    strength: float | None
    """In deviations of the activations; None where the model was left alone."""
    written: Continuation
    readings: list[tuple[float, float]]
    """Calibrated probability of each lens, and noise deviations; NaN if nothing was written."""


def find_lens(pack: LensPack, concept: str) -> Lens:
    """The lens of a concept, by its id or its name.

    Raises
    ------
    SettingsError
        If the pack has none; the message names those that are spelled alike.
    """
    if concept in pack:
        return pack[concept]
    named = [lens for lens in pack if concept.casefold() == lens.name.casefold()]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(lens.concept for lens in named)
        raise SettingsError(
            f"{concept!r} is the name of {len(named)} concepts: give the id of one of them: {ids}"
        )
    near = near_names(concept, [lens.concept for lens in pack])
    raise SettingsError(f"the pack has no lens of {concept!r}: {near}")


def directions_of(
    lens: Lens, kind: Kind = "mean-difference", *, allow_grade_c: bool = False
) -> tuple[Direction, ...]:
    """What to steer along for a lens, one direction for each of its model layers.

    Raises
    ------
    SettingsError
        If it is ungraded, capped or of grade C and that is not allowed, or has no direction.
    """
    if not (allow_grade_c or lens.reaches(Grade.B)):
        why = f" ({lens.reason})" if lens.reason else f" (score {lens.metrics.score:.2f})"
        grade = "is ungraded" if lens.grade is None else f"has grade {lens.grade.value}"
        raise SettingsError(
            f"the lens of {lens.concept} {grade}{why}: it may hardly tell the concept from others, "
            "so its direction may be that of something else; take another, or allow grade C"
        )
    found = lens.directions if kind == "mean-difference" else _across(lens)
    if not found:
        raise SettingsError(
            f"the lens of {lens.concept} has no direction to steer along: it reads text, or its "
            "pack was fitted before lenses had any; fit it again"
        )
    if not all(direction.vector.any() and direction.deviation > 0 for direction in found):
        raise SettingsError(
            f"the activations of {lens.concept} do not differ from all others: nowhere to steer to"
        )
    return found


def directions_at(
    directions: Sequence[Direction], model_layers: Sequence[int] | None = None
) -> tuple[Direction, ...]:
    """Those of some model layers; for None the middle one, so that a strength means the same for a
    lens that reads several.

    Raises
    ------
    SettingsError
        If there is no direction at a model layer.
    """
    if model_layers is None:
        return (directions[(len(directions) - 1) // 2],)
    by_model_layer = {direction.model_layer: direction for direction in directions}
    if missing := sorted(set(model_layers) - by_model_layer.keys()):
        there = ", ".join(map(str, sorted(by_model_layer)))
        raise SettingsError(
            f"the lens has no direction at model layer {missing[0]}, it reads {there}: choose one "
            "of these"
        )
    return tuple(by_model_layer[number] for number in sorted(set(model_layers)))


def _across(lens: Lens) -> tuple[Direction, ...]:
    """The weights of a linear lens: a unit of strength on one model layer moves its logit by a
    noise deviation."""
    if not lens.model_layers:
        return ()
    if not isinstance(lens.weights, LinearWeights) or lens.weights.norm is not None:
        raise SettingsError(
            f"the lens of {lens.concept} is not linear: steer along its mean difference"
        )
    parts = np.split(lens.weights.weight, len(lens.model_layers))
    lengths = [float(np.linalg.norm(part)) or np.nan for part in parts]
    return tuple(
        Direction(
            model_layer,
            np.nan_to_num(part / length),
            float(np.nan_to_num(lens.noise.deviation / length)),
        )
        for model_layer, part, length in zip(lens.model_layers, parts, lengths, strict=True)
    )


def steer(
    pack: LensPack,
    model: LoadedModel,
    prompt: str,
    lenses: Sequence[Lens],
    directions: Sequence[Direction],
    strengths: Sequence[float],
    *,
    ablate: bool = False,
    positions: Positions = "all",
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    seed: int = 0,
) -> list[Steered]:
    """What the model writes without and with each strength along directions, read by lenses.

    Parameters
    ----------
    lenses : of the pack, to read what was written.
    directions : what to steer along, as `directions_of` gives them.
    ablate, positions : as for `lenscache.Intervention`.
    max_new_tokens, temperature, seed : as for `lenscache.live.continuation.continue_prompt`.
    """
    from lenscache.live.continuation import continue_prompt
    from lenscache.live.steering import Intervention

    steered = []
    for strength in (None, *strengths):
        changes = [
            Intervention(
                each.vector,
                each.model_layer,
                strength,
                each.deviation,
                ablate=ablate,
                positions=positions,
            )
            for each in directions
            if strength is not None
        ]
        written = continue_prompt(
            model,
            prompt,
            changes,
            model_layers=sorted({i for lens in lenses for i in lens.model_layers}),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            pooling=pack.provenance.store["settings"]["pooling"],
        )
        readings = [_reading(lens, written.activations) for lens in lenses]
        steered.append(Steered(strength, written, readings))
    return steered


def _reading(lens: Lens, activations: Mapping[int, NDArray[np.float32]]) -> tuple[float, float]:
    X = np.hstack([activations[i] for i in lens.model_layers])
    if not np.isfinite(X).all():
        return float("nan"), float("nan")
    return float(lens.predict_proba(X)[0, 1]), float(lens.signal(lens.decision_function(X))[0])
