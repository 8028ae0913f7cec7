"""Lens packs as folders of HatCat's state dicts, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lenstrain.data.dataset import LensDataset
from lenstrain.errors import (
    ForeignFormatError,
    LensPackError,
    LensPackExistsError,
    LensPackNotFoundError,
    SettingsError,
)
from lenstrain.exchange.export import export_pack, import_hatcat
from lenstrain.exchange.filenames import file_stems
from lenstrain.exchange.hatcat import read_hatcat, write_hatcat
from lenstrain.families.mlp import MlpWeights
from lenstrain.fit.adaptive import fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.metrics.grade import Grade
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import HIDDEN

HOSTILE = [
    "../../escape",
    "..",
    "a/b",
    "C:\\x",
    "größe ☂",
    "con",
    "CON.txt",
    "Bird",
    "bird",
    "BIRD",
    "",
    "x" * 300,
    "x" * 299 + "y",
    "nul\0byte",
    "two\nlines",
    ".hidden",
    "100%25",
    "~tilde",
    "bird~0",
]


def fit(planted: LensDataset, **settings: Any) -> LensPack:
    chosen = FitSettings(max_iterations=1, **settings)
    return make_lens_pack(fit_lenses(planted, chosen), planted, chosen)


@pytest.fixture(scope="module")
def linear(planted: LensDataset) -> LensPack:
    return fit(planted)


@pytest.fixture(scope="module")
def mlp(planted: LensDataset) -> LensPack:
    return fit(planted, family="mlp")


@pytest.fixture(params=["linear", "mlp"])
def pack(request: pytest.FixtureRequest) -> LensPack:
    found: LensPack = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def folder(linear: LensPack, tmp_path: Path) -> Path:
    """Two classifiers as HatCat itself would leave them, with nothing beside them."""
    torch.manual_seed(0)
    for concept in ("Bird", "Fish"):
        save(tmp_path / "pack" / "layer2" / f"{concept}_classifier.pt", theirs(mlp=False))
    return tmp_path / "pack"


@pytest.fixture(name="X")
def random_activations() -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(3, 4, size=(50, HIDDEN)).astype(np.float32)


class Linear(nn.Module):
    """As HatCat builds the linear one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(x))


class Mlp(nn.Module):
    """As HatCat builds the other one; what it returns is a logit."""

    def __init__(self, hidden: int, *, norm: bool = False) -> None:
        super().__init__()
        first = [nn.LayerNorm(hidden)] if norm else []
        self.net = nn.Sequential(
            *first,
            nn.Linear(hidden, 128),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.net(x))


def theirs(*, mlp: bool, hidden: int = HIDDEN) -> nn.Module:
    return (Mlp(hidden) if mlp else Linear(hidden)).eval()


