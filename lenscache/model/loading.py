"""Load a causal language model and find its transformer blocks."""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import nn

from lenscache.errors import (
    ModelError,
    ModelLayerError,
    UnsupportedModelError,
    argument,
    first_line,
)
from lenscache.model.adapter import adapter_label, add_adapter
from lenscache.model.builtin import BUILT_IN, built_in_folder
from lenscache.model.caches import cache_argument, returned_cache, short_rope_positions
from lenscache.model.checkpoint import load_weights, model_quantization
from lenscache.model.fingerprint import model_fingerprint, tokenizer_fingerprint
from lenscache.model.loading_errors import loading_error
from lenscache.model.names import check_name, local_folder
from lenscache.model.placement import check_device_map, input_device, offload_folder

# transformers imports torchao where it is installed, which does what newer versions of torch
# deprecate, and misses kernels for cards that are not there.
for _name, _level in (("torch.utils._pytree", logging.ERROR), ("torchao", logging.CRITICAL)):
    logging.getLogger(_name).setLevel(_level)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_HASHED_AT_ONCE = 8  # tensors that a model in parts has to bring to where they are read


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for extraction, with what identifies it."""

    model: Any
    """The transformers model, in evaluation mode."""
    tokenizer: Any
    id: str
    dtype: str
    """Floating point type of the weights."""
    device: torch.device
    """Where inputs go."""
    blocks: Sequence[nn.Module]
    """The transformer blocks, in order."""

    def __repr__(self) -> str:
        shape = f"{self.n_layers} transformer blocks of size {self.hidden}, {self.dtype}"
        return f"{type(self).__name__}({self.id!r}: {shape} on {self.placement})"

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def hidden(self) -> int:
        """Size of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_positions(self) -> int | None:
        """Positions that a text may have; None if the model has no limit.

        Those that the model was built for. Of a model with long RoPE (Phi 3 and 4), those of its
        short factors: one text beyond them would change the keys of all others in its batch, and
        `generate` computes the keys of a text that grows beyond them anew.
        """
        config = self.model.config.get_text_config()
        limits = [getattr(config, "max_position_embeddings", None), short_rope_positions(config)]
        return min((limit for limit in limits if limit is not None), default=None)

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where this process keeps weights that are ready for use, and where inputs go."""
        found = {parameter.device for parameter in self.model.parameters() if not parameter.is_meta}
        # To torch "cuda" is another device than "cuda:0", which it stands for.
        if self.device.index is not None or self.device.type not in {place.type for place in found}:
            found.add(self.device)
        return tuple(sorted(found, key=str))

    @cached_property
    def is_whole(self) -> bool:
        """Whether all weights stay on one device."""
        places = set(self._places)
        return len(places) < 2 and "disk" not in places

    @property
    def placement(self) -> str:
        """Where the weights are, for people."""
        return ", ".join(dict.fromkeys(self._places)) or str(self.device)

    @property
    def _places(self) -> list[str]:
        """Of each part of a model that was spread: a device, or "disk"."""
        found = getattr(self.model, "hf_device_map", {}).values()
        return [f"cuda:{place}" if isinstance(place, int) else str(place) for place in found]

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        config = getattr(self.model, "generation_config", None)
        return flat_ids(getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id)

    @cached_property
    def fingerprint(self) -> str:
        """`model_fingerprint` of the model: the same wherever its weights are."""
        return model_fingerprint(self.model, at_once=None if self.is_whole else _HASHED_AT_ONCE)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """`lenscache.model.fingerprint.tokenizer_fingerprint` of the tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def cache_argument(self) -> str:
        """What the model's forward pass calls the cache of keys and values.

        Raises
        ------
        UnsupportedModelError
            If the forward pass takes none.
        """
        found = cache_argument(self.model)
        if found is None:
            raise UnsupportedModelError(
                f"the forward pass of {self.id} takes no cache of keys and values "
                f"({', '.join(sorted(self._arguments))}): use {argument('mode', 'prompt')}"
            )
        return found

    def cache_of(self, output: Any) -> Any:
        """The cache of keys and values in the output of a forward pass with ``use_cache=True``.

        Raises
        ------
        UnsupportedModelError
            If the model takes or returns none.
        """
        found = returned_cache(output, self.cache_argument)
        if found is None:
            raise UnsupportedModelError(
                f"{self.id} was asked for its cache of keys and values and returned none as "
                f"{self.cache_argument}: use {argument('mode', 'prompt')}"
            )
        return found

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward pass takes this argument."""
        return argument in self._arguments

    @cached_property
    def _arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)

    def check_model_layers(self, model_layers: Iterable[int] | None) -> tuple[int, ...]:
        """The model layers asked for, ascending; all of them for None.

        Raises
        ------
        ModelLayerError
            If one does not exist: there is no counting from the end and no fallback to another one.
        """
        wanted = range(self.n_layers) if model_layers is None else model_layers
        return check_model_layers(wanted, self.n_layers, self.id)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
    quantization_config: Any = None,
    cache_dir: Path | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer; of one that reads pictures, the text side.

    No code from a model repository is run (``trust_remote_code`` is off).

    Parameters
    ----------
    name : path of a model folder, Hugging Face model id, or built-in alias such as "smollm2-135m".
    dtype : "float32", "bfloat16", "float16", or "auto": bfloat16 where the device computes in it,
        else float32.
    device : "cpu", "cuda", "cuda:1" ..., or "auto": CUDA where there is any.
    device_map : how to spread the blocks over all devices, one of `placement.DEVICE_MAPS`; or which
        part goes where, as accelerate takes it. What no card holds stays in memory or on the disk
        and is fetched when it is needed: slow.
    adapter : folder or Hugging Face id of an adapter that peft saved, such as LoRA.
    quantization_config : how to quantise the weights, as transformers takes it, such as
        ``TorchAoConfig(Int8WeightOnlyConfig())``. Weights that were saved quantised need none.
    cache_dir : where built-in models are converted to, once; None for the user's cache folder.

    Raises
    ------
    ModelError
        If the device, the dtype or the device map cannot be used.
    ModelNotFoundError
        If nothing can be loaded under this name.
    WeightsError
        If weights are missing, left over, or of another shape.
    UnsupportedModelError
        If its transformer blocks cannot be found, or the adapter is of another kind.
    MissingPackageError
        If a device map is given without accelerate, or an adapter without peft.
    """
    if device_map is not None:
        if device != "auto":
            raise ModelError(
                f"a device map and the device {device} are given: leave one of them out"
            )
        check_device_map(device_map)
    place = _device(device)
    dtype = _native_dtype(place) if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}, expected auto, {', '.join(DTYPES)}")
    check_name(name)
    more = {} if quantization_config is None else {"quantization_config": quantization_config}
    if more and device_map is None and place.type != "cpu":
        device_map = {"": place}  # not every kind of quantised weights can be moved afterwards
    loaded = _load(name, dtype, place, device_map, cache_dir, more)
    if adapter is not None:
        model = add_adapter(loaded.model, str(adapter), loaded.device)
        model.eval().requires_grad_(False)
        label = f"{loaded.id} with {adapter_label(str(adapter))}"
        loaded = replace(loaded, model=model, id=label, blocks=list(find_blocks(model)))
    return loaded


