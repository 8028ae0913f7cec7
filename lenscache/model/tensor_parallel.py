"""One model shared by several processes: each has a slice of every large weight, the first leads.

    torchrun --nproc-per-node N --no-python lenscache extract ... --tensor-parallel

    process 1       plans, reads and writes the store  --Order: rows, model layers--> the others
    every process   runs the same batch in lockstep and feeds back the tokens that process 1 drew

What a block computes is summed over the processes before it leaves the block: the residual stream
is whole in each process. The order of the sum differs from one device's, so results agree to
rounding only.

A process that dies ends the others; those within a batch say so in an error. Connections close at
once, and a process that hangs is given up after `PATIENCE`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

from lenscache.errors import ModelError
from lenscache.terms import Mode

PATIENCE = timedelta(minutes=5)
"""How long a process waits for the others within a batch."""

_BETWEEN_BATCHES = timedelta(days=30)  # the leader may read a large store, or wait for a slow one


class Order(NamedTuple):
    """A batch to run."""

    rows: list[Any]
    model_layers: tuple[int, ...]
    mode: Mode
    max_new_tokens: int


class Team:
    """The processes that share a model, as one of them sees it.

    Parameters
    ----------
    device : where this process computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number, self.size = dist.get_rank() + 1, dist.get_world_size()
        """Of this process, counted from 1; and of all."""
        self._talk = dist.new_group(backend="gloo", timeout=_BETWEEN_BATCHES)
        self._is_in_step = False

    @classmethod
    def join(cls) -> Self:
        """Meet the processes that torchrun started beside this one.

        Raises
        ------
        ModelError
            If it started none, or this one has no card of its own, or the others do not come.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ModelError(
                "tensor parallelism needs several processes and there is one: start them with "
                "`torchrun --nproc-per-node N --no-python lenscache extract ... --tensor-parallel`"
            )
        place, device = int(os.environ.get("LOCAL_RANK", "0")), torch.device("cpu")
        if torch.cuda.is_available():
            if place >= torch.cuda.device_count():
                found = f"there are {torch.cuda.device_count()} CUDA devices for more processes"
                raise ModelError(f"{found}: lower --nproc-per-node")
            device = torch.device("cuda", place)
            torch.cuda.set_device(device)
        try:
            if not dist.is_initialized():
                backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
                dist.init_process_group(backend, timeout=PATIENCE, device_id=own)
            return cls(device)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the processes do not meet: {_first_line(error)}; start them with torchrun"
            ) from error

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that says what to run."""
        return self.number == 1

    def agree(self, error: Exception | None) -> None:
        """Go on if no process has met an error.

        Raises
        ------
        Exception
            The error given.
        ModelError
            If it is another process that has one.
        """
        found: list[str | None] = [None] * self.size
        own = None if error is None else _first_line(error)
        with self._same_fate("while the model was loaded"):
            dist.all_gather_object(found, own, group=self._talk)
        if error is not None:
            raise error
        for number, message in enumerate(found, start=1):
            if message is not None:
                who = f"process {number} of {self.size}"
                raise ModelError(f"{who} cannot load the model: {message}")

    @contextmanager
    def leading(self) -> Iterator[None]:
        """As the leader: batches may come while this is open; the other processes end with it."""
        try:
            yield
        finally:
            if not self._is_in_step:  # after an error within a batch nobody is listening
                with contextlib.suppress(RuntimeError):
                    self._tell(None)
                    dist.destroy_process_group()

    def orders(self) -> Iterator[Order]:
        """As one of the others: the batches to run, until there are no more."""
        while (order := self._hear()) is not None:
            yield order
        dist.destroy_process_group()

    def _hear(self) -> Order | None:
        with self._same_fate("between two batches"):
            return self._tell(None)

    @contextmanager
    def step(self, order: Order) -> Iterator[None]:
        """Run a batch in every process; the leader's order is what the others receive.

        Raises
        ------
        ModelError
            If the memory of a device is full, or another process is gone.
        """
        if self.is_leader:
            with self._same_fate("between two batches"):
                self._tell(order)
        self._is_in_step = True
        with self._same_fate("in the middle of a batch"):
            yield
        self._is_in_step = False

    def check_in_step(self, *_: Any) -> None:
        """Before every forward pass: alone, it would wait for the others for ever.

        Raises
        ------
        ModelError
            If the others are not at it.
        """
        if not self._is_in_step:
            raise ModelError(
                "a model that several processes share runs only in `lenscache extract` and "
                "`lenscache plan`: load it without tensor parallelism, with --device-map auto if "
                "it is large"
            )

    def share(self, tokens: torch.Tensor) -> torch.Tensor:
        """The leader's tokens: logits agree to rounding only, and tokens must be the same."""
        dist.broadcast(tokens, src=0)
        return tokens

    def _tell(self, order: Order | None) -> Order | None:
        said = [order]
        dist.broadcast_object_list(said, src=0, group=self._talk, device=torch.device("cpu"))
        return said[0]

    @contextmanager
    def _same_fate(self, when: str) -> Iterator[None]:
        who = f"process {self.number} of {self.size}"
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{who} has no memory left on {self.device}: lower --batch-size or --max-new-tokens"
            ) from error
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            why = f"{who} lost another one {when}: what that one says is the cause"
            raise ModelError(why) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether a process is gone or does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
