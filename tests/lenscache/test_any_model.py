"""Models that are loaded already, with adapters, quantised, or with eyes: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import lenscache
import lenstrain
from lenscache.errors import (
    BatchMismatchError,
    MissingPackageError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
    WeightsError,
)
from lenscache.extract import ExtractSettings
from lenscache.model.loading import LoadedModel
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack

TEXTS = {c.name: c.examples for c in small_pack(n_examples=12).concepts[2:4]}
PAIR = TEXTS["bird"], TEXTS["fish"]
PROMPTS = ExtractSettings(mode="prompt")


def vectors(model: LoadedModel, settings: ExtractSettings = PROMPTS) -> Any:
    """(texts, hidden) of the last model layer."""
    store = lenscache.extract_texts(PAIR[0], model, negatives=PAIR[1], settings=settings)
    return store.rounds()[0].read("prompt", model.n_layers - 1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its tokenizer, saved."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


# peft asks transformers for what has another name there now
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def fresh(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# --- loaded already -----------------------------------------------------------------------------


def test_a_wrapped_model_is_the_model_that_is_loaded(folder: Path) -> None:
    model = fresh(folder).train()
    wrapped = lenscache.wrap_model(model, tiny_tokenizer())
    loaded = lenscache.load_model(str(folder), dtype="float32", device="cpu")
    for name in ("id", "fingerprint", "tokenizer_fingerprint", "dtype", "device", "max_positions"):
        assert getattr(wrapped, name) == getattr(loaded, name)
    assert not model.training
    assert (vectors(wrapped) == vectors(loaded)).all()
    assert lenscache.wrap_model(model, tiny_tokenizer(), id="mine").id == "mine"


def test_what_is_no_model_is_refused(folder: Path) -> None:
    model = fresh(folder)
    with pytest.raises(ModelError, match="the model is str, expected a model of transformers"):
        lenscache.wrap_model(str(folder), tiny_tokenizer())
    with pytest.raises(ModelError, match="the tokenizer is LlamaForCausalLM, expected a tokenizer"):
        lenscache.wrap_model(model, model)
    with pytest.raises(ModelError, match="computes in float64, expected bfloat16"):
        lenscache.wrap_model(model.double(), tiny_tokenizer())
    small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    both = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=300, **small))
    with pytest.raises(UnsupportedModelError, match="writes with another"):
        lenscache.wrap_model(both, tiny_tokenizer())


# --- adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model that changes what it does, saved by peft."""
    peft = pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("adapters") / "lora"
    torch.manual_seed(1)
    made = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(fresh(folder), made).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def adapted(folder: Path, lora: Path) -> LoadedModel:
    return lenscache.load_model(str(folder), dtype="float32", device="cpu", adapter=lora)


def test_an_adapter_runs_in_the_model_and_is_part_of_its_fingerprint(
    adapted: LoadedModel, folder: Path, lora: Path
) -> None:
    import peft

    plain = lenscache.load_model(str(folder), dtype="float32", device="cpu")
    assert adapted.id == "tiny with lora"
    assert adapted.fingerprint != plain.fingerprint
    assert np.abs(vectors(adapted) - vectors(plain)).max() > 0.1
    theirs: Any = peft.PeftModel.from_pretrained(fresh(folder), str(lora))
    wrapped = lenscache.wrap_model(theirs, tiny_tokenizer())
    assert wrapped.fingerprint == adapted.fingerprint
    assert (vectors(wrapped) == vectors(adapted)).all()
    theirs.base_model.disable_adapter_layers()
    off = lenscache.wrap_model(theirs, tiny_tokenizer())
    assert off.fingerprint not in (adapted.fingerprint, plain.fingerprint)


def test_the_strength_of_an_adapter_is_part_of_the_fingerprint(
    adapted: LoadedModel, folder: Path, lora: Path, tmp_path: Path
) -> None:
    """It stands in the configuration of an adapter, not in its weights."""
    other = tmp_path / "lora"
    other.mkdir()
    for file in lora.iterdir():
        text = file.read_bytes().replace(b'"lora_alpha": 8', b'"lora_alpha": 16')
        (other / file.name).write_bytes(text)
    stronger = lenscache.load_model(str(folder), dtype="float32", device="cpu", adapter=other)
    assert stronger.id == adapted.id
    assert stronger.fingerprint != adapted.fingerprint


def test_lenses_of_an_adapted_model_are_those_of_that_model_alone(
    adapted: LoadedModel, folder: Path
) -> None:
    store = lenscache.extract_texts(PAIR[0], adapted, negatives=PAIR[1])
    pack = lenstrain.train(store, target_f1=0.9)
    assert pack.predict(adapted, PAIR[0][:2]).shape == (2, 1)
    plain = lenscache.load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(lenstrain.LenstrainError, match=r"tiny with lora .* not tiny "):
        pack.predict(plain, PAIR[0])


