"""Where the model of a command is: over devices with --device-map, over processes with
--tensor-parallel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error, tree


def test_extract_with_a_device_map_writes_the_same_store(
    lenscache: Run, extract_options: list[str], finished_store: Path, tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, "--device-map", "auto")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "s.zarr") == tree(finished_store)


def test_plan_takes_a_device_map(lenscache: Run, pack_file: Path, model_folder: Path) -> None:
    asked = [
        "--pack",
        pack_file,
        "--model",
        model_folder,
        "--dtype",
        "float32",
        "--level",
        1,
        "--limit",
        2,
    ]
    result = lenscache("plan", *asked, "--device-map", "sequential")
    assert result.exit_code == 0, result.stderr
    assert "tiny: 3 transformer blocks of size 32, float32 on " in result.stderr
    assert lenscache("plan", *asked, "--device-map", "auto", "--devices", 2).exit_code == 2


def test_tensor_parallel_without_torchrun_says_how_to_start(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, "--tensor-parallel")
    assert_one_line_error(
        result, "torchrun --nproc-per-node N --no-python lenscache extract ... --tensor-parallel"
    )
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            ["--tensor-parallel", "--device-map", "auto"],
            "--tensor-parallel places the model itself",
        ),
        (["--tensor-parallel", "--device", "cpu"], "leave out --device and --device-map"),
        (["--tensor-parallel", "--batch-size", "auto"], "tries until memory is full"),
        (["--tensor-parallel", "--engine", "ray"], "Ray gives each worker one GPU"),
        (["--device-map", "auto", "--engine", "ray"], "Ray gives each worker one GPU"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(
    asked: list[str], words: str, lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, *asked)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "s.zarr").exists()


def test_device_map_and_device_are_refused_in_one_line(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    result = lenscache(
        "extract", tmp_path / "s.zarr", *extract_options, "--device-map", "auto", "--device", "cpu"
    )
    assert_one_line_error(
        result, "a device map and the device cpu are given: leave one of them out"
    )
