"""Three lines of Python give what the commands give on the same texts, bit for bit."""

from __future__ import annotations

import csv
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lenscache
import lenstrain
from lenscache.concepts.importers.frames import import_texts
from lenscache.errors import ModelError, PackError
from lenscache.extract import ExtractSettings
from lenstrain.errors import SettingsError
from tests.cli.conftest import Run
from tests.models import tiny_model
from tests.packs import small_pack

ROWS = [
    (text, concept.name)
    for concept in small_pack(n_examples=20).concepts[2:5]
    for text in concept.examples
]
TEXTS, LABELS = ([row[i] for row in ROWS] for i in (0, 1))
PROMPTS_ALONE = ("--mode", "prompt", "--background", 0)
READ = [f"A stranger saw {what}, time 77." for what in ("wings over the roof", "fins and moss")]


def digests(folder: Path) -> dict[str, bytes]:
    """Activations and lenses, without what holds a time or the name of a pack."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if "/c/" in str(file) or file.suffix == ".safetensors"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> lenstrain.LensPack:
    """A lens pack out of lists of texts and labels; its store is gone."""
    folder = tmp_path_factory.mktemp("python")
    store = lenscache.extract_texts(
        TEXTS, str(model_folder), labels=LABELS, path=folder / "store.zarr"
    )
    pack = lenstrain.train(store, target_f1=0.95)
    pack.save(folder / "lenses")
    pack.run["folder"] = folder
    return pack


def test_the_figures_are_those_of_the_commands(
    made: lenstrain.LensPack, lenscache: Run, lenstrain: Run, model_folder: Path, tmp_path: Path
) -> None:
    table, model = tmp_path / "topics.csv", ("--model", model_folder)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    concepts, store, lenses = tmp_path / "topics.json", tmp_path / "store.zarr", tmp_path / "lenses"
    for command, *given in (
        (lenscache, "pack", "import", table, "--out", concepts),
        (lenscache, "extract", store, "--pack", concepts, *model, *PROMPTS_ALONE),
        (lenstrain, "fit", store, "--f1", 0.95, "--out", lenses),
    ):
        ran = command(*given)
        assert ran.exit_code == 0, ran.stderr
    folder = made.run["folder"]
    assert digests(folder / "store.zarr") == digests(store)
    assert digests(folder / "lenses") == digests(lenses)
    ours, theirs = (
        json.loads((f / "lenses.json").read_text()) for f in (folder / "lenses", lenses)
    )
    assert ours["lenses"] == theirs["lenses"]
    seen = 0
    for text, row in zip(READ, made.predict(str(model_folder), READ).itertuples(), strict=True):
        asked = ("--text", text, "--ungraded", "--min-signal", "-99", "--top", 9, "--json")
        ran = lenstrain("read", lenses, *model, *asked)
        assert ran.exit_code == 0, ran.stderr
        for found in json.loads(ran.stdout)["whole"]:
            assert getattr(row, found["concept"]) == found["probability"]
            seen += 1
    assert seen >= 2


def test_predictions_are_a_column_a_concept_with_the_index_of_the_texts(
    made: lenstrain.LensPack, model_folder: Path
) -> None:
    model = lenscache.load_model(str(model_folder))
    texts = pd.Series(READ, index=["a", "b"])
    found = made.predict(model, texts)
    assert (list(found.columns), list(found.index)) == (["bird", "fish", "tree"], ["a", "b"])
    assert found.to_numpy().min() >= 0
    assert found.to_numpy().max() <= 1
    table = pd.DataFrame({"body": READ})
    again = made.predict(model, table, text="body", concepts=["fish"])
    assert list(again["fish"]) == pytest.approx(list(found["fish"]), rel=1e-5)
    rare = made.predict(model, READ, prevalence=0.01)
    assert (rare.to_numpy() < found.to_numpy()).all()
    assert made.predict(model, []).shape == (0, 3)


def test_what_cannot_be_predicted_is_refused(made: lenstrain.LensPack, model_folder: Path) -> None:
    other = tiny_model(seed=1)
    with pytest.raises(SettingsError, match="made with another model"):
        made.predict(other, READ)
    with pytest.warns(UserWarning, match="no grade or probability of it is known"):
        made.predict(other, READ, allow_other_model=True)
    with pytest.raises(ModelError, match=r"Llama.*pass lenscache.wrap_model\(model, tokenizer\)"):
        made.predict(other.model, READ)
    with pytest.raises(PackError, match="texts is str, expected a list"):
        made.predict(other, READ[0])
    with pytest.raises(SettingsError, match="text 1 is empty"):
        made.predict(other, [READ[0], " "])
    with pytest.raises(SettingsError, match="no lens for the concept 'ghost'"):
        made.predict(other, READ, concepts=["ghost"])


def test_a_pack_is_a_table(made: lenstrain.LensPack) -> None:
    frame = made.to_frame()
    assert list(frame.index) == ["bird", "fish", "tree"]
    assert list(frame["grade"]) == [lens.grade and lens.grade.value for lens in made]
    assert list(frame["score"]) == [lens.metrics["score"] for lens in made]
    assert frame["graduated"].dtype == bool


def test_a_temporary_store_goes_with_what_reads_it() -> None:
    store: Any = lenscache.extract_texts(TEXTS[:40], tiny_model(), labels=LABELS[:40])
    folder, one = Path(store.path), store.rounds()[0]
    del store
    gc.collect()
    assert one.read("prompt", 1).shape == (40, 32)
    del one
    gc.collect()
    assert not folder.parent.exists()


def test_an_extraction_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = ExtractSettings(mode="prompt", model_layers=(9,))
    with pytest.raises(lenscache.LenscacheError, match="model layer 9 does not exist"):
        lenscache.extract_texts(TEXTS, tiny_model(), labels=LABELS, settings=settings)
    assert list(tmp_path.iterdir()) == []


def as_pandas() -> Any:
    return pd.DataFrame({"text": TEXTS, "label": pd.Categorical(LABELS)})


def as_polars() -> Any:
    return pytest.importorskip("polars").DataFrame({"text": TEXTS, "label": LABELS})


def as_dataset() -> Any:
    """Labels are numbers with names, as those of most datasets are."""
    datasets = pytest.importorskip("datasets")
    names = sorted(set(LABELS))
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    numbers = [names.index(label) for label in LABELS]
    return datasets.Dataset.from_dict({"text": TEXTS, "label": numbers}, features=features)


@pytest.mark.parametrize("table", [as_pandas, as_polars, as_dataset])
def test_tables_are_the_concepts_of_lists(table: Any) -> None:
    wanted = import_texts(TEXTS, LABELS).pack.digest
    made = table()
    assert import_texts(made).pack.digest == wanted
    assert import_texts(made["text"], LABELS).pack.digest == wanted


def test_datasets_by_split_keep_their_splits() -> None:
    dataset = as_dataset()
    parts = {"train": dataset.select(range(40)), "test": dataset.select(range(40, 60))}
    pack = import_texts(parts, split="split").pack
    assert {name: len(texts) for name, texts in pack.splits.items()} == {"train": 40, "test": 20}
    with pytest.raises(PackError, match=r"'test' has no column 'label', its columns are"):
        import_texts({**parts, "test": parts["test"].remove_columns("label")})


def test_two_lists_are_one_concept_with_negatives() -> None:
    pack = import_texts(TEXTS[:20], negatives=np.array(TEXTS[20:]), concept="bird").pack
    (concept,) = pack.concepts
    assert (concept.id, concept.examples, concept.negatives) == (
        "bird",
        tuple(TEXTS[:20]),
        tuple(TEXTS[20:]),
    )
    flags = [True] * 20 + [False] * 40
    for labels in (
        flags,
        np.array(flags),
        np.array(flags, float),
        pd.Series(flags, dtype="boolean"),
    ):
        assert import_texts(TEXTS, labels, concept="bird").pack.digest == pack.digest


def test_a_missing_label_leaves_a_row_out() -> None:
    labels = pd.Series([*LABELS[:-1], pd.NA], dtype="string")
    report = import_texts(TEXTS, labels).report
    assert report.left_out == {"row without label": [f"row {len(TEXTS)}"]}
    with pytest.warns(UserWarning, match="left out: 1 x row without label: row 60"):
        lenscache.extract_texts(TEXTS, tiny_model(), labels=labels)


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (TEXTS, {}, "without labels: pass labels=, one for each, or negatives="),
        (TEXTS, {"labels": LABELS[1:]}, "60 texts and 59 labels"),
        (TEXTS, {"labels": "label"}, "labels is str, expected a list"),
        ((TEXTS[:3], TEXTS[3:]), {"labels": [0, 1]}, "text 0 is list.*negatives="),
        (TEXTS, {"labels": LABELS, "negatives": TEXTS}, "negatives are given beside labels"),
        (TEXTS, {"labels": LABELS, "split": "split"}, "split names a column of a table"),
        (TEXTS, {"labels": [0.1, 0.7] * 30}, "scores from 0.1 to 0.7"),
        (pd.DataFrame({"body": TEXTS, "label": LABELS}), {}, "no column 'text', its columns are"),
        (pd.DataFrame({"text": TEXTS}), {"labels": LABELS}, "expected the name of a column"),
        ({"bird": TEXTS}, {}, "expected a list of texts, a data frame"),
    ],
)
def test_texts_and_labels_that_do_not_belong_together_are_refused(
    texts: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PackError, match=message):
        import_texts(texts, **given)
