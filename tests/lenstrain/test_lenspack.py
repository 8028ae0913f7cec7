from __future__ import annotations

import dataclasses
import json
import math
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept
from lenstrain.data.dataset import LensDataset
from lenstrain.data.tasks import draw_task
from lenstrain.errors import (
    LensPackError,
    LensPackExistsError,
    LensPackFormatError,
    LensPackNotFoundError,
    SettingsError,
)
from lenstrain.families.kinds import FAMILIES
from lenstrain.fit.adaptive import FitResult, FitSettings, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.fit.train import train
from lenstrain.metrics.grade import RULE, Grade, Status
from lenstrain.pack.folder import check_output
from lenstrain.pack.pack import LensPack
from tests.lenstrain.conftest import Planting, make_planted_store, planted_pack
from tests.lenstrain.test_text import name_concepts, write_completions

SETTINGS = FitSettings(max_iterations=3)


@pytest.fixture(scope="module")
def result(planted: LensDataset) -> FitResult:
    return fit_lenses(planted, SETTINGS)


@pytest.fixture(scope="module")
def pack(planted: LensDataset, result: FitResult) -> LensPack:
    return make_lens_pack(result, planted, SETTINGS)


@pytest.fixture
def saved(pack: LensPack, tmp_path: Path) -> Path:
    pack.save(tmp_path / "lenses")
    return tmp_path / "lenses"


@pytest.fixture(scope="module")
def activations(planted: LensDataset) -> NDArray[np.float32]:
    return planted.vectors(1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "lenses.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- round trip ---------------------------------------------------------------------------------


def test_saved_pack_scores_as_before_bit_for_bit(
    pack: LensPack, saved: Path, activations: NDArray[np.float32]
) -> None:
    loaded = LensPack.load(saved)
    assert loaded.score(activations, 1).tobytes() == pack.score(activations, 1).tobytes()
    for lens in pack:
        assert (
            loaded[lens.concept].decision_function(activations).tobytes()
            == lens.decision_function(activations).tobytes()
        )
        assert (
            loaded[lens.concept].predict_proba(activations).tobytes()
            == lens.predict_proba(activations).tobytes()
        )
        np.testing.assert_array_equal(
            loaded[lens.concept].predict(activations), lens.predict(activations)
        )


def test_saved_pack_keeps_everything_known_about_a_lens(pack: LensPack, saved: Path) -> None:
    for before, after in zip(pack, LensPack.load(saved), strict=True):
        for name in (
            "concept",
            "name",
            "level",
            "model_layers",
            "bias",
            "threshold",
            "calibrator",
            "noise",
            "grade",
            "metrics",
            "beyond",
        ):
            assert getattr(after, name) == getattr(before, name), name
        assert after.trajectory == before.trajectory


def test_saved_pack_keeps_its_provenance(pack: LensPack, saved: Path, planted: LensDataset) -> None:
    loaded = LensPack.load(saved)
    assert loaded.provenance == pack.provenance
    assert loaded.provenance["store"]["digest"] == planted.store.digest()
    assert loaded.provenance["store"]["model"]["id"] == "planted"
    assert loaded.provenance["settings"]["max_iterations"] == 3
    assert loaded.provenance["layers"] == [0, 1]


def test_pack_saved_again_is_the_same_file(saved: Path, tmp_path: Path) -> None:
    LensPack.load(saved).save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)


def test_two_fits_give_byte_identical_files(
    planted: LensDataset, saved: Path, tmp_path: Path
) -> None:
    dataset = LensDataset(planted.store)
    make_lens_pack(fit_lenses(dataset, SETTINGS), dataset, SETTINGS).save(tmp_path / "again")
    again, before = contents(tmp_path / "again"), contents(saved)
    assert again.pop("run.json") != before.pop("run.json")  # what took how long, and nothing else
    assert again == before


def test_files_are_json_and_safetensors_and_nothing_else(saved: Path) -> None:
    found = contents(saved)
    assert set(found) == {"lenses.json", "lenses.safetensors", "hungry.json", "run.json"}
    for name in ("lenses.json", "hungry.json", "run.json"):
        json.loads(found[name])
    length = int.from_bytes(found["lenses.safetensors"][:8], "little")
    assert set(json.loads(found["lenses.safetensors"][8 : 8 + length])) == {
        "weight",
        "bias",
        "direction",
    }


