"""What extraction costs beside the old ways, and beside the model alone.

    python benchmarks/extract.py [--model smollm2-135m] [--device auto] [--dtype float32] [--quick]
                                 [--whole] [--bare] [--json FILE]

One process, the sides in turns, each on prompts of the starter pack and longer ones made of them (6
to about 120 tokens), in an order that is not that of their length. Combined mode, 20 new tokens,
all transformer blocks:

ours     `lenscache extract` into a store, at batch 4 and at `--batch-size auto`; every row has a
         temperature and a seed
(a)      the way before: one prompt at a time, a prompt pass with `output_hidden_states`, then
         `generate` with `output_hidden_states` from the start, means over positions, one file a
         prompt
(b)      the same in batches of 4, padded, in the order given
(c)      the model alone: prefill and one forward pass a token in batches of 4 by length, greedy,
         with a cache; nothing is captured, sampled or stored

Prompt mode, middle block:

ours     at `--batch-size auto`
(d)      right padding, prompt order, batches of 8, all blocks and the head, one file a prompt

"idle" is the share of the wall clock outside the model's forward passes, blocks being encoded and
written beside them; `gpu.py` takes it from the kernels. Peak memory is the device's on a GPU, and
on a CPU the whole process's so far.

A whole small run, from its start with the model in memory to its verified end: 144 prompts in
combined mode in batches of 16, beside the time of the same run in which rows were extracted.

What a run costs once is left out of the other sides, and told apart, since a real one has thousands
of prompts: laying out the store, trying batch sizes, and verifying some rows. (a) and (b) run on a
share of the prompts, drawn anew each turn, and their time is scaled by the prompts. Ratios are
medians over turns, with the lowest and the highest. On a machine with other work,
OMP_WAIT_POLICY=passive keeps threads from spinning for cores they do not get.

PREDICTED, 2 cores, SmolLM2, float32: 3 (a) and 1.5 (b) at batch 4, 0.95 of (c); 6 (a) and 3.5 (b)
at auto; 4 of (d).
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import lenscache.extract.round
from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractProgress, ExtractReport, ExtractSettings, extract
from lenscache.model.loading import LoadedModel, load_model, silence

STARTER = Path(__file__).parents[1] / "data" / "packs" / "starter.json"
NEW_TOKENS = 20
BOUNDS = {
    "batch4_vs_single": 2.2,
    "batch4_vs_batched": 1.4,
    "vs_bare_loop": 0.95,
    "auto_vs_single": 6.0,
    "auto_vs_batched": 4.0,
    "prompt_auto_vs_right_padded": 4.0,
}
BARE = ("batch 4", "(c) bare loop")
SMALL_RUN, MOST_OF_SMALL_RUN = 144, 1.35
"""Prompts of a whole small run, and what it may take beside its extraction alone."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, help="prompts; default 256, 64 with --quick")
    parser.add_argument("--turns", type=int, help="default 3, 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and turns")
    parser.add_argument("--whole", action="store_true", help="the whole small run alone")
    parser.add_argument("--bare", action="store_true", help="batch 4 beside the model alone")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    loaded = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    turns = arguments.turns or (1 if arguments.quick else 3)
    if arguments.whole:
        figures = small_runs(loaded, turns)
        held = report_whole(figures)
    else:
        prompts = texts(arguments.prompts or (64, 256)[not arguments.quick])
        figures = measure(loaded, prompts, turns, only=BARE if arguments.bare else None)
        held = report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(not held and not arguments.quick)


def texts(n: int) -> list[str]:
    """Distinct prompts of mixed length, shuffled."""
    pack, rng = ConceptPack.load(STARTER), np.random.default_rng(0)
    sentences = sorted({example for concept in pack.concepts for example in concept.examples})
    found = [
        " ".join(rng.choice(sentences, 1 if rng.random() < 0.7 else int(rng.integers(2, 9))))
        for _ in range(4 * n)
    ]
    distinct = list(dict.fromkeys(found))[:n]
    rng.shuffle(distinct)
    return distinct


