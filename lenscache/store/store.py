"""The store, in a folder or an object store, as a Zarr v3 hierarchy that any reader understands.

    store.zarr/             StoreHeader in its attributes
      hierarchy/            the concepts of the pack and their parents: training needs no pack file
      layer_0/round_0/      one Round of level 0: samples, labels, activations, complete blocks
      background/round_0/   the same of texts that express no concept

Nothing is ever deleted or locked: the plan is deterministic, hence two writers of one block write
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import SamplePlan
from lenscache.errors import (
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreNotFoundError,
)
from lenscache.store.access import raise_unless_damage, type_and_text
from lenscache.store.columns import HIERARCHY
from lenscache.store.folder import FolderStore
from lenscache.store.header import FORMAT_VERSION, StoreHeader
from lenscache.store.layout import (
    BACKGROUND,
    create_group,
    find_node,
    lay_out_round,
    require_group,
    round_name,
    write_column,
    writing,
)
from lenscache.store.objects import object_names
from lenscache.store.remote import RemoteStore, create_place, open_place
from lenscache.store.round import Round
from lenscache.store.summary import store_html, summarize
from lenscache.terms import Phase

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


NO_LINKS = np.zeros((0, 2), np.int32)
"""Links of a pack that has none."""


class Store:
    """A store opened for reading or writing.

    Open one with `open_store`; `create_store` makes a new one.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        version = group.attrs.get("format_version")
        if version is None:
            raise StoreFormatError(
                f"{path} is a Zarr group but not a lenscache store: it has no format_version"
            )
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise StoreFormatError(
                f"{path} has format version {version}, this lenscache reads up to "
                f"{FORMAT_VERSION}: upgrade lenscache"
            )
        self.group, self.path = group, path
        self.header = StoreHeader.from_attributes(group.attrs)

    def __repr__(self) -> str:
        its = self.header
        layers = f"model layers {its.model_layers[0]} to {its.model_layers[-1]}"
        return f"Store({self.path!r}: {its.model_id}, {layers}, pack {its.pack_name!r})"

    def _repr_html_(self) -> str:
        return store_html(repr(self), self.all_rounds)

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """The hierarchy of the pack the store was extracted for."""
        ids, levels, links = (
            np.asarray(self._hierarchy_array(key)[:]) for key in ("id", "layer", "parent_links")
        )
        confusable = find_node(self.group, "hierarchy/confusable_links")
        more = () if confusable is None else (np.asarray(cast("zarr.Array[Any]", confusable)[:]),)
        return make_hierarchy(ids, levels, links, *more)

    @cached_property
    def concept_attributes(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """`lenscache.concepts.pack.Concept.attributes` of each concept that has any, by id."""
        if (node := find_node(self.group, "hierarchy/attributes")) is None:
            return {}
        ids = np.asarray(self._hierarchy_array("id")[:])
        return read_attributes(ids, np.asarray(cast("zarr.Array[Any]", node)[:]))

    @cached_property
    def concept_names(self) -> dict[str, str]:
        """What people call each concept, by id."""
        ids, names = (np.asarray(self._hierarchy_array(key)[:]) for key in ("id", "name"))
        return {str(i): str(name) for i, name in zip(ids, names, strict=True)}

    def levels(self) -> list[int]:
        """Levels of concepts that have at least one round, ascending."""
        return sorted({level for level, _ in self._round_places() if level != BACKGROUND})

    def rounds(self, level: int | None = None) -> list[Round]:
        """The rounds of one level, or of all, in order; without the background."""
        places = sorted(self._round_places())
        return [
            self.round(*place)
            for place in places
            if (place[0] != BACKGROUND if level is None else place[0] == level)
        ]

    @property
    def background(self) -> Round | None:
        """The rows that express no concept; None if the store has none."""
        return next(iter(self.rounds(BACKGROUND)), None)

    @property
    def all_rounds(self) -> list[Round]:
        """The rounds of all levels, in order, and the background."""
        return self.rounds() + self.rounds(BACKGROUND)

    def to_xarray(
        self,
        level: int | None = None,
        *,
        model_layers: Sequence[int] | None = None,
        phases: Sequence[Phase] | None = None,
        chunks: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Rows of complete blocks as a lazy dataset; see `lenscache.store.views.xarray_view`."""
        from lenscache.store.views.xarray_view import open_dataset  # not above: xarray is optional

        return open_dataset(self, level, model_layers=model_layers, phases=phases, chunks=chunks)

    def labels_frame(self, level: int | None = None) -> pd.DataFrame:
        """The labels of the same rows, one a line; see `lenscache.store.views.xarray_view`."""
        from lenscache.store.views.xarray_view import make_labels_frame

        return make_labels_frame(self, level)

    def round(self, level: int, index: int) -> Round:
        """One round.

        Raises
        ------
        StoreDamagedError
            If its metadata is gone or does not parse.
        """
        name = round_name(level, index)
        if (group := find_node(self.group, name)) is None:
            raise StoreDamagedError(
                f"{name}/zarr.json is missing from {self.path}: run `lenscache extract` again, "
                "which writes it anew"
            )
        return Round(cast("zarr.Group", group), self.header, level, index)

    def places(self) -> list[tuple[int, int]]:
        """Level and index of every round that was begun, whether or not it is laid out whole;
        sorted."""
        # Listed by name: zarr's own listing warns about .partial files, left by a killed writer.
        folders = {f"layer_{n}": n for n in _numbers(self.group, "", "layer_")}
        folders["background"] = BACKGROUND
        return sorted((n, i) for f, n in folders.items() for i in _numbers(self.group, f, "round_"))

    def digest(self) -> str:
        """Identity of the content: header, and the plan of every round; 16 hex digits."""
        plans = [(r.name, r.attributes["plan_digest"]) for r in self.all_rounds]
        content = json.dumps([self.header.to_attributes(), plans], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Everything `lenscache info` shows, as plain values; see `lenscache.store.summary`."""
        return summarize(self.path, self.digest(), self.header, self.all_rounds)

    def create_round(
        self,
        level: int,
        index: int,
        plan: SamplePlan,
        *,
        keys: NDArray[np.uint8],
        n_prompt_tokens: NDArray[np.int32],
        n_cut_tokens: NDArray[np.int32] | None = None,
        block_rows: int | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> Round:
        """Lay out a round, or take up one that was laid out before.

        Whatever is missing is created and whatever is there is left alone; `complete` is created
        last and so says that the rest is there. Columns that the plan determines are compared with
        it and rewritten if damaged.

        Parameters
        ----------
        block_rows : rows of a block; None for those of the round if it is there, else about 256.
        request : what was asked for: attributes of the round that must be the same the next time.

        Raises
        ------
        StoreMismatchError
            If the round was laid out from another plan.
        """
        name = round_name(level, index)
        cut = np.zeros(len(plan), np.int32) if n_cut_tokens is None else n_cut_tokens
        with writing(f"{self.path}: the layout of {name}"):
            lay_out_round(
                self.group,
                name,
                self.header,
                plan,
                keys,
                n_prompt_tokens,
                cut,
                block_rows=block_rows,
                request={"limit": None, "samples": None, "top_up": None, **(request or {})},
            )
        return self.round(level, index)

    def _round_places(self) -> Iterator[tuple[int, int]]:
        for level, index in self.places():
            if find_node(self.group, f"{round_name(level, index)}/complete") is not None:
                yield level, index

    def _hierarchy_array(self, name: str) -> zarr.Array[Any]:
        if (node := find_node(self.group, f"hierarchy/{name}")) is None:
            raise StoreDamagedError(
                f"hierarchy/{name} is missing from {self.path}: run `lenscache extract` again, "
                "which writes it anew"
            )
        return cast("zarr.Array[Any]", node)


def make_hierarchy(
    ids: NDArray[Any],
    levels: NDArray[Any],
    parent_links: NDArray[Any],
    confusable_links: NDArray[Any] = NO_LINKS,
) -> Hierarchy:
    """The hierarchy that these columns of a store describe."""
    linked: list[dict[str, tuple[str, ...]]] = []
    for links in (parent_links, confusable_links):
        others: dict[str, list[str]] = {}
        for one, other in links:
            others.setdefault(str(ids[one]), []).append(str(ids[other]))
        linked.append({concept: tuple(found) for concept, found in others.items()})
    return Hierarchy({str(i): int(n) for i, n in zip(ids, levels, strict=True)}, *linked)


def read_attributes(
    ids: NDArray[Any], column: NDArray[Any]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Attributes by concept, of the columns `id` and `attributes`.

    Raises
    ------
    StoreDamagedError
        If one is not a JSON object of lists of texts.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for concept, text in zip(ids, column, strict=True):
        try:
            data = json.loads(text) if text else {}
            values = {name: tuple(map(str, texts)) for name, texts in data.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise StoreDamagedError(
                f"hierarchy/attributes of {concept} is {str(text)!r:.60}, expected a JSON object "
                "of lists of texts: run `lenscache extract` again, which writes it anew"
            ) from error
        if values:
            found[str(concept)] = values
    return found


def open_store(path: str | Path, mode: Literal["r", "r+"] = "r") -> Store:
    """Open a store: a folder, or a URL that fsspec can open; see `lenscache.store.remote`.

    Raises
    ------
    StoreNotFoundError
        If nothing is there.
    StoreFormatError
        If it is no lenscache store, or one of a newer format; or if no store can have this URL.
    StoreAccessError
        If an object store refuses or cannot be reached.
    MissingPackageError
        If the package for this kind of URL is not installed.
    """
    place = open_place(path, read_only=mode == "r")
    try:
        if (group := _find_group(place, mode)) is None:
            if _is_unused(place):
                raise StoreNotFoundError(
                    f"no store at {path}: run `lenscache extract {path}` first"
                )
            # Once more: a writer may have created it between the two looks.
            if (group := _find_group(place, mode)) is None:
                raise StoreFormatError(
                    f"{path} exists but is not a Zarr v3 group: give the path of a store"
                )
    except (StoreError, OSError):
        raise
    except Exception as error:  # zarr raises anything on metadata that it cannot parse
        raise_unless_damage(error, f"{path}/zarr.json")
        raise StoreFormatError(
            f"the metadata of {path} is damaged: its zarr.json does not parse "
            f"({type_and_text(error)}): restore it from a copy, or extract into another store"
        ) from error
    return Store(group, str(path))


def create_store(path: str | Path, header: StoreHeader, pack: ConceptPack) -> Store:
    """Open the store at `path` for writing, creating it if nothing is there.

    Raises
    ------
    StoreMismatchError
        If the store there was written with another model, tokenizer, pack, dtype or setting.
    StoreFormatError
        If something else is there.
    """
    try:
        store = open_store(path, mode="r+")
    except StoreNotFoundError:
        # Another writer may be faster: what it wrote stays, and is compared below.
        with writing(str(path)):
            create_group(create_place(path), header.to_attributes())
        store = open_store(path, mode="r+")
    store.header.check_equal(header)
    with writing(f"{path}: the hierarchy"):
        _write_hierarchy(store, pack)
    return store


def _write_hierarchy(store: Store, pack: ConceptPack) -> None:
    group = require_group(store.group, "hierarchy")
    number = {concept.id: i for i, concept in enumerate(pack.concepts)}
    parents = [(number[c.id], number[parent]) for c in pack.concepts for parent in c.parents]
    confusable = [
        (number[c.id], number[o]) for c in pack.concepts for o in c.confusable_with if o in number
    ]
    attributes = [
        json.dumps(c.attributes, ensure_ascii=False) if c.attributes else "" for c in pack.concepts
    ]
    columns: dict[str, NDArray[Any]] = {
        "id": np.array([c.id for c in pack.concepts], dtype=object),
        "name": np.array([c.name for c in pack.concepts], dtype=object),
        "definition": np.array([c.definition for c in pack.concepts], dtype=object),
        "layer": np.array([c.level for c in pack.concepts]),
        "parent_links": np.array(parents).reshape(-1, 2),
    }
    # Stores of packs without them stay as they were before there were such columns.
    if confusable:
        columns["confusable_links"] = np.array(confusable)
    if any(attributes):
        columns["attributes"] = np.array(attributes, dtype=object)
    for column in HIERARCHY:
        if column.name not in columns:
            continue
        dtype = object if column.dtype == "string" else column.dtype
        axes = ["link", column.axis] if column.axis else ["concept"]
        write_column(group, column.name, columns[column.name].astype(dtype), axes)


def _find_group(place: FolderStore | RemoteStore, mode: Literal["r", "r+"]) -> zarr.Group | None:
    try:
        # Consolidated metadata, which others may add, does not know what was written after it.
        return zarr.open_group(place, mode=mode, zarr_format=3, use_consolidated=False)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        return None


def _is_unused(place: FolderStore | RemoteStore) -> bool:
    """Whether nothing is there, or only what a writer leaves if killed as it creates a store."""
    if isinstance(place, RemoteStore):
        if unused := place.is_unused():
            place.check_bucket()
        return unused
    if not (path := place.root).exists():
        return True
    return path.is_dir() and all(entry.suffix == ".partial" for entry in path.iterdir())


def _numbers(group: zarr.Group, folder: str, prefix: str) -> list[int]:
    """The numbers of the folders whose names are `prefix` and a number."""
    names = object_names(group, folder)
    ends = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [int(end) for end in ends if end.isdecimal()]
