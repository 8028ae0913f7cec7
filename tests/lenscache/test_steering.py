from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenscache.errors import ModelLayerError, SteeringError
from lenscache.inference.runner import Row, Runner
from lenscache.live.steering import Intervention, steer, steer_all
from lenscache.model.loading import LoadedModel
from tests.models import ARCHITECTURES, SENTENCES, tiny_model

HIDDEN, BLOCK = 32, 1
DIRECTION = np.random.default_rng(3).normal(size=HIDDEN)
UNIT = torch.from_numpy(DIRECTION / np.linalg.norm(DIRECTION)).float()


def residuals(loaded: LoadedModel, model_layer: int, **inputs: Any) -> torch.Tensor:
    """(batch, position, hidden) the output of a block, as later blocks see it."""
    kept: list[torch.Tensor] = []

    def keep(_block: Any, _inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = loaded.blocks[model_layer].register_forward_hook(keep)
    try:
        with torch.no_grad():
            loaded.model(**inputs)
    finally:
        handle.remove()
    return kept[0]


def inputs_of(loaded: LoadedModel, *texts: str) -> dict[str, torch.Tensor]:
    """Left-padded inputs."""
    rows = [loaded.tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    token_ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": token_ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_of_the_block_moves_by_strength_times_deviation(architecture: str) -> None:
    loaded = tiny_model(architecture)
    inputs = inputs_of(loaded, SENTENCES[0])
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded, DIRECTION, BLOCK, 3.0, deviation=0.5):
        after = residuals(loaded, BLOCK, **inputs)
        below = residuals(loaded, BLOCK - 1, **inputs)
    torch.testing.assert_close(after, before + 1.5 * UNIT)
    assert torch.equal(below, residuals(loaded, BLOCK - 1, **inputs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_comes_after_the_block_changes_and_is_as_before_bit_for_bit_when_it_ends(
    architecture: str,
) -> None:
    loaded = tiny_model(architecture)
    inputs = inputs_of(loaded, SENTENCES[0])
    with torch.no_grad():
        before = loaded.model(**inputs).logits
        with steer(loaded, DIRECTION, BLOCK, 5.0):
            during = loaded.model(**inputs).logits
        after = loaded.model(**inputs).logits
    assert not torch.allclose(before, during)
    assert torch.equal(before, after)


def n_hooks(loaded: LoadedModel) -> tuple[int, int]:
    """Of the block and of the model; transformers may have installed some of its own."""
    return len(loaded.blocks[BLOCK]._forward_hooks), len(loaded.model._forward_pre_hooks)


def test_hooks_are_gone_after_an_exception() -> None:
    loaded = tiny_model()
    before = n_hooks(loaded)
    with pytest.raises(ZeroDivisionError), steer(loaded, DIRECTION, BLOCK, 5.0, positions="prompt"):
        _ = 1 / 0
    assert n_hooks(loaded) == before


def test_hooks_are_gone_when_the_model_itself_fails() -> None:
    loaded = tiny_model()
    before = n_hooks(loaded)
    with pytest.raises(IndexError), steer(loaded, DIRECTION, BLOCK, 5.0, positions=slice(1, 3)):
        loaded.model(input_ids=torch.tensor([[10**6]]))
    assert n_hooks(loaded) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_sum_is_computed_in_float32_and_rounded_once(dtype: str) -> None:
    """Sixty-four added to itself in steps of 1/8 would stay where it is in bfloat16, term by
    term."""
    loaded = tiny_model("llama", dtype=dtype)
    inputs = inputs_of(loaded, SENTENCES[1])
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded, DIRECTION, BLOCK, 0.7, deviation=0.9):
        after = residuals(loaded, BLOCK, **inputs)
    assert after.dtype == before.dtype
    assert torch.equal(
        after, (before.float() + float(np.float32(0.7 * 0.9)) * UNIT).to(before.dtype)
    )


def test_no_strength_changes_nothing() -> None:
    loaded = tiny_model()
    inputs = inputs_of(loaded, SENTENCES[0])
    with torch.no_grad(), steer(loaded, DIRECTION, BLOCK, 0.0):
        steered = loaded.model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(steered, loaded.model(**inputs).logits)


@pytest.mark.parametrize("level", [0.0, 2.5])
def test_ablation_brings_the_projection_to_its_level_and_leaves_the_rest(level: float) -> None:
    loaded = tiny_model()
    inputs = inputs_of(loaded, SENTENCES[0])
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded, DIRECTION, BLOCK, ablate=True, level=level):
        after = residuals(loaded, BLOCK, **inputs)
    torch.testing.assert_close(
        after @ UNIT, torch.full_like(after[..., 0], level), atol=1e-5, rtol=0
    )
    rest = torch.eye(HIDDEN) - torch.outer(UNIT, UNIT)
    torch.testing.assert_close(after @ rest, before @ rest, atol=1e-5, rtol=0)


def test_several_directions_add_up_whether_nested_or_at_once() -> None:
    loaded, other = tiny_model(), np.roll(DIRECTION, 5)
    inputs = inputs_of(loaded, SENTENCES[0])
    with torch.no_grad():
        with steer(loaded, DIRECTION, 0, 2.0), steer(loaded, other, 2, -1.0):
            nested = loaded.model(**inputs).logits
        with steer_all(loaded, [Intervention(DIRECTION, 0, 2.0), Intervention(other, 2, -1.0)]):
            at_once = loaded.model(**inputs).logits
    assert torch.equal(nested, at_once)
    before = residuals(loaded, BLOCK, **inputs)
    with steer_all(
        loaded, [Intervention(DIRECTION, BLOCK, 2.0), Intervention(DIRECTION, BLOCK, -2.0)]
    ):
        torch.testing.assert_close(residuals(loaded, BLOCK, **inputs), before)


def test_a_bare_transformers_model_can_be_steered() -> None:
    loaded = tiny_model()
    inputs = inputs_of(loaded, SENTENCES[0])
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded.model, DIRECTION, BLOCK, 1.0):
        torch.testing.assert_close(residuals(loaded, BLOCK, **inputs), before + UNIT)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_slice_counts_real_positions_of_each_row(architecture: str) -> None:
    loaded = tiny_model(architecture)
    inputs = inputs_of(loaded, SENTENCES[0], "Rain.")
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded, DIRECTION, BLOCK, 1.0, positions=slice(1, 3)):
        moved = (residuals(loaded, BLOCK, **inputs) - before).norm(dim=2) > 0.5
    for row, mask in zip(moved, inputs["attention_mask"], strict=True):
        first = int(mask.argmax())
        assert row.nonzero().flatten().tolist() == [first + 1, first + 2]


