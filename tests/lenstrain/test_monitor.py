"""Monitoring: what is scored while a model runs equals what is scored afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lenscache.concepts.plan import plan_samples
from lenscache.extract import ExtractSettings, extract
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.live.listening import listen, read_text
from lenscache.model.loading import LoadedModel
from lenscache.store.store import open_store
from lenstrain.data.dataset import open_dataset
from lenstrain.data.words import Vocabulary
from lenstrain.errors import SettingsError
from lenstrain.families.linear import LinearWeights
from lenstrain.families.mlp import MlpWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.fit.adaptive import FitSettings, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.live.device_lenses import LensScorer
from lenstrain.live.monitor import Monitor
from lenstrain.live.naming_rule import Rule
from lenstrain.live.running_pool import Phase
from lenstrain.metrics.calibrators import Calibrator
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.pack.records import LensMetrics, Provenance
from tests.models import ARCHITECTURES, tiny_model
from tests.packs import small_pack

HIDDEN = 32
TEXT = "The cat sat on the mat and looked at the rain, slow and brown."
FAMILIES = ("linear", "ensemble", "discriminant", "mlp")
WITH_TWO = ("ensemble", "discriminant")  # model layers a lens
PHASES: tuple[Phase, ...] = ("prompt", "completion")


def random_weights(family: str, rng: np.random.Generator) -> Any:
    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    if family == "mlp":
        return MlpWeights(
            draw(HIDDEN, 128),
            draw(128).astype(np.float64),
            draw(128, 64),
            draw(64),
            draw(64),
            np.float32(0.5),  # type: ignore[arg-type]
        )
    return LinearWeights(draw(HIDDEN * (2 if family in WITH_TWO else 1)), float(rng.normal()))


def with_norm(lens: Lens) -> Lens:
    """A lens that divides activations by their length, of statistics that those of a model layer
    share."""
    drawn = [np.random.default_rng(number).normal(size=HIDDEN) for number in lens.model_layers]
    mean = np.concatenate(drawn).astype(np.float32)
    norm = Standardizer(mean, np.exp(mean), len(drawn))
    assert isinstance(lens.weights, LinearWeights)
    return dataclasses.replace(lens, weights=lens.weights._replace(norm=norm))


def random_pack(family: str = "linear", n: int = 7, **settings: Any) -> LensPack:
    """Lenses on three model layers; `settings` are those of the store."""
    rng = np.random.default_rng(3)
    model_layers: list[tuple[int, ...]] = (
        [(0, 2), (1, 2), (0, 1)] if family in WITH_TWO else [(2,), (0,), (1,)]
    )
    lenses = [
        Lens(
            concept=f"c{i}",
            name=f"Concept {i}",
            level=0,
            model_layers=model_layers[i % 3],
            weights=random_weights(family, rng),
            threshold=0.0,
            calibrator=Calibrator("sigmoid", (1.0, 0.0)),
            noise=NoiseFloor(0.0, 1.0),
            grade=Grade.A if i % 2 else Grade.C,
            metrics=LensMetrics(),
            trajectory=(),
        )
        for i in range(n)
    ]
    if family == "ensemble":  # one that reads a single model layer beside those that read two
        lenses.append(dataclasses.replace(random_pack("linear", 1).lenses[0], concept="alone"))
    if family == "discriminant":
        lenses = [with_norm(lens) for lens in lenses]
    return LensPack(lenses, Provenance(store={"settings": settings}), {})


def test_lenses_that_standardise_differently_are_no_pack(tmp_path: Path) -> None:
    """Of two fits, say: one product for all would score some of them wrongly."""
    plain, other = random_pack("linear", 6), random_pack("linear", 6)
    mixed = LensPack([*plain.lenses[:3], *map(with_norm, other.lenses[3:])], Provenance(), {})
    rows = np.ones((2, HIDDEN), np.float32)
    for use in (
        lambda: mixed.score(rows, model_layer=2),
        lambda: mixed.save(tmp_path / "pack"),
        lambda: LensScorer(mixed.lenses, torch.device("cpu")),
    ):
        with pytest.raises(SettingsError, match=r"different ways.*fit them together"):
            use()
    assert not (tmp_path / "pack").exists()


def captured(loaded: LoadedModel, tokens: torch.Tensor) -> dict[int, NDArray[np.float32]]:
    """(position, hidden) of each block for the one row of tokens; the last entry of hidden_states
    is another thing."""
    found: dict[int, NDArray[np.float32]] = {}
    last: list[torch.Tensor] = []
    handle = loaded.blocks[2].register_forward_hook(lambda _m, _i, out: last.append(out))
    with torch.inference_mode():
        states = loaded.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    for model_layer in range(2):
        found[model_layer] = states[model_layer + 1][0].float().numpy()
    found[2] = (
        (last[0][0] if isinstance(last[0], tuple) else last[0]).reshape(-1, HIDDEN).float().numpy()
    )
    return found


def numbers(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.numpy())


def token_ids(loaded: LoadedModel, text: str = TEXT) -> torch.Tensor:
    return torch.tensor([loaded.tokenizer(text)["input_ids"]])


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4 * np.nanmax(np.abs(expected)))


# --- scores of tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_scores_are_those_of_the_pack_on_hidden_states(
    architecture: str, family: str
) -> None:
    loaded, pack = tiny_model(architecture), random_pack(family, pool_first_position=True)
    monitor = Monitor(pack, window=1, keep=None)
    read_text(loaded, TEXT, monitor)
    assert_same(numbers(monitor.scores[0]), pack.score_all(captured(loaded, token_ids(loaded))))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_scores_the_mean_of_the_positions_it_covers(family: str) -> None:
    loaded, pack = tiny_model(), random_pack(family)
    monitor = Monitor(pack, window=3, keep=None)
    read_text(loaded, TEXT, monitor)
    hidden, scores = captured(loaded, token_ids(loaded)), numbers(monitor.scores[0])
    for position in range(1, len(scores)):
        covered = slice(max(position - 2, 1), position + 1)  # without the first of the text
        expected = pack.score_all(
            {m: values[covered].mean(0, keepdims=True) for m, values in hidden.items()}
        )
        assert_same(scores[position], expected[0])
    assert np.isnan(scores[0]).all()


def test_a_token_at_a_time_scores_like_all_at_once() -> None:
    loaded, pack = tiny_model(), random_pack()
    whole, steps = (Monitor(pack, window=4, keep=None) for _ in range(2))
    tokens, cache = token_ids(loaded), None
    read_text(loaded, TEXT, whole)
    with torch.inference_mode(), listen(loaded, steps, end_ids=()):
        for position in range(tokens.shape[1]):
            given = {loaded.cache_argument: cache}
            output = loaded.model(tokens[:, position : position + 1], **given, use_cache=True)
            cache = loaded.cache_of(output)
    assert_same(numbers(steps.scores[0]), numbers(whole.scores[0]))


def test_reading_twice_gives_the_same_scores_bit_for_bit() -> None:
    loaded, monitor = tiny_model(dtype="bfloat16"), Monitor(random_pack("ensemble"), keep=None)
    read = []
    for _ in range(2):
        read_text(loaded, TEXT, monitor)
        read.append((monitor.scores.clone(), monitor.pooled("prompt").clone()))
    for one, other in zip(*read, strict=True):
        assert numbers(one).tobytes() == numbers(other).tobytes()


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_rows_of_a_padded_batch_score_like_single_ones(pooling: str) -> None:
    loaded, pack = tiny_model(), random_pack(pooling=pooling)
    texts = ["Nobody knew.", TEXT, "A river ran past"]
    together = Monitor(pack, window=4)
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    settings = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5}
    with listen(loaded, together):
        loaded.model.generate(**tokenizer(texts, return_tensors="pt", padding=True), **settings)
    for row, text in enumerate(texts):
        alone = Monitor(pack, window=4)
        with listen(loaded, alone):
            loaded.model.generate(**tokenizer(text, return_tensors="pt"), **settings)
        for one, other in (
            (together.latest, alone.latest),
            (together.pooled("prompt"), alone.pooled("prompt")),
            (together.pooled("completion"), alone.pooled("completion")),
        ):
            assert_same(numbers(one[row]), numbers(other[0]))
    assert together.scores.shape == (3, 1, len(pack))


def test_an_ended_row_keeps_its_pooled_scores_and_has_no_latest() -> None:
    loaded, pack = tiny_model(), random_pack()
    monitor, cache, before = Monitor(pack), None, None
    with torch.inference_mode(), listen(loaded, monitor):
        for tokens in ([[5, 17], [9, 33]], [[44], [7]], [[1], [8]], [[44], [9]]):
            if tokens == [[1], [8]]:
                before = monitor.pooled("completion")[0].clone()
            given = {loaded.cache_argument: cache}
            output = loaded.model(torch.tensor(tokens), **given, use_cache=True)
            cache = loaded.cache_of(output)
    assert before is not None
    assert numbers(monitor.pooled("completion")[0]).tobytes() == numbers(before).tobytes()
    assert monitor.latest[0].isnan().all()
    assert monitor.latest[1].isfinite().all()


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_pooled_scores_are_those_of_the_pooled_activation(pooling: str) -> None:
    loaded, pack = tiny_model(), random_pack("mlp", pooling=pooling)
    monitor = Monitor(pack)
    read_text(loaded, TEXT, monitor)
    pools: dict[str, Any] = {
        "mean": lambda v: v.mean(0),
        "max": lambda v: v.max(0),
        "last": lambda v: v[-1],
    }
    hidden = captured(loaded, token_ids(loaded))
    expected = pack.score_all({m: pools[pooling](values[1:])[None] for m, values in hidden.items()})
    assert_same(numbers(monitor.pooled("prompt")), expected)
    assert monitor.pooled("completion").isnan().all()


# --- against a store ----------------------------------------------------------------------------


@pytest.mark.parametrize(("store_dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 2.0**-8)])
def test_a_stored_sample_run_live_scores_as_from_the_store_in_both_phases(
    tmp_path: Path, store_dtype: Any, rounding: float
) -> None:
    loaded, concepts = tiny_model(), small_pack(n_examples=12)
    settings = ExtractSettings(max_new_tokens=5, block_rows=64, store_dtype=store_dtype)
    extract(tmp_path / "s.zarr", concepts, loaded, settings)
    dataset, fit = open_dataset(tmp_path / "s.zarr"), FitSettings(max_iterations=2)
    pack = make_lens_pack(fit_lenses(dataset, fit), dataset, fit)
    monitor, stored, plan = (
        Monitor(pack),
        open_store(tmp_path / "s.zarr").rounds()[0],
        plan_samples(concepts, [0]),
    )
    runner = Runner(loaded, [0], max_new_tokens=5, limits=BatchLimits(1))
    for number, text in enumerate(stored.samples().text[:12]):
        assert text == plan.texts[number]
        row = Row(
            loaded.tokenizer(text)["input_ids"],
            int(plan.sampling_seed[number]),
            float(plan.temperature[number]),
        )
        with listen(loaded, monitor):
            runner.run([row])
        for phase in PHASES:
            X = {
                m: np.asarray(stored.read(phase, m)[[number]], np.float32)
                for m in pack.model_layers
            }
            bound = [
                np.abs(lens.weight) @ np.abs(X[lens.model_layer][0]) * rounding for lens in pack
            ]
            difference = np.abs(numbers(monitor.pooled(phase)) - pack.score_all(X))[0]
            assert (difference <= bound).all() or np.isnan(X[pack.model_layers[0]]).all()
    assert monitor.pooled("completion").isfinite().any()


# --- what fires ---------------------------------------------------------------------------------


def test_what_fires_reaches_grade_threshold_and_signal() -> None:
    loaded, base = tiny_model(), random_pack(n=12)
    read_text(loaded, TEXT, silent := Monitor(base, window=1))
    logits = numbers(silent.latest[0])
    changes: list[dict[str, Any]] = [
        {"grade": Grade.A, "threshold": logit - 1, "noise": NoiseFloor(float(logit) - 5, 1.0)}
        for logit in logits
    ]
    changes[1]["grade"] = Grade.C
    changes[2]["threshold"] = logits[2] + 1
    changes[3]["noise"] = NoiseFloor(float(logits[3]) - 3, 1.0)
    lenses = [
        dataclasses.replace(lens, **change) for lens, change in zip(base, changes, strict=True)
    ]
    monitor = Monitor(LensPack(lenses, base.provenance, {}), window=1)
    read_text(loaded, TEXT, monitor)
    assert {said.finding.concept for said in monitor.firing()} == {
        f"c{i}" for i in (0, *range(4, 12))
    }
    for said in monitor.firing():
        lens = monitor.presence.lenses[int(said.finding.concept[1:])]
        assert (said.row, said.position) == (0, token_ids(loaded).shape[1] - 1)
        assert said.finding.signal == pytest.approx(5.0, abs=1e-4)
        assert said.finding.probability == pytest.approx(
            float(lens.calibrator(np.array(said.finding.logit)))
        )
    assert Monitor(base, rule=Rule(Grade.C, min_signal=0.0)).presence.n_judged == 12


def test_a_whole_phase_asks_for_one_deviation_less_than_a_token() -> None:
    loaded, base = tiny_model(), random_pack(n=2)
    read_text(loaded, TEXT, silent := Monitor(base, window=100))
    logit = float(silent.pooled("prompt")[0, 1])
    lens = dataclasses.replace(
        base.lenses[1], grade=Grade.A, threshold=logit - 9, noise=NoiseFloor(logit - 3.5, 1.0)
    )
    # a window of the whole text: the same logit
    monitor = Monitor(LensPack([lens], base.provenance, {}), window=100)
    read_text(loaded, TEXT, monitor)
    assert monitor.firing() == []
    assert [said.finding.concept for said in monitor.firing("prompt")] == ["c1"]


def test_a_callback_hears_every_pass_and_a_choice_of_concepts_keeps_their_scores() -> None:
    loaded, pack, heard = tiny_model(), random_pack(), []
    some = Monitor(
        pack, concepts=["c5", "c2"], on_scores=lambda monitor: heard.append(monitor.latest.clone())
    )
    everything = Monitor(pack, keep=None)
    ids = token_ids(loaded)
    for monitor in (some, everything):
        with listen(loaded, monitor):
            loaded.model.generate(
                ids, attention_mask=torch.ones_like(ids), min_new_tokens=4, max_new_tokens=4
            )
    assert some.concepts == ("c2", "c5")
    assert len(heard) == 4
    assert_same(
        numbers(torch.stack(heard[1:], dim=1)[0]), numbers(everything.scores[0, -3:][:, [2, 5]])
    )


def test_memory_stays_the_same_however_long_a_text_gets() -> None:
    loaded, monitor = tiny_model(), Monitor(random_pack(), window=4, keep=2)
    ids = token_ids(loaded)
    sizes = set()

    def measure(heard: Monitor) -> None:
        state = [*heard._kept, heard._trail._tail, *heard._trail._values.values()]
        sizes.add(sum(0 if each is None else each.untyped_storage().nbytes() for each in state))

    with listen(loaded, monitor):
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=40, max_new_tokens=40
        )
        assert monitor.scores.shape == (1, 2, 7)
        monitor._on_scores = measure
        loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=40, max_new_tokens=40
        )
    assert out.shape[1] == ids.shape[1] + 40
    # the prompt, the first token with a phase of its own, the window as it fills
    assert len(sizes) <= 4


# --- what is refused ----------------------------------------------------------------------------


def test_a_pack_of_text_lenses_is_refused() -> None:
    pack = random_pack()
    text = LensPack(
        pack.lenses, Provenance(), {}, vocabulary=Vocabulary(("word",), np.ones(1, np.float32))
    )
    with pytest.raises(SettingsError, match="read what a model wrote, not its activations"):
        Monitor(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concepts": ["ghost"]}, "no lens for the concept 'ghost'"),
        ({"concepts": []}, "no lens to read with"),
        ({"window": 0}, "window is 0"),
        ({"keep": 0}, "keep is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Monitor(random_pack(), **options)


def test_a_model_of_another_size_is_refused_before_it_is_scored() -> None:
    pack = random_pack()
    small = [
        dataclasses.replace(lens, weights=LinearWeights(np.ones(5, np.float32), 0.0))
        for lens in pack
    ]
    with pytest.raises(SettingsError, match="activations of size 5, this model's have size 32"):
        read_text(tiny_model(), TEXT, Monitor(LensPack(small, Provenance(), {})))


def test_scores_before_anything_was_read_are_an_error() -> None:
    monitor = Monitor(random_pack())
    for ask in (lambda: monitor.latest, lambda: monitor.scores, monitor.pooled, monitor.firing):
        with pytest.raises(SettingsError, match="nothing was read yet"):
            ask()
