from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import ModelError, ModelNotFoundError, PlanError
from lenscache.memory import available_bytes, peak_resident_bytes, resident_bytes
from lenscache.preflight import (
    Check,
    Outcome,
    Request,
    Verdict,
    batches,
    models,
    precision,
    run_preflight,
    speed,
    steering,
)
from lenscache.preflight.batches import bytes_per_row, largest_that_fits
from lenscache.preflight.directions import SteeringLenses
from lenscache.preflight.process import plain, run_check
from lenscache.preflight.texts import load_pack, prompt_ids, spread
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack

ROOT = Path(__file__).parents[2]
SILENT = lambda *_: None  # noqa: E731


def save(folder: Path, *, overflow: bool = False, nan: bool = False) -> Path:
    """A tiny Llama as a folder; with `overflow` its residual stream passes 65,504, the end of
    float16."""
    model = tiny_model(seed=5 if overflow else 6 if nan else 0).model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if overflow:
        state["model.layers.0.mlp.down_proj.weight"] *= 1e5
    if nan:
        state["model.layers.1.mlp.down_proj.weight"][:] = float("nan")
    model.save_pretrained(folder, state_dict=state)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("models") / "overflowing", overflow=True))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("packs") / "pack.json"
    small_pack().save(file)
    return str(file)


def request(model: str, **changes: Any) -> Request:
    return Request(model, device="cpu", quick=True, **changes)


# --- processes ----------------------------------------------------------------------------------


def run_fake(what: str, *, time_limit_s: float = 30.0) -> Outcome:
    check = f"tests.lenscache.preflight_checks:{what}"
    return run_check(check, Request("m", folder="here"), time_limit_s=time_limit_s, tell=SILENT)


@pytest.mark.parametrize(
    ("what", "verdict", "why"),
    [
        ("killed", "crashed", "killed by signal 9, probably out of memory"),
        ("segfault", "crashed", "killed by signal 11 (SIGSEGV)"),
        ("raises", "crashed", "RuntimeError: the check has a fault"),
        ("exits", "crashed", "it ended with exit code 3 and without an answer"),
        ("refuses", "failed", "the device cannot be used"),
        ("memory", "failed", "out of memory: MemoryError"),
        ("junk", "passed", "all is well"),
        ("ends", "crashed", "it ended with exit code 0 and without an answer"),
        ("dies_within_a_message", "crashed", "killed by signal 9, probably out of memory"),
    ],
)
def test_whatever_becomes_of_a_check_is_an_outcome(what: str, verdict: str, why: str) -> None:
    outcome = run_fake(what)
    assert (outcome.verdict, outcome.why) == (verdict, why)


def test_a_check_that_hangs_is_stopped() -> None:
    start = time.monotonic()
    outcome = run_fake("hangs", time_limit_s=1.5)
    assert (outcome.verdict, outcome.why) == (Verdict.crashed, "no answer within 2 s: stopped")
    assert time.monotonic() - start < 10


def test_a_module_that_does_not_exist_is_a_crash_with_its_last_words() -> None:
    outcome = run_check("lenscache.no_such_check:check", Request("m"), time_limit_s=30, tell=SILENT)
    assert outcome.verdict is Verdict.crashed
    assert "its last words" in outcome.why
    assert "no_such_check" in outcome.why


def test_a_check_that_closes_its_output_and_goes_on_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lenscache.preflight.process._AT_THE_END_S", 0.2)
    outcome = run_fake("closes")
    assert outcome.verdict is Verdict.crashed
    assert outcome.why.startswith("it closed its output without an answer and did not end")


def test_a_fault_keeps_its_traceback_for_whoever_asks_for_it() -> None:
    assert any("in raises" in line for line in run_fake("raises").details["stderr"])


def test_a_model_that_is_not_there_ends_the_preflight() -> None:
    with pytest.raises(ModelNotFoundError, match="no model there"):
        run_fake("no_model")


def test_progress_and_details_arrive_and_what_is_no_number_becomes_null() -> None:
    told: list[tuple[str, int, int]] = []
    outcome = run_check(
        "tests.lenscache.preflight_checks:passes",
        Request("m", folder="here"),
        time_limit_s=30,
        tell=lambda *at: told.append(at),
    )
    assert told == [("half", 1, 2)]
    assert outcome.details == {"value": None, "folder": "here"}


