"""Memory of a long extraction beside that of a short one.

    python benchmarks/memory.py [--quick] [--json FILE]

SmolLM2 on 1,000 and on 20,000 prompts, each in a process of its own: the largest resident set, and
what the process held when the model was loaded and nothing had been extracted. Prompt mode and the
first block, so that it takes minutes; what grows with prompts is the same in every mode. The bound
is on the whole: the long run may hold at most 5 % more than the short one. With --tiny a random
model of 32 features in combined mode, where everything else weighs more.

PREDICTED: 2 % more, the texts, token ids and keys of 19,000 more prompts.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BOUND = 0.05
SIZES, QUICK = (1_000, 20_000), (500, 4_000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} and {QUICK[1]} prompts")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, combined mode")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(extract_alone(arguments.child, tiny=arguments.tiny)))
        return
    found = [in_a_process(n, tiny=arguments.tiny) for n in (QUICK if arguments.quick else SIZES)]
    print(
        f"{'prompts':>8}  {'before MiB':>10}  {'peak MiB':>8}  {'of it for the run':>17}  seconds"
    )
    for run in found:
        before, peak = run["before"] / 2**20, run["peak"] / 2**20
        print(
            f"{run['prompts']:8}  {before:10.1f}  {peak:8.1f}  {peak - before:17.1f}  "
            f"{run['seconds']:.1f}"
        )
    growth = found[1]["peak"] / found[0]["peak"] - 1
    print(
        f"growth: {growth:.1%}, at most {BOUND:.0%}: "
        f"{'holds' if growth <= BOUND else 'DOES NOT HOLD'}"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"memory_growth": growth, "runs": found}, indent=1) + "\n"
        )
    sys.exit(growth > BOUND and not arguments.quick)


def in_a_process(n: int, *, tiny: bool) -> dict[str, Any]:
    """`extract_alone` where nothing else has happened."""
    command = [sys.executable, __file__, "--child", str(n), *(["--tiny"] if tiny else [])]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def extract_alone(n: int, *, tiny: bool) -> dict[str, Any]:
    """Extract n prompts: the resident set before, and at its peak."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from lenscache.concepts.pack import ConceptPack
    from lenscache.extract import ExtractSettings, extract
    from lenscache.memory import peak_resident_bytes, resident_bytes
    from lenscache.model.loading import load_model, silence
    from tests.models import tiny_model

    silence()
    loaded = tiny_model() if tiny else load_model("smollm2-135m", dtype="float32")
    concepts = [
        {
            "id": f"c{i}",
            "name": f"c{i}",
            "layer": 0,
            "parents": [],
            "definition": "",
            "aliases": [],
            "contrasts": [],
            "examples": [
                f"Concept {i}, as it was seen for the {k}th time on the road." for k in range(50)
            ],
        }
        for i in range(n // 50)
    ]
    pack = ConceptPack.from_dict(
        {"format_version": 1, "name": "m", "version": "1", "concepts": concepts}
    )
    settings = ExtractSettings(max_new_tokens=4, batch_size=64)
    if not tiny:
        settings = ExtractSettings(mode="prompt", model_layers=(0,), batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        before = resident_bytes()
        report = extract(Path(folder) / "s.zarr", pack, loaded, settings)
    return {
        "prompts": report.rows,
        "before": before,
        "peak": peak_resident_bytes(),
        "seconds": report.elapsed_s,
    }


if __name__ == "__main__":
    main()
