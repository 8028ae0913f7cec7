"""lenstrain: train, calibrate and grade concept lenses from a lenscache store, with no model in memory.

The names below are the public interface; they load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenstrain.adaptive import FitResult, FitSettings, fit_lenses
    from lenstrain.calibration import Grade
    from lenstrain.data.dataset import LensDataset, open_dataset
    from lenstrain.errors import LenstrainError
    from lenstrain.families.linear import LinearLens
    from lenstrain.families.mean_difference import MeanDifferenceLens
    from lenstrain.families.mlp import MlpLens
    from lenstrain.lens import Lens
    from lenstrain.lenspack import LensPack
    from lenstrain.monitor import Monitor
    from lenstrain.packing import make_lens_pack
    from lenstrain.presence import Rule
    from lenstrain.training import text_settings, train, train_targets

_HOMES = {
    "FitResult": "adaptive",
    "FitSettings": "adaptive",
    "Grade": "calibration",
    "Lens": "lens",
    "LensDataset": "data.dataset",
    "LensPack": "lenspack",
    "LenstrainError": "errors",
    "LinearLens": "families.linear",
    "fit_lenses": "adaptive",
    "MeanDifferenceLens": "families.mean_difference",
    "MlpLens": "families.mlp",
    "Monitor": "monitor",
    "Rule": "presence",
    "make_lens_pack": "packing",
    "open_dataset": "data.dataset",
    "text_settings": "training",
    "train": "training",
    "train_targets": "training",
}

__all__ = [
    "FitResult",
    "FitSettings",
    "Grade",
    "Lens",
    "LensDataset",
    "LensPack",
    "LenstrainError",
    "LinearLens",
    "MeanDifferenceLens",
    "MlpLens",
    "Monitor",
    "Rule",
    "fit_lenses",
    "make_lens_pack",
    "open_dataset",
    "text_settings",
    "train",
    "train_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
