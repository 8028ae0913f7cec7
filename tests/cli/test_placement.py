"""Where the model of a command is: over devices with --device-map."""

from __future__ import annotations

from pathlib import Path

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


def test_a_device_map_and_ray_are_a_usage_error(
    lenscache: Run, extract_options: list[str], tmp_path: Path
) -> None:
    asked = ["--device-map", "auto", "--engine", "ray"]
    result = lenscache("extract", tmp_path / "s.zarr", *extract_options, *asked)
    assert result.exit_code == 2
    assert "Ray gives each worker one GPU" in " ".join(result.stderr.replace("│", " ").split())
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
