"""A small extraction of a tiny model, once a session, and how to compare what it leaves on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractReport, ExtractSettings, OnProgress, extract
from lenscache.extract.extraction import LocalEngine
from lenscache.extract.planned_rounds import TopUp
from lenscache.extract.request import Request
from lenscache.model.loading import LoadedModel
from tests.models import tiny_model
from tests.packs import small_pack

PACK = small_pack(n_examples=3)
SETTINGS = ExtractSettings(block_rows=8, max_new_tokens=5, model_layers=(0, 2))
ROUND = "layer_1/round_0"


def run_small(
    path: str | Path,
    loaded: LoadedModel | None = None,
    settings: ExtractSettings = SETTINGS,
    *,
    pack: ConceptPack = PACK,
    levels: Sequence[int] = (1,),
    limit: int | None = 2,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Extract 20 rows in three blocks, unless told otherwise."""
    return extract(
        path,
        pack,
        loaded or tiny_model(),
        settings,
        levels=levels,
        limit=limit,
        on_progress=on_progress,
    )


def top_up(
    path: str | Path,
    request: TopUp,
    settings: ExtractSettings,
    *,
    pack: ConceptPack = PACK,
    on_progress: OnProgress | None = None,
) -> ExtractReport:
    """Add samples as `lenscache extract --top-up` does."""
    whole = Request(path, pack, settings, top_up=request)
    return LocalEngine(tiny_model()).run(whole, on_progress)


def tree(path: Path) -> dict[str, bytes]:
    """Every file of a store by its relative path, but for what a killed writer leaves lying
    about."""
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix != ".partial")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def without_ids(store: Path) -> Path:
    """The store as a lenscache left it that did not keep the tokens of completions."""
    for folder in store.glob("layer_*/round_*"):
        shutil.rmtree(folder / "samples" / "completion_ids", ignore_errors=True)
        metadata = json.loads((folder / "zarr.json").read_text())
        metadata["attributes"].pop("completion_ids", None)
        (folder / "zarr.json").write_text(json.dumps(metadata, indent=2))
    return store


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store of `run_small`. Shared between tests: do not change it."""
    path = tmp_path_factory.mktemp("finished") / "s.zarr"
    run_small(path)
    return path


@pytest.fixture
def store_copy(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of the complete store, to be changed or damaged."""
    return Path(shutil.copytree(finished_store, tmp_path / "copy.zarr"))
