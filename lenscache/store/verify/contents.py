"""Checks of the columns of a store against each other, the header and a concept pack.

columns of a round --check_columns--> values in range, keys and plan digest as the texts imply
                   --check_pack-----> the texts of each concept are those of the pack
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import SPLITS, SamplePlan, sampling_seed
from lenscache.concepts.prompts import NEGATIVE, concept_prompts
from lenscache.errors import LenscacheError
from lenscache.store.columns import COLUMNS, COMPLETION_IDS
from lenscache.store.header import StoreHeader
from lenscache.store.keys import sample_keys
from lenscache.store.store import make_hierarchy, read_attributes
from lenscache.store.token_ids import impossible_rows
from lenscache.store.verify.findings import WRITE_ANEW, Finding
from lenscache.store.verify.round import RoundCheck

Columns = Mapping[str, NDArray[Any]]

_NO_LIMIT = 2**31 - 1
_NAMED = 3  # concepts that a line about the pack names
_PACK_ADVICE = "give the pack it was extracted from, or extract into another store"


def check_columns(check: RoundCheck) -> Iterator[Finding]:
    """Values in range, unique keys, and keys and plan digest recomputed from the stored texts."""
    columns, attributes = check.columns, check.attributes
    limits = {
        "samples/kind": (0, len(attributes["kinds"]) - 1),
        "samples/split": (0, len(SPLITS) - 1),
        "samples/n_prompt_tokens": (1, check.header.max_prompt_tokens or _NO_LIMIT),
        "samples/n_cut_tokens": (0, _NO_LIMIT),
        "samples/temperature": (0.0, 10.0),
        "labels/sample": (0, check.n_samples - 1),
        "labels/concept": (0, len(attributes["concepts"]) - 1),
        "labels/role": (0, NEGATIVE),
    }
    for name, (low, high) in limits.items():
        if (values := columns.get(name)) is not None:
            # Written so that NaN is out of range, too.
            yield from _rows_finding(
                check, name, ~((values >= low) & (values <= high)), f"not in {low} to {high}"
            )
    lengths = {name: len(columns[name]) for name in columns if name.startswith("labels/")}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        yield _finding(check, "labels", f"columns of unequal length: {shown}")
    yield from _check_counts(check)
    yield from _check_ids(check)
    yield from _check_identity(check)


def _check_counts(check: RoundCheck) -> Iterator[Finding]:
    most = check.header.max_new_tokens
    for block, counts in sorted(check.parts("samples/n_completion_tokens").items()):
        wrong = (counts < 0) | (counts > most)
        if wrong.any():
            rows = check.rows(block).start + np.flatnonzero(wrong)
            found = f"{len(rows)} counts are not in 0 to {most}"
            yield check.block_finding(
                "samples/n_completion_tokens", block, found, (int(rows[0]), int(rows[-1]))
            )


def _check_ids(check: RoundCheck) -> Iterator[Finding]:
    counts = check.parts("samples/n_completion_tokens")
    for block, ids in sorted(check.parts(f"samples/{COMPLETION_IDS}").items()):
        if block not in counts:
            continue  # damage that was reported
        wrong = impossible_rows(ids, counts[block])
        if wrong.any():
            rows = check.rows(block).start + np.flatnonzero(wrong)
            found = f"{len(rows)} rows are no completions of as many tokens as were fed back"
            yield check.block_finding(
                f"samples/{COMPLETION_IDS}", block, found, (int(rows[0]), int(rows[-1]))
            )


def _check_identity(check: RoundCheck) -> Iterator[Finding]:
    keys = check.columns.get("samples/key")
    if keys is not None and len(np.unique(keys, axis=0)) < len(keys):
        repeated = len(keys) - len(np.unique(keys, axis=0))
        yield _finding(check, "samples/key", f"{repeated} keys occur twice")
    plan = _stored_plan(check)
    if plan is None or keys is None:
        return
    wrong = (sample_keys(check.header, plan) != keys).any(axis=1)
    what = "not the digest of their text and of the settings"
    yield from _rows_finding(check, "samples/key", wrong, what)
    if plan.digest != (said := check.attributes["plan_digest"]) and not wrong.any():
        found = f"samples and labels have the plan digest {plan.digest}, the attributes say {said}"
        yield _finding(check, "", found)


def _stored_plan(check: RoundCheck) -> SamplePlan | None:
    """The plan as it can be read back; None if a column is damaged."""
    places = {column.plan: column.place for column in COLUMNS if column.plan}
    if not all(name in check.columns for name in ("samples/text", *places.values())):
        return None
    columns = {field: check.columns[name] for field, name in places.items()}
    texts, seed = tuple(map(str, check.columns["samples/text"])), check.header.seed
    seeds = [sampling_seed(seed, t, int(n)) for t, n in zip(texts, columns["repeat"], strict=True)]
    return SamplePlan(
        concepts=tuple(check.attributes["concepts"]),
        n_targets=check.attributes["n_targets"],
        texts=texts,
        sampling_seed=np.array(seeds, np.uint64),
        **columns,
    )


def _finding(check: RoundCheck, name: str, found: str, **more: Any) -> Finding:
    """A finding about a column or group of a round, which the next extraction writes again."""
    return Finding(f"{check.name}/{name}".rstrip("/"), found, WRITE_ANEW, round=check.name, **more)


def _rows_finding(
    check: RoundCheck, name: str, wrong: NDArray[np.bool_], what: str
) -> Iterator[Finding]:
    if wrong.any():
        rows = np.flatnonzero(wrong).tolist()
        yield _finding(check, name, f"{len(rows)} values are {what}", rows=(rows[0], rows[-1]))


def check_hierarchy(columns: Columns) -> Iterator[Finding]:
    """Whether the hierarchy's columns fit together."""
    ids, levels = columns["id"], columns["layer"]
    links = {name: column for name, column in columns.items() if name.endswith("_links")}
    by_concept = [column for name, column in columns.items() if name not in links]
    outside = [
        name
        for name, column in links.items()
        if column.ndim != 2 or ((column < 0) | (column >= len(ids))).any()
    ]
    fault = None
    if any(len(column) != len(ids) for column in by_concept):
        fault = "columns of unequal length"
    elif outside:
        fault = f"{outside[0]} points outside the concepts"
    elif len(set(ids)) < len(ids) or (levels < 0).any():
        fault = "ids that occur twice, or levels below 0"
    else:
        try:
            make_hierarchy(ids, levels, **links)
            if "attributes" in columns:
                read_attributes(ids, columns["attributes"])
        except LenscacheError as error:
            fault = str(error)
    if fault:
        yield Finding("hierarchy", fault, WRITE_ANEW)