def test_what_a_check_prints_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_fake("junk").verdict is Verdict.passed
    assert run_fake("raises").verdict is Verdict.crashed
    assert capfd.readouterr() == ("", "")


def test_a_script_without_a_guard_is_not_run_again_by_each_check(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from lenscache.preflight.process import run_check\n"
        "from lenscache.preflight.results import Request\n"
        "print('begun', flush=True)\n"
        "check = 'tests.lenscache.preflight_checks:passes'\n"
        "print(run_check(check, Request('m'), time_limit_s=60, tell=lambda *_: None).why)\n"
    )
    ran = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ran.stdout, ran.stderr) == ("begun\nall is well\n", "")


def test_a_check_ends_when_nobody_waits_for_it() -> None:
    code = (
        "from lenscache.preflight.process import run_check; from lenscache.preflight.results "
        "import Request;run_check('tests.lenscache.preflight_checks:hangs', Request('m'), "
        "time_limit_s=60, tell=lambda *_: print('begun', flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    deadline = time.monotonic() + 10
    while (
        alive := [pid for pid in children if is_alive(int(pid))]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not alive


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_values_become_strict_json() -> None:
    value = {"a": (1.0, float("inf")), 2: [float("nan"), {"b": None}], "c": Verdict.passed}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": [1.0, None],
        "2": [None, {"b": None}],
        "c": "passed",
    }


def fake_check(number: int, what: str, name: str = "bf16") -> Check:
    return Check(number, name, "?", f"tests.lenscache.preflight_checks:{what}")


def test_a_crash_takes_no_other_check_down(tmp_path: Path) -> None:
    checks = [fake_check(1, "killed"), fake_check(2, "passes", "memory")]
    told: list[int] = []
    report = run_preflight(
        Request("m"),
        checks=checks,
        keep=tmp_path / "kept",
        on_progress=lambda at: told.append(at.number),
    )
    assert [result.verdict for result in report.checks] == [Verdict.crashed, Verdict.passed]
    assert not report.passed
    assert set(told) == {1, 2}
    assert (tmp_path / "kept").is_dir()
    assert report.checks[1].details["folder"] == str(tmp_path / "kept")
    json.dumps(report.to_json(), allow_nan=False)


def test_what_checks_leave_is_removed() -> None:
    report = run_preflight(Request("m"), checks=[fake_check(1, "passes")])
    assert report.passed
    assert not Path(report.checks[0].details["folder"]).exists()


def test_a_check_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanError, match="no check 9, only 1, 2, 3, 4, 5"):
        run_preflight(Request("m"), numbers=[1, 9])


def test_without_anything_to_fit_lenses_the_fourth_check_is_skipped() -> None:
    report = run_preflight(Request("m"), numbers=[4])
    assert report.checks[0].verdict is Verdict.skipped
    assert report.passed


# --- texts --------------------------------------------------------------------------------------


def test_the_built_in_concepts_are_those_of_the_starter_pack() -> None:
    starter = ConceptPack.load(ROOT / "data" / "packs" / "starter.json")
    built_in = load_pack(Request("m"))
    assert len(built_in) == 24
    for concept in built_in.concepts:
        theirs = starter[concept.id]
        for field in ("name", "definition", "aliases", "examples", "contrasts"):
            assert getattr(concept, field) == getattr(theirs, field)


def test_concepts_are_spread_over_the_branches_of_the_largest_level() -> None:
    chosen = spread(small_pack(), 3)
    assert [concept.id for concept in chosen.concepts] == ["bird", "boat", "fish"]
    assert not any(concept.parents for concept in chosen.concepts)
    assert len(spread(small_pack(), 99)) == 5


def test_the_first_prompts_are_as_long_as_all_of_them() -> None:
    ids = prompt_ids(tiny_model(), small_pack(), 64, seed=0, new_tokens=4)
    assert len(ids) == 64
    assert np.mean([len(entry) for entry in ids[:12]]) == pytest.approx(
        np.mean([len(entry) for entry in ids]), rel=0.2
    )


