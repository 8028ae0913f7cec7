"""Check 5: can the model be steered, and in which precision?

    directions of lenses --steer, at several strengths--> one pass over neutral texts
        --> finite logits? own lens, another lens, perplexity of the texts
    and on, to strengths at which something overflows

All texts are given (teacher forcing): nothing is sampled, so precisions can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.errors import ModelError, ModelNotFoundError, first_line
from lenscache.inference.capture import Capture
from lenscache.live.steering import steer
from lenscache.model.loading import LoadedModel
from lenscache.preflight.directions import SteeringLenses
from lenscache.preflight.models import Footprint, check_room, load
from lenscache.preflight.results import Outcome, Request, Tell
from lenscache.preflight.texts import NEUTRAL, as_batch
from lenscache.preflight.watch import FLOAT16_LIMIT, ResidualWatch

STRENGTHS = (-8.0, -4.0, 4.0, 8.0)
"""In deviations of the activations along the direction."""
DTYPES = ("float32", "bfloat16", "float16")
_ORDER = ("bfloat16", "float32", "float16")  # the narrow one tells whether the wide one has room
_POSITIONS = 24
_PROBED = tuple(4.0**power for power in range(2, 11))  # 16 to a million deviations
_CLOSE = 0.25  # of the change in float32: what another precision may be off by


class Reading(NamedTuple):
    """What one pass over the neutral texts gave."""

    finite: bool
    perplexity: float
    logits: NDArray[np.float64]
    """(k,) of each lens, mean over texts, in deviations of its noise."""
    largest: float
    """Largest finite absolute value in the residual stream."""
    first_broken: int | None
    """The first model layer with a value that is not finite."""


def check(request: Request, tell: Tell) -> Outcome:
    """Steer along the same directions in every precision, and see what comes of it."""
    attempts = _Attempts(request)
    by_dtype = {}
    for number, dtype in enumerate(_ORDER):
        tell(f"steering in {dtype}", number + 1, len(_ORDER))
        by_dtype[dtype] = attempts.run(dtype)
    tried, lenses = {dtype: by_dtype[dtype] for dtype in DTYPES}, attempts.lenses
    for dtype, found in tried.items():
        if found["runs"]:
            in_float32 = tried["float32"] if dtype != "float32" else None
            found["works"], found["why"] = judge(found, in_float32)
    details = {
        "precisions": tried,
        "float16_limit": FLOAT16_LIMIT,
        "lenses": bool(lenses is not None and len(lenses.weights)),
        "steered_layer": None if lenses is None else lenses.steered_layer,
        "read_layer": None if lenses is None else lenses.read_layer,
        "strengths": sorted((*STRENGTHS, 0.0)),
    }
    answers = {dtype: "works" if found["works"] else found["why"] for dtype, found in tried.items()}
    why = "; ".join(f"{dtype}: {answer}" for dtype, answer in answers.items())
    if not any(found["works"] for found in tried.values()):
        return Outcome.failed(f"no precision can be steered in: {why}", **details)
    return Outcome.passed(why, **details)


class _Attempts:
    """The same directions in one precision after another; no model outlives its turn."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.lenses = SteeringLenses.load(request.folder)
        self._narrow: Footprint | None = None

    def run(self, dtype: str) -> dict[str, Any]:
        """What steering does in a precision, or why that cannot be told."""
        try:
            if self._narrow is not None:
                check_room(self._narrow, dtype)
            loaded, footprint = load(self._request.model, dtype, self._request.device)
            self._narrow = self._narrow or footprint
            self.lenses = self.lenses or random_directions(loaded, seed=self._request.seed)
            which = range(1 if self._request.quick else len(self.lenses.concepts))
            return _try_precision(loaded, self.lenses, which)
        except ModelNotFoundError:
            raise
        except (ModelError, RuntimeError) as error:  # some devices lack operations in some types
            why = f"it does not run: {first_line(error)}"
            return {"works": False, "runs": False, "why": why}


def judge(found: dict[str, Any], in_float32: dict[str, Any] | None) -> tuple[bool, str]:
    """Whether all is finite and a concept's own lens follows as in float32; and if not, why."""
    if not found["unsteered"]["finite"]:
        layer = found["unsteered"]["first_broken"]
        place = "in the logits" if layer is None else f"at model layer {layer}"
        return False, f"not finite {place} even without steering"
    broken = [step for step in found["steps"] if not step["finite"]]
    if broken:
        return False, f"not finite at strength {min((s['strength'] for s in broken), key=abs):+g}"
    highest = max(STRENGTHS)
    for concept in {step["concept"]: None for step in found["steps"] if step["own"] is not None}:
        rise = own_change(found, concept, highest)
        if rise <= own_change(found, concept, -highest):
            return False, f"the lens of {concept} does not follow"
        if in_float32 is not None and in_float32["runs"]:
            expected = own_change(in_float32, concept, highest)
            if abs(rise - expected) > _CLOSE * abs(expected):
                return (
                    False,
                    (
                        f"the lens of {concept} moves by {rise:+.1f} deviations, in float32 by "
                        f"{expected:+.1f}"
                    ),
                )
    return True, "works"


