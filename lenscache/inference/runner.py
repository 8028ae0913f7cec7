"""Rows through the model: token ids in, pooled activations and completions out.

    rows --left-padded batches, by length--> prefill (prompt phase) --> tokens (completion phase)
         --copied to the host while the next batch runs--> RowResult

One prefill serves both phases: the hooks pool the prompt positions on the first forward pass and
each generated token as it is fed back. The last token of a completion and an end-of-sequence token
are not fed back: a completion of k tokens has k - 1 pooled positions, or k if the sequence ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.errors import (
    ModelError,
    NonFiniteError,
    PromptTooLongError,
    UnsupportedModelError,
    first_line,
)
from lenscache.inference.batches import DEFAULT_LIMITS, BatchLimits, batch_sizes, full_sizes
from lenscache.inference.capture import Capture
from lenscache.inference.decoding import Decoding, Growing, Replayed, model_inputs
from lenscache.inference.hooks import check_not_compiled
from lenscache.inference.recordings import Recordings
from lenscache.inference.sampling import row_uniforms, sample_tokens
from lenscache.inference.to_host import HostCopies
from lenscache.memory import is_out_of_memory
from lenscache.model.loading import LoadedModel
from lenscache.terms import Mode, Phase, Pooling

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""How a forward pass fails that is asked for what its model cannot do."""
_SAMPLE, _END = -1, -2  # no token ids
_KEPT_SHARE = 0.75  # ended rows leave once so few go on: the cache is copied each time
_STEPS_BETWEEN_LOOKS = 4  # on a GPU, where asking who has ended makes it wait for the answer
_SAME = 0.05
"""Relative error below which a recorded step does what the model does; a wrong one is off by 1."""


@dataclass(frozen=True)
class Row:
    """One prompt to run."""

    token_ids: Sequence[int]
    sampling_seed: int = 0
    temperature: float = 1.0
    completion_ids: tuple[int, ...] | None = None
    """A completion to follow instead of sampling one; None to sample."""


class RowResult(NamedTuple):
    """What the model did with one row."""

    pooled: dict[Phase, NDArray[np.float32]]
    """(model layer, hidden) by phase; NaN throughout if the phase had no pooled position."""
    completion_ids: list[int]
    """Generated tokens without the end-of-sequence token."""
    n_completion_tokens: int
    """Generated tokens that were fed back, hence pooled."""