def _load(
    name: str,
    dtype: str,
    place: torch.device,
    device_map: Any,
    cache_dir: Path | None,
    more: Mapping[str, Any],
) -> LoadedModel:
    folder: str | Path = name
    try:
        folder = built_in_folder(name, cache_dir) if name in BUILT_IN else name
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        how = {"pretrained_model_name_or_path": folder, "dtype": DTYPES[dtype], **more}
        if device_map is not None:
            model = _spread(name, device_map, how)
            place = input_device(model)
        else:
            model = load_weights(name, **how)
            model.to(place)
        model.eval().requires_grad_(False)
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"loading {name!r} needs a package that is not installed: {first_line(error)}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name!r} in {dtype} does not fit the memory of {place}: choose another dtype or "
            f"device, or spread it with {argument('device_map', 'auto')}"
        ) from error
    except Exception as error:
        if not _is_of_files(error):
            raise
        raise loading_error(error, name, local_folder(str(folder))) from error
    label = Path(name).name if Path(name).exists() else name
    if more:
        label = f"{label} ({model_quantization(model)})"
    return LoadedModel(model, tokenizer, label, dtype, place, list(find_blocks(model)))


def _is_of_files(error: Exception) -> bool:
    """Whether reading files that are damaged, or another model's, ends like this."""
    kinds = (OSError, ValueError, LookupError, RuntimeError, EOFError, TypeError, AttributeError)
    of_libraries = (pickle.UnpicklingError, safetensors.SafetensorError)
    return isinstance(error, (*kinds, *of_libraries)) or type(error) is Exception  # tokenizers'


