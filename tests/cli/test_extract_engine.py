"""`lenscache extract --engine ray`, as its users start it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lenscache.store import open_store
from tests.cli.conftest import Run
from tests.lenscache.test_ray_engine import arrays


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--workers", "2"], "--engine ray"), (["--engine", "ray", "--device", "cuda:1"], "pass --device cuda")],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    lenscache: Run, extract_options: list[str], tmp_path: Path, options: list[str], words: str
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "s.zarr").exists()


def test_a_partition_is_not_for_workers(lenscache: Run, extract_options: list[str], tmp_path: Path) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, "--engine", "ray", "--partition", "1/2")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "leave one of them out" in line


def test_without_ray_one_line_says_how_to_install_it(pack_file: Path) -> None:
    code = f"""
    import sys
    sys.modules["ray"] = None
    from lens_cli.lenscache import main
    sys.argv = ["lenscache", "extract", "nowhere.zarr", "--pack", {str(pack_file)!r}, "--model", "m", "--engine", "ray"]
    main()
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == ["error: --engine ray needs Ray: run `pip install 'lenscache[ray]'`"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_write_what_one_process_writes_and_leave_no_process_behind(
    extract_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = {
        name: subprocess.run(
            [sys.executable, "-c", "from lens_cli.lenscache import main; main()", "extract", tmp_path / name,
             *extract_options, *more], capture_output=True, text=True, timeout=300,
        )
        for name, more in (("local", []), ("ray", ["--engine", "ray", "--workers", "2"]))
    }  # fmt: skip
    assert [ran.returncode for ran in runs.values()] == [0, 0], runs["ray"].stderr
    assert arrays(tmp_path / "ray") == arrays(tmp_path / "local")
    assert all(target.is_complete for target in open_store(tmp_path / "ray").rounds())
    for where in ("stdout", "stderr"):
        assert "ray::" not in getattr(runs["ray"], where)
    assert "one by one within" in runs["ray"].stdout
    events = [json.loads(line) for line in (tmp_path / "ray.log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end"
    deadline = time.monotonic() + 30
    while (left := processes_of_workers()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def processes_of_workers() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
        except OSError:
            continue
        if name.startswith(b"ray::Worker"):
            found.append(name.decode())
    return found
