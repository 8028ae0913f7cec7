"""What runs in a worker of Ray: a model, and the request laid out for it.

Worker.lay_out()        --> rounds, in the store
Worker.do(round, block) --> blocks that are written by now
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

import torch

from lenscache.extract.extraction import Extraction, lay_out
from lenscache.extract.request import Request
from lenscache.extract.round import RoundShape
from lenscache.extract.settings import ExtractProgress, ExtractReport
from lenscache.model.loading import LoadedModel

BlockName = tuple[int, int]
"""Number of the round, and a block of it."""


class Done(NamedTuple):
    """What a worker answers when a block is through its model."""

    written: list[BlockName]
    """Blocks that are in the store now; mostly one before."""
    report: ExtractReport
    """Of everything since the worker began."""
    life: str
    """Another one after the worker died and was begun again."""


class WorkerProgress(NamedTuple):
    """Where a worker stands."""

    rows_run: int
    tokens_run: int
    memory_bytes: int | None
    messages: list[str]


class Worker:
    """The actor: a model and a request laid out; `progress` answers while a block is under way."""

    def __init__(
        self, request: Request, load: Callable[[], LoadedModel], threads: int, on_gpu: bool
    ) -> None:
        self._request, self._load, self._threads, self._on_gpu = request, load, threads, on_gpu
        self._loaded: LoadedModel | None = None
        self._extraction: Extraction | None = None
        self._last = ExtractProgress(0, 0, 0, 0)
        self._messages: list[str] = []
        self._life = uuid.uuid4().hex

    def load(self) -> None:
        """Get the model: not in the constructor, whose errors reach nobody as they were raised."""
        self._model()

    def lay_out(self) -> tuple[list[RoundShape], ExtractReport]:
        """The rounds of the request, in the store if they were not."""
        extraction = self._laid_out()
        return extraction.shapes, extraction.report

    def do(self, number: int, block: int) -> Done:
        """Extract a block."""
        return self._done(self._laid_out().do(number, block))

    def flush(self) -> Done:
        """Wait for what is being written."""
        return self._done(self._laid_out().flush())

    def finish(self, number: int) -> Done:
        """Verify a round."""
        self._laid_out().finish(number)
        return self._done([])

    def progress(self) -> WorkerProgress:
        """Where it stands; every message is told once."""
        told, self._messages = self._messages, []
        last = self._last
        return WorkerProgress(last.rows_run, last.tokens_run, last.memory_bytes, told)

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            if not self._on_gpu:
                torch.set_num_threads(self._threads)
            self._loaded = self._load()
        return self._loaded

    def _laid_out(self) -> Extraction:
        if self._extraction is None:  # a worker that was begun again between two blocks
            self._extraction = lay_out(self._request, self._model(), self._note)
        return self._extraction

    def _note(self, progress: ExtractProgress) -> None:
        self._last = progress
        if progress.message:
            self._messages.append(progress.message)

    def _done(self, written: list[BlockName]) -> Done:
        extraction = self._laid_out()
        extraction.report.batch_size = extraction.runner.limits.rows
        return Done(written, extraction.report, self._life)
