from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lens_cli.cache import preflight as command
from lens_cli.cache import preflight_lenses

from lenscache.preflight import CheckResult, PreflightReport, Verdict
from lenscache.preflight.directions import SteeringLenses
from lenscache.preflight.results import Request
from tests.cli.conftest import Run


def test_the_command_answers_in_words_and_leaves_nothing_behind(
    lenscache: Run,
    model_folder: Path,
    pack_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ran = lenscache(
        "preflight",
        "--model",
        model_folder,
        "--pack",
        pack_file,
        "--device",
        "cpu",
        "--quick",
        "--checks",
        "1,5",
    )
    assert ran.exit_code == 0, ran.output
    assert "1. Does bf16 load and run? passed" in ran.stdout
    assert "5. Can we steer, and in which precision? passed" in ran.stdout
    assert "Steer in" in ran.stdout
    assert "own lens" in ran.stdout
    assert "judged by finite values alone" not in ran.stdout
    assert "extracting" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_lenses_of_both_precisions_are_compared_and_kept(
    lenscache: Run, model_folder: Path, pack_file: Path, tmp_path: Path
) -> None:
    ran = lenscache(
        "preflight",
        "--model",
        model_folder,
        "--pack",
        pack_file,
        "--device",
        "cpu",
        "--quick",
        "--checks",
        "4",
        "--json",
        "--keep",
        tmp_path / "kept",
    )
    assert ran.exit_code == 0, ran.output
    (check,) = json.loads(ran.stdout)["checks"]
    assert check["verdict"] == "passed"
    assert [(row["fitted"], row["judged"]) for row in check["details"]["quality"]] == [
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
    ]
    assert {entry.name for entry in (tmp_path / "kept").iterdir()} == {
        "float32.zarr",
        "bfloat16.zarr",
        "steering.npz",
    }
    lenses = SteeringLenses.load(tmp_path / "kept")
    assert lenses is not None
    assert len(lenses.concepts) == 2
    assert lenses.steered_layer < lenses.read_layer


def test_a_model_that_is_not_there_is_one_line(lenscache: Run, tmp_path: Path) -> None:
    ran = lenscache("preflight", "--model", tmp_path / "none", "--checks", "1")
    assert ran.exit_code == 1
    assert "error: cannot load the model" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not ran.stdout


def test_a_pack_that_is_not_there_is_told_before_anything_runs(
    lenscache: Run, tmp_path: Path
) -> None:
    ran = lenscache("preflight", "--model", "m", "--pack", tmp_path / "none.json")
    assert ran.exit_code == 1
    assert "no concept pack at" in ran.stderr


@pytest.mark.parametrize("asked", ["6", "1,x", ""])
def test_checks_that_do_not_exist_are_a_usage_error(lenscache: Run, asked: str) -> None:
    assert lenscache("preflight", "--model", "m", "--checks", asked).exit_code == 2


def report(verdict: Verdict) -> PreflightReport:
    check = CheckResult(2, "memory", "Does batch 4 fit?", verdict, "because [x]", {}, 1.0)
    return PreflightReport("m", (check,), "Do this. [Not a tag]")


@pytest.mark.parametrize(
    ("verdict", "code"), [("passed", 0), ("skipped", 0), ("failed", 1), ("crashed", 1)]
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_exit_code_says_whether_a_check_failed(
    lenscache: Run,
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    code: int,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setattr(
        "lenscache.preflight.run_preflight", lambda *_, **__: report(Verdict(verdict))
    )
    ran = lenscache("preflight", "--model", "m", *options)
    assert ran.exit_code == code
    assert "because [x]" in ran.stdout
    assert "Do this. [Not a tag]" in ran.stdout


def test_options_reach_the_library(
    lenscache: Run, monkeypatch: pytest.MonkeyPatch, pack_file: Path
) -> None:
    seen: list[Any] = []

    def run(request: Request, **options: Any) -> PreflightReport:
        seen.append((request, options))
        return report(Verdict.passed)

    monkeypatch.setattr("lenscache.preflight.run_preflight", run)
    ran = lenscache(
        "preflight",
        "--model",
        "m",
        "--pack",
        pack_file,
        "--checks",
        "3, 1",
        "--quick",
        "--device",
        "cuda:1",
        "--time-limit",
        "60",
        "--keep",
        "here",
        "--seed",
        "3",
    )
    assert ran.exit_code == 0, ran.output
    ((request, options),) = seen
    assert request == Request("m", "cuda:1", str(pack_file), "", quick=True, seed=3)
    assert (options["numbers"], options["time_limit_s"], options["keep"]) == (
        (1, 3),
        60,
        Path("here"),
    )
    assert options["lens_module"] == "lens_cli.cache.preflight_lenses"


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (0,)), (2, (1,)), (3, (1, 2)), (12, (4, 6, 8)), (30, (10, 15, 20))]
)
def test_activations_are_taken_in_the_middle_of_the_model(
    n: int, expected: tuple[int, ...]
) -> None:
    assert preflight_lenses.model_layers_of(n) == expected


class Found:
    """A transfer with one difference throughout."""

    concepts, model_layers, skipped = ("x",), (1,), {"y": "too few"}

    def __init__(self, low: float, high: float) -> None:
        from lenstrain.fit.transfer import Change

        self._change = Change((low + high) / 2, low, high)

    def change(self, *_: str) -> dict[str, Any]:
        return {"f1": self._change, "score": self._change}

    def quality(self, *_: str) -> Any:
        from lenstrain.fit.transfer import Quality

        return Quality(0.9, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.2, -0.021, "failed"), (-0.2, -0.01, "passed"), (-0.001, 0.001, "passed")],
)
def test_lenses_fail_only_if_the_whole_interval_is_a_loss(
    low: float, high: float, verdict: str
) -> None:
    outcome = preflight_lenses.judge(Found(low, high))
    assert outcome.verdict == verdict
    assert outcome.details["skipped"] == {"y": "too few"}


def test_parsing_of_checks() -> None:
    assert command.parse_checks(None) is None
    assert command.parse_checks("5,1,1") == (1, 5)


@pytest.mark.parametrize("function", ["check", "check_steering"])
def test_lenses_that_cannot_be_fitted_are_a_failure_in_one_line(
    function: str,
    model_folder: Path,
    pack_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight_lenses, "_SAMPLES", {True: 2})
    request = Request(str(model_folder), "cpu", str(pack_file), str(tmp_path), quick=True)
    outcome = getattr(preflight_lenses, function)(request, lambda *_: None)
    assert outcome.verdict is Verdict.failed
    assert "samples" in outcome.why
    assert "\n" not in outcome.why
