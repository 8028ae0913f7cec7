"""Stage one: plan -> model -> store, resumable.

    Request (request) --planned_rounds--> plans --rows--> token ids --batch_size--> Runner

    api: `extract`, what users call      ray_driver, ray_worker: the same on many machines
    extraction: the rounds of a run      identity: model + pack + settings -> StoreHeader
    round: the blocks of a round         reuse: rows of other stores
    background: texts of no concept      texts: `extract_texts`, of labelled texts
    batch_check, comparison, mismatch,   estimate: what a run costs, timed
    tolerance: rows one by one

The names below load on first use, so that importing a module of this folder loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenscache.extract.api import extract
    from lenscache.extract.partitions import Partition
    from lenscache.extract.settings import (
        ExtractProgress,
        ExtractReport,
        ExtractSettings,
        OnProgress,
    )
    from lenscache.extract.tolerance import TOLERANCE

_MODULES = {
    "api": "extract",
    "partitions": "Partition",
    "settings": "ExtractProgress ExtractReport ExtractSettings OnProgress",
    "tolerance": "TOLERANCE",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "TOLERANCE",
    "ExtractProgress",
    "ExtractReport",
    "ExtractSettings",
    "OnProgress",
    "Partition",
    "extract",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
