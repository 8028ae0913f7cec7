"""What follows from the checks: which dtype, batch size and steering precision to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lenscache.preflight.results import CheckResult, Verdict

TOLERATED = 0.02
"""Loss of F1 or score that is no reason against a precision."""

SLOWER = 0.9
"""Share of float32's speed below which bf16 is not worth the memory that it saves."""

MOST_TRIED = 1024
"""The largest batch that is looked at: a device is busy long before."""

_DTYPES = {"float32": "float32", "bfloat16": "bf16", "float16": "fp16"}
_USE_FLOAT32 = "Compute in float32 (--dtype float32)"
_USE_BF16 = "Compute in bf16 (--dtype bfloat16)"


def draw_conclusion(results: Sequence[CheckResult]) -> str:
    """One paragraph from whatever checks were run, whatever came of them."""
    by_name = {result.name: result for result in results}
    dtype, why = choose_dtype(by_name)
    sentences = [why, _batch_sentence(by_name, dtype), _lens_sentence(by_name)]
    sentences += [_steering_sentence(by_name, dtype), _open_sentence(results)]
    return " ".join(sentence for sentence in sentences if sentence)


def choose_dtype(results: Mapping[str, CheckResult]) -> tuple[str | None, str]:
    """The dtype to compute in, None if nothing is known of any, and a sentence on it."""
    narrow, lenses = results.get("bf16"), results.get("lenses")
    no_float32 = _no_float32(results)
    if narrow is not None and narrow.verdict is Verdict.failed:
        if no_float32:
            faults = f"bf16 fails ({narrow.why}), and float32: {no_float32}"
            return None, f"Neither precision can be used here: {faults}."
        return "float32", f"{_USE_FLOAT32}: bf16 does not work here ({narrow.why})."
    if lenses is not None and lenses.verdict is Verdict.failed and "difference" in lenses.details:
        return "float32", f"{_USE_FLOAT32}: lenses trained on bf16 activations are worse."
    runs = narrow is not None and narrow.verdict is Verdict.passed
    if no_float32:
        untested = "" if runs else ", untested"
        return "bfloat16", f"{_USE_BF16}{untested}: float32: {no_float32}."
    has_hardware, gain = _has_hardware(results), _gain_of_bf16(results)
    if has_hardware is False or (gain is not None and gain < SLOWER):
        return "float32", _emulated_sentence(gain, has_hardware=has_hardware)
    if not runs and gain is None and has_hardware is None:
        return None, ""
    measured = "" if gain is None else f", at {gain:.2f} times the speed of float32 in batches of 4"
    share = _share_of_memory(narrow)
    memory = "" if share is None else f" in {share:.2f} of its memory"
    tested = "it loads and runs" if runs else "whether it runs was not answered"
    return "bfloat16", f"{_USE_BF16}: {tested}{measured}{memory}."


def _emulated_sentence(gain: float | None, *, has_hardware: bool | None) -> str:
    reason = "bf16 is slower here"
    if has_hardware is False:
        reason = "this device has no arithmetic for bf16 and emulates it"
    measured = "" if gain is None else f" (measured at {gain:.2f} times the speed of float32)"
    return (
        "Compute in float32 and store bf16 (--dtype float32 --store-dtype bfloat16): "
        f"{reason}{measured}, while storing bf16 still halves what is on disk."
    )


def _batch_sentence(results: Mapping[str, CheckResult], dtype: str | None) -> str:
    memory, speed = _details(results, "memory"), _details(results, "speed")
    largest = memory.get("largest")
    timings = speed.get("timings", [])
    if timings and dtype in (None, speed["best_dtype"]):
        best, timing = speed["best_batch"], timings[-1]
    else:  # the best batch size was sought in the other dtype
        own = [timing for timing in timings if timing["dtype"] == dtype]
        timing = max(own, key=lambda entry: entry["median"], default=None)
        best = timing["batch"] if timing else None
    if best is None and largest is None:
        return ""
    if best is None or (largest is not None and best > largest):
        size = min(4, largest or 0)
        if not size:
            return "Not even one prompt fits memory."
        unknown = "which is fastest was not measured"
        return f"Use --batch-size {size}: {_at_most(memory)} fit, and {unknown}."
    fits = f"; {_at_most(memory)} fit" if largest is not None else ""
    speedup = "" if timing is timings[0] else f", {timing['ratio']:.1f} times {timings[0]['name']}"
    return f"Use --batch-size {best}: {timing['median']:.2f} prompts/s{speedup}{fits}."


def _at_most(memory: Mapping[str, Any]) -> str:
    more = " or more" if memory["largest"] >= MOST_TRIED else ""
    estimate = "by estimate " if memory.get("estimated") else ""
    return f"{estimate}up to {memory['largest']} prompts{more}"


