"""The `lenstrain` command: stage two, from a store to graded lenses, with no model in memory."""

from __future__ import annotations

from ..group import command_group
from . import lenses
from .audit import audit
from .exchange import export_pack, import_pack
from .fit import fit, sweep
from .read import read
from .report import report
from .steer import steer

app = command_group(
    "Train, calibrate and grade concept lenses from a lenscache store, with no model in memory.",
)

app.command(epilog="Example: lenstrain fit store.zarr --f1 0.95 --out lenses-0.95")(fit)
app.command(
    epilog="Example: lenstrain sweep store.zarr --f1 0.80 --f1 0.90 --f1 0.95 --out lenses"
)(sweep)
app.command(epilog="Example: lenstrain show lenses-0.95")(lenses.show)
app.command(epilog="Example: lenstrain impact lenses-0.95")(lenses.impact)
app.command(epilog="Example: lenstrain compare lenses-0.95 lenses-mlp --store store.zarr")(
    lenses.compare
)
app.command(epilog="Example: lenstrain check lenses-0.95 --store store.zarr")(lenses.check)
app.command(epilog="Example: lenstrain audit store.zarr --strict")(audit)
app.command(
    epilog=(
        "Example: lenstrain read lenses-0.95 --model smollm2-135m "
        '--text "The ship left the harbour"'
    )
)(read)
app.command(
    epilog=(
        "Example: lenstrain steer lenses-0.95 --model smollm2-135m --concept weather "
        '--strength 8 --prompt "I think"'
    )
)(steer)
app.command(
    "export", epilog="Example: lenstrain export lenses-0.95 --to gguf --out vectors --min-grade B"
)(export_pack)
app.command(
    "import", epilog="Example: lenstrain import folder --from hatcat --model-layer 15 --out new"
)(import_pack)
app.command(epilog="Example: lenstrain report lenses-0.95 --store store.zarr --out report.html")(
    report
)


def main(prog_name: str | None = None) -> None:
    """Entry point.

    Parameters
    ----------
    prog_name : what help calls the command; None for the name it was started by.
    """
    app(prog_name=prog_name)
