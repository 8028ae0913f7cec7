"""Loading a model for a command."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from . import console


class Dtype(StrEnum):
    """Choices of --dtype."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


DtypeOption = Annotated[Dtype, typer.Option(help="Weights and arithmetic; auto: bfloat16 where the device has it.")]
AllowOtherModel = Annotated[
    bool, typer.Option("--allow-other-model", help="Go on with a model that the pack was not made for.")
]


def load(model: str, dtype: Dtype, device: str) -> Any:
    """The model, with a line on stderr before and after."""
    from lenscache.model import load_model, silence

    silence()
    console.err().print(f"loading {model}", markup=False, soft_wrap=True)
    loaded = load_model(model, dtype=dtype.value, device=device)
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.err().print(f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.device}", markup=False, soft_wrap=True)
    return loaded


def load_for(pack: Any, model: str, dtype: Dtype, device: str, *, allow_other: bool = False) -> tuple[Any, list[str]]:
    """The model that the lenses of a pack are to be used with, and what there is to say of that.

    Raises
    ------
    lenstrain.errors.SettingsError
        If it is another one than they were made for.
    """
    from lenstrain.reading import check_model

    loaded = load(model, dtype, device)
    found = {
        "id": loaded.id, "fingerprint": loaded.fingerprint, "dtype": loaded.dtype, "n_layers": loaded.n_layers,
        "hidden": loaded.hidden,
    }  # fmt: skip
    note = check_model(pack, found, loaded.tokenizer_fingerprint, allow_other=allow_other)
    return loaded, [] if note is None else [note]
