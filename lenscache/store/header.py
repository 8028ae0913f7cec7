"""What all activations of a store have in common: the model, the tokenizer, the pack and every
setting.

The header is a store's identity. It is written once, as attributes of the root group, and compared
field by field before anything else is written: two runs share a store only if nothing in it
differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lenscache.errors import StoreFormatError, StoreMismatchError
from lenscache.terms import Mode, Phase, Pooling, StoreDtype

FORMAT_VERSION = 1


@dataclass(frozen=True)
class StoreHeader:
    """What every activation of a store has in common. Two runs may share a store only if all of it
    is equal."""

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
                advice = (
                    "extract into another store, with --reuse for what stays the same"
                    if "pack" in name
                    else ""
                )
                raise StoreMismatchError(name, show_value(found), show_value(asked), advice)

    def to_attributes(self) -> dict[str, Any]:
        """The attributes of the store's root group."""
        values = asdict(self)
        model = {
            "id": values.pop("model_id"),
            "fingerprint": values.pop("model_fingerprint"),
            "dtype": values.pop("model_dtype"),
            "n_layers": values.pop("n_layers"),
            "hidden": values.pop("hidden"),
        }
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
            If a field is missing.
        """
        try:
            return cls._from_attributes(attributes)
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreFormatError(
                f"the header of the store is damaged or incomplete ({type(error).__name__}: "
                f"{error}): restore its zarr.json from a copy, or extract into another store"
            ) from error

    @classmethod
    def _from_attributes(cls, attributes: Mapping[str, Any]) -> StoreHeader:
        model, pack, settings = (
            attributes["model"],
            attributes["pack"],
            dict(attributes["settings"]),
        )
        known = {item.name for item in fields(cls)}
        settings = {key: value for key, value in settings.items() if key in known}
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
_INFORMATIVE_FIELDS = frozenset(
    {"model_id", "pack_version"}
)  # digests decide, whatever the names say


def show_value(value: object) -> str:
    """A setting as a message shows it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
