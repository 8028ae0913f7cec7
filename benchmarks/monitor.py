"""What a monitor costs while a model generates: the same generation with and without 5,000 lenses
listening.

    python benchmarks/monitor.py [--model smollm2-135m] [--device cuda] [--quick] [--json FILE]

Random lenses, spread over a few model layers, score every generated token, and what fires is asked
for after each. Both sides in one process, in turns; greedy, a fixed number of tokens. `--random 4b`
generates with random weights in the shape of a model of 4 billion parameters (36 blocks of size
2,560), which needs no download.

PREDICTED, of a 4B model on a GPU: under 2 %. The lenses are 51 MB to read beside the 8 GB of the
model, and the monitor some 40 kernels beside more than 500. Of SmolLM2 on one CPU core: about 10 %,
since 5,000 lenses of size 576 are 11.5 MB beside the 270 MB of the model, and the model is small
enough for the calls to matter. The goal is 5 % on a GPU.
FOUND, in CPU time on a busy machine, SmolLM2 in bfloat16 on one core, 5 model layers: +5 % alone
(quartiles -5 and +7) and +3 % in batches of 8 (0 and +4). No GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lenscache.live.listening import listen
from lenscache.model.loading import load_model
from lenstrain.families.linear import LinearWeights
from lenstrain.live.monitor import Monitor
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance

GOAL = 0.05


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--random", choices=["4b"], help="random weights in this shape, instead of --model"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--lenses", type=int, default=5000)
    parser.add_argument(
        "--model-layers", type=int, default=5, help="model layers that the lenses are spread over"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--poll",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask what fires each token",
    )
    parser.add_argument(
        "--quick", action="store_true", help="5 turns of 24 tokens rather than 15 of 96"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = (
        random_model(arguments.device, arguments.dtype)
        if arguments.random
        else loaded_model(arguments)
    )
    n_tokens, n_turns = (24, 5) if arguments.quick else (96, 15)
    pack = random_pack(model.config, arguments.lenses, arguments.model_layers)
    monitor = Monitor(pack, on_scores=ask if arguments.poll else None)
    seconds(model, monitor, 8, arguments.batch)
    ratios, bare = [], []
    for turn in range(n_turns):
        sides = [None, monitor] if turn % 2 else [monitor, None]
        took = {side is not None: seconds(model, side, n_tokens, arguments.batch) for side in sides}
        ratios.append(took[True] / took[False] - 1)
        bare.append(took[False] / n_tokens * 1e3)
    report(arguments, ratios, bare)


def report(arguments: argparse.Namespace, ratios: list[float], bare: list[float]) -> None:
    """Print, and write, what was found."""
    low, median, high = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    name, step = arguments.random or arguments.model, float(np.median(bare))
    print(
        f"{name} in {arguments.dtype} on {arguments.device}, batch {arguments.batch}: "
        f"{step:.2f} ms a token; "
        f"{arguments.lenses} lenses on {arguments.model_layers} model layers: {median:+.1%} "
        f"({low:+.1%} to {high:+.1%}, half of {len(ratios)} turns), goal on a GPU {GOAL:.0%}"
    )
    if arguments.json:
        figures = {
            "model": name,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "batch": arguments.batch,
            "lenses": arguments.lenses,
            "model_layers": arguments.model_layers,
            "ms_a_token": step,
            "overhead": median,
            "quartiles": [low, high],
            "turns": ratios,
        }
        arguments.json.write_text(json.dumps(figures, indent=1))


def ask(monitor: Monitor) -> None:
    """What a loop that acts on what fires does after every token."""
    monitor.firing()


def seconds(model: Any, monitor: Monitor | None, n_tokens: int, batch: int) -> float:
    """One generation."""
    ids = torch.arange(100, 116, device=model.device).repeat(batch, 1)
    synchronize(model.device)
    start = time.perf_counter()
    with nullcontext() if monitor is None else listen(model, monitor):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=n_tokens,
            max_new_tokens=n_tokens,
            pad_token_id=0,
        )
    synchronize(model.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def loaded_model(arguments: argparse.Namespace) -> Any:
    """The model asked for."""
    return load_model(arguments.model, dtype=arguments.dtype, device=arguments.device).model


def random_model(device: str, dtype: str) -> Any:
    """Random weights in the shape of a model of 4 billion parameters."""
    config = transformers.Qwen3Config(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def random_pack(config: Any, n_lenses: int, n_model_layers: int) -> LensPack:
    """Lenses that hardly ever fire, as those of a real pack."""
    rng, hidden, n_layers = np.random.default_rng(0), config.hidden_size, config.num_hidden_layers
    model_layers = np.linspace(n_layers // 2, n_layers - 1, n_model_layers).astype(int)
    weights = rng.normal(size=(n_lenses, hidden)).astype(np.float32) / np.float32(hidden) ** 0.5
    lenses = [
        Lens(
            concept=f"c{i}",
            name=f"c{i}",
            level=0,
            model_layers=(int(model_layers[i % n_model_layers]),),
            weights=LinearWeights(weights[i], 0.0),
            threshold=1e6,
            calibrator=Calibrator("sigmoid", (1.0, 0.0)),
            noise=NoiseFloor(0.0, 1.0),
            grade=Grade.A,
            metrics=LensMetrics(),
            trajectory=(),
        )
        for i in range(n_lenses)
    ]
    return LensPack(lenses, Provenance(), {})


if __name__ == "__main__":
    main()
