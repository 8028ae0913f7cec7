"""How cost grows, and where it stops scaling: forecasts against real small runs, requests counted,
a thousand workers.

    python benchmarks/scaling.py [--quick] [--json FILE]

time       small extractions on one core, forecast from its bandwidth, FLOP/s and cost of a call,
           measured in the same process, and then run: forecast / seen, in CPU time, of the span
           from the first row to the last. SmolLM2 and random models of other sizes, with more or
           fewer concepts, samples, model layers, blocks and hidden values
requests   extractions into a real S3 server on this machine, whose requests are counted: forecast /
           seen
growth     what a model of 8B on 8 H100s costs, and how it changes with one thing at a time;
           forecasts
workers    5,665 concepts, a model of 70B on pairs of H100s, 40 samples a concept and 1,000, into
           S3: makespans of 10 to 1,000 workers by `fleet.py`, with blocks handed out
           (`--engine ray`) and with `--partition k/n`

PREDICTED: time 0.7 to 1.4 of what is seen, median within 15 %; objects and PUT exact, GET and HEAD
within 3 a round; 1,000 workers: efficiency below 5 % with 40 samples, since loading 140 GB takes
longer than the blocks of each, and above 70 % with 1,000; partitions 1.5 to 2 times as long as
handing out, since every straggler keeps its share.
FOUND: see docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from fleet import Fleet, Outcome, Storage, simulate
from store_requests import (
    RoundSize,
    expected_objects,
    expected_requests,
    requests_of_block,
    requests_to_join,
)

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.errors import PlanError
from lenscache.extract import ExtractSettings, Partition, extract
from lenscache.extract.identity import make_header
from lenscache.forecast import (
    DEVICES,
    Device,
    Forecast,
    Workload,
    forecast_run,
    measure_device,
    outline_work,
)
from lenscache.model.loading import LoadedModel, find_blocks, load_model, silence
from lenscache.model.outline import outline_model
from lenscache.store.layout import chunk_rows

ROOT = Path(__file__).parents[1]
FOUNDATION = ROOT / "data" / "packs" / "foundation.json"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs")
    parser.add_argument(
        "--only", choices=("time", "requests", "growth", "workers"), help="one part"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    sys.path.insert(0, str(ROOT))
    figures: dict[str, Any] = {}
    for name, part in (
        ("time", times),
        ("requests", requests),
        ("growth", growth),
        ("workers", workers),
    ):
        if arguments.only in (None, name):
            print(f"== {name}")
            figures[name] = part(quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# --- time ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One small extraction."""

    hidden: int = 256
    blocks: int = 4
    """Transformer blocks; 0 for SmolLM2."""
    concepts: int = 4
    samples: int = 8
    captured: int | None = None
    """Model layers that are stored; None for all."""
    new_tokens: int = 12
    mode: str = "combined"
    batch: int = 8


