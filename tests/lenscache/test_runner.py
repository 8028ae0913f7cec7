"""Rows through the model: a batch means the same as its rows, and each phase pools what belongs to
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lenscache.errors import ModelError
from lenscache.inference.batches import DEFAULT_LIMITS, BatchLimits
from lenscache.inference.runner import Row, RowResult, Runner
from lenscache.live.steering import steer
from lenscache.model.caches import fixed_cache
from lenscache.model.loading import LoadedModel
from tests.models import ARCHITECTURES, tiny_model

UNEQUAL = (40, 3, 17, 9)
NEW_TOKENS = 8
HALF_OF_THE_VOCABULARY = range(0, 300, 2)


def rows_of(lengths: Sequence[int], *, seed: int = 0) -> list[Row]:
    """Rows of random tokens, with a sampling seed and a temperature each."""
    rng = np.random.default_rng(seed)
    return [
        Row(rng.integers(2, 300, n).tolist(), 100 * seed + i, 0.3 + 0.1 * i)
        for i, n in enumerate(lengths)
    ]


def with_eos(loaded: LoadedModel, eos_ids: Collection[int]) -> LoadedModel:
    """A copy in which these tokens end a completion."""
    copy = dataclasses.replace(loaded)
    vars(copy)["eos_ids"] = frozenset(eos_ids)  # what the cached property would hold
    return copy


def run(
    loaded: LoadedModel,
    rows: Sequence[Row],
    *,
    limits: BatchLimits = DEFAULT_LIMITS,
    **settings: Any,
) -> list[RowResult]:
    runner = Runner(loaded, (0, 1, 2), limits=limits, **{"max_new_tokens": NEW_TOKENS, **settings})
    return runner.run(rows)


def hidden_states(loaded: LoadedModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """(2, position, hidden) after the first two blocks, by the model's own account: one row, no
    padding, no cache."""
    with torch.inference_mode():
        output = loaded.model(
            torch.tensor([list(token_ids)]), output_hidden_states=True, use_cache=False
        )
    return torch.stack(output.hidden_states[1:3])[:, 0].numpy()


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Relative error below 1e-4, by the norm of each vector; NaN equals NaN."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    distance = np.linalg.norm(np.nan_to_num(found - expected), axis=-1)
    assert (distance <= 1e-4 * np.linalg.norm(np.nan_to_num(expected), axis=-1)).all(), distance


def assert_same_results(found: Sequence[RowResult], expected: Sequence[RowResult]) -> None:
    assert [result.completion_ids for result in found] == [
        result.completion_ids for result in expected
    ]
    assert [result.n_completion_tokens for result in found] == [
        result.n_completion_tokens for result in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.pooled.keys() == other.pooled.keys()
        for phase, vectors in one.pooled.items():
            assert_close(vectors, other.pooled[phase])


@contextmanager
def batch_sizes_seen(loaded: LoadedModel, *, memory_for: int = 1000) -> Iterator[list[int]]:
    """Record the rows of every forward pass; above `memory_for` rows the device is out of
    memory."""
    seen: list[int] = []

    def hook(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > memory_for:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = loaded.model.register_forward_pre_hook(hook, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    "eos_ids", [{1}, HALF_OF_THE_VOCABULARY], ids=["long", "some rows end early"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_in_fixed_tensors_does_what_a_growing_cache_does(
    architecture: str, eos_ids: Collection[int]
) -> None:
    loaded, rows = with_eos(tiny_model(architecture), eos_ids), rows_of(UNEQUAL * 3)
    assert_same_results(run(loaded, rows, replay=True), run(loaded, rows, replay=False))


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_fixed_tensors_hold_nothing_of_the_batch_before(pooling: str) -> None:
    loaded = with_eos(tiny_model("gpt2"), HALF_OF_THE_VOCABULARY)
    runner = Runner(loaded, (0, 1, 2), max_new_tokens=NEW_TOKENS, pooling=pooling, replay=True)  # type: ignore[arg-type]
    runner.run(rows_of((30, 31, 32, 33), seed=5))
    rows = rows_of(UNEQUAL)
    assert_same_results(runner.run(rows), run(loaded, rows, pooling=pooling, replay=False))


def test_a_batch_size_is_the_only_limit_unless_others_are_given() -> None:
    loaded = tiny_model()
    assert Runner(loaded, (0,), batch_size=3).limits == BatchLimits(3)
    assert Runner(loaded, (0,)).limits == DEFAULT_LIMITS
    assert Runner(loaded, (0,), limits=BatchLimits(5, 90)).limits == BatchLimits(5, 90)


def test_fixed_tensors_serve_all_full_batches_of_their_length() -> None:
    runner = Runner(tiny_model(), (0,), max_new_tokens=NEW_TOKENS, replay=True)
    runner.run(rows_of((9, 12, 15, 18, 21, 24, 27, 30, 5)))
    assert len(runner.recordings.by_shape) == 1


def test_batches_that_a_limit_of_positions_cuts_are_recorded_too() -> None:
    loaded, rows = tiny_model(), rows_of([9] * 8 + [40] * 4 + [90] * 4)
    settings: dict[str, Any] = {"limits": BatchLimits(8, 8 * 33)}
    expected = run(loaded, rows, replay=False, **settings)
    runner = Runner(loaded, (0, 1, 2), max_new_tokens=NEW_TOKENS, replay=True, **settings)
    assert_same_results(runner.run(rows), expected)
    assert {key[0] for key in runner.recordings.by_shape} == {8, 4, 2}


def test_a_step_recorded_under_steering_is_not_replayed_without() -> None:
    loaded, rows = tiny_model(), rows_of(UNEQUAL)
    runner = Runner(loaded, (0, 1, 2), max_new_tokens=NEW_TOKENS, replay=True)
    with steer(loaded, np.ones(32), 1, 5.0):
        runner.run(rows)
    runner.run(rows)
    assert len(runner.recordings.by_shape) == 2


def test_a_fixed_cache_keeps_every_position_also_of_a_model_with_a_window() -> None:
    """Where a window begins is a number in Python, which a recorded step does not see change."""
    config = tiny_model("gemma").model.config
    layers = fixed_cache(config, config.sliding_window + 1).layers
    assert {type(layer).__name__ for layer in layers} == {"StaticLayer"}


def test_rows_that_have_ended_leave_the_batch() -> None:
    loaded = with_eos(tiny_model(), HALF_OF_THE_VOCABULARY)
    with batch_sizes_seen(loaded) as sizes:
        run(loaded, rows_of([9] * 16), limits=BatchLimits(16))
    assert sizes[0] == 16
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 12


def test_a_batch_has_no_more_positions_than_its_budget() -> None:
    loaded, rows = tiny_model(), rows_of((4, 4, 4, 4, 20, 20, 20, 60))
    runner = Runner(loaded, (0, 1, 2), max_new_tokens=NEW_TOKENS, limits=BatchLimits(8, 60))
    told: list[int] = []
    results = runner.run(rows, on_rows=told.append)
    assert told == [4, 2, 1, 1]  # 4 * 12, 2 * 28, 28, and one row that is longer than the budget
    assert_same_results(results, run(loaded, rows, limits=BatchLimits(1)))


@pytest.mark.parametrize(
    "eos_ids", [{1}, HALF_OF_THE_VOCABULARY], ids=["long", "some rows end early"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_of_4_equals_four_batches_of_1(architecture: str, eos_ids: Collection[int]) -> None:
    loaded = with_eos(tiny_model(architecture), eos_ids)
    rows = rows_of(UNEQUAL)
    together = run(loaded, rows)
    assert set(together[0].pooled) == {"prompt", "completion"}
    assert_same_results(together, run(loaded, rows, limits=BatchLimits(1)))


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_batch_equals_its_rows_for_every_pooling(pooling: str) -> None:
    loaded, rows = with_eos(tiny_model("gpt2"), HALF_OF_THE_VOCABULARY), rows_of(UNEQUAL)
    assert_same_results(
        run(loaded, rows, pooling=pooling),
        run(loaded, rows, limits=BatchLimits(1), pooling=pooling),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pool_first_position", [False, True])
def test_prompt_phase_is_the_mean_over_the_unpadded_prompt(
    architecture: str, pool_first_position: bool
) -> None:
    loaded, rows = tiny_model(architecture), rows_of(UNEQUAL)
    results = run(loaded, rows, pool_first_position=pool_first_position)
    for row, result in zip(rows, results, strict=True):
        states = hidden_states(loaded, row.token_ids)
        expected = states[:, 0 if pool_first_position else 1 :].mean(axis=1)
        assert_close(result.pooled["prompt"][:2], expected)


@pytest.mark.parametrize(
    "eos_ids", [{1}, HALF_OF_THE_VOCABULARY], ids=["long", "some rows end early"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_completion_phase_is_the_mean_over_the_tokens_fed_back(
    architecture: str, eos_ids: Collection[int]
) -> None:
    loaded, rows = with_eos(tiny_model(architecture), eos_ids), rows_of(UNEQUAL * 2)
    for row, result in zip(rows, run(loaded, rows), strict=True):
        n_prompt, n = len(row.token_ids), result.n_completion_tokens
        ended = len(result.completion_ids) < NEW_TOKENS
        # the last of NEW_TOKENS is never fed back
        assert n == len(result.completion_ids) - (not ended)
        if n:
            # the same tokens in one forward pass
            states = hidden_states(loaded, [*row.token_ids, *result.completion_ids])
            assert_close(
                result.pooled["completion"][:2], states[:, n_prompt : n_prompt + n].mean(axis=1)
            )


def test_completions_are_what_the_model_and_the_uniform_numbers_say() -> None:
    """Greedy in the limit: at a low temperature each token is the likeliest after those before
    it."""
    loaded = tiny_model()
    rows = [dataclasses.replace(row, temperature=1e-4) for row in rows_of(UNEQUAL)]
    for row, result in zip(rows, run(loaded, rows), strict=True):
        ids = [*row.token_ids, *result.completion_ids]
        with torch.inference_mode():
            likeliest = loaded.model(torch.tensor([ids])).logits[0].argmax(dim=1).tolist()
        assert result.completion_ids == likeliest[len(row.token_ids) - 1 : -1]


def test_rows_that_end_early_do_not_change_the_others() -> None:
    loaded, rows = tiny_model(), rows_of(UNEQUAL)
    free = run(loaded, rows)
    never_again = set(free[1].completion_ids) - {
        t for i in (0, 2, 3) for t in free[i].completion_ids
    }
    stopped = run(with_eos(loaded, never_again), rows)
    assert len(stopped[1].completion_ids) < NEW_TOKENS
    assert_same_results([stopped[i] for i in (0, 2, 3)], [free[i] for i in (0, 2, 3)])


def test_row_whose_first_token_ends_it_has_no_completion_vector() -> None:
    loaded, rows = tiny_model(), rows_of(UNEQUAL)
    first = run(loaded, rows)[2].completion_ids[0]
    result = run(with_eos(loaded, {first}), rows)[2]
    assert (result.completion_ids, result.n_completion_tokens) == ([], 0)
    assert np.isnan(result.pooled["completion"]).all()
    assert np.isfinite(result.pooled["prompt"]).all()


def test_batch_in_which_every_row_ends_at_once_has_no_completion_vectors() -> None:
    for result in run(with_eos(tiny_model(), range(300)), rows_of(UNEQUAL)):
        assert (result.completion_ids, result.n_completion_tokens) == ([], 0)
        assert np.isnan(result.pooled["completion"]).all()


@pytest.mark.parametrize("mode", ["prompt", "combined"])
def test_one_token_prompt_has_a_vector_only_if_its_first_position_is_pooled(mode: str) -> None:
    loaded, rows = tiny_model(), rows_of((1, 5))
    without, other = run(loaded, rows, mode=mode)
    assert np.isnan(without.pooled["prompt"]).all()
    assert np.isfinite(other.pooled["prompt"]).all()
    with_first = run(loaded, rows, mode=mode, pool_first_position=True)[0]
    assert_close(with_first.pooled["prompt"][:2], hidden_states(loaded, rows[0].token_ids)[:, 0])


def test_order_of_rows_does_not_matter() -> None:
    loaded, rows = tiny_model(), rows_of((12, 5, 12, 30, 5, 8, 12, 12, 7))
    order = np.random.default_rng(0).permutation(len(rows))
    results = run(loaded, rows)
    assert_same_results(run(loaded, [rows[i] for i in order]), [results[i] for i in order])


def test_rows_are_batched_in_order_of_length_and_reported() -> None:
    loaded = tiny_model()
    seen: list[int] = []
    runner = Runner(loaded, (0,), mode="prompt", limits=BatchLimits(4))
    with batch_sizes_seen(loaded) as sizes:
        runner.run(rows_of((9, 2, 30, 9, 2, 30)), on_rows=seen.append)
    assert (sizes, seen) == ([4, 2], [4, 2])


def test_same_prompt_with_other_seeds_is_completed_otherwise() -> None:
    row = rows_of((6,))[0]
    rows = [dataclasses.replace(row, sampling_seed=seed, temperature=0.9) for seed in range(4)]
    assert len({tuple(result.completion_ids) for result in run(tiny_model(), rows)}) > 1


def test_completion_mode_equals_the_completion_phase_of_combined() -> None:
    loaded, rows = tiny_model(), rows_of(UNEQUAL)
    only, both = run(loaded, rows, mode="completion"), run(loaded, rows)
    assert_same_results(
        only,
        [result._replace(pooled={"completion": result.pooled["completion"]}) for result in both],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompt_mode_equals_the_prompt_phase_of_combined_and_generates_nothing(
    architecture: str,
) -> None:
    loaded, rows = tiny_model(architecture), rows_of(UNEQUAL)
    both = run(loaded, rows)
    with batch_sizes_seen(loaded) as sizes:
        only = run(loaded, rows, mode="prompt")
    assert sizes == [4]  # one pass and no step
    expected = [RowResult({"prompt": result.pooled["prompt"]}, [], 0) for result in both]
    assert_same_results(only, expected)


def test_one_prefill_serves_both_phases() -> None:
    loaded = tiny_model()
    with batch_sizes_seen(loaded) as sizes:
        run(loaded, rows_of(UNEQUAL))
    assert sizes == [4] * NEW_TOKENS  # the prefill, and one pass for each token but the last


def test_out_of_memory_halves_the_batch_and_gives_the_same_results() -> None:
    loaded, rows = tiny_model(), rows_of((4, 5, 6, 7, 8, 9, 10))
    expected = run(loaded, rows)
    told: list[int] = []
    runner = Runner(loaded, (0, 1, 2), max_new_tokens=NEW_TOKENS, limits=BatchLimits(7))
    with batch_sizes_seen(loaded, memory_for=2) as sizes:
        results = runner.run(rows, on_rows=told.append)
    assert (runner.limits.rows, runner.out_of_memory) == (2, 2)  # 7, 4, 2
    assert (sizes[:3], told) == ([7, 4, 2], [2, 2, 2, 1])
    assert max(sizes[3:]) == 2  # and never larger again
    assert_same_results(results, expected)


def test_out_of_memory_with_a_single_row_is_an_error() -> None:
    loaded = tiny_model()
    before = [len(block._forward_hooks) for block in loaded.blocks]
    with (
        batch_sizes_seen(loaded, memory_for=0),
        pytest.raises(ModelError, match="one row does not fit the memory"),
    ):
        run(loaded, rows_of((4, 5)), limits=BatchLimits(2))
    assert [len(block._forward_hooks) for block in loaded.blocks] == before


def test_row_that_follows_a_given_completion_pools_what_it_pooled_when_it_wrote_it() -> None:
    loaded = tiny_model()
    rows = [Row([5, 6, 7], seed, 0.9) for seed in range(4)]
    runner = Runner(loaded, [0, 2], max_new_tokens=6)
    for row, wrote in zip(rows, runner.run(rows), strict=True):
        followed = dataclasses.replace(
            row, sampling_seed=99, completion_ids=tuple(wrote.completion_ids)
        )
        again = runner.run([followed])[0]
        assert (again.completion_ids, again.n_completion_tokens) == (
            wrote.completion_ids,
            wrote.n_completion_tokens,
        )
        np.testing.assert_allclose(
            again.pooled["completion"], wrote.pooled["completion"], rtol=1e-3, atol=1e-5
        )