def test_attributes_of_concepts_come_from_the_pack_and_stay_with_the_lenses(tmp_path: Path) -> None:
    bird = dataclasses.replace(planted_pack()["bird"], attributes={"risk_level": ("high", "new")})
    dataset = LensDataset(make_planted_store(tmp_path / "s", pack=planted_pack(changes=[bird])))
    train(dataset, SETTINGS).save(tmp_path / "lenses")
    loaded = LensPack.load(tmp_path / "lenses")
    assert {x.concept: x.attributes for x in loaded if x.attributes} == {"bird": bird.attributes}
    data = json.loads((tmp_path / "lenses" / "lenses.json").read_text())
    assert sum("attributes" in lens for lens in data["lenses"]) == 1  # old readers see no change


def test_a_lens_has_attributes_if_each_name_has_one_of_its_values(pack: LensPack) -> None:
    lens = dataclasses.replace(pack.lenses[0], attributes={"risk": ("high",), "of": ("a", "b")})
    assert lens.has_attributes({})
    assert lens.has_attributes({"risk": {"low", "high"}, "of": {"b"}})
    assert not lens.has_attributes({"risk": {"low"}, "of": {"b"}})
    assert not lens.has_attributes({"other": {"b"}})


def test_weights_are_one_float32_matrix(saved: Path, pack: LensPack) -> None:
    tensors = safetensors.numpy.load_file(saved / "lenses.safetensors")
    assert tensors["weight"].shape == (len(pack), 48)
    assert tensors["weight"].dtype == tensors["bias"].dtype == np.float32


def test_files_and_folder_can_be_read_by_others(saved: Path) -> None:
    assert saved.stat().st_mode & stat.S_IROTH
    assert all(path.stat().st_mode & stat.S_IROTH for path in saved.iterdir())


# --- scoring ------------------------------------------------------------------------------------


def test_score_of_the_pack_is_that_of_each_lens(
    pack: LensPack, activations: NDArray[np.float32]
) -> None:
    scores = pack.score(activations, 1)
    assert scores.shape == (len(activations), len(pack.at(1)))
    for column, lens in zip(scores.T, pack.at(1), strict=True):
        np.testing.assert_allclose(
            column, lens.decision_function(activations), rtol=1e-5, atol=1e-5
        )


def test_shipped_lens_gives_the_logits_of_the_fit(
    pack: LensPack, result: FitResult, activations: NDArray[np.float32]
) -> None:
    for lens in result.lenses:
        exact = lens.weights.decision_function(activations)
        shipped = pack[lens.concept].decision_function(activations)
        assert shipped.dtype == np.float32
        np.testing.assert_allclose(shipped, exact, atol=1e-4 * np.abs(exact).max(), rtol=1e-4)


def test_lenses_of_several_model_layers_keep_apart(
    planted: LensDataset, activations: NDArray[np.float32]
) -> None:
    results = [
        fit_lenses(planted, FitSettings(max_iterations=1, model_layers=(model_layer,)))
        for model_layer in (0, 1)
    ]
    mixed = FitResult([results[i % 2].lenses[i] for i in range(12)])
    pack = make_lens_pack(mixed, planted, FitSettings())
    assert pack.model_layers == (0, 1)
    for model_layer in (0, 1):
        here = pack.at(model_layer)
        columns = np.stack([lens.decision_function(activations) for lens in here], axis=1)
        assert {lens.concept for lens in here} == {
            lens.concept for lens in mixed.lenses[model_layer::2]
        }
        scores = pack.score(activations, model_layer)
        np.testing.assert_allclose(scores, columns, rtol=1e-5, atol=1e-5)


def test_probabilities_are_a_distribution_and_follow_the_calibration(
    pack: LensPack, activations: NDArray[np.float32]
) -> None:
    lens = pack["bird"]
    p = lens.predict_proba(activations)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(
        p[:, 1], lens.calibrator(lens.decision_function(activations).astype(np.float64))
    )


def test_lens_says_yes_from_its_threshold_on(
    pack: LensPack, activations: NDArray[np.float32]
) -> None:
    lens = pack["bird"]
    np.testing.assert_array_equal(
        lens.predict(activations), lens.decision_function(activations) >= lens.threshold
    )
    assert 0 < lens.predict(activations).mean() < 1


def test_pack_is_a_collection_by_concept(pack: LensPack) -> None:
    assert len(pack) == 12
    assert [lens.concept for lens in pack][:3] == ["nature", "society", "craft"]
    assert "bird" in pack
    assert "dragon" not in pack
    assert sum(pack.grades().values()) == 12
    assert list(pack.grades()) == ["A", "B", "C", "ungraded"]
    assert pack.grading_rule == RULE == 2


