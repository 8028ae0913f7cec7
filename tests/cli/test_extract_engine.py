"""`lenscache extract --engine ray`, as its users start it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lenscache.store.store import open_store
from tests.cli.conftest import Run
from tests.lenscache.test_ray_engine import arrays


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "2"], "--engine ray"),
        (["--engine", "ray", "--device", "cuda:1"], "pass --device cuda"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    lenscache: Run, extract_options: list[str], tmp_path: Path, options: list[str], words: str
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "s.zarr").exists()


def test_a_partition_is_not_for_workers(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache(
        "extract", tmp_path / "s.zarr", *extract_options, "--engine", "ray", "--partition", "1/2"
    )
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "leave one of them out" in line


def test_without_ray_one_line_says_how_to_install_it(pack_file: Path) -> None:
    code = f"""
    import sys
    sys.modules["ray"] = None
    from lens_cli.cache.app import main
    sys.argv = ["lenscache", "extract", "nowhere.zarr", "--pack", {str(pack_file)!r}]
    sys.argv += ["--model", "m", "--engine", "ray"]
    main()
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "error: --engine ray needs Ray: run `pip install '.[ray]'` in a clone of lenscache"
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_write_what_one_process_writes_and_leave_no_process_behind(
    extract_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    runs = {
        name: subprocess.run(
            [
                sys.executable,
                "-c",
                "from lens_cli.cache.app import main; main()",
                "extract",
                tmp_path / name,
                *extract_options,
                *more,
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        for name, more in (("local", []), ("ray", ["--engine", "ray", "--workers", "2"]))
    }
    assert [ran.returncode for ran in runs.values()] == [0, 0], runs["ray"].stderr
    assert arrays(tmp_path / "ray") == arrays(tmp_path / "local")
    assert all(target.is_complete for target in open_store(tmp_path / "ray").rounds())
    for where in ("stdout", "stderr"):
        assert "ray::" not in getattr(runs["ray"], where)
    assert "one by one within" in runs["ray"].stdout
    events = [json.loads(line) for line in (tmp_path / "ray.log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "end"
    assert processes_left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_the_workers_and_says_one_line(
    extract_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    command = [
        sys.executable,
        "-c",
        "from lens_cli.cache.app import main; main()",
        "extract",
        str(tmp_path / "s.zarr"),
        *extract_options,
        "--engine",
        "ray",
        "--workers",
        "2",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any("ray::Worker" in name for name in processes_of(tmp_path)):
        assert running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 130
    assert [line for line in stderr.splitlines() if line.startswith("interrupted: ")]
    assert "Traceback" not in stderr
    assert processes_left(tmp_path) == []


def processes_left(mark: Path) -> list[str]:
    """Processes that are still there when all have had time to end."""
    deadline = time.monotonic() + 30
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def processes_of(mark: Path) -> list[str]:
    """Command lines of the processes begun with STARTED_BY in their environment, Ray's own among
    them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdecimal()
                and f"STARTED_BY={mark}".encode() in (entry / "environ").read_bytes()
            ):
                found.append((entry / "cmdline").read_bytes().decode())
        except OSError:  # it has ended
            continue
    return found
