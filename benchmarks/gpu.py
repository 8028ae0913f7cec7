"""Extraction and lenses on a GPU, all in one call: under ten minutes on an H100.

    python benchmarks/gpu.py --out FILE [--tiny] [--only PART ...]

Each part prints a line and the next one begins, whatever happened.

architectures  tiny models of many kinds, bfloat16 and float32, 12 unequal rows: recorded steps
               beside a growing cache, and whether the device works after a model that fails
floor          bytes of weights / measured bandwidth: what a decode step costs at least
step           a decode step at batch 4 and 128, all blocks captured: recorded, called, and called
               without cuDNN's attention
batches        8 rows together, alone and in a batch of 128: largest relative error by model layer
idle           share of the wall clock of an extraction, its store being written, in which no kernel
               ran; gaps above 2 ms; most memory
memory         a third of the device's memory: batches get smaller, and by which error
ends           all rows end at their first token, 2,000 times; steering of completions alone
fit            a level of 276 concepts, linear and MLP, on the GPU and on the CPU
extract        `benchmarks/extract.py` with 20 new tokens: batch 4 and auto beside the old ways, (a)
               in float32
monitor        `benchmarks/monitor.py`: 5,000 lenses on generation
tests          `pytest -m gpu`

The model of all but the first and the last three parts is of the 4B class (Qwen3-4B's
configuration) with random weights, in bfloat16. --tiny runs everything but the tests on a CPU with
models of a few small blocks, to see that it works; of its figures only those of the architectures
mean something, with a CUDA graph emulated as in the tests: docs/models.md has them.

PREDICTED on an H100 (H200): floor 2.7 ms (1.9); a recorded step 6-8 ms (5-7) at batch 4 and 8-10 at
128, a called one 15-25 ms and up to 50 with cuDNN, which plans anew for every length; errors of
batches below 0.02; idle 15-25 %; auto 40 times (a); every architecture below 0.05 in bfloat16 and
1e-4 in float32; MoE recorded on this device in bfloat16, not in float32; 5,000 lenses 2 %.
FOUND: see RESULTS.md; no GPU has been at hand yet.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from extract import as_pack, device_name, measure, synchronise, texts
from fit import LEVEL, LEVEL_SETTINGS, SMALL_LEVEL, planted

from lenscache.extract import ExtractSettings, extract
from lenscache.inference import decoding
from lenscache.inference.batches import BatchLimits
from lenscache.inference.recording import recorder_for
from lenscache.inference.runner import Row, Runner
from lenscache.live.steering import steer
from lenscache.model.loading import DTYPES, LoadedModel, find_blocks, silence
from lenstrain.data.dataset import open_dataset
from lenstrain.fit.adaptive import fit_lenses

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 20
BOUNDS = {
    "step_vs_floor": (2.0, "at most"),
    "auto_vs_single": (20.0, "at least"),
    "idle": (0.05, "at most"),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file for the table; the figures go beside it as JSON",
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, by name")
    arguments = parser.parse_args()
    silence()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    loaded = random_model(device, "float32" if arguments.tiny else "bfloat16", tiny=arguments.tiny)
    figures: dict[str, Any] = {"device": device_name(device), "model": loaded.id}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "architectures": lambda: architectures(device),
        "floor": lambda: floor(loaded),
        "step": lambda: step(loaded),
        "batches": lambda: batches(loaded),
        "idle": lambda: idle(loaded, 64 if arguments.tiny else 1024),
        "memory": lambda: memory(loaded),
        "ends": lambda: ends(device, 20 if arguments.tiny else 2000),
        "fit": lambda: fit(device, tiny=arguments.tiny),
        "extract": lambda: whole(loaded, tiny=arguments.tiny),
    }
    if not arguments.tiny:
        parts |= {"monitor": monitor, "tests": tests}
    parts = {name: parts[name] for name in arguments.only or parts}
    lines = [f"{figures['device']}, {loaded.id}"]
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            found = part()
        except Exception as error:  # noqa: BLE001 - the rest is worth having
            found = {f"{name}_error": f"{type(error).__name__}: {error}".splitlines()[0]}
        figures |= found
        shown = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in found.items()
            if k != "facts"
        )
        lines.append(f"{name} ({time.perf_counter() - start:.0f} s): {shown}")
        print(lines[-1], flush=True)
    if "step_ms" in figures and "floor_ms" in figures:
        figures["step_vs_floor"] = figures["step_ms"] / figures["floor_ms"]
    for name, (bound, sense) in BOUNDS.items():
        if name in figures and not math.isnan(figures[name]):
            holds = figures[name] <= bound if sense == "at most" else figures[name] >= bound
            lines.append(
                f"{name}: {figures[name]:.3g}, {sense} {bound}: "
                f"{'holds' if holds else 'DOES NOT HOLD'}"
            )
            print(lines[-1])
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".json").write_text(
        json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8"
    )


def random_model(device: torch.device, dtype: str, *, tiny: bool) -> LoadedModel:
    """Qwen3-4B's shape, or two small blocks, with random weights and a small tokenizer."""
    sys.path.insert(0, str(ROOT))
    from tests.models import tiny_tokenizer

    shape: dict[str, Any] = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    if tiny:
        shape |= {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 300,
        }
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    name = f"random-{'tiny' if tiny else 'qwen3-4b'}-{dtype}"
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        id=name,
        dtype=dtype,
        device=device,
        blocks=list(find_blocks(model)),
    )


