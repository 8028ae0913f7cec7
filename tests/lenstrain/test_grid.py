"""Grids of fits in this process: each pack is what a fit alone gives, what is there is kept, what
fails is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenstrain.errors import LensPackExistsError, SettingsError
from lenstrain.fit.train import text_settings, train
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitProgress, FitSettings
from lenstrain.sweeps.grid import (
    FittedCombination,
    Grid,
    GridProgress,
    GridResult,
    LocalEngine,
    fit_grid,
)
from tests.lenstrain.conftest import make_planted_store, planted_pack

BASE = FitSettings(max_iterations=2)
GRID = Grid(
    "", BASE, families=("linear", "mean-difference"), targets=(0.95, 0.5), model_layers=((0,), (1,))
)
NAMES = [
    f"{family}-f1-{f1}-layers-{n}"
    for family in GRID.families
    for n in (0, 1)
    for f1 in ("0.5", "0.95")
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Of a store of level 0: three concepts, which keeps each fit short."""
    path = tmp_path_factory.mktemp("grid") / "store.zarr"
    make_planted_store(path, pack=planted_pack(n_examples=12), levels=[0])
    return dataclasses.replace(GRID, store=str(path))


def contents(out: Path) -> dict[str, bytes]:
    """All files but for what took how long."""
    files = (file for file in out.rglob("*") if file.is_file() and file.name != "run.json")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def run(grid: Grid, out: Path, **options: Any) -> GridResult:
    dataset = grid.open()
    return fit_grid(grid, out, dataset=dataset, engine=LocalEngine(dataset, jobs=1), **options)


def names(result: GridResult) -> list[str]:
    return [pack.name for pack in result.packs]


def test_each_pack_is_what_a_fit_alone_writes(grid: Grid, tmp_path: Path) -> None:
    result = run(grid, tmp_path / "grid")
    assert names(result) == NAMES
    for pack in result.packs:
        alone = train(grid.open(), pack.settings)
        alone.save(tmp_path / "alone" / pack.name)
        assert pack.summary == alone.summary()
    assert contents(tmp_path / "grid") == contents(tmp_path / "alone")


def test_a_folder_is_named_by_its_combination_alone() -> None:
    wider = dataclasses.replace(
        GRID, families=("mlp", "linear"), targets=(0.95,), model_layers=(None, (7, 6, 5, 2))
    )
    found = [cell.name(target) for cell in wider.cells for target in cell.targets]
    assert found == [
        "mlp-f1-0.95",
        "mlp-f1-0.95-layers-2+5-7",
        "linear-f1-0.95",
        "linear-f1-0.95-layers-2+5-7",
    ]


