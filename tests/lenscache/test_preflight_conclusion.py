"""What is concluded, whatever the checks found: the words a user acts on."""

from __future__ import annotations

from typing import Any

import pytest

from lenscache.preflight.conclusion import draw_conclusion
from lenscache.preflight.results import CheckResult, Verdict

BROKEN = "not finite at model layer 2 even without steering"
P, F, C, S = Verdict.passed, Verdict.failed, Verdict.crashed, Verdict.skipped


def result(
    number: int, name: str, verdict: Verdict = P, why: str = "so it is", **details: Any
) -> CheckResult:
    return CheckResult(number, name, "?", verdict, why, details, 1.0)


def bf16(verdict: Verdict = P, **fp32: Any) -> CheckResult:
    memory = [{"weights": 50}, {"weights": 100}] if fp32.get("loaded", True) else [{"weights": 50}]
    return result(
        1, "bf16", verdict, "NaN at model layer 3", float32={"loaded": True, **fp32}, memory=memory
    )


def memory(
    dtype: str = "bfloat16", largest: int = 64, verdict: Verdict = P, *, estimated: bool = False
) -> CheckResult:
    return result(2, "memory", verdict, dtype=dtype, largest=largest, estimated=estimated)


def speed(
    gain: float = 2.0, *, best: str = "bfloat16", batch: int = 32, wide: bool = True
) -> CheckResult:
    rates = (
        {"unbatched float32": 1.0, "batch 4 float32": 3.0, "batch 4 bfloat16": 3.0 * gain}
        if wide
        else {
            "unbatched bfloat16": 1.0,
            "batch 4 bfloat16": 3.0 * gain,
        }
    )
    rates[f"batch auto ({batch}) {best}"] = 20.0
    timings = [
        {
            "name": name,
            "dtype": name.split()[-1],
            "batch": batch if "auto" in name else 1 if "un" in name else 4,
            "median": rate,
            "ratio": rate,
        }
        for name, rate in rates.items()
    ]
    return result(3, "speed", timings=timings, best_batch=batch, best_dtype=best)


def lenses(verdict: Verdict = P, mean: float = -0.001, half: float = 0.005) -> CheckResult:
    change = {"mean": mean, "low": mean - half, "high": mean + half}
    return result(4, "lenses", verdict, difference={"f1": change, "score": change})


def steering(*, lenses: bool = True, **works: Any) -> CheckResult:
    tried: dict[str, Any] = {}
    for dtype, state in (("float32", True), ("bfloat16", True), ("float16", True), *works.items()):
        tried[dtype] = {
            "runs": state != "unsupported",
            "works": state is True,
            "why": BROKEN if state is False else "it does not run: no Half",
            "unsteered": {"largest_activation": 55000.0},
            "overflow": 512.0 if dtype == "float16" else None,
        }
    return result(
        5,
        "steering",
        P if any(t["works"] for t in tried.values()) else F,
        precisions=tried,
        lenses=lenses,
    )


def test_a_card_with_bf16_is_told_to_use_it_throughout() -> None:
    text = draw_conclusion([bf16(), memory(), speed(), lenses(), steering(float16=False)])
    assert text == (
        "Compute in bf16 (--dtype bfloat16): it loads and runs, at 2.00 times the speed of float32 "
        "in batches of 4 in 0.50 of its memory. Use --batch-size 32: 20.00 prompts/s, 20.0 times "
        "unbatched float32; up to 64 prompts fit. Lenses trained on bf16 activations are as good "
        "at float32 as those trained there: F1 -0.001 (95 % interval -0.006 to +0.004), score "
        "-0.001 (-0.006 to +0.004). Steer in bf16; float32 works, too; fp16 does not work (not "
        "finite at model layer 2 even without steering; activations reach 55,000)."
    )


@pytest.mark.parametrize("gain", [0.3, 1.1])
def test_a_processor_that_emulates_bf16_is_told_to_compute_in_float32_and_store_bf16(
    gain: float,
) -> None:
    text = draw_conclusion(
        [bf16(), memory("float32", estimated=True), speed(gain, best="float32"), lenses()]
    )
    assert text.startswith(
        "Compute in float32 and store bf16 (--dtype float32 --store-dtype bfloat16): this device "
        "has"
    )
    assert f"emulates it (measured at {gain:.2f} times" in text
    assert "by estimate up to 64 prompts fit" in text


