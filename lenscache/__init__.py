"""lenscache: run a language model once over every prompt of a concept pack and keep its activations
in a Zarr store.

The names below are the public interface. They load on first use: reading a store needs no torch,
and importing the package loads neither torch nor zarr. Extraction itself is
`lenscache.extract.extract`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenscache.concepts.hierarchy import Hierarchy
    from lenscache.concepts.pack import Concept, ConceptPack
    from lenscache.concepts.plan import SamplePlan, plan_samples
    from lenscache.errors import LenscacheError
    from lenscache.extract.settings import ExtractProgress, ExtractReport, ExtractSettings
    from lenscache.live.listening import listen
    from lenscache.live.steering import Intervention, steer, steer_all
    from lenscache.model.loading import LoadedModel, load_model
    from lenscache.store.header import StoreHeader
    from lenscache.store.round import Round
    from lenscache.store.store import Store, open_store

_HOMES = {
    "Concept": "concepts.pack",
    "ConceptPack": "concepts.pack",
    "ExtractProgress": "extract.settings",
    "ExtractReport": "extract.settings",
    "ExtractSettings": "extract.settings",
    "Hierarchy": "concepts.hierarchy",
    "Intervention": "live.steering",
    "LenscacheError": "errors",
    "LoadedModel": "model.loading",
    "Round": "store.round",
    "SamplePlan": "concepts.plan",
    "Store": "store.store",
    "StoreHeader": "store.header",
    "listen": "live.listening",
    "load_model": "model.loading",
    "open_store": "store.store",
    "plan_samples": "concepts.plan",
    "steer": "live.steering",
    "steer_all": "live.steering",
}

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
    "listen",
    "load_model",
    "open_store",
    "plan_samples",
    "steer",
    "steer_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
