"""Exports: exact, complete rows only, whole or not there at all, and no folder of anybody else is
touched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lenscache.concepts.plan import plan_samples
from lenscache.errors import (
    DiskSpaceError,
    ExportError,
    MissingPackageError,
    ModelLayerError,
    StoreDamagedError,
    StoreIncompleteError,
    StoreMismatchError,
)
from lenscache.store.round import Round
from lenscache.store.store import Store, create_store, open_store
from lenscache.store.views import export
from lenscache.store.views.export import ExportFormat, ExportReport, export_store
from tests.lenscache.conftest import ROUND, tree
from tests.lenstrain.conftest import (
    Planting,
    make_planted_store,
    plant_round,
    planted_header,
    planted_pack,
)

FORMATS: tuple[ExportFormat, ...] = ("safetensors", "npz", "parquet")
PLACES = [(phase, model_layer) for phase in ("prompt", "completion") for model_layer in (0, 1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two levels, bfloat16, rows without a completion. Do not change it."""
    path = tmp_path_factory.mktemp("export") / "s.zarr"
    return make_planted_store(
        path, planting=Planting(without_completion=0.2), store_dtype="bfloat16"
    )


@pytest.fixture
def unfinished(tmp_path: Path) -> Store:
    """Level 1 without block 2 of four; level 0 laid out and empty."""
    pack = planted_pack()
    made = create_store(tmp_path / "unfinished.zarr", planted_header(pack), pack)
    plant_round(made, 0, 0, plan_samples(pack, [0]), n_blocks=0, verified=False)
    plant_round(made, 1, 0, plan_samples(pack, [1]), verified=False).unmark_block(2)
    return made


def read_arrays(
    folder: Path, to: ExportFormat, name: str = ROUND
) -> dict[tuple[str, int], NDArray[Any]]:
    """(n, hidden) of a round by phase and model layer, with the readers that users have."""
    if to == "parquet":
        table = pyarrow.parquet.read_table(folder / name / "samples.parquet")
        columns = [
            column for column in table.column_names if column.startswith(("prompt_", "completion_"))
        ]
        places = [(column.split("_")[0], int(column.split("_")[1])) for column in columns]
        values = [
            table[column].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            for column in columns
        ]
        return dict(zip(places, values, strict=True))
    found = {}
    for file in (folder / name).glob(f"model_layer_*.{to}"):
        number = int(file.stem.removeprefix("model_layer_"))
        arrays = np.load(file) if to == "npz" else read_safetensors(file)
        found.update({(phase, number): arrays[phase] for phase in arrays})
    return found


def read_safetensors(file: Path) -> dict[str, NDArray[Any]]:
    """With the safetensors package; bfloat16 by way of torch, whose bits are viewed and not
    converted."""
    arrays = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        if str(tensor.dtype) == "torch.bfloat16":
            arrays[name] = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        else:
            arrays[name] = tensor.numpy()
    return arrays


def read_samples(folder: Path, to: ExportFormat, name: str = ROUND) -> list[dict[str, Any]]:
    if to == "parquet":
        table = pyarrow.parquet.read_table(folder / name / "samples.parquet")
        vectors = [
            column for column in table.column_names if column.startswith(("prompt_", "completion_"))
        ]
        return [dict(row) for row in table.drop_columns(vectors).to_pylist()]
    # Not splitlines(): a text may hold U+2028, which is no end of a line in JSON Lines.
    return [
        json.loads(line)
        for line in (folder / name / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    ]


def manifest_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return loaded


def bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.dtype.itemsize}")


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_safetensors_hold_the_bits_of_the_store(dtype: Any, tmp_path: Path) -> None:
    made = make_planted_store(
        tmp_path / "s", store_dtype=dtype, planting=Planting(without_completion=0.2)
    )
    export_store(made, tmp_path / "out", "safetensors")
    for target in made.rounds():
        arrays = read_arrays(tmp_path / "out", "safetensors", target.name)
        assert sorted(arrays) == sorted(PLACES)
        for (phase, model_layer), values in arrays.items():
            stored = target.read("prompt" if phase == "prompt" else "completion", model_layer)
            assert values.dtype == stored.dtype
            np.testing.assert_array_equal(bits(values), bits(stored))