def passes(loaded: LoadedModel, positions: Any, *, n_new: int = 4) -> list[list[bool]]:
    """For each forward pass of a greedy generation, which positions of its first row were moved."""
    pushed: list[torch.Tensor] = []
    with steer(loaded, DIRECTION, BLOCK, 1.0, positions=positions):
        handle = loaded.blocks[BLOCK].register_forward_hook(
            lambda _b, _i, output: pushed.append(output[0] if isinstance(output, tuple) else output)
        )
        raw: list[torch.Tensor] = []
        first = loaded.blocks[BLOCK].register_forward_hook(
            lambda _b, _i, output: raw.append(
                (output[0] if isinstance(output, tuple) else output).clone()
            ),
            prepend=True,
        )
        inputs = inputs_of(loaded, SENTENCES[0], "Rain.")
        loaded.model.generate(
            **inputs, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=0
        )
        handle.remove()
        first.remove()
    return [((a - b)[0].norm(dim=1) > 0.5).tolist() for a, b in zip(pushed, raw, strict=True)]


def test_prompt_and_completion_are_told_apart_while_generating() -> None:
    loaded = tiny_model()
    prompt, *steps = passes(loaded, "prompt")
    assert all(prompt)
    assert len(steps) == 3
    assert not any(map(any, steps))
    prompt, *steps = passes(loaded, "completion")
    assert not any(prompt)
    assert all(map(all, steps))