def weight_bytes(loaded: LoadedModel) -> int:
    """Bytes that a decode step has to read: all weights but the rows of the embedding that are not
    looked up."""
    tied = loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    embedding = loaded.model.get_input_embeddings().weight.nbytes
    return sum(parameter.nbytes for parameter in loaded.model.parameters()) - (
        0 if tied else embedding
    )


def floor(loaded: LoadedModel) -> dict[str, Any]:
    """The bandwidth at which a large tensor is read, and what reading the weights takes at it."""
    values = torch.ones(
        2**31 if loaded.device.type == "cuda" else 2**24, dtype=torch.bfloat16, device=loaded.device
    )
    seconds = []
    for _ in range(10):
        synchronise(loaded.device)
        start = time.perf_counter()
        values.view(torch.int16).amax()
        synchronise(loaded.device)
        seconds.append(time.perf_counter() - start)
    bandwidth = values.nbytes / statistics.median(seconds)
    return {"bandwidth_gb_s": bandwidth / 1e9, "floor_ms": weight_bytes(loaded) / bandwidth * 1e3}


def architectures(device: torch.device) -> dict[str, Any]:
    """A line for every tiny model: how it decoded, and how far off; then counts."""
    sys.path.insert(0, str(ROOT))
    from tests.lenscache import emulated_graph
    from tests.lenscache.architectures import CONFIGS, tiny
    from tests.lenscache.test_architectures import largest_error, rows_of, runner_of

    if device.type == "cpu":
        decoding.recorder_for = lambda _: emulated_graph.record
    found: dict[str, Any] = {"recorded": 0, "growing": 0, "wrong": [], "failed": []}
    for name, dtype in product(CONFIGS, ("bfloat16", "float32")):
        small, label = tiny(name), f"{name} {dtype}"
        moved = copy.deepcopy(small.model).to(device, DTYPES[dtype])
        loaded = replace(
            small, model=moved, dtype=dtype, device=device, blocks=list(find_blocks(moved))
        )
        runner, rows = runner_of(loaded, replay=True), rows_of((40, 3, 17, 9) * 3)
        try:
            results = runner.run(rows)
            texts_of = [tuple(result.completion_ids) for result in results]
            followed = [replace(r, completion_ids=t) for r, t in zip(rows, texts_of, strict=True)]
            error = largest_error(results, runner_of(loaded, replay=False).run(followed))
            kind = "growing" if runner.recordings.why_not else "recorded"
            found[kind] += 1
            if error > {"bfloat16": 0.05, "float32": 1e-4}[dtype]:
                found["wrong"].append(label)
            told = f"{kind}, off by {error:.1e} {runner.recordings.why_not}"
        except Exception as error:  # noqa: BLE001 - the next one is worth trying
            found["failed"].append(label)
            told = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(f"    {label}: {told}; {afterwards(device)}", flush=True)
    return found


