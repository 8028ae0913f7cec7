"""Label sets: other labels for texts that a store already holds, added without the model.

    labelled texts --import_labelled--> ConceptPack --add_label_set--> label_sets/NAME in the store

    label_sets/NAME/              attributes: current, the digest of the version to read
      DIGEST/                     attributes: concepts, names, source
        samples/key    [k, 16]    the samples that carry a label; by key, since rounds may be added
        samples/split  [k]        splits of this set alone, as if it had been extracted by itself
        labels/sample  [m]        index into `samples`
        labels/concept [m]        index into the `concepts` attribute
        labels/role    [m]        as in a round

`current` is written when all of a version is there, and a version that is replaced goes only then.
A set has no hierarchy: every class is the negative of the others, unless the data names negatives
of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.errors import LabelSetError, argument
from lenscache.store.access import raise_unless_damage
from lenscache.store.layout import find_node, require_group, write_column
from lenscache.store.objects import object_names
from lenscache.store.round import Labels
from lenscache.store.store import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class LabelSet:
    """Labels of k samples of a store, m in all."""

    name: str
    concepts: tuple[str, ...]
    """Ids that `labels.concept` points into."""
    names: tuple[str, ...]
    """What people call the concepts."""
    source: str
    """Name of the file it was made of."""
    key: NDArray[np.uint8]
    """(k, 16) keys of the samples that carry a label."""
    split: NDArray[np.uint8]
    """(k,) index into `lenscache.concepts.plan.SPLITS`."""
    labels: Labels
    """(m,) columns; `labels.sample` points into `key`."""

    @property
    def digest(self) -> str:
        """Identity of the content; 16 hex digits."""
        digest = hashlib.sha256(repr((self.concepts, self.names)).encode("utf-8", "surrogatepass"))
        for column in (self.key, self.split, *self.labels):
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()[:16]


class Added(NamedTuple):
    """What adding a label set came to."""

    label_set: LabelSet
    missing: tuple[str, ...]
    """Labelled texts that the store does not hold."""
    lost_concepts: tuple[str, ...]
    """Concepts of which the store holds no text."""


def add_label_set(store: Store, name: str, pack: ConceptPack, *, overwrite: bool = False) -> Added:
    """Label the texts of a store that `pack` knows.

    Splits and the order of each concept's samples are those that extracting the pack itself would
    have given, for the texts that are there.

    Parameters
    ----------
    store : opened for writing.
    name : letters, digits, ".", "_" and "-"; what `lenstrain fit --labels` selects.
    pack : labelled texts, as the importer makes them; texts are matched exactly.
    overwrite : replace a set of this name that holds other labels.

    Raises
    ------
    LabelSetError
        If the name cannot be used or is taken, or the store holds none of the texts.
    """
    if not _NAME.fullmatch(name):
        raise LabelSetError(
            f"label set name {name!r:.80} cannot be used: give up to 64 letters, digits, '.', '_' "
            "or '-', the first a letter or digit"
        )
    keys_of = _keys_by_text(store)
    known, missing, lost = _restrict(pack, keys_of)
    label_set = _plan(store, name, known, keys_of)
    taken = name in label_set_names(store) and not overwrite
    if taken and read_label_set(store, name).digest != label_set.digest:
        raise LabelSetError(
            f"{store.path} has a label set {name!r} already: choose another name, or pass "
            f"{argument('overwrite')}"
        )
    _write(store, label_set)
    return Added(label_set, missing, lost)


def label_set_names(store: Store) -> list[str]:
    """Names of the label sets that are complete, sorted."""
    names = filter(_NAME.fullmatch, object_names(store.group, "label_sets"))
    found = {name: find_node(store.group, f"label_sets/{name}") for name in names}
    groups = {name: node for name, node in found.items() if isinstance(node, zarr.Group)}
    return sorted(name for name, group in groups.items() if "current" in group.attrs)


def read_label_set(store: Store, name: str) -> LabelSet:
    """Read a label set.

    Raises
    ------
    LabelSetError
        If there is none of this name, or it does not read back as it was written.
    """
    names = label_set_names(store)
    if name not in names:
        there = ", ".join(names) or "none"
        raise LabelSetError(
            f"{store.path} has no label set {name!r}, it has: {there}; "
            "add one with `lenscache label`"
        )
    hint = (
        f"the label set {name!r} of {store.path} is damaged: "
        "write it again with `lenscache label --overwrite`"
    )
    try:
        digest = str(store.group[f"label_sets/{name}"].attrs["current"])
        group = cast("zarr.Group", store.group[f"label_sets/{name}/{digest}"])
        key, split, *labels = (
            np.asarray(cast("zarr.Array[Any]", find_node(group, place))[:]) for place in _COLUMNS
        )
        found = LabelSet(
            name,
            tuple(cast(Any, group.attrs["concepts"])),
            tuple(cast(Any, group.attrs["names"])),
            str(group.attrs["source"]),
            key,
            split,
            Labels(*labels),
        )
    except Exception as error:  # codecs raise anything on damaged input
        raise_unless_damage(error, f"label_sets/{name}")
        raise LabelSetError(f"{hint} ({error})") from error
    if found.digest != digest:
        raise LabelSetError(f"{hint} (its digest does not match)")
    return found


_COLUMNS = ("samples/key", "samples/split", "labels/sample", "labels/concept", "labels/role")


def _keys_by_text(store: Store) -> dict[str, dict[bytes, None]]:
    """Keys of all samples by text; a text that a later round sampled again has several."""
    found: dict[str, dict[bytes, None]] = {}
    for entry in store.rounds():
        samples = entry.samples()
        for text, key in zip(samples.text, samples.key, strict=True):
            found.setdefault(str(text), {})[bytes(key)] = None
    return found


def _restrict(
    pack: ConceptPack, texts: Iterable[str]
) -> tuple[ConceptPack, tuple[str, ...], tuple[str, ...]]:
    """The pack with the texts that are there, the texts that are not, and concepts without any."""
    held = set(texts)
    wanted = dict.fromkeys(text for c in pack.concepts for text in (*c.examples, *c.negatives))
    missing = tuple(text for text in wanted if text not in held)

    def keep(found: Sequence[str]) -> tuple[str, ...]:
        return tuple(text for text in found if text in held)

    concepts = [
        replace(c, examples=keep(c.examples), negatives=keep(c.negatives)) for c in pack.concepts
    ]
    left = tuple(concept for concept in concepts if concept.examples)
    if not left:
        raise LabelSetError(
            f"none of the {len(wanted)} labelled texts is in the store: texts are matched exactly, "
            "as they were extracted; extract new ones with `lenscache pack import` and "
            "`lenscache extract`"
        )
    lost = tuple(concept.id for concept in concepts if not concept.examples)
    known = ConceptPack(
        name=pack.name,
        version=pack.version,
        # A label set has no hierarchy.
        concepts=tuple(replace(c, level=0, parents=(), confusable_with=()) for c in left),
        origin=pack.origin,
        prompts="examples",
        splits={split: keep(pack.splits[split]) for split in pack.splits},
    )
    return known, missing, lost


def _plan(
    store: Store, name: str, pack: ConceptPack, keys_of: dict[str, dict[bytes, None]]
) -> LabelSet:
    plan = plan_samples(pack, seed=store.header.seed)
    keys = [tuple(keys_of[text]) for text in plan.texts]
    first = np.cumsum([0, *(len(found) for found in keys)])
    rows = [range(first[row], first[row + 1]) for row in range(len(plan))]
    repeats = np.array([len(rows[row]) for row in plan.label_sample], np.intp)
    joined = b"".join(key for found in keys for key in found)
    return LabelSet(
        name=name,
        concepts=plan.concepts,
        names=tuple(pack[concept].name for concept in plan.concepts),
        source=pack.origin,
        key=np.frombuffer(joined, np.uint8).reshape(-1, 16),
        split=np.repeat(plan.split, np.diff(first)),
        labels=Labels(
            np.array([number for row in plan.label_sample for number in rows[row]], np.int32),
            np.repeat(plan.label_concept, repeats),
            np.repeat(plan.label_role, repeats),
        ),
    )


def _write(store: Store, label_set: LabelSet) -> None:
    versions = require_group(require_group(store.group, "label_sets"), label_set.name)
    group = require_group(versions, label_set.digest)
    for place in ("samples", "labels"):
        require_group(group, place)
    columns: tuple[NDArray[Any], ...] = (label_set.key, label_set.split, *label_set.labels)
    for place, values in zip(_COLUMNS, columns, strict=True):
        write_column(group, place, values)
    concepts, names = list(label_set.concepts), list(label_set.names)
    group.update_attributes({"concepts": concepts, "names": names, "source": label_set.source})
    versions.update_attributes({"current": label_set.digest})
    for name in object_names(versions, ""):
        if name not in ("zarr.json", label_set.digest):
            del versions[name]