def as_pack(prompts: Sequence[str]) -> ConceptPack:
    """A pack whose samples are just these prompts."""
    concept = {
        "id": "all",
        "name": "all",
        "layer": 0,
        "parents": [],
        "definition": "",
        "aliases": [],
        "examples": list(prompts),
        "contrasts": [],
    }
    return ConceptPack.from_dict(
        # no further prompts that name the concept: the other sides do not run them
        {
            "format_version": 1,
            "name": "b",
            "version": "1",
            "prompts": "examples",
            "concepts": [concept],
        }
    )


def measure(
    loaded: LoadedModel,
    prompts: list[str],
    turns: int,
    *,
    before: LoadedModel | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Seconds a prompt of every side, turn by turn, and the ratios; (a) runs on the model `before`,
    if there is one. `only` names some sides."""
    old = before or loaded
    some = max(8, len(prompts) // 8)
    n_tokens = {prompt: len(loaded.tokenizer(prompt)["input_ids"]) for prompt in prompts}
    seconds: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    small: list[dict[str, Any]] = []
    continue_one(old, prompts[:1])  # warm
    for turn in range(turns):
        drawn = list(np.random.default_rng(turn).choice(prompts, some, replace=False))
        sides: dict[str, Callable[[], tuple[int, dict[str, Any]]]] = {
            "batch 4": lambda: ours(loaded, prompts, 4),
            "(c) bare loop": lambda: (bare_loop(loaded, prompts), {}),
            "auto": lambda: ours(loaded, prompts, "auto"),
            "(a) one by one": lambda drawn=drawn: (old_way(old, drawn, 1), {}),
            "(b) batches of 4": lambda drawn=drawn: (old_way(loaded, drawn, 4), {}),
            "prompt, auto": lambda: ours(loaded, prompts, "auto", mode="prompt"),
            "(d) right padded": lambda: (right_padded(loaded, prompts), {}),
        }
        for side in only or sides:
            run = sides[side]
            reset_peak(loaded.device)
            start = time.perf_counter()
            done, found = run()
            synchronise(loaded.device)
            spent = found.pop("seconds", time.perf_counter() - start)
            seconds.setdefault(side, []).append(spent / done)
            chosen = drawn if side.startswith(("(a)", "(b)")) else prompts
            new = 0 if side in ("prompt, auto", "(d) right padded") else NEW_TOKENS
            tokens = sum(n_tokens[prompt] + new for prompt in chosen)
            facts[side] = (
                {"tokens/s": round(tokens / spent)} | found | {"peak_gib": peak_gib(loaded.device)}
            )
        if only is None:
            small.append(small_run(loaded))
        line = ", ".join(f"{side} {1 / values[-1]:.2f}" for side, values in seconds.items())
        print(f"turn {turn + 1}, prompts/s: {line}", flush=True)
    pairs = {
        "batch4_vs_single": ("(a) one by one", "batch 4"),
        "batch4_vs_batched": ("(b) batches of 4", "batch 4"),
        "vs_bare_loop": ("(c) bare loop", "batch 4"),
        "auto_vs_single": ("(a) one by one", "auto"),
        "auto_vs_batched": ("(b) batches of 4", "auto"),
        "prompt_auto_vs_right_padded": ("(d) right padded", "prompt, auto"),
    }
    figures: dict[str, Any] = {
        "device": device_name(loaded.device),
        "prompts": len(prompts),
        "seconds": seconds,
    }
    for key, (theirs, mine) in pairs.items():
        if theirs not in seconds or mine not in seconds:
            continue
        ratios = [a / b for a, b in zip(seconds[theirs], seconds[mine], strict=True)]
        figures |= {key: statistics.median(ratios), f"{key}_spread": [min(ratios), max(ratios)]}
    return figures | {"facts": facts, "small_runs": small}


def small_runs(loaded: LoadedModel, turns: int) -> dict[str, Any]:
    """The whole small run alone, a few times."""
    small_run(loaded)  # what the model does for the first time
    found = {"device": device_name(loaded.device)}
    return found | {"small_runs": [small_run(loaded) for _ in range(turns)]}


def small_run(loaded: LoadedModel) -> dict[str, Any]:
    """Seconds of a whole run and of its parts."""
    _, found = ours(loaded, texts(SMALL_RUN), 16)
    print(
        f"whole small run: {found['seconds_whole']:.1f} s, of which {found['seconds']:.1f} extract "
        f"and {found['seconds_verifying']:.2f} verify",
        flush=True,
    )
    return dict(found)


# --- ours ---------------------------------------------------------------------------------------


def ours(
    loaded: LoadedModel, prompts: list[str], batch_size: int | str, mode: Any = "combined"
) -> tuple[int, Any]:
    """A whole extraction, into a store on disk."""
    model_layers = (loaded.n_layers // 2,) if mode == "prompt" else None
    settings = ExtractSettings(
        mode=mode,
        max_new_tokens=NEW_TOKENS,
        batch_size=batch_size,  # type: ignore[arg-type]
        model_layers=model_layers,
    )
    verifying = before = begun = 0.0

    def timed(check: Callable[..., Any]) -> Callable[..., Any]:
        def call(*its: Any) -> Any:
            nonlocal verifying, before
            start, forward_before = time.perf_counter(), forward.seconds
            found = check(*its)
            verifying += time.perf_counter() - start
            before += forward.seconds - forward_before
            return found

        return call

    def tell(progress: ExtractProgress) -> None:
        nonlocal before, begun
        if not progress.rows_run:  # up to here the store was laid out and batch sizes were tried
            before, begun = forward.seconds, time.perf_counter()

    its = lenscache.extract.round
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(its, "check_batches", timed(its.check_batches)),
        patch.object(its, "check_block", timed(its.check_block)),
        ForwardTime(loaded) as forward,
    ):
        start = time.perf_counter()
        report: ExtractReport = extract(
            Path(folder) / "s.zarr", as_pack(prompts), loaded, settings, on_progress=tell
        )
        ended = time.perf_counter()
    running = ended - begun - verifying
    # on other devices a forward pass returns before the device is through with it
    on_cpu = loaded.device.type == "cpu"
    return report.rows_run, {
        "seconds": running,
        "idle": 1 - (forward.seconds - before) / running if on_cpu else None,
        "seconds_whole": ended - start,
        "seconds_verifying": verifying,
        "seconds_to_start": begun - start,
        "batch_size": report.batch_size,
        "largest_error": report.max_relative_error,
    }


class ForwardTime:
    """Seconds spent inside the model's forward pass while this is open, even where a hook ends one
    early."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._start, self.seconds = loaded.model, 0.0, 0.0

    def __enter__(self) -> ForwardTime:
        self._handles = [
            self._model.register_forward_pre_hook(self._begin),
            self._model.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: object) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


# --- baselines ----------------------------------------------------------------------------------


@torch.inference_mode()
def old_way(loaded: LoadedModel, prompts: Sequence[str], batch_size: int) -> int:
    """(a) and (b): the prompt and the generation run separately, all hidden states of every step
    kept."""
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            for number, vectors in enumerate(continue_one(loaded, batch)):
                np.savez(Path(folder) / f"{start + number}.npz", *vectors)
    return len(prompts)


@torch.inference_mode()
def continue_one(loaded: LoadedModel, batch: Sequence[str]) -> list[list[np.ndarray]]:
    """Mean over prompt positions and over generated ones, of every block, for each prompt of a
    padded batch."""
    tokenizer = loaded.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    inputs = tokenizer(list(batch), return_tensors="pt", padding=True).to(loaded.device)
    mask = inputs["attention_mask"].bool()
    states = loaded.model(**inputs, output_hidden_states=True).hidden_states[1:]
    prompt = [
        [s[i][mask[i]].float().mean(0).cpu().numpy() for s in states] for i in range(len(batch))
    ]
    generated = loaded.model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        temperature=0.7,
        output_hidden_states=True,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.eos_token_id,
    ).hidden_states
    completion = [
        [
            torch.stack([step[block + 1][i, -1] for step in generated[1:] or generated])
            .float()
            .mean(0)
            .cpu()
            .numpy()
            for block in range(loaded.n_layers)
        ]
        for i in range(len(batch))
    ]
    return [[np.stack(p), np.stack(c)] for p, c in zip(prompt, completion, strict=True)]


