"""Hooks and pooling: the residual stream after each block, over exactly the counted positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from lenscache.errors import UnsupportedModelError
from lenscache.inference.capture import Capture
from lenscache.model.loading import LoadedModel
from lenscache.terms import Pooling
from tests.models import ARCHITECTURES, tiny_model

POOLINGS: tuple[Pooling, ...] = ("mean", "max", "last")
TOKENS = torch.tensor([[5, 17, 240, 33, 98, 7]])


def reference(
    hidden: NDArray[np.float32], mask: NDArray[np.bool_], pooling: Pooling
) -> NDArray[np.float64]:
    """Pooling in plain numpy, (batch, hidden); NaN where nothing is counted."""
    pools: dict[str, Callable[[Any], Any]] = {
        "mean": lambda v: v.mean(0),
        "max": lambda v: v.max(0),
        "last": lambda v: v[-1],
    }
    pool = pools[pooling]
    nothing = np.full(hidden.shape[2], np.nan)
    return np.stack(
        [
            pool(h[m].astype(np.float64)) if m.any() else nothing
            for h, m in zip(hidden, mask, strict=True)
        ]
    )


def pool(
    hidden: NDArray[np.float32],
    mask: NDArray[np.bool_],
    pooling: Pooling,
    cuts: tuple[int, ...] = (),
) -> Any:
    """What a `Capture` of one block pools when the positions come in one pass, or in several."""
    block = nn.Identity()
    with Capture([block], [0], pooling=pooling) as capture:
        capture.start(len(hidden))
        for start, stop in zip((0, *cuts), (*cuts, hidden.shape[1]), strict=True):
            capture.count(torch.from_numpy(mask[:, start:stop]))
            block(torch.from_numpy(hidden[:, start:stop]))
    assert capture.counts.tolist() == mask.sum(axis=1).tolist()
    return capture.pooled()[0].numpy()


@contextmanager
def counted_calls(loaded: LoadedModel) -> Iterator[Counter[str]]:
    """Count how often each block, and the head, is computed."""
    calls: Counter[str] = Counter()
    modules = {f"block {i}": block for i, block in enumerate(loaded.blocks)}
    modules["head"] = loaded.model.get_output_embeddings()
    handles = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: calls.update([name]))
        for name, module in modules.items()
    ]
    yield calls
    for handle in handles:
        handle.remove()


def n_hooks(loaded: LoadedModel) -> list[int]:
    # transformers may have installed some of its own
    return [len(block._forward_hooks) for block in loaded.blocks]


def final_norm(model: Any) -> nn.Module:
    names = ("norm", "ln_f", "final_layer_norm")
    found: nn.Module = next(
        getattr(model.base_model, name) for name in names if hasattr(model.base_model, name)
    )
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_captured_is_the_residual_stream_after_each_block(architecture: str) -> None:
    loaded = tiny_model(architecture)
    n = TOKENS.shape[1]
    with torch.inference_mode(), Capture(loaded.blocks, range(3)) as capture:
        capture.start(n)
        capture.count(torch.eye(n, dtype=torch.bool))  # row i counts position i alone
        output = loaded.model(TOKENS.expand(n, -1), output_hidden_states=True, use_cache=False)
        pooled = capture.pooled()
        each = torch.arange(n)
        for i in range(2):
            torch.testing.assert_close(
                pooled[i], output.hidden_states[i + 1][each, each], rtol=0, atol=0
            )
        # The last entry of hidden_states is after the final norm, what is captured is before it.
        last = output.hidden_states[-1][each, each]
        assert not torch.allclose(pooled[2], last, rtol=0.01)
        torch.testing.assert_close(final_norm(loaded.model)(pooled[2]), last)


@pytest.mark.parametrize("pooling", POOLINGS)
@given(data=st.data(), batch=st.integers(1, 4), positions=st.integers(1, 7))
def test_pooling_equals_plain_numpy_and_never_sees_padding(
    pooling: Pooling, data: st.DataObject, batch: int, positions: int
) -> None:
    flags = data.draw(
        st.lists(st.booleans(), min_size=batch * positions, max_size=batch * positions)
    )
    mask = np.array(flags).reshape(batch, positions)
    hidden = np.random.default_rng(0).normal(size=(batch, positions, 5)).astype(np.float32)
    hidden[~mask] = np.nan  # whatever stands in the padding
    np.testing.assert_allclose(
        pool(hidden, mask, pooling), reference(hidden, mask, pooling), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@given(mask=st.lists(st.booleans(), min_size=12, max_size=12), cut=st.integers(1, 4))
def test_several_passes_pool_like_one(pooling: Pooling, mask: list[bool], cut: int) -> None:
    counted = np.array(mask).reshape(2, 6)
    hidden = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)
    several = pool(hidden, counted, pooling, cuts=(cut, cut + 1))
    np.testing.assert_allclose(several, pool(hidden, counted, pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_start_forgets_the_phase_before(pooling: Pooling) -> None:
    block = nn.Identity()
    with Capture([block], [0], pooling=pooling) as capture:
        for value in (9.0, 1.0):
            capture.start(1)
            capture.count(torch.ones(1, 2, dtype=torch.bool))
            block(torch.full((1, 2, 3), value))
    assert capture.pooled().tolist() == [[[1.0, 1.0, 1.0]]]


def test_low_precision_is_summed_in_float32() -> None:
    hidden = torch.ones(1, 1000, 1, dtype=torch.bfloat16)  # 256 + 1 is 256 in bfloat16
    block = nn.Identity()
    with Capture([block], [0]) as capture:
        capture.start(1)
        for _ in range(2):
            capture.count(torch.ones(1, 1000, dtype=torch.bool))
            block(hidden)
    assert capture.pooled().dtype == torch.float32
    assert capture.pooled().item() == 1.0


def test_blocks_that_return_tuples_are_read() -> None:
    class TupleBlock(nn.Module):
        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
            return hidden, None

    block = TupleBlock()
    with Capture([block], [0]) as capture:
        capture.start(1)
        capture.count(torch.ones(1, 1, dtype=torch.bool))
        block(torch.tensor([[[2.0, 3.0]]]))
    assert capture.pooled().tolist() == [[[2.0, 3.0]]]


def test_pooled_comes_in_the_order_asked_for() -> None:
    blocks = [nn.Identity(), nn.Identity()]
    with Capture(blocks, [1, 0]) as capture:
        capture.start(1)
        capture.count(torch.ones(1, 1, dtype=torch.bool))
        for value, block in enumerate(blocks):
            block(torch.full((1, 1, 1), float(value)))
    assert capture.pooled().flatten().tolist() == [1.0, 0.0]


def test_hooks_are_removed_after_an_exception() -> None:
    loaded, during = tiny_model(), []
    before = n_hooks(loaded)

    def fail_inside() -> None:
        with Capture(loaded.blocks, [0, 2]):
            during.extend(n_hooks(loaded))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert during == [before[0] + 1, before[1], before[2] + 1]
    assert n_hooks(loaded) == before


def test_run_to_deepest_removes_its_hook_when_the_model_fails() -> None:
    loaded = tiny_model()
    before = n_hooks(loaded)
    with Capture(loaded.blocks, [1]) as capture, pytest.raises(IndexError, match="out of range"):
        capture.run_to_deepest(loaded.model, input_ids=torch.tensor([[10_000]]))
    assert n_hooks(loaded) == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("deepest", [0, 1, 2])
def test_run_to_deepest_computes_nothing_past_the_deepest_block(
    architecture: str, deepest: int
) -> None:
    loaded = tiny_model(architecture)
    with counted_calls(loaded) as calls, Capture(loaded.blocks, sorted({0, deepest})) as capture:
        pooled = []
        for run in (capture.run_to_deepest, lambda model, **inputs: model(**inputs)):
            calls.clear()
            capture.start(1)
            capture.count(torch.ones_like(TOKENS, dtype=torch.bool))
            with torch.inference_mode():
                run(loaded.model, input_ids=TOKENS, use_cache=False)
            pooled.append(capture.pooled())
            if run == capture.run_to_deepest:
                assert calls == Counter(f"block {i}" for i in range(deepest + 1))
    assert calls["head"] == 1  # the whole model, for comparison
    torch.testing.assert_close(pooled[0], pooled[1], rtol=0, atol=0)


def test_a_block_that_runs_for_some_positions_alone_is_refused() -> None:
    """Else the ones that ran would be taken for all."""
    block = nn.Identity()
    with Capture([block], [0]) as capture:
        capture.start(2)
        capture.count(torch.ones(2, 5, dtype=torch.bool))
        with pytest.raises(UnsupportedModelError, match="block 0 runs for 1 of 5 positions"):
            block(torch.zeros(2, 1, 4))
