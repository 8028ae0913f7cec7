"""Check 1: does bfloat16 load and run, and what does it take beside float32?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lenscache.errors import ModelError, ModelNotFoundError, NonFiniteError
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel
from lenscache.preflight.models import Footprint, bytes_in_use, check_room, load
from lenscache.preflight.results import Outcome, Request, Tell
from lenscache.preflight.texts import HARD, NEUTRAL, fit, load_pack, of_length, prompt_ids
from lenscache.preflight.watch import FLOAT16_LIMIT, ResidualWatch

_EASY = 8
_NEW_TOKENS = {False: 6, True: 3}  # by whether it is to be quick
# Tokens of a prompt by kind of device; more take a processor minutes.
_MOST_TOKENS = {"cpu": 64, "cuda": 512}
_LONGEST = {"cpu": 128, "cuda": 4096}


def check(request: Request, tell: Tell) -> Outcome:
    """Run easy and hard prompts in bfloat16: every activation and logit must be a finite number."""
    tell("loading bfloat16", 0, 1)
    loaded, footprint = load(request.model, "bfloat16", request.device)
    new_tokens = _NEW_TOKENS[request.quick]
    prompts = _prompts(loaded, request, new_tokens)
    found = []
    for number, (name, token_ids) in enumerate(prompts.items()):
        tell("prompts in bfloat16", number + 1, len(prompts))
        found.append({"prompt": name, "tokens": len(token_ids), **run_prompt(loaded, token_ids)})
    generation = _generation_fault(loaded, list(prompts.values()), new_tokens, tell)
    next_tokens = [entry.pop("next_token") for entry in found]
    before = bytes_in_use(footprint.device)
    del loaded
    memory = [describe_memory(footprint, before)]
    check_fp32 = _in_float32(footprint, request, prompts, next_tokens, tell)
    broken = [entry for entry in found if not entry["finite"]]
    details = {
        "prompts": found,
        "generation_fault": generation,
        "new_tokens": new_tokens,
        "memory": [*memory, *check_fp32.pop("memory", [])],
        "float32": check_fp32,
        "largest_activation": max(entry["largest_activation"] for entry in found),
        "float16_limit": FLOAT16_LIMIT,
    }
    if broken:
        why = f"{len(broken)} of {len(found)} prompts give values that are not finite"
        layer = broken[0]["first_broken"]
        place = "its logits" if layer is None else f"model layer {layer}"
        also = " (so it does in float32: the model itself is at fault)"
        also = also if check_fp32.get("broken") else ""
        why = f"{why}, first {broken[0]['prompt']!r} at {place}{also}"
        return Outcome.failed(why, **details)
    if generation is not None:
        return Outcome.failed(f"the prompts run, generation does not: {generation}", **details)
    why = _good_news(len(found), footprint, details["memory"], check_fp32)
    return Outcome.passed(why, **details)


def _prompts(loaded: LoadedModel, request: Request, new_tokens: int) -> dict[str, list[int]]:
    """Token ids by name: of a pack, and hard ones."""
    pack = load_pack(request)
    easy = prompt_ids(loaded, pack, _EASY, seed=request.seed, new_tokens=new_tokens)
    room, place = (loaded.max_positions or 1 << 30) - new_tokens, loaded.device.type
    most, longest = min(_MOST_TOKENS.get(place, 64), room), min(_LONGEST.get(place, 128), room)
    word = fit(loaded, NEUTRAL[0], new_tokens)[-1]
    return {
        **{f"prompt {number} of the pack": ids for number, ids in enumerate(easy, start=1)},
        **{name: fit(loaded, text, new_tokens)[:most] for name, text in HARD.items()},
        "one token, repeated": [word] * most,
        "long": of_length(loaded, longest),
    }


@torch.inference_mode()
def run_prompt(loaded: LoadedModel, token_ids: list[int]) -> dict[str, Any]:
    """One prompt, alone: are all activations and logits finite, and how large are activations?"""
    ids = torch.tensor([token_ids], device=loaded.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with ResidualWatch(loaded.blocks) as watch:
        logits = loaded.model(**inputs).logits[0]  # (position, vocab)
    finite = watch.first_broken is None and bool(logits.isfinite().all())
    return {
        "finite": finite,
        "first_broken": watch.first_broken,
        "largest_activation": watch.largest,
        "next_token": int(logits[-1].float().nan_to_num(nan=float("-inf")).argmax()),
    }


def _generation_fault(
    loaded: LoadedModel, prompts: list[list[int]], new_tokens: int, tell: Tell
) -> str | None:
    """The fault in writing a completion of each prompt, in batches of 4; None if there is none."""
    blocks = range(loaded.n_layers)
    runner = Runner(loaded, blocks, max_new_tokens=new_tokens, pool_first_position=True)
    rows = [Row(ids, seed, 0.8) for seed, ids in enumerate(prompts)]
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        tell("completions in bfloat16", done, len(prompts))

    try:
        results = runner.run(rows, on_rows=advance)
    except NonFiniteError as error:
        return str(error)
    pooled = (each.pooled["completion"] for each in results if each.n_completion_tokens)
    bad = sum(not np.isfinite(vectors).all() for vectors in pooled)
    return f"activations of {bad} completions are not finite" if bad else None


def _in_float32(
    narrow: Footprint,
    request: Request,
    prompts: dict[str, list[int]],
    next_tokens: list[int],
    tell: Tell,
) -> dict[str, Any]:
    """The same prompts in float32, if it fits: memory, finite values, equal next tokens."""
    tell("loading float32", 0, 1)
    try:
        check_room(narrow, "float32")
        wide, footprint = load(request.model, "float32", request.device)
    except ModelNotFoundError:
        raise
    except ModelError as error:
        return {"loaded": False, "why": str(error)}
    found = []
    for number, token_ids in enumerate(prompts.values()):
        tell("prompts in float32", number + 1, len(prompts))
        found.append(run_prompt(wide, token_ids))
    pairs = zip(found, next_tokens, strict=True)
    same = sum(entry["next_token"] == token for entry, token in pairs)
    broken = sum(not entry["finite"] for entry in found)
    before = bytes_in_use(footprint.device)
    del wide
    memory = describe_memory(footprint, before)
    return {"loaded": True, "broken": broken, "same_next_token": same, "memory": [memory]}


def describe_memory(footprint: Footprint, before: int | None) -> dict[str, Any]:
    """What a model took that was just let go of; bytes.

    Measured by letting go of it, since the first load also imports half of a library.
    """
    after = bytes_in_use(footprint.device)
    held = None if before is None or after is None else max(before - after, 0)
    return {**asdict(footprint), "held": held}


def _good_news(
    n: int, footprint: Footprint, memory: list[dict[str, Any]], fp32: dict[str, Any]
) -> str:
    counts = {
        kind: count for kind, count in footprint.parameter_dtypes.items() if kind != "bfloat16"
    }
    others = ", ".join(f"{count} parameters in {kind}" for kind, count in counts.items())
    kept = f", but for {others}" if others else ""
    weights = f"weights {footprint.weights / 1e6:.0f} MB"
    text = f"{n} prompts and their completions are finite{kept}; {weights}"
    if not fp32["loaded"]:
        return f"{text}; float32 does not load: {fp32['why']}"
    share = footprint.weights / memory[1]["weights"]
    same = f"{fp32['same_next_token']} of {n} go on with the token that is most likely in float32"
    return f"{text}, {share:.2f} of float32; {same}"
