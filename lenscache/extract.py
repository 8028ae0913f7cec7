"""Stage one: plan -> model -> store, resumable.

    pack --plan_samples--> rows --Runner, a block at a time--> Block --writer thread--> Round.write_block

A block is the unit of loss: whatever happens, the blocks marked complete stay, and the same call continues after them.
For one device, dtype and batch size the result is the same, byte for byte, as that of an uninterrupted run, because
the batches of a block depend on nothing outside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts import ConceptPack
from lenscache.errors import (
    BatchMismatchError,
    DiskSpaceError,
    PlanError,
    PromptTooLongError,
    StoreDamagedError,
)
from lenscache.header import Mode, Phase, Pooling, StoreDtype, StoreHeader
from lenscache.layout import DEFAULT_BLOCK_ROWS
from lenscache.model import LoadedModel
from lenscache.prompts import SamplePlan, plan_samples
from lenscache.rounds import Block, Round
from lenscache.runner import Row, RowResult, Runner
from lenscache.store import create_store

VERIFIED_ROWS = 8
"""Rows of a round that are extracted again one by one at its end."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest relative error between a row in a batch and the same row alone, by the dtype the model computes in."""

_ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # what storing a value may add
COMPRESSED_SHARE = 0.75
"""Of the raw size of a bfloat16 store; 0.70 was measured, so there is room to spare."""


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract. Everything but `batch_size` and `block_rows` is part of the store's identity."""

    mode: Mode = "combined"
    """Phases to pool: "prompt", "completion", or both in one pass."""
    max_new_tokens: int = 20
    """Tokens to generate a row, at most; at least 2, since the last one is never fed back."""
    model_layers: tuple[int, ...] | None = None
    """Transformer blocks to store; None for all."""
    pooling: Pooling = "mean"
    pool_first_position: bool = False
    """Whether the first position of a prompt is pooled: in many models it is an attention sink of outsized norm."""
    store_dtype: StoreDtype = "bfloat16"
    seed: int = 0
    batch_size: int = 4
    """Rows a forward pass."""
    block_rows: int = DEFAULT_BLOCK_ROWS
    """Rows written, and marked complete, as one unit."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.block_rows < 1:
            raise PlanError(f"batch_size {self.batch_size} and block_rows {self.block_rows} must be 1 or more")
        if self.mode != "prompt" and self.max_new_tokens < 2:
            raise PlanError(f"max_new_tokens is {self.max_new_tokens}, expected 2 or more (or mode prompt)")


class ExtractProgress(NamedTuple):
    """Where a run stands."""

    layer: int
    rows_done: int
    """Rows of this layer that are extracted."""
    rows_total: int
    rows_run: int
    """Of those, rows this run extracted."""
    message: str = ""
    """Something to tell the user once."""


@dataclass
class ExtractReport:
    """What a run did."""

    rows: int = 0
    """Rows the requested layers hold."""
    rows_run: int = 0
    """Rows extracted by this run; the others were in the store."""
    repaired_blocks: list[str] = field(default_factory=list)
    batch_size: int = 0
    """Rows a forward pass at the end of the run."""
    max_relative_error: float = 0.0
    """Largest difference found between batched rows and the same rows one by one."""
    elapsed_s: float = 0.0
    layers: list[int] = field(default_factory=list)


OnProgress = Callable[[ExtractProgress], None]


def extract(
    path: str | Path,
    pack: ConceptPack,
    loaded: LoadedModel,
    settings: ExtractSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract the activations of a pack's layers into the store at `path`, or continue doing so.

    Parameters
    ----------
    path : where the store is or shall be.
    layers : layers of abstraction; None for all of the pack.
    limit : the first `limit` concepts of each layer only.
    on_progress : called after every batch.

    Raises
    ------
    StoreMismatchError
        If the store was written with another model, tokenizer, pack, dtype or setting.
    DiskSpaceError
        If the disk cannot hold what is still to be extracted; nothing was started.
    NonFiniteError, BatchMismatchError
        If the model produced what must not be stored. Complete blocks are kept.
    """
    settings = settings or ExtractSettings()
    header = make_header(loaded, pack, settings)
    plans = {n: plan_samples(pack, [n], seed=settings.seed, limit=limit) for n in (layers or pack.layers)}
    token_ids = {n: tokenize(loaded, plan.texts, settings) for n, plan in plans.items()}
    _check_disk_space(path, header, {n: len(plan) for n, plan in plans.items()})
    store = create_store(path, header, pack)
    report = ExtractReport(batch_size=settings.batch_size, layers=list(plans))
    runner = Runner(
        loaded, header.model_layers, mode=settings.mode, max_new_tokens=settings.max_new_tokens,
        pooling=settings.pooling, pool_first_position=settings.pool_first_position, batch_size=settings.batch_size,
    )  # fmt: skip
    start = time.perf_counter()
    # All rounds are laid out first: one that does not fit the store must not show after hours of extracting another.
    rounds = [
        store.create_round(
            n, 0, plan,
            keys=sample_keys(header, plan),
            n_prompt_tokens=np.array([len(ids) for ids in token_ids[n]], np.int32),
            block_rows=settings.block_rows, limit=limit,
        )
        for n, plan in plans.items()
    ]  # fmt: skip
    for target in rounds:
        plan = plans[target.layer]
        rows = [
            Row(ids, int(seed), float(temperature))
            for ids, seed, temperature in zip(
                token_ids[target.layer], plan.sampling_seed, plan.temperature, strict=True
            )
        ]
        _RoundExtraction(target, header, runner, rows, report, on_progress or (lambda _: None)).run()
    report.elapsed_s = time.perf_counter() - start
    report.batch_size = runner.batch_size
    return report