# --- the checks ---------------------------------------------------------------------------------


def test_bf16_runs_where_float16_would_overflow(overflowing: str, pack: str) -> None:
    outcome = precision.check(request(overflowing, pack=pack), SILENT)
    assert outcome.verdict is Verdict.passed, outcome.why
    assert outcome.details["largest_activation"] > 65504
    narrow, wide = outcome.details["memory"]
    assert (narrow["dtype"], wide["dtype"]) == ("bfloat16", "float32")
    assert narrow["weights"] * 2 == pytest.approx(wide["weights"], rel=0.01)
    assert narrow["parameter_dtypes"] == {"bfloat16": 30}
    assert {"unicode", "one token, repeated", "long"} <= {
        e["prompt"] for e in outcome.details["prompts"]
    }


def test_a_model_that_is_not_finite_fails_by_model_layer_and_says_whose_fault_it_is(
    tmp_path: Path,
) -> None:
    outcome = precision.check(request(str(save(tmp_path, nan=True))), SILENT)
    assert outcome.verdict is Verdict.failed
    assert "not finite, first 'prompt 1 of the pack' at model layer 1" in outcome.why
    assert "the model itself is at fault" in outcome.why
    assert outcome.details["generation_fault"]


def test_a_float32_copy_that_does_not_fit_is_not_loaded(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "available_bytes", lambda: 1000)
    outcome = precision.check(request(model), SILENT)
    assert outcome.verdict is Verdict.passed
    assert "float32 does not load: the model in float32 needs about 0.0 GB" in outcome.why
    assert len(outcome.details["memory"]) == 1


def test_memory_is_told_apart(model: str) -> None:
    outcome = batches.check(request(model), SILENT)
    assert outcome.verdict is Verdict.passed
    one, four, _ = outcome.details["batches"]
    width = 4 if outcome.details["dtype"] == "float32" else 2
    # keys and values: 3 blocks of 2 heads of 8 features, 64 prompt positions and 7 of the 8 new
    # ones
    assert one["cache"] == 2 * 3 * 2 * 8 * 71 * width
    assert four["cache"] == 4 * one["cache"]
    assert four["peak"] >= four["weights"] + four["cache"]
    assert outcome.details["estimated"]
    assert outcome.details["largest"] >= 4


def test_a_batch_that_would_drive_the_machine_into_swap_is_not_run(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "available_bytes", lambda: 1000)
    monkeypatch.setattr(batches, "peak_resident_bytes", lambda: (resident_bytes() or 0) + 10**6)
    ran: list[int] = []
    run = batches._Probe.run

    def spy(probe: Any, batch: int) -> bool:
        ran.append(batch)
        return run(probe, batch)

    monkeypatch.setattr(batches._Probe, "run", spy)
    outcome = batches.check(request(model), SILENT)
    assert outcome.verdict is Verdict.failed
    assert outcome.why.startswith("batch 4 does not fit")
    assert max(ran) == 1
    assert outcome.details["largest"] == 1


