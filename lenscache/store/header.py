"""What all activations of a store have in common: model, tokenizer, pack and every setting.

The header is a store's identity. It is written once, as attributes of the root group, and compared
field by field before anything else is written: two runs share a store only if nothing in it
differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lenscache.errors import ModelLayerError, StoreFormatError, StoreMismatchError
from lenscache.terms import Mode, Phase, Pooling, StoreDtype

FORMAT_VERSION = 1


@dataclass(frozen=True)
class StoreHeader:
    """What all activations of a store have in common; runs share a store only if it is equal."""

    model_id: str
    """Name the model was loaded by; informative, the fingerprint decides."""
    model_fingerprint: str
    model_dtype: str
    """Floating point type the model computed in."""
    n_layers: int
    """Transformer blocks of the model."""
    hidden: int
    """Size of the residual stream."""
    tokenizer_fingerprint: str
    pack_name: str
    pack_version: str
    pack_digest: str
    model_layers: tuple[int, ...]
    """Transformer blocks whose output is stored, ascending."""
    mode: Mode
    max_new_tokens: int
    """Tokens generated a row; 0 in prompt mode."""
    pooling: Pooling
    pool_first_position: bool
    special_tokens: bool
    """Whether the tokenizer added its special tokens to a prompt."""
    store_dtype: StoreDtype
    seed: int
    max_prompt_tokens: int = 0
    """Longer prompts are cut to their first so many tokens; 0 for no limit."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that are stored."""
        return ("prompt", "completion") if self.mode == "combined" else (self.mode,)

    def check_phase(self, phase: str) -> None:
        """Raise StoreMismatchError if the store holds no such phase."""
        if phase not in self.phases:
            raise StoreMismatchError("mode", self.mode, phase)

    def check_model_layer(self, model_layer: int) -> None:
        """Raise ModelLayerError if the store holds no such model layer."""
        if model_layer not in self.model_layers:
            raise ModelLayerError(
                f"model layer {model_layer} is not in the store, which holds "
                f"{show_value(self.model_layers)}"
            )

    def check_equal(self, wanted: StoreHeader) -> None:
        """Raise StoreMismatchError, naming the first field in which `wanted` differs."""
        for item in sorted(fields(self), key=lambda item: item.name.endswith("fingerprint")):
            found, asked = getattr(self, item.name), getattr(wanted, item.name)
            if item.name not in _INFORMATIVE_FIELDS and found != asked:
                name = _FIELD_NAMES.get(item.name, item.name.replace("_", " "))
                if item.name == "model_fingerprint":
                    found, asked = (
                        f"{h.model_id} (weights {h.model_fingerprint})" for h in (self, wanted)
                    )
                reuse = "extract into another store, with --reuse for what stays the same"
                advice = reuse if "pack" in name else ""
                raise StoreMismatchError(name, show_value(found), show_value(asked), advice)

    def to_attributes(self) -> dict[str, Any]:
        """The attributes of the store's root group."""
        values = asdict(self)
        model = {key: values.pop(f"model_{key}") for key in ("id", "fingerprint", "dtype")}
        model |= {key: values.pop(key) for key in ("n_layers", "hidden")}
        pack = {key: values.pop(f"pack_{key}") for key in ("name", "version", "digest")}
        tokenizer = {"fingerprint": values.pop("tokenizer_fingerprint")}
        values["model_layers"] = list(self.model_layers)
        return {
            "format_version": FORMAT_VERSION,
            "model": model,
            "tokenizer": tokenizer,
            "pack": pack,
            "settings": values,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> StoreHeader:
        """The inverse of `to_attributes`; unknown settings are passed over.

        Raises
        ------
        StoreFormatError
            If a field is missing, or a size is none that a model can have.
        """
        try:
            header = cls._from_attributes(attributes)
            header._check_sizes()
            return header
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreFormatError(
                f"the header of the store is damaged or incomplete ({type(error).__name__}: "
                f"{error}): restore its zarr.json from a copy, or extract into another store"
            ) from error

    def _check_sizes(self) -> None:
        sizes = dict.fromkeys(("max_new_tokens", "max_prompt_tokens"), 2**31 - 1)
        sizes |= {"hidden": 2**24, "n_layers": 2**16}
        for name, most in sizes.items():
            if not isinstance(size := getattr(self, name), int) or not 0 <= size <= most:
                raise ValueError(f"{name} is {size!r:.60}, expected 0 to {most}")

    @classmethod
    def _from_attributes(cls, attributes: Mapping[str, Any]) -> StoreHeader:
        model, pack = attributes["model"], attributes["pack"]
        known = {item.name for item in fields(cls)}
        settings = {k: value for k, value in dict(attributes["settings"]).items() if k in known}
        settings["model_layers"] = tuple(settings["model_layers"])
        return cls(
            model_id=model["id"],
            model_fingerprint=model["fingerprint"],
            model_dtype=model["dtype"],
            n_layers=model["n_layers"],
            hidden=model["hidden"],
            tokenizer_fingerprint=attributes["tokenizer"]["fingerprint"],
            pack_name=pack["name"],
            pack_version=pack["version"],
            pack_digest=pack["digest"],
            **settings,
        )


_FIELD_NAMES = {
    "model_fingerprint": "model",
    "model_dtype": "dtype",
    "tokenizer_fingerprint": "tokenizer",
    "n_layers": "number of transformer blocks",
}
_INFORMATIVE_FIELDS = frozenset({"model_id", "pack_version"})  # the digests decide


def show_value(value: object) -> str:
    """A setting as a message shows it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
