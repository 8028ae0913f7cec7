"""Rows through the model: token ids in, pooled activations and completions out.

    rows --left-padded batches--> one prefill (prompt phase) --> token by token (completion phase)

One prefill serves both phases: the hooks pool the prompt positions on the first forward pass and each generated token
as it is fed back. The last token of a completion is never fed back, and neither is an end-of-sequence token, so a
completion of k tokens has k - 1 pooled positions, or k if the sequence ended after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lenscache.capture import Capture
from lenscache.errors import ModelError, NonFiniteError
from lenscache.header import Mode, Phase, Pooling
from lenscache.model import LoadedModel
from lenscache.sampling import row_uniforms, sample_tokens

_SAMPLE, _END = -1, -2  # no token ids


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
    mode : phases to pool; in "prompt" mode nothing is generated and nothing past the deepest captured block computed.
    max_new_tokens : tokens to generate a row, at most.
    pooling, pool_first_position : how and over which prompt positions to pool.
    batch_size : rows a forward pass. Halved, for good, whenever the device runs out of memory.
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
        batch_size: int = 4,
    ) -> None:
        self.loaded, self.mode, self.max_new_tokens = loaded, mode, max_new_tokens
        self.pool_first_position, self.batch_size = pool_first_position, batch_size
        self.out_of_memory = 0
        self._lost = False  # whether a live row's logits were NaN
        self._capture = Capture(loaded.blocks, model_layers, pooling=pooling)

    def run(self, rows: Sequence[Row], *, on_rows: Callable[[int], None] = lambda _: None) -> list[RowResult]:
        """Run rows, shortest first so that little is padding; results come in the order of `rows`.

        Parameters
        ----------
        on_rows : called after every batch with the number of its rows.

        Raises
        ------
        ModelError
            If not even one row fits the device's memory.
        """
        results: dict[int, RowResult] = {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].token_ids))
        while len(results) < len(rows):
            chosen = order[len(results) : len(results) + self.batch_size]
            try:
                batch = self._run_batch([rows[row] for row in chosen])
            except torch.OutOfMemoryError as error:
                self._halve(error)
                continue
            results.update(zip(chosen, batch, strict=True))
            on_rows(len(chosen))
        return [results[row] for row in range(len(rows))]

    def _halve(self, error: Exception) -> None:
        if self.batch_size == 1:
            raise ModelError(
                f"one row does not fit the memory of {self.loaded.device}: use a smaller dtype, fewer new tokens or "
                "another device"
            ) from error
        self.batch_size = -(-self.batch_size // 2)
        self.out_of_memory += 1
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _run_batch(self, rows: Sequence[Row]) -> list[RowResult]:
        token_ids, mask = _left_pad([row.token_ids for row in rows], self.loaded.device)
        positions = (mask.long().cumsum(dim=1) - 1).clamp_(min=0)
        inputs = self._inputs(token_ids, mask, positions)
        with self._capture as capture:
            capture.start(len(rows))
            if self.mode != "completion":
                capture.count(mask if self.pool_first_position else mask & (positions > 0))
            if self.mode == "prompt":
                capture.run_to_deepest(self.loaded.model, **inputs, use_cache=False)
                return self._results(rows, {"prompt": capture.pooled()}, [[] for _ in rows], [0] * len(rows))
            output = self.loaded.model(**inputs, use_cache=True)
            pooled: dict[Phase, torch.Tensor] = {"prompt": capture.pooled()} if self.mode == "combined" else {}
            counts: dict[Phase, torch.Tensor] = {"prompt": capture.counts}
            capture.start(len(rows))
            completions = self._generate(capture, rows, output, mask, positions[:, -1])
            pooled["completion"], counts["completion"] = self._pooled_or_nan(capture, len(rows)), capture.counts
        self._check_logits(pooled, counts)
        return self._results(rows, pooled, completions, [int(count) for count in counts["completion"].tolist()])

    def _check_logits(self, pooled: dict[Phase, torch.Tensor], counts: dict[Phase, torch.Tensor]) -> None:
        """NaN logits mean invented tokens. Where a captured block is NaN, too, the store says so, and in which row."""
        lost, self._lost = self._lost, False
        if lost and all(bool(v[:, counts[phase] > 0].isfinite().all()) for phase, v in pooled.items()):
            raise NonFiniteError(
                f"the model's logits are NaN in {self.loaded.dtype}, so no token can be sampled: compute in another "
                "dtype (--dtype bfloat16 has the range of float32), or extract with --mode prompt"
            )

    def _generate(
        self, capture: Capture, rows: Sequence[Row], output: Any, mask: torch.Tensor, last: torch.Tensor
    ) -> list[list[int]]:
        """Sample and feed back, one token a row and step, until every row has ended."""
        device = self.loaded.device
        seeds = np.array([row.sampling_seed for row in rows], np.uint64)
        uniform = torch.from_numpy(row_uniforms(seeds, self.max_new_tokens)).to(device)
        temperature = torch.tensor([row.temperature for row in rows], device=device)
        eos = torch.tensor(sorted(self.loaded.eos_ids), device=device)
        given = self._given(rows)
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        completions: list[list[int]] = [[] for _ in rows]
        for step in range(self.max_new_tokens):
            logits = output.logits[:, -1]
            self._lost |= bool((logits.isnan().any(dim=1) & alive).any())
            tokens = sample_tokens(logits, temperature, uniform[:, step])
            if given is not None:
                tokens = torch.where(given[:, step] >= 0, given[:, step], tokens)
                alive = alive & (given[:, step] != _END)
            alive = alive & ~torch.isin(tokens, eos)
            for row, (token, goes_on) in enumerate(zip(tokens.tolist(), alive.tolist(), strict=True)):
                if goes_on:
                    completions[row].append(token)
            if step == self.max_new_tokens - 1 or not alive.any():
                break
            capture.count(alive.unsqueeze(1))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            inputs = self._inputs(tokens.unsqueeze(1), mask, (last + step + 1).unsqueeze(1))
            output = self.loaded.model(**inputs, past_key_values=output.past_key_values, use_cache=True)
        return completions

    def _given(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """(batch, step) tokens to follow, `_END` after the last and `_SAMPLE` in rows that are sampled."""
        if all(row.completion_ids is None for row in rows):
            return None
        given = torch.full((len(rows), self.max_new_tokens), _END)
        for number, row in enumerate(rows):
            if row.completion_ids is None:
                given[number] = _SAMPLE
            else:
                given[number, : len(row.completion_ids)] = torch.tensor(row.completion_ids, dtype=torch.long)
        return given.to(self.loaded.device)

    def _inputs(self, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": token_ids, "attention_mask": mask.long()}
        if self.loaded.accepts("position_ids"):  # models without it derive positions from the mask
            inputs["position_ids"] = positions
        if self.loaded.accepts("logits_to_keep"):
            inputs["logits_to_keep"] = 1
        return inputs

    def _pooled_or_nan(self, capture: Capture, n_rows: int) -> torch.Tensor:
        if capture.counts.any():
            return capture.pooled()
        return torch.full((len(capture.model_layers), n_rows, self.loaded.hidden), float("nan"))

    @staticmethod
    def _results(
        rows: Sequence[Row], pooled: dict[Phase, torch.Tensor], completions: list[list[int]], counts: list[int]
    ) -> list[RowResult]:
        host = {phase: vectors.cpu().numpy() for phase, vectors in pooled.items()}  # (model layer, batch, hidden)
        return [
            RowResult({phase: vectors[:, i] for phase, vectors in host.items()}, completions[i], counts[i])
            for i in range(len(rows))
        ]


def _left_pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (batch, position), real positions to the right.

    The padding id is 0 whatever the tokenizer says: masked positions are never pooled and never attended to, and a
    tokenizer's padding token is often its end-of-sequence token.
    """
    width = max(len(row) for row in rows)
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        token_ids[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = True
    return token_ids.to(device), mask.to(device)
