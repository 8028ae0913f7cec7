"""Models of transformers that somebody has loaded already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from lenscache.errors import ModelError
from lenscache.model.adapter import adapter_facts, without_wrapper
from lenscache.model.checkpoint import model_quantization
from lenscache.model.loading import DTYPES, LoadedModel, find_blocks
from lenscache.model.placement import input_device


def wrap_model(model: Any, tokenizer: Any, *, id: str | None = None) -> LoadedModel:  # noqa: A002
    """A model and tokenizer of transformers that are loaded already, for extraction and reading.

    Also with an adapter of peft, quantised, or spread over devices. The model is put in evaluation
    mode and else left alone; what changes its weights afterwards must wrap it again.

    Parameters
    ----------
    id : what stores and packs call the model; None for the name that it was loaded under.

    Raises
    ------
    ModelError
        If one of the two is something else.
    UnsupportedModelError
        If its transformer blocks cannot be found.
    """
    model = without_wrapper(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise ModelError(f"the model is {type(model).__name__}, expected a model of transformers")
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise ModelError(
            f"the tokenizer is {type(tokenizer).__name__}, expected a tokenizer of transformers"
        )
    name = id or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    label = Path(name).name if Path(name).exists() else name
    if id is None and model_quantization(model):
        label = f"{label} ({model_quantization(model)})"
    if id is None and adapter_facts(model):
        label = f"{label} with {', '.join(model.peft_config)}"
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"the model computes in {dtype}, expected {', '.join(DTYPES)}")
    blocks = list(find_blocks(model))
    return LoadedModel(model.eval(), tokenizer, label, dtype, input_device(model), blocks)
