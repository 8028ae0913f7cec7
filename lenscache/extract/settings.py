"""What an extraction is asked for, and what it tells while it runs and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lenscache.errors import PlanError
from lenscache.extract.partitions import Partition
from lenscache.terms import Mode, Pooling, StoreDtype


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract. All of it is part of the store's identity, except `samples`, `batch_size`,
    `block_rows` and `partition`."""

    mode: Mode = "combined"
    """Phases to pool: "prompt", "completion", or both in one pass."""
    max_new_tokens: int = 20
    """Tokens to generate a row, at most; at least 2, since the last one is never fed back."""
    max_prompt_tokens: int | None = None
    """Cut longer prompts to their first so many tokens; None for what the model's positions leave
    room for."""
    model_layers: tuple[int, ...] | None = None
    """Transformer blocks to store; None for all."""
    pooling: Pooling = "mean"
    pool_first_position: bool = False
    """Whether the first position of a prompt is pooled: often an attention sink of huge norm."""
    store_dtype: StoreDtype = "bfloat16"
    seed: int = 0
    samples: int | None = None
    """Extract only the first so many prompts of each concept; None for all. A top-up adds more."""
    batch_size: int | Literal["auto"] = 4
    """Rows a forward pass; "auto" tries what fits and pays."""
    block_rows: int | None = None
    """Rows written and marked complete as one unit; None for those of the round, or about 256."""
    partition: Partition | None = None
    """Which share of the blocks to extract; None for all."""

    def __post_init__(self) -> None:
        if (self.batch_size != "auto" and self.batch_size < 1) or (
            self.block_rows is not None and self.block_rows < 1
        ):
            raise PlanError(
                f"batch_size {self.batch_size} and block_rows {self.block_rows} must be 1 or more"
            )
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise PlanError(f"max_prompt_tokens is {self.max_prompt_tokens}, expected 1 or more")
        if self.mode != "prompt" and self.max_new_tokens < 2:
            raise PlanError(
                f"max_new_tokens is {self.max_new_tokens}, expected 2 or more (or mode prompt)"
            )


class ExtractProgress(NamedTuple):
    """Where a run stands."""

    level: int
    rows_done: int
    """Rows of this level that are extracted."""
    rows_total: int
    rows_run: int
    """Of those, rows this run extracted."""
    message: str = ""
    """Something to tell the user once."""
    concepts_done: int = 0
    """Concepts of this level whose every prompt is extracted."""
    concepts_total: int = 0
    tokens_run: int = 0
    """Tokens that this run put through the model, of prompts and completions."""
    memory_bytes: int | None = None
    """Held now: on the GPU, or by this process; None where the system does not say."""


@dataclass
class ExtractReport:
    """What a run did."""

    rows: int = 0
    """Rows the requested levels hold."""
    rows_run: int = 0
    """Rows that this run ran the model for."""
    rows_reused: int = 0
    """Rows that this run copied from other stores."""
    exhausted_concepts: list[str] = field(default_factory=list)
    """Concepts of a top-up for which there was nothing left to add."""
    repaired_blocks: list[str] = field(default_factory=list)
    batch_size: int = 0
    """Rows a forward pass at the end of the run."""
    max_relative_error: float = 0.0
    """Largest difference found between batched rows and the same rows one by one."""
    cut_prompts: int = 0
    """Prompts longer than the model takes, which were cut: see `samples/n_cut_tokens`."""
    unfinished_rounds: list[str] = field(default_factory=list)
    """Rounds of which other partitions have blocks to do."""
    elapsed_s: float = 0.0
    seconds_to_start: float = 0.0
    """Of those, until the first row ran: laying out rounds, and choosing a batch size."""
    levels: list[int] = field(default_factory=list)


OnProgress = Callable[[ExtractProgress], None]
