"""Control vectors in GGUF: what llama.cpp and repeng make of them, and reading them back."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lenstrain.data.dataset import LensDataset
from lenstrain.errors import (
    LensPackExistsError,
    MissingPackageError,
    SettingsError,
)
from lenstrain.exchange import gguf as exchange
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.lens import Lens, NoiseFloor
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import HIDDEN, SIGNAL_LAYER

Vectors = dict[int, NDArray[np.float32]]

# Along weights, which these tests choose, rather than along what the data say.
write_gguf = partial(exchange.write_gguf, kind="weights")
steering_vectors = partial(exchange.steering_vectors, kind="weights")


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    settings = FitSettings(max_iterations=1, model_layers=(SIGNAL_LAYER,))
    return make_lens_pack(fit_lenses(planted, settings), planted, settings)


def moved(lens: Lens, *model_layers: int) -> Lens:
    """The lens as one of these model layers; an ensemble if they are several."""
    weight = np.tile(lens.weight, len(model_layers))
    return dataclasses.replace(
        lens, model_layers=model_layers, weights=LinearWeights(weight, lens.bias), directions=()
    )


def of(pack: LensPack, *lenses: Lens, family: str = "linear") -> LensPack:
    return LensPack(lenses, dataclasses.replace(pack.provenance, settings={"family": family}), {})


# --- two readers that know nothing of ours ----------------------------------------------------


def as_repeng(path: Path) -> tuple[str, Vectors]:
    """What repeng's `ControlVector.import_gguf` takes from a file: the hint, and the array of each
    direction.<N>."""
    reader = gguf.GGUFReader(path)
    fields = {name: bytes(field.parts[-1]) for name, field in reader.fields.items()}
    assert fields["general.architecture"] == b"controlvector"
    directions = {
        int(t.name.split(".")[1]): np.array(t.data)
        for t in reader.tensors
        if "direction." in t.name
    }
    return fields["controlvector.model_hint"].decode(), directions


def parse(
    path: Path,
) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, NDArray[np.float32]]]]:
    """The bytes of a GGUF file, version 3, by the format's description: metadata, and shape, type
    and data by name."""
    data, place = path.read_bytes(), 24

    def take(layout: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{layout}", data, place)
        place += struct.calcsize(layout)
        return value

    def text() -> str:
        return bytes(take(f"{take('Q')}s")).decode()

    magic, version, n_tensors, n_pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    read: dict[int, Callable[[], Any]] = {4: lambda: take("I"), 8: text}
    metadata = {text(): read[take("I")]() for _ in range(n_pairs)}
    infos = [
        (text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q"))
        for _ in range(n_tensors)
    ]
    start = -(-place // 32) * 32
    return metadata, {
        name: (shape, kind, np.frombuffer(data, "<f4", shape[0], start + offset))
        for name, shape, kind, offset in infos
    }


def as_llama_cpp(path: Path, n_layer: int) -> Vectors:
    """What llama.cpp adds after each block: its loader fills a buffer, its adapter takes the
    blocks' parts from it."""
    buffer = np.zeros(0, np.float32)
    for name, (shape, kind, values) in parse(path)[1].items():
        prefix, _, number = name.partition(".")
        n = int(number)
        assert prefix == "direction"
        assert n > 0, "invalid (zero) direction tensor layer index"
        assert (kind, len(shape)) == (0, 1)  # GGML_TYPE_F32, one axis
        n_embd = shape[0]
        buffer = np.concatenate([buffer, np.zeros(max(0, n_embd * n - len(buffer)), np.float32)])
        buffer[n_embd * (n - 1) : n_embd * n] += values
    added = {}
    for il in range(1, n_layer):
        offset = n_embd * (il - 1)
        if offset + n_embd <= len(buffer):
            added[il] = buffer[offset : offset + n_embd]
    return {il: vector for il, vector in added.items() if vector.any()}


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("model_layers", [(1,), (15,), (29,), (3, 14, 29)])
def test_llama_cpp_and_repeng_add_each_vector_after_our_model_layer(
    pack: LensPack, tmp_path: Path, model_layers: tuple[int, ...]
) -> None:
    lens = moved(pack["bird"], *model_layers)
    write_gguf(of(pack, lens), tmp_path / "out")
    file, wanted = tmp_path / "out" / "bird.gguf", steering_vectors(lens)
    hint, directions = as_repeng(file)
    assert hint == "planted"
    for found in (directions, as_llama_cpp(file, 30)):
        assert list(found) == list(wanted) == list(model_layers)
        for model_layer in model_layers:
            assert found[model_layer].tobytes() == wanted[model_layer].tobytes()


