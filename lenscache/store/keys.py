"""Sample keys: the identity of a row, the same in every store.

A key is a digest of the text and of everything its activation depends on. It needs no model to be
computed, so that a store can be checked against its own texts.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.plan import SamplePlan
from lenscache.store.header import StoreHeader

_FIELDS = (
    "model_fingerprint",
    "model_dtype",
    "tokenizer_fingerprint",
    "mode",
    "max_new_tokens",
    "max_prompt_tokens",
    "pooling",
    "pool_first_position",
    "special_tokens",
    "store_dtype",
)


def sample_keys(header: StoreHeader, plan: SamplePlan) -> NDArray[np.uint8]:
    """(n, 16) digest of each text, its sampling, and what else decides its activation."""
    common = json.dumps([getattr(header, name) for name in _FIELDS]).encode()
    keys = np.empty((len(plan), 16), np.uint8)
    for row, text in enumerate(plan.texts):
        sampling = [int(plan.sampling_seed[row]), float(plan.temperature[row])]
        sample = [text] if header.mode == "prompt" else [text, *sampling]
        content = common + json.dumps(sample).encode()
        keys[row] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
    return keys
