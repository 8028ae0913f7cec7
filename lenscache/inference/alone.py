"""A row alone, along a completion that is given: what a batch is compared with.

    row, tokens --read_alone----> one pass over prompt and completion --> Alone: what each phase
                --decode_alone--> a token a pass, growing cache ------->         pools, and how far
                                                                                 each token is off

Reading costs about as much as two steps of decoding and gives the same in most models. Where a
model decodes otherwise by design (rotary embeddings that change with the length, for one), decoding
is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.inference.capture import Capture
from lenscache.inference.decoding import model_inputs
from lenscache.inference.runner import Row, Runner
from lenscache.inference.sampling import row_uniforms
from lenscache.terms import Phase


class Alone(NamedTuple):
    """What the model does with a row along its tokens."""

    pooled: dict[Phase, NDArray[np.float32]]
    """(model layer, hidden) by phase; NaN throughout if the phase has no position."""
    distances: NDArray[np.float64]
    """(steps,) by how much the cumulative distribution at a token, or at the end of the sequence,
    would have to shift for the row's uniform number to draw it; 0 where it draws it, at most 1."""


@torch.inference_mode()
def read_alone(runner: Runner, row: Row) -> Alone:
    """One forward pass, without a cache, that pools what `runner` pools.

    Parameters
    ----------
    runner : of a mode other than prompt.
    row : with its `completion_ids`.
    """
    loaded = runner.loaded
    fed = _fed_back(runner, row)
    ids = torch.tensor([[*row.token_ids, *fed]], device=loaded.device)
    places = torch.arange(ids.shape[1], device=loaded.device)[None]
    is_prompt = places < len(row.token_ids)
    inputs = model_inputs(loaded, ids, torch.ones_like(ids, dtype=torch.bool), places)
    if "logits_to_keep" in inputs:
        inputs["logits_to_keep"] = len(fed) + 1
    prompt, completion = (
        Capture(loaded.blocks, runner.model_layers, pooling=runner.pooling) for _ in range(2)
    )
    with prompt, completion:
        prompt.start(1)
        prompt.count(is_prompt if runner.pool_first_position else is_prompt & (places > 0))
        completion.start(1)
        completion.count(~is_prompt)
        logits = loaded.model(**inputs, use_cache=False).logits[0, -(len(fed) + 1) :]
        pooled: dict[Phase, torch.Tensor] = {"completion": completion.pooled()}
        if runner.mode != "completion":
            pooled["prompt"] = prompt.pooled()
    host = {phase: vectors[:, 0].cpu().numpy() for phase, vectors in pooled.items()}
    return Alone(host, _distances(runner, row, logits))


def decode_alone(runner: Runner, row: Row) -> Alone:
    """As the runner's own batch of one row, without a recorded step; in mode prompt, its only pass.

    Raises
    ------
    ModelError, NonFiniteError
        As `Runner.run`.
    """
    seen: list[torch.Tensor] = []

    def keep(_model: object, _inputs: object, output: Any) -> None:
        seen.append(output.logits[0, -1])

    handle = runner.loaded.model.register_forward_hook(keep)
    try:
        result = runner.run([row], replay=False)[0]
    finally:
        handle.remove()
    if runner.mode == "prompt":
        return Alone(result.pooled, np.zeros(0))
    # On a GPU some steps more may run before it is seen that the row has ended.
    logits = torch.stack(seen[: len(_fed_back(runner, row)) + 1])
    return Alone(result.pooled, _distances(runner, row, logits))


def _fed_back(runner: Runner, row: Row) -> Sequence[int]:
    """The tokens of the completion that are given to the model, and so have a position.

    A completion of `max_new_tokens` tokens was cut off there, and its last one not fed back. A
    shorter one ended; what ended it was drawn, and not fed back either.
    """
    return (row.completion_ids or ())[: runner.max_new_tokens - 1]


@torch.inference_mode()
def _distances(runner: Runner, row: Row, logits: torch.Tensor) -> NDArray[np.float64]:
    """As `Alone.distances`, from the logits (steps, vocab) that each token was drawn from."""
    weights = torch.softmax(logits.double() / row.temperature, dim=1)
    ends = weights.cumsum(dim=1).cpu().numpy()
    starts = ends - weights.cpu().numpy()
    written = row.completion_ids or ()
    end = [token for token in runner.loaded.eos_ids if token < logits.shape[1]]
    seeds = np.array([row.sampling_seed], np.uint64)
    uniform = row_uniforms(seeds, runner.max_new_tokens)[0, : len(logits)]
    found = np.zeros(len(logits))
    for step, number in enumerate(uniform):
        tokens = [written[step]] if step < len(written) else end
        off = np.maximum(starts[step, tokens] - number, number - ends[step, tokens])
        found[step] = max(0.0, np.nan_to_num(off, nan=1.0).min(initial=1.0))
    return found