def test_text_lenses_read_no_model_layer_and_are_fitted_once() -> None:
    mixed = dataclasses.replace(GRID, families=("linear", "text"), targets=(0.8,))
    assert [cell.label for cell in mixed.cells] == ["linear on 0", "linear on 1", "text"]
    with pytest.raises(SettingsError, match="leave model layers out"):
        dataclasses.replace(GRID, families=("text",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ()}, "the grid is empty: name a family, a target F1"),
        ({"targets": (0.5, 1.5)}, "target F1 is 1.5"),
        ({"families": ("linear", "text"), "refine": True}, "text lenses are not refined"),
        (
            {"families": ("linear", "text"), "text": text_settings(BASE)},
            "text lenses beside text lenses",
        ),
    ],
)
def test_a_grid_that_cannot_be_fitted_is_refused_when_it_is_made(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(GRID, **changes)


def test_a_combination_that_fails_does_not_take_the_others_with_it(
    grid: Grid, tmp_path: Path
) -> None:
    some = dataclasses.replace(grid, families=("linear",), model_layers=((9,), (1,)))
    result = run(some, tmp_path / "out")
    assert names(result) == ["linear-f1-0.5-layers-1", "linear-f1-0.95-layers-1"]
    assert list(result.failures) == ["linear-f1-0.5-layers-9", "linear-f1-0.95-layers-9"]
    for error in result.failures.values():
        assert isinstance(error, SettingsError)
        assert str(error) == "model layer 9 is not in the store, which has 0-1"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names(result)


def test_a_pack_that_cannot_be_written_fails_alone(grid: Grid, tmp_path: Path) -> None:
    some = dataclasses.replace(grid, families=("mean-difference",))

    def take(progress: GridProgress) -> None:
        if progress.running:
            (tmp_path / "out" / "mean-difference-f1-0.5-layers-0").mkdir(
                parents=True, exist_ok=True
            )

    result = run(some, tmp_path / "out", on_progress=take)
    assert len(result.packs) == 3
    assert [str(error) for error in result.failures.values()] == [
        (
            f"the output folder {tmp_path}/out/mean-difference-f1-0.5-layers-0 exists already: "
            "choose another folder"
        )
    ]


def test_an_interrupted_grid_is_taken_up_where_it_was(grid: Grid, tmp_path: Path) -> None:
    def interrupt(progress: GridProgress) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "out", on_progress=interrupt)
    before = {path.name: (path / "run.json").read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(before) == sorted(NAMES[:4])
    fitted: set[str] = set()
    result = run(
        grid, tmp_path / "out", on_progress=lambda progress: fitted.update(progress.running)
    )
    assert fitted == {"mean-difference on 0", "mean-difference on 1"}
    assert {pack.name for pack in result.packs if pack.kept} == set(before)
    assert {name: (tmp_path / "out" / name / "run.json").read_bytes() for name in before} == before
    run(grid, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_target_is_fitted_without_those_that_are_there(grid: Grid, tmp_path: Path) -> None:
    some = dataclasses.replace(
        grid, families=("linear",), model_layers=((1,),), targets=(0.5, 0.95)
    )
    run(dataclasses.replace(some, targets=(0.95,)), tmp_path / "out")
    result = run(some, tmp_path / "out")
    assert [pack.kept for pack in result.packs] == [False, True]
    run(some, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"settings": dataclasses.replace(BASE, max_samples=7)}, "settings.max_samples 200, now 7"),
        ({"concepts": ("nature",)}, "3 concepts, now 1 or others"),
        ({"concepts": ("society", "nature", "craft")}, "3 concepts, now 3 or others"),
        ({"refine": True}, "refined is not recorded"),
        ({"text": text_settings(BASE)}, "without text lenses, now with them"),
    ],
)
def test_a_pack_that_was_fitted_otherwise_is_neither_kept_nor_replaced(
    grid: Grid, tmp_path: Path, changes: dict[str, Any], differs: str
) -> None:
    some = dataclasses.replace(grid, families=("linear",), model_layers=((1,),))
    run(some, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        LensPackExistsError, match=rf"was fitted otherwise \({differs}\): choose another --out"
    ):
        run(dataclasses.replace(some, **changes), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def edited(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    """Change the manifest of a pack."""
    file = folder / "lenses.json"
    data = json.loads(file.read_text())
    change(data["provenance"])
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda its: its["store"].update(digest="0" * 16), "store.digest '0000000000000000', now "),
        (lambda its: its["versions"].update(torch="1.0"), "versions.torch '1.0', now "),
        (lambda its: its["settings"].pop("seed"), "settings.seed is not recorded"),
        (lambda its: its.update(provisional=True), "provisional is recorded"),
        (lambda its: its["rounds"].append("layer_0/round_1"), "rounds "),
    ],
)
def test_a_manifest_that_is_not_exactly_this_fits_is_not_trusted(
    grid: Grid, tmp_path: Path, change: Callable[[dict[str, Any]], Any], differs: str
) -> None:
    some = dataclasses.replace(grid, families=("mean-difference",), model_layers=((1,),))
    run(some, tmp_path / "out")
    edited(change, tmp_path / "out" / "mean-difference-f1-0.5-layers-1")
    with pytest.raises(LensPackExistsError) as error:
        run(some, tmp_path / "out")
    assert f"({differs}" in str(error.value)


