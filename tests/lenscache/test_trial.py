"""A model that cannot be used is refused before anything is stored, with what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lenscache.errors import BatchMismatchError, PromptTooLongError, UnsupportedModelError
from lenscache.extract import ExtractSettings, extract
from lenscache.extract.estimate import estimate_run
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.inference.trial import check_model_runs
from lenscache.live.listening import listen
from lenscache.live.steering import steer
from lenscache.model.loading import LoadedModel, find_blocks
from lenscache.terms import Mode
from tests.lenscache.architectures import CONFIGS, tiny
from tests.lenscache.test_listening import TOKENS, Recorder
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack


def own_model(config: Any = None) -> LoadedModel:
    """A random model that a test may change."""
    shape = CONFIGS["llama"]() if config is None else config
    model = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    blocks = list(find_blocks(model))
    return LoadedModel(model, tiny_tokenizer(), "own", "float32", torch.device("cpu"), blocks)


def with_four_streams() -> LoadedModel:
    """Gemma 3n: its blocks put out (streams, batch, position, hidden)."""
    return own_model(
        transformers.Gemma3nTextConfig(
            vocab_size=300,
            vocab_size_per_layer_input=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
            laurel_rank=4,
            sliding_window=8,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
            activation_sparsity_pattern=[0.0] * 4,
        )
    )


def compiled_in_place(loaded: LoadedModel) -> Any:
    loaded.model.compile(backend="eager")
    return loaded


def compiled_block(loaded: LoadedModel) -> Any:
    loaded.blocks[1].compile(backend="eager")
    return loaded


def wrapped(loaded: LoadedModel) -> Any:
    return torch.compile(loaded.model, backend="eager")


def generated_with_a_static_cache(loaded: LoadedModel) -> Any:
    loaded.model.get_compiled_call(transformers.CompileConfig(backend="eager"))
    return loaded


@pytest.mark.parametrize("mode", ["prompt", "combined"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_that_runs_passes(architecture: str, mode: Mode) -> None:
    check_model_runs(tiny(architecture), [0, 3], mode)


def test_blocks_of_several_streams_are_refused_with_their_shape(tmp_path: Path) -> None:
    loaded = with_four_streams()
    shape = r"puts out \(4, 2, 3, 32\), expected one residual stream"
    with pytest.raises(UnsupportedModelError, match=shape):
        extract(tmp_path / "s", small_pack(), loaded)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UnsupportedModelError, match=shape):
        estimate_run(small_pack(), loaded)
    with steer(loaded, torch.ones(32), 1), pytest.raises(UnsupportedModelError, match="stream"):
        loaded.model(TOKENS)
    with listen(loaded, Recorder([1])), pytest.raises(UnsupportedModelError, match="stream"):
        loaded.model(TOKENS)


@pytest.mark.parametrize(
    "compiled", [compiled_in_place, compiled_block, wrapped, generated_with_a_static_cache]
)
def test_a_compiled_model_is_neither_steered_nor_heard(
    compiled: Callable[[LoadedModel], Any],
) -> None:
    model = compiled(own_model())
    with pytest.raises(UnsupportedModelError, match="compiled"), steer(model, torch.ones(32), 1):
        pytest.fail("hooks would not be called")
    with pytest.raises(UnsupportedModelError, match="compiled"), listen(model, Recorder([1])):
        pytest.fail("hooks would not be called")


def test_a_compiled_model_is_not_extracted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="compiled"):
        extract(tmp_path / "s", small_pack(), compiled_in_place(own_model()))
    assert not (tmp_path / "s").exists()


def test_a_model_that_is_compiled_while_it_is_steered_is_an_error() -> None:
    loaded = own_model()
    with pytest.raises(UnsupportedModelError, match="compiled"), steer(loaded, torch.ones(32), 1):
        loaded.model.compile(backend="eager")


class Forgetful(nn.Module):
    """A model whose cache cannot be continued."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: Any,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        if past_key_values is not None:
            raise IndexError("tuple index out of range")
        return self.inner(input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_state_that_cannot_be_continued_is_refused_before_a_store_is_made(tmp_path: Path) -> None:
    loaded = dataclasses.replace(tiny_model(), model=Forgetful(tiny_model().model))
    wanted = "cannot run a batch of two texts: tuple index out of range, try mode='prompt'"
    with pytest.raises(UnsupportedModelError, match=wanted):
        extract(tmp_path / "s", small_pack(), loaded)
    assert not (tmp_path / "s").exists()
    check_model_runs(loaded, [0], "prompt")


RECURRENT: dict[str, Callable[[], Any]] = {
    "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=300,
        hidden_size=32,
        lru_width=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        attention_window_size=64,
    ),
    "RWKV": lambda: transformers.RwkvConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=3, context_length=256
    ),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_that_reads_padding_is_refused(kind: str, tmp_path: Path) -> None:
    """For completions it gives no cache; the prompts of a batch are not those of its rows."""
    loaded = own_model(RECURRENT[kind]())
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    with pytest.raises(UnsupportedModelError, match="mode='prompt'"):
        extract(tmp_path / "s", small_pack(), loaded)
    assert not (tmp_path / "s").exists()
    with pytest.raises(BatchMismatchError, match=r"does not batch.*--batch-size 1"):
        extract(tmp_path / "s", small_pack(), loaded, ExtractSettings(mode="prompt"))


def test_a_model_with_long_rope_has_the_positions_of_its_short_factors(tmp_path: Path) -> None:
    """Beyond them, one row changes the keys of all others of its batch."""
    loaded = tiny("phi4-long-rope")
    assert loaded.max_positions == 128
    runner = Runner(loaded, [0], max_new_tokens=8, limits=BatchLimits(2))
    with pytest.raises(PromptTooLongError, match=r"122 tokens and 7 more .* takes 128 positions"):
        runner.run([Row([5] * 122), Row([5] * 3)])
    assert len(runner.run([Row([5] * 121), Row([5] * 3)])) == 2
    settings = ExtractSettings(mode="prompt", max_prompt_tokens=200)
    with pytest.raises(PromptTooLongError, match="128 positions"):
        extract(tmp_path / "s", small_pack(), loaded, settings)


def test_blocks_that_run_for_some_positions_alone_are_not_heard_as_if_for_all() -> None:
    """Gemma 4 does that where layers share keys and one logit is asked for, as `generate` does."""
    loaded = tiny("gemma4-shared-keys")
    with listen(loaded, Recorder([3])):
        loaded.model(TOKENS)
    wrong = pytest.raises(UnsupportedModelError, match=r"block 3 ran for 1 of \d+ positions")
    with listen(loaded, Recorder([3])), wrong:
        loaded.model(TOKENS, logits_to_keep=1)
