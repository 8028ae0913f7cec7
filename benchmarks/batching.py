"""What extraction does beside the model's arithmetic: padding, hooks and sampling, each with and
without.

    python benchmarks/batching.py [--model smollm2-135m] [--quick] [--json FILE]

cuts      prompts of mixed length through a `Runner`, combined mode with 20 new tokens and prompt
          mode: batches filled to 32 and to 64 rows, and batches that end where padding costs more
          than another one, with the overhead that `--batch-size auto` reads off the sizes it tries
hooks     a decode step at batch 4, all blocks captured, beside the same step without hooks
sampling  `sample_tokens` at batch 4 and 64, beside the same arithmetic in fresh tensors

Both sides in one process, in turns; medians over turns, with the lowest and the highest ratio.

PREDICTED: cuts 1.2 times as fast as 32 rows, 1.4 as 64; hooks 2 % of a step; sampling in place 1.5
times as fast.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from extract import as_pack, texts

from lenscache.concepts.plan import plan_samples
from lenscache.extract.batch_size import choose_batch, make_runner
from lenscache.extract.identity import make_header
from lenscache.extract.rows import PlannedRows, tokenize
from lenscache.extract.settings import ExtractSettings
from lenscache.inference.batches import BatchLimits
from lenscache.inference.capture import Capture
from lenscache.inference.sampling import sample_tokens
from lenscache.model.loading import LoadedModel, load_model, silence

NEW_TOKENS = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and turns")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    loaded = load_model(arguments.model, dtype="float32", device="cpu")
    print(f"{torch.get_num_threads()} threads")
    figures = {
        "cuts": cuts(loaded, *((48, 1) if arguments.quick else (128, 3))),
        "hooks": hooks(loaded, 4 if arguments.quick else 12),
        "sampling": sampling(20 if arguments.quick else 100),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def in_turns(sides: dict[str, Callable[[], object]], turns: int, against: str) -> dict[str, Any]:
    """Median seconds of each side, and how many times as long as `against` each takes."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    figures: dict[str, Any] = {}
    for side, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[against], strict=True)]
        spread = min(ratios), statistics.median(ratios), max(ratios)
        figures[side] = {"seconds": statistics.median(values), "ratio": spread}
        print(
            f"  {side:28} {statistics.median(values) * 1e3:10.2f} ms, {spread[1]:.2f} of "
            f"{against!r} ({spread[0]:.2f} to {spread[2]:.2f})",
            flush=True,
        )
    return figures


def cuts(loaded: LoadedModel, n: int, turns: int) -> dict[str, Any]:
    """The same rows in filled batches and in cut ones, by mode."""
    pack, figures = as_pack(texts(n)), {}
    for mode in ("combined", "prompt"):
        settings = ExtractSettings(
            mode=mode,  # type: ignore[arg-type]
            max_new_tokens=NEW_TOKENS,
            model_layers=None if mode == "combined" else (loaded.n_layers // 2,),
        )
        header, plan = make_header(loaded, pack, settings), plan_samples(pack, [0])
        rows = PlannedRows(plan, tokenize(loaded, plan.texts))
        choice = choose_batch(partial(make_runner, loaded, header), [rows], most=256)
        overhead = choice.limits.overhead
        print(f"{mode}, {len(rows)} prompts; found: {choice}, overhead {overhead} positions")
        every = rows[:]
        runners = {
            "cut": make_runner(loaded, header, BatchLimits(64, overhead=overhead)),
            "32 rows": make_runner(loaded, header, BatchLimits(32)),
            "64 rows": make_runner(loaded, header, BatchLimits(64)),
        }
        figures[mode] = in_turns(
            {side: partial(runner.run, every) for side, runner in runners.items()}, turns, "cut"
        )
        figures[mode]["overhead"] = overhead
    return figures


@torch.inference_mode()
def hooks(loaded: LoadedModel, turns: int) -> dict[str, Any]:
    """Ten decode steps at batch 4."""
    print("ten decode steps at batch 4")
    ids = torch.arange(4 * 40).reshape(4, 40) + 5
    capture = Capture(loaded.blocks, range(loaded.n_layers))

    def steps() -> None:
        mask = torch.ones_like(ids)
        output = loaded.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        cache = {loaded.cache_argument: loaded.cache_of(output)}
        for _ in range(10):
            mask = torch.cat([mask, mask[:, :1]], dim=1)
            capture.count(torch.ones(4, 1, dtype=torch.bool))
            loaded.model(input_ids=ids[:, :1], attention_mask=mask, **cache, use_cache=True)

    def captured() -> None:
        with capture:
            capture.start(4)
            steps()
            capture.pooled()

    def bare() -> None:
        capture.start(4)
        steps()

    bare()
    return in_turns({"bare": bare, "all blocks captured": captured}, turns, "bare")


def sampling(turns: int) -> dict[str, Any]:
    """A token for each of 4 and of 64 rows."""
    figures = {}
    for n in (4, 64):
        print(f"sampling at batch {n}")
        drawn = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(n, 49152, generator=drawn)
        temperature, uniform = (
            torch.full((n,), 0.6),
            torch.rand(n, generator=drawn, dtype=torch.float64),
        )
        sides = {
            "in place": partial(sample_tokens, logits, temperature, uniform),
            "in fresh tensors": partial(sample_in_fresh_tensors, logits, temperature, uniform),
        }
        assert torch.equal(*(side() for side in sides.values()))
        figures[n] = in_turns(sides, turns, "in place")
    return figures


def sample_in_fresh_tensors(
    logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """What `sample_tokens` does to logits of a vocabulary of whole chunks, each operation into a
    new tensor."""
    scaled = logits / temperature.unsqueeze(1)
    weights = torch.exp(scaled - scaled.amax(dim=1, keepdim=True))
    chunks = torch.nn.functional.pad(weights, (0, 0)).reshape(len(logits), -1, 256)
    totals = chunks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    target = uniform.unsqueeze(1) * totals[:, -1:]
    chunk = torch.searchsorted(totals, target, right=True)
    before = torch.where(chunk > 0, totals.gather(1, (chunk - 1).clamp(min=0)), 0.0)
    inside = chunks[torch.arange(len(logits)), chunk[:, 0]].double().cumsum(dim=1)
    return (chunk * 256 + torch.searchsorted(inside, target - before, right=True)).squeeze(1)


if __name__ == "__main__":
    main()
