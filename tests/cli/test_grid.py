"""`lenstrain fit` for several combinations: a folder each, a table, and an exit code that tells of
any that failed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error, tree

OPTIONS = ["--level", "0", "--max-iterations", "2", "--model-layers", "1", "--f1", "0.5"]


def test_each_combination_has_a_folder_and_a_row_and_the_best_of_calibration_is_marked(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = [
        *OPTIONS,
        "--f1",
        "0.9",
        "--family",
        "linear",
        "--family",
        "mean-difference",
        "--out",
        tmp_path / "g",
    ]
    result = lenstrain("fit", finished_store, *options)
    assert result.exit_code == 0, result.stderr
    names = [
        f"{family}-f1-{f1}-layers-1"
        for family in ("linear", "mean-difference")
        for f1 in ("0.5", "0.9")
    ]
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == sorted(names)
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:5]}
    assert list(rows) == names
    shown = json.loads(
        lenstrain("fit", finished_store, *options, "--json").stdout, parse_constant=pytest.fail
    )
    assert [each["kept"] for each in shown["packs"]] == [True] * 4
    marked = [name for name, row in rows.items() if re.search(r"\d\* ", row)]
    assert marked == [shown["best"]]
    scores = {each["name"]: each["calibration_score"] for each in shown["packs"]}
    assert scores[shown["best"]] == max(scores.values())
    assert "Choose by it alone: other figures are of the test split" in " ".join(
        result.stdout.split()
    )


def test_a_pack_of_a_grid_is_that_of_a_fit_alone(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--text", "--refine"]
    lenstrain("fit", finished_store, *options, "--f1", "0.9", "--out", tmp_path / "grid")
    lenstrain("fit", finished_store, *options, "--out", tmp_path / "alone")
    grid, alone = tree(tmp_path / "grid" / "linear-f1-0.5-layers-1"), tree(tmp_path / "alone")
    for name in ("run.json", "text/run.json"):
        assert grid.pop(name)
        assert alone.pop(name)
    assert grid == alone


def test_one_combination_that_fails_is_named_and_the_others_are_written(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--model-layers", "9", "--out", tmp_path / "g", "--json"]
    result = lenstrain("fit", finished_store, *options)
    assert result.exit_code == 1
    reason = "model layer 9 is not in the store, which has 0-2"
    assert f"error: linear-f1-0.5-layers-9: {reason}" in " ".join(result.stderr.split())
    found = json.loads(result.stdout)
    assert found["failed"] == {"linear-f1-0.5-layers-9": reason}
    assert [each["name"] for each in found["packs"]] == ["linear-f1-0.5-layers-1"]
    assert len(LensPack.load(found["packs"][0]["out"])) == 2
    end = json.loads((tmp_path / "g.log.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["failed"]) == ("end", found["failed"])


def test_a_pack_that_was_fitted_otherwise_is_refused_and_overwritten_on_request(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--f1", "0.9", "--out", tmp_path / "g"]
    assert lenstrain("fit", finished_store, *options).exit_code == 0
    before = tree(tmp_path / "g")
    other = [*options, "--initial-samples", "3"]
    result = lenstrain("fit", finished_store, *other)
    assert_one_line_error(
        result, "was fitted otherwise (settings.initial_samples 5, now 3)", "--overwrite"
    )
    assert tree(tmp_path / "g") == before
    assert lenstrain("fit", finished_store, *other, "--overwrite").exit_code == 0
    pack = LensPack.load(tmp_path / "g" / "linear-f1-0.5-layers-1")
    assert pack.provenance["settings"]["initial_samples"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "2"], "--engine ray"),
        (["--follow", "--f1", "0.9"], "--follow fits one combination"),
        (["--follow", "--engine", "ray"], "--follow fits one combination"),
        (["--partial", "--f1", "0.9"], "--partial fits one combination"),
        (["--partial", "--follow"], "--follow waits for the whole store, --partial does not"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    lenstrain: Run, finished_store: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = lenstrain("fit", finished_store, *OPTIONS, "--out", tmp_path / "l", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "l").exists()


def test_without_ray_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    code = f"""
    import sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "ray":
                raise ImportError("blocked")
    sys.meta_path.insert(0, Block())
    from lens_cli.train.app import main
    sys.argv = ["lenstrain", "fit", "nowhere.zarr", "--engine", "ray"]
    sys.argv += ["--out", {str(tmp_path / "l")!r}]
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
def test_the_same_fit_on_ray_writes_the_same_bytes(
    lenstrain: Run, finished_store: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--family", "mlp"]
    result = lenstrain(
        "fit",
        finished_store,
        *options,
        "--engine",
        "ray",
        "--workers",
        "1",
        "--out",
        tmp_path / "ray",
    )
    assert result.exit_code == 0, result.stderr
    assert f"next: lenstrain show {tmp_path}/ray" in " ".join(result.stdout.split())
    lenstrain("fit", finished_store, *options, "--out", tmp_path / "local")
    ray, local = tree(tmp_path / "ray"), tree(tmp_path / "local")
    assert ray.pop("run.json")
    assert local.pop("run.json")
    assert ray == local
