"""Many workers, simulated: what must hold whatever is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenscache.errors import PlanError
from lenscache.forecast.fleet import Engine, Fleet, Storage, simulate

BLOCKS, WORKERS = st.integers(1, 60), st.integers(1, 12)
ENGINES: st.SearchStrategy[Engine] = st.sampled_from(["dynamic", "static"])


def rounds_of(n: int) -> list[int]:
    return [n // 3, n - n // 3] if n >= 3 else [n]


@given(n=BLOCKS, workers=WORKERS, seconds=st.floats(0.1, 1e4))
def test_where_nothing_goes_wrong_blocks_take_the_ideal_time(
    n: int, workers: int, seconds: float
) -> None:
    outcome = simulate(np.full(n, seconds), Fleet(workers))
    ideal = math.ceil(n / workers) * seconds
    assert outcome.makespan == pytest.approx(ideal)
    assert outcome.efficiency == pytest.approx(n * seconds / (workers * ideal))
    assert (outcome.deaths, outcome.blocks_redone, outcome.throttled) == (0, 0, 0.0)
    assert simulate(np.full(n, seconds), Fleet(workers), engine="static").makespan == pytest.approx(
        ideal
    )


@settings(max_examples=60)
@given(
    n=BLOCKS,
    workers=WORKERS,
    engine=ENGINES,
    seed=st.integers(0, 2**32),
    lifetime=st.floats(60, 2000),
    writing=st.floats(0, 30),
)
def test_every_block_is_written_exactly_once_whoever_dies(
    n: int, workers: int, engine: Engine, seed: int, lifetime: float, writing: float
) -> None:
    fleet = Fleet(workers, 5.0, spread=0.3, slow_share=0.2, slow_factor=2.0, lifetime=lifetime)
    storage = Storage(writing, 20, 20, 50, 300.0, 300.0)
    outcome = simulate(
        np.full(n, 10.0), fleet, storage, engine=engine, rounds=rounds_of(n), seed=seed
    )
    assert outcome.written.tolist() == [1] * n
    assert outcome.blocks_redone <= 2 * outcome.deaths  # one that runs, one that is written
    again = simulate(
        np.full(n, 10.0), fleet, storage, engine=engine, rounds=rounds_of(n), seed=seed
    )
    assert again[:6] == outcome[:6]


@given(
    n=BLOCKS,
    workers=WORKERS,
    seed=st.integers(0, 2**32),
    spread=st.floats(0, 1),
    factor=st.floats(1, 5),
)
def test_handing_out_is_never_later_than_partitions_by_more_than_one_block(
    n: int, workers: int, seed: int, spread: float, factor: float
) -> None:
    fleet = Fleet(workers, 30.0, spread=spread, slow_share=0.3, slow_factor=factor)
    dynamic, static = (
        simulate(np.full(n, 10.0), fleet, engine=engine, rounds=rounds_of(n), seed=seed)
        for engine in ("dynamic", "static")
    )
    # The longest block alone, on the slowest machine: what one worker takes for all of them is an
    # upper bound of it.
    drawn = np.random.default_rng(seed).lognormal(-(spread**2) / 2, spread, n)
    assert dynamic.makespan <= static.makespan + 10.0 * drawn.max() * factor + 1e-6


def test_a_death_costs_what_was_running_and_being_written_and_a_load() -> None:
    calm = simulate(np.full(200, 10.0), Fleet(4, 20.0), Storage(5.0))
    rough = simulate(np.full(200, 10.0), Fleet(4, 20.0, lifetime=120.0), Storage(5.0))
    assert rough.deaths > 5
    assert rough.blocks_redone > 0
    lost = rough.deaths * (20.0 + 10.0 + 5.0)
    assert calm.makespan < rough.makespan < calm.makespan + lost


def test_stragglers_hold_up_partitions_more_than_blocks_that_are_handed_out() -> None:
    fleet = Fleet(50, slow_share=0.04, slow_factor=3.0)
    dynamic, static = (
        simulate(np.full(1000, 10.0), fleet, engine=engine).makespan
        for engine in ("dynamic", "static")
    )
    assert static == pytest.approx(3 * 200)
    assert dynamic < 1.2 * 200


def test_partitions_give_the_first_workers_the_rest_of_every_round() -> None:
    outcome = simulate(np.full(60, 1.0), Fleet(12), engine="static", rounds=[1] * 60)
    assert outcome.makespan == 60.0
    assert simulate(np.full(60, 1.0), Fleet(12), engine="dynamic", rounds=[1] * 60).makespan == 5.0


def test_a_driver_and_a_store_that_take_so_much_a_second_set_the_pace() -> None:
    blocks = np.full(1000, 1.0)
    slow_driver = simulate(blocks, Fleet(500, tasks_per_second=10.0))
    assert slow_driver.makespan == pytest.approx(101.0)
    free = Storage(0.1, 100, 0, 0, puts_per_second=None)
    throttled = simulate(blocks, Fleet(500), replace(free, puts_per_second=1000.0))
    assert throttled.makespan == pytest.approx(1.0 + 1000 * 100 / 1000)
    assert throttled.throttled > 1
    assert simulate(blocks, Fleet(500), free).makespan == pytest.approx(2.1)


def test_writing_that_takes_longer_than_a_block_is_waited_for() -> None:
    assert simulate(np.full(10, 1.0), Fleet(1), Storage(3.0)).makespan == pytest.approx(1 + 10 * 3)
    assert simulate(np.full(10, 3.0), Fleet(1), Storage(1.0)).makespan == pytest.approx(10 * 3 + 1)


def test_a_fleet_that_dies_too_fast_to_end_is_an_error() -> None:
    with pytest.raises(PlanError, match="workers live 5 s on average, too short"):
        simulate(np.full(10, 100.0), Fleet(3, lifetime=5.0))
