"""Sampling: a row's tokens depend on the row alone, and follow the softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenscache.inference.sampling import row_uniforms, sample_tokens

JUST_BELOW_1 = 1 - 2.0**-53
seeds = st.integers(0, 2**64 - 1)


def random_logits(batch: int, vocabulary: int, *, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(0))


@given(seed=seeds, others=st.lists(seeds, max_size=3), longer=st.integers(0, 5))
def test_uniforms_depend_on_seed_and_step_only(seed: int, others: list[int], longer: int) -> None:
    alone = row_uniforms(np.array([seed], np.uint64), 4)[0]
    among = row_uniforms(np.array([*others, seed], np.uint64), 4 + longer)[-1]
    np.testing.assert_array_equal(among[:4], alone)


def test_uniforms_are_uniform_and_differ_between_rows_and_steps() -> None:
    uniforms = row_uniforms(np.arange(500, dtype=np.uint64), 20)
    assert np.unique(uniforms).size == uniforms.size
    counts, _ = np.histogram(uniforms, bins=10, range=(0, 1))
    assert counts.sum() == 10_000
    np.testing.assert_allclose(counts, 1000, atol=150)  # five standard deviations
    assert abs(np.corrcoef(uniforms[:, 0], uniforms[:, 1])[0, 1]) < 0.2


def test_token_does_not_depend_on_batch_mates() -> None:
    logits, temperature = random_logits(16, 300), torch.linspace(0.3, 0.9, 16)
    uniform = torch.from_numpy(row_uniforms(np.arange(16, dtype=np.uint64), 1)[:, 0])
    together = sample_tokens(logits, temperature, uniform)
    one_by_one = [
        sample_tokens(logits[i : i + 1], temperature[i : i + 1], uniform[i : i + 1])
        for i in range(16)
    ]
    assert together.tolist() == torch.cat(one_by_one).tolist()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert (
        sample_tokens(logits[order], temperature[order], uniform[order]).tolist()
        == together[order].tolist()
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    logits, n = random_logits(1, 12, scale=1.0), 20_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(n))
    tokens = sample_tokens(logits.expand(n, -1), torch.full((n,), temperature), uniform)
    expected = n * torch.softmax(logits[0].double() / temperature, dim=0).numpy()
    observed = np.bincount(tokens.numpy(), minlength=12)
    chi_square = float(((observed - expected) ** 2 / expected)[expected > 5].sum())
    assert chi_square < 35  # 11 degrees of freedom: exceeded with probability 0.0003


def test_low_temperature_takes_the_likeliest_token() -> None:
    logits = random_logits(50, 300)
    uniform = torch.linspace(0, JUST_BELOW_1, 50, dtype=torch.float64)
    assert (
        sample_tokens(logits, torch.full((50,), 1e-4), uniform).tolist()
        == logits.argmax(dim=1).tolist()
    )


@pytest.mark.parametrize("vocabulary", [1, 2, 50_257])
def test_extreme_uniforms_stay_in_the_vocabulary(vocabulary: int) -> None:
    logits = torch.zeros(2, vocabulary)
    tokens = sample_tokens(
        logits, torch.ones(2), torch.tensor([0.0, JUST_BELOW_1], dtype=torch.float64)
    )
    assert tokens.tolist() == [0, vocabulary - 1]


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).expand(3, -1)
    tokens = sample_tokens(
        logits, torch.ones(3), torch.tensor([0.0, 0.5, JUST_BELOW_1], dtype=torch.float64)
    )
    assert tokens.tolist() == [1, 2, 2]
