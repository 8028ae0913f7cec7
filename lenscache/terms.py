"""The words that settings are made of."""

from __future__ import annotations

from typing import Literal

Phase = Literal["prompt", "completion"]
Mode = Literal["combined", "prompt", "completion"]
Pooling = Literal["mean", "max", "last"]
StoreDtype = Literal["bfloat16", "float16", "float32", "int8"]
