"""Loading a model for a command."""

from __future__ import annotations

import os
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


class DeviceMap(StrEnum):
    """Choices of --device-map."""

    auto = "auto"
    balanced = "balanced"
    balanced_low_0 = "balanced_low_0"
    sequential = "sequential"


DtypeOption = Annotated[
    Dtype, typer.Option(help="Weights and arithmetic; auto: bfloat16 where the device has it.")
]
DeviceMapOption = Annotated[
    DeviceMap | None,
    typer.Option(
        show_default=False,
        help=(
            "Spread the blocks over all cards, what they do not hold over memory and disk (slow); "
            "needs accelerate."
        ),
    ),
]
TensorParallel = Annotated[
    bool,
    typer.Option(
        "--tensor-parallel",
        help=(
            "Share every block among the processes of `torchrun --nproc-per-node N --no-python "
            "lenscache ...`."
        ),
    ),
]
AllowOtherModel = Annotated[
    bool,
    typer.Option("--allow-other-model", help="Go on with a model that the pack was not made for."),
]


def load(
    model: str,
    dtype: Dtype,
    device: str,
    device_map: DeviceMap | None = None,
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
    console.err().print(f"loading {model}", markup=False, soft_wrap=True)
    loaded = load_model(
        model,
        dtype=dtype.value,
        device=device,
        device_map=None if device_map is None else device_map.value,
        team=Team.join() if tensor_parallel else None,
    )
    shape = f"{loaded.n_layers} transformer blocks of size {loaded.hidden}"
    console.err().print(
        f"{loaded.id}: {shape}, {loaded.dtype} on {loaded.placement}", markup=False, soft_wrap=True
    )
    return loaded


def is_follower() -> bool:
    """Whether torchrun started this process beside one that leads: it has nothing to plan, write or
    print."""
    return int(os.environ.get("RANK", "0")) > 0


def follow(model: str, dtype: Dtype) -> None:
    """Take part in what the leader runs, until it has no more; an error in loading is the leader's
    to tell."""
    from lenscache.errors import LenscacheError
    from lenscache.inference.runner import follow as follow_leader
    from lenscache.model.loading import load_model, silence
    from lenscache.model.tensor_parallel import Team

    silence()
    team = Team.join()
    try:
        loaded = load_model(model, dtype=dtype.value, team=team)
    except LenscacheError:
        raise typer.Exit(1) from None
    follow_leader(loaded)


def load_for(
    pack: Any,
    model: str,
    dtype: Dtype,
    device: str,
    device_map: DeviceMap | None = None,
    *,
    allow_other: bool = False,
) -> tuple[Any, list[str]]:
    """The model that the lenses of a pack are to be used with, and what there is to say of that.

    Raises
    ------
    lenstrain.errors.SettingsError
        If it is another one than they were made for.
    """
    from lenstrain.live.reading import check_model

    loaded = load(model, dtype, device, device_map)
    found = {
        "id": loaded.id,
        "fingerprint": loaded.fingerprint,
        "dtype": loaded.dtype,
        "n_layers": loaded.n_layers,
        "hidden": loaded.hidden,
    }
    note = check_model(pack, found, loaded.tokenizer_fingerprint, allow_other=allow_other)
    return loaded, [] if note is None else [note]
