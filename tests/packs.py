"""Small concept packs, written in code."""

from __future__ import annotations

from typing import Any

from lenscache.concepts.pack import ConceptPack

_SUBJECTS = (
    "the old man",
    "a girl",
    "our teacher",
    "the crew",
    "my aunt",
    "a stranger",
    "the twins",
    "no one",
)


def small_pack(*, n_examples: int = 8, **changes: Any) -> ConceptPack:
    """Seven concepts on two levels, two branches; every concept has its own words."""
    words = {
        "nature": "stones and wind and moss",
        "craft": "making and mending",
        "bird": "wings over the roof",
        "fish": "fins under the pier",
        "tree": "roots below the wall",
        "boat": "oars against the tide",
        "oven": "bread in the heat",
    }
    parents = {
        "bird": ["nature"],
        "fish": ["nature"],
        "tree": ["nature"],
        "boat": ["craft"],
        "oven": ["craft"],
    }
    concepts = [
        {
            "id": name,
            "name": name,
            "layer": 1 if name in parents else 0,
            "parents": parents.get(name, []),
            "definition": f"What has to do with {text}.",
            "aliases": [],
            "examples": [
                f"{_SUBJECTS[i % 8].capitalize()} saw {text}, time {i}." for i in range(n_examples)
            ],
            "contrasts": [f"The word {name} was painted on van number {i}." for i in range(3)],
        }
        for name, text in words.items()
    ]
    head = {"format_version": 1, "name": "small", "version": "1"}
    return ConceptPack.from_dict({**head, "concepts": concepts, **changes})
