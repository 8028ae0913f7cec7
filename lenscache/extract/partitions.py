"""How far the partitions of a store are: told by its marks alone, since partitions leave no other
trace."""

from __future__ import annotations

from lenscache.extract.settings import Partition
from lenscache.store.store import Store


def partitions_done(store: Store, count: int) -> list[dict[str, int | str | bool]]:
    """For each of `count` partitions, its blocks over all rounds and those that are complete."""
    marks = [target.complete_blocks() for target in store.rounds()]
    found: list[dict[str, int | str | bool]] = []
    for number in range(1, count + 1):
        partition = Partition(number, count)
        done = [bool(mark[block]) for mark in marks for block in partition.blocks(len(mark))]
        found.append(
            {
                "partition": str(partition),
                "blocks": len(done),
                "complete": sum(done),
                "is_done": all(done),
            }
        )
    return found
