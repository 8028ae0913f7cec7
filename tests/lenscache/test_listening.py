"""Listening to a model: what a listener is told of forward passes, and that the model does not
notice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lenscache.errors import ModelError, ModelLayerError
from lenscache.live.listening import listen, read_text
from lenscache.model.loading import LoadedModel
from tests.lenscache.test_capture import n_hooks
from tests.models import ARCHITECTURES, tiny_model

TOKENS = torch.tensor([[5, 17, 240, 33, 98, 7]])
END = 1


class Recorder:
    """Keeps all it is told."""

    def __init__(self, model_layers: Sequence[int] = (0, 1, 2)) -> None:
        self.model_layers = model_layers
        self.passes: list[dict[str, Any]] = []
        self.ended = 0

    def begin_pass(
        self, phase: str, *, real: torch.Tensor, first: torch.Tensor, is_new: bool
    ) -> None:
        told = {"phase": phase, "real": real.tolist(), "first": first.tolist(), "is_new": is_new}
        self.passes.append({**told, "hidden": {}})

    def take(self, model_layer: int, hidden: torch.Tensor) -> None:
        self.passes[-1]["hidden"][model_layer] = hidden.clone()

    def end_pass(self) -> None:
        self.ended += 1


def generate(
    loaded: LoadedModel, tokens: torch.Tensor = TOKENS, mask: torch.Tensor | None = None, n: int = 4
) -> Any:
    mask = torch.ones_like(tokens) if mask is None else mask
    return loaded.model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=END,
        eos_token_id=END,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_listener_hears_the_output_of_each_block(architecture: str) -> None:
    loaded, heard = tiny_model(architecture), Recorder()
    with torch.inference_mode(), listen(loaded, heard):
        output = loaded.model(TOKENS, output_hidden_states=True)
    told = heard.passes[0]
    for model_layer in range(2):  # the last entry of hidden_states is after the final norm
        torch.testing.assert_close(
            told["hidden"][model_layer], output.hidden_states[model_layer + 1], rtol=0, atol=0
        )
    assert list(told["hidden"]) == [0, 1, 2]
    assert (told["phase"], told["is_new"], heard.ended) == ("prompt", True, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_says_the_same_bit_for_bit_with_a_listener(architecture: str) -> None:
    loaded, heard = tiny_model(architecture), Recorder()
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    alone = loaded.model.generate(TOKENS, **settings)
    with listen(loaded.model, heard):
        heard_by = loaded.model.generate(TOKENS, **settings)
    assert torch.equal(alone.sequences, heard_by.sequences)
    for one, other in zip(alone.logits, heard_by.logits, strict=True):
        assert torch.equal(one, other)


def test_the_prompt_is_one_pass_and_each_generated_token_another() -> None:
    loaded, heard = tiny_model(), Recorder()
    with listen(loaded, heard):
        sequence = generate(loaded)
    fed_back = sequence.shape[1] - TOKENS.shape[1] - 1
    assert [told["phase"] for told in heard.passes] == ["prompt"] + ["completion"] * fed_back
    assert [told["is_new"] for told in heard.passes] == [True] + [False] * fed_back
    assert [len(told["real"][0]) for told in heard.passes] == [6] + [1] * fed_back


def test_padding_is_not_real_and_the_first_position_is_that_of_the_text() -> None:
    loaded, heard = tiny_model(), Recorder()
    tokens = torch.tensor([[1, 1, 5, 17], [9, 33, 98, 7]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with listen(loaded, heard):
        generate(loaded, tokens, mask, n=2)
    assert heard.passes[0]["real"] == [[False, False, True, True], [True] * 4]
    assert heard.passes[0]["first"] == [[False, False, True, False], [True, False, False, False]]
    assert heard.passes[1]["first"] == [[False], [False]]


def test_what_a_finished_row_is_fed_is_not_real() -> None:
    loaded, heard = tiny_model(), Recorder()
    cache = None
    with torch.inference_mode(), listen(loaded, heard):
        for tokens in ([[5, 17], [9, 33]], [[END], [7]], [[END], [8]], [[44], [9]]):
            given = {loaded.cache_argument: cache}
            output = loaded.model(torch.tensor(tokens), **given, use_cache=True)
            cache = loaded.cache_of(output)
    assert [told["real"] for told in heard.passes[1:]] == [[[False], [True]]] * 3


def test_an_end_token_in_a_prompt_ends_nothing() -> None:
    loaded, heard = tiny_model(), Recorder()
    with torch.inference_mode(), listen(loaded, heard):
        output = loaded.model(torch.tensor([[5, END, 17]]), use_cache=True)
        loaded.model(torch.tensor([[7]]), **{loaded.cache_argument: loaded.cache_of(output)})
    assert [told["real"] for told in heard.passes] == [[[True] * 3], [[True]]]


def test_hooks_are_removed_after_an_exception() -> None:
    loaded = tiny_model()
    before, during = n_hooks(loaded), []

    def fail_inside() -> None:
        with listen(loaded, Recorder((0, 2))):
            during.extend(n_hooks(loaded))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert during == [before[0] + 1, before[1], before[2] + 1]
    assert n_hooks(loaded) == before
    assert not loaded.model._forward_pre_hooks


def test_an_error_of_the_listener_ends_the_pass_and_leaves_no_hook() -> None:
    class Broken(Recorder):
        def take(self, model_layer: int, hidden: torch.Tensor) -> None:
            raise ValueError("cannot score this")

    loaded, before = tiny_model(), n_hooks(tiny_model())
    with pytest.raises(ValueError, match="cannot score this"), listen(loaded, Broken()):
        loaded.model(TOKENS)
    assert n_hooks(loaded) == before


@pytest.mark.parametrize(
    ("model_layers", "words"), [((3,), "model layer 3 does not exist"), ((), "no model layers")]
)
def test_a_model_layer_that_is_not_there_is_refused(
    model_layers: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ModelLayerError, match=words), listen(tiny_model(), Recorder(model_layers)):
        pass


def test_blocks_that_run_without_the_model_are_not_passed_over() -> None:
    loaded = tiny_model()
    with (
        pytest.raises(ModelError, match="call the model that `listen` was given"),
        listen(loaded, Recorder()),
    ):
        loaded.model.base_model(TOKENS)


def test_a_mask_that_hides_what_is_padding_is_refused() -> None:
    loaded = tiny_model()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    with pytest.raises(ModelError, match="padding cannot be told"), listen(loaded, Recorder()):
        loaded.model(TOKENS, attention_mask=mask)


# --- reading a text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["The cat sat.", "  two  spaces ", "a\nb\tc", "snow ☃ and 🚢!", "<eos> said he"]
)
def test_the_pieces_of_a_text_make_up_the_text(text: str) -> None:
    loaded, heard = tiny_model(), Recorder((0,))
    tokenized = read_text(loaded, text, heard)
    assert "".join(tokenized.tokens) == text
    assert (
        len(tokenized.tokens)
        == len(loaded.tokenizer(text)["input_ids"])
        == len(heard.passes[0]["real"][0])
    )


def test_reading_computes_nothing_past_the_deepest_block() -> None:
    loaded, calls = tiny_model(), []
    handle = loaded.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    try:
        read_text(loaded, "The cat sat.", Recorder((0, 1)))
    finally:
        handle.remove()
    assert calls == []


def test_a_text_beyond_the_positions_of_the_model_is_cut_and_says_so() -> None:
    loaded, heard = tiny_model("gpt2"), Recorder((0,))
    tokenized = read_text(loaded, "word " * 300, heard)
    assert len(tokenized.tokens) == loaded.max_positions == 256
    assert tokenized.n_cut == len(loaded.tokenizer("word " * 300)["input_ids"]) - 256


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ModelError, match="the text is empty"):
        read_text(tiny_model(), "", Recorder((0,)))
