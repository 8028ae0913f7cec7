"""8-bit activations: integers from -127 to 127 and, by vector, a scale: largest magnitude / 127.

Lossy: half the bytes of bfloat16, at an error of scale / sqrt(12) in every feature, whatever the
feature's own size. Vectors with a few features of outsized magnitude lose most;
`benchmarks/int8.py` measures what it costs in F1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
MISSING = -128
"""Never written: what an object that is gone reads as."""


def quantize(values: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(rows, hidden) int8 and (rows,) scales; a row that is not all finite is zeros, scale NaN."""
    values = np.asarray(values, np.float32)
    scale = (np.abs(values).max(axis=1) / LARGEST).astype(np.float32)
    scale[~np.isfinite(values).all(axis=1)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.rint(values / scale[:, None])
    whole[~(scale > 0)] = 0
    # A scale below the smallest normal number is coarse: the quotient may be larger than 127.
    return whole.clip(-LARGEST, LARGEST).astype(np.int8), scale


def dequantize(whole: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, hidden) float32; NaN where nothing was written or the scale is NaN."""
    values = whole.astype(np.float32) * scale[:, None]
    values[whole == MISSING] = np.nan
    return np.asarray(values)


def as_stored(vector: NDArray[Any], store_dtype: str) -> NDArray[Any]:
    """What a vector reads back as, if that is far from what it was."""
    if store_dtype != "int8":
        return vector
    whole, scale = quantize(vector[None])
    return np.asarray(dequantize(whole, scale)[0])
