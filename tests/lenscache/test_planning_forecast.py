"""Forecasts for other machines, against real stores and sums done by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lenscache.concepts.plan import plan_samples
from lenscache.errors import ModelNotFoundError, PlanError
from lenscache.extract import ExtractSettings, extract
from lenscache.forecast import (
    DEVICES,
    Device,
    Efficiency,
    Shape,
    Workload,
    batch_seconds,
    find_device,
    forecast_run,
    measure_device,
    outline_work,
)
from lenscache.model.outline import ModelOutline, outline_model
from tests.lenscache.conftest import PACK, SETTINGS
from tests.models import ARCHITECTURES, CONFIGS, tiny_model

FULL = Efficiency(1.0, 1.0)
GPU = Device("test", 80e9, 1e12, 1e15, 1e14, efficiencies=(FULL, FULL, FULL))
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


# --- seconds ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelOutline:
    """A model of 70B, of which there is no more than its configuration."""
    folder = tmp_path_factory.mktemp("models") / "large"
    transformers.LlamaConfig(**LLAMA_70B, architectures=["LlamaForCausalLM"]).save_pretrained(
        folder
    )
    return outline_model(str(folder))


def work_of(model: Any, mode: str = "combined", depth: int = 80, new_tokens: int = 21) -> Workload:
    """One model layer of a model, over the prompts of the tests' pack."""
    settings = ExtractSettings(
        mode=mode,  # type: ignore[arg-type]
        model_layers=(depth - 1,),
        max_new_tokens=new_tokens,
    )
    return outline_work(PACK, model, settings)


def seconds_of(work: Workload, size: float, width: float, device: Device = GPU) -> float:
    sizes, widths = np.array([size]), np.array([width])
    return float(batch_seconds(work, device, device.efficiencies[0], sizes, widths)[0])


def test_a_decode_step_takes_what_reading_the_weights_takes_and_a_prefill_its_operations(
    large: ModelOutline,
) -> None:
    work, fewer = work_of(large), work_of(large, new_tokens=11)
    shape = work.shape
    assert shape.weight_bytes == pytest.approx(141.1e9, rel=0.001)
    weights = shape.n_layers * shape.block_weights * shape.itemsize
    head = shape.vocab * shape.hidden * shape.itemsize
    a_step = (seconds_of(work, 1, 32) - seconds_of(fewer, 1, 32)) / 10
    assert a_step == pytest.approx((weights + head) / GPU.bandwidth, rel=0.01)
    products = 2 * weights / shape.itemsize * 64 * 512 / GPU.half_flops
    # the rest of the time reads and writes what passes by
    prompts = work_of(large, "prompt")
    assert products < seconds_of(prompts, 64, 512) < 1.4 * products
    # with many rows, arithmetic takes longer than reading
    many = (seconds_of(work, 2000, 32) - seconds_of(fewer, 2000, 32)) / 10
    assert many > 2 * weights / shape.itemsize * 2000 / GPU.half_flops > weights / GPU.bandwidth


def test_prompt_mode_pays_for_the_blocks_up_to_the_deepest_stored_one_alone(
    large: ModelOutline,
) -> None:
    whole, half = (seconds_of(work_of(large, "prompt", depth), 64, 64) for depth in (80, 40))
    assert half == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.parametrize("kind", DEVICES)
def test_larger_batches_take_longer_but_less_a_row(large: ModelOutline, kind: str) -> None:
    work, sizes = work_of(large), (1, 4, 16, 64, 256)
    seconds = [seconds_of(work, size, 32, DEVICES[kind]) for size in sizes]
    assert seconds == sorted(seconds)
    a_row = [taken / size for taken, size in zip(seconds, sizes, strict=True)]
    assert a_row == sorted(a_row, reverse=True)


def test_experts_are_read_once_each_and_multiplied_with_by_few_positions() -> None:
    config = transformers.MixtralConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=300,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    blocks = list(model.model.layers)
    shape = Shape.of(ModelOutline(model, None, "experts", "float32", torch.device("meta"), blocks))
    experts = 8 * 3 * 64 * 256
    assert shape.block_weights - shape.active_weights == pytest.approx(experts * 6 / 8)