def test_metrics_are_those_of_the_fit(pack: LensPack, result: FitResult) -> None:
    for lens in result.lenses:
        metrics = pack[lens.concept].metrics
        assert metrics["test_f1"] == lens.test_f1 > 0
        assert metrics["score"] == lens.score > 0
        assert metrics["n_samples"] == lens.n_samples
        assert metrics["iterations"] == metrics["test_looks"] == len(lens.trajectory)
        assert metrics["graduated"] == lens.graduated


# --- hungry -------------------------------------------------------------------------------------


def test_hungry_file_lists_the_hungry_with_what_they_used(tmp_path: Path) -> None:
    planting = Planting(strength=2.0, completion_strength=1.5)
    dataset = LensDataset(make_planted_store(tmp_path / "s", planting=planting))
    result = fit_lenses(dataset)
    make_lens_pack(result, dataset, FitSettings()).save(tmp_path / "lenses")
    found = json.loads((tmp_path / "lenses" / "hungry.json").read_text())
    assert result.hungry
    assert found["concepts"] == {
        lens.concept: lens.n_samples for lens in result.lenses if lens.hungry
    }
    assert found["store"]["digest"] == dataset.store.digest()
    assert LensPack.load(tmp_path / "lenses").hungry == result.hungry


def test_hungry_file_is_there_when_nobody_is(planted: LensDataset, tmp_path: Path) -> None:
    settings = FitSettings(max_iterations=1)
    make_lens_pack(fit_lenses(planted, settings), planted, settings).save(tmp_path / "lenses")
    assert json.loads((tmp_path / "lenses" / "hungry.json").read_text())["concepts"] == {}


def test_skipped_concepts_and_their_reasons_are_kept(fresh: LensDataset, tmp_path: Path) -> None:
    fresh.split[np.concatenate(draw_task(fresh, "loom", SETTINGS.n_negatives).positives)] = 0
    make_lens_pack(fit_lenses(fresh, SETTINGS), fresh, SETTINGS).save(tmp_path / "lenses")
    loaded = LensPack.load(tmp_path / "lenses")
    assert "loom" not in loaded
    assert loaded.skipped["loom"].startswith("loom: 0 positive samples in the calibration split")


# --- where it may be written --------------------------------------------------------------------


