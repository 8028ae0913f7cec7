"""The Zarr v3 ``bfloat16`` data type for zarr-python, which has none (3.1).

The name is the one in the Zarr extension registry, so tensorstore and other Zarr v3 readers open
the same arrays. Importing this module registers the type: zarr-python 3.1 collects the
``zarr.data_type`` entry points of installed packages but never loads them, so an entry point alone
would do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.npy.float import BaseFloat

DTYPE: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
"""bfloat16 as a numpy dtype: the upper half of a float32, 8 bits of exponent and 7 of mantissa."""


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """bfloat16 scalars, stored as two bytes.

    It reports an endianness (through `BaseFloat`), without which zarr-python leaves ``endian`` out
    of the ``bytes`` codec and tensorstore refuses the array.
    """

    dtype_cls = type(DTYPE)
    _zarr_v3_name: ClassVar[str] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()  # Zarr v2 has no bfloat16

    @classmethod
    def _check_native_dtype(cls, dtype: np.dtype[Any]) -> TypeGuard[np.dtype[Any]]:
        return dtype == DTYPE

    def to_native_dtype(self) -> np.dtype[Any]:
        """The numpy dtype."""
        # ml_dtypes types exist in native byte order only; the "bytes" codec swaps if need be.
        return DTYPE

    @property
    def item_size(self) -> int:
        """Bytes of one scalar."""
        return 2


data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
