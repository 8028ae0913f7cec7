"""Forecasts for other machines, against real stores, a real object store and sums done by hand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lenscache.concepts.plan import plan_samples
from lenscache.errors import ModelNotFoundError, PlanError
from lenscache.extract import ExtractSettings, Partition, extract
from lenscache.extract.identity import make_header
from lenscache.forecast.devices import DEVICES, Device, Efficiency, find_device, measure_device
from lenscache.forecast.footprint import Requests, RoundSize, expected_objects, expected_requests
from lenscache.forecast.forecast import forecast_run, outline_work
from lenscache.forecast.roofline import Shape, Work, batch_seconds, devices_of_a_copy
from lenscache.model.outline import ModelOutline, outline_model
from lenscache.store.layout import chunk_rows
from tests.lenscache.conftest import PACK, SETTINGS, run_small
from tests.lenscache.counting_s3 import RequestLog, serving_counted
from tests.lenscache.s3_server import connect, environment
from tests.models import ARCHITECTURES, CONFIGS, tiny_model

COUNTED: dict[str, Any] = {
    "concepts": len(PACK.concepts),
    "links": sum(len(concept.parents) for concept in PACK.concepts),
}
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


def sizes(
    settings: ExtractSettings, levels: tuple[int, ...], limit: int | None = None
) -> list[RoundSize]:
    assert settings.block_rows is not None
    plans = [plan_samples(PACK, [level], limit=limit) for level in levels]
    return [RoundSize(len(plan), len(plan.label_role), settings.block_rows) for plan in plans]


# --- objects and requests -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "levels"),
    [
        ({}, (1,)),
        ({"block_rows": 3, "model_layers": (0, 1, 2)}, (0, 1)),
        ({"mode": "prompt", "store_dtype": "int8"}, (1,)),
    ],
)
def test_a_store_has_as_many_objects_as_forecast(
    change: dict[str, Any], levels: tuple[int, ...], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, **change)
    run_small(tmp_path / "s.zarr", settings=settings, levels=levels)
    header = make_header(tiny_model(), PACK, settings)
    seen = sum(file.is_file() for file in (tmp_path / "s.zarr").rglob("*"))
    assert seen == expected_objects(header, sizes(settings, levels, 2), **COUNTED)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestLog]:
    """A server in whose bucket `lenses` stores are made, and what it was asked for."""
    log = tmp_path_factory.mktemp("requests") / "log"
    with serving_counted(log) as (url, requests), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment(url).items():
            patch.setenv(name, value)
        connect(url).create_bucket(Bucket="lenses")
        yield requests


@pytest.mark.parametrize(
    ("change", "levels", "workers"),
    [
        ({"model_layers": (1,), "mode": "prompt"}, (1,), 2),
        pytest.param({"model_layers": (0, 1, 2)}, (1,), 2, marks=pytest.mark.slow),
        pytest.param({"block_rows": 4}, (0, 1), 1, marks=pytest.mark.slow),
        pytest.param({"store_dtype": "int8"}, (1,), 3, marks=pytest.mark.slow),
    ],
)
def test_an_object_store_is_asked_as_often_as_forecast(
    change: dict[str, Any], levels: tuple[int, ...], workers: int, served: RequestLog
) -> None:
    """PUT to the request; others within three a round, since which blocks are verified is drawn."""
    settings, before = replace(SETTINGS, **change), served.counts()
    for part in range(1, workers + 1):
        its = replace(settings, partition=Partition(part, workers) if workers > 1 else None)
        run_small(f"s3://lenses/{len(before)}-{before.total()}/s.zarr", settings=its, levels=levels)
    seen = served.counts() - before
    header, rounds = make_header(tiny_model(), PACK, settings), sizes(settings, levels, 2)
    assert settings.block_rows is not None
    chunks = settings.block_rows // chunk_rows(header.hidden, settings.block_rows)
    expected = expected_requests(header, rounds, workers=workers, chunks_a_block=chunks, **COUNTED)
    assert Requests(seen["PUT"], 0, seen["HEAD"], seen["LIST"]) == expected._replace(get=0)
    assert abs(seen["GET"] - expected.get) <= 3 * len(levels)


# --- seconds ------------------------------------------------------------------------------------


def weights_of(shape: Shape) -> float:
    return shape.n_layers * shape.block_weights * shape.itemsize


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelOutline:
    """A model of 70B, of which there is no more than its configuration."""
    folder = tmp_path_factory.mktemp("models") / "large"
    transformers.LlamaConfig(**LLAMA_70B, architectures=["LlamaForCausalLM"]).save_pretrained(
        folder
    )
    return outline_model(str(folder))


def seconds_of(
    shape: Shape, work: Work, size: float, width: float, device: Device = GPU
) -> dict[str, float]:
    found = batch_seconds(
        shape, device, device.efficiencies[0], work, "bfloat16", np.array([size]), np.array([width])
    )
    return {name: float(values[0]) for name, values in found.items()}


def test_a_decode_step_takes_what_reading_the_weights_takes_and_a_prefill_its_operations(
    large: ModelOutline,
) -> None:
    shape = Shape.of(large)
    assert shape.weight_bytes == pytest.approx(141.1e9, rel=0.001)
    work = Work(shape.n_layers, 1, 21, is_recorded=True)
    found = seconds_of(shape, work, 1, 32)
    assert found["decode: weights"] == pytest.approx(20 * weights_of(shape) / GPU.bandwidth)
    assert found["decode: arithmetic"] == 0
    products = 2 * weights_of(shape) / shape.itemsize * 64 * 512 / GPU.half_flops
    # the rest of the time reads and writes what passes by
    assert products < seconds_of(shape, work, 64, 512)["prefill"] < 1.4 * products
    assert seconds_of(shape, work, 2000, 32)["decode: arithmetic"] > 0


def test_prompt_mode_pays_for_the_blocks_up_to_the_deepest_stored_one_alone(
    large: ModelOutline,
) -> None:
    shape = Shape.of(large)
    whole, half = (
        seconds_of(shape, Work(depth, 1, 0, is_recorded=True), 64, 64) for depth in (80, 40)
    )
    assert half["prefill"] == pytest.approx(whole["prefill"] / 2, rel=0.01)
    assert sum(whole.values()) == whole["prefill"]


@pytest.mark.parametrize("kind", DEVICES)
def test_larger_batches_take_longer_but_less_a_row(large: ModelOutline, kind: str) -> None:
    shape, device = Shape.of(large), DEVICES[kind]
    work = Work(80, 80, 20, is_recorded=device.is_gpu)
    seconds = [
        sum(seconds_of(shape, work, size, 32, device).values()) for size in (1, 4, 16, 64, 256)
    ]
    assert seconds == sorted(seconds)
    assert [s / n for s, n in zip(seconds, (1, 4, 16, 64, 256), strict=True)] == sorted(
        (s / n for s, n in zip(seconds, (1, 4, 16, 64, 256), strict=True)), reverse=True
    )


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
    shape, work = Shape.of(large), Work(80, 80, 20, is_recorded=True)
    assert [
        devices_of_a_copy(shape, find_device(kind), work, 64) for kind in ("h100", "l40s", "cpu")
    ] == [2, 4, 1]
    settings = ExtractSettings(batch_size="auto")
    found = outline_work(PACK, large, settings)
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
    assert estimate.objects == sum(file.is_file() for file in (tmp_path / "s.zarr").rglob("*"))
    assert estimate.blocks == sum(1 for _ in (tmp_path / "s.zarr").rglob("complete/c/*"))
    assert not estimate.are_tokens_guessed


def test_shares_make_a_whole_and_the_range_holds_what_is_expected(large: ModelOutline) -> None:
    settings = ExtractSettings(batch_size="auto", block_rows=16)
    work = outline_work(PACK, large, settings)
    for devices in (2, 8, 200):
        found = forecast_run(work, settings, find_device("h100"), devices)
        assert sum(found.parts.values()) == pytest.approx(1.0, abs=0.02)
        assert found.seconds_low < found.seconds < found.seconds_high
        assert 0 < found.efficiency <= 1


def test_advice_names_what_is_cheaper_and_by_how_much(large: ModelOutline) -> None:
    few, kind = ExtractSettings(batch_size=4), find_device("h100")
    work = outline_work(PACK, large, few)
    slow = forecast_run(work, few, kind, 2, place="disk")
    auto = forecast_run(work, replace(few, batch_size="auto"), kind, 2, place="disk")
    assert auto.batch_size > 4
    share = f"{auto.device_hours / slow.device_hours:.2f} of the device hours"
    assert [line for line in slow.cheaper if line.startswith(f"--batch-size auto: {share}")]
    wasteful = forecast_run(work, few, kind, 400)
    advised = next(
        int(line.split()[1].rstrip(":"))
        for line in wasteful.cheaper
        if line.startswith("--devices")
    )
    assert forecast_run(work, few, kind, advised).device_hours < wasteful.device_hours / 2


def test_a_disk_that_answers_at_once_holds_nobody_up(large: ModelOutline) -> None:
    settings = ExtractSettings(batch_size="auto")
    work = outline_work(PACK, large, settings)
    s3, disk = (
        forecast_run(work, settings, find_device("h100"), 4, place=place)
        for place in ("s3", "disk")
    )
    assert s3.seconds_to_write_a_block > 10 > disk.seconds_to_write_a_block
    assert disk.seconds < s3.seconds
    assert disk.parts["waiting for writes"] == 0


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
