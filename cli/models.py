"""Loading a model for a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import console

if TYPE_CHECKING:
    from lenscache.model.loading import LoadedModel
    from lenstrain.pack.pack import LensPack


def load(
    model: str,
    dtype: str,
    device: str,
    device_map: str | None = None,
    adapter: str | None = None,
) -> LoadedModel:
    """The model, with a line on stderr before and after."""
    from lenscache.model.loading import load_model, silence

    silence()
    console.note(f"loading {model}")
    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map, adapter=adapter)
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.note(f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.placement}")
    return loaded


def load_for(
    pack: LensPack,
    model: str,
    dtype: str,
    device: str,
    device_map: str | None = None,
    adapter: str | None = None,
    *,
    allow_other: bool = False,
) -> tuple[LoadedModel, list[str]]:
    """The model that the lenses of a pack are to be used with, and notes on how well it fits.

    Raises
    ------
    lenstrain.errors.SettingsError
        If it is another model than the lenses were made for.
    """
    from lenstrain.live.read import check_loaded

    loaded = load(model, dtype, device, device_map, adapter)
    note = check_loaded(pack, loaded, allow_other=allow_other)
    return loaded, [] if note is None else [note]
