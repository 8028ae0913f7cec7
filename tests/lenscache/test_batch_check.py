"""The check of batches against rows alone: what it finds out, when, and what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenscache.errors import BatchMismatchError
from lenscache.extract import ExtractProgress, Partition, batch_size
from lenscache.extract.comparison import Vectors, Written, differences
from lenscache.extract.identity import make_header
from lenscache.extract.tolerance import TOLERANCE, TOLERANCE_OF_ONE, allowed_error
from lenscache.inference.decoding import Replayed
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel, find_blocks
from lenscache.store.header import StoreHeader
from lenscache.store.round import Round
from lenscache.store.store import open_store
from lenscache.terms import Pooling
from tests.lenscache.conftest import PACK, SETTINGS, run_small, tree, without_ids
from tests.models import tiny_model

Hook = Callable[[Any, Any, torch.Tensor], Any]
FP32 = replace(SETTINGS, store_dtype="float32")


def own_model(hook: Hook | None = None, *, dtype: str = "float32") -> LoadedModel:
    """A copy of the model; the hook may replace the output of its last block."""
    model = copy.deepcopy(tiny_model(dtype=dtype).model)
    loaded = replace(tiny_model(dtype=dtype), model=model, blocks=list(find_blocks(model)))
    if hook is not None:
        loaded.blocks[2].register_forward_hook(hook)
    return loaded


def scaled_by_rows(share: float) -> Hook:
    """What a row comes to depends on how many there are."""
    return lambda _block, _inputs, output: output * (1 + share * (len(output) - 1))


def the_round(store: Path) -> Round:
    (target,) = open_store(store).rounds(1)
    return target


def header_of(**settings: Any) -> StoreHeader:
    dtype = settings.pop("dtype", "float32")
    return make_header(tiny_model(dtype=dtype), PACK, replace(FP32, **settings))


# --- when ---------------------------------------------------------------------------------------


def test_a_model_that_does_not_batch_fails_after_one_block(tmp_path: Path) -> None:
    seen: list[ExtractProgress] = []
    with pytest.raises(BatchMismatchError, match="the block is not written"):
        run_small(tmp_path / "s", own_model(scaled_by_rows(0.01)), on_progress=seen.append)
    assert seen[-1].rows_run == 8
    assert not the_round(tmp_path / "s").complete_blocks().any()
    report = run_small(
        tmp_path / "s", own_model(scaled_by_rows(0.01)), replace(SETTINGS, batch_size=1)
    )
    assert report.rows_run == 20
    assert the_round(tmp_path / "s").is_complete


def test_what_goes_wrong_after_the_first_block_is_found_at_the_end(tmp_path: Path) -> None:
    loaded = own_model()

    def tell(progress: ExtractProgress) -> None:
        if progress.rows_run == 12:
            loaded.blocks[2].register_forward_hook(scaled_by_rows(0.01))

    with pytest.raises(BatchMismatchError, match="the round is not marked complete"):
        run_small(tmp_path / "s", loaded, on_progress=tell)
    target = the_round(tmp_path / "s")
    assert target.complete_blocks().all()
    assert not target.is_complete


def test_whoever_goes_on_with_a_round_checks_the_first_block_that_it_runs(tmp_path: Path) -> None:
    """A run that is resumed, or a partition, may be on another machine than what was there."""
    part = replace(SETTINGS, partition=Partition(1, 3))
    assert run_small(tmp_path / "s", settings=part).rows_run == 8
    part = replace(SETTINGS, partition=Partition(3, 3))
    with pytest.raises(BatchMismatchError, match="the block is not written"):
        run_small(tmp_path / "s", own_model(scaled_by_rows(0.01)), part)
    assert the_round(tmp_path / "s").complete_blocks().tolist() == [True, False, False]


def test_a_round_of_one_block_is_checked_once(tmp_path: Path) -> None:
    sizes: list[int] = []
    loaded = own_model(lambda _block, _inputs, output: sizes.append(len(output)))
    run_small(tmp_path / "s", loaded, replace(SETTINGS, block_rows=32))
    first, last = sizes.index(4), max(i for i, n in enumerate(sizes) if n > 1)
    assert 1 not in sizes[first:last]
    # one row step by step, seven in one pass each
    assert len(sizes[last + 1 :]) == SETTINGS.max_new_tokens + 7


# --- what ---------------------------------------------------------------------------------------


class _BrokenStep(Replayed):
    """A recorded step that is right in its first batch, and then keeps what it should not."""

    def _forward(self) -> None:
        if self.is_proven:
            self._positions.fill_(self._width // 2)
        super()._forward()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recorded_step_that_goes_wrong_is_found_out_whatever_the_batch_size(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows are no full batch of sixteen: the step that ran has to be what is checked."""
    monkeypatch.setattr(batch_size, "Runner", partial(Runner, replay=True))
    settings = replace(SETTINGS, batch_size=16, block_rows=16, max_new_tokens=20)
    run_small(tmp_path / "right", own_model(dtype=dtype), settings, limit=None)
    monkeypatch.setattr("lenscache.inference.recordings.Replayed", _BrokenStep)
    with pytest.raises(BatchMismatchError, match=r"recorded for full batches .* --device cpu"):
        run_small(tmp_path / "wrong", own_model(dtype=dtype), settings, limit=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_a_row_alone_would_not_draw_are_found_out(dtype: str, tmp_path: Path) -> None:
    """The head alone depends on the batch: activations along the tokens that it drew are right."""
    loaded = own_model(dtype=dtype)

    def roll(_head: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.roll(100, dims=-1) if len(output) > 1 else output

    loaded.model.lm_head.register_forward_hook(roll)
    with pytest.raises(BatchMismatchError, match=r"[4-8] of 8 in their tokens"):
        run_small(tmp_path / "s", loaded)


def with_silent_tokens(loaded: LoadedModel) -> LoadedModel:
    """All tokens are special ones, which are left out of texts: every completion reads ""."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(tokenizer.get_vocab())})
    return replace(loaded, tokenizer=tokenizer)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_token_that_tips_behind_the_same_text_does_not_keep_a_round_from_its_end(
    is_old: bool, tmp_path: Path
) -> None:
    """Other batches tip other tokens in bfloat16."""
    loaded = with_silent_tokens(own_model(dtype="bfloat16"))
    settings = replace(SETTINGS, max_new_tokens=20)
    run_small(tmp_path / "s", loaded, settings, limit=None)
    open_store(tmp_path / "s", mode="r+").rounds(1)[0].update_attributes({"verification": None})
    if is_old:
        without_ids(tmp_path / "s")
    run_small(tmp_path / "s", loaded, replace(settings, batch_size=3), limit=None)
    target = the_round(tmp_path / "s")
    assert target.is_complete
    assert set(target.samples().completion) == {""}


def test_an_old_round_is_checked_by_another_run_of_its_rows(store_copy: Path) -> None:
    old = without_ids(store_copy)
    target = open_store(old, mode="r+").rounds(1)[0]
    target.update_attributes({"verification": None})
    with pytest.raises(BatchMismatchError, match=r"does not batch: .* --batch-size 1"):
        run_small(old, own_model(scaled_by_rows(0.01)))
    run_small(old)
    found = the_round(old).attributes["verification"]
    assert (found["rows"], found["other_completions"]) == (8, 0)


def test_rows_of_an_old_round_run_again_in_a_full_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows alone would not run the step that is recorded for sixteen."""
    monkeypatch.setattr(batch_size, "Runner", partial(Runner, replay=True))
    settings = replace(SETTINGS, batch_size=16, block_rows=16)
    run_small(tmp_path / "s", settings=settings)
    without_ids(tmp_path / "s")
    open_store(tmp_path / "s", mode="r+").rounds(1)[0].update_attributes({"verification": None})
    sizes: list[int] = []
    prefill = Replayed.prefill

    def noted(self: Replayed, token_ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(token_ids))
        return prefill(self, token_ids, *rest)

    monkeypatch.setattr(Replayed, "prefill", noted)
    run_small(tmp_path / "s", settings=settings)
    assert sizes == [16]
    assert the_round(tmp_path / "s").is_complete


def test_an_old_round_with_other_vectors_than_the_model_gives_is_found_out(
    store_copy: Path,
) -> None:
    old = without_ids(store_copy)
    target = open_store(old, mode="r+").rounds(1)[0]
    target.update_attributes({"verification": None})
    for block in range(3):
        target._write(
            "activations/prompt/2", block, 2 * target.read("prompt", 2, target.rows(block))
        )
    with pytest.raises(BatchMismatchError, match=r"differ from the batched ones by 1 "):
        run_small(old)


def test_models_that_decode_otherwise_than_they_read_are_judged_by_decoding(tmp_path: Path) -> None:
    """Such as those whose rotary embeddings change with the length of what is read."""

    def other_when_long(_block: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * 1.5 if output.shape[1] > longest else output

    longest = 10_000
    loaded = own_model(other_when_long)
    longest = int(max(n for n in _prompt_lengths(tmp_path)))
    run_small(tmp_path / "s", loaded)
    assert the_round(tmp_path / "s").is_complete


def _prompt_lengths(folder: Path) -> list[int]:
    run_small(folder / "lengths", settings=replace(SETTINGS, mode="prompt"))
    return list(the_round(folder / "lengths").samples().n_prompt_tokens)


def test_rows_that_were_copied_do_not_vouch_for_those_that_ran(
    finished_store: Path, tmp_path: Path
) -> None:
    from lenscache.extract import extract

    settings = replace(SETTINGS, block_rows=64)
    with pytest.raises(BatchMismatchError, match="does not batch"):
        extract(
            tmp_path / "new",
            PACK,
            own_model(scaled_by_rows(0.01)),
            settings,
            levels=[1],
            limit=3,
            reuse=[open_store(finished_store)],
        )


# --- zeros --------------------------------------------------------------------------------------


def test_a_block_that_puts_out_zeros_passes(tmp_path: Path) -> None:
    run_small(tmp_path / "s", own_model(lambda _block, _inputs, output: output * 0))
    verification = the_round(tmp_path / "s").attributes["verification"]
    assert verification["max_relative_error"]["2"] == 0


@pytest.mark.parametrize("zeros", ["in the batch", "alone"])
def test_zeros_where_the_other_has_values_differ(zeros: str) -> None:
    values: Vectors = {"prompt": np.zeros((2, 32)), "completion": np.zeros((2, 32))}
    ones: Vectors = {"prompt": np.ones((2, 32)), "completion": np.ones((2, 32))}
    found, alone = (values, ones) if zeros == "in the batch" else (ones, values)
    written = Written(0, Row([1, 2, 3], completion_ids=(4, 5)), found)
    assert all(each.share > 1 for each in differences(header_of(), written, alone))


# --- how much -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_averages_out_is_allowed_where_nothing_does(dtype: str) -> None:
    def allowed(pooling: Pooling, n: int) -> float:
        return allowed_error(header_of(dtype=dtype, pooling=pooling), n)

    one, many = TOLERANCE_OF_ONE[dtype], TOLERANCE[dtype]
    assert allowed("last", 1) == allowed("last", 100) == allowed("max", 30) == one > many
    assert allowed("mean", 1) == one
    assert allowed("mean", 2) == pytest.approx(one / 2**0.5)
    assert allowed("mean", 100) == many


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_bfloat16_passes_with_every_pooling(pooling: Pooling, tmp_path: Path) -> None:
    settings = replace(SETTINGS, pooling=pooling, max_new_tokens=20)
    run_small(tmp_path / "s", tiny_model(dtype="bfloat16"), settings, limit=None)
    verification = the_round(tmp_path / "s").attributes["verification"]
    errors = verification["max_relative_error"].values()
    assert 0 < max(errors) < verification["tolerance"]
    assert 0 < verification["token_distance"] < 0.15


# --- what it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "share", "says", "not_says"),
    [
        ("float32", 0.03, "does not batch: .* another store with --batch-size 1", "float32"),
        (
            "bfloat16",
            0.03,
            "rounding of bfloat16 is the likely cause: .* --dtype float32",
            "--batch",
        ),
        ("float16", 0.01, "rounding of float16 is the likely cause: .* --dtype float32", "--batch"),
        ("bfloat16", 0.5, "does not batch: .* another store with --batch-size 1", "rounding"),
    ],
)
def test_the_message_names_the_likely_cause(
    dtype: str, share: float, says: str, not_says: str, tmp_path: Path
) -> None:
    with pytest.raises(BatchMismatchError, match=says) as caught:
        run_small(tmp_path / "s", own_model(scaled_by_rows(share), dtype=dtype))
    assert not_says not in str(caught.value)


def test_blocks_of_another_machine_are_not_blamed_on_batches(store_copy: Path) -> None:
    target = open_store(store_copy, mode="r+").rounds(1)[0]
    target.update_attributes({"verification": None})
    for block in range(3):
        values = target.read("prompt", 2, target.rows(block)).astype(np.float32)
        target._write("activations/prompt/2", block, 1.1 * values)
    with pytest.raises(
        BatchMismatchError, match=r"computed otherwise .*on another machine"
    ) as caught:
        run_small(store_copy)
    assert "--batch-size" not in str(caught.value)


def test_a_check_leaves_the_bytes_of_an_interrupted_run_as_they_would_be(
    finished_store: Path, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        run_small(tmp_path / "s", settings=replace(SETTINGS, partition=Partition(number, 3)))
    assert tree(tmp_path / "s") == tree(finished_store)
