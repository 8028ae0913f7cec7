"""What tells one model or tokenizer from another: digests of everything that decides what they
do."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from lenscache.model.placement import whole_weights

_CONFIG_OF_NO_CONSEQUENCE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "distributed_config",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def model_fingerprint(model: Any, *, at_once: int | None = None) -> str:
    """SHA-256 over configuration and weights as loaded: names, shapes, dtypes and every byte; 16
    hex digits.

    Parameters
    ----------
    model : a transformers model, wherever its weights are.
    at_once : tensors to hold at a time, where they have to be brought here first; None for all.

    Raises
    ------
    UnsupportedModelError
        If the values of a weight are nowhere to be found.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _CONFIG_OF_NO_CONSEQUENCE}
    tensors, digests = whole_weights(model), []
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        while some := dict(islice(tensors, at_once)):
            digests += [
                list(pair)
                for pair in zip(some, pool.map(_tensor_digest, some.values()), strict=True)
            ]
    content = [config, digests]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does to a text; 16 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content["padding"] = content["truncation"] = (
            None  # state of the last call, not of the tokenizer
        )
    else:
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return hashlib.sha256(json.dumps([content, special], sort_keys=True).encode()).hexdigest()[:16]


def _tensor_digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(data.data)
    return digest.hexdigest()
