"""`lenscache label` and `lenstrain fit --labels`: from a CSV to lenses, without the model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lenstrain.pack.pack import LensPack
from tests.cli.conftest import Run
from tests.packs import small_pack

PACK = small_pack(n_examples=12)


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_store, tmp_path / "store.zarr"))


def write_csv(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "topic"), *rows])
    return path


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    """The texts of four concepts in two classes, and one that nobody extracted."""
    classes = {"bird": "alive", "fish": "alive", "boat": "made", "oven": "made"}
    rows = [(text, topic) for concept, topic in classes.items() for text in PACK[concept].examples]
    return write_csv(tmp_path / "topics.csv", [*rows, ("Nobody\x1b[31m extracted\nthis.", "alive")])


def test_label_says_what_it_added_and_left_out_and_what_comes_next(
    lenscache: Run, store: Path, topics: Path
) -> None:
    result = lenscache("label", store, topics, "--name", "topics", "--label", "topic")
    assert result.exit_code == 0, result.stderr
    assert "label set topics: 48 samples, 48 labels, 2 concepts" in result.stdout
    assert (
        "left out: 1 x text that the store does not hold: Nobody [31m extracted this."
        in result.stdout
    )
    assert f"next: lenstrain fit {store} --labels topics" in result.stdout
    assert result.stdout.count("read: 49 rows") == 1
    assert "label sets: topics" in lenscache("info", store).stdout


def test_classes_are_listed_before_anything_is_written(
    lenscache: Run, store: Path, topics: Path
) -> None:
    taken = lenscache("label", store, topics, "--name", "no/name", "--label", "topic")
    assert taken.exit_code == 1
    assert "label set name 'no/name' cannot be used" in taken.stderr
    assert "class: 25 texts: alive\nclass: 24 texts: made\n" in taken.stdout


def test_lenses_of_a_label_set_are_fitted_without_the_model(
    lenscache: Run, lenstrain: Run, store: Path, topics: Path, tmp_path: Path
) -> None:
    added = json.loads(
        lenscache("label", store, topics, "--name", "t", "--label", "topic", "--json").stdout
    )
    result = lenstrain("fit", store, "--labels", "t", "--out", tmp_path / "lenses")
    assert result.exit_code == 0, result.stderr
    saved = json.loads((tmp_path / "lenses" / "lenses.json").read_text())
    assert {lens["concept"] for lens in saved["lenses"]} == {"alive", "made"}
    assert saved["provenance"]["labels"] == {
        "name": "t",
        "digest": added["digest"],
        "source": "topics.csv",
    }


def test_thresholds_of_two_classes_are_chosen_for_accuracy_unless_asked_otherwise(
    lenscache: Run, lenstrain: Run, store: Path, topics: Path, tmp_path: Path
) -> None:
    lenscache("label", store, topics, "--name", "t", "--label", "topic")
    rules = {}
    for name, more in (("auto", []), ("f1", ["--threshold", "f1"]), ("fpr", ["--fpr", "0.05"])):
        out = tmp_path / name
        lenstrain("fit", store, "--labels", "t", "--out", out, *more)
        pack = LensPack.load(out)
        rules[name] = pack.provenance.settings["threshold"]
        assert pack.provenance.settings["refit"] is True
        assert all(0 <= (lens.metrics.test_accuracy or -1) <= 1 for lens in pack)
    assert rules == {"auto": "accuracy", "f1": "f1", "fpr": "fpr"}
    refused = lenstrain("fit", store, "--threshold", "fpr", "--out", tmp_path / "none")
    assert refused.exit_code == 1
    assert "takes both" in refused.stderr


def test_an_unknown_label_set_is_one_line(lenstrain: Run, store: Path, tmp_path: Path) -> None:
    result = lenstrain("fit", store, "--labels", "topics", "--out", tmp_path / "lenses")
    assert result.exit_code == 1
    assert "no label set 'topics', it has: none; add one with `lenscache label`" in result.stderr


def test_labels_of_no_text_in_the_store_are_one_line(
    lenscache: Run, store: Path, tmp_path: Path
) -> None:
    strange = write_csv(tmp_path / "strange.csv", [("Never seen.", "a"), ("Nor this.", "b")])
    result = lenscache("label", store, strange, "--name", "s", "--label", "topic")
    assert result.exit_code == 1
    assert "error: none of the 2 labelled texts is in the store" in " ".join(result.stderr.split())


def test_label_help_ends_with_an_example(lenscache: Run) -> None:
    assert "Example: lenscache label" in " ".join(lenscache("label", "--help").stdout.split())