def test_metadata_is_that_of_a_control_vector(pack: LensPack, tmp_path: Path) -> None:
    write_gguf(of(pack, moved(pack["bird"], 3, 14, 29)), tmp_path / "out")
    metadata, tensors = parse(tmp_path / "out" / "bird.gguf")
    assert metadata == {
        "general.architecture": "controlvector",
        "general.name": "bird",
        "controlvector.model_hint": "planted",
        "controlvector.layer_count": 3,
    }
    assert {name: (shape, kind) for name, (shape, kind, _) in tensors.items()} == {
        f"direction.{block}": ([HIDDEN], 0) for block in (3, 14, 29)
    }


def test_a_pack_becomes_a_file_a_concept_and_a_list_of_them(pack: LensPack, tmp_path: Path) -> None:
    files, left_out = write_gguf(pack, tmp_path / "out")
    assert files == {lens.concept: f"{lens.concept}.gguf" for lens in pack}
    assert left_out == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *files.values(),
        "lenses.json",
        "directions.safetensors",
    }
    listed = json.loads((tmp_path / "out" / "lenses.json").read_text())
    assert [entry["file"] for entry in listed["lenses"]] == list(files.values())
    assert [entry["grade"] for entry in listed["lenses"]] == [
        lens.grade and lens.grade.value for lens in pack
    ]


