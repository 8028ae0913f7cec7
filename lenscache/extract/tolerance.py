"""How far a row in a batch may be from the same row alone, by what the model computes in and pools.

Both compute the same sums in another order, so all they may differ by is rounding. Let u be the
largest relative error of one rounding: 2^-24 in float32, 2^-11 in float16, 2^-8 in bfloat16.

One position
    The residual stream is rounded twice a block, when attention and MLP are added to it. As a
    vector, one rounding is off by about 0.4 u (uniform within a step, over all mantissas). Once two
    computations differ at all, their roundings are independent: after L blocks they are
    0.4 u sqrt(4 L) apart, which is 1.7 % in bfloat16 after 30 blocks and 3.1 % after 100. Allowed
    are 26 u, 10 %: three times that, since blocks are not linear and amplify. In float16 it is an
    eighth, rounded up. In float32 sums within a product of matrices count for more than what is
    rounded after them: sqrt(K) u of K terms, 90 u where K is 8192, and sqrt(2 L) of them add up.
Mean over n positions
    Rounding errors of positions are independent, and what positions have in common is not, so a
    mean is off by 1 / sqrt(n) of one position: 0.4 % in bfloat16 for 19 tokens after 30 blocks. A
    mean over few positions is allowed what follows from one position. For more there is a floor of
    half of one position: a prompt's positions attend to its first ones and share their errors.
Maximum, last position
    Each feature is that of one position, so nothing averages out.
A token
    It is drawn where a uniform number falls in the cumulative distribution. Independent errors e of
    the logits shift a cumulative sum by at most std(e) / temperature / 2. A bfloat16 logit between
    16 and 32 is rounded by up to 0.06 (std 0.036) and computed from a hidden state that is 1-2 %
    off, about as much again: 0.08 at temperature 0.3. Allowed is twice that. Tokens whose share is
    smaller than the shift tip often, so that in bfloat16 most texts of a right model are others
    when the batch is another one: how many texts differ says nothing, how far their tokens are off
    does.

`benchmarks/batch_check.py` measures all of this; RESULTS.md beside it has figures and predictions.
"""

from __future__ import annotations

from math import sqrt

from lenscache.store.header import StoreHeader

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest relative error of a mean over many positions, by the dtype the model computes in."""

TOLERANCE_OF_ONE = {"float32": 3e-4, "bfloat16": 0.1, "float16": 0.02}
"""The same of one position, and so of pooling "last" and "max"."""

STORE_ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 2.0**-6}
"""What storing may add: values that differ a little may be rounded apart."""

TOKEN_DISTANCE = {"float32": 0.002, "bfloat16": 0.15, "float16": 0.02}
"""By how much a cumulative distribution may shift, see `lenscache.inference.alone.Alone`."""

OTHER_COMPLETIONS = {"float32": 0.0, "bfloat16": 0.5, "float16": 0.5}
"""Share of the rows that may hold a token further off: in low precision an expert that tips in a
mixture of experts moves more than rounding does."""


def allowed_error(header: StoreHeader, n_positions: int) -> float:
    """Largest relative error of a row that pools so many positions, with what storing adds."""
    allowed = TOLERANCE_OF_ONE[header.model_dtype]
    if header.pooling == "mean":
        allowed = max(TOLERANCE[header.model_dtype], allowed / sqrt(max(n_positions, 1)))
    return allowed + STORE_ROUNDING[header.store_dtype]