def afterwards(device: torch.device) -> str:
    """Whether the device still computes, frees memory, records, and is on its own stream."""
    if device.type != "cuda":
        return "no device to look at"
    try:
        values = torch.ones(64, 64, device=device)
        bool((values @ values).sum() > 0)
        torch.cuda.empty_cache()
        recorder_for(device)(lambda: values.mul_(1.0))()  # type: ignore[misc]
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"BROKEN: {str(error).splitlines()[0]}"
    is_default = torch.cuda.current_stream() == torch.cuda.default_stream()
    return "device fine" if is_default else "NOT ON ITS OWN STREAM"


def step(loaded: LoadedModel) -> dict[str, Any]:
    """Milliseconds of a decode step, from runs of 20 and of 10 new tokens."""
    found = {}
    for batch_size in (4, 128) if loaded.device.type == "cuda" else (4, 8):
        for name, replay, cudnn in (
            ("step", True, True),
            ("called", False, True),
            ("called_no_cudnn", False, False),
        ):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            half, full = NEW_TOKENS // 2, NEW_TOKENS
            seconds = [_seconds(loaded, batch_size, n, replay) for n in (half, full)]
            torch.backends.cuda.enable_cudnn_sdp(True)
            label = f"{name}_ms" if batch_size == 4 else f"{name}_{batch_size}_ms"
            found[label] = (seconds[1] - seconds[0]) / (full - half) * 1e3
    return found


def _seconds(loaded: LoadedModel, batch_size: int, new_tokens: int, replay: bool) -> float:
    rows = [Row(list(range(2, 34)), seed, 0.7) for seed in range(batch_size)]
    how: dict[str, Any] = {"max_new_tokens": new_tokens, "limits": BatchLimits(batch_size)}
    runner, times = Runner(loaded, range(loaded.n_layers), replay=replay, **how), []
    for _ in range(6):
        synchronise(loaded.device)
        start = time.perf_counter()
        runner.run(rows)
        synchronise(loaded.device)
        times.append(time.perf_counter() - start)
    return min(times[2:])  # a graph is recorded in the first, and compared in the next


def batches(loaded: LoadedModel) -> dict[str, Any]:
    """Largest relative error of eight rows, over phases and model layers."""
    rng = np.random.default_rng(0)
    rows = [
        Row(rng.integers(2, 290, n).tolist(), n, 0.7) for n in rng.integers(8, 60, 128).tolist()
    ]

    def run(some: list[Row], batch_size: int) -> list[Any]:
        runner = Runner(
            loaded, range(loaded.n_layers), max_new_tokens=20, limits=BatchLimits(batch_size)
        )
        return runner.run(some)

    together = run(rows[:8], 8)
    rows = [
        replace(row, completion_ids=tuple(result.completion_ids))
        for row, result in zip(rows[:8], together, strict=True)
    ] + rows[8:]
    found = {}
    for name, results in (("alone", run(rows[:8], 1)), ("in_128", run(rows, 128)[:8])):
        errors = [
            np.linalg.norm(one.pooled[phase] - other.pooled[phase], axis=1)
            / np.linalg.norm(other.pooled[phase], axis=1)
            for one, other in zip(results, together, strict=True)
            for phase in one.pooled
        ]
        by_layer = np.nanmax(errors, axis=0)
        found[f"error_{name}"] = float(by_layer.max())
        found[f"error_{name}_at"] = int(by_layer.argmax())
    return found


