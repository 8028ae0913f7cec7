"""What is wrong with the attributes of a round, if anything: types, ranges, the verification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lenscache.concepts.prompts import KINDS
from lenscache.store.bounded import LARGEST_LENGTH
from lenscache.store.header import StoreHeader
from lenscache.store.layout import BACKGROUND

_MOST_BLOCKS = 2**24


def attributes_fault(attributes: Mapping[str, Any], header: StoreHeader, level: int) -> str | None:
    """What is wrong with what a round says of its plan; None if nothing is."""
    kinds = {"n_samples": int, "block_rows": int, "plan_digest": str}
    kinds |= {"concepts": list, "n_targets": int, "kinds": list}
    for key, kind in kinds.items():
        if not isinstance(attributes.get(key), kind):
            return f"the attribute {key} is {attributes.get(key)!r:.60}, expected {kind.__name__}"
    if attributes["n_samples"] < 1 or attributes["block_rows"] < 1:
        n, block_rows = attributes["n_samples"], attributes["block_rows"]
        return f"{n} samples in blocks of {block_rows}, expected 1 or more"
    n_blocks = -(-attributes["n_samples"] // attributes["block_rows"])
    if attributes["n_samples"] > LARGEST_LENGTH or n_blocks > _MOST_BLOCKS:
        return f"{attributes['n_samples']} samples in {n_blocks} blocks, more than any store has"
    if not (level != BACKGROUND) <= attributes["n_targets"] <= len(attributes["concepts"]):
        return f"{attributes['n_targets']} target concepts of {len(attributes['concepts'])}"
    if any(stored != known for stored, known in zip(attributes["kinds"], KINDS, strict=False)):
        return f"the attribute kinds is {attributes['kinds']!r:.60}, expected {', '.join(KINDS)}"
    if attributes.get("seed") != header.seed:
        return f"the seed is {attributes.get('seed')}, that of the store is {header.seed}"
    return None


def verification_fault(attributes: Mapping[str, Any], header: StoreHeader) -> str | None:
    """What is wrong with the record that rows were compared one by one; None without one."""
    if (found := attributes.get("verification")) is None:
        return None
    if not isinstance(found, dict):
        return f"it is {found!r:.60}, expected an object"
    rows: Any = found.get("rows")
    tolerance: Any = found.get("tolerance")
    errors = found.get("max_relative_error")
    if not _is_count(rows, attributes["n_samples"]):
        return f"rows is {rows!r:.60}, expected 0 to {attributes['n_samples']}"
    if not _is_count(others := found.get("other_completions", 0), rows):
        return f"other_completions is {others!r:.60}, expected 0 to {rows}"
    if not _is_number(tolerance, math.inf):
        return f"tolerance is {tolerance!r:.60}, expected a number"
    if not _is_number(distance := found.get("token_distance", 0.0), 1.0):
        return f"token_distance is {distance!r:.60}, expected 0 to 1"
    wanted = set(map(str, header.model_layers))
    if not isinstance(errors, dict) or set(errors) != wanted:
        return f"max_relative_error is {errors!r:.60}, expected one by model layer"
    for model_layer, error in errors.items():
        if not _is_number(error, tolerance):
            return f"the error of model layer {model_layer} is {error}, above {tolerance}"
    return None


def is_verified(attributes: Mapping[str, Any], header: StoreHeader) -> bool:
    """Whether rows were compared one by one, by a record that makes sense."""
    return bool(attributes.get("verification")) and verification_fault(attributes, header) is None


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_number(value: Any, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= most
