"""Weights of a checkpoint: every weight of the model comes from it, and none of it is left over.

transformers fills weights that a checkpoint lacks with random numbers, skips those that it holds
beside, and says so in a log. Here each is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import transformers
from torch import nn

from lenscache.errors import WeightsError, first_line

_NAMED = 3  # weights that a message names, of each kind

# Masks and rotations that older versions wrote; models compute them now.
_FORMER_BUFFERS = re.compile(r"(^|\.)(masked_bias|causal_mask|inv_freq|position_ids)$")

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model_orig_mod|_fsdp_wrapped_module)\.)+")


def load_weights(name: str, **how: Any) -> Any:
    """A causal language model that transformers loads, with all its weights and no others.

    Parameters
    ----------
    name : what errors call the model.
    how : for ``from_pretrained`` of transformers.

    Raises
    ------
    WeightsError
        If weights are missing, left over, or of another shape.
    """
    kind = transformers.AutoModelForCausalLM
    if "gguf_file" not in how:
        place = how["pretrained_model_name_or_path"]
        kind = auto_class(transformers.AutoConfig.from_pretrained(place, trust_remote_code=False))
    model, report = kind.from_pretrained(
        **how,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, then refused here by name
    )
    check_weights(name, model, report)
    return model


def auto_class(config: Any) -> Any:
    """What loads a model of a configuration that writes text: a causal language model, or one that
    reads pictures beside, of which the text side is used."""
    also_sees = transformers.AutoModelForImageTextToText
    is_causal = type(config) in transformers.AutoModelForCausalLM._model_mapping
    if not is_causal and type(config) in also_sees._model_mapping:
        return also_sees
    return transformers.AutoModelForCausalLM


def model_quantization(model: Any) -> str:
    """The method by which the weights of a model are quantised; "" for none."""
    method = getattr(model, "quantization_method", None)
    return "" if method is None else str(getattr(method, "value", method))


def check_weights(name: str, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Raise WeightsError if a loading report of transformers names weights that do not fit.

    It names neither tied weights nor those that the model's class is known to do without.
    """
    buffers = {buffer for buffer, _ in model.named_buffers()}
    missing = sorted(report["missing_keys"])
    surplus = sorted(
        key
        for key in report["unexpected_keys"]
        if not _FORMER_BUFFERS.search(key) and not _names_one_of(buffers, key)
    )
    reshaped = [
        f"{key} ({_shape(found)} in the file, {_shape(wanted)} in the model)"
        for key, found, wanted in sorted(report["mismatched_keys"], key=lambda entry: entry[0])
    ]
    parts = [
        f"{len(keys)} {_plural(keys)} {what}: {_first(keys)}"
        for keys, what in (
            (missing, "missing"),
            (surplus, "not part of the model"),
            (reshaped, "of another shape"),
        )
        if keys
    ]
    errors = [first_line(error) for error in report.get("error_msgs", ())]
    if not parts and not errors:
        return
    raise WeightsError(
        f"the weights of {name!r} do not fit its config.json; {'; '.join(parts + errors)}. "
        f"{_advice(surplus)}"
    )


def _names_one_of(buffers: Collection[str], key: str) -> bool:
    """Whether a key is the name of a buffer, with or without the prefix of the model's body."""
    return key in buffers or any(buffer.endswith(f".{key}") for buffer in buffers)


def _advice(surplus: list[str]) -> str:
    prefixes = {match.group() if (match := _WRAPPERS.match(key)) else "" for key in surplus}
    if prefix := (prefixes.pop() if len(prefixes) == 1 else ""):
        return f"Save the model again without {prefix!r} in front of the names"
    return "Get the checkpoint again, complete, with the config.json that belongs to it"


def _plural(keys: list[str]) -> str:
    return "weight is" if len(keys) == 1 else "weights are"


def _first(keys: list[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "scalar"