def make_header(loaded: LoadedModel, pack: ConceptPack, settings: ExtractSettings) -> StoreHeader:
    """The identity of the store that these would write."""
    return StoreHeader(
        model_id=loaded.id, model_fingerprint=loaded.fingerprint, model_dtype=loaded.dtype,
        n_layers=loaded.n_layers, hidden=loaded.hidden, tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        pack_name=pack.name, pack_version=pack.version, pack_digest=pack.digest,
        model_layers=loaded.check_model_layers(settings.model_layers), mode=settings.mode,
        max_new_tokens=0 if settings.mode == "prompt" else settings.max_new_tokens, pooling=settings.pooling,
        pool_first_position=settings.pool_first_position, special_tokens=True, store_dtype=settings.store_dtype,
        seed=settings.seed,
    )  # fmt: skip


def sample_keys(header: StoreHeader, plan: SamplePlan) -> NDArray[np.uint8]:
    """(n, 16) digest of each text, its sampling, and everything in the header that its activation depends on."""
    names = ("model_fingerprint", "model_dtype", "tokenizer_fingerprint", "mode", "max_new_tokens", "pooling",
             "pool_first_position", "special_tokens", "store_dtype")  # fmt: skip
    common = json.dumps([getattr(header, name) for name in names]).encode()
    keys = np.empty((len(plan), 16), np.uint8)
    for row, text in enumerate(plan.texts):
        sampling = [] if header.mode == "prompt" else [int(plan.sampling_seed[row]), float(plan.temperature[row])]
        content = common + json.dumps([text, *sampling]).encode()
        keys[row] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
    return keys


class _RoundExtraction:
    """The loop over the blocks of one round."""

    def __init__(
        self,
        target: Round,
        header: StoreHeader,
        runner: Runner,
        rows: Sequence[Row],
        report: ExtractReport,
        on_progress: OnProgress,
    ) -> None:
        self.target, self.header, self.runner, self.rows = target, header, runner, rows
        self.report, self.on_progress = report, on_progress
        self.rows_done = self.rows_run = 0

    def run(self) -> None:
        self.report.rows += len(self.rows)
        missing = self._find_missing_blocks()
        self._tell()
        # One block is encoded and written while the next one runs; no more, so that memory stays flat.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="lenscache-write") as writer:
            writing: Future[None] | None = None
            for block in missing:
                data = self._extract_block(block)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self.target.write_block, block, data)
            if writing is not None:
                writing.result()
        if not self.target.is_complete:
            self._verify()

    def _find_missing_blocks(self) -> list[int]:
        """Blocks to extract. Those found complete are read back first: this run did not write them."""
        missing = []
        for block, marked in enumerate(self.target.complete_blocks()):
            rows = self.target.rows(block)
            try:
                if marked:
                    self.target.verify_block(block)
                    self.rows_done += rows.stop - rows.start
                    continue
            except StoreDamagedError as error:
                self.target.unmark_block(block)
                self.report.repaired_blocks.append(f"{self.target.name} block {block}")
                self._tell(f"damaged, extracting rows {rows.start}-{rows.stop - 1} again: {error}")
            missing.append(block)
        return missing

    def _extract_block(self, block: int) -> Block:
        tries = self.runner.out_of_memory
        results = self.runner.run(self.rows[self.target.rows(block)], on_rows=self._advance)
        if self.runner.out_of_memory > tries:
            self._tell(f"out of memory: going on with batches of {self.runner.batch_size}")
        return self._to_block(results)

    def _to_block(self, results: Sequence[RowResult]) -> Block:
        activations: dict[tuple[Phase, int], NDArray[Any]] = {}
        for phase in self.header.phases:
            stacked = np.stack([result.pooled[phase] for result in results], axis=1)  # (model layer, row, hidden)
            activations.update({(phase, i): stacked[k] for k, i in enumerate(self.header.model_layers)})
        return Block(
            activations,
            completion=[_decode(self.runner.loaded, result.completion_ids) for result in results],
            n_completion_tokens=np.array([result.n_completion_tokens for result in results], np.int32),
        )

    def _verify(self) -> None:
        """Run some rows again, together and one by one; record the largest error, and that the round is done.

        A row alone is made to follow the completion that it wrote in the batch: in low precision a batch may tip a
        sampled token, and what follows is then another text, which says nothing about the activations.
        """
        n = len(self.rows)
        rng = np.random.default_rng([self.header.seed, self.target.layer, self.target.index])
        chosen = sorted(rng.choice(n, size=min(VERIFIED_ROWS, n), replace=False).tolist())
        stored_texts = self.target.samples().completion
        errors = dict.fromkeys(self.header.model_layers, 0.0)
        other_completions = 0
        for row, together in zip(chosen, self.runner.run([self.rows[row] for row in chosen]), strict=True):
            followed = replace(self.rows[row], completion_ids=tuple(together.completion_ids))
            alone = self.runner.run([followed])[0]
            same_text = _decode(self.runner.loaded, together.completion_ids) == stored_texts[row]
            other_completions += not same_text
            for phase in self.header.phases:
                for number, model_layer in enumerate(self.header.model_layers):
                    vector = together.pooled[phase][number]
                    found = [_relative_error(vector, alone.pooled[phase][number])]
                    if phase == "prompt" or same_text:
                        stored = self.target.read(phase, model_layer, slice(row, row + 1))[0]
                        found.append(_relative_error(stored, vector))
                    errors[model_layer] = max(errors[model_layer], *found)
        self._record(chosen, errors, other_completions)

    def _record(self, chosen: Sequence[int], errors: Mapping[int, float], other_completions: int) -> None:
        worst = max(errors, key=lambda model_layer: errors[model_layer])
        self.report.max_relative_error = max(self.report.max_relative_error, errors[worst])
        tolerance = TOLERANCE[self.header.model_dtype] + _ROUNDING[self.header.store_dtype]
        tipped_allowed = len(chosen) if self.header.model_dtype != "float32" else 1
        if errors[worst] > tolerance or other_completions > tipped_allowed:
            raise BatchMismatchError(
                f"{self.target.name}: rows extracted one by one differ from the batched ones by {errors[worst]:.2g} at "
                f"model layer {worst} (allowed {tolerance:.2g}), {other_completions} of {len(chosen)} in their "
                "completion: the round is not marked complete; this model does not batch, extract into another "
                "store with --batch-size 1"
            )
        self.target.update_attributes({
            "verification": {
                "rows": len(chosen), "tolerance": tolerance, "other_completions": other_completions,
                "max_relative_error": {str(model_layer): error for model_layer, error in errors.items()},
            },
            "batch_size": self.runner.batch_size,
        })  # fmt: skip

    def _advance(self, n: int) -> None:
        self.rows_done += n
        self.rows_run += n
        self.report.rows_run += n
        self._tell()

    def _tell(self, message: str = "") -> None:
        self.on_progress(ExtractProgress(self.target.layer, self.rows_done, len(self.rows), self.rows_run, message))


