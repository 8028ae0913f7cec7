"""Extraction and lenses on a GPU, all in one call: under eight minutes on an H100.

    python benchmarks/gpu.py --out FILE [--tiny]

A model of the 4B class (Qwen3-4B's configuration) with random weights, in bfloat16:

floor      bytes of weights / measured bandwidth: what a decode step costs at least, whatever the
           batch
step       a decode step at batch 4, all blocks captured, without and with a recorded CUDA graph
extract    `benchmarks/extract.py` with 20 new tokens: batch 4 and auto beside the old ways, (a) in
           float32
idle       share of the wall clock of an extraction, its store being written, in which no kernel ran
monitor    `benchmarks/monitor.py`: 5,000 lenses on generation
tests      `pytest -m gpu`

--tiny runs everything but the tests on a CPU with a model of two small blocks, to see that it
works; its figures mean nothing.

PREDICTED on an H100: floor 2.6 ms (8 GB at 3 TB/s); a step 4 ms with a graph and 25 ms without;
auto 40 times (a); idle 3 %; 5,000 lenses 2 %.
FOUND: see RESULTS.md; no GPU has been at hand yet.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from extract import as_pack, device_name, measure, synchronise, texts

from lenscache.extract import ExtractSettings, extract
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel, find_blocks, silence

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
    arguments = parser.parse_args()
    silence()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    loaded = random_model(device, "float32" if arguments.tiny else "bfloat16", tiny=arguments.tiny)
    figures: dict[str, Any] = {"device": device_name(device), "model": loaded.id}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "floor": lambda: floor(loaded),
        "step": lambda: step(loaded),
        "idle": lambda: idle(loaded, 64 if arguments.tiny else 1024),
        "extract": lambda: whole(loaded, tiny=arguments.tiny),
    }
    if not arguments.tiny:
        parts |= {"monitor": monitor, "tests": tests}
    lines = [f"{figures['device']}, {loaded.id}"]
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            found = part()
        except (
            RuntimeError,
            ArithmeticError,
            subprocess.SubprocessError,
        ) as error:  # the rest is worth having
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


def step(loaded: LoadedModel) -> dict[str, Any]:
    """Milliseconds of a decode step at batch 4, from runs of 20 and of 10 new tokens."""
    rows = [Row(list(range(2, 34)), seed, 0.7) for seed in range(4)]
    found = {}
    for name, replay in (("step_ms", True), ("step_eager_ms", False)):
        seconds = {}
        for new_tokens in (NEW_TOKENS // 2, NEW_TOKENS):
            runner = Runner(
                loaded,
                range(loaded.n_layers),
                max_new_tokens=new_tokens,
                batch_size=4,
                replay=replay,
            )
            times = []
            for _ in range(8):
                synchronise(loaded.device)
                start = time.perf_counter()
                runner.run(rows)
                synchronise(loaded.device)
                times.append(time.perf_counter() - start)
            seconds[new_tokens] = min(times[2:])  # a graph is recorded in the first
        found[name] = (
            (seconds[NEW_TOKENS] - seconds[NEW_TOKENS // 2]) / (NEW_TOKENS - NEW_TOKENS // 2) * 1e3
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
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return {"idle": 1 - busy / (until - spans[0][0])}


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