def own_change(found: dict[str, Any], concept: str, strength: float) -> float:
    """How far a concept's own lens moved at a strength; NaN where that is not known."""
    for step in found["steps"]:
        if (step["concept"], step["strength"]) == (concept, strength) and step["own"] is not None:
            return float(step["own"])
    return float("nan")


def _try_precision(
    loaded: LoadedModel, lenses: SteeringLenses, which: Sequence[int]
) -> dict[str, Any]:
    texts = as_batch(loaded, NEUTRAL, _POSITIONS)
    plain = read(loaded, lenses, texts)
    steps = []
    for number in which:
        for strength in STRENGTHS if plain.finite else ():
            steered = read(loaded, lenses, texts, number, strength)
            change = steered.logits - plain.logits
            other, has_other = (number + 1) % len(lenses.concepts), len(change) > 1
            ratio = steered.perplexity / plain.perplexity
            steps.append(
                {
                    "concept": lenses.concepts[number],
                    "strength": strength,
                    "finite": steered.finite,
                    "own": float(change[number]) if len(change) and steered.finite else None,
                    "unrelated": float(change[other]) if has_other and steered.finite else None,
                    "unrelated_concept": lenses.concepts[other] if has_other else None,
                    "perplexity_ratio": ratio if steered.finite else None,
                    "largest_activation": steered.largest,
                }
            )
    return {
        "runs": True,
        "steps": steps,
        "unsteered": {
            "finite": plain.finite,
            "first_broken": plain.first_broken,
            "perplexity": plain.perplexity,
            "largest_activation": plain.largest,
        },
        "overflow": find_overflow(loaded, lenses, texts[:1]) if plain.finite else None,
    }


@torch.inference_mode()
def read(
    loaded: LoadedModel,
    lenses: SteeringLenses,
    texts: torch.Tensor,
    number: int = 0,
    strength: float = 0.0,
) -> Reading:
    """One pass over texts (text, position), steered along the direction of concept `number`."""
    inputs = {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    counted = torch.ones_like(texts, dtype=torch.bool)
    counted[:, 0] = texts.shape[1] == 1  # the attention sink is read where there is nothing else
    direction, deviation = lenses.directions[number], float(lenses.deviations[number])
    with (
        steer(loaded, direction, lenses.steered_layer, strength, deviation=deviation),
        Capture(loaded.blocks, [lenses.read_layer]) as capture,
        ResidualWatch(loaded.blocks) as watch,
    ):
        capture.start(len(texts))
        capture.count(counted)
        logits = loaded.model(**inputs).logits.double()  # (text, position, vocab)
        pooled = capture.pooled()[0].double().cpu().numpy()  # (text, hidden)
    finite = watch.first_broken is None and bool(logits.isfinite().all())
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), texts[:, 1:].flatten())
    read_by_lens = (pooled @ lenses.weights.T.astype(np.float64) + lenses.biases) / lenses.noise
    logits_of_lens = read_by_lens.mean(axis=0)
    return Reading(finite, float(loss.exp()), logits_of_lens, watch.largest, watch.first_broken)


def find_overflow(loaded: LoadedModel, lenses: SteeringLenses, texts: torch.Tensor) -> float | None:
    """The least strength that overflows, to a factor of 2; None if none does up to a million."""
    low = 0.0
    for strength in _PROBED:
        if not read(loaded, lenses, texts, 0, strength).finite:
            middle = max(strength / 2, low)
            return middle if not read(loaded, lenses, texts, 0, middle).finite else strength
        low = strength
    return None


@torch.inference_mode()
def random_directions(loaded: LoadedModel, *, seed: int) -> SteeringLenses:
    """Two random directions, for want of lenses: they show overflow and changes of perplexity."""
    model_layer = loaded.n_layers // 2
    texts = as_batch(loaded, NEUTRAL, _POSITIONS)
    with Capture(loaded.blocks, [model_layer]) as capture:
        capture.start(len(texts))
        capture.count(torch.ones_like(texts, dtype=torch.bool))
        capture.run_to_deepest(loaded.model, input_ids=texts)
        vectors = capture.pooled()[0].double().cpu().numpy()  # (text, hidden)
    drawn = np.random.default_rng(seed).normal(size=(2, loaded.hidden))
    units = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    deviations = np.maximum((vectors @ units.T).std(axis=0), 1e-6)
    names = "a random direction", "another random direction"
    none, no_weights = np.zeros(0), np.zeros((0, loaded.hidden), np.float32)
    directions = units.astype(np.float32)
    return SteeringLenses(
        names, model_layer, directions, deviations, model_layer, no_weights, none, none
    )
