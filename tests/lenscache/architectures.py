"""Tiny random models of many architectures, and how each decodes where steps are recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers

from lenscache.model.loading import LoadedModel, find_blocks
from tests.models import tiny_tokenizer

_SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_WINDOW: dict[str, Any] = {"sliding_window": 8}
_ALTERNATING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_HALVES: dict[str, Any] = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
_GATED_DELTA: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LONG_ROPE: dict[str, Any] = {
    "original_max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "factor": 2.0,
    },
}
_DYNAMIC_ROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
}


def _of(name: str, *, without: tuple[str, ...] = (), **more: Any) -> Callable[[], Any]:
    shape = {key: value for key, value in _SHAPE.items() if key not in without}
    return lambda: getattr(transformers, name)(**{**shape, **more})


_GPT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OLD = (*_GPT, "num_key_value_heads", "max_position_embeddings")

# Steps can be recorded: every layer keeps keys and values, and no step reads one of them in Python.
RECORDED: dict[str, Callable[[], Any]] = {
    "llama": _of("LlamaConfig"),
    "gpt2": _of("GPT2Config", without=_OLD, n_embd=32, n_layer=4, n_head=4, n_positions=256),
    "gptj": _of("GPTJConfig", without=_OLD, n_embd=32, n_layer=4, n_head=4, rotary_dim=4),
    "gpt_neox": _of("GPTNeoXConfig"),
    "gemma": _of("GemmaConfig", head_dim=8),
    "gemma2": _of("Gemma2Config", head_dim=8),
    "gemma2-window": _of("Gemma2Config", head_dim=8, **_WINDOW),
    "gemma3": _of("Gemma3TextConfig", head_dim=8),
    "gemma3-window": _of("Gemma3TextConfig", head_dim=8, **_WINDOW, **_HALVES),
    "gemma4-window": _of(
        "Gemma4TextConfig",
        head_dim=8,
        global_head_dim=8,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        **_WINDOW,
        **_HALVES,
    ),
    "qwen2": _of("Qwen2Config"),
    "qwen2-window": _of("Qwen2Config", use_sliding_window=True, max_window_layers=1, **_WINDOW),
    "qwen3": _of("Qwen3Config", head_dim=8),
    "qwen3_moe": _of("Qwen3MoeConfig", head_dim=8, **_EXPERTS),
    "mistral": _of("MistralConfig", sliding_window=None),
    "mistral-window": _of("MistralConfig", **_WINDOW),
    "mixtral": _of("MixtralConfig", num_local_experts=4),
    "olmoe": _of("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "phi": _of("PhiConfig", partial_rotary_factor=0.5),
    "phi3": _of("Phi3Config"),
    "phi4-long-rope": _of("Phi3Config", **_LONG_ROPE),
    "cohere2-window": _of("Cohere2Config", **_WINDOW, **_ALTERNATING),
    "olmo2": _of("Olmo2Config"),
    "olmo3-window": _of("Olmo3Config", **_WINDOW, **_ALTERNATING),
    "gpt_oss-window": _of(
        "GptOssConfig", head_dim=8, num_local_experts=4, **_WINDOW, **_ALTERNATING
    ),
    "llama4-chunks": _of(
        "Llama4TextConfig",
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=8,
    ),
    "starcoder2-window": _of("Starcoder2Config", **_WINDOW),
    "glm4": _of("Glm4Config", head_dim=8),
    "granite": _of("GraniteConfig"),
    "deepseek_v3": _of(
        "DeepseekV3Config",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "opt": _of("OPTConfig", ffn_dim=64, word_embed_proj_dim=32),
    "stablelm": _of("StableLmConfig"),
    "smollm3": _of("SmolLM3Config"),
}

# Decode with a cache that grows, whatever is asked for.
GROWING: dict[str, Callable[[], Any]] = {
    "bloom-alibi": _of("BloomConfig", without=_OLD, hidden_size=32, n_layer=4, n_head=4),
    "falcon-alibi": _of("FalconConfig", alibi=True),
    "mpt-alibi": _of("MptConfig", without=_OLD, d_model=32, n_layers=4, n_heads=4, max_seq_len=256),
    "gpt_neo-window": _of(
        "GPTNeoConfig",
        without=_OLD,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        window_size=8,
        max_position_embeddings=256,
        attention_types=[[["global", "local"], 2]],
    ),
    "llama-dynamic-rope": _of("LlamaConfig", **_DYNAMIC_ROPE),
    "gemma4-shared-keys": _of(
        "Gemma4TextConfig",
        head_dim=8,
        global_head_dim=8,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        **_WINDOW,
        **_ALTERNATING,
    ),
    "qwen3_5-hybrid": _of("Qwen3_5TextConfig", **_GATED_DELTA),
    "qwen3_next-hybrid": _of(
        "Qwen3NextConfig",
        **_EXPERTS,
        **_GATED_DELTA,
    ),
    "lfm2-hybrid": _of("Lfm2Config", layer_types=["conv", "full_attention"] * 2),
    "bamba-hybrid": _of("BambaConfig", attn_layer_indices=[1, 3], **_MAMBA),
    "falcon_h1-hybrid": _of("FalconH1Config", mamba_d_ssm=64, **_MAMBA),
    "jamba-hybrid": _of("JambaConfig", attn_layer_period=2, attn_layer_offset=1, num_experts=2),
    "granitemoehybrid": _of(
        "GraniteMoeHybridConfig", layer_types=["mamba", "attention"] * 2, **_MAMBA
    ),
    "mamba": _of("MambaConfig", state_size=8),
    "mamba2": _of("Mamba2Config", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "falcon_mamba": _of("FalconMambaConfig", state_size=8),
}

CONFIGS = {**RECORDED, **GROWING}


@cache
def tiny(architecture: str) -> LoadedModel:
    """A random model of four blocks and hidden size 32. Shared between tests: do not change it."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.eval().requires_grad_(False)
    blocks = list(find_blocks(model))
    return LoadedModel(
        model, tiny_tokenizer(), architecture, "float32", torch.device("cpu"), blocks
    )
