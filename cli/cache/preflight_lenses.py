"""Check 4 of `lenscache preflight`: are lenses of bf16 activations as good as those of fp32?

Prompts are extracted, no completions: a completion is sampled, and where rounding tips a token the
two precisions would read different texts. The module stands here because it needs both packages:
lenscache to extract, lenstrain to fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lenscache.errors import ModelError, ModelNotFoundError, first_line
from lenscache.preflight.results import Outcome, Request, Tell, Verdict

if TYPE_CHECKING:
    from lenscache.extract import ExtractProgress
    from lenscache.preflight.models import Footprint
    from lenscache.terms import StoreDtype

TOLERATED = 0.02
"""Loss of F1 or score that counts as none."""

_CONCEPTS = {False: 24, True: 12}  # by whether it is to be quick
_SAMPLES = {False: 24, True: 14}
_BATCH = 16
_STEERED = 2


def check(request: Request, tell: Tell) -> Outcome:
    """Extract the same prompts in both precisions, fit lenses on each, judge each on both."""
    from lenstrain.errors import LenstrainError

    try:
        return _compare(request, tell)
    except LenstrainError as error:
        return Outcome.failed(first_line(error))


def _compare(request: Request, tell: Tell) -> Outcome:
    from lenscache.preflight.models import check_room
    from lenstrain.data.dataset import open_dataset
    from lenstrain.fit.transfer import transfer

    narrow, footprint = extract_in(request, "bfloat16", tell)
    try:
        check_room(footprint, "float32")
        wide, _ = extract_in(request, "float32", tell)
    except ModelNotFoundError:
        raise
    except ModelError as error:
        write_steering_lenses(narrow, request)
        return Outcome(Verdict.skipped, f"there is nothing to compare with: {error}")
    tell("fitting lenses", 0, 1)
    write_steering_lenses(wide, request)
    return judge(transfer(open_dataset(wide), open_dataset(narrow)))


def check_steering(request: Request, tell: Tell) -> Outcome:
    """Only extract what lenses to steer along need, and fit those."""
    from lenstrain.errors import LenstrainError

    try:
        store, _ = extract_in(request, "auto", tell)
        write_steering_lenses(store, request)
    except LenstrainError as error:
        return Outcome.failed(first_line(error))
    return Outcome.passed("lenses to steer along")


def model_layers_of(n_layers: int) -> tuple[int, ...]:
    """Where activations are taken: at a third, a half and two thirds of the depth."""
    depths = (round(n_layers * share) for share in (1 / 3, 1 / 2, 2 / 3))
    return tuple(sorted({min(depth, n_layers - 1) for depth in depths}))


def extract_in(
    request: Request, dtype: Literal["float32", "bfloat16", "auto"], tell: Tell
) -> tuple[Path, Footprint]:
    """The store of some prompts computed and stored in a dtype, and the model's use of memory.

    Raises
    ------
    ModelError
        If the model does not load or does not fit in this dtype.
    """
    from lenscache.extract import ExtractSettings, extract
    from lenscache.preflight.models import load
    from lenscache.preflight.texts import load_pack, spread

    tell(f"loading {dtype}", 0, 1)
    pack = spread(load_pack(request), _CONCEPTS[request.quick])
    loaded, footprint = load(request.model, dtype, request.device)
    path = Path(request.folder) / f"{dtype}.zarr"
    stored: StoreDtype = "float32" if loaded.dtype == "float32" else "bfloat16"
    settings = ExtractSettings(
        mode="prompt",
        model_layers=model_layers_of(loaded.n_layers),
        store_dtype=stored,
        batch_size=_BATCH,
        samples=_SAMPLES[request.quick],
        seed=request.seed,
    )

    def show(at: ExtractProgress) -> None:
        tell(f"extracting in {dtype}", at.rows_done, at.rows_total)

    extract(path, pack, loaded, settings, on_progress=show)
    return path, footprint


def write_steering_lenses(store: Path, request: Request) -> None:
    """Save lenses of the best-read concepts: a direction in the middle, a lens further down."""
    import numpy as np

    from lenscache.preflight.directions import SteeringLenses
    from lenstrain.data.dataset import open_dataset
    from lenstrain.fit.adaptive import fit_lenses
    from lenstrain.fit.transfer import ONE_FIT, at_model_layer

    dataset = open_dataset(store)
    stored = dataset.store.header.model_layers
    steered, read = stored[(len(stored) - 1) // 2], stored[-1]
    readers = fit_lenses(dataset, at_model_layer(ONE_FIT, read)).lenses
    best = sorted(readers, key=lambda lens: (-lens.calibration_score, lens.concept))[:_STEERED]
    names = [lens.concept for lens in best]
    upstream = fit_lenses(dataset, at_model_layer(ONE_FIT, steered), concepts=names).lenses
    fitted = {lens.concept: lens for lens in upstream}
    directions = [fitted[name].directions[0] for name in names]
    weights: list[Any] = [lens.weights for lens in best]
    SteeringLenses(
        tuple(names),
        steered,
        np.stack([direction.vector for direction in directions]).astype(np.float32),
        np.array([direction.deviation for direction in directions], np.float64),
        read,
        np.stack([weight.weight for weight in weights]),
        np.array([weight.bias for weight in weights], np.float64),
        np.array([lens.noise.unit for lens in best], np.float64),
    ).save(request.folder)


def judge(found: Any) -> Outcome:
    """Fail if lenses of bf16 activations are surely worse: a whole interval lies below -0.02."""
    names = {"a": "float32", "b": "bfloat16"}
    others = (("a", "b"), ("b", "a"), ("b", "b"))
    changes = {f"{names[f]} on {names[j]}": found.change(f, j) for f, j in others}
    qualities = [
        {"fitted": names[f], "judged": names[j], **found.quality(f, j)._asdict()}
        for f in names
        for j in names
    ]
    difference = {name: change._asdict() for name, change in changes["bfloat16 on float32"].items()}
    details = {
        "concepts": list(found.concepts),
        "model_layers": list(found.model_layers),
        "skipped": dict(found.skipped),
        "quality": qualities,
        "difference": difference,
        "changes": {
            key: {n: c._asdict() for n, c in each.items()} for key, each in changes.items()
        },
        "mode": "prompt",
    }
    f1, score = difference["f1"], difference["score"]
    why = (
        f"{len(found.concepts)} concepts: lenses of bf16 activations judged on fp32 ones differ "
        f"from those of fp32 by {f1['mean']:+.3f} F1 ({f1['low']:+.3f} to {f1['high']:+.3f}) and "
        f"{score['mean']:+.3f} score ({score['low']:+.3f} to {score['high']:+.3f})"
    )
    is_worse = any(
        change[metric].high < -TOLERATED
        for key, change in changes.items()
        if key.startswith("bfloat16")
        for metric in change
    )
    return Outcome.failed(why, **details) if is_worse else Outcome.passed(why, **details)
