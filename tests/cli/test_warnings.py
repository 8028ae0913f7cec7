"""No command prints that it called something deprecated: those of the demo and those that run a
model, each in a process of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

MODEL = "--model {model} --dtype float32"
COMMANDS = [
    f"lenscache extract {{new}}/store.zarr --pack {{pack}} --max-new-tokens 4 {MODEL}",
    "lenscache info {store}",
    "lenscache verify {store}",
    f"lenscache plan --pack {{pack}} {MODEL}",
    "lenstrain fit {store} --f1 0.95 --out {new}/lenses",
    "lenstrain show {lenses}",
    "lenstrain impact {lenses}",
    "lenstrain report {lenses} --store {store} --beside {lenses} --out {new}/report.html",
    f"lenstrain read {{lenses}} --text 'wings over the roof' {MODEL}",
    f"lenstrain steer {{lenses}} --concept bird --allow-grade C --prompt 'The old man' {MODEL}",
]


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory, lenstrain: Run, finished_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "lenses"
    ran = lenstrain("fit", finished_store, "--out", folder)
    assert ran.exit_code == 0, ran.stderr
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
def test_no_command_prints_that_something_is_deprecated(
    command: str,
    tmp_path: Path,
    pack_file: Path,
    model_folder: Path,
    finished_store: Path,
    lenses: Path,
) -> None:
    places = {
        "new": tmp_path,
        "pack": pack_file,
        "model": model_folder,
        "store": finished_store,
        "lenses": lenses,
    }
    program, *arguments = shlex.split(command.format(**places))
    # Python hides these two kinds from users. They are shown, or they would be found too late.
    shown = "default::DeprecationWarning,default::PendingDeprecationWarning"
    ran = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        env={**os.environ, "PYTHONWARNINGS": shown},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert re.findall(r".*(?:deprecat|FutureWarning).*", ran.stdout, re.IGNORECASE) == []
