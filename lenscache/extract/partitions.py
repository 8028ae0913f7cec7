"""Partitions: shares of a run for processes that know nothing of each other, and how far each is.

Their state is read from the marks of the store: partitions leave no other trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lenscache.errors import PlanError

if TYPE_CHECKING:
    from lenscache.store.store import Store


@dataclass(frozen=True)
class Partition:
    """One of several shares of a run, for processes that know nothing of each other.

    Partition k of n has the blocks k - 1, k - 1 + n, k - 1 + 2n ... of every round. Together they
    are disjoint and whole, whoever runs them and in whatever order.
    """

    number: int
    """Counted from 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Partition:
        """A share as people write it, such as "3/16".

        Raises
        ------
        PlanError
            If it is none.
        """
        first, _, second = text.partition("/")
        are_numbers = first.isdecimal() and second.isdecimal()
        if not (are_numbers and 1 <= int(first) <= int(second)):
            raise PlanError(
                f"{text!r} is no partition: "
                "give its number and their count, such as 3/16, from 1/16 on"
            )
        return cls(int(first), int(second))

    def blocks(self, n_blocks: int) -> range:
        """Its blocks of a round."""
        return range(self.number - 1, n_blocks, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def partitions_done(store: Store, count: int) -> list[dict[str, int | str | bool]]:
    """For each of `count` partitions, its blocks over all rounds and those that are complete."""
    marks = [target.complete_blocks() for target in store.all_rounds]
    found: list[dict[str, int | str | bool]] = []
    for number in range(1, count + 1):
        partition = Partition(number, count)
        done = [bool(mark[block]) for mark in marks for block in partition.blocks(len(mark))]
        counts = {"blocks": len(done), "complete": sum(done), "is_done": all(done)}
        found.append({"partition": str(partition), **counts})
    return found