def test_existing_pack_is_refused_and_left_untouched(pack: LensPack, saved: Path) -> None:
    before = contents(saved)
    with pytest.raises(
        LensPackExistsError,
        match=r"lenses exists already: choose another folder, or pass overwrite=True",
    ):
        pack.save(saved)
    assert contents(saved) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_never_replaced(
    pack: LensPack, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(LensPackExistsError, match=r"thesis exists already: choose another folder$"):
        pack.save(tmp_path / "thesis", overwrite=overwrite)
    assert contents(tmp_path) == {"thesis/chapter.txt": b"years of work"}


def test_file_in_the_way_is_never_replaced(pack: LensPack, tmp_path: Path) -> None:
    (tmp_path / "lenses").write_text("mine")
    with pytest.raises(LensPackExistsError, match="exists already"):
        pack.save(tmp_path / "lenses", overwrite=True)
    assert (tmp_path / "lenses").read_text() == "mine"


def test_output_is_checked_before_the_work(saved: Path) -> None:
    with pytest.raises(LensPackExistsError, match="pass overwrite=True"):
        check_output(saved, overwrite=False)
    check_output(saved, overwrite=True)
    check_output(saved.with_name("new"), overwrite=False)


def test_overwrite_replaces_a_pack_and_leaves_nothing_beside_it(
    pack: LensPack, saved: Path
) -> None:
    smaller = LensPack(pack.lenses[:2], pack.provenance, {})
    smaller.save(saved, overwrite=True)
    assert len(LensPack.load(saved)) == 2
    assert [path.name for path in saved.parent.iterdir()] == ["lenses"]


class _DiskFullError(RuntimeError):
    """Not an OSError, so that nothing catches it by accident."""


def test_old_pack_survives_a_failed_overwrite(
    pack: LensPack, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)

    def fail(path: Path, data: Any) -> None:
        raise _DiskFullError("no space left")

    monkeypatch.setattr("lenstrain.pack.folder.write_json", fail)
    with pytest.raises(_DiskFullError, match="no space left"):
        pack.save(saved, overwrite=True)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["lenses"]


def test_old_pack_survives_if_the_new_one_cannot_be_moved_into_place(
    pack: LensPack, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(saved), Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if Path(target) == saved and not self.name.endswith("-old"):
            raise _DiskFullError("cannot move")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(_DiskFullError, match="cannot move"):
        pack.save(saved, overwrite=True)
    assert contents(saved) == before


def test_failed_first_save_leaves_nothing(
    pack: LensPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, data: Any) -> None:
        raise _DiskFullError("no space left")

    monkeypatch.setattr("lenstrain.pack.folder.write_json", fail)
    with pytest.raises(_DiskFullError, match="no space left"):
        pack.save(tmp_path / "lenses")
    assert list(tmp_path.iterdir()) == []


def test_missing_parent_folders_are_made(pack: LensPack, tmp_path: Path) -> None:
    pack.save(tmp_path / "runs" / "1" / "lenses")
    assert len(LensPack.load(tmp_path / "runs" / "1" / "lenses")) == 12


def test_concept_ids_never_become_paths(tmp_path: Path) -> None:
    names = ["../../escape", "a/b", "..", "C:\\x", "größe ☂", "con.txt"]
    changes = [
        Concept(
            name,
            f"thing {i}",
            1,
            parents=("craft",),
            examples=tuple(f"A use {i}, {j}." for j in range(12)),
        )
        for i, name in enumerate(names)
    ]
    store = make_planted_store(tmp_path / "s", pack=planted_pack(changes=changes), levels=[1])
    dataset = LensDataset(store)
    settings = FitSettings(model_layers=(1,), max_iterations=1)
    make_lens_pack(fit_lenses(dataset, settings, concepts=names), dataset, settings).save(
        tmp_path / "out" / "lenses"
    )
    assert [lens.concept for lens in LensPack.load(tmp_path / "out" / "lenses")] == names
    assert set(contents(tmp_path / "out")) == {
        f"lenses/{n}" for n in ("lenses.json", "lenses.safetensors", "hungry.json", "run.json")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"s", "out"}


# --- what cannot be measured --------------------------------------------------------------------


def test_nan_metrics_are_null_on_disk_and_nan_again(
    planted: LensDataset, result: FitResult, tmp_path: Path
) -> None:
    pack = make_lens_pack(result, planted, SETTINGS)
    metrics = dataclasses.replace(
        pack["bird"].metrics,
        score_by_phase={"prompt": math.nan, "completion": 0.5},
        others={"score_unnamed": math.nan},
    )
    bird = dataclasses.replace(pack["bird"], metrics=metrics)
    LensPack([bird], pack.provenance, {}).save(tmp_path / "lenses")
    text = (tmp_path / "lenses" / "lenses.json").read_text()
    assert "NaN" not in text
    assert re.search(r'"score_unnamed": null', text)
    metrics = LensPack.load(tmp_path / "lenses")["bird"].metrics
    assert math.isnan(metrics["score_unnamed"])
    assert math.isnan(metrics["score_by_phase"]["prompt"])
    assert metrics["score_by_phase"]["completion"] == 0.5


# --- what cannot be read ------------------------------------------------------------------------


def test_missing_pack_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        LensPackNotFoundError, match=r"no lens pack at .*nowhere: make one with `lenstrain fit`"
    ):
        LensPack.load(tmp_path / "nowhere")


def test_folder_of_something_else_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(LensPackNotFoundError, match="no lens pack at"):
        LensPack.load(tmp_path)


def test_pack_without_its_weights_is_not_found(saved: Path) -> None:
    (saved / "lenses.safetensors").unlink()
    with pytest.raises(LensPackNotFoundError, match="no lens pack at"):
        LensPack.load(saved)


def test_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    edit_json(saved, format_version=4)
    with pytest.raises(
        LensPackFormatError,
        match="has format version 4, this lenstrain reads 2 and 3: upgrade lenstrain",
    ):
        LensPack.load(saved)


def test_older_format_asks_for_another_fit(saved: Path) -> None:
    edit_json(saved, format_version=1)
    with pytest.raises(
        LensPackFormatError,
        match="has format version 1, this lenstrain reads 2 and 3: fit it again",
    ):
        LensPack.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '"lenses"', "{}"])
def test_other_json_is_no_pack(saved: Path, text: str) -> None:
    (saved / "lenses.json").write_text(text)
    with pytest.raises(
        LensPackFormatError, match=r"is not a readable lens pack|has format version None"
    ):
        LensPack.load(saved)


@pytest.mark.parametrize("missing", ["lenses", "provenance", "skipped"])
def test_incomplete_json_is_an_error(saved: Path, missing: str) -> None:
    data = json.loads((saved / "lenses.json").read_text())
    del data[missing]
    (saved / "lenses.json").write_text(json.dumps(data))
    with pytest.raises(
        LensPackFormatError, match=f"is not a readable lens pack .*'{missing}'.*: fit it again"
    ):
        LensPack.load(saved)