def tokenize(loaded: LoadedModel, texts: Sequence[str], settings: ExtractSettings) -> list[list[int]]:
    """Token ids of each text, special tokens included.

    Raises
    ------
    PlanError
        If a text has no tokens.
    PromptTooLongError
        If a text and its completion do not fit the model's positions.
    """
    token_ids: list[list[int]] = loaded.tokenizer(list(texts), verbose=False)["input_ids"]
    new = 0 if settings.mode == "prompt" else settings.max_new_tokens
    for text, ids in zip(texts, token_ids, strict=True):
        if not ids:
            raise PlanError(f"the prompt {text!r:.60} has no tokens: remove it from the pack")
        if loaded.max_positions is not None and len(ids) + new > loaded.max_positions:
            raise PromptTooLongError(
                f"the prompt {text!r:.60} has {len(ids)} tokens and {new} new ones are asked for, {loaded.id} has "
                f"{loaded.max_positions} positions: shorten the text or lower --max-new-tokens"
            )
    return token_ids


def _decode(loaded: LoadedModel, completion_ids: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(completion_ids, skip_special_tokens=True)) if completion_ids else ""


def estimate_bytes(header: StoreHeader, n_rows: int) -> int:
    """Raw bytes of the activations of `n_rows` rows, before compression."""
    itemsize = 4 if header.store_dtype == "float32" else 2
    return n_rows * len(header.phases) * len(header.model_layers) * header.hidden * itemsize


def _check_disk_space(path: str | Path, header: StoreHeader, rows_of_layer: Mapping[int, int]) -> None:
    if "://" in str(path):
        return  # an object store has no end that we could ask for
    folder = Path(path).absolute()
    # Bytes of other layers say nothing about how much of these is written already.
    files = (file for layer in rows_of_layer for file in (folder / f"layer_{layer}").rglob("*"))
    written = sum(file.stat().st_size for file in files if file.is_file())
    while not folder.exists():
        folder = folder.parent
    share = COMPRESSED_SHARE if header.store_dtype == "bfloat16" else 1.0
    needed = int(estimate_bytes(header, sum(rows_of_layer.values())) * share) - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(
            f"the run needs about {needed / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} GB free: "
            "choose another disk, fewer --model-layers or --mode prompt"
        )


def _relative_error(stored: NDArray[Any], alone: NDArray[Any]) -> float:
    """Norm of the difference over the norm; 0 where both have no pooled position."""
    stored, alone = stored.astype(np.float64), alone.astype(np.float64)
    if np.isnan(stored).all() and np.isnan(alone).all():
        return 0.0
    error = float(np.linalg.norm(stored - alone) / np.linalg.norm(alone))
    return error if np.isfinite(error) else float("inf")
