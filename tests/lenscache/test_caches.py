"""What a model calls its cache is read from the model, and passes that have none are noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lenscache.errors import ModelError, UnsupportedModelError
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.live.listening import listen
from lenscache.live.steering import Positions, steer
from lenscache.model.caches import GivenCache, cache_argument
from lenscache.model.loading import LoadedModel, find_blocks
from tests.lenscache.test_listening import TOKENS, Recorder
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer

KNOWN = {"cache", "past_key_values", "cache_params"}


class Renamed(nn.Module):
    """A model whose forward pass calls its cache something that no version of transformers does."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._inner, self._name = loaded.model, loaded.cache_argument
        self.config, self.generation_config = loaded.model.config, loaded.model.generation_config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: transformers.Cache | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        given = {"attention_mask": attention_mask, self._name: memory, "use_cache": use_cache}
        output = self._inner(input_ids, **given)
        output.memory = output.get(self._name)
        return output


class Stateful(nn.Module):
    """Keeps what it has read to itself, as RecurrentGemma did."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._inner = loaded.model
        self.config, self.generation_config = loaded.model.config, loaded.model.generation_config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        return self._inner(input_ids, attention_mask=attention_mask, use_cache=use_cache)


def loaded_as(kind: type[nn.Module]) -> LoadedModel:
    model = kind(tiny_model())
    blocks = list(find_blocks(model))
    return LoadedModel(model, tiny_tokenizer(), "tiny", "float32", torch.device("cpu"), blocks)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_argument_is_one_that_forward_takes_and_the_output_has(architecture: str) -> None:
    loaded = tiny_model(architecture)
    assert loaded.cache_argument in KNOWN
    assert loaded.accepts(loaded.cache_argument)
    with torch.inference_mode():
        cache = loaded.cache_of(loaded.model(TOKENS, use_cache=True))
    assert cache.get_seq_length() == TOKENS.shape[1]


def test_a_name_without_an_annotation_is_known_and_no_cache_is_none() -> None:
    class Old(nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=None):  # type: ignore[no-untyped-def]
            return input_ids

    assert cache_argument(Old()) == "past_key_values"
    assert cache_argument(Stateful(tiny_model())) is None


def test_rows_are_the_same_whatever_the_cache_is_called() -> None:
    row = Row([5, 17, 240, 33], 0, 1.0)
    runs = [
        Runner(loaded, [0, 2], max_new_tokens=5, limits=BatchLimits(1)).run([row])[0]
        for loaded in (tiny_model(), loaded_as(Renamed))
    ]
    assert runs[0].completion_ids == runs[1].completion_ids
    for phase, pooled in runs[0].pooled.items():
        torch.testing.assert_close(torch.tensor(pooled), torch.tensor(runs[1].pooled[phase]))


def test_a_model_that_takes_no_cache_is_refused_for_completions_and_fine_for_prompts() -> None:
    loaded, row = loaded_as(Stateful), Row([5, 17, 240, 33])
    with pytest.raises(UnsupportedModelError, match=r"takes no cache .*use mode='prompt'"):
        Runner(loaded, [0], max_new_tokens=5).run([row])
    (read,) = Runner(loaded, [0], mode="prompt").run([row])
    assert list(read.pooled) == ["prompt"]


class Wrapped(nn.Module):
    """A model that takes a cache under an old name and returns it as the model inside does."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._inner, self._name = loaded.model, loaded.cache_argument
        self.config, self.generation_config = loaded.model.config, loaded.model.generation_config

    def forward(
        self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, **other: Any
    ) -> Any:
        return self._inner(input_ids, attention_mask, **{self._name: past_key_values}, **other)


def test_a_cache_is_found_under_the_name_that_the_model_inside_returns() -> None:
    loaded = loaded_as(Wrapped)
    assert loaded.cache_argument == "past_key_values"
    with torch.inference_mode():
        cache = loaded.cache_of(loaded.model(TOKENS, use_cache=True))
    assert cache.get_seq_length() == TOKENS.shape[1]