@pytest.mark.parametrize("key", ["concept", "grade", "calibration", "metrics"])
def test_incomplete_lens_is_an_error(saved: Path, key: str) -> None:
    lenses = json.loads((saved / "lenses.json").read_text())["lenses"]
    del lenses[3][key]
    edit_json(saved, lenses=lenses)
    with pytest.raises(
        LensPackFormatError, match=f"is not a readable lens pack .*'{key}'.*: fit it again"
    ):
        LensPack.load(saved)


def test_weights_without_a_bias_are_an_error(saved: Path) -> None:
    weight = safetensors.numpy.load_file(saved / "lenses.safetensors")["weight"]
    safetensors.numpy.save_file({"weight": weight}, saved / "lenses.safetensors")
    with pytest.raises(LensPackFormatError, match=r"is not a readable lens pack .*'bias'"):
        LensPack.load(saved)


def test_file_instead_of_a_folder_is_no_pack(saved: Path) -> None:
    with pytest.raises(LensPackNotFoundError, match="no lens pack at"):
        LensPack.load(saved / "lenses.json")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_an_error(saved: Path, keep: int) -> None:
    path = saved / "lenses.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LensPackFormatError, match=r"is not a readable lens pack .*: fit it again"):
        LensPack.load(saved)


def test_weights_of_another_pack_are_noticed(pack: LensPack, saved: Path) -> None:
    LensPack(pack.lenses[:5], pack.provenance, {}).save(saved.with_name("other"))
    (saved / "lenses.safetensors").write_bytes(
        (saved.with_name("other") / "lenses.safetensors").read_bytes()
    )
    with pytest.raises(
        LensPackFormatError, match=r"12 lenses in JSON and 5 in safetensors\): fit it again"
    ):
        LensPack.load(saved)


def test_lens_pack_errors_are_builtin_errors_too() -> None:
    assert issubclass(LensPackNotFoundError, FileNotFoundError)
    assert issubclass(LensPackExistsError, FileExistsError)
    assert issubclass(LensPackFormatError, LensPackError)


def test_a_url_is_refused_as_a_place_for_a_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LensPackFormatError,
        match=r"cannot be written to a URL \(s3:/bucket/lenses\): choose a folder",
    ):
        check_output(Path("s3://bucket/lenses"), overwrite=False)
    assert list(tmp_path.iterdir()) == []


# --- every family -------------------------------------------------------------------------------

