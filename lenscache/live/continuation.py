"""What a model writes, steered or not, and how that text looks to the model itself.

    prompt --steered--> completion --read again, not steered--> pooled activations, perplexity

The text is read again without steering: activations that were pushed along a direction show the
push, whatever the model wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.errors import PromptTooLongError
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.live.steering import Intervention, steer_all
from lenscache.model.loading import LoadedModel
from lenscache.model.tokens import token_ids
from lenscache.terms import Pooling


class Continuation(NamedTuple):
    """What a model made of one prompt."""

    prompt: str
    text: str
    """What it wrote."""
    token_ids: list[int]
    perplexity: float
    """Of what it wrote, to the model as it is; NaN if it wrote nothing."""
    activations: dict[int, NDArray[np.float32]]
    """(1, hidden) by model layer, pooled over what it wrote, unsteered; NaN without a position."""


def continue_prompt(
    loaded: LoadedModel,
    prompt: str,
    interventions: Sequence[Intervention] = (),
    *,
    model_layers: Sequence[int],
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    seed: int = 0,
    pooling: Pooling = "mean",
) -> Continuation:
    """Let the model continue a prompt under some interventions.

    The same seed draws the same uniform numbers: two continuations differ by steering alone.

    Parameters
    ----------
    model_layers : blocks to read the text with.
    temperature : of the sampling, above 0.
    pooling : how activations were pooled for whoever looks at them.

    Raises
    ------
    PromptTooLongError
        If prompt and completion do not fit the model, or the prompt is empty.
    TokenError
        If the model has no embedding for a token, or the prompt begins twice or ends the sequence.
    """
    prompt_ids = _token_ids(loaded, prompt, max_new_tokens)
    blocks = sorted(set(model_layers))
    writer = Runner(
        loaded, blocks, mode="completion", max_new_tokens=max_new_tokens, limits=BatchLimits(1)
    )
    with steer_all(loaded, interventions):
        (written,) = writer.run([Row(prompt_ids, seed, temperature)])
    completion = tuple(written.completion_ids)
    n = len(completion) + 1
    reader = Runner(loaded, blocks, mode="completion", max_new_tokens=n, pooling=pooling)
    (read,) = reader.run([Row(prompt_ids, completion_ids=completion)])
    vectors = dict(zip(blocks, read.pooled["completion"][:, None], strict=True))
    text = loaded.tokenizer.decode(completion, skip_special_tokens=True)
    perplexity = _perplexity(loaded, prompt_ids, completion)
    return Continuation(prompt, text, list(completion), perplexity, vectors)


def _token_ids(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> list[int]:
    found = token_ids(loaded, prompt, continued=True)
    if not found:
        raise PromptTooLongError("the prompt is empty: give the model something to continue")
    limit = loaded.max_positions
    if limit is not None and len(found) + max_new_tokens > limit:
        raise PromptTooLongError(
            f"the prompt has {len(found)} tokens, {max_new_tokens} more are asked for, and "
            f"{loaded.id} takes {limit}: shorten the prompt or ask for fewer"
        )
    return found


@torch.inference_mode()
def _perplexity(loaded: LoadedModel, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Exponential of the mean negative log likelihood of each token of the completion."""
    if not completion:
        return float("nan")
    both = torch.tensor([[*prompt, *completion]], device=loaded.device)
    logits = loaded.model(input_ids=both).logits[0, len(prompt) - 1 : -1].double()
    return float(torch.nn.functional.cross_entropy(logits, both[0, len(prompt) :]).exp())
