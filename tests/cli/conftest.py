from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lens_cli.cache import app as lenscache_cli
from lens_cli.train import app as lenstrain_cli
from typer.testing import CliRunner

from lenscache.concepts.pack import ConceptPack
from lenscache.extract import ExtractProgress, ExtractSettings, extract
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packs") / "small.json"
    file.write_text(json.dumps(small_pack(n_examples=12).to_dict()))
    return file


@pytest.fixture(scope="session")
def lenscache() -> Run:
    """Run the lenscache command in this process."""
    return lambda *args: CliRunner().invoke(lenscache_cli.app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def lenstrain() -> Run:
    """Run the lenstrain command in this process."""
    return lambda *args: CliRunner().invoke(lenstrain_cli.app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def extract_options(model_folder: Path, pack_file: Path) -> list[str]:
    return [
        "--pack",
        str(pack_file),
        "--model",
        str(model_folder),
        "--dtype",
        "float32",
        "--max-new-tokens",
        "4",
        "--block-rows",
        "32",
        "--background",
        "0",
    ]


@pytest.fixture(scope="session")
def finished_store(
    tmp_path_factory: pytest.TempPathFactory, lenscache: Run, extract_options: list[str]
) -> Path:
    """A store that `lenscache extract` finished. Do not change it."""
    store = tmp_path_factory.mktemp("stores") / "store.zarr"
    result = lenscache("extract", store, *extract_options)
    assert result.exit_code == 0, result.stderr
    return store


class _StopError(Exception):
    pass


@pytest.fixture(scope="session")
def interrupted_store(tmp_path_factory: pytest.TempPathFactory, pack_file: Path) -> Path:
    """A store whose extraction stopped half way."""
    store = tmp_path_factory.mktemp("stores") / "interrupted.zarr"

    def stop(progress: ExtractProgress) -> None:
        if progress.rows_done > 40:
            raise _StopError

    settings = ExtractSettings(max_new_tokens=4, block_rows=8)
    with pytest.raises(_StopError):
        extract(
            store, ConceptPack.load(pack_file), tiny_model(), settings, levels=[1], on_progress=stop
        )
    return store
