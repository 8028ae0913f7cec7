"""docs/store-format.md says what is on disk: a reader written from it alone finds the same."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from lenscache.store.header import StoreHeader
from lenscache.store.store import open_store
from tests.lenscache.conftest import ROUND

DOCUMENT = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text("utf-8")


def attributes(store: Path, group: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / group / "zarr.json").read_text())["attributes"]
    return found


def keyed_hash(*parts: str) -> int:
    """H of the document."""
    data = b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def key_content(head: dict[str, Any], text: str, seed: int, temperature: float) -> str:
    settings = head["settings"]
    names = (
        "mode",
        "max_new_tokens",
        "max_prompt_tokens",
        "pooling",
        "pool_first_position",
        "special_tokens",
        "store_dtype",
    )
    common = [
        head["model"]["fingerprint"],
        head["model"]["dtype"],
        head["tokenizer"]["fingerprint"],
    ]
    sampling = [] if settings["mode"] == "prompt" else [seed, temperature]
    return json.dumps([*common, *(settings[name] for name in names)]) + json.dumps(
        [text, *sampling]
    )


def test_every_attribute_and_array_is_in_the_document(finished_store: Path) -> None:
    head, target = attributes(finished_store), attributes(finished_store, ROUND)
    names = {
        f"{outer}.{inner}"
        for outer, values in head.items()
        if isinstance(values, dict)
        for inner in values
    }
    names |= {"format_version", *target, *target["verification"]}
    names |= {path.parent.name for path in finished_store.glob("hierarchy/*/zarr.json")}
    names |= {path.parent.name for path in (finished_store / ROUND).glob("*/*/zarr.json")}
    assert len(names) > 40
    assert {name for name in names if f"`{name}`" not in DOCUMENT} == set()


def test_every_field_of_the_header_is_in_the_document() -> None:
    rows = set(
        re.findall(r"^\| `(?:model|tokenizer|pack|settings)\.(\w+)`", DOCUMENT, re.MULTILINE)
    )
    prefixes = ("model_", "tokenizer_", "pack_")
    names = set(StoreHeader.__dataclass_fields__)
    assert {name for name in names if name not in rows and not name.startswith(prefixes)} == set()
    assert {name.split("_", 1)[1] for name in names if name.startswith(prefixes)} <= rows | {
        "layers"
    }


def test_keys_are_computed_as_the_document_says(finished_store: Path) -> None:
    head, samples = attributes(finished_store), open_store(finished_store).rounds()[0].samples()
    for row, text in enumerate(map(str, samples.text)):
        again = [str(samples.repeat[row])] if samples.repeat[row] else []
        seed = keyed_hash("sampling", str(head["settings"]["seed"]), text, *again)
        content = key_content(head, text, seed, float(samples.temperature[row]))
        assert hashlib.blake2b(content.encode(), digest_size=16).digest() == bytes(samples.key[row])


def test_example_of_the_document_is_right() -> None:
    block = re.search(r"```\ntext  .*?```", DOCUMENT, re.DOTALL)
    assert block is not None
    lines = dict(re.findall(r"^(\w+(?: \w+)?)  +(.*)$", block[0], re.MULTILINE))
    text = lines["text"].replace("⏎", "\n")
    assert keyed_hash("sampling", "7", text) == int(lines["sampling seed"])
    drawn = np.float32(0.3 + (0.9 - 0.3) * keyed_hash("temperature", "7", text) / 2**64)
    assert repr(float(drawn)) == lines["temperature"]
    settings = {
        "mode": "combined",
        "max_new_tokens": 20,
        "max_prompt_tokens": 8172,
        "pooling": "mean",
        "pool_first_position": False,
        "special_tokens": True,
        "store_dtype": "bfloat16",
    }
    head = {
        "model": {"fingerprint": "0123456789abcdef", "dtype": "float32"},
        "settings": settings,
        "tokenizer": {"fingerprint": "fedcba9876543210"},
    }
    assert key_content(head, text, int(lines["sampling seed"]), float(drawn)) == lines["content"]
    assert hashlib.blake2b(lines["content"].encode(), digest_size=16).hexdigest() == lines["key"]


def test_fill_values_and_dimension_names_are_those_of_the_document(finished_store: Path) -> None:
    target: Any = zarr.open_group(str(finished_store / ROUND), mode="r")
    for name, array in target["samples"].arrays():
        pattern = rf"^\| `{name}` \(n(?:, (\w+))?\) \| (\w+) \| (\S+) \|"
        row = re.search(pattern, DOCUMENT, re.MULTILINE)
        assert row is not None, name
        kind = "string" if "String" in str(array.dtype) else str(array.dtype)
        assert (kind, json.dumps(array.metadata.fill_value.item() if kind != "string" else "")) == (
            row[2],
            row[3].strip("`") + (".0" if kind == "float32" else ""),
        )
        further = {None: (), "16": ("byte",), "T": ("token",)}[row[1]]
        assert array.metadata.dimension_names == ("sample", *further)
    for _, array in target["labels"].arrays():
        assert array.metadata.dimension_names == ("label",)
    assert target["complete"].metadata.dimension_names == ("block",)
