"""Whether an existing lens pack is the one that a fit would write: by the fields of its manifest.

Everything that a lens depends on is in the manifest: the store, by the digest of its header and of
every plan, the settings, the rounds that were read, the label set, the versions of the packages
that compute. A field that differs, is missing or is unknown makes it another pack.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lenstrain.data.dataset import LensDataset
from lenstrain.fit.to_pack import pack_provenance
from lenstrain.pack.folder import none_for_nan
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings


def difference(
    pack: LensPack,
    dataset: LensDataset,
    settings: FitSettings,
    *,
    concepts: Sequence[str] | None = None,
    text: FitSettings | None = None,
    refine: bool = False,
) -> str | None:
    """The first difference between a pack and what this fit would write; None if there is none.

    Parameters
    ----------
    pack : as `LensPack.load` read it.
    dataset, settings, concepts, text, refine : as for `lenstrain.fit.train.train`.
    """
    wanted = replace(pack_provenance(dataset, settings), refined=refine or None).to_json()
    # What came of a fit says nothing of what went into it.
    recorded = replace(pack.provenance, calibration=None).to_json()
    found = _first_difference(recorded, json.loads(json.dumps(none_for_nan(wanted))))
    asked = list(dataset.concepts if concepts is None else concepts)
    fitted = [concept for concept in asked if concept not in pack.skipped]
    if found is None and (
        [lens.concept for lens in pack] != fitted or not pack.skipped.keys() <= set(asked)
    ):
        found = f"{len(pack) + len(pack.skipped)} concepts, now {len(asked)} or others"
    if found is None and (pack.text is None) != (text is None):
        found = "with text lenses, now without"
        if pack.text is None:
            found = "without text lenses, now with them"
    if found is None and pack.text is not None and text is not None:
        beside = difference(pack.text, dataset, text, concepts=concepts)
        found = beside and f"its text lenses: {beside}"
    return found


def _first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *found]):
            inside = f"{where}.{key}" if where else str(key)
            if (key in found) != (key in wanted):
                return f"{inside} is {'not ' if key in wanted else ''}recorded"
            if (differs := _first_difference(found[key], wanted[key], inside)) is not None:
                return differs
        return None
    return None if found == wanted else f"{where} {found!r}, now {wanted!r}"
