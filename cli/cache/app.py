"""The `lenscache` command: stage one, from a model and a concept pack to a store."""

from __future__ import annotations

from ..group import command_group
from .extract import extract
from .pack import app as packs
from .plan import plan
from .preflight import preflight
from .stores import export, info, label, repair, verify

app = command_group(
    "Run a language model once over every prompt of a concept pack and keep its activations in a "
    "Zarr store.",
)
app.add_typer(packs, name="pack")


app.command(
    epilog=(
        "Example: lenscache extract store.zarr --pack data/packs/starter.json "
        "--model smollm2-135m --level 0"
    )
)(extract)
app.command(epilog="Example: lenscache info store.zarr")(info)
app.command(epilog="Example: lenscache label store.zarr topics.csv --name topics --label topic")(
    label
)
app.command(
    epilog=(
        "Example: lenscache export store.zarr --to safetensors --out activations --model-layers "
        "10-20"
    )
)(export)
app.command(epilog="Example: lenscache verify store.zarr --pack data/packs/starter.json")(verify)
app.command(epilog="Example: lenscache repair store.zarr")(repair)
app.command(epilog="Example: lenscache preflight --model smollm2-135m --quick")(preflight)
app.command(
    epilog=(
        "Example: lenscache plan --pack data/packs/starter.json --model smollm2-135m "
        "--devices 16 --device-kind h100"
    )
)(plan)


def main(prog_name: str | None = None) -> None:
    """Entry point.

    Parameters
    ----------
    prog_name : what help calls the command; None for the name it was started by.
    """
    app(prog_name=prog_name)
