"""A row alone along its tokens: read in one pass, it is what decoding it gives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from lenscache.inference.alone import decode_alone, read_alone
from lenscache.inference.runner import Row, Runner
from lenscache.terms import Mode, Pooling
from tests.lenscache.test_runner import (
    HALF_OF_THE_VOCABULARY,
    NEW_TOKENS,
    UNEQUAL,
    assert_close,
    rows_of,
    with_eos,
)
from tests.models import ARCHITECTURES, tiny_model


def runner_of(
    architecture: str,
    eos_ids: Collection[int] = (1,),
    *,
    mode: Mode = "combined",
    pooling: Pooling = "mean",
    pool_first_position: bool = False,
) -> Runner:
    loaded = with_eos(tiny_model(architecture), eos_ids)
    how = {"mode": mode, "pooling": pooling, "pool_first_position": pool_first_position}
    return Runner(loaded, (0, 2), max_new_tokens=NEW_TOKENS, **how)  # type: ignore[arg-type]


def assert_alone_is_what_was_written(runner: Runner, rows: list[Row]) -> None:
    for row, written in zip(rows, runner.run(rows), strict=True):
        followed = replace(row, completion_ids=tuple(written.completion_ids))
        for alone in (read_alone(runner, followed), decode_alone(runner, followed)):
            assert alone.pooled.keys() == written.pooled.keys()
            for phase, vectors in written.pooled.items():
                assert_close(alone.pooled[phase], vectors)
            ended = len(written.completion_ids) < NEW_TOKENS
            assert len(alone.distances) == len(written.completion_ids) + ended
            assert alone.distances.max() < 1e-4


@pytest.mark.parametrize(
    "eos_ids", [{1}, HALF_OF_THE_VOCABULARY, range(300)], ids=["long", "some end early", "all end"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_pools_and_draws_what_decoding_does(
    architecture: str, eos_ids: Collection[int]
) -> None:
    assert_alone_is_what_was_written(runner_of(architecture, eos_ids), rows_of(UNEQUAL * 2))


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_one_pass_pools_as_decoding_does_whatever_the_pooling(pooling: Pooling) -> None:
    assert_alone_is_what_was_written(runner_of("gpt2", pooling=pooling), rows_of(UNEQUAL))


@pytest.mark.parametrize("pool_first_position", [False, True])
def test_one_pass_counts_the_first_position_if_the_runner_does(pool_first_position: bool) -> None:
    """The shortest prompt is a single token: without its first position it has none."""
    runner = runner_of("llama", pool_first_position=pool_first_position)
    assert_alone_is_what_was_written(runner, rows_of((1, 2, 30)))


def test_mode_completion_pools_no_prompt() -> None:
    assert_alone_is_what_was_written(runner_of("qwen3", mode="completion"), rows_of(UNEQUAL))


def test_in_mode_prompt_a_row_alone_is_its_only_pass() -> None:
    runner, (row, *_) = runner_of("llama", mode="prompt"), rows_of(UNEQUAL)
    alone = decode_alone(runner, row)
    assert_close(alone.pooled["prompt"], runner.run([row])[0].pooled["prompt"])
    assert not len(alone.distances)


def test_a_token_that_is_not_the_one_drawn_is_as_far_off_as_its_share_of_the_sum() -> None:
    """The sum of shares up to it is on one side of the row's uniform number, or on the other."""
    runner, (row, *_) = runner_of("llama"), rows_of(UNEQUAL)
    ids = tuple(runner.run([row])[0].completion_ids)
    for off in (-40, 40):
        other = (ids[0] + off) % 300
        changed = replace(row, completion_ids=(other, *ids[1:]))
        read, decoded = read_alone(runner, changed), decode_alone(runner, changed)
        assert 0 < read.distances[0] <= 1
        np.testing.assert_allclose(read.distances, decoded.distances, atol=1e-4)


def test_a_completion_that_ended_where_it_should_not_have_is_far_off() -> None:
    runner, (row, *_) = runner_of("llama"), rows_of(UNEQUAL)
    ids = tuple(runner.run([row])[0].completion_ids)
    cut = read_alone(runner, replace(row, completion_ids=ids[:3]))
    assert cut.distances[:3].max() < 1e-4 < cut.distances[3]