@torch.inference_mode()
def bare_loop(loaded: LoadedModel, prompts: list[str], batch_size: int = 4) -> int:
    """(c): nothing but the model; the same padding and order as ours."""
    rows = sorted((loaded.tokenizer(prompt)["input_ids"] for prompt in prompts), key=len)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch], device=loaded.device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in batch], device=loaded.device
        )
        output = loaded.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        for _ in range(NEW_TOKENS - 1):
            token = output.logits[:, -1].argmax(dim=1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            cache = {loaded.cache_argument: loaded.cache_of(output)}
            output = loaded.model(input_ids=token, attention_mask=mask, **cache, use_cache=True)
    return len(rows)


@torch.inference_mode()
def right_padded(loaded: LoadedModel, prompts: list[str], batch_size: int = 8) -> int:
    """(d): prompt mode as it is often written."""
    tokenizer, block = loaded.tokenizer, loaded.n_layers // 2
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(prompts), batch_size):
            inputs = tokenizer(
                prompts[start : start + batch_size], return_tensors="pt", padding=True
            ).to(loaded.device)
            states = loaded.model(**inputs, output_hidden_states=True).hidden_states[block + 1]
            mask = inputs["attention_mask"].unsqueeze(2)
            means = ((states * mask).sum(dim=1) / mask.sum(dim=1)).float().cpu().numpy()
            for number, vector in enumerate(means):
                np.save(Path(folder) / f"{start + number}.npy", vector)
    return len(prompts)