FEW = ["nature", "bird", "vote"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Three model layers, and completions that hold the words of their concepts."""
    store = make_planted_store(
        tmp_path_factory.mktemp("deep") / "s", n_layers=3, model_layers=(0, 1, 2)
    )
    return LensDataset(write_completions(store, name_concepts))


@pytest.fixture(scope="module")
def packs(deep: LensDataset) -> dict[str, LensPack]:
    """One of each family."""
    settings = {name: FitSettings(family=name, max_iterations=1) for name in FAMILIES}  # type: ignore[arg-type]
    return {name: train(deep, its, concepts=FEW) for name, its in settings.items()}


@pytest.fixture(scope="module")
def all_activations(deep: LensDataset) -> dict[int, NDArray[np.float32]]:
    return {model_layer: deep.vectors(model_layer) for model_layer in deep.model_layers}


@pytest.mark.parametrize("family", ["linear", "mlp", "discriminant", "mean-difference", "ensemble"])
def test_pack_of_any_family_scores_as_before_bit_for_bit(
    family: str,
    packs: dict[str, LensPack],
    all_activations: dict[int, NDArray[np.float32]],
    tmp_path: Path,
) -> None:
    pack = packs[family]
    pack.save(tmp_path / "lenses")
    loaded = LensPack.load(tmp_path / "lenses")
    assert loaded.family == pack.family == family
    assert loaded.score_all(all_activations).tobytes() == pack.score_all(all_activations).tobytes()
    for model_layer, X in all_activations.items():
        if pack.at(model_layer):
            assert loaded.score(X, model_layer).tobytes() == pack.score(X, model_layer).tobytes()
    for before, after in zip(pack, loaded, strict=True):
        X = np.hstack([all_activations[model_layer] for model_layer in before.model_layers])
        assert after.decision_function(X).tobytes() == before.decision_function(X).tobytes()
        assert after.predict_proba(X).tobytes() == before.predict_proba(X).tobytes()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_pack_of_any_family_keeps_everything_known_about_a_lens(
    family: str, packs: dict[str, LensPack], tmp_path: Path
) -> None:
    pack = packs[family]
    pack.save(tmp_path / "lenses")
    loaded = LensPack.load(tmp_path / "lenses")
    assert loaded.provenance == pack.provenance
    assert (loaded.run, loaded.skipped) == (pack.run, pack.skipped)
    for before, after in zip(pack, loaded, strict=True):
        np.testing.assert_equal(after.metrics.to_json(), before.metrics.to_json())
        for name in (
            "concept",
            "model_layers",
            "threshold",
            "calibrator",
            "noise",
            "grade",
            "trajectory",
            "beyond",
        ):
            assert getattr(after, name) == getattr(before, name), name
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "lenses")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_nothing_is_pickled_whatever_the_family(
    family: str, packs: dict[str, LensPack], tmp_path: Path
) -> None:
    packs[family].save(tmp_path / "lenses")
    found = contents(tmp_path / "lenses")
    expected = {"lenses.json", "lenses.safetensors", "hungry.json", "run.json"}
    assert set(found) == expected | ({"vocabulary.json"} if family == "text" else set())
    for name, data in found.items():
        if name.endswith(".json"):
            json.loads(data)
    safetensors.numpy.load(found["lenses.safetensors"])


@pytest.mark.parametrize("family", ["linear", "mlp", "discriminant", "mean-difference", "ensemble"])
def test_score_of_any_family_is_that_of_each_lens(
    family: str, packs: dict[str, LensPack], all_activations: dict[int, NDArray[np.float32]]
) -> None:
    pack = packs[family]
    for column, lens in zip(pack.score_all(all_activations).T, pack, strict=True):
        X = np.hstack([all_activations[model_layer] for model_layer in lens.model_layers])
        np.testing.assert_allclose(column, lens.decision_function(X), rtol=1e-4, atol=1e-4)


def test_text_pack_scores_texts_as_before_bit_for_bit(
    packs: dict[str, LensPack], deep: LensDataset, tmp_path: Path
) -> None:
    packs["text"].save(tmp_path / "lenses")
    texts = [*deep.completions[:40], "", "unheard"]
    assert (
        LensPack.load(tmp_path / "lenses").score_texts(texts).tobytes()
        == packs["text"].score_texts(texts).tobytes()
    )


def test_ensemble_is_the_mean_of_a_linear_lens_of_each_of_its_model_layers(
    deep: LensDataset, all_activations: dict[int, NDArray[np.float32]]
) -> None:
    settings = FitSettings(C=0.1, max_iterations=1)
    ensemble = dataclasses.replace(settings, family="ensemble")
    pack = make_lens_pack(fit_lenses(deep, ensemble, concepts=FEW), deep, ensemble)
    assert {lens.model_layers for lens in pack} == {(0, 1, 2)}
    logits = []
    for model_layer, X in all_activations.items():
        single = dataclasses.replace(settings, model_layers=(model_layer,))
        alone = make_lens_pack(fit_lenses(deep, single, concepts=FEW), deep, single)
        logits.append(alone.score(X, model_layer))
    np.testing.assert_allclose(
        pack.score_all(all_activations), np.mean(logits, axis=0), rtol=1e-3, atol=1e-3
    )


def test_ensemble_needs_every_model_layer_it_reads(
    packs: dict[str, LensPack], all_activations: dict[int, NDArray[np.float32]]
) -> None:
    with pytest.raises(KeyError, match="no activation of model layer 2: expected one of 0, 1"):
        packs["ensemble"].score_all({0: all_activations[0], 1: all_activations[1]})
    with pytest.raises(SettingsError, match=r"model layer 0 alone, .* read 0, 1, 2: use score_all"):
        packs["ensemble"].score(all_activations[0], 0)
    with pytest.raises(SettingsError, match=r"no lens of this pack reads model layer 9 alone"):
        packs["linear"].score(all_activations[0], 9)


def test_weight_of_a_lens_that_is_not_linear_is_an_error(packs: dict[str, LensPack]) -> None:
    lens = packs["mlp"]["bird"]
    for attribute in ("weight", "bias"):
        with pytest.raises(
            TypeError, match="the lens of bird is not linear: use its decision_function"
        ):
            getattr(lens, attribute)
    assert packs["linear"]["bird"].weight.shape == (48,)
    assert packs["ensemble"]["bird"].weight.shape == (3 * 48,)


def test_lens_without_a_strength_says_so(packs: dict[str, LensPack], tmp_path: Path) -> None:
    packs["mean-difference"].save(tmp_path / "lenses")
    assert all(lens.metrics["C"] is None for lens in LensPack.load(tmp_path / "lenses"))


# --- text lenses beside -------------------------------------------------------------------------


@pytest.fixture
def dual(packs: dict[str, LensPack]) -> LensPack:
    linear = packs["linear"]
    return LensPack(linear.lenses, linear.provenance, {}, text=packs["text"], run=linear.run)


def test_text_lenses_are_a_pack_of_their_own_in_a_folder_of_the_pack(
    dual: LensPack, packs: dict[str, LensPack], tmp_path: Path
) -> None:
    dual.save(tmp_path / "lenses")
    packs["text"].save(tmp_path / "text")
    assert contents(tmp_path / "lenses" / "text") == contents(tmp_path / "text")
    loaded, alone = LensPack.load(tmp_path / "lenses"), LensPack.load(tmp_path / "lenses" / "text")
    assert loaded.text is not None
    scores = packs["text"].score_texts(["a bird"]).tobytes()
    assert (
        loaded.text.score_texts(["a bird"]).tobytes()
        == alone.score_texts(["a bird"]).tobytes()
        == scores
    )


def test_overwrite_replaces_the_text_lenses_too(
    dual: LensPack, packs: dict[str, LensPack], tmp_path: Path
) -> None:
    dual.save(tmp_path / "lenses")
    fewer = packs["text"]
    few_text = LensPack(fewer.lenses[:1], fewer.provenance, {}, vocabulary=fewer.vocabulary)
    LensPack(dual.lenses, dual.provenance, {}, text=few_text).save(
        tmp_path / "lenses", overwrite=True
    )
    text = LensPack.load(tmp_path / "lenses").text
    assert text is not None
    assert len(text) == 1
    packs["linear"].save(tmp_path / "lenses", overwrite=True)
    assert LensPack.load(tmp_path / "lenses").text is None
    assert not (tmp_path / "lenses" / "text").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "text" / "vocabulary.json").unlink(),
        lambda folder: (folder / "text" / "vocabulary.json").write_text('["bird"]'),
        lambda folder: (folder / "text" / "lenses.safetensors").write_bytes(b"\0" * 20),
        lambda folder: (folder / "text" / "lenses.json").write_text("{"),
        lambda folder: (folder / "run.json").write_text("{"),
    ],
    ids=["no vocabulary", "another vocabulary", "weights", "text json", "run"],
)
def test_damaged_part_of_a_pack_is_named(
    dual: LensPack, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    dual.save(tmp_path / "lenses")
    damage(tmp_path / "lenses")
    with pytest.raises(
        LensPackFormatError, match=r"lenses.* is not a readable lens pack .*: fit it again"
    ):
        LensPack.load(tmp_path / "lenses")


def test_concepts_without_a_lens_for_want_of_samples_are_hungry_too(tmp_path: Path) -> None:
    """They need more samples most of all; what was skipped for another reason does not ask for
    any."""
    dataset = LensDataset(make_planted_store(tmp_path / "s"))
    dataset.split[np.concatenate(draw_task(dataset, "loom", SETTINGS.n_negatives).positives)] = 0
    settings = FitSettings(model_layers=(1,), max_iterations=1)
    pack = make_lens_pack(fit_lenses(dataset, settings), dataset, settings)
    pack.skipped["vote"] = "vote: its activations are NaN"
    pack.save(tmp_path / "lenses")
    asked = json.loads((tmp_path / "lenses" / "hungry.json").read_text())["concepts"]
    assert asked["loom"] == 0
    assert "vote" not in asked
    assert [*LensPack.load(tmp_path / "lenses").short] == [*pack.short] == ["loom"]


# --- grades -------------------------------------------------------------------------------------


def as_of_the_first_rule(folder: Path, grades: str) -> None:
    """A pack as it was written before: neither status nor reason, and other metrics."""
    data = json.loads((folder / "lenses.json").read_text())
    del data["provenance"]["grading_rule"]
    for lens, grade in zip(data["lenses"], grades, strict=True):
        del lens["status"], lens["reason"]
        lens["grade"] = grade
        for name in ("score_named", "score_all", "lead_over_controls", "best_control"):
            del lens["metrics"][name]
        for name in ("n_test", "n_test_unnamed"):
            del lens["metrics"][name]
        lens["metrics"] |= {"score_unnamed": None, "score": 0.97, "grade_uncertain": False}
    (folder / "lenses.json").write_text(json.dumps(data))


def test_pack_of_the_first_rule_shows_its_grades_as_they_were_recorded(
    saved: Path, tmp_path: Path, pack: LensPack, activations: NDArray[np.float32]
) -> None:
    recorded = "AAABBCAAACCA"
    as_of_the_first_rule(saved, recorded)
    loaded = LensPack.load(saved)
    assert "".join(lens.grade_shown for lens in loaded) == recorded
    assert loaded.grades() == {"A": 7, "B": 2, "C": 3, "ungraded": 0}
    assert loaded.grading_rule == 1
    assert {(lens.status, lens.reason, lens.is_capped) for lens in loaded} == {
        ("provisional", "", False)
    }
    assert [lens.reaches(Grade.B) for lens in loaded] == [grade < "C" for grade in recorded]
    assert loaded.score(activations, 1).tobytes() == pack.score(activations, 1).tobytes()
    told = loaded.summary()
    assert (told["grading_rule"], told["capped"]) == (1, 0)
    assert told["mean_score"] == pytest.approx(0.97)
    assert math.isnan(told["mean_score_named"])
    loaded.save(tmp_path / "again")
    again = LensPack.load(tmp_path / "again")
    assert again.grading_rule == 1
    assert "".join(lens.grade_shown for lens in again) == recorded


def test_new_packs_say_which_rule_their_grades_come_from(saved: Path) -> None:
    data = json.loads((saved / "lenses.json").read_text())
    assert data["provenance"]["grading_rule"] == RULE
    assert LensPack.load(saved).grading_rule == RULE


@pytest.mark.parametrize(
    ("grade", "status", "reason"),
    [
        (Grade.A, "provisional", ""),
        (Grade.B, "certified", ""),
        (Grade.C, "provisional", "fires on 49% of unrelated samples"),
        (None, "ungraded", "no test text that expresses the concept without naming it"),
    ],
)
def test_grade_status_and_reason_are_kept(
    pack: LensPack, tmp_path: Path, grade: Grade | None, status: Status, reason: str
) -> None:
    lens = dataclasses.replace(pack["bird"], grade=grade, status=status, reason=reason)
    LensPack([lens], pack.provenance, {}).save(tmp_path / "lenses")
    (found,) = LensPack.load(tmp_path / "lenses")
    assert (found.grade, found.status, found.reason) == (grade, status, reason)
    assert found.is_capped == (grade is Grade.C)
    trusted = grade is not None and not reason
    assert found.reaches(Grade.C) == trusted
    assert found.reaches(Grade.A) == (grade is Grade.A)
    assert found.reaches(Grade.A, untrusted=True) == (grade is Grade.A or not trusted)


def test_score_that_there_is_none_of_is_left_out_of_the_mean(pack: LensPack) -> None:
    blind = dataclasses.replace(
        pack["bird"],
        grade=None,
        status="ungraded",
        reason="no score",
        metrics=dataclasses.replace(pack["bird"].metrics, score=math.nan),
    )
    told = LensPack([blind, pack["fish"]], pack.provenance, {}).summary()
    assert told["mean_score"] == pack["fish"].metrics["score"]
    assert told["grades"]["ungraded"] == 1


# --- records ------------------------------------------------------------------------------------


def test_keys_that_this_version_does_not_know_are_kept_in_their_place(
    saved: Path, tmp_path: Path
) -> None:
    data = json.loads((saved / "lenses.json").read_text())
    for own in (data["provenance"], *(lens["metrics"] for lens in data["lenses"])):
        known = dict(own)
        own.clear()
        own.update({"of_tomorrow": {"others": [1, None]}, **known, "others": "of_yesterday"})
        del own["labels" if "labels" in known else "C"]
    (saved / "lenses.json").write_text(json.dumps(data))
    LensPack.load(saved).save(tmp_path / "again")
    before, after = (
        json.loads((folder / "lenses.json").read_text()) for folder in (saved, tmp_path / "again")
    )
    assert json.dumps(after) == json.dumps(before)


def test_metrics_are_read_by_name_and_as_a_mapping(pack: LensPack) -> None:
    metrics = pack["bird"].metrics
    assert metrics["score"] == metrics.score > 0
    assert {**metrics} == metrics.to_json()
    assert metrics.get("agreement") is metrics.agreement is None
    assert "agreement" not in metrics
    with pytest.raises(KeyError, match="agreement"):
        metrics["agreement"]
    changed = dataclasses.replace(metrics, agreement={"kappa": 0.5})
    assert [*changed] == [*metrics, "agreement"]
    assert pack.provenance["settings"] is pack.provenance.settings