def memory(loaded: LoadedModel) -> dict[str, Any]:
    """What an extraction does with a third of the memory: batch sizes and errors that it met."""
    if loaded.device.type != "cuda":
        return {"memory": "no device"}
    rows = [Row(list(range(2, 2 + n)), n, 0.7) for n in (30, 90, 150, 210) for _ in range(128)]
    torch.cuda.set_per_process_memory_fraction(0.3)
    try:
        runner = Runner(loaded, range(loaded.n_layers), max_new_tokens=20, limits=BatchLimits(128))
        runner.run(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "batch_size_after": runner.limits.rows,
        "out_of_memory": runner.out_of_memory,
        "shapes_recorded": len(runner.recordings.by_shape),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def ends(device: torch.device, times: int) -> dict[str, Any]:
    """Runs of which every row ends at once, and a steered completion: what went wrong."""
    sys.path.insert(0, str(ROOT))
    from tests.lenscache.architectures import tiny

    model = copy.deepcopy(tiny("llama").model).to(device)
    loaded = replace(tiny("llama"), model=model, device=device, blocks=list(find_blocks(model)))
    all_end = replace(loaded)
    vars(all_end)["eos_ids"] = frozenset(range(300))
    runner = Runner(all_end, [0], mode="completion", max_new_tokens=8, limits=BatchLimits(4))
    rows = [Row([5, 6, 7], seed, 0.7) for seed in range(4)]
    wrong = sum(any(result.completion_ids for result in runner.run(rows)) for _ in range(times))
    with steer(loaded, torch.ones(32), 1, 5.0, positions="completion"):
        steered = Runner(loaded, [3], max_new_tokens=8, limits=BatchLimits(4)).run(rows)
    plain = Runner(loaded, [3], max_new_tokens=8, limits=BatchLimits(4)).run(rows)
    same_prompt = all(
        np.array_equal(a.pooled["prompt"], b.pooled["prompt"])
        for a, b in zip(steered, plain, strict=True)
    )
    return {"ends_wrong": wrong, "steered_prompt_is_the_same": same_prompt}


def fit(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Seconds of fits from a planted store on a device and on the CPU, and lenses that differ."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        level = SMALL_LEVEL if tiny else LEVEL
        dataset = open_dataset(planted(Path(folder), "level", level), levels=[1])
        for family in ("linear", "mlp"):
            lenses = []
            for place in (str(device), "cpu"):
                start = time.perf_counter()
                settings = replace(LEVEL_SETTINGS, family=family, device=place)
                lenses.append(fit_lenses(dataset, settings).lenses)
                found[f"{family}_{place}_s"] = time.perf_counter() - start
            found[f"{family}_grades_differ"] = sum(
                one.verdict.grade != other.verdict.grade for one, other in zip(*lenses, strict=True)
            )
    return found


def idle(loaded: LoadedModel, n: int) -> dict[str, Any]:
    """Share of an extraction's wall clock in which no kernel ran, from the profiler's trace."""
    if loaded.device.type != "cuda":
        return {"idle": float("nan")}
    pack = as_pack(texts(n))
    settings = ExtractSettings(max_new_tokens=NEW_TOKENS, batch_size=128)
    with tempfile.TemporaryDirectory() as folder:
        extract(Path(folder) / "warm.zarr", as_pack(texts(256)), loaded, settings)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            extract(Path(folder) / "s.zarr", pack, loaded, settings)
            synchronise(loaded.device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until, gaps = 0.0, spans[0][0], []
    for start, end in spans:
        if start - until > 2000:  # microseconds
            gaps.append((start - until) / 1000)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return {
        "idle": 1 - busy / (until - spans[0][0]),
        "gaps": len(gaps),
        "gap_ms": statistics.median(gaps) if gaps else 0.0,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def whole(loaded: LoadedModel, *, tiny: bool) -> dict[str, Any]:
    """`benchmarks/extract.py` on this model."""
    before = random_model(loaded.device, "float32", tiny=tiny)
    return measure(loaded, texts(64 if tiny else 512), 1, before=before)


def monitor() -> dict[str, Any]:
    """`benchmarks/monitor.py` on this device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "monitor.json"
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "monitor.py"),
            "--random",
            "4b",
            "--device",
            "cuda",
            "--quick",
            "--json",
            str(file),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        found: dict[str, Any] = {"monitor": json.loads(file.read_text(encoding="utf-8"))}
    return found


def tests() -> dict[str, Any]:
    """The closing line of `pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    return {"tests": (done.stdout.strip().splitlines() or ["nothing"])[-1]}


if __name__ == "__main__":
    main()