def test_a_slice_goes_on_into_the_completion() -> None:
    loaded = tiny_model()
    n = len(loaded.tokenizer(SENTENCES[0])["input_ids"])
    prompt, *steps = passes(loaded, slice(n - 1, n + 2))
    assert prompt == [False] * (n - 1) + [True]
    assert steps == [[True], [True], [False]]


def test_the_runner_is_steered_and_captures_what_came_of_it() -> None:
    loaded = tiny_model()
    row = Row(loaded.tokenizer(SENTENCES[0])["input_ids"])
    runner = Runner(loaded, [BLOCK], mode="prompt")
    (before,) = runner.run([row])
    with steer(loaded, DIRECTION, BLOCK, 2.0):
        (after,) = runner.run([row])
    np.testing.assert_allclose(
        after.pooled["prompt"][0] - before.pooled["prompt"][0], 2 * UNIT.numpy(), atol=1e-4
    )


@given(length=st.floats(1e-6, 1e6), strength=st.floats(-50, 50), deviation=st.floats(1e-3, 100))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_where_a_direction_points_counts(
    length: float, strength: float, deviation: float
) -> None:
    loaded = tiny_model()
    inputs = inputs_of(loaded, SENTENCES[2])
    before = residuals(loaded, BLOCK, **inputs)
    with steer(loaded, DIRECTION * length, BLOCK, strength, deviation=deviation):
        moved = (residuals(loaded, BLOCK, **inputs) - before) @ UNIT
    torch.testing.assert_close(
        moved, torch.full_like(moved, strength * deviation), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("direction", "options", "match"),
    [
        (np.zeros(HIDDEN), {}, "points nowhere"),
        (np.full(HIDDEN, np.nan), {}, "points nowhere"),
        (np.full(HIDDEN, np.inf), {}, "points nowhere"),
        (np.ones((2, HIDDEN)), {}, r"shape \(2, 32\)"),
        (np.ones(HIDDEN + 1), {}, "33 features, the model's residual stream 32"),
        (DIRECTION, {"strength": float("nan")}, "finite"),
        (DIRECTION, {"deviation": 0.0}, "deviation above 0"),
        (DIRECTION, {"deviation": -1.0}, "deviation above 0"),
        (DIRECTION, {"positions": "middle"}, "expected all, prompt, completion or a slice"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_runs(
    direction: Any, options: dict[str, Any], match: str
) -> None:
    with (
        pytest.raises(SteeringError, match=match),
        steer(tiny_model(), direction, BLOCK, **options),
    ):
        raise AssertionError("unreachable")


@pytest.mark.parametrize(
    "wanted", [slice(-3, None), slice(None, -1), slice(0, 5, -1), slice(0, 5, 0)]
)
def test_a_slice_from_the_end_is_refused(wanted: slice) -> None:
    loaded = tiny_model()
    with (
        pytest.raises(SteeringError, match="counts forwards from 0"),
        steer(loaded, DIRECTION, 1, positions=wanted),
    ):
        raise AssertionError("unreachable")


@pytest.mark.parametrize("model_layer", [-1, 3])
def test_a_model_layer_that_does_not_exist_is_an_error(model_layer: int) -> None:
    with (
        pytest.raises(ModelLayerError, match="numbered 0 to 2"),
        steer(tiny_model(), DIRECTION, model_layer, 1.0),
    ):
        raise AssertionError("unreachable")


def test_the_public_name_is_the_context_manager() -> None:
    import lenscache

    with lenscache.steer(tiny_model(), DIRECTION, BLOCK, 1.0):
        pass
