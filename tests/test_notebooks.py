"""The notebooks run from top to bottom, show what they promise, and are committed without what they
printed."""

from __future__ import annotations

import ast
import html
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractSettings, extract
from lenstrain import FitSettings, open_dataset, train
from tests.hostile import HIDDEN, NAMES, SCRIPT
from tests.models import tiny_model
from tests.packs import small_pack

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def hostile_pack() -> ConceptPack:
    """The small pack with names, an id and examples that could do harm."""
    data = small_pack(n_examples=12).to_dict()
    for concept, name in zip(data["concepts"], NAMES, strict=False):
        concept["name"] = name
        concept["examples"] = [*concept["examples"][1:], f"{name[:200]} was seen by nobody."]
    text = json.dumps(data).replace('"id": "bird"', f'"id": {json.dumps(SCRIPT)}')
    return ConceptPack.from_dict(json.loads(text))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store and a lens pack of hostile concepts, made with a tiny model."""
    folder = tmp_path_factory.mktemp("notebooks")
    settings = ExtractSettings(max_new_tokens=4, batch_size=16, max_prompt_tokens=60)
    extract(folder / "store.zarr", hostile_pack(), tiny_model(), settings)
    train(open_dataset(folder / "store.zarr"), FitSettings(C=0.1)).save(folder / "lenses")
    return folder / "store.zarr", folder / "lenses"


def run(name: str, monkeypatch: pytest.MonkeyPatch, **environment: object) -> list[Any]:
    """The code cells of a notebook after a run in a kernel of its own."""
    for key, value in {**environment, "OMP_NUM_THREADS": 1, "JUPYTER_PLATFORM_DIRS": 1}.items():
        monkeypatch.setenv(key, str(value))
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        book, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    return [cell for cell in book.cells if cell.cell_type == "code"]


def printed(cells: list[Any]) -> str:
    return "".join(
        o.text
        for cell in cells
        for o in cell.outputs
        if o.output_type == "stream" and o.name == "stdout"
    )


def shown(cells: list[Any], kind: str) -> list[str]:
    return [o.data[kind] for cell in cells for o in cell.outputs if kind in o.get("data", {})]


def columns(cells: list[Any]) -> list[list[str]]:
    """The column names of every table."""
    heads = (
        re.search("<thead>(.*?)</tr>", table, re.DOTALL) for table in shown(cells, "text/html")
    )
    return [
        [html.unescape(name) for name in re.findall("<th>([^<]+)</th>", head[1])]
        for head in heads
        if head
    ]


def assert_harmless(cells: list[Any]) -> None:
    """Nothing that came from the store can act, or hides."""
    for text in (*shown(cells, "text/html"), *shown(cells, "text/plain"), printed(cells)):
        assert not any(sign in text for sign in HIDDEN)
    for page in shown(cells, "text/html"):
        assert SCRIPT not in page
        assert "<script" not in page
    assert not any(
        o.output_type == "stream" and o.name == "stderr" for cell in cells for o in cell.outputs
    )


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "bring_your_own_labels",
        "inspect_lens_pack",
        "inspect_store",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        assert cell.metadata == {}
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert book.cells[0].cell_type == "markdown"
    assert len({cell.id for cell in book.cells}) == len(book.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_alone(path: Path) -> None:
    """Those of the two libraries, and of the modules that docs/api.md lists."""
    listed = (FOLDER.parent / "docs/api.md").read_text("utf-8")
    modules = {"lenscache", "lenstrain", *re.findall(r"^\| `(lens\w+\.\w+)`", listed, re.MULTILINE)}
    book = nbformat.read(path, as_version=4)
    source = "\n".join(c.source for c in book.cells if c.cell_type == "code")
    tree = ast.parse(source.replace("%matplotlib inline", ""))
    used = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    ours = {str(name) for name in used if str(name).startswith("lens")}
    assert ours
    assert ours <= modules
    assert not re.search(r"\._\w", source)


def test_own_labels_take_ten_cells() -> None:
    book = nbformat.read(FOLDER / "bring_your_own_labels.ipynb", as_version=4)
    assert sum(cell.cell_type == "code" for cell in book.cells) <= 10


def test_the_store_notebook_shows_a_store(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = run("inspect_store", monkeypatch, LENSCACHE_STORE=made[0], LENSCACHE_CONCEPT=SCRIPT)
    assert_harmless(cells)
    assert (
        "tiny-llama: 32 dimensions, model layers 0-2\n7 concepts; phases: prompt, completion"
        in printed(cells)
    )
    assert "layer_1/round_0: " in printed(cells)
    assert len(shown(cells, "image/png")) == 4
    assert any("xarray.Dataset" in text for text in shown(cells, "text/plain"))
    tables = columns(cells)
    assert [
        "level",
        "kind",
        "split",
        "n_prompt_tokens",
        "n_completion_tokens",
        "temperature",
        "text",
    ] in tables
    assert ["split", "calibration", "test", "train"] in tables
    assert ["role", "contrast", "positive"] in tables
    assert ["phase", "model_layer", "dimension", "magnitude", "ratio", "share"] in tables
    assert ["sample", "cosine", "shared", "concepts", "split", "text"] in tables


def test_the_lens_pack_notebook_shows_a_pack(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = run(
        "inspect_lens_pack",
        monkeypatch,
        LENSCACHE_STORE=made[0],
        LENSCACHE_PACK=made[1],
        LENSCACHE_CONCEPT=SCRIPT,
    )
    assert_harmless(cells)
    text = printed(cells)
    assert re.search(r"7 linear lenses; grades \{'A': \d, 'B': \d, 'C': \d, 'ungraded': \d\}", text)
    assert "mean score on texts that name the concept" in text
    assert re.search(r"^\d grades are capped$", text, re.MULTILINE)
    assert len(shown(cells, "image/png")) == 10
    tables = columns(cells)
    assert [
        *("name", "level", "model_layers", "grade", "status", "reason", "threshold"),
        *("score", "score_low", "score_high", "score_named", "test_f1"),
        *("n_samples", "n_test", "n_test_unnamed", "graduated"),
    ] in tables
    assert ["test_f1", "score"] in tables
    assert any("&lt;script&gt;" in page for page in shown(cells, "text/html"))


def test_the_lens_pack_notebook_shows_lenses_of_several_model_layers(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(open_dataset(made[0]), FitSettings(family="discriminant")).save(tmp_path / "lenses")
    cells = run(
        "inspect_lens_pack",
        monkeypatch,
        LENSCACHE_STORE=made[0],
        LENSCACHE_PACK=tmp_path / "lenses",
        LENSCACHE_CONCEPT=SCRIPT,
    )
    assert_harmless(cells)
    assert "7 discriminant lenses" in printed(cells)
    assert len(shown(cells, "image/png")) == 10


def test_own_labels_become_lenses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    cells = run(
        "bring_your_own_labels", monkeypatch, LENSCACHE_MODEL=tmp_path / "model", TMPDIR=tmp_path
    )
    assert_harmless(cells)
    text = printed(cells)
    assert "80 texts through model, model layers 0, 1, 2\n" in text
    for topic in ("kitchen", "sea", "court"):
        assert re.search(
            rf"^{topic}: grade [ABC], model layer [012], \d+ samples$", text, re.MULTILINE
        )
    assert len(shown(cells, "image/png")) == 1
    tables = columns(cells)
    assert [
        *("test_f1", "score", "score_low", "score_high", "auroc"),
        *("best control", "lead"),
    ] in tables
    assert ["round", "concepts", "samples", "state"] in tables
    assert ["kitchen", "sea", "court"] in tables
    (folder,) = tmp_path.glob("own-labels-*")
    assert {file.name for file in folder.iterdir()} == {"lenses"}


def test_the_check_for_harm_can_fail() -> None:
    """Canary: what pandas would show unescaped is found."""
    page = nbformat.v4.new_output("display_data", data={"text/html": f"<td>{SCRIPT}</td>"})
    with pytest.raises(AssertionError):
        assert_harmless([nbformat.v4.new_code_cell(outputs=[page])])


def test_the_hostile_pack_is_hostile() -> None:
    pack = hostile_pack()
    assert SCRIPT in pack.hierarchy
    assert {concept.name for concept in pack.concepts} == set(NAMES[:7])
    assert pack[SCRIPT].name in NAMES
