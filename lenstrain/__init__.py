"""lenstrain: train, calibrate and grade concept lenses from a lenscache store, with no model in
memory.

The names below are the public interface; they load on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenstrain.data.dataset import LensDataset, open_dataset
    from lenstrain.errors import LenstrainError
    from lenstrain.estimators import LinearLens, MeanDifferenceLens, MlpLens
    from lenstrain.fit.adaptive import FitResult, fit_lenses
    from lenstrain.fit.to_pack import make_lens_pack
    from lenstrain.fit.train import text_settings, train, train_targets
    from lenstrain.live.monitor import Monitor
    from lenstrain.live.naming_rule import Rule
    from lenstrain.metrics.grade import Grade
    from lenstrain.pack.lens import Lens
    from lenstrain.pack.pack import LensPack
    from lenstrain.settings import FitSettings

_MODULES = {
    "data.dataset": "LensDataset open_dataset",
    "errors": "LenstrainError",
    "estimators": "LinearLens MeanDifferenceLens MlpLens",
    "fit.adaptive": "FitResult fit_lenses",
    "fit.to_pack": "make_lens_pack",
    "fit.train": "text_settings train train_targets",
    "live.monitor": "Monitor",
    "live.naming_rule": "Rule",
    "metrics.grade": "Grade",
    "pack.lens": "Lens",
    "pack.pack": "LensPack",
    "settings": "FitSettings",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

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
    "__version__",
    "fit_lenses",
    "make_lens_pack",
    "open_dataset",
    "text_settings",
    "train",
    "train_targets",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("lenscache")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
