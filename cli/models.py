"""Loading a model for a command."""

from __future__ import annotations

import os
from typing import Any

import typer

from . import console


def load(
    model: str,
    dtype: str,
    device: str,
    device_map: str | None = None,
    *,
    tensor_parallel: bool = False,
) -> Any:
    """The model, with a line on stderr before and after."""
    from lenscache.model.loading import load_model, silence
    from lenscache.model.tensor_parallel import Team

    silence()
    if tensor_parallel and (device_map is not None or device != "auto"):
        raise typer.BadParameter(
            "--tensor-parallel places the model itself: leave out --device and --device-map"
        )
    console.note(f"loading {model}")
    loaded = load_model(
        model,
        dtype=str(dtype),
        device=device,
        device_map=None if device_map is None else str(device_map),
        team=Team.join() if tensor_parallel else None,
    )
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.note(f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.placement}")
    return loaded


def is_follower() -> bool:
    """Whether torchrun started this process beside a leader. It then plans and prints nothing."""
    return int(os.environ.get("RANK", "0")) > 0


def follow(model: str, dtype: str) -> None:
    """Take part in what the leader runs until it ends; the leader reports loading errors."""
    from lenscache.errors import LenscacheError
    from lenscache.inference.runner import follow as follow_leader
    from lenscache.model.loading import load_model, silence
    from lenscache.model.tensor_parallel import Team

    silence()
    team = Team.join()
    try:
        loaded = load_model(model, dtype=str(dtype), team=team)
    except LenscacheError:
        raise typer.Exit(1) from None
    follow_leader(loaded)


def load_for(
    pack: Any,
    model: str,
    dtype: str,
    device: str,
    device_map: str | None = None,
    *,
    allow_other: bool = False,
) -> tuple[Any, list[str]]:
    """The model that the lenses of a pack are to be used with, and notes on how well it fits.

    Raises
    ------
    lenstrain.errors.SettingsError
        If it is another model than the lenses were made for.
    """
    from lenstrain.live.reading import check_model

    loaded = load(model, dtype, device, device_map)
    facts = ("id", "fingerprint", "dtype", "n_layers", "hidden")
    found = {name: getattr(loaded, name) for name in facts}
    note = check_model(pack, found, loaded.tokenizer_fingerprint, allow_other=allow_other)
    return loaded, [] if note is None else [note]
