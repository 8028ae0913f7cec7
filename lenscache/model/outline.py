"""A model's shapes without its weights: enough to plan an extraction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from lenscache.errors import ModelError, first_line
from lenscache.model.builtin import BUILT_IN, built_in_folder
from lenscache.model.checkpoint import auto_class
from lenscache.model.loading import DTYPES, LoadedModel, find_blocks
from lenscache.model.loading_errors import loading_error
from lenscache.model.names import check_name, local_folder


@dataclass(frozen=True)
class ModelOutline(LoadedModel):
    """A model on torch's meta device, to plan with: no weights. Its tokenizer may be None."""

    @property
    def fingerprint(self) -> str:
        """Nothing: there are no weights."""
        return ""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Nothing, as above."""
        return ""


def outline_model(name: str, *, dtype: str = "auto", cache_dir: Path | None = None) -> ModelOutline:
    """The shapes of a model, from its configuration alone; with its tokenizer, if it is there.

    Parameters
    ----------
    name, cache_dir : as for `load_model`; a folder need not hold more than config.json.
    dtype : "float32", "bfloat16", "float16", or "auto" for bfloat16.

    Raises
    ------
    ModelNotFoundError
        If there is no configuration under this name.
    UnsupportedModelError
        If its transformer blocks cannot be found.
    """
    dtype = "bfloat16" if dtype == "auto" else dtype
    check_name(name)
    folder: str | Path = name
    try:
        folder = built_in_folder(name, cache_dir) if name in BUILT_IN else name
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = auto_class(config).from_config(
                config, dtype=DTYPES[dtype], trust_remote_code=False
            )
    except ImportError as error:
        raise ModelError(
            f"outlining {name!r} needs a package that is not installed: {first_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        doing = "read the configuration of"
        raise loading_error(error, name, local_folder(str(folder)), doing=doing) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        tokenizer = None
    if tokenizer is not None and 2 * len(tokenizer) < config.get_text_config().vocab_size:
        tokenizer = None  # some are made of nothing where there are no files
    model.eval().requires_grad_(False)
    label = Path(name).name if Path(name).exists() else name
    blocks = list(find_blocks(model))
    return ModelOutline(model, tokenizer, label, dtype, torch.device("meta"), blocks)