def test_a_model_is_spread_over_as_few_devices_as_hold_it(large: ModelOutline) -> None:
    settings = ExtractSettings(batch_size="auto")
    found = outline_work(PACK, large, settings)
    assert [
        forecast_run(found, settings, find_device(kind), 4).devices_per_copy
        for kind in ("h100", "l40s", "cpu")
    ] == [2, 4, 1]
    with pytest.raises(
        PlanError, match=r"takes 141 GB in bfloat16 .* a h100 has 80: give --devices 2 or more"
    ):
        forecast_run(found, settings, find_device("h100"), 1)
    estimate = forecast_run(found, settings, find_device("h100"), 7)
    assert (estimate.devices_per_copy, estimate.copies) == (2, 3)


# --- the whole forecast -------------------------------------------------------------------------


def test_a_forecast_counts_what_extract_then_leaves(tmp_path: Path) -> None:
    estimate = forecast_run(
        outline_work(PACK, tiny_model(), SETTINGS), SETTINGS, find_device("a100")
    )
    report = extract(tmp_path / "s.zarr", PACK, tiny_model(), SETTINGS)
    assert estimate.prompts == report.rows
    assert estimate.blocks == sum(1 for _ in (tmp_path / "s.zarr").rglob("complete/c/*"))
    assert not estimate.are_tokens_guessed


def test_more_devices_are_faster_and_the_range_holds_what_is_expected(large: ModelOutline) -> None:
    settings = ExtractSettings(batch_size="auto", block_rows=16)
    work = outline_work(PACK, large, settings)
    found = [forecast_run(work, settings, find_device("h100"), n) for n in (2, 8, 200)]
    for each in found:
        assert each.seconds_low < each.seconds < each.seconds_high
        assert each.seconds > each.seconds_to_load
        assert each.device_hours == pytest.approx(each.devices * each.seconds / 3600)
    assert found[0].seconds > found[1].seconds > found[2].seconds
    assert found[2].device_hours > found[0].device_hours  # each of them loads the model


def test_a_batch_is_as_large_as_pays_and_fits(large: ModelOutline) -> None:
    kind, asked = find_device("h100"), ExtractSettings(batch_size=4)
    work = outline_work(PACK, large, asked)
    four = forecast_run(work, asked, kind, 2)
    auto = forecast_run(work, replace(asked, batch_size="auto"), kind, 2)
    assert four.batch_size == 4 < auto.batch_size
    assert auto.seconds_a_block < four.seconds_a_block
    small = replace(kind, memory_bytes=work.shape.weight_bytes / 0.9 + 3 * work.row_bytes())
    assert forecast_run(work, asked, small, 1).batch_size == 2


# --- models without weights ---------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_outline_has_the_shapes_of_the_model_and_no_weights(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    model.model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    outline = outline_model(str(tmp_path), dtype="float32")
    assert Shape.of(outline) == Shape.of(model)
    assert (outline.device.type, outline.n_layers, outline.hidden) == ("meta", 3, 32)
    assert outline.tokenizer is None
    assert type(outline.model.config) is type(CONFIGS[architecture]())


def test_tokens_are_guessed_where_there_is_no_tokenizer(large: ModelOutline) -> None:
    work = outline_work(PACK, large, SETTINGS)
    letters = sum(len(text) for level in PACK.levels for text in plan_samples(PACK, [level]).texts)
    assert work.are_tokens_guessed
    assert sum(int(lengths.sum()) for lengths in work.lengths) == pytest.approx(
        letters / 4, rel=0.15
    )


def test_a_configuration_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot read the configuration of the model"):
        outline_model(str(tmp_path))


def test_this_device_is_measured() -> None:
    found = measure_device(torch.device("cpu"), "float32")
    assert 1e8 < found.bandwidth < 1e12
    assert 1e8 < found.single_flops < 1e14
    assert 1e-8 < found.seconds_a_call < 1e-3
    assert not math.isnan(found.memory_bytes)
    with pytest.raises(PlanError, match="no figures of the device kind 'tpu': choose one of h100"):
        find_device("tpu")
