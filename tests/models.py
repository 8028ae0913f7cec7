"""Tiny random transformers of several architectures and a tokenizer, all built in code: no network,
no files."""

from __future__ import annotations

from functools import cache
from typing import Any

import tokenizers
import torch
import transformers

from lenscache.model.loading import LoadedModel, find_blocks

SENTENCES = (
    "The cat sat on the mat and looked at the rain.",
    "A river ran past the old mill, slow and brown.",
    "She counted the coins twice and put them back.",
    "Nobody knew why the bell had rung at midnight.",
)

_COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_ROTARY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, **_ROTARY, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        **_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=256
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_COMMON, **_ROTARY),
    "gemma": lambda: transformers.Gemma2Config(
        **_COMMON, **_ROTARY, num_key_value_heads=2, head_dim=8
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_COMMON, **_ROTARY, num_key_value_heads=2, head_dim=8
    ),
    "qwen": lambda: transformers.Qwen2Config(**_COMMON, **_ROTARY, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(
        **_COMMON, **_ROTARY, num_key_value_heads=2, head_dim=8
    ),
}
ARCHITECTURES = tuple(CONFIGS)


@cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE of 300 tokens, trained on a few sentences."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )


@cache
def tiny_model(
    architecture: str = "llama", *, dtype: str = "float32", seed: int = 0
) -> LoadedModel:
    """A random model of three blocks and hidden size 32. Shared between tests: do not change it."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[architecture](), dtype=getattr(torch, dtype)
    )
    # larger than the usual initialisation, so that completions differ from one another
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        id=f"tiny-{architecture}",
        dtype=dtype,
        device=torch.device("cpu"),
        blocks=list(find_blocks(model)),
    )
