"""Models whose weights are not all on one device: they do, and are, what the whole model does and
is."""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.util
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenscache.errors import (
    MissingPackageError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from lenscache.extract import ExtractSettings
from lenscache.inference.runner import RowResult, Runner
from lenscache.live.steering import Intervention, steer_all
from lenscache.memory import memory_held
from lenscache.model.loading import LoadedModel, find_blocks, load_model
from lenscache.terms import Mode, Pooling
from tests.lenscache.conftest import run_small, tree
from tests.lenscache.test_runner import (
    HALF_OF_THE_VOCABULARY,
    UNEQUAL,
    assert_same_results,
    rows_of,
    with_eos,
)
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer

BLOCKS = (0, 1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where a tiny model of an architecture is saved."""

    @cache
    def saved(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"tiny-{architecture}"
        tiny_model(architecture).model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return saved


def places_of(architecture: str, *places: Any) -> dict[str, Any]:
    """A device map that deals out the parts of a model, the embeddings first."""
    model = tiny_model(architecture).model
    blocks = find_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    base = path.rpartition(".")[0]
    names = [
        f"{base}.{name}"
        for name, child in model.get_submodule(base).named_children()
        if child is not blocks
    ]
    names += [f"{path}.{number}" for number in range(len(blocks))]
    names += [name for name, _ in model.named_children() if name != base]
    found = {name: places[number % len(places)] for number, name in enumerate(names)}
    if model.config.tie_word_embeddings:  # one weight cannot be in two places
        found["lm_head"] = found[names[0]]
    return found


def load_in_parts(folder: Path, architecture: str, **settings: Any) -> LoadedModel:
    """The embeddings and every second part on the disk, the rest in memory."""
    settings.setdefault("dtype", "float32")
    return load_model(str(folder), device_map=places_of(architecture, "disk", "cpu"), **settings)


def same_bits(found: list[RowResult], expected: list[RowResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.completion_ids == other.completion_ids
        for phase, vectors in one.pooled.items():
            np.testing.assert_array_equal(vectors, other.pooled[phase])


@pytest.mark.parametrize("mode", ["prompt", "combined", "completion"])
@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_model_in_memory_and_on_disk_gives_the_same_activations_bit_for_bit(
    folders: Any, mode: Mode, pooling: Pooling
) -> None:
    """Completions end early, so that rows leave the batch."""
    whole, parts = tiny_model(), load_in_parts(folders("llama"), "llama")
    assert any(parameter.is_meta for parameter in parts.model.parameters())
    here, there = (
        Runner(
            with_eos(loaded, HALF_OF_THE_VOCABULARY),
            BLOCKS,
            mode=mode,
            pooling=pooling,
            max_new_tokens=8,
        )
        for loaded in (whole, parts)
    )
    same_bits(there.run(rows_of(UNEQUAL)), here.run(rows_of(UNEQUAL)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_in_parts_is_steered_as_the_whole_one_is(folders: Any, architecture: str) -> None:
    direction = np.random.default_rng(3).normal(size=32)
    changes = [Intervention(direction, block, 3.0, positions=slice(1, None)) for block in BLOCKS]
    whole, found = tiny_model(architecture), []
    for loaded in (whole, load_in_parts(folders(architecture), architecture)):
        with steer_all(loaded, changes):
            found.append(Runner(loaded, BLOCKS, max_new_tokens=6).run(rows_of(UNEQUAL)))
    same_bits(*found)
    as_it_is = Runner(whole, BLOCKS, max_new_tokens=6).run(rows_of(UNEQUAL))
    assert [row.completion_ids for row in as_it_is] != [row.completion_ids for row in found[1]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fingerprint_does_not_depend_on_where_the_weights_are(
    folders: Any, architecture: str, dtype: str
) -> None:
    folder = folders(architecture)
    whole = load_model(str(folder), dtype=dtype, device="cpu")
    assert load_in_parts(folder, architecture, dtype=dtype).fingerprint == whole.fingerprint
    other = load_model(
        str(folder), dtype=dtype, device_map=places_of(architecture, "cpu", "disk", "disk")
    )
    assert other.fingerprint == whole.fingerprint


def test_fingerprint_after_a_run_is_that_before(folders: Any) -> None:
    """What waits elsewhere was brought to its device and back."""
    parts = load_in_parts(folders("llama"), "llama")
    # prompt mode on block 0 stops before the weights of later blocks are brought
    Runner(parts, (0,), mode="prompt").run(rows_of(UNEQUAL))
    assert parts.fingerprint == tiny_model().fingerprint


def test_weight_that_is_nowhere_is_an_error_instead_of_a_fingerprint() -> None:
    loaded = dataclasses.replace(tiny_model(), model=copy.deepcopy(tiny_model().model))
    loaded.model.lm_head.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"the weight lm_head.weight was never loaded"):
        loaded.fingerprint  # noqa: B018 - computed when asked for


def test_store_of_a_model_in_parts_is_byte_for_byte_that_of_the_whole_one(
    folders: Any, finished_store: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "s.zarr", load_in_parts(folders("llama"), "llama"))
    assert tree(tmp_path / "s.zarr") == tree(finished_store)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_model_that_fits_one_device_stays_whole(folders: Any, device_map: str) -> None:
    loaded = load_model(str(folders("llama")), dtype="float32", device_map=device_map)
    assert loaded.is_whole
    assert loaded.placement == str(loaded.device)
    assert loaded.fingerprint == tiny_model().fingerprint


def test_placement_names_every_place(folders: Any) -> None:
    parts = load_in_parts(folders("llama"), "llama")
    assert not parts.is_whole
    assert (parts.placement, parts.device, parts.devices) == (
        "disk, cpu",
        torch.device("cpu"),
        (torch.device("cpu"),),
    )
    assert (memory_held(*parts.devices) or 0) > 0


def test_model_on_one_place_alone_is_not_whole_if_that_is_the_disk(folders: Any) -> None:
    loaded = load_model(str(folders("llama")), dtype="float32", device_map={"": "disk"})
    assert not loaded.is_whole
    assert loaded.fingerprint == tiny_model().fingerprint


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"device_map": "automatic"},
            "device map is 'automatic', expected one of: auto, balanced, balanced_low_0, seq",
        ),
        (
            {"device_map": "auto", "device": "cpu"},
            "a device map and the device cpu are given: leave one of them out",
        ),
    ],
)
def test_device_map_that_cannot_be_used_is_refused(
    folders: Any, given: dict[str, str], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(str(folders("llama")), **given)  # type: ignore[arg-type]


def test_device_map_without_accelerate_says_what_to_install(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"run `pip install '\.\[multi-gpu\]'`"):
        load_model(str(folders("llama")), device_map="auto")


def test_folder_of_offloaded_weights_goes_with_the_model(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders("llama")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded: LoadedModel | None = load_in_parts(folder, "llama")
    assert len(list(tmp_path.iterdir())) == 1
    assert loaded is not None
    del loaded
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelNotFoundError):
        load_model(str(tmp_path / "nothing"), device_map="auto")
    assert list(tmp_path.iterdir()) == []


def run_on_two_devices(*architectures: str) -> None:
    command = [sys.executable, "-m", "tests.lenscache.two_devices", *architectures]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=280
    )
    assert (ran.returncode, ran.stdout.split()) == (0, list(architectures)), ran.stderr


def test_blocks_on_two_devices_are_captured_steered_and_heard() -> None:
    """On two devices that refuse to mix as CUDA does, see `two_devices.py`."""
    run_on_two_devices("llama")


@pytest.mark.slow
def test_blocks_on_two_devices_are_captured_steered_and_heard_whatever_the_architecture() -> None:
    run_on_two_devices(*ARCHITECTURES[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_on_two_cards_give_what_one_card_gives(
    folders: Any, architecture: str, tmp_path: Path
) -> None:
    """By the sum of the same numbers in the same order, so that even rounding is alike; not by a
    recorded step."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    folder = str(folders(architecture))
    whole = load_model(folder, dtype="float32", device="cuda:0")
    parts = load_model(folder, dtype="float32", device_map=places_of(architecture, 0, 0, 0, 1, 1))
    assert len(parts.devices) == 2
    assert parts.fingerprint == whole.fingerprint
    here, there = (
        Runner(with_eos(loaded, HALF_OF_THE_VOCABULARY), BLOCKS, max_new_tokens=8, replay=False)
        for loaded in (whole, parts)
    )
    assert_same_results(there.run(rows_of(UNEQUAL)), here.run(rows_of(UNEQUAL)))
    run_small(tmp_path / "s.zarr", parts, ExtractSettings(batch_size="auto", max_new_tokens=5))
