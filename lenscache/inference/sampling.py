"""Batch-invariant sampling: what a row says does not depend on which rows share its batch.

Each row draws from its own stream, keyed by (row seed, step), and turns one uniform number into a
token through the inverse of its cumulative distribution. No generator is shared between rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK = 256
_BELOW_ONE = 1 - 2.0**-50


def row_uniforms(seeds: NDArray[np.uint64], n_steps: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for every row and step.

    Parameters
    ----------
    seeds : (rows,) sampling seed of each row.
    n_steps : tokens to sample at most.

    Returns
    -------
    (rows, n_steps) : entry [i, t] depends on seeds[i] and t alone (Philox, Salmon et al. 2011).
    """
    streams = (np.random.Generator(np.random.Philox(key=int(seed))) for seed in seeds)
    return np.stack([stream.random(n_steps) for stream in streams])


def sample_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    The sum runs in float64, over the totals of chunks of the vocabulary first and then inside one
    chunk: batched and single logits differ by rounding, and a coarser sum would let such a
    difference cross a row's uniform number more often, but a float64 softmax of a whole vocabulary
    costs as much as some blocks of a small model.

    Parameters
    ----------
    logits : (batch, vocab)
    temperature : (batch,), above 0.
    uniform : (batch,) in [0, 1).

    Returns
    -------
    (batch,) : token ids.
    """
    scaled = logits.float() / temperature.float().unsqueeze(1)
    # In place: a fresh megabyte for every operation costs several times its arithmetic.
    weights = scaled.sub_(scaled.amax(dim=1, keepdim=True)).exp_()
    missing = -logits.shape[1] % _CHUNK
    padded = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    chunks = padded.reshape(len(logits), -1, _CHUNK)
    totals = chunks.sum(dim=2, dtype=torch.float64)
    cumulative = totals.cumsum(dim=1)
    chunk, before = _invert(cumulative, uniform.double().unsqueeze(1) * cumulative[:, -1:])
    rows = torch.arange(len(logits), device=logits.device)
    inside = chunks[rows, chunk[:, 0]].double().cumsum(dim=1)
    within, _ = _invert(inside, before)
    return (chunk * _CHUNK + within).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _invert(cumulative: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, 1) where a sum (batch, n) passes `target` (batch, 1), and how far into that entry."""
    # Rounding must not carry a target to the end of the sum, where what follows has no weight.
    target = torch.minimum(target, cumulative[:, -1:] * _BELOW_ONE)
    place = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)
    below = torch.where(place > 0, cumulative.gather(1, (place - 1).clamp(min=0)), 0.0)
    return place, target - below