def _lens_sentence(results: Mapping[str, CheckResult]) -> str:
    found = _details(results, "lenses").get("difference")
    if found is None:
        return ""
    f1, score = found["f1"], found["score"]
    numbers = (
        f"F1 {f1['mean']:+.3f} (95 % interval {f1['low']:+.3f} to {f1['high']:+.3f}), "
        f"score {score['mean']:+.3f} ({score['low']:+.3f} to {score['high']:+.3f})"
    )
    if results["lenses"].verdict is Verdict.failed:
        return f"Lenses trained on bf16 activations lose against those of float32: {numbers}."
    if min(f1["low"], score["low"]) < -TOLERATED:
        doubt = "show no clear loss at float32, but so few concepts leave room for one"
        return f"Lenses trained on bf16 activations {doubt}: {numbers}."
    equal = "are as good at float32 as those trained there"
    return f"Lenses trained on bf16 activations {equal}: {numbers}."


def _steering_sentence(results: Mapping[str, CheckResult], dtype: str | None) -> str:
    tried: Mapping[str, Any] = _details(results, "steering").get("precisions", {})
    if not tried:
        return ""
    working = [name for name, found in tried.items() if found["works"]]
    others = [
        f"{_DTYPES[name]} does not work ({_why_not(found, tried)})"
        for name, found in tried.items()
        if not found["works"]
    ]
    if not working:
        return f"Steering works in no precision: {'; '.join(others)}."
    chosen = dtype if dtype in working else working[0]
    also = [_DTYPES[name] for name in working if name != chosen]
    beside = f"; {' and '.join(also)} work{'s' if len(also) == 1 else ''}, too" if also else ""
    how = (
        ""
        if _details(results, "steering").get("lenses")
        else " (judged by finite values alone: there were no lenses)"
    )
    best = f"Steer in {_DTYPES[chosen]}{how}{beside}{_room_in_float16(tried)}"
    return f"{'; '.join([best, *others])}."


def _why_not(found: Mapping[str, Any], tried: Mapping[str, Any]) -> str:
    if not found["runs"] or "not finite" not in found["why"]:
        return str(found["why"])
    # What overflows cannot say how far it would have got; a wider type can.
    running = (other["unsteered"] for other in tried.values() if other["runs"])
    reached = max(unsteered["largest_activation"] for unsteered in running)
    return f"{found['why']}; activations reach {reached:,.0f}"


def _room_in_float16(tried: Mapping[str, Any]) -> str:
    """How far fp16 can be pushed, where it works: its range ends at 65,504."""
    found = tried.get("float16", {})
    if not found.get("works") or found.get("overflow") is None:
        return ""
    return f" (fp16 up to a strength of about {found['overflow'] / 2:,.0f} deviations)"


def _open_sentence(results: Sequence[CheckResult]) -> str:
    without = Verdict.crashed, Verdict.skipped
    unanswered = [r for r in results if r.verdict in without or not r.details]
    if not unanswered:
        return ""
    listed = "; ".join(f"{r.number} ({r.name}: {r.verdict}, {r.why})" for r in unanswered)
    return f"Not answered: {listed}."


def _details(results: Mapping[str, CheckResult], name: str) -> dict[str, Any]:
    """The numbers of a check that came to an answer; none otherwise."""
    found = results.get(name)
    return {} if found is None or found.verdict is Verdict.crashed else found.details


def _has_hardware(results: Mapping[str, CheckResult]) -> bool | None:
    """Whether the device computes in bf16: what `auto` takes says so; None if that is not known."""
    dtype = _details(results, "memory").get("dtype")
    return None if dtype is None else dtype == "bfloat16"


def _gain_of_bf16(results: Mapping[str, CheckResult]) -> float | None:
    """How many times as fast as float32 it is, in batches of 4."""
    timings = {timing["name"]: timing for timing in _details(results, "speed").get("timings", [])}
    narrow, wide = timings.get("batch 4 bfloat16"), timings.get("batch 4 float32")
    return narrow["median"] / wide["median"] if narrow and wide and wide["median"] else None


def _no_float32(results: Mapping[str, CheckResult]) -> str:
    """Why float32 does not load; empty if it does or nobody tried."""
    tried = _details(results, "bf16").get("float32", {})
    return "" if tried.get("loaded", True) else str(tried["why"])


def _share_of_memory(narrow: CheckResult | None) -> float | None:
    memory = [] if narrow is None else narrow.details.get("memory", [])
    return memory[0]["weights"] / memory[1]["weights"] if len(memory) == 2 else None