def test_refined_packs_and_text_lenses_are_known_again(grid: Grid, tmp_path: Path) -> None:
    some = dataclasses.replace(
        grid, families=("linear",), model_layers=((1,),), refine=True, text=text_settings(BASE)
    )
    assert not any(pack.kept for pack in run(some, tmp_path / "out").packs)
    assert all(pack.kept for pack in run(some, tmp_path / "out").packs)
    other = dataclasses.replace(some, text=text_settings(BASE, 0.7))
    with pytest.raises(
        LensPackExistsError, match=r"its text lenses: settings.target_f1 0.8, now 0.7"
    ):
        run(other, tmp_path / "out")


def test_a_store_that_grew_is_another_store(tmp_path: Path) -> None:
    pack = planted_pack(n_examples=12)
    store = make_planted_store(tmp_path / "s", pack=pack, levels=[0])
    some = dataclasses.replace(GRID, store=str(tmp_path / "s"), families=("mean-difference",))
    run(some, tmp_path / "out")
    make_planted_store(tmp_path / "t", pack=pack)
    (tmp_path / "t" / "layer_1").rename(Path(store.path) / "layer_1")
    with pytest.raises(LensPackExistsError, match="was fitted otherwise"):
        run(some, tmp_path / "out")


def test_overwrite_fits_all_of_them_again(grid: Grid, tmp_path: Path) -> None:
    some = dataclasses.replace(grid, families=("linear",), model_layers=((1,),))
    run(some, tmp_path / "out")
    result = run(
        dataclasses.replace(some, settings=dataclasses.replace(BASE, max_samples=7)),
        tmp_path / "out",
        overwrite=True,
    )
    assert [pack.kept for pack in result.packs] == [False, False]
    assert LensPack.load(result.packs[0].folder).provenance["settings"]["max_samples"] == 7


def test_packs_are_not_written_into_a_pack(grid: Grid, tmp_path: Path) -> None:
    train(grid.open(), BASE, concepts=["nature"]).save(tmp_path / "pack")
    before = contents(tmp_path / "pack")
    with pytest.raises(
        LensPackExistsError, match="is a lens pack, a folder of several was asked for"
    ):
        run(grid, tmp_path / "pack")
    assert contents(tmp_path / "pack") == before


def test_progress_counts_packs_and_names_what_runs(grid: Grid, tmp_path: Path) -> None:
    seen: list[GridProgress] = []
    run(dataclasses.replace(grid, families=("linear",)), tmp_path / "out", on_progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[0].done, seen[-1].done, {p.total for p in seen}) == (0, 4, {4})
    last = {label: progress for p in seen for label, progress in p.running.items()}
    assert {label: progress.stage for label, progress in last.items()} == {
        "linear on 0": "checking",
        "linear on 1": "checking",
    }
    assert isinstance(last["linear on 0"], FitProgress)


def combination(
    name: str, calibration: dict[str, float], *, test_f1: float, family: Any = "linear"
) -> FittedCombination:
    settings = dataclasses.replace(BASE, family=family)
    return FittedCombination(
        name, Path(name), settings, False, 1.0, {"mean_test_f1": test_f1}, calibration
    )


def test_the_best_pack_is_that_of_the_calibration_split_over_the_concepts_all_have() -> None:
    result = GridResult(
        [
            combination("a", {"bird": 0.9, "fish": 0.7}, test_f1=0.6),
            combination("b", {"bird": 0.8, "fish": 0.7, "tree": 1.0}, test_f1=0.9),
        ]
    )
    assert result.calibration_scores() == pytest.approx({"a": 0.8, "b": 0.75})
    assert result.best == "a"


def test_text_lenses_are_compared_with_each_other_alone() -> None:
    text = combination("t", {"ghost": 1.0}, test_f1=1.0, family="text")
    activations = [
        combination("a", {"bird": 0.5}, test_f1=0.5),
        combination("b", {"bird": 0.6}, test_f1=0.5),
    ]
    result = GridResult([*activations, text])
    assert (result.best, result.calibration_scores()["t"]) == ("b", 1.0)
    assert GridResult([text]).best is None