def _spread(name: str, device_map: str | Mapping[str, Any], how: dict[str, Any]) -> Any:
    """A model whose parts are on several devices."""
    given = device_map if isinstance(device_map, str) else dict(device_map)
    with offload_folder() as (offloaded, keep_for):
        model = load_weights(name, device_map=given, offload_folder=offloaded, **how)
        keep_for(model)
    return model


def as_loaded(model: str | Path | LoadedModel) -> LoadedModel:
    """A model that is loaded, or `load_model` of its name; ModelError if it is something else."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | Path):
        return load_model(str(model))
    raise ModelError(
        f"the model is {type(model).__name__}, expected a path, an id or a loaded model: pass "
        "lenscache.wrap_model(model, tokenizer)"
    )


def flat_ids(*entries: Any) -> frozenset[int]:
    """Token ids from settings, each of which is an id, a list of ids or None."""
    lists = (entry if isinstance(entry, list | tuple) else [entry] for entry in entries)
    return frozenset(int(one) for some in lists for one in some if one is not None)


def check_model_layers(wanted: Iterable[int], n_layers: int, model: str) -> tuple[int, ...]:
    """The model layers asked for, ascending; `model` is what the error calls the model.

    Raises
    ------
    ModelLayerError
        If one does not exist, or none is asked for.
    """
    found = tuple(sorted(set(wanted)))
    for model_layer in found:
        if not 0 <= model_layer < n_layers:
            raise ModelLayerError(
                f"model layer {model_layer} does not exist: {model} has {n_layers} transformer "
                f"blocks, numbered 0 to {n_layers - 1}"
            )
    if not found:
        raise ModelLayerError("no model layers asked for: name at least one")
    return found


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a model: its one module list of `num_hidden_layers` entries.

    Raises
    ------
    UnsupportedModelError
        If there is none, or more than one.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} reads a text with one stack of blocks and writes with "
            "another, expected a causal language model"
        )
    n_layers = config.get_text_config().num_hidden_layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    }
    # The text side of a model that reads pictures, which may have a tower of as many blocks.
    if len(found) > 1 and (text := _text_side(model)):
        found = {name: module for name, module in found.items() if name.startswith(text)}
    # A list inside a block (experts, say) may be as long by chance; the blocks are the outermost.
    inner = {name for name in found if any(name.startswith(f"{other}.") for other in found)}
    outermost = {name: module for name, module in found.items() if name not in inner}
    if len(outermost) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(outermost)} module lists of {n_layers} entries "
            f"({sorted(outermost)}), expected one list of transformer blocks"
        )
    return next(iter(outermost.values()))


def _text_side(model: Any) -> str:
    """The name of the part of a model that reads text, with a dot; "" if it has no parts."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    names = [name for name, module in model.named_modules() if module is decoder and name]
    return f"{names[0]}." if names else ""


def silence() -> None:
    """Keep transformers and its helpers off the terminal; errors still arrive as exceptions."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = first_line(error)
        raise ModelError(
            f"the device {name!r} cannot be used: {reason}; expected cpu, cuda, cuda:1 or auto"
        ) from error
    return device


def _native_dtype(device: torch.device) -> str:
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_it else "float16"
    # torch 2.10 and later
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    has_bfloat16 = any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if device.type == "cpu" and has_bfloat16 else "float32"
