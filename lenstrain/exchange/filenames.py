"""File names for concepts, whose ids may be anything."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote

_KEPT = " ()+,'&="
# Characters: with a mark and an ending far below the 255 bytes that file systems allow.
_LONGEST = 150
# Device names of Windows, with any ending.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def file_stems(concepts: Iterable[str]) -> dict[str, str]:
    """A file name without ending for each concept, of which no two are the same on any file system.

    Letters and digits of ASCII and ``_-. ()+,'&=`` stay; all else, and a leading dot or space,
    become percent escapes of their UTF-8 bytes, as in a URL. A name that is too long, or that
    differs from an earlier one by case alone, ends in ``~`` and 16 hexadecimal digits of a hash of
    the concept.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for concept in concepts:
        stem = _escaped(concept)
        if len(stem) > _LONGEST or stem.lower() in taken:
            mark = hashlib.blake2b(concept.encode(), digest_size=8).hexdigest()
            stem = f"{stem[:_LONGEST]}~{mark}"  # no escaped name has a ~
        stems[concept] = stem
        taken.add(stem.lower())
    return stems


def _escaped(concept: str) -> str:
    stem = quote(concept, safe=_KEPT).replace("~", "%7E")
    if not stem:
        return "%"  # which no other concept gets
    if stem[0] in ". " or _RESERVED.fullmatch(stem):
        return f"%{ord(stem[0]):02X}{stem[1:]}"
    return stem