def test_bf16_that_is_slower_where_the_hardware_has_it_is_advised_against() -> None:
    text = draw_conclusion([bf16(), memory(), speed(0.5, best="float32")])
    assert "bf16 is slower here (measured at 0.50 times" in text
    assert "emulates" not in text


def test_bf16_that_breaks_is_advised_against_for_everything_but_nothing_else() -> None:
    text = draw_conclusion([bf16(F), memory(), speed(), steering(bfloat16=False)])
    assert text.startswith(
        "Compute in float32 (--dtype float32): bf16 does not work here (NaN at model layer 3). "
        "Use --batch-size 4:"
    )
    assert (
        "Steer in float32; fp16 works, too (fp16 up to a strength of about 256 deviations); bf16 "
        "does not"
    ) in text


def test_worse_lenses_are_a_reason_against_bf16() -> None:
    text = draw_conclusion([bf16(), memory(), speed(), lenses(F, mean=-0.1)])
    assert text.startswith(
        "Compute in float32 (--dtype float32): lenses trained on bf16 activations are worse."
    )
    assert "lose against those of float32: F1 -0.100" in text


def test_a_wide_interval_is_not_called_as_good() -> None:
    text = draw_conclusion([lenses(mean=-0.01, half=0.05)])
    assert "no clear loss at float32, but so few concepts leave room for one" in text


def test_a_model_that_fits_in_bf16_alone_is_run_in_it() -> None:
    checks = [bf16(loaded=False, why="it needs 40 GB"), memory(), speed(wide=False)]
    text = draw_conclusion([*checks, result(4, "lenses", S, "nothing to compare with")])
    assert text.startswith("Compute in bf16 (--dtype bfloat16): float32: it needs 40 GB.")
    assert "20.0 times unbatched bfloat16" in text
    assert "Not answered: 4 (lenses: skipped, nothing to compare with)." in text


def test_no_precision_that_works_is_said_outright() -> None:
    text = draw_conclusion(
        [
            bf16(F, loaded=False, why="too large"),
            steering(float32=False, bfloat16=False, float16=False),
        ]
    )
    assert text.startswith(
        "Neither precision can be used here: bf16 fails (NaN at model layer 3), and float32: too "
        "large."
    )
    assert "Steering works in no precision: float32 does not work" in text


def test_a_batch_of_four_that_does_not_fit_is_not_advised() -> None:
    text = draw_conclusion([memory(largest=2, verdict=F), speed()])
    assert "Use --batch-size 2: up to 2 prompts fit, and which is fastest was not measured." in text
    assert "Not even one prompt fits" in draw_conclusion([memory(largest=0, verdict=F)])


def test_float16_that_the_device_cannot_run_is_told_in_words() -> None:
    assert "fp16 does not work (it does not run: no Half)." in draw_conclusion(
        [steering(float16="unsupported")]
    )


def test_steering_that_was_judged_without_lenses_says_so() -> None:
    assert "judged by finite values alone" in draw_conclusion([steering(lenses=False)])


def test_what_was_not_answered_is_listed_and_nothing_is_made_up() -> None:
    text = draw_conclusion(
        [
            CheckResult(
                n, name, "?", C, "killed by signal 9, probably out of memory", {"stderr": []}, 1.0
            )
            for n, name in enumerate(("bf16", "memory", "speed", "lenses", "steering"), start=1)
        ]
    )
    assert text.startswith(
        "Not answered: 1 (bf16: crashed, killed by signal 9, probably out of memory); 2 (memory"
    )
    assert "Compute" not in text
    assert "Use" not in text


@pytest.mark.parametrize("left_out", range(5))
def test_any_check_may_be_missing(left_out: int) -> None:
    checks = [bf16(), memory(), speed(), lenses(), steering()]
    text = draw_conclusion([check for number, check in enumerate(checks) if number != left_out])
    assert text
    assert "None" not in text
    assert draw_conclusion([checks[left_out]])


def test_no_checks_no_conclusion() -> None:
    assert draw_conclusion([]) == ""
