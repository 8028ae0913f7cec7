"""Adapters of peft, such as LoRA: trained weights beside those of a model, in its own layers.

    model, folder of an adapter --add_adapter--> the model, its layers with the adapter in them

Nothing is merged into the weights: a sum in bfloat16 would round what was trained. Adapters that
put tokens before a text are refused, since a model does not carry those in its blocks.
"""

from __future__ import annotations

import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from lenscache.errors import (
    MissingPackageError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
    WeightsError,
    first_line,
)

_NAME = "default"  # as peft calls an adapter that has no name

# Of an adapter's configuration: where it comes from, and what only training looks at.
_OF_NO_CONSEQUENCE = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("init_lora_weights", "lora_dropout", "task_type"),
}


def add_adapter(model: Any, adapter: str, device: torch.device) -> Any:
    """Put an adapter into the layers of a transformers model, and return the model.

    Parameters
    ----------
    adapter : folder, or Hugging Face id, that peft saved it to.

    Raises
    ------
    MissingPackageError
        If peft is not installed.
    ModelNotFoundError
        If there is no adapter.
    WeightsError
        If its weights are not those that its configuration and this model ask for.
    UnsupportedModelError
        If it is not one that stays in the layers of a model.
    """
    try:
        import peft
    except ImportError:
        raise MissingPackageError(
            "adapters need peft: run `pip install '.[adapters]'` in a clone of lenscache"
        ) from None
    try:
        config = peft.PeftConfig.from_pretrained(adapter)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelNotFoundError(
            f"no adapter at {adapter!r} ({first_line(error)}): give the folder with its "
            "adapter_config.json"
        ) from error
    if config.is_prompt_learning:
        raise UnsupportedModelError(
            f"the adapter {adapter!r} is of the kind {config.peft_type.value}, which puts tokens "
            "before a text: expected one that changes layers, such as LoRA"
        )
    try:
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # of what peft calls
            wrapped = peft.PeftModel(model, config, _NAME)
            found = wrapped.load_adapter(adapter, _NAME, torch_device=str(device))
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise WeightsError(
            f"the adapter {adapter!r} does not fit the model: {first_line(error)}. Give the model "
            f"that it was trained for, {config.base_model_name_or_path}"
        ) from error
    if wrong := [*found.missing_keys, *found.unexpected_keys]:
        raise WeightsError(
            f"the adapter {adapter!r} does not fit its configuration: {len(wrong)} of its weights "
            f"are missing or left over, such as {wrong[0]}. Save it again, complete"
        )
    return wrapped.get_base_model()


def without_wrapper(model: Any) -> Any:
    """A transformers model, out of what peft may have put around it.

    Raises
    ------
    ModelError
        If its adapter is not one that stays in the layers of a model.
    """
    unwrap = getattr(model, "get_base_model", None)
    if unwrap is None:
        return model
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ModelError(
            "the model has an adapter that puts tokens before a text: expected one that changes "
            "layers, such as LoRA"
        )
    return unwrap()


def adapter_label(adapter: str) -> str:
    """What an adapter is called beside its model."""
    return Path(adapter).name if Path(adapter).is_dir() else adapter


def adapter_facts(model: Any) -> list[Any]:
    """What decides what the adapters of a model do, beside their weights; empty without any."""
    layers = [each for each in model.modules() if hasattr(each, "merged_adapters")]
    if not layers:
        return []
    states = {
        (tuple(each.active_adapters), bool(each.disable_adapters), tuple(each.merged_adapters))
        for each in layers
    }
    # A model that was unwrapped knows its configurations, too.
    configs = getattr(model, "peft_config", {})
    return [sorted(states), {name: _unusual(config) for name, config in sorted(configs.items())}]


def _unusual(config: Any) -> dict[str, Any]:
    """What is not the default: settings that later versions of peft add change nothing."""
    found = {}
    for each in fields(config):
        value = getattr(config, each.name)
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if value != default and each.name not in _OF_NO_CONSEQUENCE:
            found[each.name] = sorted(value) if isinstance(value, set) else value
    return found