def test_exporting_twice_writes_the_same_bytes(pack: LensPack, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(pack, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_hostile_names_stay_in_the_folder(pack: LensPack, tmp_path: Path) -> None:
    names = ["../../escape", "..", "a/b", "größe", "Bird", "bird", "x" * 300, "nul\0", "con"]
    lenses = [dataclasses.replace(pack["bird"], concept=name, name=name) for name in names]
    files, _ = write_gguf(of(pack, *lenses), tmp_path / "a" / "out")
    found = list(tmp_path.rglob("*.gguf"))
    assert {path.parent for path in found} == {tmp_path / "a" / "out"}
    assert len({path.name.lower() for path in found}) == len(files) == len(names)
    assert all(as_repeng(path)[1].keys() == {SIGNAL_LAYER} for path in found)


# --- which vector -------------------------------------------------------------------------------


def test_a_vector_along_the_weights_is_a_deviation_of_unrelated_activations(pack: LensPack) -> None:
    lens = pack["bird"]
    w, s = lens.weight.astype(np.float64), lens.noise.deviation
    np.testing.assert_allclose(steering_vectors(lens)[SIGNAL_LAYER], w * s / (w @ w), rtol=1e-5)
    X = np.random.default_rng(3).normal(2, 5, size=(20_000, HIDDEN))
    lens = dataclasses.replace(lens, noise=NoiseFloor(0.0, float(lens.decision_function(X).std())))
    along = X @ (w / np.linalg.norm(w))
    assert np.linalg.norm(steering_vectors(lens)[SIGNAL_LAYER]) == pytest.approx(
        along.std(), rel=1e-4
    )


def test_adding_the_vector_raises_the_logit_by_a_deviation_of_its_noise(pack: LensPack) -> None:
    lens, x = pack["bird"], np.random.default_rng(0).normal(size=(1, HIDDEN)).astype(np.float32)
    raised = lens.decision_function(
        x + 2 * steering_vectors(lens)[SIGNAL_LAYER]
    ) - lens.decision_function(x)
    assert raised[0] == pytest.approx(2 * lens.noise.deviation, rel=1e-3)


def test_the_mean_difference_can_be_asked_for(pack: LensPack, tmp_path: Path) -> None:
    write_gguf(of(pack, pack["bird"]), tmp_path / "out", kind="mean-difference")
    ((direction),) = pack["bird"].directions
    found = as_repeng(tmp_path / "out" / "bird.gguf")[1][SIGNAL_LAYER]
    np.testing.assert_allclose(found, direction.vector * direction.deviation, rtol=1e-5)


def test_a_vector_lies_along_the_mean_difference_unless_weights_are_asked_for(
    pack: LensPack, tmp_path: Path
) -> None:
    exchange.write_gguf(pack, tmp_path / "out")
    ((model_layer, vector, deviation),) = pack["bird"].directions
    found = as_repeng(tmp_path / "out" / "bird.gguf")[1][model_layer]
    np.testing.assert_allclose(found, vector * deviation, rtol=1e-6)


# --- what cannot be exported --------------------------------------------------------------------


def test_mlp_lenses_need_another_direction_than_their_weights(
    planted: LensDataset, tmp_path: Path
) -> None:
    settings = FitSettings(max_iterations=1, family="mlp", model_layers=(SIGNAL_LAYER,))
    mlp = make_lens_pack(fit_lenses(planted, settings, concepts=["bird"]), planted, settings)
    with pytest.raises(
        SettingsError, match=r"^mlp lenses have no single direction .*--direction mean-difference"
    ):
        write_gguf(mlp, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(write_gguf(mlp, tmp_path / "out", kind="mean-difference").files) == ["bird"]


def test_text_lenses_have_no_control_vector(pack: LensPack, tmp_path: Path) -> None:
    from lenstrain.data.words import Vocabulary

    text = LensPack(
        pack.lenses, pack.provenance, {}, vocabulary=Vocabulary(("a",), np.ones(1, np.float32))
    )
    with pytest.raises(SettingsError, match="text lenses read words, not activations"):
        write_gguf(text, tmp_path / "out")


def test_lenses_on_model_layer_0_are_left_out_because_llama_cpp_refuses_them(
    pack: LensPack, tmp_path: Path
) -> None:
    lenses = [moved(pack["bird"], 0), moved(pack["fish"], 0, 3), pack["tree"]]
    files, left_out = write_gguf(of(pack, *lenses), tmp_path / "out")
    assert list(files) == ["tree"]
    assert "reads model layer 0, and llama.cpp refuses" in left_out["bird"]
    assert set(left_out) == {"bird", "fish"}
    assert [
        entry["concept"]
        for entry in json.loads((tmp_path / "out" / "lenses.json").read_text())["lenses"]
    ] == ["tree"]
    with pytest.raises(SettingsError, match="the lens of bird reads model layer 0"):
        write_gguf(of(pack, lenses[0]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_vector_without_a_known_or_finite_length_is_left_out(
    pack: LensPack, tmp_path: Path
) -> None:
    unknown = dataclasses.replace(
        pack["bird"], metrics=dataclasses.replace(pack["bird"].metrics, unknown=["noise_floor"])
    )
    flat = dataclasses.replace(
        pack["fish"], weights=LinearWeights(np.zeros(HIDDEN, np.float32), 0.0)
    )
    still = dataclasses.replace(pack["vote"], noise=NoiseFloor(0.0, 0.0))
    files, left_out = write_gguf(of(pack, unknown, flat, still, pack["tree"]), tmp_path / "out")
    assert list(files) == ["tree"]
    assert (
        left_out["bird"]
        == "the noise floor of the lens of bird is not known: its vector has no length"
    )
    assert "nowhere to steer to" in left_out["fish"]
    assert "nowhere to steer to" in left_out["vote"]


def test_a_missing_package_is_one_line_that_names_the_extra(
    pack: LensPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"run `pip install '\.\[gguf\]'`"):
        write_gguf(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_only_if_asked_and_anything_else_never(
    pack: LensPack, tmp_path: Path
) -> None:
    write_gguf(pack, tmp_path / "out")
    with pytest.raises(LensPackExistsError, match="or pass overwrite=True"):
        write_gguf(pack, tmp_path / "out")
    write_gguf(of(pack, pack["bird"]), tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["bird.gguf"]
    pack.save(tmp_path / "pack")
    with pytest.raises(LensPackExistsError, match="is a lens pack, which an export never replaces"):
        write_gguf(pack, tmp_path / "pack", overwrite=True)