def test_adapters_that_do_not_fit_are_refused(folder: Path, lora: Path, tmp_path: Path) -> None:
    import peft

    def load(adapter: Path) -> None:
        lenscache.load_model(str(folder), dtype="float32", device="cpu", adapter=adapter)

    with pytest.raises(ModelNotFoundError, match=r"no adapter at .*adapter_config\.json"):
        load(tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(fresh(folder), config).save_pretrained(str(tmp_path / "short"))
    weights = tmp_path / "short" / "adapter_model.safetensors"
    weights.write_bytes((lora / weights.name).read_bytes())
    with pytest.raises(WeightsError, match="12 of its weights are missing or left over"):
        load(tmp_path / "short")
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(fresh(folder), prefix).save_pretrained(str(tmp_path / "prefix"))
    with pytest.raises(UnsupportedModelError, match="PREFIX_TUNING, which puts tokens before"):
        load(tmp_path / "prefix")


def test_an_adapter_without_peft_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[adapters\]'"):
        lenscache.load_model(str(folder), dtype="float32", device="cpu", adapter="lora")


# --- quantised ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_int8_weights_run_and_are_told_from_others(folder: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")

    def load() -> LoadedModel:
        how = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
        return lenscache.load_model(
            str(folder), dtype="float32", device="cpu", quantization_config=how
        )

    plain, int8 = lenscache.load_model(str(folder), dtype="float32", device="cpu"), load()
    assert int8.id == "tiny (torchao)"
    assert int8.fingerprint == load().fingerprint != plain.fingerprint
    found, wanted = vectors(int8, ExtractSettings(max_new_tokens=4)), vectors(plain)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-4 < error < 0.05
    store = lenscache.extract_texts(PAIR[0], int8, negatives=PAIR[1])
    assert lenstrain.train(store).predict(int8, PAIR[0][:1]).notna().all(axis=None)


# --- models that read pictures ------------------------------------------------------------------

_TEXT: dict[str, Any] = {
    **{"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
_SIGHT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "image_size": 28, "patch_size": 14},
}
_MROPE = {
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
}
_IDS = {"image_token_id": 299, "video_token_id": 298}
_MARKS = {"vision_start_token_id": 297, "vision_end_token_id": 296}


def llava() -> Any:
    sight = transformers.CLIPVisionConfig(**_SIGHT)
    text = transformers.LlamaConfig(**_TEXT)
    return transformers.LlavaConfig(vision_config=sight, text_config=text, image_token_index=299)


def qwen2_5_vl() -> Any:
    sight: dict[str, Any] = {"depth": 3, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4}
    sight |= {"intermediate_size": 64, "fullatt_block_indexes": [1]}
    return transformers.Qwen2_5_VLConfig(
        text_config=_TEXT | _MROPE, vision_config=sight, **_IDS, **_MARKS
    )


def smolvlm() -> Any:
    text = transformers.LlamaConfig(**_TEXT)
    return transformers.SmolVLMConfig(
        text_config=text, vision_config=dict(_SIGHT), image_token_id=299
    )


def paligemma() -> Any:
    return transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**_TEXT, head_dim=8),
        vision_config=transformers.SiglipVisionConfig(**_SIGHT),
        image_token_index=299,
        projection_dim=32,
    )


def with_eyes(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model


@pytest.mark.parametrize("config", [llava, qwen2_5_vl, smolvlm])
def test_the_text_side_of_a_model_that_sees_is_extracted(
    config: Callable[[], Any], tmp_path: Path
) -> None:
    """Its vision tower has as many blocks. Batches are checked against rows one by one."""
    model = with_eyes(config())
    wrapped = lenscache.wrap_model(model, tiny_tokenizer())
    text = model.get_decoder()
    assert [id(block) for block in wrapped.blocks] == [id(block) for block in text.layers]
    assert vectors(wrapped, ExtractSettings(max_new_tokens=4)).shape == (24, 32)
    if config is llava:  # which is no causal language model to transformers
        model.save_pretrained(tmp_path / "llava")
        tiny_tokenizer().save_pretrained(tmp_path / "llava")
        loaded = lenscache.load_model(str(tmp_path / "llava"), dtype="float32", device="cpu")
        assert loaded.fingerprint == wrapped.fingerprint


def test_a_model_that_looks_ahead_is_refused() -> None:
    """PaliGemma attends to all of a prompt, and padding shifts what it takes for the prompt."""
    wrapped = lenscache.wrap_model(with_eyes(paligemma()), tiny_tokenizer())
    with pytest.raises(BatchMismatchError, match="this model does not batch"):
        vectors(wrapped, ExtractSettings(max_new_tokens=4))
