"""lenscache: run a model once over all prompts of a concept pack, keep activations in a Zarr store.

The names below are the public interface. They load on first use: reading a store needs no torch,
and importing the package loads neither torch nor zarr. Extraction itself is `extract_texts` of
labelled texts, and `lenscache.extract.extract` of a concept pack.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenscache.concepts.hierarchy import Hierarchy
    from lenscache.concepts.pack import Concept, ConceptPack
    from lenscache.concepts.plan import SamplePlan, plan_samples
    from lenscache.errors import LenscacheError
    from lenscache.extract.settings import ExtractProgress, ExtractReport, ExtractSettings
    from lenscache.extract.texts import extract_texts
    from lenscache.live.listening import listen
    from lenscache.live.steering import Intervention, steer, steer_all
    from lenscache.model.loading import LoadedModel, load_model
    from lenscache.model.wrapping import wrap_model
    from lenscache.store.header import StoreHeader
    from lenscache.store.round import Round
    from lenscache.store.store import Store, open_store

_MODULES = {
    "concepts.hierarchy": "Hierarchy",
    "concepts.pack": "Concept ConceptPack",
    "concepts.plan": "SamplePlan plan_samples",
    "errors": "LenscacheError",
    "extract.settings": "ExtractProgress ExtractReport ExtractSettings",
    "extract.texts": "extract_texts",
    "live.listening": "listen",
    "live.steering": "Intervention steer steer_all",
    "model.loading": "LoadedModel load_model",
    "model.wrapping": "wrap_model",
    "store.header": "StoreHeader",
    "store.round": "Round",
    "store.store": "Store open_store",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Concept",
    "ConceptPack",
    "ExtractProgress",
    "ExtractReport",
    "ExtractSettings",
    "Hierarchy",
    "Intervention",
    "LenscacheError",
    "LoadedModel",
    "Round",
    "SamplePlan",
    "Store",
    "StoreHeader",
    "__version__",
    "extract_texts",
    "listen",
    "load_model",
    "open_store",
    "plan_samples",
    "steer",
    "steer_all",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("lenscache")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
