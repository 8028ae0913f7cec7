"""Results leave for the host on streams of their own, on a machine without a GPU: here a stream is
a queue, and what is queued is done when somebody waits for it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lenscache.inference.runner import Runner, _Pending
from lenscache.inference.to_host import HostCopies
from tests.models import tiny_model

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


class Stream:
    """Work in the order in which it was queued."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._done = device, 0
        self._queue: list[Callable[[], object]] = []

    def add(self, work: Callable[[], object]) -> None:
        self._queue.append(work)

    def wait_stream(self, other: Stream) -> None:
        self.add(other.record_event().synchronize)

    def record_event(self) -> Event:
        return Event(self, len(self._queue))

    def work_until(self, end: int) -> None:
        while self._done < end:
            self._queue[self._done]()
            self._done += 1


@dataclasses.dataclass
class Event:
    stream: Stream
    end: int

    def synchronize(self) -> None:
        self.stream.work_until(self.end)


class Cards:
    """Two GPUs: the streams that compute on them, and the one that is current."""

    def __init__(self) -> None:
        self.computing = {device: Stream(device) for device in (FIRST, SECOND)}
        self.current: Stream | None = None

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def compute(self, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A tensor on a GPU, which has these values once the work queued for it is done."""
        memory = torch.zeros_like(values)
        self.computing[device].add(lambda: memory.copy_(values))
        return OnCard(memory, device, self)


class OnCard(torch.Tensor):
    """A tensor that can be copied to the host and nothing else."""

    memory: torch.Tensor
    cards: Cards

    @staticmethod
    def __new__(cls, memory: torch.Tensor, device: torch.device, cards: Cards) -> OnCard:
        made: OnCard = torch.Tensor._make_wrapper_subclass(
            cls, memory.size(), dtype=memory.dtype, device=device
        )
        made.memory, made.cards = memory, cards
        return made

    def __init__(self, *_: object) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        assert func is torch.ops.aten.copy_.default
        copy, values = args[:2]
        memory = values.memory
        stream = values.cards.current or values.cards.computing[values.device]
        assert stream.device == values.device
        stream.add(lambda: copy.copy_(memory))
        return copy


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    cards, empty = Cards(), torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", cards.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", cards.computing.__getitem__)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **how: empty(*shape, **how))
    return cards


def test_a_copy_is_complete_when_it_was_waited_for_and_not_before(cards: Cards) -> None:
    copies = HostCopies({})
    copy = copies.copy(cards.compute(torch.tensor([3.0, 4.0]), FIRST))
    assert copy.tolist() != [3.0, 4.0]
    copies.wait()
    assert copy.tolist() == [3.0, 4.0]


def test_a_copy_does_not_wait_for_the_batch_that_is_queued_behind_it(cards: Cards) -> None:
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for number in range(3):
        copies = HostCopies(streams)
        copy = copies.copy(cards.compute(torch.tensor([number]), FIRST))
        late: list[str] = []
        cards.computing[FIRST].add(lambda late=late: late.append("next batch"))  # type: ignore[misc]
        copies.wait()
        assert (copy.tolist(), late) == ([number], [])
    assert list(streams) == [FIRST]


def test_every_device_that_a_result_came_from_is_waited_for(cards: Cards) -> None:
    copies, values = HostCopies({}), torch.tensor([5, 6])
    found = [copies.copy(cards.compute(values, device)) for device in (FIRST, SECOND, FIRST)]
    copies.wait()
    assert [copy.tolist() for copy in found] == [[5, 6]] * 3


def test_memory_is_not_given_back_while_it_is_copied(cards: Cards) -> None:
    copies = HostCopies({})
    values = cards.compute(torch.tensor([1.0]), FIRST)
    kept = weakref.ref(values)
    copies.copy(values)
    del values
    assert kept() is not None
    copies.wait()
    assert kept() is None


def test_tokens_are_waited_for_where_no_activation_comes_from_the_device(cards: Cards) -> None:
    """As in mode completion, if every row ends at its first token and nothing is pooled."""
    pending = _Pending(
        HostCopies({}),
        {"completion": torch.full((1, 2, 4), torch.nan)},
        {"completion": torch.zeros(2)},
        n_rows=2,
        written=cards.compute(torch.full((2, 3), -2), FIRST),
        lost=cards.compute(torch.tensor(False), SECOND),
    )
    assert [result.completion_ids for result in pending.results()] == [[], []]


def test_what_stands_for_nothing_pooled_is_on_the_device_of_the_model() -> None:
    loaded = dataclasses.replace(tiny_model(), device=torch.device("meta"))
    runner = Runner(loaded, (0, 1), mode="completion")
    capture = runner._new_capture()
    found = runner._pooled_or_nan(capture, n_rows=3)
    assert (found.shape, found.device) == ((2, 3, 32), loaded.device)