def test_on_a_card_batches_are_tried_until_one_does_not_fit(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is played by numbers: 1 MB for the model and 100 kB a row, 3 MB in all."""
    held = {"peak": 0}

    def run(_: object, batch: int) -> bool:
        held["peak"] = 10**6 + 10**5 * batch
        return batch <= 20

    fake = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: held["peak"],
        "max_memory_reserved": lambda device: 2 * held["peak"],
        "mem_get_info": lambda device: (10**6, 3 * 10**6),
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    loaded, footprint = models.load(model, "float32", "cpu")
    probe = batches._Probe(loaded, footprint.weights, 4)
    monkeypatch.setattr(batches._Probe, "run", run)
    details = batches._on_card(probe, SILENT)
    assert details["largest"] in (18, 19, 20)
    assert not details["estimated"]
    assert [row["batch"] for row in details["batches"]] == [1, 4, details["largest"]]
    four = details["batches"][1]
    assert (four["peak"], four["reserved"]) == (1_400_000, 2_800_000)
    assert four["rest"] == 1_400_000 - footprint.weights - four["cache"]


@pytest.mark.parametrize(
    ("limit", "found"), [(0, 0), (1, 1), (3, 3), (5, 5), (100, 96), (5000, 1024)]
)
def test_the_largest_batch_is_found_by_doubling_and_bisecting(limit: int, found: int) -> None:
    asked: list[int] = []

    def fits(batch: int) -> bool:
        asked.append(batch)
        return batch <= limit

    largest = largest_that_fits(fits, most=1024)
    assert largest <= limit
    assert largest == pytest.approx(found, rel=1 / 8)
    assert len(asked) < 16


def test_what_a_row_adds_is_the_steepest_step() -> None:
    assert bytes_per_row({1: 1000, 4: 1000, 16: 1600}) == 50
    assert bytes_per_row({1: 1000, 4: 900}) == 0
    assert bytes_per_row({}) == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_memory_of_the_process_is_read() -> None:
    resident, peak, free = resident_bytes(), peak_resident_bytes(), available_bytes()
    assert resident
    assert peak
    assert free
    assert 10**7 < resident <= peak * 1.01
    held = torch.ones(2**24)
    assert (resident_bytes() or 0) > resident + 2**25
    del held


def test_speed_compares_four_ways_to_run(
    model: str, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_BUDGET_S", {True: 1.0})
    outcome = speed.check(request(model, pack=pack), SILENT)
    assert outcome.verdict is Verdict.passed
    lines = outcome.details["timings"]
    assert [line["name"] for line in lines[:3]] == [
        "unbatched float32",
        "batch 4 float32",
        "batch 4 bfloat16",
    ]
    assert (
        lines[3]["name"]
        == f"batch auto ({outcome.details['best_batch']}) {outcome.details['best_dtype']}"
    )
    assert lines[0]["ratio"] == 1
    assert all(line["low"] <= line["median"] <= line["high"] for line in lines)


def test_speed_goes_on_without_float32(
    model: str, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_BUDGET_S", {True: 0.5})
    monkeypatch.setattr(models, "available_bytes", lambda: 1000)
    outcome = speed.check(request(model, pack=pack), SILENT)
    assert [line["name"] for line in outcome.details["timings"][:2]] == [
        "unbatched bfloat16",
        "batch 4 bfloat16",
    ]
    assert "float32 is not timed" in outcome.why


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({8: 9.0, 16: 12.0, 32: 12.1, 64: 50.0}, 32),  # hardly faster: no larger batch is tried
        ({8: 3.0, 16: 50.0}, 4),
        ({8: 9.0, 16: 0.0}, 8),  # does not fit
    ],
)
def test_the_best_batch_size_is_looked_for_as_long_as_it_pays(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], best: int
) -> None:
    bench = speed._Bench(small_pack(), Request("m"), 4)
    monkeypatch.setattr(bench, "rate", lambda runner, n: rates[runner.limits.rows])
    assert bench.best_batch(tiny_model(), {1: 2.0, 4: 5.0}, 1000.0, SILENT)[0] == best


def test_a_batch_that_takes_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = speed._Bench(small_pack(), Request("m"), 4)
    assert bench.best_batch(tiny_model(), {1: 0.3, 4: 0.2}, 20.0, SILENT) == (1, {1: 0.3, 4: 0.2})


def test_where_four_rows_do_not_fit_one_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = speed._Bench(small_pack(), Request("m"), 4)
    assert bench.best_batch(tiny_model(), {1: 0.3, 4: 0.0}, 20.0, SILENT) == (1, {1: 0.3})


def test_ratios_are_paired_by_repeat() -> None:
    line = speed.summarise("x", "float32", 4, [2.0, 8.0, 30.0], [1.0, 2.0, 10.0])
    assert (line["median"], line["low"], line["high"]) == (8, 2, 30)
    assert (line["ratio"], line["ratio_low"], line["ratio_high"]) == (3, 2, 4)


# --- steering -----------------------------------------------------------------------------------


def lenses_for(folder: Path) -> SteeringLenses:
    """Two lenses that read along the directions they steer along."""
    units = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 2)))[0].T.astype(np.float32)
    lenses = SteeringLenses(
        ("bird", "boat"), 1, units, np.ones(2), 2, units, np.zeros(2), np.ones(2)
    )
    lenses.save(folder)
    return lenses


def test_steering_works_in_every_precision(model: str, tmp_path: Path) -> None:
    lenses = lenses_for(tmp_path)
    outcome = steering.check(request(model, folder=str(tmp_path)), SILENT)
    assert outcome.verdict is Verdict.passed
    assert outcome.why == "float32: works; bfloat16: works; float16: works"
    steps = {step["strength"]: step for step in outcome.details["precisions"]["float32"]["steps"]}
    assert steps[8.0]["own"] > steps[4.0]["own"] > 0 > steps[-4.0]["own"] > steps[-8.0]["own"]
    assert abs(steps[8.0]["unrelated"]) < steps[8.0]["own"]
    assert outcome.details["precisions"]["float32"]["overflow"] is None
    # float16 ends where the largest feature does; the strength is found to a factor of 2
    overflow, end = (
        outcome.details["precisions"]["float16"]["overflow"],
        65504 / np.abs(lenses.directions[0]).max(),
    )
    assert overflow / 2 < end * 1.05
    assert end < overflow * 1.05


def test_float16_is_reported_as_overflowing_where_bfloat16_is_not(
    overflowing: str, tmp_path: Path
) -> None:
    lenses = lenses_for(tmp_path)
    wide = SteeringLenses(
        lenses.concepts,
        1,
        lenses.directions,
        np.full(2, 1e4),
        2,
        lenses.weights,
        np.zeros(2),
        np.ones(2),
    )
    wide.save(tmp_path)
    outcome = steering.check(request(overflowing, folder=str(tmp_path)), SILENT)
    assert outcome.verdict is Verdict.passed
    tried = outcome.details["precisions"]
    assert tried["bfloat16"]["works"]
    assert not tried["float16"]["works"]
    assert tried["float16"]["why"] == "not finite at model layer 0 even without steering"
    assert tried["float16"]["overflow"] is None


def test_without_lenses_directions_are_random_and_only_finiteness_is_judged(model: str) -> None:
    outcome = steering.check(request(model), SILENT)
    assert outcome.verdict is Verdict.passed
    assert not outcome.details["lenses"]
    assert all(step["own"] is None for step in outcome.details["precisions"]["bfloat16"]["steps"])


def test_a_precision_that_the_device_cannot_run_is_told_in_words(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, dtype: str, device: str) -> Any:
        if dtype == "float16":
            raise RuntimeError("\"addmm\" not implemented for 'Half'\nmore")
        return models.load(name, dtype, device)

    monkeypatch.setattr(steering, "load", refuse)
    outcome = steering.check(request(model), SILENT)
    assert outcome.verdict is Verdict.passed
    assert "float16: it does not run: \"addmm\" not implemented for 'Half'" in outcome.why


def test_no_precision_to_steer_in_is_a_failure(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> Any:
        raise ModelError("no room")

    monkeypatch.setattr(steering, "load", refuse)
    assert steering.check(request(model), SILENT).verdict is Verdict.failed


def found(*, own: float = 8.0, finite: bool = True) -> dict[str, Any]:
    steps = [
        {"concept": "bird", "strength": s, "finite": finite or s < 8, "own": own * s / 8}
        for s in (-8.0, -4.0, 4.0, 8.0)
    ]
    return {"runs": True, "unsteered": {"finite": True, "first_broken": None}, "steps": steps}


@pytest.mark.parametrize(
    ("tried", "in_float32", "why"),
    [
        (found(), found(), "works"),
        (found(), None, "works"),
        (found(finite=False), found(), "not finite at strength +8"),
        (found(own=-1.0), None, "the lens of bird does not follow"),
        (found(own=4.0), found(), "the lens of bird moves by +4.0 deviations, in float32 by +8.0"),
    ],
)
def test_steering_works_if_the_lens_follows_as_in_float32(
    tried: Any, in_float32: Any, why: str
) -> None:
    assert steering.judge(tried, in_float32) == (why == "works", why)
