"""What tells one model or tokenizer from another: digests of all that decides what they do."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from lenscache.model.adapter import adapter_facts
from lenscache.model.placement import whole_weights

_CONFIG_OF_NO_CONSEQUENCE = {
    *("_name_or_path", "architectures", "distributed_config", "dtype", "torch_dtype"),
    *("transformers_version", "use_cache"),
}


def model_fingerprint(model: Any, *, at_once: int | None = None) -> str:
    """SHA-256 over configuration, adapters and weights (names, shapes, dtypes, every byte); 16 hex
    digits.

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
    tensors = whole_weights(model)
    digests: list[tuple[str, str]] = []
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        while some := dict(islice(tensors, at_once)):
            digests += zip(some, pool.map(_tensor_digest, some.values()), strict=True)
    adapters = adapter_facts(model)
    return _digest([config, digests, adapters] if adapters else [config, digests])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does to a text; 16 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content["padding"] = content["truncation"] = None  # of the last call, not the tokenizer
    else:
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return _digest([content, special])


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tensor_digest(tensor: torch.Tensor) -> str:
    if hasattr(tensor, "__tensor_flatten__"):  # quantised: several tensors that stand for one
        names, _ = tensor.__tensor_flatten__()
        parts = [(name, _tensor_digest(getattr(tensor, name))) for name in names]
        return _digest([type(tensor).__name__, parts])
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(data.data)
    return digest.hexdigest()
