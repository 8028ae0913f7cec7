"""lenstrain: train, calibrate and grade concept lenses from a lenscache store, with no model in
memory.

The names below are the public interface; they load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenstrain.data.dataset import LensDataset, open_dataset
    from lenstrain.errors import LenstrainError
    from lenstrain.families.linear_lens import LinearLens
    from lenstrain.families.mean_difference import MeanDifferenceLens
    from lenstrain.families.mlp import MlpLens
    from lenstrain.fit.adaptive import FitResult, FitSettings, fit_lenses
    from lenstrain.fit.to_pack import make_lens_pack
    from lenstrain.fit.train import text_settings, train, train_targets
    from lenstrain.live.monitor import Monitor
    from lenstrain.live.naming_rule import Rule
    from lenstrain.metrics.score import Grade
    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack

_HOMES = {
    "FitResult": "fit.adaptive",
    "FitSettings": "fit.adaptive",
    "Grade": "metrics.score",
    "Lens": "pack.lens",
    "LensDataset": "data.dataset",
    "LensPack": "pack.pack",
    "LenstrainError": "errors",
    "LinearLens": "families.linear_lens",
    "fit_lenses": "fit.adaptive",
    "MeanDifferenceLens": "families.mean_difference",
    "MlpLens": "families.mlp",
    "Monitor": "live.monitor",
    "Rule": "live.naming_rule",
    "make_lens_pack": "fit.to_pack",
    "open_dataset": "data.dataset",
    "text_settings": "fit.train",
    "train": "fit.train",
    "train_targets": "fit.train",
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
