from __future__ import annotations

import numpy as np
import pytest
import torch

from lenscache.errors import PromptTooLongError
from lenscache.inference.runner import Row, Runner
from lenscache.live.continuation import continue_prompt
from lenscache.live.steering import Intervention
from tests.models import SENTENCES, tiny_model

PUSH = Intervention(np.random.default_rng(3).normal(size=32), 1, 30.0)


def test_the_same_seed_writes_the_same_text_and_steering_writes_another() -> None:
    loaded = tiny_model()
    one, again, steered, other = (
        continue_prompt(
            loaded, SENTENCES[0], changes, model_layers=[1], max_new_tokens=12, seed=seed
        )
        for changes, seed in (([], 0), ([], 0), ([PUSH], 0), ([], 1))
    )
    assert one.token_ids == again.token_ids
    assert one.token_ids != steered.token_ids
    assert one.token_ids != other.token_ids
    assert one.text == loaded.tokenizer.decode(one.token_ids)


def test_what_was_written_under_steering_is_read_without() -> None:
    loaded = tiny_model()
    written = continue_prompt(loaded, SENTENCES[0], [PUSH], model_layers=[2, 0], max_new_tokens=8)
    row = Row(loaded.tokenizer(SENTENCES[0])["input_ids"], completion_ids=tuple(written.token_ids))
    (plain,) = Runner(
        loaded, [0, 2], mode="completion", max_new_tokens=len(written.token_ids) + 1
    ).run([row])
    for place, model_layer in enumerate((0, 2)):
        np.testing.assert_array_equal(
            written.activations[model_layer][0], plain.pooled["completion"][place]
        )


def test_all_written_tokens_but_none_of_the_prompt_are_pooled() -> None:
    loaded = tiny_model()
    written = continue_prompt(loaded, SENTENCES[0], model_layers=[1], max_new_tokens=6)
    prompt = loaded.tokenizer(SENTENCES[0])["input_ids"]
    with torch.no_grad():
        states = loaded.model(
            input_ids=torch.tensor([[*prompt, *written.token_ids]]), output_hidden_states=True
        ).hidden_states
    np.testing.assert_allclose(
        written.activations[1][0],
        states[2][0, len(prompt) :].mean(dim=0).numpy(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_perplexity_is_that_of_the_completion_alone() -> None:
    loaded = tiny_model()
    written = continue_prompt(loaded, SENTENCES[0], model_layers=[1], max_new_tokens=6)
    prompt = loaded.tokenizer(SENTENCES[0])["input_ids"]
    both = torch.tensor([[*prompt, *written.token_ids]])
    labels = both.clone()
    labels[0, : len(prompt)] = -100
    with torch.no_grad():
        loss = loaded.model(input_ids=both, labels=labels).loss
    assert written.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="the prompt is empty"):
        continue_prompt(tiny_model(), "", model_layers=[1])


def test_a_prompt_without_room_for_the_completion_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="tiny-llama takes 256"):
        continue_prompt(tiny_model(), SENTENCES[0], model_layers=[1], max_new_tokens=250)
