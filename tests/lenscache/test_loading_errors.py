"""Models that cannot be loaded: one line that names the file, and advises nothing unsafe."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from lenscache.errors import ModelError, ModelNotFoundError, first_line
from lenscache.model.loading import load_model
from lenscache.model.outline import outline_model
from tests.models import tiny_model, tiny_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n"


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model().model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def as_torch(folder: Path) -> Path:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torn torch": (lambda f: torn(as_torch(f)), r"pytorch_model\.bin is damaged, its end"),
    "empty torch": (lambda f: as_torch(f).write_bytes(b""), r"pytorch_model\.bin is empty"),
    "text": (lambda f: as_torch(f).write_text("<html>"), r"pytorch_model\.bin is not a file of"),
    "torch pointer": (
        lambda f: as_torch(f).write_bytes(POINTER),
        r"pytorch_model\.bin is a Git LFS pointer, .*`git lfs pull`",
    ),
    "pointer": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        r"model\.safetensors is a Git LFS pointer",
    ),
    "torn": (lambda f: torn(f / "model.safetensors"), r"model\.safetensors is damaged"),
    "tokenizer": (lambda f: torn(f / "tokenizer.json"), r"tokenizer\.json is not JSON"),
    "tokenizer pointer": (
        lambda f: (f / "tokenizer.json").write_bytes(POINTER),
        r"tokenizer\.json is a Git LFS pointer",
    ),
    "config": (lambda f: torn(f / "config.json"), r"config\.json is not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_damaged_file_is_named(fault: str, folder: Path) -> None:
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_no_code_of_a_repository_is_run_or_advised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    own = config | {"model_type": "own", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match="code from its repository, which is never run") as caught:
        load_model(str(folder), device="cpu")
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("load", [load_model, outline_model], ids=["load", "outline"])
def test_a_gguf_file_is_answered_with_how_to_convert_it(load: Any, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"is a GGUF .* gguf_file='tiny\.gguf'\)\.save_"):
        load(str(file))


def unreachable(*_: Any, **__: Any) -> Any:
    """A hub whose address is looked up for longer than anyone waits."""
    time.sleep(30)


def refusing(*_: Any, **__: Any) -> Any:
    raise OSError("[Errno -2] Name or service not known")


@pytest.mark.parametrize("hub", [unreachable, refusing])
@pytest.mark.parametrize("load", [load_model, outline_model], ids=["load", "outline"])
def test_a_misspelt_name_is_answered_soon_with_the_near_ones(
    load: Any, hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    cached = tmp_path / "hub" / "models--acme--smollm2-135k"
    cached.mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "smollm2-135n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", hub)
    begun = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="hub cannot be reached") as caught:
        load("smolm2-135m")
    assert time.monotonic() - begun < 5
    near = str(caught.value).partition("Did you mean ")[2].partition("?")[0].split(" or ")
    assert set(near) == {"smollm2-135m", "smollm2-135n", "acme/smollm2-135k"}


def test_a_misspelt_folder_is_answered_with_its_neighbour(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"no such folder\. Did you mean {folder}\?"):
        load_model(str(folder.with_name("modle")), device="cpu")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("one\ntwo"), "one"),
        (ValueError("\n  one  \n"), "one"),
        (RuntimeError(), "RuntimeError"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_of_an_error_is_its_type_where_it_says_nothing(
    error: Exception, line: str
) -> None:
    assert first_line(error) == line
