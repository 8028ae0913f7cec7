"""Every architecture: batches mean the same as their rows, decoded with a growing cache or with a
recorded step, or the model is refused with a reason."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenscache.extract import ExtractSettings, batch_size, extract
from lenscache.inference import decoding
from lenscache.inference.alone import read_alone
from lenscache.inference.batches import BatchLimits
from lenscache.inference.hooks import residual_stream
from lenscache.inference.runner import Row, RowResult, Runner
from lenscache.live.steering import steer
from lenscache.model.loading import LoadedModel, find_blocks
from tests.lenscache import emulated_graph
from tests.lenscache.architectures import CONFIGS, GROWING, RECORDED, tiny
from tests.packs import small_pack

NEW_TOKENS = 12
LENGTHS = (40, 3, 17, 9)


def rows_of(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(2, 300, n).tolist(), i, 0.5) for i, n in enumerate(lengths)]


def ends_early(loaded: LoadedModel) -> LoadedModel:
    """A copy in which a third of the vocabulary ends a completion."""
    copy = dataclasses.replace(loaded)
    vars(copy)["eos_ids"] = frozenset(range(0, 300, 3))
    return copy


def runner_of(loaded: LoadedModel, **settings: Any) -> Runner:
    given = {"max_new_tokens": NEW_TOKENS, **settings}
    return Runner(loaded, range(loaded.n_layers), **given)


def largest_error(found: Sequence[RowResult], expected: Sequence[RowResult]) -> float:
    """Largest relative error of a vector, over rows, phases and model layers."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        for phase, vectors in one.pooled.items():
            assert np.array_equal(np.isnan(vectors), np.isnan(other.pooled[phase]))
            if not np.isnan(vectors).any():
                distance = np.linalg.norm(vectors - other.pooled[phase], axis=1)
                norm = np.linalg.norm(other.pooled[phase], axis=1)
                worst = max(worst, float((distance / norm).max()))
    return worst


def alone(loaded: LoadedModel, rows: Sequence[Row], found: Sequence[RowResult]) -> list[RowResult]:
    """Each row by itself, following what it wrote."""
    runner = runner_of(loaded, limits=BatchLimits(1), replay=False)
    return [
        runner.run([dataclasses.replace(row, completion_ids=tuple(result.completion_ids))])[0]
        for row, result in zip(rows, found, strict=True)
    ]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_batch_whose_rows_end_early_equals_its_rows_alone(architecture: str) -> None:
    loaded, rows = ends_early(tiny(architecture)), rows_of()
    found = runner_of(loaded, replay=False).run(rows)
    assert largest_error(found, alone(loaded, rows, found)) < 1e-5


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_row_is_read_in_one_pass_as_it_is_decoded(architecture: str) -> None:
    """So that the check of batches seldom has to decode."""
    runner, rows = runner_of(ends_early(tiny(architecture)), replay=False), rows_of()
    found = runner.run(rows)
    read = [
        read_alone(runner, dataclasses.replace(row, completion_ids=tuple(result.completion_ids)))
        for row, result in zip(rows, found, strict=True)
    ]
    pooled = [one._replace(pooled=row.pooled) for one, row in zip(found, read, strict=True)]
    assert largest_error(found, pooled) < 1e-4
    assert max(row.distances.max() for row in read) < 1e-4


