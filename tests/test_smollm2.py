"""The main job on a real model: SmolLM2-135M, extracted and fitted through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractSettings, extract
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.live.steering import steer
from lenscache.model.loading import LoadedModel, load_model
from lenscache.store.store import open_store
from lenstrain.data.dataset import TEST, LensDataset, open_dataset
from lenstrain.data.tasks import draw_task
from lenstrain.fit.adaptive import FitSettings, FittedLens, fit_lenses
from lenstrain.metrics.grade import Grade

STARTER = Path(__file__).parents[1] / "data" / "packs" / "starter.json"
CONCEPTS = ("government", "vehicle", "ship", "aircraft", "poem", "knife")


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model("smollm2-135m", dtype="float32", device="cpu")


def test_the_model_knows_the_capital_of_france(smollm2: LoadedModel) -> None:
    token_ids = smollm2.tokenizer("The capital of France is")["input_ids"]
    result = Runner(smollm2, [0], max_new_tokens=2).run([Row(token_ids, temperature=0.01)])[0]
    assert smollm2.tokenizer.decode(result.completion_ids[:1]) == " Paris"


def test_padded_rows_of_very_unequal_length_equal_single_ones(smollm2: LoadedModel) -> None:
    texts = [
        "Rain.",
        "The ship left the harbour at dawn and was never seen again.",
        "A short line.",
        "word " * 60,
    ]
    rows = [Row(smollm2.tokenizer(text)["input_ids"], seed, 0.8) for seed, text in enumerate(texts)]
    runner = Runner(smollm2, [0, 15, 29], max_new_tokens=8)
    together, alone = runner.run(rows), [runner.run([row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.completion_ids == other.completion_ids
        for phase in ("prompt", "completion"):
            error = np.linalg.norm(one.pooled[phase] - other.pooled[phase], axis=1)
            assert (error <= 1e-4 * np.linalg.norm(other.pooled[phase], axis=1)).all()


@pytest.fixture(scope="module")
def dataset(smollm2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Six concepts of the starter pack on two model layers."""
    path = tmp_path_factory.mktemp("smollm2") / "s.zarr"
    data = ConceptPack.load(STARTER).to_dict()
    data["concepts"] = [{**c, "parents": []} for c in data["concepts"] if c["id"] in CONCEPTS]
    small = ConceptPack.from_dict(json.loads(json.dumps(data)))
    report = extract(
        path, small, smollm2, ExtractSettings(mode="prompt", model_layers=(5, 25), batch_size=16)
    )
    assert report.rows_run == report.rows == sum(r.n_samples for r in open_store(path).rounds())
    return open_dataset(path)


@pytest.fixture(scope="module")
def lenses(dataset: LensDataset) -> list[FittedLens]:
    return fit_lenses(dataset, FitSettings()).lenses


def test_lenses_of_real_concepts_tell_them_apart(lenses: list[FittedLens]) -> None:
    scores = [lens.ranking.score for lens in lenses]
    assert len(lenses) == len(CONCEPTS)
    assert np.mean(scores) > 0.5, scores
    assert np.mean([lens.ranking.auroc for lens in lenses]) > 0.85


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steering_moves_a_lens_of_grade_a_the_way_it_pushes(
    dataset: LensDataset, lenses: list[FittedLens], dtype: str
) -> None:
    loaded = load_model("smollm2-135m", dtype=dtype, device="cpu")
    trusted = [lens for lens in lenses if lens.verdict.grade is Grade.A]
    assert trusted
    for lens in trusted:
        ((model_layer, vector, deviation),) = lens.directions
        held_out = draw_task(dataset, lens.concept, lambda n: n).positives[TEST]
        rows = [Row(loaded.tokenizer(dataset.texts[i])["input_ids"]) for i in held_out]
        runner = Runner(loaded, [model_layer], mode="prompt", limits=BatchLimits(8))
        logits = []
        for strength in (-8, -4, -2, -1, 0, 1, 2, 4, 8):
            with steer(loaded, vector, model_layer, strength, deviation=deviation):
                pooled = np.stack([result.pooled["prompt"][0] for result in runner.run(rows)])
            logits.append(lens.weights.decision_function(pooled).mean())
        assert (np.diff(logits) > 0).all(), (lens.concept, logits)


def test_the_converted_model_is_kept_and_reloads_with_the_same_weights(
    smollm2: LoadedModel,
) -> None:
    again = load_model("smollm2-135m", dtype="float32", device="cpu")
    assert again.fingerprint == smollm2.fingerprint
    assert torch.equal(
        again.model.get_input_embeddings().weight, smollm2.model.get_input_embeddings().weight
    )