def save(path: Path, module: nn.Module | dict[str, Any] | Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict() if isinstance(module, nn.Module) else module, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def named(pack: LensPack, concepts: list[str]) -> LensPack:
    """Lenses of these concepts, all on one level."""
    lenses = [
        dataclasses.replace(pack.lenses[i % len(pack)], concept=concept, name=concept, level=1)
        for i, concept in enumerate(concepts)
    ]
    return LensPack(lenses, pack.provenance, {})


# --- what HatCat gets ---------------------------------------------------------------------------


def test_hatcats_modules_load_what_is_written_and_say_the_same(
    pack: LensPack, tmp_path: Path, X: NDArray[np.float32]
) -> None:
    files = write_hatcat(pack, tmp_path / "out")
    for lens in pack:
        module = theirs(mlp=pack.family == "mlp")
        module.load_state_dict(
            torch.load(tmp_path / "out" / files[lens.concept], weights_only=True)
        )
        with torch.no_grad():
            logits = module(torch.from_numpy(X)).squeeze(1).numpy()
        np.testing.assert_allclose(logits, lens.decision_function(X), rtol=1e-4, atol=1e-3)


def test_classifiers_lie_in_a_folder_a_level_of_abstraction(
    linear: LensPack, tmp_path: Path
) -> None:
    write_hatcat(linear, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.pt")}
    assert found == {f"layer{lens.level}/{lens.concept}_classifier.pt" for lens in linear}


def test_hatcats_descriptions_name_model_files_kinds_and_model_layers(
    pack: LensPack, tmp_path: Path
) -> None:
    files = write_hatcat(pack, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "pack_info.json").read_text())
    assert (info["model"], info["source_pack"], info["trained_layers"]) == (
        "planted",
        "planted",
        [0, 1],
    )
    assert "lens_pack_id" not in info  # which would make HatCat look for another layout of the file
    manifest = json.loads((tmp_path / "out" / "version_manifest.json").read_text())
    for lens in pack:
        ((model_layer, entry),) = manifest["lenses"][lens.concept]["classifiers"].items()
        assert model_layer == str(entry["layer"]) == str(lens.model_layer)
        assert entry["file"] == files[lens.concept]
        assert entry["technique"] == pack.family
        assert entry["metrics"]["f1"] == lens.metrics["test_f1"]
        assert set(entry) == {"layer", "category", "technique", "metrics", "trained_at", "file"}


def test_a_classifier_file_holds_one_lens_and_not_the_matrix_of_all(
    linear: LensPack, tmp_path: Path
) -> None:
    linear.save(tmp_path / "pack")
    files = write_hatcat(LensPack.load(tmp_path / "pack"), tmp_path / "out")
    assert all(
        (tmp_path / "out" / file).stat().st_size < 4 * HIDDEN + 2500 for file in files.values()
    )


def test_exporting_twice_writes_the_same_bytes(pack: LensPack, tmp_path: Path) -> None:
    write_hatcat(pack, tmp_path / "a")
    write_hatcat(pack, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# --- round trip ---------------------------------------------------------------------------------


def test_round_trip_keeps_scores_bit_for_bit_and_everything_known(
    pack: LensPack, tmp_path: Path, X: NDArray[np.float32]
) -> None:
    write_hatcat(pack, tmp_path / "out")
    back = read_hatcat(tmp_path / "out")
    assert [lens.concept for lens in back] == [lens.concept for lens in pack]
    for before, after in zip(pack, back, strict=True):
        assert after.decision_function(X).tobytes() == before.decision_function(X).tobytes()
        for name in (
            "name",
            "level",
            "model_layers",
            "threshold",
            "calibrator",
            "noise",
            "grade",
            "trajectory",
        ):
            assert getattr(after, name) == getattr(before, name), name
        assert repr(after.metrics) == repr(before.metrics)
        assert [d.deviation for d in after.directions] == [d.deviation for d in before.directions]
        np.testing.assert_allclose(
            after.directions[0].vector, before.directions[0].vector, atol=1e-3
        )
    assert back.family == pack.family
    assert {**back.provenance, "imported": None} == {**pack.provenance, "imported": None}


def test_an_imported_pack_is_saved_and_loaded_like_any_other(
    pack: LensPack, tmp_path: Path, X: NDArray[np.float32]
) -> None:
    write_hatcat(pack, tmp_path / "out")
    import_hatcat(tmp_path / "out", tmp_path / "back")
    for lens in LensPack.load(tmp_path / "back"):
        assert lens.predict_proba(X).tobytes() == pack[lens.concept].predict_proba(X).tobytes()


def test_mean_difference_lenses_stay_what_they_are(planted: LensDataset, tmp_path: Path) -> None:
    write_hatcat(fit(planted, family="mean-difference"), tmp_path / "out")
    assert read_hatcat(tmp_path / "out").family == "mean-difference"


@pytest.mark.parametrize("family", ["text", "ensemble"])
def test_families_without_a_form_in_hatcat_are_refused(
    linear: LensPack, tmp_path: Path, family: str
) -> None:
    other = LensPack(
        linear.lenses, dataclasses.replace(linear.provenance, settings={"family": family}), {}
    )
    with pytest.raises(
        SettingsError,
        match=rf"^these {family} lenses have no form in HatCat.*--family linear, mean-difference",
    ):
        write_hatcat(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lenses_that_divide_by_a_length_are_refused_and_their_plain_form_is_not(
    planted: LensDataset, tmp_path: Path
) -> None:
    one = {"family": "discriminant", "model_layers": (1,)}
    with pytest.raises(SettingsError, match=r"cannot divide by the length .* --no-unit-norm"):
        write_hatcat(fit(planted, **one), tmp_path / "out")
    plain, X = fit(planted, **one, unit_norm=False), planted.vectors(1)
    write_hatcat(plain, tmp_path / "out")
    np.testing.assert_array_equal(read_hatcat(tmp_path / "out").score(X, 1), plain.score(X, 1))


# --- names --------------------------------------------------------------------------------------


def test_hostile_names_stay_in_the_folder_and_come_back(linear: LensPack, tmp_path: Path) -> None:
    hostile = named(linear, HOSTILE)
    write_hatcat(hostile, tmp_path / "a" / "b" / "out")
    written = [path for path in tmp_path.rglob("*.pt") if path.is_file()]
    assert {path.parent for path in written} == {tmp_path / "a" / "b" / "out" / "layer1"}
    assert len(written) == len(HOSTILE)
    back = read_hatcat(tmp_path / "a" / "b" / "out")
    assert [lens.concept for lens in back] == HOSTILE
    assert all(after.bias == before.bias for after, before in zip(back, hostile, strict=True))


def test_file_names_differ_on_file_systems_that_ignore_case() -> None:
    stems = file_stems(HOSTILE)
    assert len({stem.lower() for stem in stems.values()}) == len(HOSTILE)
    assert all(stem.isascii() and stem.isprintable() and len(stem) < 180 for stem in stems.values())
    assert not any(
        set(stem) & set('/\\:*?"<>|\0') or stem.startswith(".") for stem in stems.values()
    )


def test_ordinary_names_are_kept_so_that_hatcat_finds_them() -> None:
    names = ["Bird", "AgentOf_Change", "first-aid kit", "v1.2", "3D (solid)"]
    assert file_stems(names) == dict(zip(names, names, strict=True))


# --- files of HatCat's own ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [False, True], ids=["linear", "mlp"])
@pytest.mark.parametrize(
    "place",
    ["layer2/Bird_classifier.pt", "layer2/Bird.pt", "layer2/classifiers/Bird_classifier.pt"],
)
def test_a_classifier_with_nothing_beside_it_scores_as_hatcat_does(
    tmp_path: Path, X: NDArray[np.float32], kind: bool, place: str
) -> None:
    module = theirs(mlp=kind)
    save(tmp_path / place, module)
    (lens,) = read_hatcat(tmp_path, model_layer=15)
    with torch.no_grad():
        logits = module(torch.from_numpy(X)).squeeze(1)
    np.testing.assert_allclose(lens.decision_function(X), logits.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        lens.predict_proba(X)[:, 1], torch.sigmoid(logits).numpy(), rtol=1e-4
    )
    assert (lens.concept, lens.level, lens.model_layers) == ("Bird", 2, (15,))
    assert (lens.grade, lens.status, lens.reason) == (
        None,
        "ungraded",
        "imported: never measured here",
    )
    assert not any(lens.reaches(grade) for grade in Grade)
    assert math.isnan(lens.metrics["score"])
    assert lens.metrics["unknown"] == [
        "threshold",
        "calibration",
        "noise_floor",
        "grade",
        "metrics",
    ]


@pytest.mark.parametrize("place", ["Bird_classifier.pt", "activation_lenses/Bird_classifier.pt"])
def test_a_classifier_outside_the_folder_of_a_level_has_an_unknown_level(
    tmp_path: Path, place: str
) -> None:
    save(tmp_path / "them" / place, theirs(mlp=False))
    (lens,) = read_hatcat(tmp_path / "them", model_layer=3)
    assert lens.level == 0
    assert "layer" in lens.metrics["unknown"]


def test_the_folder_of_one_level_can_be_given_alone(folder: Path) -> None:
    assert [lens.level for lens in read_hatcat(folder / "layer2", model_layer=3)] == [2, 2]


def test_files_without_the_prefix_of_the_sequence_are_read(
    tmp_path: Path, X: NDArray[np.float32]
) -> None:
    module = theirs(mlp=True)
    old = {name.removeprefix("net."): tensor for name, tensor in module.state_dict().items()}
    save(tmp_path / "layer0" / "A_classifier.pt", old)
    save(tmp_path / "layer0" / "B_classifier.pt", module)
    a, b = read_hatcat(tmp_path, model_layer=0)
    assert a.decision_function(X).tobytes() == b.decision_function(X).tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    module = theirs(mlp=True).to(dtype)
    save(tmp_path / "layer0" / "A_classifier.pt", module)
    (lens,) = read_hatcat(tmp_path, model_layer=0)
    assert isinstance(lens.weights, MlpWeights)
    found = torch.from_numpy(lens.weights.w2.T.copy()).to(dtype)
    assert torch.equal(found, module.state_dict()["net.3.weight"])


def test_an_import_without_a_description_is_saved_and_is_ungraded(
    folder: Path, tmp_path: Path
) -> None:
    pack = import_hatcat(folder, tmp_path / "back", model_layer=15)
    loaded = LensPack.load(tmp_path / "back")
    assert loaded.grades() == {"A": 0, "B": 0, "C": 0, "ungraded": 2}
    assert math.isnan(loaded.summary()["mean_score"])
    assert loaded.provenance == pack.provenance
    assert loaded.provenance["store"]["model"]["id"] == "unknown"
    assert (loaded.hungry, [*loaded.short]) == ([], [])


def test_the_model_is_taken_from_hatcats_description(folder: Path) -> None:
    (folder / "pack_info.json").write_text('{"model": "google/gemma-3-4b-pt"}')
    assert (
        read_hatcat(folder, model_layer=1).provenance["store"]["model"]["id"]
        == "google/gemma-3-4b-pt"
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', "[" * 100_000])
def test_a_damaged_description_of_hatcat_is_no_obstacle(folder: Path, text: str) -> None:
    (folder / "pack_info.json").write_text(text)
    assert read_hatcat(folder, model_layer=1).provenance["store"]["model"]["id"] == "unknown"


def test_a_classifier_added_to_an_export_is_read_by_its_weights(
    linear: LensPack, tmp_path: Path
) -> None:
    write_hatcat(linear, tmp_path / "out")
    save(tmp_path / "out" / "layer1" / "New_classifier.pt", theirs(mlp=False))
    back = read_hatcat(tmp_path / "out", model_layer=1)
    assert [lens.concept for lens in back] == [*(lens.concept for lens in linear), "New"]
    assert back["New"].metrics["unknown"]
    assert "unknown" not in back["bird"].metrics


# --- what is refused ----------------------------------------------------------------------------


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize(
    "wrap", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))]
)
@pytest.mark.parametrize("inside", [lambda bomb: bomb, lambda bomb: {"linear.weight": bomb}])
def test_a_malicious_pickle_is_refused_in_one_line_and_never_runs(
    folder: Path, tmp_path: Path, wrap: Callable[..., Any], inside: Callable[..., Any]
) -> None:
    evil, trace = folder / "layer2" / "Evil_classifier.pt", tmp_path / "trace"
    wrap(inside(Bomb(trace)), evil)
    with pytest.raises(
        ForeignFormatError, match=r"Evil_classifier.pt is refused: .*could run code \(\S+"
    ) as caught:
        read_hatcat(folder, model_layer=1)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(evil, weights_only=False) if wrap is torch.save else pickle.loads(evil.read_bytes())
    assert trace.read_text() == "ran"  # so it would have run


def without(name: str) -> dict[str, Any]:
    return {key: tensor for key, tensor in theirs(mlp=True).state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "has the tensors none; expected linear.weight and linear.bias, or net.0.weight"),
        (without("net.3.bias"), "has the tensors net.0.bias, .*; expected"),
        ({**without(""), "net.9.bias": torch.zeros(1)}, "has the tensors .*net.9.bias; expected"),
        (
            {**without(""), "net.3.weight": torch.zeros(32, 128)},
            r"net.3.weight has shape \(32, 128\), expected \(",
        ),
        (nn.Linear(HIDDEN, 1), "has the tensors bias, weight; expected"),
        (
            {"linear.weight": torch.zeros(2, HIDDEN), "linear.bias": torch.zeros(2)},
            r"\(2, 48\), expected \(1, hid",
        ),
        (
            {"linear.weight": torch.zeros(1, 0), "linear.bias": torch.zeros(1)},
            r"\(1, 0\), expected \(1, hidden\)",
        ),
        (
            {"linear.weight": torch.tensor(1.0), "linear.bias": torch.zeros(1)},
            r"\(\), expected \(1, hidden\)",
        ),
        (
            {"linear.weight": torch.full((1, 8), math.nan), "linear.bias": torch.zeros(1)},
            "values that are not finite",
        ),
        (
            {"linear.weight": torch.zeros(1, 8, dtype=torch.int64)},
            "something else under 'linear.weight', expected",
        ),
        (
            {"linear.weight": torch.zeros(1, 8).to_sparse()},
            "something else under 'linear.weight', expected",
        ),
        ({"linear.weight": [0.0]}, "something else under 'linear.weight', expected"),
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        (
            Mlp(HIDDEN, norm=True),
            r"has a layer norm on its input \(net.0.weight \(48,\)\), expected \(128, hidden\)",
        ),
        (
            theirs(mlp=True),
            "is an MLP on 48 features, expected linear on 48 features as layer2/Bird_classifier.pt",
        ),
        (theirs(mlp=False, hidden=64), "is linear on 64 features, expected linear on 48 features"),
    ],
)
def test_what_is_no_classifier_of_the_pack_is_named_with_what_was_expected(
    folder: Path, state: Any, message: str
) -> None:
    path = save(folder / "layer2" / "Other_classifier.pt", state)
    with pytest.raises(ForeignFormatError, match=message) as caught:
        read_hatcat(folder, model_layer=1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_torn_file_is_named(folder: Path, keep: float) -> None:
    path = folder / "layer2" / "Bird_classifier.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    with pytest.raises(ForeignFormatError, match=r"Bird_classifier.pt (is refused|holds)"):
        read_hatcat(folder, model_layer=1)


@pytest.mark.parametrize("seed", range(30))
def test_a_file_with_flipped_bytes_is_read_or_refused(folder: Path, seed: int) -> None:
    path, rng = folder / "layer2" / "Bird_classifier.pt", np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), 8):
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    with contextlib.suppress(ForeignFormatError):
        assert len(read_hatcat(folder, model_layer=1)) == 2