# --- the device ---------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far; that of a CPU's process cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """GiB at most since `reset_peak` on a GPU, since it began in the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name(device: torch.device) -> str:
    """What it ran on."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )


# --- what must hold -----------------------------------------------------------------------------


def report(figures: dict[str, Any]) -> bool:
    """Print the tables; whether every bound holds."""
    print(f"\n{figures['device']}, {figures['prompts']} prompts")
    print(f"{'side':18}  prompts/s (median, lowest to highest)   facts")
    for side, values in figures["seconds"].items():
        rates = sorted(1 / value for value in values)
        found = {
            k: round(v, 4) if isinstance(v, float) else v
            for k, v in figures["facts"][side].items()
            if v is not None
        }
        shown = ", ".join(f"{k} {v}" for k, v in found.items())
        print(
            f"{side:18}  {statistics.median(rates):7.2f}  ({rates[0]:.2f} to {rates[-1]:.2f})   "
            f"{shown}"
        )
    print()
    held = True
    for key, bound in BOUNDS.items():
        if key not in figures:
            continue
        low, high = figures[f"{key}_spread"]
        holds = figures[key] >= bound
        held &= holds
        verdict = "holds" if holds else "DOES NOT HOLD"
        print(f"{key}: {figures[key]:.2f} ({low:.2f} to {high:.2f}), at least {bound}: {verdict}")
    return held and (not figures["small_runs"] or report_whole(figures))


def report_whole(figures: dict[str, Any]) -> bool:
    """Print what a whole small run takes; whether the bound holds."""
    runs = figures["small_runs"]
    ratios = sorted(run["seconds_whole"] / run["seconds"] for run in runs)
    share = statistics.median(run["seconds_verifying"] / run["seconds_whole"] for run in runs)
    holds = statistics.median(ratios) <= MOST_OF_SMALL_RUN
    print(
        f"whole small run / its extraction: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}), at most {MOST_OF_SMALL_RUN}: {'holds' if holds else 'DOES NOT HOLD'}; "
        f"{share:.1%} of it verifies"
    )
    return holds


if __name__ == "__main__":
    main()
