"""Work in chunks on the cores there are, with the same result on any number of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

_Chunk = TypeVar("_Chunk")
_Result = TypeVar("_Result")

_CHUNK_BYTES = 192 * 2**20
_CHUNK_CONCEPTS = 64
_MOST_JOBS = 8  # each holds a chunk in memory, and Python itself runs one at a time


@contextmanager
def cores(jobs: int | None = None) -> Iterator[Executor]:
    """`jobs` threads (None: one a core, 8 at most) to share work among.

    The cores are spent on chunks, not inside an operation: threads that spin on small systems are
    many times slower as soon as a second trainer wants the same cores, and an operation that is
    split differently rounds differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    n = jobs or min(os.cpu_count() or 1, _MOST_JOBS)
    try:
        with threadpool_limits(1), ThreadPoolExecutor(n, initializer=_one_thread) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def in_parallel(
    work: Callable[[_Chunk], _Result], chunks: Sequence[_Chunk], jobs: int | None = None
) -> Iterator[_Result]:
    """The result of each chunk, in their order, from so many threads as `cores` says."""
    with cores(jobs) as pool:
        yield from pool.map(work, chunks)


def chunks_by_size(
    lengths: Sequence[int], row_bytes: int, problem_bytes: int = 0
) -> list[list[int]]:
    """Numbers of problems, the longest first, in chunks that stay within some memory.

    Problems of a chunk are padded to its longest, so those of similar length go together.

    Parameters
    ----------
    lengths : rows of each problem.
    row_bytes : bytes of a row of features.
    problem_bytes : bytes of a problem beyond its rows.
    """
    chunks: list[list[int]] = []
    width = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        many = len(chunks[-1]) + 1 if chunks else 1
        size = many * (problem_bytes + width * (row_bytes + 3 * 8 * width))
        if not chunks or size > _CHUNK_BYTES or len(chunks[-1]) == _CHUNK_CONCEPTS:
            chunks.append([])
            width = lengths[number]
        chunks[-1].append(number)
    return chunks


def _one_thread() -> None:
    torch.set_num_threads(1)  # OpenMP keeps the number for each thread that starts an operation