def test_a_model_that_returns_no_cache_is_refused() -> None:
    loaded = loaded_as(Renamed)
    with pytest.raises(UnsupportedModelError, match="returned none as memory"):
        loaded.cache_of(object())


def fed_back(loaded: LoadedModel) -> None:
    """A prompt and two tokens after it, each pass given the cache under the model's own name."""
    cache = None
    with torch.inference_mode():
        for tokens in (TOKENS, [[8]], [[9]]):
            given = {loaded.cache_argument: cache}
            output = loaded.model(torch.as_tensor(tokens), **given, use_cache=True)
            cache = loaded.cache_of(output)


def test_a_listener_hears_what_is_fed_back_whatever_the_cache_is_called() -> None:
    loaded, heard = loaded_as(Renamed), Recorder()
    with listen(loaded, heard):
        fed_back(loaded)
    assert [told["phase"] for told in heard.passes] == ["prompt", "completion", "completion"]


@pytest.mark.parametrize(
    ("positions", "moved"),
    [("prompt", [True, False, False]), ("completion", [False, True, True])],
)
def test_steering_tells_prompt_and_completion_apart_whatever_the_cache_is_called(
    positions: Any, moved: list[bool]
) -> None:
    loaded, plain, steered = loaded_as(Renamed), Recorder([0]), Recorder([0])
    with listen(loaded, plain):
        fed_back(loaded)
    with steer(loaded, torch.ones(32), 0, 5.0, positions=positions), listen(loaded, steered):
        fed_back(loaded)
    pairs = zip(plain.passes, steered.passes, strict=True)
    assert [not torch.equal(a["hidden"][0], b["hidden"][0]) for a, b in pairs] == moved


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_cache_is_found_under_a_name_that_is_deprecated(name: str) -> None:
    cache = transformers.DynamicCache()
    cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)
    assert GivenCache().n_cached({"input_ids": TOKENS, "use_cache": True, name: cache}) == 4


# --- passes that generate without a cache --------------------------------------------------------


def contexts(loaded: LoadedModel) -> list[Any]:
    by_positions: list[Positions] = ["prompt", "completion", slice(2, None)]
    return [
        listen(loaded, Recorder()),
        *(steer(loaded, torch.ones(32), 0, 1.0, positions=each) for each in by_positions),
    ]


@pytest.mark.parametrize("which", range(4))
def test_tokens_that_are_fed_back_without_a_cache_are_an_error(which: int) -> None:
    loaded = loaded_as(Stateful)
    with contexts(loaded)[which]:
        loaded.model(TOKENS, use_cache=True)
        loaded.model(torch.tensor([[8]]), use_cache=True)
        with pytest.raises(ModelError, match="keeps its state elsewhere"):
            loaded.model(torch.tensor([[9]]), use_cache=True)


@pytest.mark.parametrize("which", range(3))
def test_generating_without_a_cache_is_an_error(which: int) -> None:
    loaded = tiny_model()
    with pytest.raises(ModelError, match="generate with use_cache=True"), contexts(loaded)[which]:
        loaded.model.generate(TOKENS, max_new_tokens=4, do_sample=False, use_cache=False)


def test_a_slice_is_steered_the_same_with_and_without_a_cache() -> None:
    loaded, written = tiny_model(), []
    for use_cache in (True, False):
        with steer(loaded, torch.ones(32), 0, 9.0, positions=slice(5, None)):
            settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache}
            written.append(loaded.model.generate(TOKENS, **settings).tolist())
    assert written[0] == written[1]
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert written[0] != loaded.model.generate(TOKENS, **settings).tolist()


def test_texts_one_after_the_other_are_no_generation() -> None:
    heard, loaded = Recorder(), tiny_model()
    with listen(loaded, heard), torch.inference_mode():
        for tokens in ([[5, 17]], [[5, 18, 9]], [[5, 17]], [[4, 17], [4, 17]]):
            loaded.model(torch.tensor(tokens))
        for token in (7, 8, 9):
            loaded.model(torch.tensor([[token]]), use_cache=False)
    assert [told["is_new"] for told in heard.passes] == [True] * 7