@pytest.mark.parametrize("to", ["npz", "parquet"])
def test_float32_formats_hold_the_values_of_the_store(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    export_store(store, tmp_path / "out", to)
    for target in store.rounds():
        arrays = read_arrays(tmp_path / "out", to, target.name)
        assert sorted(arrays) == sorted(PLACES)
        for (phase, model_layer), values in arrays.items():
            stored = target.read("prompt" if phase == "prompt" else "completion", model_layer)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(bits(values), bits(stored.astype(np.float32)))


@pytest.mark.parametrize("to", FORMATS)
def test_samples_stand_in_the_order_of_the_vectors_with_all_that_is_known(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    export_store(store, tmp_path / "out", to)
    (target,) = store.rounds(1)
    samples, rows = target.samples(), read_samples(tmp_path / "out", to)
    assert [row["text"] for row in rows] == samples.text.tolist()
    assert [row["completion"] for row in rows] == samples.completion.tolist()
    assert [bytes.fromhex(row["key"]) for row in rows] == [bytes(key) for key in samples.key]
    assert [
        ("train", "calibration", "test").index(row["split"]) for row in rows
    ] == samples.split.tolist()
    kinds = target.attributes["kinds"]
    assert [kinds.index(row["kind"]) for row in rows] == samples.kind.tolist()
    for name in set(samples._fields) - {
        "key",
        "text",
        "completion",
        "kind",
        "split",
        "temperature",
    }:
        assert [row[name] for row in rows] == getattr(samples, name).tolist()
    np.testing.assert_array_equal(
        np.array([row["temperature"] for row in rows], np.float32), samples.temperature
    )
    assert rows[7]["sample"] == f"{ROUND}/7"
    assert (rows[7]["level"], rows[7]["round"], rows[7]["row"]) == (1, 0, 7)


@pytest.mark.parametrize("to", FORMATS)
def test_labels_can_be_put_back_in_their_nested_order(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    export_store(store, tmp_path / "out", to)
    (target,) = store.rounds(1)
    found = {
        (target.concepts.index(label["concept"]), label["order"]): (row["row"], label["role"])
        for row in read_samples(tmp_path / "out", to)
        for label in row["labels"]
    }
    roles = ("positive", "contrast", "negative")
    expected = [
        (int(sample), roles[role]) for sample, role in zip(*target.labels()[::2], strict=True)
    ]
    assert [found[place] for place in sorted(found)] == expected


@settings(max_examples=8, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1), min_size=3, max_size=3, unique=True
    )
)
def test_texts_of_any_kind_survive(
    tmp_path_factory: pytest.TempPathFactory, texts: Sequence[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    made = make_planted_store(
        folder / "s",
        levels=[0],
        change_plan=lambda p: dataclasses.replace(p, texts=(*texts, *p.texts[3:])),
    )
    for to in FORMATS:
        export_store(made, folder / to, to)
        assert [row["text"] for row in read_samples(folder / to, to, "layer_0/round_0")][
            :3
        ] == list(texts)


def test_concepts_come_along(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", "npz")
    lines = (tmp_path / "out/concepts.jsonl").read_text("utf-8").split("\n")[:-1]
    concepts = {entry["id"]: entry for entry in map(json.loads, lines)}
    assert list(concepts) == list(store.hierarchy)
    for name, entry in concepts.items():
        assert (entry["level"], entry["name"]) == (
            store.hierarchy.levels[name],
            store.concept_names[name],
        )
        assert tuple(entry["parents"]) == store.hierarchy.parents(name)


@pytest.mark.parametrize("to", FORMATS)
def test_selection_exports_no_more_than_asked_for(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    report = export_store(
        store, tmp_path / "out", to, levels=[0], model_layers=[1], phases=["completion"]
    )
    assert list(read_arrays(tmp_path / "out", to, "layer_0/round_0")) == [("completion", 1)]
    assert not (tmp_path / "out/layer_1").exists()
    assert report.rows == store.rounds(0)[0].n_samples


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_store_gives_the_same_bytes(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        export_store(store, tmp_path / name, to)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_npz_is_what_numpy_writes(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", "npz", levels=[1])
    file = tmp_path / "out" / ROUND / "model_layer_1.npz"
    np.savez(tmp_path / "numpy.npz", allow_pickle=False, **np.load(file))
    with zipfile.ZipFile(file) as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as theirs:
        assert ours.testzip() is None
        assert {name: ours.read(name) for name in ours.namelist()} == {
            n: theirs.read(n) for n in theirs.namelist()
        }


# --- the manifest -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_manifest_names_the_store_and_every_file_with_its_checksum(
    store: Store, to: ExportFormat, tmp_path: Path
) -> None:
    report = export_store(store, tmp_path / "out", to)
    manifest, files = manifest_of(tmp_path / "out"), tree(tmp_path / "out")
    assert (manifest["format"], manifest["format_version"], manifest["to"]) == (
        "lenscache-export",
        1,
        to,
    )
    assert manifest["store"] == {"digest": store.digest(), "format_version": 1}
    header = store.header.to_attributes()
    assert {name: manifest[name] for name in ("model", "tokenizer", "pack", "settings")} == {
        name: header[name] for name in ("model", "tokenizer", "pack", "settings")
    }
    assert {entry["path"] for entry in manifest["files"]} == set(files) - {"manifest.json"}
    for entry in manifest["files"]:
        content = files[entry["path"]]
        assert (entry["bytes"], entry["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
    n = store.rounds(1)[0].n_samples
    arrays = [
        entry["arrays"]
        for entry in manifest["files"]
        if entry["path"].startswith(ROUND) and "arrays" in entry
    ]
    stored = "BF16" if to == "safetensors" else "F32"
    assert all(
        array == {"dtype": stored, "shape": [n, 48]} for entry in arrays for array in entry.values()
    )
    assert sum(map(len, arrays)) == 4
    assert report == ExportReport(
        str(tmp_path / "out"),
        to,
        n + store.rounds(0)[0].n_samples,
        0,
        len(files),
        sum(map(len, files.values())),
    )


# --- complete rows only -------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_rows_that_are_not_extracted_are_left_out_and_counted(
    unfinished: Store, to: ExportFormat, tmp_path: Path
) -> None:
    report = export_store(unfinished, tmp_path / "out", to)
    kept = [*range(128), *range(192, 252)]
    assert [row["row"] for row in read_samples(tmp_path / "out", to)] == kept
    for values in read_arrays(tmp_path / "out", to).values():
        assert values.shape == (len(kept), 48)
        assert np.isfinite(values).all()
    rounds = {entry["name"]: entry for entry in manifest_of(tmp_path / "out")["rounds"]}
    assert (rounds[ROUND]["rows"], rounds[ROUND]["rows_left_out"], rounds[ROUND]["verified"]) == (
        188,
        64,
        False,
    )
    assert rounds["layer_0/round_0"]["rows"] == 0
    assert not (tmp_path / "out/layer_0").exists()
    assert report.rows_left_out == 64 + unfinished.rounds(0)[0].n_samples


def test_store_without_a_complete_block_is_refused(unfinished: Store, tmp_path: Path) -> None:
    with pytest.raises(
        StoreIncompleteError, match=r"none of 90 rows of .* is in a complete block: run `lenscache"
    ):
        export_store(unfinished, tmp_path / "out", "npz", levels=[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ({"levels": [5]}, StoreIncompleteError, "level 5 is not in the store, which holds 0,1"),
        (
            {"model_layers": [7]},
            ModelLayerError,
            "model layer 7 is not in the store, which holds 0,1",
        ),
    ],
)
def test_what_the_store_does_not_hold_is_refused(
    choice: dict[str, Any], error: type[Exception], message: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_store(store, tmp_path / "out", "npz", **choice)
    assert list(tmp_path.iterdir()) == []


def test_phase_that_is_not_stored_is_refused(tmp_path: Path) -> None:
    made = make_planted_store(tmp_path / "s", levels=[0], mode="prompt")
    with pytest.raises(
        StoreMismatchError, match="written with mode prompt, this run asks for completion"
    ):
        export_store(made, tmp_path / "out", "npz", phases=["completion"])


# --- whole or not at all ------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_failing_export_leaves_nothing_behind_and_the_earlier_one_alone(
    store: Store, to: ExportFormat, overwrite: bool, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(store.path, tmp_path / "s.zarr"))
    if overwrite:
        export_store(store, tmp_path / "out", to)
    before = tree(tmp_path / "out")
    (path / ROUND / "activations/completion/1/c/2/0").unlink()  # found after much was written
    with pytest.raises(
        StoreDamagedError, match=r"activations/completion/1: the object of rows 128-191 is gone"
    ):
        export_store(open_store(path), tmp_path / "out", to, overwrite=overwrite)
    assert tree(tmp_path / "out") == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"s.zarr", "out"} - (
        set() if overwrite else {"out"}
    )


def test_interrupted_export_leaves_nothing_behind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "out", "npz", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", "npz")
    before = tree(tmp_path / "out")
    with pytest.raises(ExportError, match=r"exists: choose another folder, or pass overwrite=True"):
        export_store(store, tmp_path / "out", "safetensors")
    assert tree(tmp_path / "out") == before


def test_earlier_export_is_replaced_whole(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", "npz")
    export_store(store, tmp_path / "out", "parquet", levels=[0], overwrite=True)
    export_store(store, tmp_path / "fresh", "parquet", levels=[0])
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "fresh"}


@pytest.mark.parametrize(
    "make", ["empty", "notes", "file", "other manifest", "manifest that is a list", "store"]
)
def test_folder_that_is_no_export_is_never_replaced(
    make: str, store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if make == "file":
        out.write_text("all my work")
    elif make == "store":
        shutil.copytree(store.path, out)
    else:
        out.mkdir()
        if make == "notes":
            (out / "thesis.txt").write_text("all my work")
        elif make != "empty":
            (out / "manifest.json").write_text(
                '{"format": "webapp"}' if make == "other manifest" else "[1]"
            )
    before = out.read_bytes() if make == "file" else tree(out)
    with pytest.raises(
        ExportError, match=r"out exists and is not an export \(no manifest.json of one\)"
    ):
        export_store(store, out, "npz", overwrite=True)
    assert (out.read_bytes() if make == "file" else tree(out)) == before


def test_export_to_which_somebody_added_a_file_is_not_replaced(
    store: Store, tmp_path: Path
) -> None:
    export_store(store, tmp_path / "out", "npz")
    (tmp_path / "out" / ROUND / "my-results.csv").write_text("all my work")
    with pytest.raises(
        ExportError, match=r"holds files that no export wrote \(layer_1/round_0/my-results.csv\)"
    ):
        export_store(store, tmp_path / "out", "npz", overwrite=True)
    assert (tmp_path / "out" / ROUND / "my-results.csv").read_text() == "all my work"


@pytest.mark.parametrize("place", ["", "exports/one"])
def test_export_into_the_store_is_refused(place: str, store: Store) -> None:
    with pytest.raises(ExportError, match=r"is in the store .*: choose a folder outside it"):
        export_store(store, Path(store.path) / place, "npz", overwrite=True)
    assert not (Path(store.path) / "exports").exists()


def test_full_disk_is_noticed_before_anything_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000)
    )
    with pytest.raises(
        DiskSpaceError,
        match=r"the export needs about .* GB, .* has 0.0 GB free: choose another disk",
    ):
        export_store(store, tmp_path / "new/out", "npz")
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingPackageError, match=r"needs pyarrow: run `pip install '\.\[parquet\]'`"
    ):
        export_store(store, tmp_path / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


# --- bounded memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_store_is_read_a_block_at_a_time(
    to: ExportFormat, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, original = [0], Round.read

    def spy(self: Round, phase: Any, model_layer: int, rows: slice = slice(None)) -> NDArray[Any]:
        values = original(self, phase, model_layer, rows)
        most.append(len(values))
        return values

    monkeypatch.setattr(Round, "read", spy)
    monkeypatch.setattr(export, "_ROW_GROUP_BYTES", 4 * 48 * 4 * 20)  # 20 rows of four vectors
    export_store(store, tmp_path / "out", to)
    assert max(most) == (20 if to == "parquet" else 64)
    monkeypatch.undo()
    for place, values in read_arrays(tmp_path / "out", to).items():
        stored = store.rounds(1)[0].read(
            "prompt" if place[0] == "prompt" else "completion", place[1]
        )
        np.testing.assert_array_equal(values.astype(np.float32), stored.astype(np.float32))


def test_progress_ends_at_all_vectors(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export_store(
        store,
        tmp_path / "out",
        "parquet",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    total = 4 * sum(target.n_samples for target in store.rounds())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
