"""Extraction on Ray: what it costs beside one process, and what becomes of it when workers are
killed.

    python benchmarks/scaleout.py [--model smollm2-135m] [--kills] [--quick] [--json FILE]

overhead  the same prompts through the local engine and through Ray with one worker and with two, in
          turns, each into a store of its own. Timed from the first block handed out, with all
          models loaded, to the last one written. One worker has all cores, of two each has half: on
          one machine nothing is to be gained, and what Ray itself costs is what shows.
--kills   two workers on a store in a real S3 server on this machine, behind a proxy that fails one
          request in eight; ten times, whenever something was done since the last, a random worker
          is killed. Then the store is verified and compared with that of one undisturbed process.

--quick runs fewer prompts and turns, and kills workers with a tiny model.

PREDICTED on two cores: 1.03 times the local engine's time with one worker, 1.05 with two; goal
1.10. Ten kills: about ten blocks begun again, none lost, none twice.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the faults are those of the tests
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from extract import as_pack, texts

from lenscache.cluster import connected
from lenscache.extract.extraction import LocalEngine, lay_out
from lenscache.extract.ray_driver import RayEngine, _Driver
from lenscache.extract.request import Request
from lenscache.extract.settings import ExtractSettings
from lenscache.model.loading import LoadedModel, load_model, silence
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache import s3_server
from tests.lenscache.faulty_s3 import faulty
from tests.lenscache.test_ray_engine import Killer, slow_model
from tests.packs import small_pack

GOAL = 1.10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kills", action="store_true", help="only the run with kills")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and turns")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    load = partial(load_model, arguments.model, dtype="float32", device="cpu")
    figures: dict[str, Any] = {}
    if not arguments.kills:
        figures |= overhead(load, *((48, 1) if arguments.quick else (192, 3)))
    if arguments.kills or not arguments.quick:
        figures |= kills(
            slow_model if arguments.quick else load,
            3 if arguments.quick else 10,
            tiny=arguments.quick,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# --- what it costs ------------------------------------------------------------------------------


def overhead(load: Callable[[], LoadedModel], n: int, turns: int) -> dict[str, Any]:
    """Seconds of each engine, turn by turn, and Ray's in those of the local one."""
    settings = ExtractSettings(batch_size=16, block_rows=max(8, n // 8))
    pack, loaded, cores = as_pack(texts(n)), load(), os.cpu_count() or 1
    seconds: dict[str, list[float]] = {"local": [], "Ray, 1 worker": [], "Ray, 2 workers": []}
    with tempfile.TemporaryDirectory() as folder, connected(None, workers=2):
        for turn in range(turns):
            for side, values in seconds.items():
                request = Request(Path(folder) / f"{turn}-{side}", pack, settings)
                torch.set_num_threads(cores)
                values.append(
                    local(request, loaded)
                    if side == "local"
                    else on_ray(request, load, int(side[5]))
                )
            print(
                f"turn {turn + 1}: "
                + ", ".join(f"{side} {v[-1]:.1f} s" for side, v in seconds.items()),
                flush=True,
            )
    figures: dict[str, Any] = {"scaleout_seconds": seconds}
    for side in ("Ray, 1 worker", "Ray, 2 workers"):
        ratios = [a / b for a, b in zip(seconds[side], seconds["local"], strict=True)]
        median = statistics.median(ratios)
        figures[f"{side}, times local"] = median, min(ratios), max(ratios)
        verdict = "holds" if median <= GOAL else "DOES NOT HOLD"
        print(
            f"{side}: {median:.3f} times the local engine ({min(ratios):.3f} to "
            f"{max(ratios):.3f}), {verdict}"
        )
    return figures


def local(request: Request, loaded: LoadedModel) -> float:
    """Seconds of the local engine for all blocks."""
    with lay_out(request, loaded) as extraction:
        start = time.perf_counter()
        for number, shape in enumerate(extraction.shapes):
            for block in range(len(shape.rows_of_blocks)):
                extraction.do(number, block)
        extraction.flush()
        return time.perf_counter() - start


def on_ray(request: Request, load: Callable[[], LoadedModel], workers: int) -> float:
    """Seconds of Ray for all blocks, once every worker has its model."""
    times: list[float] = []
    next_for, note = _Driver._next_for, _Driver._note_written

    def nothing_until_all_are_ready(self: Any, *arguments: Any) -> Any:
        if not all(worker.is_ready for worker in self._workers):
            return None
        times.append(time.perf_counter())
        return next_for(self, *arguments)

    def note_and_time(self: Any, *arguments: Any) -> None:
        note(self, *arguments)
        if not any(self._unwritten):
            times.append(time.perf_counter())
            raise _AllWritten  # verification is the same everywhere

    with (
        patch.object(_Driver, "_next_for", nothing_until_all_are_ready),
        patch.object(_Driver, "_note_written", note_and_time),
    ):
        try:
            RayEngine(load, workers).run(request)
        except _AllWritten:
            return times[-1] - times[0]
    raise AssertionError("unreachable")


class _AllWritten(Exception):  # noqa: N818 - a signal, not an error
    pass


# --- workers that are killed --------------------------------------------------------------------


def kills(load: Callable[[], LoadedModel], times: int, *, tiny: bool) -> dict[str, Any]:
    """A run with kills on S3 that errs, beside one undisturbed process on a disk."""
    settings = ExtractSettings(batch_size=4, block_rows=4, max_new_tokens=8)
    pack = small_pack() if tiny else as_pack(texts(96))
    torch.set_num_threads(1)
    environment = {"OMP_NUM_THREADS": "1"}  # the order of sums depends on the number of threads
    with tempfile.TemporaryDirectory() as folder, s3_server.serving() as url, faulty(url) as server:
        environment |= s3_server.environment(server.url)
        with patch.dict(os.environ, environment), connected(None, workers=2):
            s3_server.connect(url).create_bucket(Bucket="stores")
            undisturbed = Path(folder) / "s.zarr"
            LocalEngine(load()).run(Request(undisturbed, pack, settings))
            killer, start = Killer(times), time.perf_counter()
            request = Request("s3://stores/s", pack, settings)
            report = RayEngine(load, workers=2).run(request, killer)
            seconds = time.perf_counter() - start
        # the store is checked without the proxy
        with patch.dict(os.environ, s3_server.environment(url)):
            damaged = verify_store("s3://stores/s").is_damaged
            blocks = sum(target.n_blocks for target in open_store("s3://stores/s").rounds())
            found = arrays_of(s3_server.objects(s3_server.connect(url), "stores", "s"))
            files = {
                str(f.relative_to(undisturbed)): f.read_bytes()
                for f in undisturbed.rglob("*")
                if f.is_file()
            }
            is_same = found == arrays_of(files)
    figures = {
        "killed": times - killer.left,
        "deaths_seen": killer.died,
        "blocks": blocks,
        "rows": report.rows,
        "faults": dict(server.befell),
        "requests_passed": server.passed,
        "seconds": seconds,
        "damaged": damaged,
        "objects": len(found),
        "same_bytes": is_same,
    }
    print(
        f"{figures['killed']} kills in {seconds:.0f} s, {report.rows} rows in {blocks} blocks; "
        f"{server.passed} requests passed, {sum(server.befell.values())} did not: "
        f"{dict(server.befell)}; store {'DAMAGED' if damaged else 'clean'}, arrays "
        f"{'those' if is_same else 'NOT THOSE'} of one undisturbed process"
    )
    return {"kills": figures}


def arrays_of(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Chunks of arrays; metadata knows when something happened."""
    return {name: data for name, data in tree.items() if not name.endswith("zarr.json")}


if __name__ == "__main__":
    main()