def check_levels(columns: Columns, checks: list[RoundCheck]) -> Iterator[Finding]:
    """Whether the hierarchy has every concept of the rounds, those planned for at their level."""
    levels = dict(zip(map(str, columns["id"]), columns["layer"].tolist(), strict=False))
    for check in checks:
        concepts = check.attributes.get("concepts", [])
        missing = [concept for concept in concepts if concept not in levels]
        targets = concepts[: check.attributes.get("n_targets", 0)]
        moved = [c for c in targets if levels.get(c, check.level) != check.level]
        wrong = (
            (missing, "are not in it"),
            (moved, f"are not at level {check.level}, where they were extracted"),
        )
        for names, what in wrong:
            if names:
                shown = ", ".join(map(repr, names[:_NAMED]))
                found = f"{len(names)} concepts of {check.name} {what} ({shown})"
                yield Finding("hierarchy", found, WRITE_ANEW)


def check_pack(
    header: StoreHeader, checks: list[RoundCheck], pack: ConceptPack
) -> Iterator[Finding]:
    """Whether the store was extracted from `pack`: digest, name and the texts of each concept."""
    stored = f"{header.pack_name} {header.pack_version} ({header.pack_digest})"
    given = f"{pack.name} {pack.version} ({pack.digest})"
    if (header.pack_name, header.pack_digest) != (pack.name, pack.digest):
        found = f"extracted from pack {stored}, the pack given is {given}"
        yield Finding("", found, _PACK_ADVICE, path="zarr.json", cure="pack")
    for check in checks:
        wrong = list(_differing_concepts(check, pack, header.seed))
        if wrong:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            shown = f"{'; '.join(wrong[:_NAMED])}{more}"
            found = f"texts differ from the pack's in {len(wrong)} concepts: {shown}"
            place = f"{check.name}/labels"
            yield Finding(place, found, _PACK_ADVICE, round=check.name, cure="pack")


def _differing_concepts(check: RoundCheck, pack: ConceptPack, seed: int) -> Iterator[str]:
    """Each target concept whose texts or their roles are not those of the pack."""
    names = ("samples/text", "labels/sample", "labels/concept", "labels/role")
    columns = [check.columns.get(name) for name in names]
    if any(column is None for column in columns):
        return  # damage that was reported
    text, sample, concept, role = (np.asarray(column) for column in columns)
    if not len(sample) == len(concept) == len(role):
        return  # as above
    if len(sample) and not 0 <= sample.min() <= sample.max() < len(text):
        return  # as above
    known = {entry.id for entry in pack.concepts}
    for number, name in enumerate(check.attributes["concepts"][: check.attributes["n_targets"]]):
        if name not in known:
            yield f"{name!r} is not in the pack"
            continue
        mine = concept == number
        stored = {(str(text[row]), int(r)) for row, r in zip(sample[mine], role[mine], strict=True)}
        wanted = {(p.text, p.role) for p in concept_prompts(pack, pack[name], seed=seed)}
        # A later round holds more samples of the same texts, and need not hold all of them.
        missing = set() if check.index else wanted - stored
        if missing or stored - wanted:
            extra = f"{len(stored - wanted)} stored not in the pack"
            yield f"{name!r} ({len(missing)} of the pack not stored, {extra})"
