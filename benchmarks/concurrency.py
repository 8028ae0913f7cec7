"""Readers of a store while it is written: blocks read whole, torn, or refused because they are not
complete yet.

    python benchmarks/concurrency.py [--readers 10] [--seconds 150] [--quick]

One process writes small stores one after another, block by block in random order; the readers,
processes too, open them, keep them open, and compare every block they are given with what must be
in it. Not a measure of speed.

Predicted: not one torn block, since a block's mark is written after everything else and objects are
replaced whole.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lenscache.concurrency import run


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--quick", action="store_true", help="4 readers, 10 seconds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.readers, arguments.seconds = 4, 10
    with tempfile.TemporaryDirectory() as folder:
        counts = run(folder, arguments.readers, arguments.seconds)
    for what, name in (
        ("written", "blocks written"),
        ("right", "blocks read whole"),
        ("torn", "blocks read torn"),
        ("refused", "reads refused, not complete yet"),
        ("grew", "times an open store was seen to have grown"),
    ):
        print(f"{counts[what]:8} {name}")
    if counts["torn"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