@pytest.mark.parametrize("mode", ["combined", "prompt"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_prompts_are_pooled_over_what_every_block_puts_out(architecture: str, mode: Any) -> None:
    """By the model's own account: one row, no padding, all logits asked for."""
    loaded, rows = tiny(architecture), rows_of()
    found = runner_of(loaded, replay=False, mode=mode).run(rows)
    for row, result in zip(rows, found, strict=True):
        seen: list[torch.Tensor] = []
        keep = partial(_keep_output, seen)
        handles = [block.register_forward_hook(keep) for block in loaded.blocks]
        with torch.inference_mode():
            loaded.model(torch.tensor([row.token_ids]))
        for handle in handles:
            handle.remove()
        expected = torch.stack([hidden[0, 1:].mean(dim=0) for hidden in seen]).numpy()
        np.testing.assert_allclose(result.pooled["prompt"], expected, rtol=1e-3, atol=1e-4)


def _keep_output(seen: list[torch.Tensor], _block: object, _inputs: object, output: Any) -> None:
    seen.append(residual_stream(output))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded on the CPU, as they would be on CUDA."""
    monkeypatch.setattr(decoding, "recorder_for", lambda _: emulated_graph.record)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_graph_does_what_a_growing_cache_does_or_is_not_used(architecture: str) -> None:
    loaded, rows = tiny(architecture), rows_of(LENGTHS * 3)
    runner = runner_of(loaded, replay=True)
    error = largest_error(runner.run(rows), runner_of(loaded, replay=False).run(rows))
    assert error < 1e-5
    recorded = [each for each in runner.recordings.by_shape.values() if each.is_proven]
    assert bool(recorded) == (architecture in RECORDED), runner.recordings.why_not
    assert bool(runner.recordings.why_not) == (architecture in GROWING)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("architecture", ["llama", "gemma3-window", "gpt2"])
def test_a_graph_serves_rows_that_end_early(architecture: str) -> None:
    loaded, rows = ends_early(tiny(architecture)), rows_of([9, 11, 12, 14] * 4)
    runner = runner_of(loaded, replay=True)
    found = runner.run(rows)
    assert any(each.has_replayed for each in runner.recordings.by_shape.values())
    assert largest_error(found, alone(loaded, rows, found)) < 1e-5


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("positions", ["all", "prompt", "completion", slice(1, 4)], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gemma3-window"])
def test_a_graph_is_steered_as_a_growing_cache_is(architecture: str, positions: Any) -> None:
    """Only of steps that are all changed alike is one recorded."""
    loaded, rows = tiny(architecture), rows_of([9] * 8)
    runner, growing = (runner_of(loaded, replay=replay) for replay in (True, False))
    with steer(loaded, torch.ones(32), 1, 5.0, positions=positions):
        assert largest_error(runner.run(rows), growing.run(rows)) < 1e-5
    has_replayed = any(each.has_replayed for each in runner.recordings.by_shape.values())
    assert has_replayed == (positions == "all")
    assert largest_error(runner.run(rows), growing.run(rows)) < 1e-5


@pytest.mark.parametrize("fails", ["while it is recorded", "when it is replayed", "by its results"])
def test_a_graph_that_fails_leaves_the_batch_to_a_growing_cache(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def record(step: Any) -> Any:
        if fails == "while it is recorded":
            broken()
        return broken if fails == "when it is replayed" else lambda: None

    monkeypatch.setattr(decoding, "recorder_for", lambda _: record)
    loaded, rows = tiny("llama"), rows_of([9] * 8)
    runner = runner_of(loaded, replay=True)
    found = runner.run(rows)
    wanted = "off by" if fails == "by its results" else "not permitted"
    assert wanted in runner.recordings.why_not
    assert not runner.recordings.by_shape
    assert largest_error(found, runner_of(loaded, replay=False).run(rows)) < 1e-5


@pytest.mark.usefixtures("emulated")
def test_a_graph_is_used_though_hidden_states_were_asked_for_before() -> None:
    """transformers leaves hooks in the model then, which do nothing until they are asked for."""
    model = copy.deepcopy(tiny("llama").model)
    loaded = dataclasses.replace(tiny("llama"), model=model, blocks=list(find_blocks(model)))
    rows = rows_of([9] * 8)
    model(torch.tensor([[5, 6]]), output_hidden_states=True)
    runner = runner_of(loaded, replay=True)
    assert largest_error(runner.run(rows), runner_of(loaded, replay=False).run(rows)) < 1e-5
    assert any(each.has_replayed for each in runner.recordings.by_shape.values())
    # a hook of somebody else is called at every step, and so is the step
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: None)
    other = runner_of(loaded, replay=True)
    other.run(rows)
    handle.remove()
    assert not other.recordings.by_shape


@pytest.mark.usefixtures("emulated")
def test_graphs_give_way_to_others_once_their_caches_are_too_large() -> None:
    runner = runner_of(tiny("llama"), replay=True)
    runner.run(rows_of([9] * 8))
    (one,) = runner.recordings.by_shape.values()
    runner.recordings.most_bytes = one.nbytes * 1.5
    runner.run(rows_of([9] * 4 + [100] * 4))
    assert [each.nbytes > one.nbytes for each in runner.recordings.by_shape.values()] == [True]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("lengths", [[9] * 4, [9] * 4 + [100] * 4], ids=["one", "two"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_out_of_memory_clears_graphs_before_it_makes_batches_smaller(
    error: Exception, lengths: list[int]
) -> None:
    loaded, runner = tiny("llama"), runner_of(tiny("llama"), replay=True)
    runner.run(rows_of(lengths))
    assert len(runner.recordings.by_shape) == len(set(lengths))
    left = [error, error]

    def full(*_: object) -> None:
        if left:
            raise left.pop()

    handle = loaded.model.model.embed_tokens.register_forward_hook(full)
    try:
        runner.recordings._may_record = lambda: True  # type: ignore[method-assign]
        found = runner.run(rows_of([9] * 4))
    finally:
        handle.remove()
    assert not left
    assert runner.out_of_memory == 1  # the second time; the first, recordings made room
    assert len(found) == 4


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("architecture", "times"), [("mamba", 1), ("llama", 0)])
def test_extraction_says_once_why_no_graph_is_used(
    architecture: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "Runner", partial(Runner, replay=True))
    settings, told = ExtractSettings(block_rows=8, max_new_tokens=6), []
    extract(
        tmp_path / "s",
        small_pack(),
        tiny(architecture),
        settings,
        on_progress=lambda progress: told.append(progress.message),
    )
    wanted = "decode steps are not recorded as a CUDA graph, which is slower: no cache of fixed"
    assert sum(message.startswith(wanted) for message in told) == times


def test_the_list_of_models_says_how_each_architecture_decodes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\S+)` \| (recorded|growing)", page, flags=re.MULTILINE))
    wanted = {name: "recorded" if name in RECORDED else "growing" for name in CONFIGS}
    assert listed == wanted
