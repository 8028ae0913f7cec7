"""Batches cut where they are cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenscache.inference.batches import BatchLimits, batch_sizes, full_sizes

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(sorted)


def cost(lengths: Sequence[int], sizes: Sequence[int], new_tokens: int, overhead: float) -> float:
    total, start = 0.0, 0
    for size in sizes:
        total += overhead + size * (lengths[start + size - 1] + new_tokens)
        start += size
    return total


def every_way(lengths: Sequence[int], most: int, max_positions: int) -> list[list[int]]:
    """All cuts that keep to the limits, by trying."""
    found = []
    for cuts in product([False, True], repeat=len(lengths) - 1):
        ends = [place + 1 for place, is_cut in enumerate(cuts) if is_cut] + [len(lengths)]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        batches = zip(sizes, ends, strict=True)
        if all(
            s == 1 or (s <= most and s * lengths[end - 1] <= max_positions) for s, end in batches
        ):
            found.append(sizes)
    return found


@given(LENGTHS, st.integers(1, 6), st.integers(20, 200), st.integers(0, 300))
def test_no_other_way_to_cut_costs_less(
    lengths: list[int], most: int, max_positions: int, overhead: int
) -> None:
    sizes = batch_sizes(lengths, BatchLimits(most, max_positions, overhead))
    ways = every_way(lengths, most, max_positions)
    assert sizes in ways
    assert cost(lengths, sizes, 0, overhead) == min(cost(lengths, way, 0, overhead) for way in ways)


@given(
    LENGTHS,
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(20, 200)),
    st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_row_is_in_one_batch(
    lengths: list[int], most: int, max_positions: int | None, overhead: int | None
) -> None:
    sizes = batch_sizes(lengths, BatchLimits(most, max_positions, overhead), new_tokens=3)
    assert sum(sizes) == len(lengths)
    assert 1 <= min(sizes) <= max(sizes) <= most


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [(0.0, [2, 2, 2]), (60.0, [4, 2]), (500.0, [6]), (None, [6])],
)
def test_a_batch_ends_where_padding_costs_more_than_another_batch(
    overhead: float | None, expected: list[int]
) -> None:
    assert batch_sizes([10, 10, 30, 30, 90, 90], BatchLimits(8, overhead=overhead)) == expected


def test_without_a_known_cost_batches_are_filled_up_to_the_limit_of_positions() -> None:
    assert batch_sizes([5, 5, 10, 20, 40, 100], BatchLimits(3, 60), new_tokens=2) == [3, 1, 1, 1]


def test_batches_that_are_cut_short_have_half_as_many_rows() -> None:
    """Or a quarter: sizes that come again, unlike 23 rows here and 22 there."""
    lengths = [10] * 40 + [20] * 40 + [45] * 40
    assert batch_sizes(lengths, BatchLimits(32, 700)) == [32, 32, 16, 8, 8, 8, 8, 8]
    assert full_sizes(32) == [32, 16, 8, 4, 2, 1]
    assert full_sizes(40) == [40, 20, 10, 5, 2, 1]


@given(LENGTHS, st.integers(1, 6), st.integers(20, 200))
def test_filled_batches_keep_to_the_limits_and_to_few_sizes(
    lengths: list[int], most: int, max_positions: int
) -> None:
    sizes = batch_sizes(lengths, BatchLimits(most, max_positions))
    assert sizes in every_way(lengths, most, max_positions)
    assert set(sizes[:-1]) <= set(full_sizes(most))


def test_no_rows_make_no_batch() -> None:
    assert batch_sizes([], BatchLimits(4, overhead=3.0)) == batch_sizes([], BatchLimits(4)) == []