class Runner:
    """Runs rows in batches and pools what the blocks put out.

    Parameters
    ----------
    loaded : the model.
    model_layers : blocks to capture.
    mode : phases to pool; "prompt" generates nothing and stops after the deepest captured block.
    max_new_tokens : tokens to generate a row, at most.
    pooling, pool_first_position : how and over which prompt positions to pool.
    batch_size : rows of a batch, where it has no other limits.
    limits : of a batch. Its rows are halved, for good, whenever the device runs out of memory.
    replay : whether to decode in fixed tensors, recorded as a CUDA graph; None: if there is CUDA.

    Raises
    ------
    UnsupportedModelError
        If torch has compiled the model, so that hooks would not be called.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        model_layers: Sequence[int],
        *,
        mode: Mode = "combined",
        max_new_tokens: int = 20,
        pooling: Pooling = "mean",
        pool_first_position: bool = False,
        batch_size: int = DEFAULT_LIMITS.rows,
        limits: BatchLimits | None = None,
        replay: bool | None = None,
    ) -> None:
        check_not_compiled(loaded.model)
        self.loaded, self.model_layers = loaded, model_layers
        self.mode, self.max_new_tokens = mode, max_new_tokens
        self.pooling, self.pool_first_position = pooling, pool_first_position
        self.limits, self.out_of_memory = limits or BatchLimits(batch_size), 0
        self.tokens_run = 0
        """Tokens put through the model so far, without padding."""
        on_one_gpu = loaded.device.type == "cuda" and loaded.is_whole
        self.recordings = Recordings(loaded, is_on=on_one_gpu if replay is None else replay)
        self._has_given_up = False
        """Whether the recorded steps were given up for the batch that is tried."""
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._capture = self._new_capture()
        self._eos = torch.tensor(sorted(loaded.eos_ids), dtype=torch.long, device=loaded.device)

    @property
    def n_passes(self) -> int:
        """Forward passes of a batch, at most: the prompts, and every token that is fed back."""
        return 1 if self.mode == "prompt" else max(1, self.max_new_tokens)

    def run(
        self,
        rows: Sequence[Row],
        *,
        on_rows: Callable[[int], None] = lambda _: None,
        replay: bool = True,
    ) -> list[RowResult]:
        """Run rows, shortest first so that little is padding; results come in the order of `rows`.

        Parameters
        ----------
        on_rows : called after every batch with the number of its rows.
        replay : whether these rows may use a recorded step, if the runner has any.

        Raises
        ------
        ModelError
            If not even one row fits the device's memory.
        PromptTooLongError
            If a row has more positions than the model.
        NonFiniteError
            If logits are NaN, but not the activations.
        """
        self._check_lengths(rows)
        results: dict[int, RowResult] = {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].token_ids))
        running: tuple[list[int], _Pending] | None = None
        done, sizes = 0, self._batch_sizes(rows, order)
        while done < len(rows) or running is not None:
            chosen = order[done : done + sizes[0]] if sizes else []
            begun: tuple[list[int], _Pending] | None = None
            if chosen:
                try:
                    begun = chosen, self.run_batch([rows[row] for row in chosen], replay)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._make_room(error, len(chosen))
                    sizes = self._batch_sizes(rows, order[done:])
                    continue
                sizes, self._has_given_up = sizes[1:], False
            # The host takes in a batch while the device is at the next one.
            if running is not None:
                numbers, pending = running
                found = pending.results()
                results.update(zip(numbers, found, strict=True))
                self.tokens_run += sum(len(rows[number].token_ids) for number in numbers)
                self.tokens_run += sum(result.n_completion_tokens for result in found)
                on_rows(len(numbers))
            running = begun
            done += len(chosen)
        return [results[row] for row in range(len(rows))]

    def text_of(self, result: RowResult) -> str:
        """What a row wrote."""
        ids = result.completion_ids
        return str(self.loaded.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _check_lengths(self, rows: Sequence[Row]) -> None:
        longest = max((len(row.token_ids) for row in rows), default=0)
        most = self.loaded.max_positions
        if most is not None and longest + self.n_passes - 1 > most:
            raise PromptTooLongError(
                f"a prompt of {longest} tokens and {self.n_passes - 1} more are to be run, "
                f"{self.loaded.id} takes {most} positions: cut the prompt or ask for fewer"
            )

    def _batch_sizes(self, rows: Sequence[Row], order: Sequence[int]) -> list[int]:
        lengths = [len(rows[row].token_ids) for row in order]
        return batch_sizes(lengths, self.limits, new_tokens=self.n_passes - 1)

    def _make_room(self, error: Exception, n_rows: int) -> None:
        """Give up recorded steps and their caches, once a batch; else halve the batch."""
        gives_up = bool(self.recordings.by_shape) and not self._has_given_up
        self._has_given_up = gives_up
        self.recordings.by_shape.clear()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        if gives_up:
            return
        if n_rows == 1:
            raise ModelError(
                f"one row does not fit the memory of {self.loaded.device}: use a smaller dtype, "
                "fewer new tokens or another device"
            ) from error
        self.limits = self.limits._replace(rows=-(-n_rows // 2))
        self.out_of_memory += 1

    def _new_capture(self) -> Capture:
        return Capture(self.loaded.blocks, self.model_layers, pooling=self.pooling)

    def run_batch(self, rows: Sequence[Row], replay: bool = True) -> _Pending:
        """Begin one batch; with a recorded step, if there is one for its shape."""
        fixed = None
        if replay and self.mode != "prompt" and self._comes_again(len(rows)):
            length = max(len(row.token_ids) for row in rows) + self.max_new_tokens
            fixed = self.recordings.find(len(rows), length, self._new_capture())
        return self._run_batch(rows) if fixed is None else self._run_fixed(rows, fixed)

    def _comes_again(self, n_rows: int) -> bool:
        """Whether many batches have this size, so that a recorded step is worth its making."""
        sizes = full_sizes(self.limits.rows)
        return n_rows in (sizes if self.limits.positions is not None else sizes[:1])

    def _run_fixed(self, rows: Sequence[Row], fixed: Replayed) -> _Pending:
        """A batch in fixed tensors; with a growing cache if that fails, or is not the same.

        The first batch of every shape is run both ways: a recorded step that repeats what it should
        compute looks like any other.
        """
        try:
            pending = self._run_batch(rows, fixed)
            self.recordings.bound()
            if fixed.is_proven:
                return pending
            results = pending.results()
            followed = [
                replace(row, completion_ids=tuple(result.completion_ids))
                for row, result in zip(rows, results, strict=True)
            ]
            error = _typical_error(results, self._run_batch(followed).results())
            if error < _SAME:
                fixed.is_proven = fixed.has_replayed
                return pending
            why = f"the completions of a recorded step are off by {error:.2g}"
        except (UnsupportedModelError, *FAILURES) as failure:
            if is_out_of_memory(failure):
                raise
            why = first_line(failure)
        self.recordings.stop(why)
        return self._run_batch(rows)

    @torch.inference_mode()
    def _run_batch(self, rows: Sequence[Row], fixed: Replayed | None = None) -> _Pending:
        token_ids, mask = _left_pad([row.token_ids for row in rows], self.loaded.device)
        positions = (mask.long().cumsum(dim=1) - 1).clamp_(min=0)
        pooled: dict[Phase, torch.Tensor] = {}
        counts: dict[Phase, torch.Tensor] = {}
        decoding: Decoding = fixed or Growing(self.loaded, self._new_capture())
        with self._capture as capture:
            capture.start(len(rows))
            if self.mode != "completion":
                capture.count(mask if self.pool_first_position else mask & (positions > 0))
            if self.mode == "prompt":
                inputs = model_inputs(self.loaded, token_ids, mask, positions)
                capture.run_to_deepest(self.loaded.model, **inputs, use_cache=False)
            else:
                logits = decoding.prefill(token_ids, mask, positions)
            if self.mode != "completion":
                pooled["prompt"], counts["prompt"] = capture.pooled(), capture.counts
        if self.mode == "prompt":
            return _Pending(HostCopies(self._streams), pooled, counts, len(rows))
        with decoding.capture as capture:
            written, lost = self._generate(decoding, rows, logits)
            pooled["completion"] = self._pooled_or_nan(capture, len(rows))
            counts["completion"] = capture.counts.clone()
        copies = HostCopies(self._streams)
        return _Pending(copies, pooled, counts, len(rows), written, lost, self.loaded.dtype)

    def _generate(
        self, decoding: Decoding, rows: Sequence[Row], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample and feed back, one token a row and step, until every row has ended.

        Returns
        -------
        (batch, max_new_tokens) tokens, then `_END`; and whether a live row's logits were NaN.
        """
        device, steps = self.loaded.device, self.max_new_tokens
        seeds = np.array([row.sampling_seed for row in rows], np.uint64)
        uniform = torch.from_numpy(row_uniforms(seeds, steps)).to(device)
        temperature = torch.tensor([row.temperature for row in rows], device=device)
        given, here = self._given(rows), torch.arange(len(rows), device=device)
        written = torch.full((len(rows), steps), _END, dtype=torch.long, device=device)
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        lost = torch.zeros((), dtype=torch.bool, device=device)
        every = _STEPS_BETWEEN_LOOKS if device.type == "cuda" else 1
        for step in range(steps):
            lost = lost | (logits.isnan().any(dim=1) & alive).any()
            tokens = sample_tokens(logits, temperature, uniform[:, step])
            if given is not None:
                tokens = torch.where(given[:, step] >= 0, given[:, step], tokens)
                alive = alive & (given[:, step] != _END)
            alive = alive & ~torch.isin(tokens, self._eos)
            written[here, step] = torch.where(alive, tokens, _END)
            if step == steps - 1:
                break
            if step % every == 0:
                going = int(alive.sum())
                if not going:
                    break
                if decoding.can_drop_rows and going <= _KEPT_SHARE * len(alive):
                    kept = alive.nonzero()[:, 0]
                    decoding.drop(kept)
                    uniform, temperature, here = uniform[kept], temperature[kept], here[kept]
                    tokens, alive = tokens[kept], alive[kept]
                    given = None if given is None else given[kept]
            logits = decoding.step(tokens, alive)
        return written, lost

    def _given(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """(batch, step) tokens to follow, then `_END`; `_SAMPLE` in rows that are sampled."""
        if all(row.completion_ids is None for row in rows):
            return None
        given = torch.full((len(rows), self.max_new_tokens), _END)
        for number, row in enumerate(rows):
            if (ids := row.completion_ids) is None:
                given[number] = _SAMPLE
            else:
                given[number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return given.to(self.loaded.device)

    def _pooled_or_nan(self, capture: Capture, n_rows: int) -> torch.Tensor:
        if capture.is_empty:
            shape = len(capture.model_layers), n_rows, self.loaded.hidden
            return torch.full(shape, float("nan"), device=self.loaded.device)
        return capture.pooled()


class _Pending:
    """A batch whose results are on their way to the host.

    Parameters
    ----------
    copies : takes everything to the host.
    pooled : (model layer, batch, hidden) by phase.
    counts : (batch,) pooled positions by phase.
    written : (batch, step) tokens of the completions; None in prompt mode.
    lost : whether a live row's logits were NaN.
    dtype : what the model computes in.
    """

    def __init__(
        self,
        copies: HostCopies,
        pooled: dict[Phase, torch.Tensor],
        counts: dict[Phase, torch.Tensor],
        n_rows: int,
        written: torch.Tensor | None = None,
        lost: torch.Tensor | None = None,
        dtype: str = "",
    ) -> None:
        self._copies, self._n_rows, self._dtype = copies, n_rows, dtype
        self._pooled = {phase: copies.copy(vectors) for phase, vectors in pooled.items()}
        self._counts = {phase: copies.copy(count) for phase, count in counts.items()}
        self._written = None if written is None else copies.copy(written)
        self._lost = None if lost is None else copies.copy(lost)

    def results(self) -> list[RowResult]:
        """The results, waited for.

        Raises
        ------
        NonFiniteError
            If logits were NaN, so that samples mean nothing. If a captured block is NaN, too, the
            store says so instead, and in which row.
        """
        self._copies.wait()
        if self._lost is not None and bool(self._lost) and self._is_finite():
            raise NonFiniteError(
                f"the model's logits are NaN in {self._dtype}, so no token can be sampled: compute "
                "in another dtype (--dtype bfloat16 has the range of float32), or extract with "
                "--mode prompt"
            )
        host = {phase: vectors.numpy() for phase, vectors in self._pooled.items()}
        completions = [[]] * self._n_rows if self._written is None else self._written.tolist()
        counts = self._counts.get("completion", torch.zeros(self._n_rows)).tolist()
        return [
            RowResult(
                {phase: vectors[:, i] for phase, vectors in host.items()},
                [token for token in completions[i] if token != _END],
                int(counts[i]),
            )
            for i in range(self._n_rows)
        ]

    def _is_finite(self) -> bool:
        counted = (v[:, self._counts[phase] > 0] for phase, v in self._pooled.items())
        return all(bool(vectors.isfinite().all()) for vectors in counted)


def _typical_error(found: Sequence[RowResult], expected: Sequence[RowResult]) -> float:
    """Median over rows of the completions' relative error; 0 where no row has a completion.

    Of the median: a token that goes to another expert in low precision moves one row far.
    """
    errors = [
        float(np.linalg.norm(one.pooled["completion"] - wanted) / np.linalg.norm(wanted))
        for one, other in zip(found, expected, strict=True)
        if one.n_completion_tokens and (wanted := other.pooled["completion"]).any()
    ]
    return float(np.median(errors)) if errors else 0.0


def _left_pad(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (batch, position), real positions to the right.

    The padding id is 0 whatever the tokenizer says: masked positions are never pooled and never
    attended to, and a tokenizer's padding token is often its end-of-sequence token.
    """
    width = max(len(row) for row in rows)
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        token_ids[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = True
    return token_ids.to(device), mask.to(device)
