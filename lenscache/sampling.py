"""Batch-invariant sampling: what a row says does not depend on which rows share its batch.

Each row draws from its own stream, keyed by (row seed, step), and turns one uniform number into a token through the
inverse of its cumulative distribution. Nothing is drawn from a generator that other rows advance too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


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
    return np.stack([np.random.Generator(np.random.Philox(key=int(seed))).random(n_steps) for seed in seeds])


def sample_tokens(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    The softmax is computed in float64: batched and single logits differ by rounding, and the coarser the cumulative
    sum, the more often such a difference would cross a row's uniform number.

    Parameters
    ----------
    logits : (batch, vocab)
    temperature : (batch,), above 0.
    uniform : (batch,) in [0, 1).

    Returns
    -------
    (batch,) : token ids.
    """
    scaled = logits.double() / temperature.double().unsqueeze(1)
    cumulative = torch.softmax(scaled, dim=1).cumsum(dim=1)
    # The last entry is the total, 1 but for rounding: scaling by it keeps every uniform number inside.
    target = uniform.double().unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)