def test_the_model_layer_has_to_be_said_by_somebody(folder: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"which transformer block .* was trained on: .* --model-layer"
    ):
        read_hatcat(folder)


def test_a_model_layer_that_contradicts_the_export_is_refused(
    linear: LensPack, tmp_path: Path
) -> None:
    write_hatcat(linear, tmp_path / "out")
    with pytest.raises(SettingsError, match=r"reads model layer \d, as lenses.json says, not 7"):
        read_hatcat(tmp_path / "out", model_layer=7)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_classifiers_is_refused(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "them" / "layer0").mkdir(parents=True)
        (tmp_path / "them" / "layer0" / "results.json").write_text("{}")
    with pytest.raises(ForeignFormatError, match=r"them has no <concept>_classifier.pt"):
        read_hatcat(tmp_path / "them", model_layer=1)


def test_a_concept_in_two_places_is_refused(folder: Path) -> None:
    save(folder / "layer3" / "Bird_classifier.pt", theirs(mlp=False))
    with pytest.raises(
        ForeignFormatError, match=r"layer2/Bird.* and .*layer3/Bird.* are both of Bird"
    ):
        read_hatcat(folder, model_layer=1)


def test_a_classifier_of_the_export_that_is_gone_is_named(linear: LensPack, tmp_path: Path) -> None:
    files = write_hatcat(linear, tmp_path / "out")
    (tmp_path / "out" / files["fish"]).unlink()
    with pytest.raises(
        ForeignFormatError, match=r"fish_classifier.pt is listed in lenses.json and not there"
    ):
        read_hatcat(tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text(
            path.read_text().replace('"format_version": ', '"format_version": 9')
        ),
        lambda path: path.write_text(path.read_text().replace('"threshold"', '"treshold"')),
        lambda path: path.write_text(path.read_text().replace('"kind"', '"kinds"')),
        lambda path: path.with_name("directions.safetensors").write_bytes(b"\0" * 20),
    ],
)
def test_a_damaged_sidecar_is_named(
    linear: LensPack, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    write_hatcat(linear, tmp_path / "out")
    damage(tmp_path / "out" / "lenses.json")
    with pytest.raises(
        ForeignFormatError,
        match=r"lenses.json cannot be read \(.*\): export the lenses again, or delete",
    ):
        read_hatcat(tmp_path / "out")


def test_files_that_a_sidecar_names_outside_the_folder_are_not_opened(
    linear: LensPack, tmp_path: Path
) -> None:
    write_hatcat(linear, tmp_path / "out")
    save(tmp_path / "secret.pt", theirs(mlp=False))
    path = tmp_path / "out" / "lenses.json"
    data = json.loads(path.read_text())
    data["lenses"][0]["file"] = "../secret.pt"
    path.write_text(json.dumps(data))
    with pytest.raises(ForeignFormatError, match=r"is listed in lenses.json and not there"):
        read_hatcat(tmp_path / "out")


# --- where it may be written --------------------------------------------------------------------


def test_an_earlier_export_is_replaced_only_if_asked(linear: LensPack, tmp_path: Path) -> None:
    write_hatcat(linear, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(
        LensPackExistsError, match="exists already: choose another folder, or pass overwrite=True"
    ):
        write_hatcat(linear, tmp_path / "out")
    assert contents(tmp_path) == before
    write_hatcat(
        LensPack(linear.lenses[:2], linear.provenance, {}), tmp_path / "out", overwrite=True
    )
    assert len(read_hatcat(tmp_path / "out")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["thesis", "pack"])
def test_anything_else_is_never_replaced(
    linear: LensPack, tmp_path: Path, what: str, overwrite: bool
) -> None:
    linear.save(tmp_path / "pack")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(LensPackExistsError, match="choose another"):
        write_hatcat(linear, tmp_path / what, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("out", ["a/pack", "a"])
def test_the_source_is_never_replaced_by_what_is_made_of_it(
    linear: LensPack, tmp_path: Path, out: str
) -> None:
    linear.save(tmp_path / "a" / "pack")
    (tmp_path / "a" / "lenses.json").write_text("{}")
    with pytest.raises(LensPackExistsError, match="holds the lens"):
        export_pack(
            tmp_path / "a" / "pack",
            tmp_path / out,
            "safetensors",
            concepts=["bird"],
            overwrite=True,
        )
    write_hatcat(linear, tmp_path / "a" / "them")
    with pytest.raises(LensPackExistsError, match="holds the lens"):
        import_hatcat(tmp_path / "a" / "them", tmp_path / "a" / "them", overwrite=True)
    assert len(LensPack.load(tmp_path / "a" / "pack")) == 12


def test_a_failed_export_leaves_nothing(
    linear: LensPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("lenstrain.exchange.hatcat.write_sidecar", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        write_hatcat(linear, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_taken_for_a_lens_pack(linear: LensPack, tmp_path: Path) -> None:
    write_hatcat(linear, tmp_path / "out")
    with pytest.raises(LensPackNotFoundError, match="no lens pack at"):
        LensPack.load(tmp_path / "out")


# --- some of the lenses -------------------------------------------------------------------------


def test_a_part_of_a_pack_is_a_pack(
    linear: LensPack, tmp_path: Path, X: NDArray[np.float32]
) -> None:
    linear.save(tmp_path / "pack")
    written = export_pack(
        tmp_path / "pack", tmp_path / "part", "safetensors", concepts=["fish", "bird", "fish"]
    )
    part = LensPack.load(tmp_path / "part")
    assert [lens.concept for lens in part] == list(written.files) == ["bird", "fish"]
    assert (
        part["fish"].decision_function(X).tobytes() == linear["fish"].decision_function(X).tobytes()
    )
    assert part.provenance == linear.provenance


def test_lenses_below_a_grade_are_left_out_and_named(linear: LensPack, tmp_path: Path) -> None:
    graded = [dataclasses.replace(lens, grade=Grade("ABC"[i % 3])) for i, lens in enumerate(linear)]
    LensPack(graded, linear.provenance, {}).save(tmp_path / "pack")
    written = export_pack(tmp_path / "pack", tmp_path / "out", "hatcat", min_grade=Grade.B)
    assert set(written.files) == {lens.concept for lens in graded if lens.grade is not Grade.C}
    assert written.left_out["craft"] == "the lens of craft has grade C"
    with pytest.raises(SettingsError, match="no lens to export has grade A"):
        export_pack(
            tmp_path / "pack", tmp_path / "none", "hatcat", concepts=["craft"], min_grade=Grade.A
        )


def test_an_unknown_concept_is_refused_before_anything_is_written(
    linear: LensPack, tmp_path: Path
) -> None:
    linear.save(tmp_path / "pack")
    with pytest.raises(SettingsError, match="no lens of 'brid': did you mean bird"):
        export_pack(tmp_path / "pack", tmp_path / "out", "hatcat", concepts=["brid"])
    with pytest.raises(LensPackError, match="no lens pack at"):
        export_pack(tmp_path / "nowhere", tmp_path / "out", "hatcat")
    assert not (tmp_path / "out").exists()


def test_concepts_that_ask_for_samples_still_do_after_an_export(
    linear: LensPack, tmp_path: Path
) -> None:
    skipped = {"loom": "too few", "vote": "its activations are NaN"}
    pack = dataclasses.replace(linear, skipped=skipped, short=["loom"])
    write_hatcat(pack, tmp_path / "out")
    back = import_hatcat(tmp_path / "out", tmp_path / "back")
    assert (back.skipped, [*back.short]) == (skipped, ["loom"])
    assert [*LensPack.load(tmp_path / "back").short] == ["loom"]