def times(*, quick: bool) -> dict[str, Any]:
    """Forecast and run."""
    middle = Case()
    cases = [
        middle,
        replace(middle, concepts=12),
        replace(middle, samples=16, concepts=8),
        replace(middle, captured=1),
        replace(middle, hidden=64),
        replace(middle, hidden=512),
        replace(middle, blocks=8),
        replace(middle, batch=32),
        replace(middle, mode="prompt"),
        Case(blocks=0, concepts=2, new_tokens=6),
    ]
    if not quick:
        cases += [
            replace(middle, hidden=1024),
            replace(middle, blocks=16),
            replace(middle, new_tokens=24),
            replace(middle, concepts=40),
            Case(blocks=0, concepts=3),
            Case(blocks=0, concepts=3, captured=1),
            Case(blocks=0, concepts=3, batch=32),
            Case(blocks=0, concepts=3, mode="prompt"),
        ]
    torch.set_num_threads(1)
    smollm2 = load_model("smollm2-135m", dtype="float32", device="cpu")
    found = []
    for case in cases:
        loaded = smollm2 if case.blocks == 0 else random_model(case.hidden, case.blocks)
        ratios = []
        for _ in range(1 if quick else 3):
            # measured anew: the machine is not always as fast
            device = measure_device(torch.device("cpu"), "float32", clock=time.process_time)
            expected, seen = run_case(case, loaded, device)
            ratios.append(expected / seen)
        found.append(
            {**case.__dict__, "forecast_over_seen": statistics.median(ratios), "seen_s": seen}
        )
        print(
            f"{'SmolLM2' if not case.blocks else f'{case.blocks} blocks of {case.hidden}'}, "
            f"{case.concepts} concepts x {case.samples} samples, {case.captured or 'all'} stored, "
            f"{case.mode}, {case.new_tokens} tokens, batch {case.batch}: {seen:.2f} s, forecast / "
            f"seen {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    all_ratios = [entry["forecast_over_seen"] for entry in found]
    print(
        f"all: median {statistics.median(all_ratios):.2f}, {min(all_ratios):.2f} to "
        f"{max(all_ratios):.2f}"
    )
    return {"cases": found, "median": statistics.median(all_ratios)}


def random_model(hidden: int, blocks: int) -> LoadedModel:
    """A random Llama of some shape, with a small vocabulary."""
    from tests.models import tiny_tokenizer

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=300,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = (
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        id=f"random-{hidden}x{blocks}",
        dtype="float32",
        device=torch.device("cpu"),
        blocks=list(find_blocks(model)),
    )


def run_case(case: Case, loaded: LoadedModel, device: Device) -> tuple[float, float]:
    """CPU seconds from the first row to the last, as forecast and as seen; encoding what is stored
    is part of them."""
    pack = ConceptPack.load(FOUNDATION)
    settings = ExtractSettings(
        mode=case.mode,
        max_new_tokens=case.new_tokens,
        samples=case.samples,
        batch_size=case.batch,  # type: ignore[arg-type]
        model_layers=None if case.captured is None else (loaded.n_layers - 1,),
    )
    work = outline_work(pack, loaded, settings, levels=[3], limit=case.concepts)
    estimate = forecast_run(work, settings, device)
    told: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        extract(
            Path(folder) / "s.zarr",
            pack,
            loaded,
            settings,
            levels=[3],
            limit=case.concepts,
            on_progress=lambda _: told.append(time.process_time()),
        )
    return estimate.seconds_a_block * estimate.blocks, told[-1] - told[0]


# --- requests -----------------------------------------------------------------------------------


def requests(*, quick: bool) -> dict[str, Any]:
    """Count what an S3 server is asked for."""
    from tests.models import tiny_model
    from tests.packs import small_pack

    every = ExtractSettings(max_new_tokens=3, model_layers=(0,), block_rows=16, batch_size=16)
    cases: dict[str, tuple[ExtractSettings, tuple[int, ...], int]] = {
        "one round": (every, (1,), 1),
        "two rounds, three model layers": (replace(every, model_layers=(0, 1, 2)), (0, 1), 1),
        "three workers": (every, (1,), 3),
    }
    if not quick:
        cases |= {
            "smaller blocks": (replace(every, block_rows=4), (1,), 1),
            "prompt mode": (replace(every, mode="prompt"), (1,), 1),
            "int8": (replace(every, store_dtype="int8"), (1,), 1),
            "five workers, two rounds": (replace(every, block_rows=8), (0, 1), 5),
        }
    pack, loaded = small_pack(n_examples=6), tiny_model()
    found = {}
    with s3_server() as (s3, counts):
        for number, (name, (settings, levels, parts)) in enumerate(cases.items()):
            before = counts()
            for part in range(1, parts + 1):
                partition = Partition(part, parts) if parts > 1 else None
                its = replace(settings, partition=partition)
                extract(f"s3://lenses/{number}/s.zarr", pack, loaded, its, levels=levels)
            seen = counts() - before
            listed = s3.get_paginator("list_objects_v2").paginate(
                Bucket="lenses", Prefix=f"{number}/"
            )
            objects = sum(len(page.get("Contents", ())) for page in listed)
            header = make_header(loaded, pack, settings)
            assert settings.block_rows is not None
            plans = [plan_samples(pack, [level]) for level in levels]
            rounds = [
                RoundSize(len(plan), len(plan.label_role), settings.block_rows) for plan in plans
            ]
            counted = {
                "concepts": len(pack.concepts),
                "links": sum(len(c.parents) for c in pack.concepts),
            }
            expected = expected_requests(
                header,
                rounds,
                workers=parts,
                **counted,
                chunks_a_block=settings.block_rows
                // chunk_rows(header.hidden, settings.block_rows),
            )
            pairs = {
                "objects": (expected_objects(header, rounds, **counted), objects),
                "PUT": (expected.put, seen["PUT"]),
                "GET": (expected.get, seen["GET"]),
                "HEAD": (expected.head, seen["HEAD"]),
                "LIST": (expected.list, seen["LIST"]),
            }
            found[name] = pairs
            print(
                f"{name}: "
                + ", ".join(f"{kind} {a} forecast, {b} seen" for kind, (a, b) in pairs.items()),
                flush=True,
            )
    return found


@contextmanager
def s3_server() -> Iterator[tuple[Any, Any]]:
    """A client of a server on this machine, and what counts its requests; the environment is set
    for it."""
    from tests.lenscache.counting_s3 import serving_counted
    from tests.lenscache.s3_server import connect, environment

    with (
        tempfile.TemporaryDirectory() as folder,
        serving_counted(Path(folder) / "log") as (url, log),
    ):
        os.environ.update(environment(url))
        client = connect(url)
        client.create_bucket(Bucket="lenses")
        yield client, log.counts


# --- workers ------------------------------------------------------------------------------------


# Amazon's "Best practices design patterns: optimizing Amazon S3 performance": 3,500 PUT and 5,500
# GET a second and prefix, 100 to 200 ms until the first byte, 85 MB/s a connection.
PUTS_PER_SECOND, GETS_PER_SECOND, SECONDS_A_REQUEST = 3500.0, 5500.0, 0.1
STREAM_BYTES_PER_SECOND = 85e6
ENCODED_BYTES_PER_SECOND = 250e6  # of one thread: Blosc with zstd, measured 200 to 340 MB/s

LEVELS = (5, 276, 1070, 1011, 616, 2687)
"""Concepts by level: 5,665 in all, of which the largest level has 2,687."""
ROUGH = {"spread": 0.3, "slow_share": 0.05, "slow_factor": 3.0, "lifetime": 2 * 3600.0}
USUAL = {"spread": 0.1, "slow_share": 0.03, "slow_factor": 2.0, "lifetime": 24 * 3600.0}


LARGE: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
MIDDLE = LARGE | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def outlined(shape: dict[str, Any]) -> LoadedModel:
    """A Llama of some shape, without weights."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(
            folder
        )
        return replace(outline_model(folder), id="large")


def large_work(
    model: LoadedModel, settings: ExtractSettings, concepts: Sequence[int], samples: int
) -> Workload:
    """So many concepts a level, with prompts as long as those of the foundation pack."""
    small = outline_work(ConceptPack.load(FOUNDATION), model, settings, levels=[3])
    drawn = np.random.default_rng(0)
    lengths = tuple(drawn.choice(small.lengths[0], size=n * samples) for n in concepts)
    return small._replace(
        lengths=lengths,
        levels=tuple(range(len(concepts))),
        concepts=sum(concepts),
    )


def growth(*, quick: bool) -> dict[str, Any]:
    """One thing changed at a time."""
    stored = tuple(range(0, 32, 4))
    every: dict[str, Any] = {
        "shape": MIDDLE,
        "concepts": [1000, 1000],
        "samples": 40,
        "devices": 8,
        "new": 20,
        "batch": "auto",
        "stored": stored,
        "mode": "combined",
        "kind": "h100",
        "block_rows": None,
    }
    changes: dict[str, dict[str, Any]] = {
        "2,000 concepts x 40, 8 model layers of 32": {},
        "twice the concepts": {"concepts": [2000, 2000]},
        "twice the samples": {"samples": 80},
        "all 32 model layers": {"stored": tuple(range(32))},
        "70B (hidden 8192, 80 blocks), 16 devices": {"shape": LARGE, "devices": 16},
        "hidden 2048": {
            "shape": MIDDLE
            | {"hidden_size": 2048, "intermediate_size": 7168, "num_attention_heads": 16}
        },
        "16 blocks": {
            "shape": MIDDLE | {"num_hidden_layers": 16},
            "stored": tuple(range(0, 16, 2)),
        },
        "40 new tokens": {"new": 40},
        "prompt mode": {"mode": "prompt"},
        "batch 4": {"batch": 4},
        "blocks of 64 rows": {"block_rows": 64},
        "16 workers": {"devices": 16},
        "64 workers": {"devices": 64},
        "one worker": {"devices": 1},
        "A100s": {"kind": "a100"},
    }
    figures: dict[str, Any] = {}
    for name, change in list(changes.items())[: 6 if quick else None]:
        chosen = every | change
        settings = ExtractSettings(
            batch_size=chosen["batch"],
            model_layers=chosen["stored"],
            max_new_tokens=chosen["new"],
            mode=chosen["mode"],
            block_rows=chosen["block_rows"],
        )
        work = large_work(
            outlined(chosen["shape"]), settings, chosen["concepts"], chosen["samples"]
        )
        found = forecast_run(work, settings, DEVICES[chosen["kind"]], chosen["devices"])
        n_objects = objects(work, found)
        figures[name] = {k: v for k, v in asdict(found).items() if isinstance(v, int | float)}
        figures[name]["objects"] = n_objects
        print(
            f"{name:42} {found.seconds / 60:6.1f} min ({found.seconds_low / 60:.1f} to "
            f"{found.seconds_high / 60:.1f}), {found.device_hours:6.2f} device hours, "
            f"{found.stored_bytes / 1e9:.1f} GB, {n_objects} objects, written in "
            f"{write_seconds(work, found):.1f} s a block into S3",
            flush=True,
        )
    return figures


def rounds_of(work: Workload, found: Forecast) -> list[RoundSize]:
    """The rounds of a forecast; each row is labelled once."""
    return [RoundSize(len(n), len(n), found.block_rows) for n in work.lengths]


def objects(work: Workload, found: Forecast) -> int:
    """Objects of the store, of a pack in which every concept has a parent."""
    pack = {"concepts": work.concepts, "links": work.concepts}
    return expected_objects(work.header, rounds_of(work, found), **pack)


def write_seconds(work: Workload, found: Forecast) -> float:
    """Seconds to write a block into S3: one request after the other, encoded by one thread."""
    asked = requests_of_block(work.header, "ray")
    requests_take = (asked.put + asked.get) * SECONDS_A_REQUEST
    a_block = found.stored_bytes / found.blocks / STREAM_BYTES_PER_SECOND
    return requests_take + a_block + found.raw_bytes / found.blocks / ENCODED_BYTES_PER_SECOND


def workers(*, quick: bool) -> dict[str, Any]:
    """The large case, simulated."""
    figures: dict[str, Any] = {}
    model = outlined(LARGE)
    for samples in (40,) if quick else (40, 1000):
        for stored in (range(80), range(4, 80, 10)):
            name = f"{samples} samples, {len(stored)} model layers"
            figures[name] = _table(name, model, samples, tuple(stored), quick=quick)
    return figures


def _table(
    name: str, model: LoadedModel, samples: int, stored: tuple[int, ...], *, quick: bool
) -> dict[str, Any]:
    settings = ExtractSettings(batch_size="auto", model_layers=stored)
    work = large_work(model, settings, LEVELS, samples)
    lengths = work.lengths
    one = forecast_run(work, settings, DEVICES["h100"], 2)
    rounds = [-(-len(each) // one.block_rows) for each in lengths]
    blocks = np.full(sum(rounds), one.seconds_a_block)
    block, sizes = (
        requests_of_block(work.header, "ray"),
        rounds_of(work, one),
    )
    join = requests_to_join(
        work.header, sizes, concepts=sum(LEVELS), links=sum(LEVELS), engine="ray"
    )
    alone = requests_to_join(work.header, sizes, concepts=sum(LEVELS), links=sum(LEVELS))
    writing = write_seconds(work, one)
    print(
        f"-- {name}: {len(blocks)} blocks of {one.block_rows} rows, {one.seconds_a_block:.1f} s "
        f"each on 2 H100s, written in {writing:.1f} s; loading {one.seconds_to_load:.0f} s; "
        f"{objects(work, one)} objects, {one.stored_bytes / 1e9:.0f} GB; a "
        f"block {block.put} PUT and {block.get} GET, a start {join.get + join.list} (with "
        f"partitions {alone.get + alone.list})"
    )
    ray = Storage(
        writing,
        block.put,
        block.get,
        join.get + join.list,
        PUTS_PER_SECOND,
        GETS_PER_SECOND,
    )
    partitions = replace(ray, gets_a_start=alone.get + alone.list)
    runs: dict[str, tuple[Fleet, Storage, Any]] = {}
    counts = (10, 100, 1000) if quick else (10, 30, 100, 300, 1000)
    for count in counts:
        runs[f"{count} workers, ray"] = Fleet(count, one.seconds_to_load, **USUAL), ray, "dynamic"
        runs[f"{count} workers, partitions"] = (
            Fleet(count, one.seconds_to_load, **USUAL),
            partitions,
            "static",
        )
    thousand = Fleet(1000, one.seconds_to_load)
    free = Storage(writing)
    runs |= {
        "1000, nothing befalls them, no limits": (thousand, free, "dynamic"),
        "1000, stragglers alone": (
            replace(thousand, **{**USUAL, "lifetime": None}),
            free,
            "dynamic",
        ),
        "1000, rough: ray": (replace(thousand, **ROUGH), ray, "dynamic"),
        "1000, rough: partitions": (replace(thousand, **ROUGH), partitions, "static"),
        "1000, writing takes no time": (thousand, Storage(), "dynamic"),
        "1000, loading takes no time": (replace(thousand, load_seconds=0.0), free, "dynamic"),
        "1000, a driver of 10 blocks/s": (
            replace(thousand, tasks_per_second=10.0),
            free,
            "dynamic",
        ),
        "1000, a driver of 100 blocks/s": (
            replace(thousand, tasks_per_second=100.0),
            free,
            "dynamic",
        ),
        "1000, S3's limits alone": (thousand, ray, "dynamic"),
    }
    found = {}
    for what, (fleet, storage, engine) in runs.items():
        try:
            outcomes = [
                simulate(blocks, fleet, storage, engine=engine, rounds=rounds, seed=seed)
                for seed in range(3)
            ]
        except PlanError:
            print(f"{what:40} does not end: workers die before they are through reading the store")
            continue
        found[what] = _medians(outcomes)
        m = found[what]
        print(
            f"{what:40} {m['makespan'] / 60:8.1f} min, efficiency {m['efficiency']:6.1%}, tail "
            f"{m['tail'] / 60:.1f} min, deaths {m['deaths']:.0f}, redone {m['blocks_redone']:.0f}, "
            f"throttled {m['throttled']:.1f} s a block",
            flush=True,
        )
    return {
        "seconds_a_block": one.seconds_a_block,
        "blocks": len(blocks),
        "objects": objects(work, one),
        "runs": found,
    }


def _medians(outcomes: list[Outcome]) -> dict[str, float]:
    fields = [name for name in Outcome._fields if name != "written"]
    return {
        name: float(statistics.median(getattr(outcome, name) for outcome in outcomes))
        for name in fields
    }


if __name__ == "__main__":
    main()
