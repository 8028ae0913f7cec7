"""The `lenstrain` command: stage two, from a store to graded lenses, with no model in memory."""

from __future__ import annotations

from ..group import command_group
from . import lenses
from .audit import audit
from .exchange import export_pack, import_pack
from .fit import fit
from .read import read
from .report import report
from .show import show
from .steer import steer

app = command_group(
    "lenstrain",
    "Train, calibrate and grade concept lenses from a lenscache store, with no model in memory.",
    {
        "fit": (fit, "store.zarr --f1 0.95 --out lenses-0.95"),
        "show": (show, "lenses-0.95 --grade A --sort score --limit 20"),
        "impact": (lenses.impact, "lenses-0.95"),
        "compare": (lenses.compare, "lenses-0.95 lenses-mlp --store store.zarr"),
        "check": (lenses.check, "lenses-0.95 --store store.zarr"),
        "audit": (audit, "store.zarr --strict"),
        "read": (read, 'lenses-0.95 --model smollm2-135m --text "The ship left the harbour"'),
        "steer": (
            steer,
            'lenses-0.95 --model smollm2-135m --concept weather --strength 8 --prompt "I think"',
        ),
        "export": (export_pack, "lenses-0.95 --to gguf --out vectors --min-grade B"),
        "import": (import_pack, "folder --from hatcat --model-layer 15 --out new"),
        "report": (report, "lenses-0.95 --store store.zarr --out report.html"),
    },
)


def main(prog_name: str | None = None) -> None:
    """Run the command; help calls it `prog_name`, by default the name it was started by."""
    app(prog_name=prog_name)
