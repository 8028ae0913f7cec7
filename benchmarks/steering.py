"""What to steer along: the difference of means, or the weights of the lens.

    python benchmarks/steering.py [--model smollm2-135m] [--quick] [--json FILE]

Lenses of the starter pack's level 1 are fitted on one model layer at a time, prompts alone. Along
both directions of each of the best, the model is pushed by three strengths while it continues a few
neutral prompts; what it wrote is read again without steering. A direction is the better the more
the lens hears of its concept for the same loss of fluency, so the two are compared by what is
gained, in deviations of the noise floor, where perplexity is one and a half times that of the
unsteered text, between the strengths by linear interpolation in its logarithm.

PREDICTED: the difference of means gains twice as much.
FOUND: see RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractSettings, extract
from lenscache.live.continuation import Continuation, continue_prompt
from lenscache.live.steering import Intervention
from lenscache.model.loading import load_model, silence
from lenstrain.data.dataset import open_dataset
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.live.steering import Kind, directions_of
from lenstrain.pack.lens import Direction, Lens
from lenstrain.settings import FitSettings

STARTER = Path(__file__).parents[1] / "data" / "packs" / "starter.json"
PROMPTS = ("I think that", "Yesterday we", "Let me tell you about", "In the morning")
# About the same displacement: activations vary less across a decision boundary than along a
# concept.
STRENGTHS: dict[Kind, tuple[float, ...]] = {"mean-difference": (3, 6, 12), "weights": (8, 16, 32)}
LOSS = 1.5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--quick", action="store_true", help="three concepts, two prompts, one model layer"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    silence()
    loaded = load_model(arguments.model)
    n_concepts, prompts = (3, PROMPTS[:2]) if arguments.quick else (6, PROMPTS)
    middle = loaded.n_layers // 2
    model_layers = (
        (middle,) if arguments.quick else (loaded.n_layers // 4, middle, 3 * loaded.n_layers // 4)
    )
    pack = ConceptPack.load(STARTER)
    figures = []
    print(
        f"{'model layer':>11}  {'direction':15}  {'strength':>8}  {'perplexity':>10}  gain in "
        "deviations"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.zarr"
        settings = ExtractSettings(mode="prompt", model_layers=model_layers, batch_size=16)
        extract(store, pack, loaded, settings, levels=[1])
        for model_layer in model_layers:
            dataset, settings_of_fit = (
                open_dataset(store),
                FitSettings(family="linear", model_layers=(model_layer,)),
            )
            lenses = make_lens_pack(fit_lenses(dataset, settings_of_fit), dataset, settings_of_fit)
            best = sorted(lenses, key=lambda lens: -np.nan_to_num(lens.metrics["score"]))[
                :n_concepts
            ]
            plain = [
                continue_prompt(loaded, prompt, model_layers=[model_layer]) for prompt in prompts
            ]
            gained: dict[str, list[float]] = {}
            for kind, strengths in STRENGTHS.items():
                rows = []
                for lens in best:
                    (direction,) = directions_of(lens, kind, allow_grade_c=True)
                    curve = [(0.0, 0.0)]
                    for strength in strengths:
                        steered = [push(loaded, prompt, direction, strength) for prompt in prompts]
                        curve.append(
                            (loss(steered, plain), heard(lens, steered) - heard(lens, plain))
                        )
                    rows.append(curve)
                    gained.setdefault(kind, []).append(at_equal_loss(curve))
                for place, strength in enumerate(strengths, start=1):
                    perplexity, gain = np.median([curve[place] for curve in rows], axis=0)
                    print(
                        (
                            f"{model_layer:11}  {kind:15}  {strength:8g}  "
                            f"{np.exp(perplexity):9.2f}x  {gain:+.2f}"
                        ),
                        flush=True,
                    )
            difference = np.subtract(gained["mean-difference"], gained["weights"])
            figures.append(
                {"model_layer": model_layer, "concepts": [lens.concept for lens in best], **gained}
            )
            print(
                f"at {LOSS} times the perplexity: mean difference "
                f"{np.mean(gained['mean-difference']):+.2f}, weights "
                f"{np.mean(gained['weights']):+.2f}; ahead in {int((difference > 0).sum())} of "
                f"{len(best)} concepts\n"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def push(loaded: object, prompt: str, direction: Direction, strength: float) -> Continuation:
    """One continuation under steering."""
    change = Intervention(direction.vector, direction.model_layer, strength, direction.deviation)
    return continue_prompt(loaded, prompt, [change], model_layers=[direction.model_layer])  # type: ignore[arg-type]


def heard(lens: Lens, texts: list[Continuation]) -> float:
    """Mean distance of texts from the noise floor of a lens, in deviations."""
    X = np.concatenate([text.activations[lens.model_layer] for text in texts])
    return float(np.nanmean(lens.signal(lens.decision_function(X))))


def loss(steered: list[Continuation], plain: list[Continuation]) -> float:
    """Mean logarithm of the perplexity of steered texts, less that of the others."""
    return float(
        np.nanmean(np.log([t.perplexity for t in steered]))
        - np.nanmean(np.log([t.perplexity for t in plain]))
    )


def at_equal_loss(curve: list[tuple[float, float]]) -> float:
    """Gain where perplexity has grown by `LOSS`; that of the last strength if it never does."""
    wanted = np.log(LOSS)
    for (before, low), (after, high) in pairwise(curve):
        if after >= wanted:
            return low + (high - low) * (wanted - before) / (after - before)
    return curve[-1][1]


if __name__ == "__main__":
    main()
