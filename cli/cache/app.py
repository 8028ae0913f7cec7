"""The `lenscache` command: stage one, from a model and a concept pack to a store."""

from __future__ import annotations

from ..group import command_group
from .extract import extract
from .pack import app as packs
from .plan import plan
from .preflight import preflight
from .stores import export, info, label, repair, verify

app = command_group(
    "lenscache",
    "Run a language model once over every prompt of a concept pack and keep its activations in a "
    "Zarr store.",
    {
        "extract": (
            extract,
            "store.zarr --pack data/packs/starter.json --model smollm2-135m --level 0",
        ),
        "info": (info, "store.zarr"),
        "label": (label, "store.zarr topics.csv --name topics --label topic"),
        "export": (export, "store.zarr --to safetensors --out activations --model-layers 10-20"),
        "verify": (verify, "store.zarr --pack data/packs/starter.json"),
        "repair": (repair, "store.zarr"),
        "preflight": (preflight, "--model smollm2-135m --quick"),
        "plan": (
            plan,
            "--pack data/packs/starter.json --model smollm2-135m --devices 16 --device-kind h100",
        ),
    },
)
app.add_typer(packs, name="pack")


def main(prog_name: str | None = None) -> None:
    """Run the command; help calls it `prog_name`, by default the name it was started by."""
    app(prog_name=prog_name)
